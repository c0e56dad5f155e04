"""An in-memory `AdmissionStore` over a `MemoryTaskRepository`."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from poiesis.domain.decide.admission import candidate_of, is_held, is_queued
from poiesis.domain.fair_share import Candidate, QueueKey
from poiesis.domain.quotas import Claim
from poiesis.domain.task import Task, TaskId
from poiesis.ports.admission import Note, Place
from poiesis.testing.repository import MemoryTaskRepository


class MemoryAdmissionStore:
    def __init__(self, repository: MemoryTaskRepository) -> None:
        self._repository = repository
        self._notes: dict[str, Note] = {}
        self._lock = threading.Lock()

    def queued(self, after: Place | None, *, limit: int) -> Sequence[tuple[QueueKey, Candidate]]:
        waiting = sorted((_queue(t), t.id, candidate_of(t)) for t in self._repository.snapshot() if is_queued(t))
        found = [
            (key, candidate)
            for key, task_id, candidate in waiting
            if after is None or (key > after[0] if after[1] is None else (key, task_id) > after)
        ]
        return found[:limit]

    def place(self, queue: QueueKey, task_id: TaskId, *, most: int) -> int:
        return min(most, sum(task.id < task_id for task in self._of(queue)))

    def held(self, after: TaskId | None, *, limit: int) -> Sequence[tuple[TaskId, Claim]]:
        found = [(t.id, t.claim) for t in self._repository.snapshot() if t.claim is not None and is_held(t)]
        return sorted((item for item in found if after is None or item[0] > after), key=lambda item: item[0])[:limit]

    def read_note(self, name: str) -> Note:
        self._repository.ready()
        return self._notes.get(name, Note())

    def write_note(self, name: str, text: str, *, seen: int) -> bool:
        self._repository.ready()
        with self._lock:
            if self._notes.get(name, Note()).version != seen:
                return False
            self._notes[name] = Note(seen + 1, text)
            return True

    def _of(self, queue: QueueKey) -> list[Task]:
        mine = [task for task in self._repository.snapshot() if is_queued(task) and _queue(task) == queue]
        return sorted(mine, key=lambda task: task.id)


def _queue(task: Task) -> QueueKey:
    assert task.claim is not None
    return QueueKey(task.claim.user, task.claim.service_class)
