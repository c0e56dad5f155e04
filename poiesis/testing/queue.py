"""A `Queue` that delivers nothing and records what was published."""

from __future__ import annotations

from collections.abc import Sequence

from poiesis.domain.errors import QueueUnavailable
from poiesis.domain.states import ROLE_OF, Role, Stage
from poiesis.domain.task import TaskId


class RecordingQueue:
    """`published` in order, of a chain its first link, and the `owners` of each. `backlog`: what `waiting` returns for a role. While `down`
    is set every call raises QueueUnavailable."""

    def __init__(self) -> None:
        self.down = False
        self.backlog: dict[Role, int] = {}
        self.published: list[tuple[TaskId, Stage]] = []
        self.owners: list[str | None] = []

    def begin(self, task_id: TaskId, stages: Sequence[Stage], *, owner: str | None = None) -> None:
        self.publish(task_id, stages[0], owner=owner)

    def publish(self, task_id: TaskId, stage: Stage, *, owner: str | None = None) -> None:
        self.ready()
        self.published.append((task_id, stage))
        self.owners.append(owner)

    def waiting(self, stage: Stage) -> int:
        self.ready()
        return self.backlog.get(ROLE_OF[stage], 0)

    def ready(self) -> None:
        if self.down:
            raise QueueUnavailable("the queue is down")

    def close(self) -> None:
        pass
