"""What the contract suite does not cover of the MongoDB adapter: settings, indexes, messages."""

import time
import traceback
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import bson
import pytest
from pymongo import MongoClient, monitoring
from pymongo.errors import BulkWriteError, PyMongoError

from poiesis.domain.access import Access
from poiesis.domain.errors import ConfigurationError, RepositoryUnavailable, UnknownTask
from poiesis.domain.naming import new_task_id
from poiesis.domain.states import Stage, State
from poiesis.domain.task import Input, Task, TaskId, TaskLog, TaskSpec, Version, View
from poiesis.domain.webhooks import Delivery
from poiesis.ports.repository import TaskFilter
from poiesis.repository.documents import format_time, to_document
from poiesis.repository.mongo import connection
from poiesis.repository.mongo import tasks as mongo
from poiesis.repository.mongo.connection import MongoDatabase
from poiesis.repository.mongo.events import MongoEventLog
from poiesis.repository.mongo.tasks import INDEXES, MongoTaskRepository, _query
from poiesis.repository.mongo.webhooks import MongoWebhookStore

NOW = datetime(2026, 1, 31, 12, 0, 0, 1, tzinfo=UTC)
WAIT = timedelta(seconds=30)


@pytest.fixture
def repository(mongo_url):
    url, _, name = mongo_url.rpartition("/")
    made = MongoTaskRepository(MongoDatabase(f"{url}/?retryWrites=false", name, timeout=WAIT, connect_timeout=WAIT))
    yield made
    made.close()


def a_task(task_id: str = "one") -> Task:
    spec = TaskSpec(executors=(), inputs=(Input("/a", content="content"),))
    return Task(id=TaskId(task_id), spec=spec, created_at=NOW, wake_at=NOW)


@pytest.mark.parametrize(
    ("uri", "database"),
    [
        ("mongodb://user:hunter2@host:hunter2", "poiesis"),
        ("mongodb://user:hunter2@", "poiesis"),
        ("mongodb://user:hunt/er2@host", "poiesis"),
        ("http://user:hunter2@host", "poiesis"),
        ("mongodb://host", ""),
        ("mongodb://host", "a b"),
    ],
)
def test_a_uri_that_cannot_be_used_is_refused_without_showing_it(uri, database):
    with pytest.raises(ConfigurationError) as caught:
        MongoTaskRepository(MongoDatabase(uri, database))
    shown = "".join(traceback.format_exception(caught.value))
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    assert "pymongo.errors" not in shown


def test_options_for_durability_and_time_outs_are_set():
    made = MongoTaskRepository(
        MongoDatabase(
            "mongodb://host/?w=1&timeoutMS=99999&retryWrites=false&readConcernLevel=local",
            "poiesis",
            timeout=timedelta(seconds=7),
        )
    )
    options = made._database.client.options
    assert made._tasks.write_concern.document == {"w": "majority"}
    assert made._tasks.read_concern.level == "majority"
    assert options.timeout == 7
    assert options.server_selection_timeout == 3
    assert options.pool_options.connect_timeout == 5
    assert options.pool_options.socket_timeout == 7
    assert not options.retry_writes
    made.close()


def test_the_indexes_are_created_once_by_several_repositories(repository, mongo_url):
    repository.ready()
    assert repository._database.wait_for_indexes(WAIT)
    names = {index.document["name"] for index in INDEXES}
    with MongoClient[dict[str, Any]](mongo_url) as client:
        assert set(client.get_default_database()["tasks"].index_information()) == {"_id_", *names}
    url, _, name = mongo_url.rpartition("/")
    again = MongoTaskRepository(MongoDatabase(f"{url}/?retryWrites=false", name, timeout=WAIT, connect_timeout=WAIT))
    assert again._database.wait_for_indexes(WAIT)
    again.close()


def test_indexes_are_created_when_the_server_recovers(free_port, mongo_url, monkeypatch):
    made = MongoTaskRepository(MongoDatabase(f"mongodb://127.0.0.1:{free_port}", "x", timeout=timedelta(seconds=0.2)))
    with pytest.raises(RepositoryUnavailable):
        made.ready()
    url, _, name = mongo_url.rpartition("/")
    made._database.client.close()
    made._database.client = MongoClient(url)
    made._database._database = made._database.client[name]
    made._database._collections.clear()
    made = MongoTaskRepository(made._database)
    deadline = time.monotonic() + 20
    while not made._database.wait_for_indexes(timedelta(seconds=0.1)):
        made.ready()
        assert time.monotonic() < deadline
    made.close()


def test_an_index_that_cannot_be_created_is_reported_once(mongo_url, monkeypatch, caplog):
    monkeypatch.setattr(connection, "RETRY_S", 0.0)
    url, _, name = mongo_url.rpartition("/")
    database = MongoDatabase(f"{url}/?retryWrites=false", name, timeout=WAIT, connect_timeout=WAIT)
    MongoEventLog(database, MongoTaskRepository(database))
    events = database.client[name]["events"]
    events.insert_many([{"_id": seq, "task": "a", "n": 1} for seq in (1, 2)])  # against the unique index
    for _ in range(3):
        database._make_indexes()
    [record] = [record for record in caplog.records if record.message == "store_upgrade_failed"]
    assert (record.collection, record.step) == ("events", "create index task")
    assert not database._indexed.is_set()

    events.delete_one({"_id": 2})
    database._make_indexes()
    assert database.wait_for_indexes(timedelta(0))
    database.close()


class Commands(monitoring.CommandListener):
    def __init__(self):
        self.seen: list[dict[str, Any]] = []

    def started(self, event):
        self.seen.append(event.command)

    def succeeded(self, event):
        pass

    def failed(self, event):
        pass


def test_a_save_is_one_round_trip_and_views_are_projected_in_the_store(mongo_url):
    url, _, name = mongo_url.rpartition("/")
    commands = Commands()
    made = MongoTaskRepository(MongoDatabase(f"{url}/?retryWrites=false", name, timeout=WAIT, connect_timeout=WAIT))
    made.add(a_task())
    assert made._database.wait_for_indexes(WAIT)
    made._database.client.close()
    made._database.client = MongoClient(url, event_listeners=[commands], retryWrites=False)
    made._tasks = made._database.client[name]["tasks"]

    assert made.save(a_task(), seen=Version(1))
    (update,) = commands.seen
    assert update["updates"][0]["q"] == {"_id": "one", "version": 1, "state": {"$in": ["QUEUED"]}}
    commands.seen.clear()
    made.list(TaskFilter(), limit=256, after=TaskId("x"), view=View.MINIMAL)
    made.list(TaskFilter(), limit=256, after=None, view=View.BASIC)
    minimal, basic = commands.seen
    assert minimal["filter"] == {"_id": {"$lt": "x"}}
    assert minimal["projection"] == {"_id": 1, "state": 1}
    assert dict(minimal["sort"]) == {"_id": -1}
    assert minimal["limit"] == 257
    assert basic["projection"] == {"bulk": 0}
    commands.seen.clear()
    access = Access("bob", frozenset({"x"}))
    for view in View:
        with pytest.raises(UnknownTask):
            made.get(TaskId("one"), view, access=access)
    with pytest.raises(UnknownTask):
        made.summary(TaskId("one"), access=access)
    allowed = [{"owner": "bob"}, {"readers": {"$in": ["g:x", "u:bob"]}}]
    assert [command["filter"] for command in commands.seen] == [{"_id": "one", "$or": allowed}] * 4
    made.close()


def test_a_document_has_the_queried_fields_and_two_texts():
    task = replace(a_task(), owner=None, stage=Stage.DONE, wake_at=None)
    raw, size = mongo._encode(to_document(task))
    document = bson.decode(raw.raw)
    assert size == len(raw.raw)
    assert set(document) == {"_id", "version", "state", "readers", "unfinished", "ended_at", "core", "bulk"}, (
        "no field that is null, none that is never queried"
    )
    assert mongo._decode(document) == task


def test_an_empty_name_is_a_name():
    task = replace(a_task(), spec=TaskSpec(executors=(), name=""))
    raw, _ = mongo._encode(to_document(task))
    assert mongo._decode(bson.decode(raw.raw)).spec.name == ""


def test_a_postponed_wake_up_takes_precedence_over_the_saved_one():
    raw, _ = mongo._encode(to_document(a_task()))
    later = a_task().created_at + timedelta(hours=1)
    document = {**bson.decode(raw.raw), "due_at": format_time(later)}
    assert mongo._decode(document).wake_at == later


def test_filters_are_equalities_and_ranges():
    where = TaskFilter(
        "a.*", frozenset({State.RUNNING}), (("k", "v"), ("l", "")), "ada", Access("bob", frozenset({"x"}))
    )
    expected = {
        "name": {"$gte": "a.*", "$lt": "a.+"},
        "state": {"$in": ["RUNNING"]},
        "tags": {"$all": ["1:k=v", "1:l"]},
        "owner": "ada",
    }
    readers = {"readers": {"$in": ["g:x", "u:bob"]}}
    assert _query(where, is_filled=True) == {**expected, **readers, "$and": [{"readers": "u:ada"}]}
    assert _query(where, is_filled=False) == {**expected, "$or": [{"owner": "bob"}, readers]}
    assert _query(TaskFilter(), is_filled=True) == _query(TaskFilter(), is_filled=False) == {}


def test_tasks_of_an_older_release_are_found_by_their_owner(mongo_url):
    url, _, name = mongo_url.rpartition("/")
    with MongoClient[dict[str, Any]](mongo_url) as client:
        tasks = client.get_default_database()["tasks"]
        for task_id, owner in (("one", "ada"), ("two", "bob"), ("three", None)):
            raw, _ = mongo._encode(to_document(replace(a_task(task_id), owner=owner, version=Version(1))))
            old = {key: value for key, value in bson.decode(raw.raw).items() if key not in ("readers", "unfinished")}
            tasks.insert_one(old)
        tasks.create_index("owner", name="owner")
        repository = MongoTaskRepository(
            MongoDatabase(f"{url}/?retryWrites=false", name, timeout=WAIT, connect_timeout=WAIT)
        )

        def check() -> None:
            for where in (TaskFilter(access=Access("ada", frozenset({"g"}))), TaskFilter(owner="ada")):
                page = repository.list(where, limit=9, after=None, view=View.MINIMAL)
                assert [task.id for task in page.tasks] == ["one"]
            assert repository.get(TaskId("one"), access=Access("ada")).owner == "ada"

        check()
        assert repository._database.wait_for_indexes(WAIT)
        check()
        assert {d["_id"]: d["readers"] for d in tasks.find()} == {"one": ["u:ada"], "two": ["u:bob"], "three": []}
        assert "owner" not in tasks.index_information()
        assert repository.count_unfinished() == {(State.QUEUED, ""): 3}
        assert repository.count_unfinished(owner="ada") == {(State.QUEUED, ""): 1}
    repository.close()


def test_counts_of_unfinished_tasks_forget_what_an_older_release_has_ended(mongo_url):
    """It writes neither the key of new tasks nor removes that of tasks it ends: found at the next start, the latter also by the relay."""
    url, _, name = mongo_url.rpartition("/")

    def opened() -> MongoTaskRepository:
        made = MongoTaskRepository(MongoDatabase(f"{url}/?retryWrites=false", name, timeout=WAIT, connect_timeout=WAIT))
        made.ready()
        assert made._database.wait_for_indexes(WAIT)
        return made

    repository = opened()
    ended = [replace(a_task(str(n)), owner="ada") for n in range(3)]
    for task in ended:
        repository.add(task)
    repository.add(replace(a_task("new"), owner="b/c"))
    repository._tasks.update_one({"_id": "new"}, {"$unset": {"unfinished": ""}})
    for task in ended[:2]:
        gone = replace(repository.get(task.id), state=State.COMPLETE, stage=Stage.DONE, wake_at=None)
        assert repository.save(gone.recorded(NOW), seen=Version(1))
        repository._tasks.update_one({"_id": task.id}, {"$set": {"unfinished": "QUEUED//ada"}})
    assert repository.count_unfinished() == {(State.QUEUED, ""): 3}
    [marked, _] = repository.marked(9)
    repository.unmark([(marked[0], marked[2])])
    assert repository.count_unfinished() == {(State.QUEUED, ""): 2}
    repository.close()
    repository = opened()
    assert repository.count_unfinished() == {(State.QUEUED, ""): 2}
    assert repository.count_unfinished(owner="ada") == {(State.QUEUED, ""): 1}
    assert repository.count_unfinished(owner="b/c") == {(State.QUEUED, ""): 1}
    repository.close()


def test_a_task_that_a_failover_could_undo_is_not_added(repository, monkeypatch):
    """A read from a majority does not find it, although its id is taken."""
    repository.add(a_task())
    with monkeypatch.context() as patch:
        patch.setattr(repository._tasks, "find_one", lambda *_, **__: None)
        with pytest.raises(RepositoryUnavailable, match="majority"):
            repository.add(a_task())
    repository.add(a_task())


@pytest.mark.parametrize("written", [[], [{"code": 11000}]])
def test_messages_that_a_failover_could_undo_are_not_stored(mongo_url, monkeypatch, written):
    """The wait for a majority has timed out: the driver reports that beside the errors of documents, or with none of them."""
    url, _, name = mongo_url.rpartition("/")
    store = MongoWebhookStore(MongoDatabase(f"{url}/?retryWrites=false", name, timeout=WAIT, connect_timeout=WAIT))
    message = Delivery("wh_1", 1, "{}", created_at=NOW, next_at=NOW)

    def insert_many(*_: Any, **__: Any) -> None:
        raise BulkWriteError(
            {"writeErrors": written, "writeConcernErrors": [{"code": 64, "errmsg": "waiting for replication"}]}
        )

    with monkeypatch.context() as patch:
        patch.setattr(store._messages, "insert_many", insert_many)
        with pytest.raises(RepositoryUnavailable):
            store.enqueue([message], NOW)
    for _ in range(2):  # again, as the caller does
        store.enqueue([message], NOW)
        assert store.pending("wh_1") == 1
    store._database.close()


def test_ended_tasks_of_an_older_release_are_purged_by_their_ends(mongo_url, monkeypatch):
    monkeypatch.setattr(mongo, "FILLED_AT_ONCE", 2)
    url, _, name = mongo_url.rpartition("/")
    repository = MongoTaskRepository(
        MongoDatabase(f"{url}/?retryWrites=false", name, timeout=WAIT, connect_timeout=WAIT)
    )

    def add(n: int, days: float, stage: Stage = Stage.DONE) -> TaskId:
        created = NOW - timedelta(days=30, seconds=-n)
        log = TaskLog(end_time=NOW - timedelta(days=days))
        task = replace(
            a_task("x"), id=new_task_id(created), created_at=created, stage=stage, state=State.COMPLETE, log=log
        )
        repository.add(task)
        repository._tasks.update_one({"_id": task.id}, {"$unset": {"ended_at": ""}})
        return task.id

    late, _, cleaning = add(0, 5), add(1, 9), add(2, 9, Stage.CLEAN)
    for n in range(3, 7):
        add(n, 8)
    week = NOW - timedelta(days=7)
    purged = []
    while found := repository.purge(week, limit=3):
        purged.append(found)
    assert sum(purged) == 5
    assert set(repository.states([late, cleaning])) == {late, cleaning}
    assert repository.count(TaskFilter()) == 2
    assert repository.purge(NOW - timedelta(days=4), limit=3) == 1
    repository.close()


def test_a_message_has_the_error_and_no_credentials():
    error = PyMongoError("mongodb://user:hunter2@host:1 failed, Timeout: 3s, Topology Description: <...>")
    assert connection._message(error) == "PyMongoError: mongodb://host:1 failed"


def test_the_cause_of_an_unavailable_store_is_chained(free_port):
    made = MongoTaskRepository(MongoDatabase(f"mongodb://127.0.0.1:{free_port}", "x", timeout=timedelta(seconds=0.2)))
    with pytest.raises(RepositoryUnavailable, match=str(free_port)) as caught:
        made.ready()
    assert isinstance(caught.value.__cause__, PyMongoError)
    made.close()
