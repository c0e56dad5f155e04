"""Queues of tasks that wait for admission and tasks in flight, from the columns `queued` and `held`; and the notes of the admitter."""

from __future__ import annotations

from collections.abc import Sequence

from poiesis.domain.fair_share import Candidate, QueueKey
from poiesis.domain.quotas import Claim
from poiesis.domain.task import TaskId
from poiesis.ports.admission import Note, Place
from poiesis.repository.claims import AFTER, behind, queue_prefix, read_held, read_queued
from poiesis.repository.sqlite.database import SqliteDatabase


class SqliteAdmissionStore:
    """An `AdmissionStore`."""

    def __init__(self, database: SqliteDatabase) -> None:
        self._database = database

    def queued(self, after: Place | None, *, limit: int) -> Sequence[tuple[QueueKey, Candidate]]:
        query = "SELECT queued FROM tasks INDEXED BY tasks_queued WHERE queued >= ? ORDER BY queued LIMIT ?"
        with self._database.reading() as db:
            rows = db.execute(query, (behind(after), limit)).fetchall()
        return [read_queued(key) for (key,) in rows]

    def place(self, queue: QueueKey, task_id: TaskId, *, most: int) -> int:
        prefix = queue_prefix(queue)
        query = (
            "SELECT count(*) FROM (SELECT 1 FROM tasks INDEXED BY tasks_queued WHERE queued > ? AND queued < ? LIMIT ?)"
        )
        with self._database.reading() as db:
            return int(db.execute(query, (f"{prefix}/", f"{prefix}/{task_id}", most)).fetchone()[0])

    def held(self, after: TaskId | None, *, limit: int) -> Sequence[tuple[TaskId, Claim]]:
        query = "SELECT held FROM tasks INDEXED BY tasks_held WHERE held >= ? ORDER BY held LIMIT ?"
        with self._database.reading() as db:
            rows = db.execute(query, ("" if after is None else after + AFTER, limit)).fetchall()
        return [read_held(key) for (key,) in rows]

    def read_note(self, name: str) -> Note:
        with self._database.reading() as db:
            row = db.execute("SELECT version, text FROM notes WHERE name = ?", (name,)).fetchone()
        return Note() if row is None else Note(*row)

    def write_note(self, name: str, text: str, *, seen: int) -> bool:
        insert = "INSERT INTO notes (version, text, name) VALUES (1, ?, ?) ON CONFLICT (name) DO NOTHING"
        update = "UPDATE notes SET version = version + 1, text = ? WHERE name = ? AND version = ?"
        with self._database.writing() as db:
            written = db.execute(insert, (text, name)) if seen == 0 else db.execute(update, (text, name, seen))
            return written.rowcount == 1
