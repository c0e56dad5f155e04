"""Every query of the MongoDB adapters against the indexes, by the rule "equality, sort, range", since no real server is started here.

A query is served without sorting and without reading what it does not return if one index has, in this order: fields that the query
compares for equality (or with `$in`, whose scans MongoDB merges in the order of the rest of the index: SORT_MERGE, for at most
`internalQueryMaxScansToExplode` = 200 scans, also where such a field is multikey, but not where a field of the order is), then the fields
of the sort, then ranges. Conditions beside that are looked up in the documents: only those of lists with several filters.

The queries are recorded from the adapters while they run, so that a new one cannot be forgotten.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from poiesis.domain.access import Access
from poiesis.domain.states import State
from poiesis.domain.task import Executor, Task, TaskId, TaskSpec, Version, View
from poiesis.ports.idempotency import KEPT, IdempotencyKey
from poiesis.ports.repository import TaskFilter
from poiesis.repository.mongo import events, idempotency, tasks
from poiesis.repository.mongo.connection import MongoDatabase
from poiesis.repository.mongo.tasks import MAX_SCANS

NOW = datetime(2026, 1, 31, tzinfo=UTC)
WAIT = timedelta(seconds=60)
MULTIKEY = {"tags", "readers"}
Index = Sequence[tuple[str, int]]
INDEXES: Mapping[str, Sequence[Index]] = {
    name: [[("_id", 1)], *(list(index.document["key"].items()) for index in module.INDEXES)]
    for name, module in (("tasks", tasks), ("events", events), ("idempotency", idempotency))
}


@dataclass(frozen=True)
class Query:
    collection: str
    conditions: Mapping[str, Any]
    sort: Index = ()


def flat(conditions: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Field → its conditions; `$and` is resolved, `$or` must not be left."""
    found: dict[str, list[Any]] = {}
    for field, condition in conditions.items():
        if field == "$and":
            for part in condition:
                for key, values in flat(part).items():
                    found.setdefault(key, []).extend(values)
        else:
            assert not field.startswith("$"), field
            found.setdefault(field, []).append(condition)
    return found


def points(conditions: Sequence[Any]) -> int | None:
    """How many values one of the conditions allows; None: it is a range."""
    counts = []
    for condition in conditions:
        if not isinstance(condition, Mapping):
            counts.append(1)
        elif "$in" in condition:
            counts.append(len(condition["$in"]))
        elif "$all" in condition:
            counts.append(1)
    return min(counts, default=None)


def is_served(query: Query, index: Index) -> bool:
    """Whether the scan begins where the query does and yields its order."""
    fields, scans, position = flat(query.conditions), 1, 0
    while position < len(index) and (count := points(fields.get(index[position][0], ()))) is not None:
        scans *= max(1, count)
        position += 1
    if position == 0 and any(points(values) is not None for values in fields.values()):
        return False  # it would read what others own, or all states
    rest = list(index[position:])
    if not query.sort:
        return position > 0 or bool(rest and rest[0][0] in fields)
    if position and [field for field, _ in query.sort] == [field for field, _ in index[:position]]:
        return True
    wanted = [(field, direction) for field, direction in query.sort if points(fields.get(field, ())) is None]
    if MULTIKEY & {field for field, _ in rest[: len(wanted)]} or scans > MAX_SCANS:
        return False
    backwards = [(field, -direction) for field, direction in rest]
    return rest[: len(wanted)] == wanted or backwards[: len(wanted)] == wanted


def branches(query: Query) -> Iterator[Query]:
    """MongoDB plans each branch of an `$or` by itself, and merges them in the order of the sort."""
    if "$or" not in query.conditions:
        yield query
        return
    rest = {key: value for key, value in query.conditions.items() if key != "$or"}
    for part in query.conditions["$or"]:
        yield replace(query, conditions={**rest, **part})


def assert_served(query: Query) -> None:
    for branch in branches(query):
        assert any(is_served(branch, index) for index in INDEXES[query.collection]), query


# the rule itself


@pytest.mark.parametrize(
    ("conditions", "sort", "index", "expected"),
    [
        ({"a": 1}, [("b", -1)], [("a", 1), ("b", -1)], True),
        ({"a": 1}, [("b", -1)], [("a", 1), ("b", 1)], True),
        ({"a": {"$in": [1, 2]}}, [("b", -1)], [("a", 1), ("b", -1)], True),
        ({"a": {"$in": list(range(201))}}, [("b", -1)], [("a", 1), ("b", -1)], False),
        ({"a": {"$in": [1] * 50}, "c": {"$in": [1] * 5}}, [("b", -1)], [("a", 1), ("c", 1), ("b", -1)], False),
        ({"a": {"$gt": 1}}, [("b", -1)], [("a", 1), ("b", -1)], False),
        ({"a": 1}, [("tags", 1)], [("a", 1), ("tags", 1)], False),
        ({"a": 1, "b": 1}, [("c", 1)], [("b", 1), ("c", 1)], True),
        ({"a": 1}, [], [("b", 1)], False),
        ({"a": 1, "b": {"$gt": 5}}, [("b", 1)], [("b", 1)], False),
    ],
)
def test_the_rule(conditions, sort, index, expected):
    assert is_served(Query("tasks", conditions, sort), index) is expected


# what the adapters ask


class Recorder:
    """Stands for a collection, and returns nothing."""

    def __init__(self, name: str, found: list[Query], answer: Mapping[str, Any] | None = None) -> None:
        self._name, self._found, self._answer = name, found, answer

    def _note(self, conditions: Mapping[str, Any], sort: Index = ()) -> None:
        if conditions or sort:
            self._found.append(Query(self._name, conditions, tuple(sort)))

    def find(self, conditions: Mapping[str, Any], projection: Any = None) -> _Cursor:
        return _Cursor(self, conditions)

    def find_one(self, conditions: Mapping[str, Any], projection: Any = None, sort: Index = ()) -> Any:
        self._note(conditions, sort)
        return self._answer

    def count_documents(self, conditions: Mapping[str, Any], limit: int) -> int:
        self._note(conditions)
        return 0

    def update_one(self, conditions: Mapping[str, Any], _: Any, hint: str = "") -> Any:
        self._note(conditions)
        return type("Result", (), {"matched_count": 1})

    update_many = update_one

    def delete_one(self, conditions: Mapping[str, Any]) -> Any:
        self._note(conditions)
        return type("Result", (), {"deleted_count": 1})

    delete_many = delete_one

    def insert_one(self, document: Any) -> None: ...
    def insert_many(self, documents: Any, ordered: bool) -> None: ...
    def bulk_write(self, requests: Any, ordered: bool) -> None:
        for request in requests:
            self._note(request._filter)


class _Cursor:
    def __init__(self, collection: Recorder, conditions: Mapping[str, Any]) -> None:
        self._collection, self._conditions, self._sort = collection, conditions, ()

    def sort(self, field: Any, direction: int = 1) -> _Cursor:
        self._sort = tuple(field) if isinstance(field, list) else ((field, direction),)
        return self

    def limit(self, _: int) -> _Cursor:
        return self

    def __enter__(self) -> _Cursor:
        return self

    def __exit__(self, *_: object) -> None: ...

    def __iter__(self) -> Iterator[Any]:
        self._collection._note(self._conditions, self._sort)
        return iter(())


@pytest.fixture
def asked(monkeypatch) -> Iterator[tuple[list[Query], Any, Any, Any]]:
    found: list[Query] = []
    database = MongoDatabase("mongodb://host", "poiesis")
    monkeypatch.setattr(database, "_begin_indexes", lambda: None)
    repository = tasks.MongoTaskRepository(database)
    repository._filled.set()
    log, keys = events.MongoEventLog(database, repository), idempotency.MongoIdempotencyStore(database)
    repository._tasks = Recorder("tasks", found, {"_id": "a", "state": "QUEUED", "version": 1})  # type: ignore[assignment]
    log._events = Recorder("events", found, {"_id": 7})  # type: ignore[assignment]
    keys._keys = Recorder("idempotency", found)  # type: ignore[assignment]
    yield found, repository, log, keys
    database.close()


MANY = Access("ada", frozenset(f"g{i}" for i in range(500)))
SOME = Access("ada", frozenset(f"g{i}" for i in range(10)))


def test_every_list_is_served_by_an_index(asked):
    found, repository, _, _ = asked
    for prefix, states, tags, owner, access, after, view in itertools.product(
        ["", "run-"],
        [frozenset(), frozenset({State.RUNNING}), frozenset({State.QUEUED, State.INITIALIZING, State.RUNNING})],
        [(), (("k", "v"),), (("k", "v"), ("l", ""))],
        [None, "bob"],
        [None, Access("ada"), SOME, MANY],
        [None, TaskId("x")],
        [View.MINIMAL, View.BASIC],
    ):
        repository.list(TaskFilter(prefix, states, tags, owner, access), limit=256, after=after, view=view)
    assert len(found) > 500
    for query in found:
        assert query.sort == (("_id", -1),)
        if query.conditions.keys() - {"_id"} != {"name"}:
            assert_served(query)
        else:  # a prefix and nothing else: in the order of ids, for as long as a page takes, or by the index of names and sorted
            assert [("name", 1), ("_id", -1)] in INDEXES["tasks"]


def test_every_other_query_is_served_by_an_index(asked):
    found, repository, log, keys = asked
    task = Task(TaskId("a"), TaskSpec((Executor("i", ("c",)),)), NOW, wake_at=NOW).recorded(NOW)
    repository.save(task, seen=Version(0))
    repository.due(NOW, limit=9)
    repository.postpone([task.id], until=NOW)
    repository.purge(NOW, limit=9)
    repository.marked(9)
    repository.unmark([(task, Version(1))])
    repository._repair_unfinished()
    repository._find(task.id, SOME, None)
    for where in (
        TaskFilter(states=frozenset({State.RUNNING})),
        TaskFilter(access=SOME),
        TaskFilter(tags=(("k", ""),)),
    ):
        repository.count(where, limit=5)
    repository._tasks._answer["unfinished"] = "RUNNING//ada"
    repository.count_unfinished()
    repository.count_unfinished(owner="ada")
    log._missing([(task, 1)])
    log.first_seq()
    log.last_seq()
    log.after(5, limit=9)
    log.after(5, limit=9, access=SOME)
    log.after(5, limit=9, task_id=task.id)
    list(log.ended_between(NOW, NOW + WAIT))
    log.purge(NOW, limit=9)
    keys.reserve("ada", IdempotencyKey("k", "d"), task.id, NOW)
    keys.purge(NOW + KEPT, limit=9)
    assert len(found) >= 18
    for query in found:
        assert_served(query)


def test_a_user_of_very_many_groups_is_served_by_parts_that_are_merged(asked):
    found, repository, _, _ = asked
    repository.list(TaskFilter(states=frozenset(State), access=MANY), limit=9, after=None, view=View.MINIMAL)
    assert len(found) > 1
    asked_for = {token for query in found for token in query.conditions["readers"]["$in"]}
    assert asked_for == set(MANY.tokens)
    assert all(len(q.conditions["readers"]["$in"]) * len(State) <= MAX_SCANS for q in found)


def test_a_done_task_is_in_no_index_of_work_and_no_other_task_in_that_of_ended_ones(asked):
    assert {index.document["name"] for index in tasks.INDEXES if index.document.get("sparse")} == {
        "due",
        "outbox",
        "queued",
        "held",
        "unfinished",
        "ended",
    }
