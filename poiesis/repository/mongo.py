"""Tasks in MongoDB, one document each; compare-and-set by a filter on version and state.

A document has fields for everything that queries use, and the rest in two JSON texts: `core`, and `bulk`, which the view BASIC does not
read (docs/adr/0005). A text costs the server and the driver almost nothing.

Only plain operations are used, no transactions and no change streams, so that other servers with MongoDB's protocol work
too. Writes are acknowledged by a majority and reads are from a majority, so that no process acts on a task whose last
save a failover could undo.

The constructor does not connect. The first operation starts a thread that creates missing indexes; that may take long on a
large collection of an older release, which works without them, but slower.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, Final

import bson
import pymongo
from bson.errors import BSONError
from bson.raw_bson import RawBSONDocument
from pymongo import ASCENDING, DESCENDING, IndexModel, MongoClient
from pymongo.collection import Collection as MongoCollection
from pymongo.errors import DuplicateKeyError, PyMongoError

from poiesis.domain.access import Access, reader_tokens
from poiesis.domain.errors import ConfigurationError, RepositoryUnavailable, UnknownTask
from poiesis.domain.states import Stage, State, path
from poiesis.domain.task import Task, TaskId, TaskSummary, Version, View
from poiesis.ports.repository import COUNT_LIMIT, Page, TaskFilter, take_page
from poiesis.repository.documents import (
    Document,
    after_prefix,
    check_same_request,
    decode_json,
    encode_json,
    encode_within_bounds,
    format_time,
    from_document,
    sources,
    tag_token,
)

INDEXES: Final = (
    # lists: newest first for one value of each filter; MongoDB merges the scans for several states or readers
    IndexModel([("state", ASCENDING), ("_id", DESCENDING)], name="state"),
    IndexModel([("readers", ASCENDING), ("_id", DESCENDING)], name="readers"),
    IndexModel([("readers", ASCENDING), ("state", ASCENDING), ("_id", DESCENDING)], name="readers_state"),
    IndexModel([("tags", ASCENDING), ("_id", DESCENDING)], name="tags"),
    IndexModel([("name", ASCENDING), ("_id", DESCENDING)], name="name"),
    # sparse: done tasks have no `due_at`, so the index is as small as the work in flight
    IndexModel([("due_at", ASCENDING)], name="due", sparse=True),
)
RETIRED_INDEXES: Final = ("owner", "owner_state")  # of older releases: `readers` serves their queries
HEAD: Final = ("_id", "version", "state", "due_stage", "due_at", "owner", "name", "tags", "readers")
INDEX_TIMEOUT_S: Final = 6 * 3600  # the build of all indexes on a large collection
PROJECTIONS: Final[Mapping[View, Mapping[str, int] | None]] = {
    View.MINIMAL: {"_id": 1, "state": 1},
    View.BASIC: {"bulk": 0},
    View.FULL: None,
}


class MongoTaskRepository:
    """A `TaskRepository` in the collection `tasks`.

    `timeout` is for each call as a whole, `server_selection_timeout` for finding a primary within it.
    `connect_timeout` is for one connection and for each health check of the driver; a failed check aborts all running
    calls, so if it is too short a busy server counts as unavailable.
    Raises: ConfigurationError for an invalid URI.
    """

    def __init__(
        self,
        uri: str,
        database: str,
        *,
        timeout: timedelta = timedelta(seconds=5),
        server_selection_timeout: timedelta = timedelta(seconds=3),
        connect_timeout: timedelta = timedelta(seconds=5),
    ) -> None:
        try:
            self._client: MongoClient[Document] = MongoClient(
                uri,
                appname="poiesis",
                connect=False,
                timeoutMS=_milliseconds(timeout),
                socketTimeoutMS=_milliseconds(timeout),
                serverSelectionTimeoutMS=_milliseconds(server_selection_timeout),
                connectTimeoutMS=_milliseconds(connect_timeout),
                waitQueueTimeoutMS=_milliseconds(timeout),
                w="majority",
                readConcernLevel="majority",
                readPreference="primary",
            )
            self._tasks: MongoCollection[Document] = self._client[database]["tasks"]
        except (PyMongoError, ValueError, TypeError) as error:
            # not chained: messages about a malformed URI may quote parts of it, including passwords
            raise ConfigurationError(
                f"invalid MongoDB URI or database name ({type(error).__name__}): use mongodb://host:port and a plain name"
            ) from None
        self._indexing: threading.Thread | None = None
        self._indexed = threading.Event()
        self._filled = threading.Event()
        self._closed = threading.Event()
        self._lock = threading.Lock()

    def add(self, task: Task) -> None:
        document = encode_within_bounds(task, lambda plain: _encode({**plain, "version": 1}))
        with self._available():
            try:
                self._tasks.insert_one(document)
            except DuplicateKeyError:
                stored = self._tasks.find_one({"_id": task.id})
                # None: added, done and deleted meanwhile, so there is nothing to do
                if stored is not None:
                    check_same_request(_decode(stored), task)

    def get(self, task_id: TaskId, view: View = View.FULL, *, access: Access | None = None) -> Task:
        return _decode(self._find(task_id, access, PROJECTIONS[view]))

    def summary(self, task_id: TaskId, *, access: Access | None = None) -> TaskSummary:
        return _summary(self._find(task_id, access, PROJECTIONS[View.MINIMAL]))

    def _find(self, task_id: TaskId, access: Access | None, projection: Mapping[str, int] | None) -> Document:
        query = {"_id": task_id, **({} if access is None else _may_read(access, is_filled=False))}
        with self._available():
            found = self._tasks.find_one(query, projection)
        if found is None:
            raise UnknownTask(task_id)
        return found

    def save(self, task: Task, *, seen: Version) -> bool:
        document = encode_within_bounds(task, lambda plain: _encode({**plain, "version": seen + 1}))
        unmoved = {"_id": task.id, "version": int(seen), "state": {"$in": sources(task.state)}}
        with self._available():
            if self._tasks.replace_one(unmoved, document).matched_count:
                return True
            stored = self._tasks.find_one({"_id": task.id}, {"version": 1, "state": 1})
        if stored is None:
            raise UnknownTask(task.id)
        if stored["version"] == seen:
            path(State(stored["state"]), task.state)  # raises IllegalTransition
        return False

    def list(self, where: TaskFilter, *, limit: int, after: TaskId | None, view: View) -> Page:
        query = _query(where, is_filled=self._filled.is_set())
        if after is not None:
            query["_id"] = {"$lt": after}
        with (
            self._available(),
            self._tasks.find(query, PROJECTIONS[view]).sort("_id", DESCENDING).limit(limit + 1) as found,
        ):
            documents, has_more = take_page(found, limit, _size_bytes)
        decode = _summary if view is View.MINIMAL else _decode
        tasks = tuple(decode(document) for document in documents)
        return Page(tasks, next_after=tasks[-1].id if has_more else None)

    def due(self, now: datetime, *, limit: int) -> Sequence[tuple[TaskId, Stage]]:
        query = {"due_at": {"$lte": format_time(now)}}
        with self._available():
            found = list(self._tasks.find(query, {"due_stage": 1}).sort("due_at", ASCENDING).limit(limit))
        return [(TaskId(document["_id"]), Stage(document["due_stage"])) for document in found]

    def postpone(self, task_ids: Collection[TaskId], *, until: datetime) -> None:
        moment = format_time(until)
        with self._available():
            earlier = {"_id": {"$in": list(task_ids)}, "due_at": {"$lt": moment}}
            self._tasks.update_many(earlier, {"$set": {"due_at": moment}})

    def count(self, where: TaskFilter, *, limit: int = COUNT_LIMIT) -> int:
        with self._available():
            return self._tasks.count_documents(_query(where, is_filled=self._filled.is_set()), limit=limit)

    def delete(self, task_id: TaskId) -> bool:
        with self._available():
            return self._tasks.delete_one({"_id": task_id, "due_stage": {"$exists": False}}).deleted_count == 1

    def ready(self) -> None:
        """Read one task, which also detects a server that answers but does not allow reading."""
        with self._available():
            self._tasks.find_one({}, {"_id": 1})

    def wait_for_indexes(self, timeout: timedelta) -> bool:
        """Whether the indexes exist; waits for them at most `timeout`."""
        with self._available():
            return self._indexed.wait(timeout.total_seconds())

    def close(self) -> None:
        self._closed.set()
        self._client.close()

    @contextmanager
    def _available(self) -> Iterator[None]:
        if self._closed.is_set():
            raise RepositoryUnavailable("the task store is closed")
        self._begin_indexes()
        try:
            yield
        except (PyMongoError, BSONError) as error:
            raise RepositoryUnavailable(f"the task store does not respond: {_message(error)}") from error

    def _begin_indexes(self) -> None:
        """Create missing indexes in a thread, unless that is done or in progress; after a failure it is tried again."""
        if self._indexed.is_set():
            return
        with self._lock:
            if self._indexing is None or not self._indexing.is_alive():
                self._indexing = threading.Thread(target=self._make_indexes, name="mongo-indexes", daemon=True)
                self._indexing.start()

    def _make_indexes(self) -> None:
        try:
            self._client.admin.command("ping")  # within the usual timeout, where the build has a long one
            with pymongo.timeout(INDEX_TIMEOUT_S):
                # not all of them every time: some servers fail on an existing index
                present = self._tasks.index_information()
                for index in INDEXES:
                    if index.document["name"] not in present:
                        self._tasks.create_indexes([index])
                self._fill_readers()
                for name in RETIRED_INDEXES:
                    if name in present:
                        self._tasks.drop_index(name)
        except PyMongoError:
            self._closed.wait(1.0)  # seconds; an operation with the same fault reports it, and a later one tries again
            return
        self._indexed.set()

    def _fill_readers(self) -> None:
        """Add `readers` to tasks of older releases. Until that has been done once, queries also compare the owner."""
        missing = {"readers": {"$exists": False}}
        while found := self._tasks.find_one(missing, {"owner": 1}):  # once for each owner
            owner = found.get("owner")  # a filter by None matches tasks without the field
            self._tasks.update_many({**missing, "owner": owner}, {"$set": {"readers": reader_tokens(owner, ())}})
        self._filled.set()


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


def _query(where: TaskFilter, *, is_filled: bool) -> dict[str, Any]:
    """`is_filled`: whether all tasks have `readers`."""
    query: dict[str, Any] = {}
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


def _may_read(access: Access, *, is_filled: bool) -> dict[str, Any]:
    tokens = {"readers": {"$in": access.tokens}}
    return tokens if is_filled or access.owner is None else {"$or": [{"owner": access.owner}, tokens]}


def _message(error: Exception) -> str:
    """Class and beginning of the message of an error, without user names and passwords in URLs."""
    text = re.sub(r"//[^/\s@]*@", "//", str(error)).split(", Timeout:")[0]  # then comes a dump of the topology
    return f"{type(error).__name__}: {text[:200]}"


def _milliseconds(duration: timedelta) -> int:
    return round(duration.total_seconds() * 1000)
