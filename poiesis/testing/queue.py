"""A `Queue` that delivers nothing and remembers what was published."""

from __future__ import annotations

from poiesis.domain.errors import QueueUnavailable
from poiesis.domain.states import ROLE_OF, Role, Stage
from poiesis.domain.task import TaskId


class RecordingQueue:
    """`published` in order. `backlog`: what `waiting` answers for a role. `down`: set it to make every call raise QueueUnavailable until it
    is unset, as a broker that went away."""

    def __init__(self) -> None:
        self.down = False
        self.backlog: dict[Role, int] = {}
        self.published: list[tuple[TaskId, Stage]] = []
        self.closed = False

    def publish(self, task_id: TaskId, stage: Stage) -> None:
        self.ready()
        self.published.append((task_id, stage))

    def waiting(self, stage: Stage) -> int:
        self.ready()
        return self.backlog.get(ROLE_OF[stage], 0)

    def ready(self) -> None:
        if self.down:
            raise QueueUnavailable("the queue is down")

    def close(self) -> None:
        self.closed = True
