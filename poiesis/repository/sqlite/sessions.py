"""Sessions in SQLite: the table `sessions`."""

from __future__ import annotations

from datetime import datetime

from poiesis.domain.sessions import Session
from poiesis.repository.documents import format_time
from poiesis.repository.session_documents import decode_session, encode_session
from poiesis.repository.sqlite.database import SqliteDatabase


class SqliteSessionRepository:
    def __init__(self, database: SqliteDatabase) -> None:
        self._database = database

    def add(self, session: Session, *, keep: int) -> None:
        with self._database.writing() as db:
            db.execute(
                'INSERT INTO sessions (digest, "user", created_at, expires_at, version, core)'
                " VALUES (:digest, :user, :created_at, :expires_at, :version, :core) ON CONFLICT (digest) DO NOTHING",
                encode_session(session, version=session.version),
            )
            db.execute(
                'DELETE FROM sessions WHERE digest IN (SELECT digest FROM sessions WHERE "user" = ?'
                " ORDER BY created_at DESC, digest DESC LIMIT -1 OFFSET ?)",
                (session.user, keep),
            )

    def find(self, digest: str) -> Session | None:
        with self._database.reading() as db:
            row = db.execute("SELECT core FROM sessions WHERE digest = ?", (digest,)).fetchone()
        return None if row is None else decode_session(row[0])

    def save(self, session: Session) -> bool:
        values = {**encode_session(session, version=session.version + 1), "seen": session.version}
        with self._database.writing() as db:
            query = (
                "UPDATE sessions SET expires_at = :expires_at, version = :version, core = :core"
                " WHERE digest = :digest AND version = :seen"
            )
            return db.execute(query, values).rowcount == 1

    def remove(self, digest: str) -> bool:
        with self._database.writing() as db:
            return db.execute("DELETE FROM sessions WHERE digest = ?", (digest,)).rowcount == 1

    def remove_expired(self, now: datetime) -> int:
        with self._database.writing() as db:
            return db.execute("DELETE FROM sessions WHERE expires_at <= ?", (format_time(now),)).rowcount
