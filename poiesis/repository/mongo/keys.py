"""API keys in MongoDB: the collection `keys`, whose ids are those of the keys."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any, Final

from pymongo import ASCENDING, IndexModel

from poiesis.domain.keys import ApiKey
from poiesis.repository.documents import Document, format_time
from poiesis.repository.key_documents import decode_key, encode_key
from poiesis.repository.mongo.connection import MongoDatabase, insert_new

INDEXES: Final = (
    IndexModel([("digest", ASCENDING)], name="digest"),
    IndexModel([("user", ASCENDING), ("created_at", ASCENDING), ("_id", ASCENDING)], name="user"),
    IndexModel([("created_at", ASCENDING), ("_id", ASCENDING)], name="created_at"),
)


class MongoKeyRepository:
    def __init__(self, database: MongoDatabase) -> None:
        self._database = database
        self._keys = database.collection("keys", INDEXES)

    def add(self, key: ApiKey) -> None:
        head, core = encode_key(key)
        document = {"_id": head.pop("id"), **head, "core": core}
        with self._database.available():
            insert_new(self._keys, document)

    def find(self, digest: str) -> ApiKey | None:
        with self._database.available():
            found = self._keys.find_one({"digest": digest})
        return None if found is None else _decode(found)

    def list(self, user: str | None, *, limit: int) -> Sequence[ApiKey]:
        query: dict[str, Any] = {} if user is None else {"user": user}
        order = [("created_at", ASCENDING), ("_id", ASCENDING)]
        with self._database.available():
            return [_decode(found) for found in self._keys.find(query).sort(order).limit(limit)]

    def remove(self, key_id: str, *, user: str | None) -> bool:
        query = {"_id": key_id, **({} if user is None else {"user": user})}
        with self._database.available():
            return self._keys.delete_one(query).deleted_count == 1

    def mark_used(self, key_id: str, at: datetime) -> None:
        moment = format_time(at)
        earlier = {"_id": key_id, "$or": [{"last_used_at": None}, {"last_used_at": {"$lt": moment}}]}
        with self._database.available():
            self._keys.update_one(earlier, {"$set": {"last_used_at": moment}})

    def set_rights(self, user: str, groups: Collection[str], *, admin: bool) -> None:
        with self._database.available():
            self._keys.update_many({"user": user}, {"$set": {"groups": list(groups), "admin": admin}})


def _decode(document: Document) -> ApiKey:
    return decode_key({**document, "id": document["_id"]}, document["core"])
