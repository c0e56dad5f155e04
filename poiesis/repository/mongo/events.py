"""The log of events in MongoDB.

A save cannot append to it, since only one document changes atomically. It marks its task instead (`tasks.mark`), in the same write, and a
relay appends the changes of marked tasks. Any number of relays may run and any of them may die at any point:

- The id of an event is its number. A relay reads the last number first, then which changes the log already has, and inserts the others
  with the following numbers, in order. An insertion succeeds only if no other relay has used that number, so what the relay has read is
  still true: no change is appended twice and no number is left out. The unique index of task and `n` guards the same.
- A mark is removed only if the task is still at the version that was read. What a relay has appended without removing the mark is found
  in the log by the next one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from pymongo import ASCENDING, DESCENDING, IndexModel
from pymongo.errors import BulkWriteError

from poiesis.domain.access import Access, reader_tokens
from poiesis.domain.history import Change
from poiesis.domain.task import Task, TaskId, Version
from poiesis.metrics import RELAY_LAG
from poiesis.ports.events import Event, event_of
from poiesis.repository.documents import Document, decode_event, encode_event, format_time
from poiesis.repository.mongo.connection import MongoDatabase
from poiesis.repository.mongo.tasks import MongoTaskRepository

INDEXES: Final = (
    IndexModel([("task", ASCENDING), ("n", ASCENDING)], name="task", unique=True),
    IndexModel([("readers", ASCENDING), ("_id", ASCENDING)], name="readers"),
    IndexModel([("ended_at", ASCENDING), ("_id", ASCENDING)], name="ended", sparse=True),
)
BATCH: Final = 500
INSERTED: Final = 100
"""Events of one insertion. FerretDB 1 continues an ordered one after a duplicate with the next 100 documents."""
DUPLICATE_KEY: Final = 11000


class MongoEventLog:
    """An `EventLog` in the collection `events`, relayed from `tasks`."""

    def __init__(self, database: MongoDatabase, tasks: MongoTaskRepository) -> None:
        self._database = database
        self._tasks = tasks
        self._events = database.collection("events", INDEXES)

    def relay(self, limit: int) -> int:
        with self._database.available():
            last = self._end(DESCENDING)  # before anything else
            marked = self._tasks.marked(limit)
            RELAY_LAG.set(_lag(marked, datetime.now(UTC)))
            if marked and self._append(last, self._missing([(task, first) for task, first, _ in marked])):
                self._tasks.unmark([(task, version) for task, _, version in marked])
            return len(marked)

    def missing_since(self) -> datetime | None:
        return self._tasks.oldest_mark()

    def _missing(self, marked: Sequence[tuple[Task, int]]) -> list[tuple[Task, Change]]:
        """The changes of these tasks, from the given `n` on, that the log does not have, in the order of time."""
        query = {"task": {"$in": [task.id for task, _ in marked]}, "n": {"$gte": min(first for _, first in marked)}}
        known = {
            (document["task"], document["n"]) for document in self._events.find(query, {"_id": 0, "task": 1, "n": 1})
        }
        found = [
            (task, change)
            for task, first in marked
            for change in task.history
            if change.n >= first and (task.id, change.n) not in known
        ]
        return sorted(found, key=lambda pair: (pair[1].at, pair[0].id, pair[1].n))

    def _append(self, last: int, changes: Sequence[tuple[Task, Change]]) -> bool:
        """False: another relay was first, and how many of these were appended is not known."""
        if not changes:
            return True
        documents = [_document(task, change, last + i) for i, (task, change) in enumerate(changes, 1)]
        try:
            for begin in range(0, len(documents), INSERTED):
                self._events.insert_many(documents[begin : begin + INSERTED], ordered=True)
        except BulkWriteError as error:
            if all(each["code"] == DUPLICATE_KEY for each in error.details["writeErrors"]):
                return False
            raise
        return True

    def first_seq(self) -> int:
        with self._database.available():
            return self._end(ASCENDING) or 1

    def last_seq(self) -> int:
        with self._database.available():
            return self._end(DESCENDING)

    def _end(self, direction: int) -> int:
        found = self._events.find_one({}, {"_id": 1}, sort=[("_id", direction)])
        return 0 if found is None else int(found["_id"])

    def after(
        self, seq: int, *, limit: int, access: Access | None = None, task_id: TaskId | None = None
    ) -> Sequence[Event]:
        query: dict[str, Any] = {"_id": {"$gt": seq}}
        if access is not None:
            query["readers"] = {"$in": access.tokens}
        if task_id is not None:
            query["task"] = task_id
        order = "_id" if task_id is None else "n"  # the same order, each with its index
        with self._database.available():
            return [_event(found) for found in self._events.find(query).sort(order, ASCENDING).limit(limit)]

    def ended_between(self, begin: datetime, end: datetime) -> Iterator[Event]:
        until = format_time(end)
        query: dict[str, Any] = {"ended_at": {"$gte": format_time(begin), "$lt": until}}
        while True:
            with self._database.available():
                page = list(self._events.find(query).sort([("ended_at", ASCENDING), ("_id", ASCENDING)]).limit(BATCH))
            yield from map(_event, page)
            if len(page) < BATCH:
                return
            at = page[-1]["ended_at"]
            same = {"ended_at": at, "_id": {"$gt": page[-1]["_id"]}}
            query = {"$or": [same, {"ended_at": {"$gt": at, "$lt": until}}]}

    def purge(self, before: datetime, *, limit: int) -> int:
        moment = format_time(before)
        with self._database.available():
            oldest = self._events.find({"_id": {"$lt": self._end(DESCENDING)}}, {"at": 1}).sort("_id", ASCENDING)
            old = [document["_id"] for document in oldest.limit(limit) if document["at"] < moment]
            return self._events.delete_many({"_id": {"$in": old}}).deleted_count if old else 0


def _lag(marked: Sequence[tuple[Task, int, Version]], now: datetime) -> float:
    oldest = min((c.at for task, first, _ in marked for c in task.history if c.n >= first), default=now)
    return max(0.0, (now - oldest).total_seconds())


def _document(task: Task, change: Change, seq: int) -> Document:
    at = format_time(change.at)
    return {
        "_id": seq,
        "task": task.id,
        "n": change.n,
        "at": at,
        **({"ended_at": at} if change.state.is_terminal else {}),
        "readers": reader_tokens(task.owner, task.groups),
        "body": encode_event(event_of(task, change)),
    }


def _event(document: Document) -> Event:
    return decode_event(document["body"], document["_id"])
