"""How work reaches the roles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from poiesis.domain.states import Stage
from poiesis.domain.task import TaskId


class Queue(Protocol):
    """At-least-once and unordered; messages may be lost, which the store's `wake_at` makes up for. Links of an owner do not wait for all
    links of another; None: there are no users.

    Methods raise QueueUnavailable; nothing is lost then, resync publishes.
    """

    def begin(self, task_id: TaskId, stages: Sequence[Stage], *, owner: str | None = None) -> None:
        """Enqueue the chain of links of a new task: those that act on `stages`, one after the other."""

    def publish(self, task_id: TaskId, stage: Stage, *, owner: str | None = None) -> None:
        """Enqueue the link that acts on `stage`."""

    def waiting(self, stage: Stage) -> int:
        """Return how many links are queued for the role that acts on `stage`."""

    def ready(self) -> None:
        """Returns, or raises QueueUnavailable."""

    def close(self) -> None: ...
