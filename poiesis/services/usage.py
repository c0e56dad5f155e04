"""Who has used how much: hourly sums of the figures in the events of tasks that have ended.

The sums of each hour that is over are stored, by whichever process asks for usage next, or by a job that calls `roll_up`; they are computed
from the events alone, so doing it again after a crash, or in two processes, gives the same. The last hours are summed from their events.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from poiesis.ports.clock import Clock
from poiesis.ports.events import Event, EventLog
from poiesis.ports.usage import HOUR, Kind, UsageStore, Use

SETTLE: Final = timedelta(minutes=5)
"""After the end of an hour: clocks differ, and a save takes time."""
HOURS_AT_ONCE: Final = 24
RELAYED_AT_ONCE: Final = 500
MAX_OPEN: Final = 3 * HOUR  # that is summed on request
OPEN_FOR: Final = timedelta(seconds=30)  # how old sums of hours that are not over may be
MAX_VALUES: Final = 1_000
"""Of a tag in one hour; the tasks with further values are summed as OTHER."""
OTHER: Final = "(other)"
MAX_NAME: Final = 256
_LARGEST: Final = "peak_memory_bytes"
_Key = tuple[datetime, Kind, str, str]


@dataclass(frozen=True)
class Usage:
    """`until`: the time up to which `uses` is complete."""

    until: datetime
    uses: Mapping[str, Mapping[str, float]]


@dataclass(eq=False)
class UsageService:
    """`tags`: the keys of tags that usage is summed by."""

    events: EventLog
    store: UsageStore
    clock: Clock
    tags: Sequence[str]
    _open: tuple[datetime, datetime, list[Use]] | None = field(default=None, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)
    _rolling: threading.Lock = field(default_factory=threading.Lock, init=False)

    def roll_up(self) -> int:
        """Store the sums of up to HOURS_AT_ONCE hours that are over, and return how many; 0: nothing is left to do."""
        until = hour_of(self.clock.now() - SETTLE)
        if appended := self.events.relay(RELAYED_AT_ONCE):  # only a log that has all saves can be summed
            return appended
        hour = self.store.rolled_until() or self._first_hour()
        done = 0
        while hour is not None and hour < until and done < HOURS_AT_ONCE:
            self.store.replace(hour, self._sums(self.events.ended_between(hour, hour + HOUR)))
            hour += HOUR
            done += 1
        return done

    def usage(
        self,
        kind: Kind,
        begin: datetime,
        end: datetime,
        *,
        owner: str | None = None,
        names: Sequence[str] | None = None,
    ) -> Usage:
        """What tasks that ended in a period have used, by name. Both ends are rounded outwards to hours."""
        begin, end = hour_of(begin), hour_of(end + HOUR - timedelta(microseconds=1))
        self._catch_up()
        rolled = self.store.rolled_until() or self._first_hour() or begin
        found = (
            list(self.store.between(kind, begin, min(end, rolled), owner=owner, names=names)) if begin < rolled else []
        )
        until = end
        if end > rolled:
            at, since, open_uses = self._open_uses(rolled)
            until = min(end, at) if since <= max(rolled, begin) else rolled
            found += [
                use
                for use in open_uses
                if use.kind is kind
                and begin <= use.hour < end
                and owner in (None, use.owner)
                and (names is None or use.name in names)
            ]
        sums: dict[str, dict[str, float]] = {}
        for use in found:
            _add(sums.setdefault(use.name, {}), use.figures)
        return Usage(until, sums)

    def _catch_up(self) -> None:
        """A bounded part of the hours that are over, in one thread at a time."""
        until = self.store.rolled_until()
        if until is not None and until >= hour_of(self.clock.now() - SETTLE):
            return
        if self._rolling.acquire(blocking=False):
            try:
                self.roll_up()
            finally:
                self._rolling.release()

    def _open_uses(self, rolled: datetime) -> tuple[datetime, datetime, list[Use]]:
        """When they were summed, from when on, and the sums of the hours since then."""
        with self._lock:
            now = self.clock.now()
            since = max(rolled, hour_of(now - MAX_OPEN))
            if self._open is None or self._open[1] != since or now - self._open[0] > OPEN_FOR:
                self._open = (now, since, self._sums(self.events.ended_between(since, now)))
            return self._open

    def _first_hour(self) -> datetime | None:
        oldest = self.events.after(self.events.first_seq() - 1, limit=1)
        return hour_of(oldest[0].at) if oldest else None

    def _sums(self, events: Iterable[Event]) -> list[Use]:
        sums: dict[_Key, dict[str, float]] = {}
        values: dict[tuple[datetime, str], set[str]] = {}
        for event in events:
            for key in self._keys(event, values):
                _add(sums.setdefault(key, {}), {"tasks": 1.0, **event.usage})
        return [Use(*key, figures) for key, figures in sums.items()]

    def _keys(self, event: Event, values: dict[tuple[datetime, str], set[str]]) -> Iterator[_Key]:
        hour, owner = hour_of(event.at), event.owner or ""
        yield hour, Kind.USER, owner, owner
        for group in dict.fromkeys(event.groups):
            yield hour, Kind.GROUP, group, ""
        for tag in self.tags:
            if tag in event.tags:
                known, value = values.setdefault((hour, tag), set()), event.tags[tag]
                if value not in known and len(known) >= MAX_VALUES:
                    value = OTHER
                known.add(value)
                yield hour, Kind.TAG, f"{tag}={value}"[:MAX_NAME], owner


def hour_of(at: datetime) -> datetime:
    return at.replace(minute=0, second=0, microsecond=0)


def _add(to: dict[str, float], figures: Mapping[str, float]) -> None:
    for name, value in figures.items():
        to[name] = max(to.get(name, 0.0), value) if name == _LARGEST else to.get(name, 0.0) + value
