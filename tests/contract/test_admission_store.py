"""One suite for every `AdmissionStore`: in memory, SQLite, MongoDB.

1. queued: all queues with waiting tasks, in one order, in pages from any place; whatever their names
2. the first tasks of a queue in the order of ids, as they claim; canceled, admitted and ended ones are gone
3. place: how many are before a task, no more than asked are counted
4. held: admitted tasks until their state is final, in pages; tasks without a claim never
5. notes: compare-and-set, one winner among many writers
6. the cost does not depend on how many wait: only indexes are read
"""

import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from poiesis.domain.decide.admission import admit
from poiesis.domain.fair_share import Candidate, QueueKey
from poiesis.domain.quotas import Amount, Claim
from poiesis.domain.states import Stage, State
from poiesis.domain.task import Executor, Task, TaskId, TaskSpec, Version
from poiesis.ports.admission import AdmissionStore, Note
from poiesis.ports.repository import TaskRepository
from poiesis.repository.mongo.admission import MongoAdmissionStore
from poiesis.repository.mongo.connection import MongoDatabase
from poiesis.repository.mongo.tasks import MongoTaskRepository
from poiesis.repository.sqlite.admission import SqliteAdmissionStore
from poiesis.repository.sqlite.database import SqliteDatabase
from poiesis.repository.sqlite.tasks import SqliteTaskRepository
from poiesis.testing.admission import MemoryAdmissionStore
from poiesis.testing.repository import MemoryTaskRepository

NOW = datetime(2026, 1, 31, 12, 0, 0, 123456, tzinfo=UTC)
USERS = ["", "ann", "ann/b", "ann0", "a%2Fb", "é", "x y", '"', "/", "😀"]
DEFAULT = QueueKey("ann", "default")


@dataclass
class Stores:
    tasks: TaskRepository
    admission: AdmissionStore

    def add(self, number: int, user: str = "ann", service_class: str = "default", **fields) -> Task:
        claim = Claim(user, Amount(1, 1500, 10**9, 1, 0), service_class, ("lab", "clinic"))
        task = Task(
            id=TaskId(f"{number:026d}"),
            spec=TaskSpec((Executor("alpine", ("true",)),)),
            created_at=NOW,
            **{"stage": Stage.ADMIT, "stage_since": NOW, "claim": claim, "owner": user or None, **fields},
        )
        self.tasks.add(task)
        return self.tasks.get(task.id)

    def save(self, task: Task) -> Task:
        assert self.tasks.save(task, seen=task.version)
        return replace(task, version=Version(task.version + 1))


@pytest.fixture(params=["memory", "sqlite", "mongo"])
def stores(request, tmp_path: Path) -> Iterator[Stores]:
    if request.param == "memory":
        memory = MemoryTaskRepository()
        yield Stores(memory, MemoryAdmissionStore(memory))
    elif request.param == "sqlite":
        database = SqliteDatabase(tmp_path / "tasks.sqlite", busy_timeout=timedelta(seconds=60))
        yield Stores(SqliteTaskRepository(database), SqliteAdmissionStore(database))
        database.close()
    else:
        url, _, name = request.getfixturevalue("mongo_url").rpartition("/")
        minute = timedelta(seconds=60)
        mongo = MongoDatabase(url, name, timeout=minute, connect_timeout=minute)
        yield Stores(MongoTaskRepository(mongo), MongoAdmissionStore(mongo))
        mongo.close()


def test_queues_are_those_with_waiting_tasks_in_pages(stores: Stores):
    """1."""
    for number, user in enumerate(USERS):
        stores.add(2 * number, user)
        stores.add(2 * number + 1, user, "urgent/x")
    stores.add(1000, "ann", stage=Stage.PREPARE, wake_at=NOW)
    found: list[QueueKey] = []
    while page := stores.admission.queued((found[-1], None) if found else None, limit=1):
        found += [key for key, _ in page]
    assert sorted(found) == sorted(QueueKey(u, c) for u in USERS for c in ("default", "urgent/x"))
    assert len(found) == len(set(found))


def test_all_queues_are_read_in_one_order_from_any_place(stores: Stores):
    """1."""
    for number, user in enumerate(USERS):
        for task in range(3):
            stores.add(3 * number + task, user)
    whole = stores.admission.queued(None, limit=100)
    assert len(whole) == 3 * len(USERS)
    assert [key for key, _ in whole[::3]] == [key for key, _ in whole[2::3]]
    for index, (key, candidate) in enumerate(whole):
        assert stores.admission.queued((key, candidate.id), limit=4) == whole[index + 1 : index + 5]
        assert stores.admission.queued((key, TaskId("")), limit=3) == whole[index - index % 3 :][:3]
        assert stores.admission.queued((key, None), limit=2) == whole[index - index % 3 + 3 :][:2]


def first_of(stores: Stores, queue: QueueKey, limit: int) -> list[Candidate]:
    return [c for key, c in stores.admission.queued((queue, TaskId("")), limit=limit) if key == queue]


def test_the_first_tasks_of_a_queue_are_as_they_were_queued(stores: Stores):
    """2."""
    tasks = [stores.add(number) for number in (5, 3, 9, 1)]
    stores.add(2, "ann", "urgent")
    stores.add(4, "ann0")
    found = first_of(stores, DEFAULT, 3)
    assert [int(c.id) for c in found] == [1, 3, 5]
    assert tasks[3].claim is not None
    assert found[0] == Candidate(tasks[3].id, 1, tasks[3].claim, NOW)
    stores.save(admit(tasks[3], NOW))
    stores.save(replace(tasks[1], cancel_requested_at=NOW, wake_at=NOW))
    assert [int(c.id) for c in first_of(stores, DEFAULT, 9)] == [5, 9]


def test_an_attempt_that_asks_for_more_is_queued_again(stores: Stores):
    """2."""
    task = stores.save(admit(stores.add(1), NOW))
    assert task.claim is not None
    larger = replace(task.claim, amount=Amount(1, 1500, 2 * 10**9, 1, 0))
    since = NOW + timedelta(seconds=1)
    waiting = replace(task, attempt=2, state=State.RUNNING, stage=Stage.ADMIT, stage_since=since, wake_at=None)
    again = stores.save(replace(waiting, claim=larger))
    assert first_of(stores, DEFAULT, 9) == [Candidate(task.id, 2, larger, since)]
    assert not stores.admission.held(None, limit=9)
    assert not stores.tasks.due(NOW + timedelta(days=1), limit=9)
    assert stores.tasks.get(task.id) == again


def test_the_place_of_a_task_is_counted_up_to_a_bound(stores: Stores):
    """3."""
    tasks = [stores.add(number) for number in range(5)]
    stores.add(100, "ann0")
    places = [stores.admission.place(DEFAULT, task.id, most=3) for task in tasks]
    assert places == [0, 1, 2, 3, 3]


def test_tasks_are_held_from_admission_to_their_final_state(stores: Stores):
    """4."""
    tasks = [stores.save(admit(stores.add(number), NOW)) for number in range(5)]
    stores.add(50)
    stores.add(51, claim=None, stage=Stage.PREPARE, wake_at=NOW)
    found: list[tuple[TaskId, Claim]] = []
    while page := stores.admission.held(found[-1][0] if found else None, limit=2):
        found += page
    assert found == [(task.id, task.claim) for task in tasks]
    stores.save(replace(tasks[0], state=State.SYSTEM_ERROR, stage=Stage.CLEAN, wake_at=NOW))
    stores.save(replace(tasks[1], state=State.CANCELING, wake_at=NOW))
    assert [i for i, _ in stores.admission.held(None, limit=9)] == [task.id for task in tasks[1:]]


def test_a_note_has_one_winner_among_many_writers(stores: Stores):
    """5."""
    store = stores.admission
    assert store.read_note("a") == Note()
    assert store.write_note("a", "one", seen=0)
    assert not store.write_note("a", "two", seen=0)
    assert store.read_note("a") == Note(1, "one")
    assert store.read_note("b") == Note()
    won: list[int] = []

    def write(number: int) -> None:
        for _ in range(3):
            if store.write_note("a", str(number), seen=1):
                won.append(number)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert store.read_note("a") == Note(2, str(won[0]))


def test_sqlite_reads_only_the_indexes_of_such_tasks(tmp_path: Path):
    """6."""
    database = SqliteDatabase(tmp_path / "tasks.sqlite")
    tasks, store = SqliteTaskRepository(database), SqliteAdmissionStore(database)
    Stores(tasks, store).add(1)
    statements: list[str] = []
    with database.reading() as db:
        db.set_trace_callback(statements.append)
    store.queued(None, limit=9), store.queued((DEFAULT, None), limit=9), store.held(None, limit=9)
    store.place(DEFAULT, TaskId("2"), most=9)
    database.close()
    connection = sqlite3.connect(tmp_path / "tasks.sqlite")
    queries = [s for s in statements if s.startswith("SELECT")]
    assert len(queries) == 4
    for query in queries:
        plan = " ".join(str(row[3]) for row in connection.execute(f"EXPLAIN QUERY PLAN {query}"))
        assert "COVERING INDEX tasks_queued" in plan or "COVERING INDEX tasks_held" in plan, plan
        assert "TEMP B-TREE" not in plan
    connection.close()
