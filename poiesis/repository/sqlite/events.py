"""The log of events in SQLite. An event is written in the transaction of the save that makes it, so there is nothing to relay."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Final

from poiesis.domain.access import Access, reader_tokens
from poiesis.domain.history import Change
from poiesis.domain.task import Task, TaskId
from poiesis.ports.events import Event, event_of
from poiesis.repository.documents import decode_event, encode_event, format_time
from poiesis.repository.sqlite.database import SqliteDatabase

BATCH: Final = 500
MAX_READERS: Final = 400  # scans that SQLite merges in one query


def write_event(db: sqlite3.Connection, task: Task, change: Change) -> None:
    """In the transaction of the save."""
    at = format_time(change.at)
    row = (task.id, at, at if change.state.is_terminal else None, encode_event(event_of(task, change)))
    seq = db.execute("INSERT INTO events (task, at, ended_at, body) VALUES (?, ?, ?, ?)", row).lastrowid
    tokens = [(token, seq) for token in reader_tokens(task.owner, task.groups)]
    db.executemany("INSERT INTO event_readers (token, seq) VALUES (?, ?)", tokens)


class SqliteEventLog:
    """An `EventLog` in the tables `events` and `event_readers`."""

    def __init__(self, database: SqliteDatabase) -> None:
        self._database = database

    def relay(self, limit: int) -> int:
        return 0

    def missing_since(self) -> datetime | None:
        return None

    def first_seq(self) -> int:
        with self._database.reading() as db:
            return int(db.execute("SELECT coalesce(min(seq), 1) FROM events").fetchone()[0])

    def last_seq(self) -> int:
        with self._database.reading() as db:
            return int(db.execute("SELECT coalesce(max(seq), 0) FROM events").fetchone()[0])

    def after(
        self, seq: int, *, limit: int, access: Access | None = None, task_id: TaskId | None = None
    ) -> Sequence[Event]:
        with self._database.reading() as db:
            if task_id is not None:
                query = "SELECT seq, body FROM events WHERE task = ? AND seq > ? ORDER BY seq LIMIT ?"
                rows = db.execute(query, (task_id, seq, limit)).fetchall()
                found = [decode_event(body, at) for at, body in rows]
                return [event for event in found if access is None or access.allows(event.owner, event.groups)]
            if access is None:
                rows = db.execute(
                    "SELECT seq, body FROM events WHERE seq > ? ORDER BY seq LIMIT ?", (seq, limit)
                ).fetchall()
            else:
                rows = _readable(db, access, seq, limit)
        return [decode_event(body, at) for at, body in rows]

    def ended_between(self, begin: datetime, end: datetime) -> Iterator[Event]:
        query = (
            "SELECT ended_at, seq, body FROM events INDEXED BY events_by_end"
            " WHERE ended_at IS NOT NULL AND (ended_at, seq) > (?, ?) AND ended_at < ? ORDER BY ended_at, seq LIMIT ?"
        )
        at, seq = format_time(begin), -1
        while True:
            with self._database.reading() as db:
                rows = db.execute(query, (at, seq, format_time(end), BATCH)).fetchall()
            yield from (decode_event(body, number) for _, number, body in rows)
            if len(rows) < BATCH:
                return
            at, seq, _ = rows[-1]

    def purge(self, before: datetime, *, limit: int) -> int:
        moment = format_time(before)
        with self._database.writing() as db:
            query = "SELECT seq, at, body FROM events WHERE seq < (SELECT max(seq) FROM events) ORDER BY seq LIMIT ?"
            oldest = db.execute(query, (limit,)).fetchall()
            old = [row for row in oldest if row[1] < moment]
            db.executemany("DELETE FROM events WHERE seq = ?", [(seq,) for seq, _, _ in old])
            for seq, _, body in old:
                event = decode_event(body, seq)
                tokens = [(token, seq) for token in reader_tokens(event.owner, event.groups)]
                db.executemany("DELETE FROM event_readers WHERE token = ? AND seq = ?", tokens)
        return len(old)


def _readable(db: sqlite3.Connection, access: Access, seq: int, limit: int) -> list[tuple[int, str]]:
    """Scans of the index, one for each reader token, merged; so events of others are not read."""
    found: set[int] = set()
    tokens = access.tokens
    for i in range(0, len(tokens), MAX_READERS):
        part = tokens[i : i + MAX_READERS]
        scan = "SELECT seq FROM event_readers WHERE token = ? AND seq > ?"
        query = " UNION ".join([scan] * len(part)) + " ORDER BY seq LIMIT ?"
        values = [value for token in part for value in (token, seq)]
        found.update(row[0] for row in db.execute(query, (*values, limit)))
    wanted = sorted(found)[:limit]
    return [db.execute("SELECT seq, body FROM events WHERE seq = ?", (at,)).fetchone() for at in wanted]
