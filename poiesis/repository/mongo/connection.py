"""A MongoDB database. Each other module of the package stores one kind of thing in a collection of its own.

Only plain operations are used, no transactions and no change streams, so that other servers with MongoDB's protocol work
too. Writes are acknowledged by a majority and reads are from a majority, so that no process acts on something whose last
save a failover could undo.

The constructor does not connect. The first operation starts a thread that creates missing indexes; that may take long on a
large collection of an older release, which works without them, but slower.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import pymongo
from bson.errors import BSONError
from pymongo import IndexModel, MongoClient
from pymongo.collection import Collection as MongoCollection
from pymongo.errors import DuplicateKeyError, PyMongoError
from pymongo.monitoring import CommandFailedEvent, CommandListener, CommandStartedEvent, CommandSucceededEvent

from poiesis.domain.errors import ConfigurationError, RepositoryUnavailable
from poiesis.metrics import STORE_ERRORS, STORE_SECONDS
from poiesis.repository.documents import Document

INDEX_TIMEOUT_S: Final = 6 * 3600  # the build of all indexes on a large collection
RETRY_S: Final = 1.0  # after a failure, with the next operation
REPORT_EVERY_S: Final = 600.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Indexed:
    collection: MongoCollection[Document]
    indexes: Sequence[IndexModel]
    retired: Sequence[str]
    upgrade: Callable[[], None]


class _CommandMetrics(CommandListener):
    def started(self, event: CommandStartedEvent) -> None:
        pass

    def succeeded(self, event: CommandSucceededEvent) -> None:
        STORE_SECONDS.labels(event.command_name).observe(event.duration_micros / 1e6)

    def failed(self, event: CommandFailedEvent) -> None:
        STORE_SECONDS.labels(event.command_name).observe(event.duration_micros / 1e6)
        STORE_ERRORS.labels(event.command_name).inc()


class MongoDatabase:
    """`timeout` is for each call as a whole, `server_selection_timeout` for finding a primary within it.
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
            self.client: MongoClient[Document] = MongoClient(
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
                event_listeners=[_CommandMetrics()],
            )
            self._database = self.client[database]
        except (PyMongoError, ValueError, TypeError) as error:
            # not chained: messages about a malformed URI may quote parts of it, including passwords
            raise ConfigurationError(
                f"invalid MongoDB URI or database name ({type(error).__name__}): use mongodb://host:port and a plain name"
            ) from None
        self._collections: list[_Indexed] = []
        self._indexing: threading.Thread | None = None
        self._indexed = threading.Event()
        self._quiet_until: dict[str, float] = {}
        self._closed = threading.Event()
        self._lock = threading.Lock()

    def collection(
        self,
        name: str,
        indexes: Sequence[IndexModel],
        *,
        retired: Sequence[str] = (),
        upgrade: Callable[[], None] = lambda: None,
    ) -> MongoCollection[Document]:
        """The collection `name`. Its missing indexes are created in the background, then `upgrade` is called there, and the indexes
        `retired` of older releases are dropped."""
        made = self._database[name]
        self._collections.append(_Indexed(made, indexes, retired, upgrade))
        self._indexed.clear()
        return made

    def wait_for_indexes(self, timeout: timedelta) -> bool:
        """Whether the indexes exist; waits for them at most `timeout`."""
        with self.available():
            return self._indexed.wait(timeout.total_seconds())

    def missing_indexes(self) -> dict[str, list[str]]:
        """Names of the indexes that do not exist, by collection; those of collections that do not exist are not missing. Creates nothing.
        Raises: the driver's errors."""
        existing = set(self._database.list_collection_names())
        found: dict[str, list[str]] = {}
        for each in self._collections:
            if each.collection.name in existing:
                present = each.collection.index_information()
                names = [str(i.document["name"]) for i in each.indexes if i.document["name"] not in present]
                if names:
                    found[each.collection.name] = names
        return found

    def close(self) -> None:
        self._closed.set()
        self.client.close()

    @contextmanager
    def available(self) -> Iterator[None]:
        """Around every operation. Raises: RepositoryUnavailable instead of the driver's errors."""
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
            self.client.admin.command("ping")  # within the usual timeout, where the build has a long one
            wanted = tuple(self._collections)
            with pymongo.timeout(INDEX_TIMEOUT_S):
                for each in wanted:
                    self._make_indexes_of(each)
        except PyMongoError:
            self._closed.wait(RETRY_S)
            return
        if len(wanted) == len(self._collections):
            self._indexed.set()

    def _make_indexes_of(self, each: _Indexed) -> None:
        # not all of them every time: some servers fail on an existing index
        present = each.collection.index_information()
        for index in each.indexes:
            if index.document["name"] not in present:
                with self._reported(each, f"create index {index.document['name']}"):
                    each.collection.create_indexes([index])
        with self._reported(each, "upgrade documents"):
            each.upgrade()
        for name in each.retired:
            if name in present:
                with self._reported(each, f"drop index {name}"):
                    each.collection.drop_index(name)

    @contextmanager
    def _reported(self, each: _Indexed, step: str) -> Iterator[None]:
        """Log a failure, which no operation reports; the same again after REPORT_EVERY_S."""
        try:
            yield
        except PyMongoError as error:
            failed, now = f"{each.collection.name}: {step}", time.monotonic()
            if now >= self._quiet_until.get(failed, 0) and not self._closed.is_set():
                self._quiet_until[failed] = now + REPORT_EVERY_S
                extra = {"collection": each.collection.name, "step": step, "error": _message(error)}
                log.warning("store_upgrade_failed", extra=extra)
            raise


def insert_new(collection: MongoCollection[Document], document: Document) -> Document | None:
    """Insert a document. Return the stored one if there is one with its id, as after an attempt whose answer was lost; None: inserted.

    Raises: RepositoryUnavailable if a failover could still undo the stored one."""
    try:
        collection.insert_one(document)
    except DuplicateKeyError as error:  # the driver hides behind it that the wait for a majority has timed out
        stored = collection.find_one({"_id": document["_id"]})
        if stored is None:
            message = "the task store has not yet copied an earlier write to a majority of its members: try again"
            raise RepositoryUnavailable(message) from error
        return stored
    return None


def _message(error: Exception) -> str:
    """Class and beginning of the message of an error, without user names and passwords in URLs."""
    text = re.sub(r"//[^/\s@]*@", "//", str(error)).split(", Timeout:")[0]  # then comes a dump of the topology
    return f"{type(error).__name__}: {text[:200]}"


def _milliseconds(duration: timedelta) -> int:
    return round(duration.total_seconds() * 1000)
