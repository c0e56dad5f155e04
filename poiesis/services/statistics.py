"""Gauges about what the store and the broker hold. Any number of notifiers may measure; dashboards take the maximum.

Each run reads a bounded amount: tasks by state are counted up to the limit of `TaskRepository.count`, and of the queues that wait for
admission a page at a time. What is shown of these is a whole round over all queues.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from poiesis.domain.errors import Unavailable
from poiesis.domain.quotas import AdmissionRules
from poiesis.domain.states import ROLE_OF, TERMINAL, State
from poiesis.domain.task import TaskId
from poiesis.metrics import BROKER_MESSAGES, DEPENDENCY_UP, QUEUED, QUEUED_AGE, TASKS, known_class
from poiesis.ports.admission import AdmissionStore, Place
from poiesis.ports.clock import Clock
from poiesis.ports.queue import Queue
from poiesis.ports.repository import TaskFilter, TaskRepository

QUEUES: Final = 200  # of one run
MAX_OF_QUEUE: Final = 10_000
LAST: Final = TaskId("~")  # sorts behind every id
STAGES: Final = {role: stage for stage, role in ROLE_OF.items()}  # one stage of each role


@dataclass
class _Waiting:
    tasks: int = 0
    since: datetime | None = None


@dataclass(eq=False)
class Statistics:
    repository: TaskRepository
    admission: AdmissionStore
    queue: Queue
    clock: Clock
    rules: AdmissionRules
    _place: Place | None = field(default=None, init=False)
    _round: defaultdict[str, _Waiting] = field(default_factory=lambda: defaultdict(_Waiting), init=False)
    _shown: set[str] = field(default_factory=set, init=False)

    def measure(self) -> int:
        """Always 0: nothing is left to do until the next time. Raises: Unavailable."""
        try:
            self._measure_broker()
        finally:
            self._measure_store()
        return 0

    def _measure_broker(self) -> None:
        try:
            for role, stage in STAGES.items():
                BROKER_MESSAGES.labels(role.value).set(self.queue.waiting(stage))
        except Unavailable:
            DEPENDENCY_UP.labels("broker").set(0)
            raise
        DEPENDENCY_UP.labels("broker").set(1)

    def _measure_store(self) -> None:
        try:
            for state in sorted(frozenset(State) - TERMINAL):
                TASKS.labels(state.value).set(self.repository.count(TaskFilter(states=frozenset({state}))))
            self._read_queues()
        except Unavailable:
            DEPENDENCY_UP.labels("store").set(0)
            raise
        DEPENDENCY_UP.labels("store").set(1)

    def _read_queues(self) -> None:
        for _ in range(QUEUES):
            found = self.admission.queued(self._place, limit=1)
            if not found:
                self._place = None
                self._show()
                return
            [(key, first)] = found
            waiting = self._round[known_class(key.service_class, self.rules.class_names)]
            waiting.tasks += self.admission.place(key, LAST, most=MAX_OF_QUEUE)
            waiting.since = first.since if waiting.since is None else min(waiting.since, first.since)
            self._place = key, None

    def _show(self) -> None:
        now = self.clock.now()
        self._shown |= self._round.keys() | self.rules.class_names
        for service_class in self._shown:
            waiting = self._round.get(service_class) or _Waiting()
            age = 0.0 if waiting.since is None else (now - waiting.since).total_seconds()
            QUEUED.labels(service_class).set(waiting.tasks)
            QUEUED_AGE.labels(service_class).set(max(0.0, age))
        self._round.clear()
