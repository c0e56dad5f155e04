"""An in-memory `EventLog`: of a `MemoryTaskRepository`, whose saves append to it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

from poiesis.domain.access import Access
from poiesis.domain.task import TaskId
from poiesis.ports.events import Event
from poiesis.testing.repository import MemoryTaskRepository


class MemoryEventLog:
    def __init__(self, repository: MemoryTaskRepository) -> None:
        self._repository = repository

    def relay(self, limit: int) -> int:
        with self._repository.available():
            return 0

    def missing_since(self) -> datetime | None:
        with self._repository.available():
            return None

    def first_seq(self) -> int:
        with self._repository.available():
            return min(self._repository.events, default=1)

    def last_seq(self) -> int:
        with self._repository.available():
            return self._repository.last_seq

    def after(
        self, seq: int, *, limit: int, access: Access | None = None, task_id: TaskId | None = None
    ) -> Sequence[Event]:
        with self._repository.available():
            found = [
                event
                for event in self._repository.events.values()
                if event.seq > seq
                and task_id in (None, event.task_id)
                and (access is None or access.allows(event.owner, event.groups))
            ]
        return found[:limit]

    def ended_between(self, begin: datetime, end: datetime) -> Iterator[Event]:
        with self._repository.available():
            ended = [e for e in self._repository.events.values() if e.state.is_terminal and begin <= e.at < end]
        yield from sorted(ended, key=lambda event: (event.at, event.seq))

    def purge(self, before: datetime, *, limit: int) -> int:
        with self._repository.available():
            oldest = [event for event in self._repository.events.values() if event.seq < self._repository.last_seq][
                :limit
            ]
            old = [event.seq for event in oldest if event.at < before]
            for seq in old:
                del self._repository.events[seq]
        return len(old)
