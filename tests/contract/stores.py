"""The stores that the contract suites of this directory run against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from poiesis.ports.events import EventLog
from poiesis.ports.idempotency import IdempotencyStore
from poiesis.ports.repository import TaskRepository
from poiesis.repository.mongo.connection import MongoDatabase
from poiesis.repository.mongo.events import MongoEventLog
from poiesis.repository.mongo.idempotency import MongoIdempotencyStore
from poiesis.repository.mongo.tasks import MongoTaskRepository
from poiesis.repository.sqlite.database import SqliteDatabase
from poiesis.repository.sqlite.events import SqliteEventLog
from poiesis.repository.sqlite.idempotency import SqliteIdempotencyStore
from poiesis.repository.sqlite.tasks import SqliteTaskRepository
from poiesis.testing.events import MemoryEventLog
from poiesis.testing.idempotency import MemoryIdempotencyStore
from poiesis.testing.repository import MemoryTaskRepository

KINDS = ("memory", "sqlite", "mongo")
PATIENT = timedelta(seconds=60)


@dataclass
class Stores:
    """What a service keeps, in one place."""

    tasks: TaskRepository
    events: EventLog
    idempotency: IdempotencyStore
    close: Callable[[], None]


def in_memory() -> Stores:
    tasks = MemoryTaskRepository()
    return Stores(tasks, MemoryEventLog(tasks), MemoryIdempotencyStore(), tasks.close)


def in_sqlite(path: Path) -> Stores:
    database = SqliteDatabase(path, busy_timeout=PATIENT)
    tasks = SqliteTaskRepository(database)
    return Stores(tasks, SqliteEventLog(database), SqliteIdempotencyStore(database), database.close)


def in_mongo(url: str) -> Stores:
    """`url` ends in the name of the database."""
    server, _, name = url.rpartition("/")
    database = MongoDatabase(server, name, timeout=PATIENT, connect_timeout=PATIENT)
    tasks = MongoTaskRepository(database)
    return Stores(tasks, MongoEventLog(database, tasks), MongoIdempotencyStore(database), database.close)


def open_stores(place: str) -> Stores:
    """`place`: a file, or a MongoDB URL. For child processes."""
    return in_mongo(place) if place.startswith("mongodb://") else in_sqlite(Path(place))
