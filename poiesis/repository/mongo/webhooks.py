"""Webhooks and their messages in MongoDB, with plain operations on single documents.

Messages are stored first and their webhook is made due after that, so a process that dies in between repeats both (the position in the
event log has not moved). `stored` counts the batches of messages of a webhook: `release` sets the time of the next attempt only if no
batch came meanwhile. Messages that are stored while their webhook is being deleted are found by `purge`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Final

import msgspec
from pymongo import ASCENDING, DESCENDING, IndexModel, ReturnDocument
from pymongo.errors import BulkWriteError

from poiesis.domain.webhooks import Delivery, UnknownWebhook, Webhook
from poiesis.repository.documents import Document, format_time
from poiesis.repository.mongo.connection import MongoDatabase, insert_new

POSITION: Final = "webhooks"
DUPLICATE_KEY: Final = 11000
WEBHOOK_INDEXES: Final = (
    IndexModel([("owner", ASCENDING), ("created_at", ASCENDING)], name="owner"),
    IndexModel([("all_users", ASCENDING)], name="all_users", sparse=True),
    IndexModel([("due_at", ASCENDING)], name="due", sparse=True),
)
MESSAGE_INDEXES: Final = (
    IndexModel([("webhook", ASCENDING), ("next_at", ASCENDING)], name="waiting"),
    IndexModel([("webhook", ASCENDING), ("seq", ASCENDING)], name="order"),
    IndexModel([("dead_since", ASCENDING)], name="dead", sparse=True),
    IndexModel([("webhook", ASCENDING), ("dead_since", ASCENDING), ("seq", ASCENDING)], name="dead_of"),
)


class MongoWebhookStore:
    def __init__(self, database: MongoDatabase) -> None:
        self._database = database
        self._webhooks = database.collection("webhooks", WEBHOOK_INDEXES)
        self._messages = database.collection("webhook_messages", MESSAGE_INDEXES)
        self._positions = database.collection("positions", ())

    def add(self, webhook: Webhook) -> None:
        document: Document = {
            "_id": webhook.id,
            "owner": webhook.owner,
            "url": webhook.url,
            "created_at": format_time(webhook.created_at),
            "secret": webhook.secret,
            "states": sorted(webhook.states),
            "tagged_only": webhook.tagged_only,
            "description": webhook.description,
            "failures": 0,
            "stored": 0,
            **({"all_users": True} if webhook.all_users else {}),
        }
        with self._database.available():
            insert_new(self._webhooks, document)

    def get(self, webhook_id: str) -> Webhook:
        with self._database.available():
            found = self._webhooks.find_one({"_id": webhook_id})
        if found is None:
            raise UnknownWebhook(webhook_id)
        return _webhook(found)

    def list(self, owner: str | None) -> Sequence[Webhook]:
        with self._database.available():
            return [_webhook(d) for d in self._webhooks.find({"owner": owner}).sort("created_at", ASCENDING)]

    def set_disabled(self, webhook_id: str, reason: str | None) -> None:
        change: Document = {"$set": {"disabled": reason}}
        if reason is None:
            change = {"$set": {"failures": 0}, "$unset": {"disabled": "", "not_before": ""}}
        with self._database.available():
            if self._webhooks.update_one({"_id": webhook_id}, change).matched_count == 0:
                raise UnknownWebhook(webhook_id)

    def delete(self, webhook_id: str) -> bool:
        with self._database.available():
            self._messages.delete_many({"webhook": webhook_id})  # first: if this fails, the caller can try again
            return self._webhooks.delete_one({"_id": webhook_id}).deleted_count == 1

    def for_owners(self, owners: Collection[str | None]) -> Sequence[Webhook]:
        with self._database.available():
            found = {d["_id"]: d for d in self._webhooks.find({"all_users": True})}
            found |= {d["_id"]: d for d in self._webhooks.find({"owner": {"$in": list(owners)}})}
        return [_webhook(document) for document in found.values()]

    def position(self) -> int | None:
        with self._database.available():
            found = self._positions.find_one({"_id": POSITION})
        return None if found is None else int(found["seq"])

    def set_position(self, seq: int) -> None:
        with self._database.available():
            self._positions.update_one({"_id": POSITION}, {"$max": {"seq": seq}}, upsert=True)

    def enqueue(self, deliveries: Sequence[Delivery], now: datetime) -> None:
        if not deliveries:
            return
        with self._database.available():
            try:
                self._messages.insert_many([_document(d) for d in deliveries], ordered=False)
            except BulkWriteError as error:  # those that exist are stored already
                if error.details["writeConcernErrors"]:  # a failover could undo what has been stored
                    raise
                if any(each["code"] != DUPLICATE_KEY for each in error.details["writeErrors"]):
                    raise
            self._make_due({d.webhook_id for d in deliveries if d.next_at is not None}, now)

    def pending(self, webhook_id: str) -> int:
        with self._database.available():
            return self._messages.count_documents({"webhook": webhook_id, "next_at": {"$gt": ""}})

    def claim(self, now: datetime, until: datetime) -> Webhook | None:
        moment = format_time(now)
        wanted = {
            "due_at": {"$lte": moment},
            "disabled": None,
            "lease_until": {"$not": {"$gt": moment}},
            "not_before": {"$not": {"$gt": moment}},
        }
        with self._database.available():
            found = self._webhooks.find_one_and_update(
                wanted,
                {"$set": {"lease_until": format_time(until)}},
                sort=[("due_at", ASCENDING)],
                return_document=ReturnDocument.AFTER,
            )
        return None if found is None else _webhook(found)

    def due(self, webhook_id: str, now: datetime, limit: int) -> Sequence[Delivery]:
        query = {"webhook": webhook_id, "next_at": {"$gt": "", "$lte": format_time(now)}}
        with self._database.available():
            return [_delivery(d) for d in self._messages.find(query).sort("seq", ASCENDING).limit(limit)]

    def remove(self, webhook_id: str, seq: int) -> None:
        with self._database.available():
            self._messages.delete_one({"_id": f"{webhook_id}/{seq}"})

    def save(self, delivery: Delivery) -> None:
        known = {"attempts": delivery.attempts, "error": delivery.error}
        with self._database.available():
            if delivery.next_at is not None:
                change: Document = {"$set": {**known, "next_at": format_time(delivery.next_at)}}
            else:
                created_at = format_time(delivery.created_at)
                change = {"$set": {**known, "dead_since": created_at}, "$unset": {"next_at": ""}}
            self._messages.update_one({"_id": f"{delivery.webhook_id}/{delivery.seq}"}, change)

    def release(self, webhook: Webhook, *, failures: int, not_before: datetime | None, now: datetime) -> None:
        values: Document = {"failures": failures}
        unset = {"lease_until": ""}
        if not_before is None:
            unset["not_before"] = ""
        else:
            values["not_before"] = format_time(not_before)
        with self._database.available():
            found = self._webhooks.find_one({"_id": webhook.id}, {"stored": 1})
            if found is None:
                return
            query = {"webhook": webhook.id, "next_at": {"$gt": ""}}
            first = self._messages.find_one(query, {"next_at": 1}, sort=[("next_at", ASCENDING)])
            due = {"due_at": first["next_at"]} if first is not None else {}
            gone = {} if first is not None else {"due_at": ""}
            unchanged = {"_id": webhook.id, "stored": found["stored"]}
            change = {"$set": {**values, **due}, "$unset": {**unset, **gone}}
            if self._webhooks.update_one(unchanged, change).matched_count == 0:
                change = {"$set": {**values, "due_at": format_time(now)}, "$unset": unset}
                self._webhooks.update_one({"_id": webhook.id}, change)

    def dead(self, webhook_id: str, *, after: int, limit: int) -> Sequence[Delivery]:
        query = {"webhook": webhook_id, "seq": {"$gt": after}, "next_at": None}
        with self._database.available():
            return [_delivery(d) for d in self._messages.find(query).sort("seq", ASCENDING).limit(limit)]

    def replay(self, webhook_id: str, seqs: Collection[int] | None, now: datetime) -> int:
        query: Document = {"webhook": webhook_id, "next_at": None}
        if seqs is not None:
            query["seq"] = {"$in": sorted(set(seqs))}
        change = {"$set": {"next_at": format_time(now), "attempts": 0}, "$unset": {"dead_since": ""}}
        with self._database.available():
            count = self._messages.update_many(query, change).modified_count
            self._make_due({webhook_id}, now)  # also for 0: an earlier attempt may have ended before this
        return count

    def purge(self, before: datetime, limit: int) -> int:
        with self._database.available():
            old = self._messages.find({"dead_since": {"$lt": format_time(before)}}, {"_id": 1}).limit(limit)
            ids = [document["_id"] for document in old]
            if len(ids) < limit:
                ids += self._orphans(limit - len(ids))
            return self._messages.delete_many({"_id": {"$in": ids}}).deleted_count if ids else 0

    def _orphans(self, limit: int) -> Sequence[str]:
        """Messages that were stored while their webhook was being deleted."""
        name, found = "", list[str]()
        by_name = [("webhook", ASCENDING)]
        while len(found) < limit:
            message = self._messages.find_one({"webhook": {"$gt": name}}, {"webhook": 1}, sort=by_name)
            if message is None:
                break
            name = message["webhook"]
            if self._webhooks.find_one({"_id": name}, {"_id": 1}) is None:
                rest = self._messages.find({"webhook": name}, {"_id": 1}).limit(limit - len(found))
                found += [document["_id"] for document in rest]
        return found

    def trim(self, owner: str | None, *, keep: int, limit: int) -> int:
        with self._database.available():
            webhooks = [document["_id"] for document in self._webhooks.find({"owner": owner}, {"_id": 1})]
            query = {"webhook": {"$in": webhooks}, "dead_since": {"$gt": ""}}
            newest = [("dead_since", DESCENDING), ("seq", DESCENDING)]
            found = self._messages.find(query, {"_id": 1}).sort(newest).skip(keep).limit(limit)
            ids = [document["_id"] for document in found]
            return self._messages.delete_many({"_id": {"$in": ids}}).deleted_count if ids else 0

    def _make_due(self, webhook_ids: Collection[str], now: datetime) -> None:
        if webhook_ids:
            change = {"$min": {"due_at": format_time(now)}, "$inc": {"stored": 1}}
            self._webhooks.update_many({"_id": {"$in": sorted(webhook_ids)}}, change)


def _document(message: Delivery) -> Document:
    created_at = format_time(message.created_at)
    when = {"dead_since": created_at} if message.next_at is None else {"next_at": format_time(message.next_at)}
    return {
        "_id": f"{message.webhook_id}/{message.seq}",
        "webhook": message.webhook_id,
        "seq": message.seq,
        "body": message.body,
        "created_at": created_at,
        "attempts": message.attempts,
        "error": message.error,
        **when,
    }


def _webhook(document: Document) -> Webhook:
    return msgspec.convert({**document, "id": document["_id"]}, Webhook)


def _delivery(document: Document) -> Delivery:
    return msgspec.convert({"next_at": None, **document, "webhook_id": document["webhook"]}, Delivery)
