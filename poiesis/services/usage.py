"""Who has used how much: hourly sums of the figures in the events of tasks that have ended.

The sums of each hour that is over are stored, by whichever process asks for usage next, or by a job that calls `roll_up`; they are computed
from the events alone, so doing it again after a crash, or in two processes, gives the same. The last hours are summed from their events,
each of which is read once by a process.

Beside the figures of `domain.usage`, sums have counts that only the overview shows: `ended:STATE`, `failed:REASON`, and `waited:SECONDS` of
tasks that waited for at most so long (one of WAIT_BOUNDS, or `more`).
"""

from __future__ import annotations

import re
import threading
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from poiesis.domain.states import State
from poiesis.ports.clock import Clock
from poiesis.ports.events import Event, EventLog
from poiesis.ports.usage import HOUR, Kind, UsageStore, Use

SETTLE: Final = timedelta(minutes=5)
"""After the end of an hour: clocks differ, and a save takes time."""
HOURS_AT_ONCE: Final = 24
RELAYED_AT_ONCE: Final = 500
MAX_OPEN: Final = 3 * HOUR  # that is summed on request
OPEN_FOR: Final = timedelta(seconds=3)  # how old sums of hours that are not over may be
EVENTS_AT_ONCE: Final = 500
MAX_BEHIND: Final = 20_000  # events of all kinds; after more, only the ends of tasks are read
WAIT_BOUNDS: Final = (1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 24 * 3600)
MAX_KEPT: Final = 256
"""Owners and groups whose stored hours are kept in memory."""
MAX_VALUES: Final = 1_000
"""Of a tag in one hour; the tasks with further values are summed as OTHER."""
MAX_NAMES: Final = 10_000
"""Values of tags in one answer, of about 1 KB each; further ones are summed as OTHER."""
OTHER: Final = "(other)"
MAX_NAME: Final = 256
_LARGEST: Final = "peak_memory_bytes"
_FAILED: Final = frozenset({State.EXECUTOR_ERROR, State.SYSTEM_ERROR, State.PREEMPTED})
_WORD: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_Key = tuple[datetime, Kind, str, str]


@dataclass(frozen=True)
class Usage:
    """`begin` and `end`: the period, in whole hours. `until`: the time up to which `uses` is complete."""

    begin: datetime
    end: datetime
    until: datetime
    uses: Mapping[str, Mapping[str, float]]


Figures = dict[str, float]


@dataclass(frozen=True)
class ByHour:
    """`until`: the time up to which the sums are complete. `hours`: what ended in each; `names`: of each user in the whole period."""

    until: datetime
    hours: Mapping[datetime, Mapping[str, float]]
    names: Mapping[str, Mapping[str, float]]


class _Asked(NamedTuple):
    kind: Kind
    owner: str | None
    names: tuple[str, ...] | None


class _Sums:
    """Sums of events, from the hour `since` on. Of hours that are not over: of all events up to number `seq`, as of `at`."""

    def __init__(self, since: datetime, seq: int = 0) -> None:
        self.since = self.at = since
        self.seq = seq
        self._sums: dict[_Key, Figures] = {}
        self._values: dict[tuple[datetime, str], set[str]] = {}

    def add(self, event: Event, tags: Sequence[str]) -> None:
        for key in _keys(event, tags, self._values):
            _add(self._sums.setdefault(key, {}), _figures(event))

    def drop_before(self, since: datetime) -> None:
        self.since = since
        self._sums = {key: figures for key, figures in self._sums.items() if key[0] >= since}
        self._values = {key: values for key, values in self._values.items() if key[0] >= since}

    @property
    def uses(self) -> list[Use]:
        return [Use(*key, figures) for key, figures in self._sums.items()]


@dataclass(eq=False)
class UsageService:
    """`tags`: the keys of tags that usage is summed by."""

    events: EventLog
    store: UsageStore
    clock: Clock
    tags: Sequence[str]
    _open: _Sums | None = field(default=None, init=False)
    _stored: OrderedDict[_Asked, tuple[tuple[datetime, datetime], ByHour]] = field(
        default_factory=OrderedDict, init=False
    )
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)
    _opening: threading.Lock = field(default_factory=threading.Lock, init=False)
    _rolling: threading.Lock = field(default_factory=threading.Lock, init=False)

    def roll_up(self) -> int:
        """Store the sums of up to HOURS_AT_ONCE hours that are over, and return how many; 0: nothing is left to do."""
        until = hour_of(self.clock.now() - SETTLE)
        appended = self.events.relay(RELAYED_AT_ONCE)
        missing_since = self.events.missing_since() if appended else None
        if missing_since is not None and missing_since < until:  # only hours of which the log has all can be summed
            return appended
        hour = self.store.rolled_until() or self._first_hour()
        done = 0
        while hour is not None and hour < until and done < HOURS_AT_ONCE:
            sums = _Sums(hour)
            for event in self.events.ended_between(hour, hour + HOUR):
                sums.add(event, self.tags)
            self.store.replace(hour, sums.uses)
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
        sums: dict[str, Figures] = {}
        if begin < rolled:
            _sum(sums, self.store.between(kind, begin, min(end, rolled), owner=owner, names=names))
        until = end
        if end > rolled:
            at, since, open_uses = self._open_uses(rolled, kind, begin, end, owner)
            until = min(end, at) if since <= max(rolled, begin) else rolled
            _sum(sums, (use for use in open_uses if names is None or use.name in names))
        return Usage(begin, end, until, sums)

    def by_hour(
        self,
        begin: datetime,
        end: datetime,
        kind: Kind = Kind.USER,
        *,
        owner: str | None = None,
        names: Sequence[str] | None = None,
    ) -> ByHour:
        """What tasks of one owner, of certain names, or all have used in each hour of a period of whole hours. Stores nothing, unlike
        `usage`."""
        rolled = max(begin, min(end, self.store.rolled_until() or self._first_hour() or begin))
        stored = self._stored_hours(begin, rolled, _Asked(kind, owner, None if names is None else tuple(sorted(names))))
        if rolled == end:
            return stored
        at, since, open_uses = self._open_uses(rolled, kind, begin, end, owner)
        open_uses = [use for use in open_uses if names is None or use.name in names]
        added = _by_hour(min(end, at) if since <= rolled else rolled, open_uses)
        whole = {name: dict(figures) for name, figures in stored.names.items()}
        for name, figures in added.names.items():
            _add(whole.setdefault(name, {}), figures)
        return ByHour(added.until, {**stored.hours, **added.hours}, whole)

    def _stored_hours(self, begin: datetime, end: datetime, asked: _Asked) -> ByHour:
        """They do not change, so those of the last period are kept."""
        with self._lock:
            kept = self._stored.get(asked)
            if kept is not None and kept[0] == (begin, end):
                self._stored.move_to_end(asked)
                return kept[1]
        uses = (
            self.store.between(asked.kind, begin, end, owner=asked.owner, names=asked.names)
            if begin < end and asked.names != ()
            else ()
        )
        found = _by_hour(end, uses)
        with self._lock:
            self._stored[asked] = ((begin, end), found)
            self._stored.move_to_end(asked)
            while len(self._stored) > MAX_KEPT:
                self._stored.popitem(last=False)
        return found

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

    def _open_uses(
        self, rolled: datetime, kind: Kind, begin: datetime, end: datetime, owner: str | None
    ) -> tuple[datetime, datetime, list[Use]]:
        """When they were summed, from when on, and those sums of the hours since then that are asked for."""
        with self._opening:
            now = self.clock.now()
            since = max(rolled, hour_of(now - MAX_OPEN))
            if self._open is None or self._open.since > since or self._open.at + OPEN_FOR <= now:
                self._open = self._follow(self._open, since)
                self._open.at = now
            elif self._open.since < since:
                self._open.drop_before(since)
            found = [
                use
                for use in self._open.uses
                if use.kind is kind and begin <= use.hour < end and owner in (None, use.owner)
            ]
            return self._open.at, since, found

    def _follow(self, known: _Sums | None, since: datetime) -> _Sums:
        """Add the events since the last one that was summed, or begin again where that is more work."""
        last = self.events.last_seq()
        if known is None or known.since > since or last - known.seq > MAX_BEHIND:
            made = _Sums(since, last)
            for event in self.events.ended_between(since, datetime.max.replace(tzinfo=since.tzinfo)):
                if event.seq <= last:
                    made.add(event, self.tags)
            return made
        known.drop_before(since)
        while known.seq < last:
            events = self.events.after(known.seq, limit=EVENTS_AT_ONCE)
            for event in events:
                if event.state.is_terminal and event.at >= since:
                    known.add(event, self.tags)
            known.seq = events[-1].seq if events else last
        return known

    def _first_hour(self) -> datetime | None:
        oldest = self.events.after(self.events.first_seq() - 1, limit=1)
        return hour_of(oldest[0].at) if oldest else None


def _keys(event: Event, tags: Sequence[str], values: dict[tuple[datetime, str], set[str]]) -> Iterator[_Key]:
    hour, owner = hour_of(event.at), event.owner or ""
    yield hour, Kind.USER, owner, owner
    for group in dict.fromkeys(event.groups):
        yield hour, Kind.GROUP, group, ""
    for tag in tags:
        if tag in event.tags:
            known, value = values.setdefault((hour, tag), set()), event.tags[tag]
            if value not in known and len(known) >= MAX_VALUES:
                value = OTHER
            known.add(value)
            yield hour, Kind.TAG, f"{tag}={value}"[:MAX_NAME], owner


def _figures(event: Event) -> Figures:
    figures = {"tasks": 1.0, **event.usage, f"ended:{event.state.value}": 1.0}
    if event.state in _FAILED:
        word = (event.reason or "").split(":")[0]
        figures[f"failed:{word if _WORD.fullmatch(word) else 'Other'}"] = 1.0
    waited = event.usage.get("waiting_seconds")
    if waited is not None:
        place = bisect_left(WAIT_BOUNDS, waited)
        figures[f"waited:{WAIT_BOUNDS[place] if place < len(WAIT_BOUNDS) else 'more'}"] = 1.0
    return figures


def _sum(sums: dict[str, Figures], uses: Iterable[Use]) -> None:
    """Add what a user asks for to the sums by name. A year has more uses than fit into memory, so none is kept."""
    for use in uses:
        name = use.name
        if use.kind is Kind.TAG and name not in sums and len(sums) >= MAX_NAMES:
            name = f"{name.partition('=')[0]}={OTHER}"
        _add(sums.setdefault(name, {}), {each: value for each, value in use.figures.items() if ":" not in each})


def _by_hour(until: datetime, uses: Iterable[Use]) -> ByHour:
    hours: dict[datetime, Figures] = {}
    names: dict[str, Figures] = {}
    for use in uses:
        _add(hours.setdefault(use.hour, {}), use.figures)
        _add(names.setdefault(use.name, {}), use.figures)
    return ByHour(until, hours, names)


def hour_of(at: datetime) -> datetime:
    return at.replace(minute=0, second=0, microsecond=0)


def _add(to: dict[str, float], figures: Mapping[str, float]) -> None:
    for name, value in figures.items():
        to[name] = max(to.get(name, 0.0), value) if name == _LARGEST else to.get(name, 0.0) + value
