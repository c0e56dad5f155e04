"""Tasks in MongoDB, one document each; compare-and-set by a filter on version and state.

A document has fields for everything that queries use, and the rest in two JSON texts: `core`, and `bulk`, which the view BASIC does not
read (docs/adr/0005). A text costs the server and the driver almost nothing.
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime
from itertools import islice
from operator import itemgetter
from typing import Any, Final

import bson
from bson.raw_bson import RawBSONDocument
from pymongo import ASCENDING, DESCENDING, IndexModel, UpdateOne

from poiesis.domain.access import Access, reader_tokens
from poiesis.domain.errors import UnknownTask
from poiesis.domain.history import Change
from poiesis.domain.naming import first_task_id
from poiesis.domain.states import TERMINAL, TRANSITIONS, Stage, State, path
from poiesis.domain.task import Task, TaskId, TaskSummary, Version, View
from poiesis.ports.repository import COUNT_LIMIT, Page, TaskFilter, take_page
from poiesis.repository.claims import AFTER
from poiesis.repository.documents import (
    Document,
    after_prefix,
    check_same_request,
    decode_json,
    encode_json,
    encode_within_bounds,
    format_time,
    from_document,
    new_change,
    parse_time,
    sources,
    tag_token,
    to_document,
)
from poiesis.repository.mongo.connection import MongoDatabase, insert_new
from poiesis.repository.unfinished import MAX_GROUPS, group_key, group_of

INDEXES: Final = (
    # lists: newest first for one value of each filter; MongoDB merges the scans for several states or readers
    IndexModel([("state", ASCENDING), ("_id", DESCENDING)], name="state"),
    IndexModel([("readers", ASCENDING), ("_id", DESCENDING)], name="readers"),
    IndexModel([("readers", ASCENDING), ("state", ASCENDING), ("_id", DESCENDING)], name="readers_state"),
    IndexModel([("tags", ASCENDING), ("_id", DESCENDING)], name="tags"),
    IndexModel([("name", ASCENDING), ("_id", DESCENDING)], name="name"),
    # sparse: done tasks have no `due_at`, so the index is as small as the work in flight
    IndexModel([("due_at", ASCENDING)], name="due", sparse=True),
    # sparse: only tasks with changes that are not in the log of events yet
    IndexModel([("outbox", ASCENDING)], name="outbox", sparse=True),
    # sparse: only tasks that wait for admission or are in flight where there are quotas (`repository.claims`)
    IndexModel([("queued", ASCENDING)], name="queued", sparse=True),
    IndexModel([("held", ASCENDING)], name="held", sparse=True),
    # sparse: only tasks that have not ended (`repository.unfinished`)
    IndexModel([("unfinished", ASCENDING)], name="unfinished", sparse=True),
    # sparse: only tasks that are done, for the retention
    IndexModel([("ended_at", ASCENDING)], name="ended", sparse=True),
)
RETIRED_INDEXES: Final = ("owner", "owner_state")  # of older releases: `readers` serves their queries
# that MongoDB merges for a query with $in (its internalQueryMaxScansToExplode); with more it sorts in memory
MAX_SCANS: Final = 200
FILLED_AT_ONCE: Final = 1000  # tasks of older releases
HEAD: Final = (
    "_id", "version", "state", "due_stage", "due_at", "owner", "name", "tags", "readers", "queued", "held", "unfinished",
    "ended_at",
)  # fmt: skip
PROJECTIONS: Final[Mapping[View, Mapping[str, int] | None]] = {
    View.MINIMAL: {"_id": 1, "state": 1},
    View.BASIC: {"bulk": 0},
    View.FULL: None,
}


class MongoTaskRepository:
    """A `TaskRepository` in the collection `tasks`."""

    def __init__(self, database: MongoDatabase) -> None:
        self._database = database
        self._filled = threading.Event()
        self._filled_until = ""
        """Tasks with ids below it have been searched for done ones without `ended_at`."""
        self._tasks = database.collection("tasks", INDEXES, retired=RETIRED_INDEXES, upgrade=self._upgrade)

    def add(self, task: Task) -> None:
        document = encode_within_bounds(task, lambda plain: _encode({**plain, "version": 1}))
        with self._database.available():
            change = new_change(task, 1)
            stored = insert_new(self._tasks, {**document, **({} if change is None else {"outbox": mark(change)})})
        if stored is not None:
            check_same_request(_decode(stored), task)

    def get(self, task_id: TaskId, view: View = View.FULL, *, access: Access | None = None) -> Task:
        return _decode(self._find(task_id, access, PROJECTIONS[view]))

    def summary(self, task_id: TaskId, *, access: Access | None = None) -> TaskSummary:
        return _summary(self._find(task_id, access, PROJECTIONS[View.MINIMAL]))

    def states(self, task_ids: Collection[TaskId], *, access: Access | None = None) -> Mapping[TaskId, State]:
        query = {"_id": {"$in": list(task_ids)}, **({} if access is None else _may_read(access, is_filled=False))}
        with self._database.available():
            found = {d["_id"]: State(d["state"]) for d in self._tasks.find(query, PROJECTIONS[View.MINIMAL])}
        return {task_id: found[task_id] for task_id in task_ids if task_id in found}

    def _find(self, task_id: TaskId, access: Access | None, projection: Mapping[str, int] | None) -> Document:
        query = {"_id": task_id, **({} if access is None else _may_read(access, is_filled=False))}
        with self._database.available():
            found = self._tasks.find_one(query, projection)
        if found is None:
            raise UnknownTask(task_id)
        return found

    def save(self, task: Task, *, seen: Version) -> bool:
        document = encode_within_bounds(task, lambda plain: _encode({**plain, "version": seen + 1}))
        fields = {key: value for key, value in document.items() if key != "_id"}
        update = {"$set": fields, "$unset": {key: "" for key in HEAD if key not in document}}
        if change := new_change(task, seen + 1):
            update["$min"] = {"outbox": mark(change)}  # an older mark stays
        unmoved = {"_id": task.id, "version": int(seen), "state": {"$in": sources(task.state)}}
        with self._database.available():
            if self._tasks.update_one(unmoved, update).matched_count:
                return True
            stored = self._tasks.find_one({"_id": task.id}, {"version": 1, "state": 1})
        if stored is None:
            raise UnknownTask(task.id)
        if stored["version"] == seen:
            path(State(stored["state"]), task.state)  # raises IllegalTransition
        return False

    def list(self, where: TaskFilter, *, limit: int, after: TaskId | None, view: View) -> Page:
        with self._database.available(), ExitStack() as cursors:
            found = [
                cursors.enter_context(
                    self._tasks.find(_query(part, after, is_filled=self._filled.is_set()), PROJECTIONS[view])
                    .sort("_id", ASCENDING if where.oldest_first else DESCENDING)
                    .limit(limit + 1)
                )
                for part in _parts(where)
            ]
            documents, has_more = take_page(_merged(found, is_reversed=not where.oldest_first), limit, _size_bytes)
        decode = _summary if view is View.MINIMAL else _decode
        tasks = tuple(decode(document) for document in documents)
        return Page(tasks, next_after=tasks[-1].id if has_more else None)

    def due(self, now: datetime, *, limit: int) -> Sequence[tuple[TaskId, Stage]]:
        query = {"due_at": {"$lte": format_time(now)}}
        with self._database.available():
            found = list(self._tasks.find(query, {"due_stage": 1}).sort("due_at", ASCENDING).limit(limit))
        return [(TaskId(document["_id"]), Stage(document["due_stage"])) for document in found]

    def postpone(self, task_ids: Collection[TaskId], *, until: datetime) -> None:
        moment = format_time(until)
        with self._database.available():
            earlier = {"_id": {"$in": list(task_ids)}, "due_at": {"$lt": moment}}
            self._tasks.update_many(earlier, {"$set": {"due_at": moment}})

    def count(self, where: TaskFilter, *, limit: int = COUNT_LIMIT) -> int:
        with self._database.available():
            return self._tasks.count_documents(_query(where, is_filled=self._filled.is_set()), limit=limit)

    def count_unfinished(
        self, *, owner: str | None = None, limit: int = COUNT_LIMIT
    ) -> Mapping[tuple[State, str], int]:
        counts: dict[tuple[State, str], int] = {}
        begin = ""
        with self._database.available():
            for _ in range(MAX_GROUPS):
                first = self._tasks.find_one(
                    {"unfinished": {"$gte": begin}}, {"_id": 0, "unfinished": 1}, sort=[("unfinished", ASCENDING)]
                )
                if first is None:
                    break
                group = group_of(first["unfinished"])
                prefix, begin = group_key(*group) + "/", group_key(*group) + AFTER
                key: Any = {"$gte": prefix, "$lt": begin} if owner is None else prefix + owner
                counts[group] = self._tasks.count_documents({"unfinished": key}, limit=limit)
        return {group: count for group, count in counts.items() if count}

    def purge(self, before: datetime, *, limit: int) -> int:
        unmarked = {"outbox": {"$exists": False}}
        expired = {"ended_at": {"$lt": format_time(before)}, **unmarked}
        with self._database.available():
            while True:
                with self._tasks.find(expired, {"_id": 1}).sort("ended_at", ASCENDING).limit(limit) as cursor:
                    found = [document["_id"] for document in cursor]
                if found:
                    return self._tasks.delete_many({"_id": {"$in": found}, **unmarked}).deleted_count
                if not self._fill_ended(first_task_id(before)):
                    return 0

    def marked(self, limit: int) -> Sequence[tuple[Task, int, Version]]:
        """Tasks with changes that are not in the log of events yet, oldest first: in the view BASIC, with the `n` of the oldest such
        change, and with the version that was read."""
        query = {"outbox": {"$gt": ""}}
        with (
            self._database.available(),
            self._tasks.find(query, PROJECTIONS[View.BASIC]).sort("outbox", ASCENDING).limit(limit) as found,
        ):
            documents, _ = take_page(found, limit, _size_bytes)
        return [(_decode(d), int(d["outbox"].split(" ")[1]), Version(d["version"])) for d in documents]

    def oldest_mark(self) -> datetime | None:
        """The time of the oldest change that a task is marked for; None: no task is."""
        with self._database.available():
            found = self._tasks.find_one({"outbox": {"$gt": ""}}, {"outbox": 1}, sort=[("outbox", ASCENDING)])
        return None if found is None else parse_time(found["outbox"].split(" ")[0])

    def unmark(self, tasks: Sequence[tuple[Task, Version]]) -> None:
        """Remove the marks of tasks that are still at these versions, and what a process of an older release has left in ended ones."""
        removals = [
            UpdateOne(
                {"_id": task.id, "version": int(version)},
                {"$unset": {"outbox": "", **({"unfinished": ""} if task.state.is_terminal else {})}},
            )
            for task, version in tasks
        ]
        with self._database.available():
            self._tasks.bulk_write(removals, ordered=False)

    def ready(self) -> None:
        """Read one task, which also detects a server that answers but does not allow reading."""
        with self._database.available():
            self._tasks.find_one({}, {"_id": 1})

    def close(self) -> None:
        self._database.close()

    def _upgrade(self) -> None:
        self._fill_readers()
        self._repair_unfinished()

    def _repair_unfinished(self) -> None:
        """Processes of older releases, before an upgrade, during it or after a rollback, do not know `unfinished`: remove it from ended
        tasks, and add it where it is missing, without the reason, which comes with the next save."""
        states = {"$in": sorted(state.value for state in TRANSITIONS)}
        ended = {"unfinished": {"$gt": ""}, "state": {"$in": sorted(state.value for state in TERMINAL)}}
        self._tasks.update_many(ended, {"$unset": {"unfinished": ""}}, hint="unfinished")
        missing: Document = {"state": states, "unfinished": {"$exists": False}}
        with self._tasks.find(missing, {"state": 1, "owner": 1}) as found:
            while part := list(islice(found, FILLED_AT_ONCE)):
                self._tasks.bulk_write([_with_key(task, missing) for task in part], ordered=False)

    def _fill_ended(self, until: TaskId) -> bool:
        """Add `ended_at` to some tasks that processes of older releases have saved, of those with ids below `until`, each of which is read
        once. False: there were none left."""
        missing: Document = {"due_stage": {"$exists": False}, "ended_at": {"$exists": False}}
        query = {**missing, "_id": {"$gte": self._filled_until, "$lt": until}}
        with self._tasks.find(query, PROJECTIONS[View.BASIC]).sort("_id", ASCENDING).limit(FILLED_AT_ONCE) as found:
            documents, _ = take_page(found, FILLED_AT_ONCE, _size_bytes)
        if documents:
            ends = [(d["_id"], to_document(_decode(d))["ended_at"]) for d in documents]
            filled = [UpdateOne({**missing, "_id": task_id}, {"$set": {"ended_at": end}}) for task_id, end in ends]
            self._tasks.bulk_write(filled, ordered=False)
        self._filled_until = documents[-1]["_id"] if documents else until
        return bool(documents)

    def _fill_readers(self) -> None:
        """Add `readers` to tasks of older releases. Until that has been done once, queries also compare the owner."""
        missing = {"readers": {"$exists": False}}
        while found := self._tasks.find_one(missing, {"owner": 1}):  # once for each owner
            owner = found.get("owner")  # a filter by None matches tasks without the field
            self._tasks.update_many({**missing, "owner": owner}, {"$set": {"readers": reader_tokens(owner, ())}})
        self._filled.set()


def _with_key(found: Document, missing: Document) -> UpdateOne:
    key = f"{group_key(State(found['state']))}/{found.get('owner') or ''}"
    return UpdateOne({**missing, "_id": found["_id"], "state": found["state"]}, {"$set": {"unfinished": key}})


def mark(change: Change) -> str:
    """The value of `outbox` if this is the oldest change of its task that is not in the log: sorts by its time, then by its `n`."""
    return f"{format_time(change.at)} {change.n:012}"


def _encode(document: Document) -> tuple[RawBSONDocument, int]:
    """Without fields that are null or empty, except that `readers` shows by an empty list that there are none."""
    bulk = document.pop("bulk")
    head = {key: value for key in HEAD if (value := document.pop(key, None)) not in (None, [])}
    head.setdefault("readers", [])
    encoded = bson.encode({**head, "core": encode_json(document).decode(), "bulk": encode_json(bulk).decode()})
    return RawBSONDocument(encoded), len(encoded)


def _summary(document: Document) -> TaskSummary:
    return TaskSummary(document["_id"], State(document["state"]))


def _size_bytes(document: Document) -> int:
    return len(document.get("core", "")) + len(document.get("bulk", ""))


def _decode(document: Document) -> Task:
    found = {**decode_json(document["core"]), **{key: document.get(key) for key in HEAD}}
    found["wake_at"] = found["due_at"] or found["wake_at"]  # `postpone` writes only the field
    if "bulk" in document:
        found["bulk"] = decode_json(document["bulk"])
    return from_document(found)


def _query(where: TaskFilter, after: TaskId | None = None, *, is_filled: bool) -> dict[str, Any]:
    """`is_filled`: whether all tasks have `readers`."""
    query: dict[str, Any] = {}
    lowest, is_included, above = where.id_bounds(after)
    bounds = {"$gte" if is_included else "$gt": lowest, "$lt": above}
    if bounds := {operator: bound for operator, bound in bounds.items() if bound is not None}:
        query["_id"] = bounds
    if where.states:
        query["state"] = {"$in": sorted(state.value for state in where.states)}
    if where.access is not None:
        query.update(_may_read(where.access, is_filled=is_filled))
    if where.owner is not None:
        query["owner"] = where.owner
        if is_filled:  # has an index where `owner` has none
            query["$and"] = [{"readers": token} for token in reader_tokens(where.owner, ())]
    if where.tags:
        query["tags"] = {"$all": [tag_token(key, value) for key, value in where.tags]}
    if where.name_prefix:  # a range instead of a regular expression: needs no escaping
        end = after_prefix(where.name_prefix)
        query["name"] = {"$gte": where.name_prefix} if end is None else {"$gte": where.name_prefix, "$lt": end}
    return query


def _parts(where: TaskFilter) -> Iterator[TaskFilter]:
    """The filter, divided so that MongoDB merges the scans of each part in the order of ids instead of sorting (MAX_SCANS)."""
    size = MAX_SCANS // max(1, len(where.states)) - 1  # groups, beside the user
    if where.access is None or where.owner is not None or len(where.access.groups) <= size:
        yield where
        return
    groups = sorted(where.access.groups)
    for i in range(0, len(groups), size):
        yield replace(where, access=replace(where.access, groups=frozenset(groups[i : i + size])))


def _merged(parts: Sequence[Iterable[Document]], *, is_reversed: bool) -> Iterator[Document]:
    """Documents in the order of ids, each once, from several results in that order."""
    if len(parts) == 1:
        yield from parts[0]
        return
    last = None
    for document in heapq.merge(*parts, key=itemgetter("_id"), reverse=is_reversed):
        if document["_id"] != last:
            yield document
        last = document["_id"]


def _may_read(access: Access, *, is_filled: bool) -> dict[str, Any]:
    tokens = {"readers": {"$in": access.tokens}}
    return tokens if is_filled or access.owner is None else {"$or": [{"owner": access.owner}, tokens]}
