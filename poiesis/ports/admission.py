"""What the admitter and the readers of its decisions need of the store, beside tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from poiesis.domain.fair_share import Candidate, QueueKey
from poiesis.domain.quotas import Claim
from poiesis.domain.task import TaskId


@dataclass(frozen=True)
class Note:
    """A text that processes share. `version` 0: never written."""

    version: int = 0
    text: str = ""


Place = tuple[QueueKey, TaskId | None]
"""In the order of all queues: behind a task of one; None: behind all of its tasks."""


class AdmissionStore(Protocol):
    """Derived from tasks as they are saved: a task that waits for admission is in its queue, one in flight is held. All answers come from
    indexes that have only such tasks, so that they cost nothing where there is no quota. Methods raise RepositoryUnavailable."""

    def queued(self, after: Place | None, *, limit: int) -> Sequence[tuple[QueueKey, Candidate]]:
        """Tasks that wait, behind a place, queue by queue, in each in the order of ids. None: from the first one on."""

    def place(self, queue: QueueKey, task_id: TaskId, *, most: int) -> int:
        """How many tasks of the queue are before this one; no more than `most` are counted."""

    def held(self, after: TaskId | None, *, limit: int) -> Sequence[tuple[TaskId, Claim]]:
        """Tasks in flight with their claims, in the order of ids."""

    def read_note(self, name: str) -> Note: ...

    def write_note(self, name: str, text: str, *, seen: int) -> bool:
        """Replace the note if it is still at version `seen` (compare-and-set). False: another writer was first."""
