"""Sessions in MongoDB: the collection `sessions`, whose ids are the digests of their tokens."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from pymongo import ASCENDING, DESCENDING, IndexModel

from poiesis.domain.sessions import Session
from poiesis.repository.documents import Document, format_time
from poiesis.repository.mongo.connection import MongoDatabase, insert_new
from poiesis.repository.session_documents import decode_session, encode_session

INDEXES: Final = (
    IndexModel([("user", ASCENDING), ("created_at", DESCENDING), ("_id", DESCENDING)], name="user"),
    IndexModel([("expires_at", ASCENDING)], name="expires_at"),
)


class MongoSessionRepository:
    def __init__(self, database: MongoDatabase) -> None:
        self._database = database
        self._sessions = database.collection("sessions", INDEXES)

    def add(self, session: Session, *, keep: int) -> None:
        order = [("created_at", DESCENDING), ("_id", DESCENDING)]
        with self._database.available():
            insert_new(self._sessions, _document(session, session.version))
            rest = self._sessions.find({"user": session.user}, {"_id": 1}).sort(order).skip(keep)
            if old := [found["_id"] for found in rest]:
                self._sessions.delete_many({"_id": {"$in": old}})

    def find(self, digest: str) -> Session | None:
        with self._database.available():
            found = self._sessions.find_one({"_id": digest}, {"core": 1})
        return None if found is None else decode_session(found["core"])

    def save(self, session: Session) -> bool:
        document = _document(session, session.version + 1)
        seen = {"_id": document.pop("_id"), "version": session.version}
        with self._database.available():
            return self._sessions.update_one(seen, {"$set": document}).matched_count == 1

    def remove(self, digest: str) -> bool:
        with self._database.available():
            return self._sessions.delete_one({"_id": digest}).deleted_count == 1

    def remove_expired(self, now: datetime) -> int:
        with self._database.available():
            return self._sessions.delete_many({"expires_at": {"$lte": format_time(now)}}).deleted_count


def _document(session: Session, version: int) -> Document:
    document = encode_session(session, version=version)
    return {"_id": document.pop("digest"), **document}
