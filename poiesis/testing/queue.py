"""A `Queue` that delivers nothing and remembers what was published."""

from __future__ import annotations

from poiesis.domain.errors import QueueUnavailable
from poiesis.domain.states import Stage
from poiesis.domain.task import TaskId


class RecordingQueue:
    """`published` in order. `down`: set it to make every call raise QueueUnavailable until it is unset, as a broker that went away."""

    def __init__(self) -> None:
        self.down = False
        self.published: list[tuple[TaskId, Stage]] = []
        self.closed = False

    def publish(self, task_id: TaskId, stage: Stage) -> None:
        self.ready()
        self.published.append((task_id, stage))

    def ready(self) -> None:
        if self.down:
            raise QueueUnavailable("the queue is down")

    def close(self) -> None:
        self.closed = True
