"""Everything that one database keeps: a store for each port."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from poiesis.ports.admission import AdmissionStore
from poiesis.ports.events import EventLog
from poiesis.ports.idempotency import IdempotencyStore
from poiesis.ports.keys import KeyRepository
from poiesis.ports.repository import TaskRepository
from poiesis.ports.sessions import SessionRepository
from poiesis.ports.usage import UsageStore
from poiesis.ports.webhooks import WebhookStore

if TYPE_CHECKING:
    from poiesis.repository.mongo.connection import MongoDatabase
    from poiesis.repository.sqlite.database import SqliteDatabase


@dataclass(frozen=True)
class Stores:
    tasks: TaskRepository
    admission: AdmissionStore
    events: EventLog
    idempotency: IdempotencyStore
    keys: KeyRepository
    sessions: SessionRepository
    usage: UsageStore
    webhooks: WebhookStore


def sqlite_stores(database: SqliteDatabase) -> Stores:
    from poiesis.repository.sqlite.admission import SqliteAdmissionStore
    from poiesis.repository.sqlite.events import SqliteEventLog
    from poiesis.repository.sqlite.idempotency import SqliteIdempotencyStore
    from poiesis.repository.sqlite.keys import SqliteKeyRepository
    from poiesis.repository.sqlite.sessions import SqliteSessionRepository
    from poiesis.repository.sqlite.tasks import SqliteTaskRepository
    from poiesis.repository.sqlite.usage import SqliteUsageStore
    from poiesis.repository.sqlite.webhooks import SqliteWebhookStore

    return Stores(
        tasks=SqliteTaskRepository(database),
        admission=SqliteAdmissionStore(database),
        events=SqliteEventLog(database),
        idempotency=SqliteIdempotencyStore(database),
        keys=SqliteKeyRepository(database),
        sessions=SqliteSessionRepository(database),
        usage=SqliteUsageStore(database),
        webhooks=SqliteWebhookStore(database),
    )


def mongo_stores(database: MongoDatabase) -> Stores:
    """Their collections and indexes are declared to the database, which creates missing indexes."""
    from poiesis.repository.mongo.admission import MongoAdmissionStore
    from poiesis.repository.mongo.events import MongoEventLog
    from poiesis.repository.mongo.idempotency import MongoIdempotencyStore
    from poiesis.repository.mongo.keys import MongoKeyRepository
    from poiesis.repository.mongo.sessions import MongoSessionRepository
    from poiesis.repository.mongo.tasks import MongoTaskRepository
    from poiesis.repository.mongo.usage import MongoUsageStore
    from poiesis.repository.mongo.webhooks import MongoWebhookStore

    tasks = MongoTaskRepository(database)
    return Stores(
        tasks=tasks,
        admission=MongoAdmissionStore(database),
        events=MongoEventLog(database, tasks),
        idempotency=MongoIdempotencyStore(database),
        keys=MongoKeyRepository(database),
        sessions=MongoSessionRepository(database),
        usage=MongoUsageStore(database),
        webhooks=MongoWebhookStore(database),
    )
