"""One suite for every `UsageStore`: in memory, SQLite, MongoDB."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from poiesis.ports.usage import HOUR, Kind, UsageStore, Use
from poiesis.repository.mongo.connection import MongoDatabase
from poiesis.repository.mongo.usage import MongoUsageStore
from poiesis.repository.sqlite.database import SqliteDatabase
from poiesis.repository.sqlite.usage import SqliteUsageStore
from poiesis.testing.usage import MemoryUsageStore

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


@pytest.fixture(params=["memory", "sqlite", "mongo"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[UsageStore]:
    if request.param == "memory":
        yield MemoryUsageStore()
    elif request.param == "sqlite":
        sqlite = SqliteDatabase(tmp_path / "tasks.sqlite", busy_timeout=timedelta(seconds=60))
        yield SqliteUsageStore(sqlite)
        sqlite.close()
    else:
        url, _, name = request.getfixturevalue("mongo_url").rpartition("/")
        minute = timedelta(seconds=60)
        mongo = MongoDatabase(url, name, timeout=minute, connect_timeout=minute)
        yield MongoUsageStore(mongo)
        mongo.close()


def use(hours: int = 0, kind: Kind = Kind.USER, name: str = "ada", owner: str = "ada", **figures: float) -> Use:
    return Use(NOON + hours * HOUR, kind, name, owner, figures or {"tasks": 1.0})


def found(store: UsageStore, kind: Kind = Kind.USER, hours: int = 24, **more: object) -> list[Use]:
    uses = store.between(kind, NOON, NOON + hours * HOUR, **more)  # type: ignore[arg-type]
    return sorted(uses, key=lambda use: (use.hour, use.name, use.owner))


def test_a_new_store_is_empty(store: UsageStore) -> None:
    assert store.rolled_until() is None
    assert found(store) == []


def test_an_hour_is_found_as_stored(store: UsageStore) -> None:
    uses = [
        use(tasks=2.0, cpu_seconds=0.1),
        use(name="", owner=""),
        use(kind=Kind.TAG, name="project=a=b $.é", owner="ada"),
    ]
    store.replace(NOON, uses)
    assert found(store) == [uses[1], uses[0]]
    assert found(store, Kind.TAG) == [uses[2]]
    assert found(store, Kind.GROUP) == []
    assert store.rolled_until() == NOON + HOUR


def test_replacing_an_hour_again_leaves_only_the_new_sums(store: UsageStore) -> None:
    store.replace(NOON, [use(), use(name="bob", owner="bob"), use(kind=Kind.GROUP, name="lab", owner="")])
    store.replace(NOON, [use(tasks=7.0)])
    assert found(store) == [use(tasks=7.0)]
    assert found(store, Kind.GROUP) == []


def test_an_old_hour_does_not_move_the_end_back(store: UsageStore) -> None:
    for hours in (0, 1, 0):
        store.replace(NOON + hours * HOUR, [use(hours)])
    assert store.rolled_until() == NOON + 2 * HOUR
    assert found(store) == [use(0), use(1)]


def test_an_hour_without_tasks_is_done_too(store: UsageStore) -> None:
    store.replace(NOON, [])
    assert store.rolled_until() == NOON + HOUR


def test_a_period_ends_before_its_end(store: UsageStore) -> None:
    for hours in range(4):
        store.replace(NOON + hours * HOUR, [use(hours)])
    uses = store.between(Kind.USER, NOON + HOUR, NOON + 3 * HOUR)
    assert sorted(use.hour for use in uses) == [NOON + HOUR, NOON + 2 * HOUR]


def test_owner_and_names_narrow_it(store: UsageStore) -> None:
    tags = [use(kind=Kind.TAG, name=f"p={n}", owner=o) for n in ("1", "2") for o in ("ada", "bob")]
    store.replace(NOON, tags)
    assert found(store, Kind.TAG, owner="ada") == [tags[0], tags[2]]
    assert found(store, Kind.TAG, names=["p=2"]) == tags[2:]
    assert found(store, Kind.TAG, owner="bob", names=["p=2", "p=3"]) == [tags[3]]
    assert found(store, Kind.TAG, names=[]) == []


def test_many_sums_are_stored(store: UsageStore) -> None:
    uses = [use(name=f"u{i:05}", owner=f"u{i:05}") for i in range(2500)]
    store.replace(NOON, uses)
    assert found(store) == uses
