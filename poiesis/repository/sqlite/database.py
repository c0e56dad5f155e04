"""One SQLite file, for a service on one machine: no server, several processes, many threads.

Each block of `reading` is one transaction on a connection from a small pool. Writers of one process queue on a lock, because SQLite itself
lets them poll, and those that queue at the same time share one transaction, because its sync takes longer than what they write
(docs/adr/0023); between processes the busy timeout applies. Connections do not survive a fork: build the database in the process that uses
it. Each other module of the package stores one kind of thing in tables of its own, which are created here.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import chain
from pathlib import Path
from typing import Final

from poiesis.domain.errors import ConfigurationError, RepositoryUnavailable
from poiesis.metrics import STORE_ERRORS, STORE_SECONDS

MIGRATIONS: Final[tuple[tuple[str, ...], ...]] = (
    (
        """CREATE TABLE tasks (
            id TEXT NOT NULL PRIMARY KEY,
            version INTEGER NOT NULL,
            state TEXT NOT NULL,
            wake_at TEXT,
            due_stage TEXT, -- NULL: done
            owner TEXT,
            name TEXT,
            tags TEXT NOT NULL -- JSON list of the tokens in table tags
        ) WITHOUT ROWID""",
        "CREATE TABLE documents (id TEXT NOT NULL PRIMARY KEY, core TEXT NOT NULL, bulk TEXT NOT NULL)",
        "CREATE TABLE tags (token TEXT NOT NULL, id TEXT NOT NULL, PRIMARY KEY (token, id)) WITHOUT ROWID",
        # an index of a table WITHOUT ROWID ends in its primary key: each of these is in the order of ids for one value
        "CREATE INDEX tasks_by_state ON tasks (state)",
        "CREATE INDEX tasks_by_owner ON tasks (owner)",
        "CREATE INDEX tasks_by_owner_state ON tasks (owner, state)",
        "CREATE INDEX tasks_by_name ON tasks (name)",
        "CREATE INDEX tasks_due ON tasks (wake_at, id, due_stage) WHERE due_stage IS NOT NULL",
    ),
    (
        "ALTER TABLE tasks ADD COLUMN readers TEXT NOT NULL DEFAULT '[]'",  # JSON list of the tokens in table readers
        """CREATE TABLE readers (token TEXT NOT NULL, id TEXT NOT NULL, state TEXT NOT NULL, PRIMARY KEY (token, id))
            WITHOUT ROWID""",
        "CREATE INDEX readers_by_state ON readers (token, state)",
        "UPDATE tasks SET readers = json_array('u:' || owner) WHERE owner IS NOT NULL",
        "INSERT INTO readers (token, id, state) SELECT 'u:' || owner, id, state FROM tasks WHERE owner IS NOT NULL",
        "DROP INDEX tasks_by_owner",
        "DROP INDEX tasks_by_owner_state",
    ),
    (
        # seq has no gaps: a rolled back transaction takes none, and the newest event is never deleted
        """CREATE TABLE events (
            seq INTEGER PRIMARY KEY,
            task TEXT NOT NULL,
            at TEXT NOT NULL,
            ended_at TEXT, -- NULL: the task had not ended
            body TEXT NOT NULL
        )""",
        "CREATE INDEX events_by_task ON events (task)",
        "CREATE INDEX events_by_end ON events (ended_at) WHERE ended_at IS NOT NULL",
        "CREATE TABLE event_readers (token TEXT NOT NULL, seq INTEGER NOT NULL, PRIMARY KEY (token, seq)) WITHOUT ROWID",
        """CREATE TABLE idempotency (
            key TEXT NOT NULL PRIMARY KEY, task TEXT NOT NULL, digest TEXT NOT NULL, at TEXT NOT NULL
        ) WITHOUT ROWID""",
        "CREATE INDEX idempotency_by_age ON idempotency (at)",
    ),
    (
        """CREATE TABLE webhooks (
            id TEXT NOT NULL PRIMARY KEY,
            owner TEXT,
            url TEXT NOT NULL,
            created_at TEXT NOT NULL,
            secret TEXT NOT NULL,
            states TEXT NOT NULL,
            tagged_only INTEGER NOT NULL,
            all_users INTEGER NOT NULL,
            description TEXT NOT NULL,
            disabled TEXT,
            failures INTEGER NOT NULL DEFAULT 0,
            due_at TEXT,
            not_before TEXT,
            lease_until TEXT
        ) WITHOUT ROWID""",
        "CREATE INDEX webhooks_by_owner ON webhooks (owner, created_at)",
        "CREATE INDEX webhooks_of_all ON webhooks (id) WHERE all_users",
        "CREATE INDEX webhooks_due ON webhooks (due_at) WHERE due_at IS NOT NULL",
        """CREATE TABLE webhook_messages (
            webhook_id TEXT NOT NULL,
            seq INTEGER NOT NULL,
            body TEXT NOT NULL,
            created_at TEXT NOT NULL,
            next_at TEXT, -- NULL: dead letter
            attempts INTEGER NOT NULL,
            error TEXT,
            PRIMARY KEY (webhook_id, seq)
        ) WITHOUT ROWID""",
        "CREATE INDEX webhook_messages_waiting ON webhook_messages (webhook_id, next_at) WHERE next_at IS NOT NULL",
        "CREATE INDEX webhook_messages_dead ON webhook_messages (created_at) WHERE next_at IS NULL",
        "CREATE TABLE positions (name TEXT NOT NULL PRIMARY KEY, seq INTEGER NOT NULL) WITHOUT ROWID",
    ),
    (
        "ALTER TABLE tasks ADD COLUMN queued TEXT",  # of a task that waits for admission (`repository.claims`)
        "ALTER TABLE tasks ADD COLUMN held TEXT",  # of a task in flight that counts in quotas
        "CREATE INDEX tasks_queued ON tasks (queued) WHERE queued IS NOT NULL",
        "CREATE INDEX tasks_held ON tasks (held) WHERE held IS NOT NULL",
        "CREATE TABLE notes (name TEXT NOT NULL PRIMARY KEY, version INTEGER NOT NULL, text TEXT NOT NULL) WITHOUT ROWID",
    ),
    (
        """CREATE TABLE usage (kind TEXT NOT NULL, hour TEXT NOT NULL, name TEXT NOT NULL, owner TEXT NOT NULL, figures TEXT NOT NULL,
            PRIMARY KEY (kind, hour, name, owner)) WITHOUT ROWID""",
        "CREATE INDEX usage_by_owner ON usage (kind, owner, hour)",
        "CREATE INDEX usage_by_name ON usage (kind, name, hour)",
        "CREATE TABLE usage_rolled (id INTEGER PRIMARY KEY, until TEXT NOT NULL)",
    ),
    (
        """CREATE TABLE keys (
            id TEXT NOT NULL PRIMARY KEY,
            digest TEXT NOT NULL UNIQUE,
            "user" TEXT NOT NULL,
            created_at TEXT NOT NULL,
            "groups" TEXT NOT NULL, -- JSON
            admin INTEGER NOT NULL,
            last_used_at TEXT,
            core TEXT NOT NULL -- JSON of the rest
        ) WITHOUT ROWID""",
        'CREATE INDEX keys_by_user ON keys ("user", created_at)',
        "CREATE INDEX keys_by_time ON keys (created_at)",
    ),
    (
        "ALTER TABLE tasks ADD COLUMN unfinished TEXT",  # of a task that has not ended (`repository.unfinished`)
        "CREATE INDEX tasks_unfinished ON tasks (unfinished) WHERE unfinished IS NOT NULL",
        """UPDATE tasks SET unfinished = state || CASE WHEN queued IS NULL THEN '//' ELSE '/Queued/' END || coalesce(owner, '')
            WHERE state IN ('QUEUED', 'INITIALIZING', 'RUNNING', 'CANCELING')""",
    ),
    (
        """CREATE TABLE sessions (
            digest TEXT NOT NULL PRIMARY KEY,
            "user" TEXT NOT NULL,
            created_at TEXT NOT NULL,
            expires_at TEXT NOT NULL,
            version INTEGER NOT NULL,
            core TEXT NOT NULL -- JSON of all
        ) WITHOUT ROWID""",
        'CREATE INDEX sessions_by_user ON sessions ("user", created_at)',
        "CREATE INDEX sessions_by_end ON sessions (expires_at)",
    ),
    ("CREATE INDEX webhook_messages_dead_of ON webhook_messages (webhook_id, created_at) WHERE next_at IS NULL",),
    (
        "ALTER TABLE tasks ADD COLUMN ended_at TEXT",  # of a task that is done, for the retention
        """UPDATE tasks SET ended_at = (SELECT coalesce(json_extract(core, '$.log.end_time'), json_extract(core, '$.created_at'))
            FROM documents WHERE documents.id = tasks.id) WHERE due_stage IS NULL""",
        "CREATE INDEX tasks_ended ON tasks (ended_at) WHERE ended_at IS NOT NULL",
    ),
)
"""Statements that take the file from version i to i + 1 (`PRAGMA user_version`)."""

IDLE_CONNECTIONS: Final = 8
WAL_LIMIT_BYTES: Final = 64 * 1024 * 1024
MAX_WRITERS: Final = 32  # of one transaction: the first of them waits for the blocks of the others
COMMIT_TIMEOUT_S: Final = 60.0  # for which it waits at most: long, because what it has written may be committed later


class FairLock:
    """Taken in the order of arrival: a `threading.Lock` lets a writer that has just written overtake those that wait."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._is_held = False
        self._waiting: deque[threading.Lock] = deque()

    def acquire(self, timeout: float) -> bool:
        with self._guard:
            if not self._is_held:
                self._is_held = True
                return True
            turn = threading.Lock()
            turn.acquire()
            self._waiting.append(turn)
        if turn.acquire(timeout=timeout):
            return True
        with self._guard:
            if turn in self._waiting:
                self._waiting.remove(turn)
                return False
        return True  # it was handed over meanwhile

    def hand_over(self) -> bool:
        """Release it if another thread waits for it; otherwise it stays held, and the result is False."""
        with self._guard:
            if not self._waiting:
                return False
            self._waiting.popleft().release()
            return True

    def release(self) -> None:
        with self._guard:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._is_held = False


class _Transaction:
    """One of several writers. All but `ended` and `failure` belong to the thread that has the write lock."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self.db = db
        self.writers = 0
        self.is_large = False
        self.failure: BaseException | None = None
        """Why nothing of it was stored; None: it was committed. Known when it has ended."""
        self.ended = threading.Event()


class SqliteDatabase:
    """The file `path`, created with its directory if missing, readable only by its user.

    `busy_timeout`: how long a call waits for other writers before it raises RepositoryUnavailable.
    Raises: ConfigurationError if a newer release created the file; RepositoryUnavailable if it cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str], *, busy_timeout: timedelta = timedelta(seconds=5)) -> None:
        self._path = Path(path).absolute()
        self._busy_s = busy_timeout.total_seconds()
        self._pool: list[sqlite3.Connection] = []
        self._pool_lock = threading.Lock()
        self._write_lock = FairLock()
        self._transaction: _Transaction | None = None  # of the writers that have the lock in turn
        self._closed = False
        with self._translated():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self._migrate()

    def ready(self) -> None:
        """Take and release the write lock, which detects a read-only disk, a damaged file, and one that was moved away."""
        if not self._path.exists():  # open connections would still write, into a deleted file
            raise RepositoryUnavailable(f"the task store {self._path.name} no longer exists")
        with self.writing() as db:
            db.execute("SELECT 1 FROM tasks LIMIT 1").fetchone()

    def close(self) -> None:
        with self._pool_lock:
            self._closed = True
            idle, self._pool = self._pool, []
        for db in idle:
            db.close()

    def _migrate(self) -> None:
        """In one transaction: processes that start at the same time take turns."""
        with self.writing() as db:
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version > len(MIGRATIONS):
                raise ConfigurationError(
                    f"{self._path.name} was created by a newer release (version {version}, supported: up to "
                    f"{len(MIGRATIONS)}): use that release, or another file"
                )
            for statement in chain.from_iterable(MIGRATIONS[version:]):
                db.execute(statement)
            db.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """All statements of the block see one snapshot."""
        with _measured("read"), self._translated(), self._connection() as db:
            db.execute("BEGIN")
            try:
                yield db
            finally:
                _roll_back(db)

    @contextmanager
    def writing(self, *, is_large: bool = False) -> Iterator[sqlite3.Connection]:
        """A block that holds the write lock: undone if it raises, else durable once it has been left.

        It may share its transaction with blocks of other threads. If that cannot be committed, all of them raise RepositoryUnavailable.
        """
        with _measured("write"), self._translated():
            if not self._write_lock.acquire(timeout=self._busy_s):
                raise RepositoryUnavailable(f"the task store {self._path.name} is busy")
            transaction = self._join()
            transaction.is_large |= is_large
            db = transaction.db
            try:
                db.execute("SAVEPOINT writer")
                yield db
                db.execute("RELEASE writer")
            except BaseException as error:
                transaction.failure = error
                if db.in_transaction:  # else SQLite has undone the blocks of all, as when the disk is full
                    db.execute("ROLLBACK TO writer")
                    db.execute("RELEASE writer")
                    transaction.failure = None
                raise
            finally:
                self._leave(transaction)

    def _join(self) -> _Transaction:
        """Under the write lock, which is released if this raises."""
        if self._transaction is None:
            try:
                db = self._take()
                try:
                    db.execute("BEGIN IMMEDIATE")
                except BaseException:
                    db.close()
                    raise
            except BaseException:
                self._write_lock.release()
                raise
            self._transaction = _Transaction(db)
        return self._transaction

    def _leave(self, transaction: _Transaction) -> None:
        """Release the write lock and return once the transaction has ended: the last of the writers that queue commits it."""
        transaction.writers += 1
        may_grow = transaction.failure is None and transaction.writers < MAX_WRITERS
        if may_grow and self._write_lock.hand_over():
            if not transaction.ended.wait(COMMIT_TIMEOUT_S):
                message = f"the task store {self._path.name} does not commit: another writer takes too long"
                raise RepositoryUnavailable(message)
        else:
            self._end(transaction)
        if transaction.failure is not None:
            message = f"the task store {self._path.name} cannot be used: {transaction.failure}"
            raise RepositoryUnavailable(message) from transaction.failure

    def _end(self, transaction: _Transaction) -> None:
        try:
            if transaction.failure is None:
                transaction.db.execute("COMMIT")
        except BaseException as error:
            transaction.failure = error
        finally:
            self._transaction = None
            try:
                self._give_back(transaction.db, keep=transaction.failure is None and not transaction.is_large)
            finally:
                self._write_lock.release()
                transaction.ended.set()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise RepositoryUnavailable(f"the task store {self._path.name} cannot be used: {error}") from error

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        db = self._take()
        broken = False
        try:
            yield db
        except sqlite3.Error:
            broken = True  # it may be the cause
            raise
        finally:
            self._give_back(db, keep=not broken)

    def _take(self) -> sqlite3.Connection:
        with self._pool_lock:
            if self._closed:
                raise RepositoryUnavailable("the task store is closed")
            pooled = self._pool.pop() if self._pool else None
        return pooled or self._connect()

    def _give_back(self, db: sqlite3.Connection, *, keep: bool) -> None:
        with self._pool_lock:
            keep = keep and not self._closed and len(self._pool) < IDLE_CONNECTIONS
            if keep:
                self._pool.append(db)
        if not keep:
            db.close()

    def _connect(self) -> sqlite3.Connection:
        # a connection serves one thread at a time, not always the same one, which SQLite allows (sqlite3.threadsafety)
        uri = self._path.as_uri() + "?mode=rw"
        db = sqlite3.connect(uri, uri=True, timeout=self._busy_s, isolation_level=None, check_same_thread=False)
        try:
            self._switch_to_wal(db)
            # FULL syncs the log at each commit. NORMAL would be enough when a process is killed, but after a power
            # failure it may lose the last commits, and with them tasks whose ids were answered.
            db.execute("PRAGMA synchronous = FULL")
            db.execute(f"PRAGMA journal_size_limit = {WAL_LIMIT_BYTES}")
        except BaseException:
            db.close()
            raise
        return db

    def _switch_to_wal(self, db: sqlite3.Connection) -> None:
        """Retry, because SQLite does not wait here, whatever the busy timeout. Does nothing to a file in WAL mode."""
        deadline = time.monotonic() + self._busy_s
        while True:
            try:
                db.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(0.01)


@contextmanager
def _measured(operation: str) -> Iterator[None]:
    began = time.monotonic()
    try:
        yield
    except RepositoryUnavailable:
        STORE_ERRORS.labels(operation).inc()
        raise
    finally:
        STORE_SECONDS.labels(operation).observe(time.monotonic() - began)


def _roll_back(db: sqlite3.Connection) -> None:
    if db.in_transaction:
        db.execute("ROLLBACK")
