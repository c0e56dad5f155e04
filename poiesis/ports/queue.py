"""How work reaches the roles."""

from __future__ import annotations

from typing import Protocol

from poiesis.domain.states import Stage
from poiesis.domain.task import TaskId


class Queue(Protocol):
    """At-least-once, unordered, may lose: the store's `wake_at` is what makes it sure."""

    def publish(self, task_id: TaskId, stage: Stage) -> None:
        """Enqueue the chain of links from `stage` on. Raises: QueueUnavailable (nothing is lost, resync publishes)."""
        ...

    def waiting(self, stage: Stage) -> int:
        """How many links wait for the role that acts on `stage`. Raises: QueueUnavailable."""
        ...

    def ready(self) -> None:
        """Returns, or raises QueueUnavailable."""
        ...

    def close(self) -> None: ...
