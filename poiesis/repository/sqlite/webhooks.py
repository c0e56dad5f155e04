"""Webhooks and their messages in SQLite. A change of messages and the time when their webhook is due are one transaction."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import fields
from datetime import datetime
from typing import Any, Final

import msgspec

from poiesis.domain.webhooks import Delivery, UnknownWebhook, Webhook
from poiesis.repository.documents import decode_json, encode_json, format_time
from poiesis.repository.sqlite.database import SqliteDatabase

_WEBHOOK: Final = ", ".join(each.name for each in fields(Webhook))
_MESSAGE: Final = ", ".join(each.name for each in fields(Delivery))
POSITION: Final = "webhooks"


class SqliteWebhookStore:
    def __init__(self, database: SqliteDatabase) -> None:
        self._database = database

    def add(self, webhook: Webhook) -> None:
        states = encode_json(sorted(webhook.states)).decode()
        row = {**msgspec.to_builtins(webhook), "created_at": format_time(webhook.created_at), "states": states}
        marks = ", ".join(f":{name}" for name in row)
        with self._database.writing() as db:
            db.execute(f"INSERT INTO webhooks ({_WEBHOOK}) VALUES ({marks}) ON CONFLICT DO NOTHING", row)

    def get(self, webhook_id: str) -> Webhook:
        with self._database.reading() as db:
            row = db.execute(f"SELECT {_WEBHOOK} FROM webhooks WHERE id = ?", (webhook_id,)).fetchone()
        if row is None:
            raise UnknownWebhook(webhook_id)
        return _webhook(row)

    def list(self, owner: str | None) -> Sequence[Webhook]:
        with self._database.reading() as db:
            query = f"SELECT {_WEBHOOK} FROM webhooks WHERE owner IS ? ORDER BY created_at, id"
            return [_webhook(row) for row in db.execute(query, (owner,))]

    def set_disabled(self, webhook_id: str, reason: str | None) -> None:
        again = "" if reason is not None else ", failures = 0, not_before = NULL"
        with self._database.writing() as db:
            query = f"UPDATE webhooks SET disabled = ?{again} WHERE id = ?"
            if db.execute(query, (reason, webhook_id)).rowcount == 0:
                raise UnknownWebhook(webhook_id)

    def delete(self, webhook_id: str) -> bool:
        with self._database.writing() as db:
            db.execute("DELETE FROM webhook_messages WHERE webhook_id = ?", (webhook_id,))
            return db.execute("DELETE FROM webhooks WHERE id = ?", (webhook_id,)).rowcount == 1

    def for_owners(self, owners: Collection[str | None]) -> Sequence[Webhook]:
        with self._database.reading() as db:
            found = db.execute(f"SELECT {_WEBHOOK} FROM webhooks WHERE all_users").fetchall()
            query = f"SELECT {_WEBHOOK} FROM webhooks WHERE owner IS ? AND NOT all_users"
            for owner in owners:
                found += db.execute(query, (owner,)).fetchall()
        return [_webhook(row) for row in found]

    def position(self) -> int | None:
        with self._database.reading() as db:
            row = db.execute("SELECT seq FROM positions WHERE name = ?", (POSITION,)).fetchone()
        return None if row is None else int(row[0])

    def set_position(self, seq: int) -> None:
        with self._database.writing() as db:
            query = "INSERT INTO positions (name, seq) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET seq = max(seq, excluded.seq)"
            db.execute(query, (POSITION, seq))

    def enqueue(self, deliveries: Sequence[Delivery], now: datetime) -> None:
        query = (
            f"INSERT INTO webhook_messages ({_MESSAGE}) SELECT ?, ?, ?, ?, ?, ?, ?"
            " WHERE EXISTS (SELECT 1 FROM webhooks WHERE id = ?) ON CONFLICT DO NOTHING"
        )
        with self._database.writing() as db:
            db.executemany(query, [(*_row(message), message.webhook_id) for message in deliveries])
            self._make_due(db, {d.webhook_id for d in deliveries if d.next_at is not None}, now)

    def pending(self, webhook_id: str) -> int:
        with self._database.reading() as db:
            query = "SELECT count(*) FROM webhook_messages WHERE webhook_id = ? AND next_at IS NOT NULL"
            return int(db.execute(query, (webhook_id,)).fetchone()[0])

    def claim(self, now: datetime, until: datetime) -> Webhook | None:
        moment = format_time(now)
        with self._database.writing() as db:
            query = f"UPDATE webhooks SET lease_until = ? WHERE id = ({_NEXT}) RETURNING {_WEBHOOK}"
            row = db.execute(query, (format_time(until), moment, moment, moment)).fetchone()
        return None if row is None else _webhook(row)

    def due(self, webhook_id: str, now: datetime, limit: int) -> Sequence[Delivery]:
        with self._database.reading() as db:
            query = (
                f"SELECT {_MESSAGE} FROM webhook_messages WHERE webhook_id = ? AND next_at <= ? ORDER BY seq LIMIT ?"
            )
            return [_delivery(row) for row in db.execute(query, (webhook_id, format_time(now), limit))]

    def remove(self, webhook_id: str, seq: int) -> None:
        with self._database.writing() as db:
            db.execute("DELETE FROM webhook_messages WHERE webhook_id = ? AND seq = ?", (webhook_id, seq))

    def save(self, delivery: Delivery) -> None:
        next_at = None if delivery.next_at is None else format_time(delivery.next_at)
        with self._database.writing() as db:
            query = "UPDATE webhook_messages SET next_at = ?, attempts = ?, error = ? WHERE webhook_id = ? AND seq = ?"
            db.execute(query, (next_at, delivery.attempts, delivery.error, delivery.webhook_id, delivery.seq))

    def release(self, webhook: Webhook, *, failures: int, not_before: datetime | None, now: datetime) -> None:
        pause = None if not_before is None else format_time(not_before)
        first = "SELECT min(next_at) FROM webhook_messages WHERE webhook_id = webhooks.id AND next_at IS NOT NULL"
        with self._database.writing() as db:
            query = (
                f"UPDATE webhooks SET lease_until = NULL, failures = ?, not_before = ?, due_at = ({first}) WHERE id = ?"
            )
            db.execute(query, (failures, pause, webhook.id))

    def dead(self, webhook_id: str, *, after: int, limit: int) -> Sequence[Delivery]:
        query = (
            f"SELECT {_MESSAGE} FROM webhook_messages WHERE webhook_id = ? AND next_at IS NULL AND seq > ?"
            " ORDER BY seq LIMIT ?"
        )
        with self._database.reading() as db:
            return [_delivery(row) for row in db.execute(query, (webhook_id, after, limit))]

    def replay(self, webhook_id: str, seqs: Collection[int] | None, now: datetime) -> int:
        query = "UPDATE webhook_messages SET next_at = ?, attempts = 0 WHERE webhook_id = ? AND next_at IS NULL"
        values = (format_time(now), webhook_id)
        with self._database.writing() as db:
            if seqs is None:
                count = db.execute(query, values).rowcount
            else:
                count = sum(db.execute(f"{query} AND seq = ?", (*values, seq)).rowcount for seq in set(seqs))
            if count:
                self._make_due(db, {webhook_id}, now)
        return count

    def purge(self, before: datetime, limit: int) -> int:
        query = (
            "DELETE FROM webhook_messages WHERE (webhook_id, seq) IN (SELECT webhook_id, seq FROM webhook_messages"
            " WHERE next_at IS NULL AND created_at < ? LIMIT ?)"
        )
        with self._database.writing() as db:
            return db.execute(query, (format_time(before), limit)).rowcount

    def trim(self, owner: str | None, *, keep: int, limit: int) -> int:
        query = (
            "DELETE FROM webhook_messages WHERE (webhook_id, seq) IN (SELECT dead.webhook_id, dead.seq"
            " FROM webhooks CROSS JOIN webhook_messages AS dead INDEXED BY webhook_messages_dead_of"
            " ON dead.webhook_id = webhooks.id AND dead.next_at IS NULL WHERE webhooks.owner IS ?"
            " ORDER BY dead.created_at DESC, dead.seq DESC LIMIT ? OFFSET ?)"
        )
        with self._database.writing() as db:
            return db.execute(query, (owner, limit, keep)).rowcount

    @staticmethod
    def _make_due(db: Any, webhook_ids: Collection[str], now: datetime) -> None:
        moment = format_time(now)
        query = "UPDATE webhooks SET due_at = min(coalesce(due_at, ?1), ?1) WHERE id = ?2"
        db.executemany(query, [(moment, webhook_id) for webhook_id in webhook_ids])


_NEXT: Final = (
    "SELECT id FROM webhooks WHERE disabled IS NULL AND due_at <= ? AND (lease_until IS NULL OR lease_until <= ?)"
    " AND (not_before IS NULL OR not_before <= ?) ORDER BY due_at LIMIT 1"
)


def _row(message: Delivery) -> tuple[Any, ...]:
    next_at = None if message.next_at is None else format_time(message.next_at)
    created_at = format_time(message.created_at)
    return (message.webhook_id, message.seq, message.body, created_at, next_at, message.attempts, message.error)


def _webhook(row: tuple[Any, ...]) -> Webhook:
    found = dict(zip(_WEBHOOK.split(", "), row, strict=True))
    # not strict: SQLite has no booleans
    return msgspec.convert({**found, "states": decode_json(found["states"])}, Webhook, strict=False)


def _delivery(row: tuple[Any, ...]) -> Delivery:
    return msgspec.convert(dict(zip(_MESSAGE.split(", "), row, strict=True)), Delivery)
