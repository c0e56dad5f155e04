"""One suite for every `IdempotencyStore`, and what creates of tasks make of it.

1. the first reservation is in force for all, for a day; keys of other owners are others
2. of many requests with one key one task is made, also if the process dies between the reservation and the task
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from poiesis.domain.errors import Conflict
from poiesis.domain.policy import Policy
from poiesis.domain.task import Executor, TaskId, TaskSpec
from poiesis.ports.idempotency import KEPT, IdempotencyKey, Reservation
from poiesis.ports.repository import TaskFilter
from poiesis.services.tasks import TaskService
from poiesis.testing.clock import ManualClock
from poiesis.testing.queue import RecordingQueue
from tests.contract.stores import KINDS, Stores, in_memory, in_mongo, in_sqlite, open_stores

ROOT = Path(__file__).resolve().parents[2]
NOW = datetime(2026, 1, 31, 12, 0, 0, 123457, tzinfo=UTC)
ONE, TWO = TaskId("one"), TaskId("two")
KEY = IdempotencyKey("k", "digest")
SPEC = TaskSpec(executors=(Executor("alpine", ("true",)),))


@pytest.fixture(params=KINDS)
def stores(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stores]:
    if request.param == "memory":
        made = in_memory()
    elif request.param == "sqlite":
        made = in_sqlite(tmp_path / "tasks.sqlite")
    else:
        made = in_mongo(request.getfixturevalue("mongo_url"))
    yield made
    made.close()


@pytest.fixture(params=["sqlite", "mongo"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(request.getfixturevalue("mongo_url")) if request.param == "mongo" else str(tmp_path / "tasks.sqlite")


def service_of(stores: Stores, clock: ManualClock | None = None) -> TaskService:
    return TaskService(stores.tasks, RecordingQueue(), clock or ManualClock(), Policy(), stores.idempotency)


# 1. reservations


def test_the_first_reservation_is_in_force(stores):
    first = stores.idempotency.reserve("ada", KEY, ONE, NOW)
    assert first == Reservation(ONE, "digest", NOW)
    later = NOW + KEPT - timedelta(microseconds=1)
    for key in (KEY, IdempotencyKey("k", "another digest")):
        assert stores.idempotency.reserve("ada", key, TWO, later) == first


def test_keys_of_other_owners_are_others(stores):
    for owner, key in (
        ("ada", "k"),
        (None, "k"),
        ("adak", ""),
        ("", "k"),
        ("ada", "K"),
        ("a", "dak"),
        ("ada", "k" * 5000),
    ):
        made = stores.idempotency.reserve(owner, IdempotencyKey(key, "d"), TaskId(f"{owner}-{key}"), NOW)
        assert made.task_id == f"{owner}-{key}"


def test_a_key_is_free_again_after_a_day(stores):
    stores.idempotency.reserve("ada", KEY, ONE, NOW)
    again = stores.idempotency.reserve("ada", KEY, TWO, NOW + KEPT)
    assert again == Reservation(TWO, "digest", NOW + KEPT)


def test_expired_reservations_are_purged(stores):
    for i in range(5):
        stores.idempotency.reserve("ada", IdempotencyKey(str(i), ""), ONE, NOW + timedelta(seconds=i))
    assert stores.idempotency.purge(NOW + KEPT + timedelta(seconds=2), limit=2) == 2
    assert stores.idempotency.purge(NOW + KEPT + timedelta(seconds=2), limit=2) == 1
    assert stores.idempotency.purge(NOW + KEPT + timedelta(seconds=2), limit=2) == 0
    assert stores.idempotency.reserve("ada", IdempotencyKey("4", ""), TWO, NOW + KEPT).task_id == ONE


def test_of_many_threads_one_reserves(stores):
    def reserve(i: int) -> Reservation:
        return stores.idempotency.reserve("ada", KEY, TaskId(str(i)), NOW + timedelta(microseconds=i))

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(reserve, range(40)))) == 1


# 2. tasks


def test_fifty_requests_at_once_with_one_key_make_one_task(stores):
    service = service_of(stores)
    with ThreadPoolExecutor(50) as pool:
        ids = set(pool.map(lambda _: service.create(SPEC, owner="ada", key=KEY), range(50)))
    assert len(ids) == 1
    assert stores.tasks.count(TaskFilter()) == 1


def test_another_body_is_a_conflict_and_another_key_another_task(stores):
    service = service_of(stores)
    first = service.create(SPEC, owner="ada", key=KEY)
    with pytest.raises(Conflict, match=first):
        service.create(SPEC, owner="ada", key=IdempotencyKey("k", "other"))
    assert service.create(SPEC, owner="ada", key=IdempotencyKey("l", "digest")) != first
    assert service.create(SPEC, owner="bob", key=KEY) != first
    assert stores.tasks.count(TaskFilter()) == 3


def test_a_repeated_request_is_answered_later_without_a_second_task(stores):
    clock = ManualClock()
    service = service_of(stores, clock)
    first = service.create(SPEC, key=KEY)
    clock.advance(KEPT - timedelta(seconds=1))
    assert service.create(SPEC, key=KEY) == first
    clock.advance(timedelta(seconds=1))
    assert service.create(SPEC, key=KEY) != first


CREATE = """
import sys, threading
from datetime import UTC, datetime
from poiesis.domain.policy import Policy
from poiesis.domain.task import *
from poiesis.ports.idempotency import IdempotencyKey
from poiesis.services.tasks import TaskService
from poiesis.testing.queue import RecordingQueue
from tests.contract.stores import open_stores
stores = open_stores(sys.argv[1])
class Clock:
    def now(self):
        return datetime.now(UTC)
def add(task):
    print(task.id, flush=True)
    threading.Event().wait()  # until the process is killed
stores.tasks.add = add
service = TaskService(stores.tasks, RecordingQueue(), Clock(), Policy(), stores.idempotency)
service.create(TaskSpec(executors=(Executor("alpine", ("true",)),)), owner="ada", key=IdempotencyKey("k", "digest"))
"""


def test_a_process_killed_between_reservation_and_task_leaves_one_task_with_the_reserved_id(place):
    with subprocess.Popen([sys.executable, "-c", CREATE, place], stdout=subprocess.PIPE, text=True, cwd=ROOT) as killed:
        assert killed.stdout is not None
        reserved = killed.stdout.readline().strip()
        killed.send_signal(signal.SIGKILL)
    stores = open_stores(place)
    try:
        assert stores.tasks.count(TaskFilter()) == 0 and len(reserved) == 26
        service = TaskService(stores.tasks, RecordingQueue(), Now(), Policy(), stores.idempotency)
        with ThreadPoolExecutor(50) as pool:
            ids = set(pool.map(lambda _: service.create(SPEC, owner="ada", key=KEY), range(50)))
        assert ids == {reserved}
        assert stores.tasks.count(TaskFilter()) == 1
    finally:
        stores.close()


class Now:
    def now(self) -> datetime:
        return datetime.now(UTC)
