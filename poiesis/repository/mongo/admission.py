"""Queues of tasks that wait for admission and tasks in flight, from the fields `queued` and `held` of tasks, each with a sparse index; and
the notes of the admitter, in the collection `notes`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pymongo import ASCENDING
from pymongo.errors import DuplicateKeyError

from poiesis.domain.fair_share import Candidate, QueueKey
from poiesis.domain.quotas import Claim
from poiesis.domain.task import TaskId
from poiesis.ports.admission import Note, Place
from poiesis.repository.claims import AFTER, behind, queue_prefix, read_held, read_queued
from poiesis.repository.mongo.connection import MongoDatabase


class MongoAdmissionStore:
    """An `AdmissionStore`."""

    def __init__(self, database: MongoDatabase) -> None:
        self._database = database
        self._tasks = database.collection("tasks", ())
        self._notes = database.collection("notes", ())

    def queued(self, after: Place | None, *, limit: int) -> Sequence[tuple[QueueKey, Candidate]]:
        return [read_queued(key) for key in self._keys("queued", {"$gte": behind(after)}, limit)]

    def place(self, queue: QueueKey, task_id: TaskId, *, most: int) -> int:
        prefix = queue_prefix(queue)
        before = {"queued": {"$gt": f"{prefix}/", "$lt": f"{prefix}/{task_id}"}}
        with self._database.available():
            return self._tasks.count_documents(before, limit=most)

    def held(self, after: TaskId | None, *, limit: int) -> Sequence[tuple[TaskId, Claim]]:
        keys = self._keys("held", {"$gte": "" if after is None else after + AFTER}, limit)
        return [read_held(key) for key in keys]

    def read_note(self, name: str) -> Note:
        with self._database.available():
            found = self._notes.find_one({"_id": name})
        return Note() if found is None else Note(found["version"], found["text"])

    def write_note(self, name: str, text: str, *, seen: int) -> bool:
        with self._database.available():
            if seen == 0:
                try:
                    self._notes.insert_one({"_id": name, "version": 1, "text": text})
                except DuplicateKeyError:
                    return False
                return True
            written = {"version": seen + 1, "text": text}
            return self._notes.replace_one({"_id": name, "version": seen}, written).matched_count == 1

    def _keys(self, field: str, within: dict[str, Any], limit: int) -> list[str]:
        """Covered by the index: no document is read."""
        with self._database.available():
            found = self._tasks.find({field: within}, {field: 1, "_id": 0}).sort(field, ASCENDING).limit(limit)
            return [document[field] for document in found]
