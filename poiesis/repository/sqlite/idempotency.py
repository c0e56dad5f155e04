"""Idempotency keys in SQLite."""

from __future__ import annotations

from datetime import datetime

from poiesis.domain.task import TaskId
from poiesis.ports.idempotency import KEPT, IdempotencyKey, Reservation
from poiesis.repository.documents import format_time, key_of_owner, parse_time
from poiesis.repository.sqlite.database import SqliteDatabase


class SqliteIdempotencyStore:
    """An `IdempotencyStore` in the table `idempotency`."""

    def __init__(self, database: SqliteDatabase) -> None:
        self._database = database

    def reserve(self, owner: str | None, key: IdempotencyKey, task_id: TaskId, now: datetime) -> Reservation:
        name = key_of_owner(owner, key.key)
        with self._database.writing() as db:
            row = db.execute("SELECT task, digest, at FROM idempotency WHERE key = ?", (name,)).fetchone()
            if row is not None and row[2] > format_time(now - KEPT):
                return Reservation(TaskId(row[0]), row[1], parse_time(row[2]))
            query = "INSERT OR REPLACE INTO idempotency (key, task, digest, at) VALUES (?, ?, ?, ?)"
            db.execute(query, (name, task_id, key.digest, format_time(now)))
        return Reservation(task_id, key.digest, now)

    def purge(self, now: datetime, *, limit: int) -> int:
        with self._database.writing() as db:
            query = (
                "DELETE FROM idempotency WHERE key IN (SELECT key FROM idempotency WHERE at <= ? ORDER BY at LIMIT ?)"
            )
            return db.execute(query, (format_time(now - KEPT), limit)).rowcount
