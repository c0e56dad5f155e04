"""An event log in a list."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from poiesis.domain.access import Access
from poiesis.domain.states import State
from poiesis.domain.task import TaskId
from poiesis.ports.events import Event


class ListEventLog:
    def __init__(self) -> None:
        self.events: list[Event] = []
        self.purged = 0

    def append(self, task_id: str, state: State = State.RUNNING, **more: Any) -> Event:
        n = 1 + sum(e.task_id == task_id for e in self.events)
        at = datetime(2026, 1, 1, tzinfo=UTC)
        event = Event(seq=self.last_seq() + 1, task_id=TaskId(task_id), n=n, state=state, at=at, **more)
        self.events.append(event)
        return event

    def relay(self, limit: int) -> int:
        return 0

    def missing_since(self) -> datetime | None:
        return None

    def ended_between(self, begin: datetime, end: datetime) -> Iterator[Event]:
        return iter([e for e in self.events if e.state.is_terminal and begin <= e.at < end])

    def purge(self, before: datetime, *, limit: int) -> int:
        return 0

    def first_seq(self) -> int:
        return self.purged + 1

    def last_seq(self) -> int:
        return self.events[-1].seq if self.events else self.purged

    def after(
        self, seq: int, *, limit: int, access: Access | None = None, task_id: TaskId | None = None
    ) -> Sequence[Event]:
        found = [
            e
            for e in self.events
            if e.seq > seq
            and (access is None or access.allows(e.owner, e.groups))
            and (task_id is None or e.task_id == task_id)
        ]
        return found[:limit]
