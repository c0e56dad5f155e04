"""Idempotency keys in MongoDB: one document for each, with a digest of owner and key as its id, which is what makes it unique."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from pymongo import ASCENDING, IndexModel
from pymongo.errors import DuplicateKeyError

from poiesis.domain.errors import RepositoryUnavailable
from poiesis.domain.task import TaskId
from poiesis.ports.idempotency import KEPT, IdempotencyKey, Reservation
from poiesis.repository.documents import Document, format_time, key_of_owner, parse_time
from poiesis.repository.mongo.connection import MongoDatabase

INDEXES: Final = (IndexModel([("at", ASCENDING)], name="at"),)
MAX_RACES: Final = 10


class MongoIdempotencyStore:
    """An `IdempotencyStore` in the collection `idempotency`."""

    def __init__(self, database: MongoDatabase) -> None:
        self._database = database
        self._keys = database.collection("idempotency", INDEXES)

    def reserve(self, owner: str | None, key: IdempotencyKey, task_id: TaskId, now: datetime) -> Reservation:
        name = key_of_owner(owner, key.key)
        mine: Document = {"_id": name, "task": task_id, "digest": key.digest, "at": format_time(now)}
        with self._database.available():
            for _ in range(MAX_RACES):
                try:
                    self._keys.insert_one(mine)
                    return Reservation(task_id, key.digest, now)
                except DuplicateKeyError:
                    found = self._keys.find_one({"_id": name})
                if found is not None and found["at"] > format_time(now - KEPT):
                    return Reservation(TaskId(found["task"]), found["digest"], parse_time(found["at"]))
                if found is not None:  # expired: one of those who see that deletes it, then one of them is first again
                    self._keys.delete_one({"_id": name, "at": found["at"]})
        raise RepositoryUnavailable("the idempotency key is used by too many requests at once: try again")

    def purge(self, now: datetime, *, limit: int) -> int:
        with self._database.available():
            old = (
                self._keys.find({"at": {"$lte": format_time(now - KEPT)}}, {"at": 1}).sort("at", ASCENDING).limit(limit)
            )
            found = [document["_id"] for document in old]
            if not found:
                return 0
            expired = {"_id": {"$in": found}, "at": {"$lte": format_time(now - KEPT)}}
            return self._keys.delete_many(expired).deleted_count
