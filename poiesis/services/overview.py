"""What the service does now and has done in the last day, for the overview of the dashboard: of all tasks, or of one user's.

Counts of unfinished tasks come from the store's index of them, sums of ended ones from the usage of each hour, so nothing here depends on
how many tasks are stored.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as Late
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from poiesis.domain.capacity import Capacity
from poiesis.domain.states import State
from poiesis.ports.clock import Clock
from poiesis.ports.repository import TaskRepository
from poiesis.ports.usage import HOUR, Kind
from poiesis.services.admission import PoolUse, WaitingReasons
from poiesis.services.usage import WAIT_BOUNDS, ByHour, UsageService, hour_of

HOURS: Final = 24
MAX_ROWS: Final = 10
COUNTED: Final = 100_000
"""Unfinished tasks of one state and reason; more are not counted."""
_WAITING: Final = (State.QUEUED, State.INITIALIZING)
_FAILED: Final = (State.EXECUTOR_ERROR, State.SYSTEM_ERROR, State.PREEMPTED)


@dataclass(frozen=True)
class Hour:
    """Tasks that ended in an hour, by how, and how long half and 95 of 100 of them had waited at most; None: not known."""

    begin: datetime
    complete: int = 0
    failed: int = 0
    canceled: int = 0
    median_wait: float | None = None
    slow_wait: float | None = None

    @property
    def ended(self) -> int:
        return self.complete + self.failed + self.canceled


@dataclass(frozen=True)
class Waste:
    """`requested` and `idle` in core seconds or gigabyte seconds; what a task used is not known of all tasks."""

    requested: float = 0.0
    idle: float = 0.0

    @property
    def used_part(self) -> float:
        return 1.0 if self.requested <= 0 else 1.0 - min(1.0, self.idle / self.requested)


@dataclass(frozen=True)
class UserWaste:
    """Of a user, or of a group."""

    name: str
    tasks: int
    cpu: Waste
    memory: Waste


@dataclass(frozen=True)
class Overview:
    """`until`: the time up to which ended tasks are counted. `waiting` and `failed` are by reason, the most frequent first."""

    at: datetime
    until: datetime
    running: int
    canceling: int
    waiting: Sequence[tuple[str, int]]
    failed: Sequence[tuple[str, int]]
    hours: Sequence[Hour]
    users: Sequence[UserWaste]
    omitted_users: int
    total: UserWaste
    median_wait: float | None
    pools: Sequence[PoolUse]
    groups: Sequence[UserWaste] = ()
    omitted_groups: int = 0
    capacity: Capacity | None = None
    """None: not known, or not for this user."""

    @property
    def waiting_count(self) -> int:
        return sum(count for _, count in self.waiting)

    @property
    def failed_count(self) -> int:
        return sum(hour.failed for hour in self.hours)

    @property
    def ended_count(self) -> int:
        return sum(hour.ended for hour in self.hours)


class OverviewService:
    """`reasons` None: there are no quotas. `capacity`: the room for tasks; it may raise RepositoryUnavailable."""

    def __init__(
        self,
        repository: TaskRepository,
        usage: UsageService,
        reasons: WaitingReasons | None,
        clock: Clock,
        capacity: Callable[[], Capacity | None] = lambda: None,
    ) -> None:
        self._repository = repository
        self._usage = usage
        self._reasons = reasons
        self._clock = clock
        self._capacity = capacity

    def read(self, owner: str | None, groups: Sequence[str] = ()) -> Overview:
        """Of the tasks of `owner`, with the quotas of the user and of `groups`, and the sums of `groups`; None: of all, with the room for
        tasks. Raises: RepositoryUnavailable."""
        now = self._clock.now()
        unfinished = self._repository.count_unfinished(owner=owner, limit=COUNTED)
        begin = hour_of(now) - (HOURS - 1) * HOUR
        found = self._usage.by_hour(begin, begin + HOURS * HOUR, owner=owner)
        hours = [_hour(begin + i * HOUR, found.hours.get(begin + i * HOUR, {})) for i in range(HOURS)]
        whole = _sum(list(found.hours.values()))
        users = _rows(found)
        of_groups = _rows(
            self._usage.by_hour(begin, begin + HOURS * HOUR, Kind.GROUP, names=None if owner is None else groups)
        )
        return Overview(
            at=now,
            until=found.until,
            running=sum(count for (state, _), count in unfinished.items() if state is State.RUNNING),
            canceling=sum(count for (state, _), count in unfinished.items() if state is State.CANCELING),
            waiting=_by_reason(unfinished),
            failed=Counter(_named(whole, "failed:")).most_common(),
            hours=hours,
            users=users[:MAX_ROWS],
            omitted_users=max(0, len(users) - MAX_ROWS),
            total=_user("", whole),
            median_wait=quantile(_waits(whole), 0.5),
            pools=() if self._reasons is None else self._reasons.pools(owner, groups),
            groups=of_groups[:MAX_ROWS],
            omitted_groups=max(0, len(of_groups) - MAX_ROWS),
            capacity=self._capacity() if owner is None else None,
        )


def _by_reason(unfinished: Mapping[tuple[State, str], int]) -> list[tuple[str, int]]:
    found: Counter[str] = Counter()
    for (state, reason), count in unfinished.items():
        if state in _WAITING:
            found[reason] += count
    return found.most_common()


def _sum(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    found: Counter[str] = Counter()
    for figures in parts:
        found.update(figures)
    return dict(found)


def _named(figures: Mapping[str, float], prefix: str) -> dict[str, int]:
    return {name.removeprefix(prefix): round(value) for name, value in figures.items() if name.startswith(prefix)}


def _hour(begin: datetime, figures: Mapping[str, float]) -> Hour:
    ended, waits = _named(figures, "ended:"), _waits(figures)
    return Hour(
        begin,
        complete=ended.get(State.COMPLETE, 0),
        failed=sum(ended.get(state, 0) for state in _FAILED),
        canceled=ended.get(State.CANCELED, 0),
        median_wait=quantile(waits, 0.5),
        slow_wait=quantile(waits, 0.95),
    )


def _rows(found: ByHour) -> list[UserWaste]:
    return sorted((_user(name, figures) for name, figures in found.names.items()), key=_most_idle)


def _user(name: str, figures: Mapping[str, float]) -> UserWaste:
    cpu = Waste(figures.get("cpu_core_seconds_requested", 0.0), figures.get("cpu_core_seconds_idle", 0.0))
    memory = Waste(figures.get("ram_gb_seconds_requested", 0.0), figures.get("ram_gb_seconds_idle", 0.0))
    return UserWaste(name, round(figures.get("tasks", 0)), cpu, memory)


def _most_idle(user: UserWaste) -> tuple[float, int, str]:
    return -user.cpu.idle, -user.tasks, user.name


def _waits(figures: Mapping[str, float]) -> list[int]:
    """How many tasks have waited up to each of WAIT_BOUNDS, and longer."""
    counts = _named(figures, "waited:")
    return [counts.get(str(bound), 0) for bound in (*WAIT_BOUNDS, "more")]


def quantile(counts: Sequence[int], part: float) -> float | None:
    """About the time within which this part of the tasks have waited, evenly spread between the bounds; None: no task is known."""
    rank = sum(counts) * part
    below = 0.0
    for count, low, high in zip(counts, (0, *WAIT_BOUNDS), (*WAIT_BOUNDS, WAIT_BOUNDS[-1]), strict=True):
        if count and below + count >= rank:
            return low + (high - low) * max(0.0, rank - below) / count
        below += count
    return None


KEPT_FOR: Final = timedelta(seconds=3)
MAX_KEPT: Final = 512


class SharedOverviews:
    """Overviews that all browsers with the same access share: each is read at most every KEPT_FOR, by one thread at a time.

    Two threads read, so that the users of a service with very many tasks wait for each other as little as possible.
    """

    def __init__(self, read: Callable[[str | None, Sequence[str]], Overview], clock: Clock) -> None:
        self._read = read
        self._clock = clock
        self._kept: OrderedDict[tuple[str | None, tuple[str, ...]], _Kept] = OrderedDict()
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(2, "overview")

    def get(self, owner: str | None, groups: Sequence[str], *, wait_s: float) -> Overview | None:
        """A recent one, or, if reading it takes longer than `wait_s`, the last one; None: there is none yet, ask again.

        Raises: RepositoryUnavailable.
        """
        key = (owner, tuple(sorted(groups)))
        with self._lock:
            kept = self._kept.setdefault(key, _Kept())
            self._kept.move_to_end(key)
            while len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
            if kept.found is not None and self._clock.now() - kept.found.at < KEPT_FOR:
                return kept.found
            if kept.running is None:
                kept.running = self._threads.submit(self._refresh, kept, owner, key[1])
            running = kept.running
        try:
            return running.result(wait_s)
        except Late:
            return kept.found

    def _refresh(self, kept: _Kept, owner: str | None, groups: Sequence[str]) -> Overview:
        try:
            kept.found = self._read(owner, groups)
            return kept.found
        finally:
            with self._lock:
                kept.running = None


@dataclass(eq=False)
class _Kept:
    found: Overview | None = None
    running: Future[Overview] | None = None
