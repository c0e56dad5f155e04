"""One suite for every `EventLog` with its task repository: in memory, SQLite, MongoDB.

1. each change of a task becomes one event, in order, with what its readers need; a save without a change makes none
2. numbers are dense and grow, also with several writers and relays
3. reading goes on after a number, for everything, one task, or what a user may see
4. relays: any number of them, killed at any point, append every change exactly once
5. purge deletes from the old end, never the newest event
6. ended_between has each end once, in the order of time
7. a task is deleted only when its changes are in the log
"""

from __future__ import annotations

import itertools
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from poiesis.domain.access import Access
from poiesis.domain.naming import new_task_id
from poiesis.domain.states import Stage, State
from poiesis.domain.task import Executor, Outcome, OutputFileLog, Task, TaskId, TaskLog, TaskSpec, Version
from poiesis.ports.events import Event
from tests.contract.stores import KINDS, Stores, in_memory, in_mongo, in_sqlite, open_stores

ROOT = Path(__file__).resolve().parents[2]
NOW = datetime(2026, 1, 31, 12, 0, 0, 123457, tzinfo=UTC)
SECOND = timedelta(seconds=1)
SPEC = TaskSpec(executors=(Executor("alpine", ("true",)),))
_tick = itertools.count()


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(request.getfixturevalue("mongo_url")) if request.param == "mongo" else str(tmp_path / "tasks.sqlite")


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


def added(stores: Stores, **changes) -> Task:
    created_at = NOW + next(_tick) * timedelta(microseconds=1)
    spec = replace(SPEC, tags=changes.pop("tags", {}))
    task = Task(id=new_task_id(created_at), spec=spec, created_at=created_at, **changes)
    stores.tasks.add(task.recorded(created_at))
    return stores.tasks.get(task.id)


def saved(stores: Stores, task: Task, at: datetime = NOW, **changes) -> Task:
    assert stores.tasks.save(replace(task, **changes).recorded(at), seen=task.version)
    return stores.tasks.get(task.id)


def relayed(stores: Stores) -> None:
    while stores.events.relay(100):
        pass


def log_of(stores: Stores, **narrowed) -> list[Event]:
    relayed(stores)
    return list(stores.events.after(0, limit=10_000, **narrowed))


def shown(events) -> list[tuple[State, str | None]]:
    return [(event.state, event.reason) for event in events]


# 1. one event for each change


def test_each_change_of_state_or_reason_is_one_event(stores):
    task = added(stores, owner="ada", groups=("g",), tags={"project": "x"})
    task = saved(stores, task, NOW + SECOND, waiting="NoNode: 0/3 nodes")
    task = saved(stores, task, NOW + 2 * SECOND, waiting="NoNode: 0/4 nodes")  # the same reason
    task = saved(stores, task, NOW + 3 * SECOND, waiting=None, state=State.RUNNING)
    task = saved(stores, task, NOW + 4 * SECOND, nonce="nothing to see")
    failed = Outcome(State.EXECUTOR_ERROR, "OutOfMemory", "the peak was 5 bytes")
    log = TaskLog(outputs=(OutputFileLog("s3://b/o", "/o", 7),), metadata={"executor_0_cpu_seconds": "1.500"})
    saved(stores, task, NOW + 5 * SECOND, state=State.EXECUTOR_ERROR, outcome=failed, log=log)
    events = log_of(stores)
    assert shown(events) == [
        (State.QUEUED, None),
        (State.QUEUED, "NoNode: 0/3 nodes"),
        (State.RUNNING, None),
        (State.EXECUTOR_ERROR, "OutOfMemory: the peak was 5 bytes"),
    ]
    assert [event.seq for event in events] == [1, 2, 3, 4]
    assert [event.n for event in events] == [1, 2, 4, 6]
    assert [event.at for event in events[1:]] == [NOW + SECOND, NOW + 3 * SECOND, NOW + 5 * SECOND]
    assert {(e.task_id, e.owner, e.groups, e.tags["project"]) for e in events} == {(task.id, "ada", ("g",), "x")}
    assert [bool(event.usage) for event in events] == [False, False, False, True]
    assert (events[3].usage["cpu_seconds"], events[3].usage["output_bytes"]) == (1.5, 7.0)
    assert stores.tasks.get(task.id).changes == 4


def test_a_save_that_lost_its_race_makes_no_event(stores):
    task = added(stores)
    saved(stores, task, state=State.RUNNING)
    assert not stores.tasks.save(replace(task, state=State.CANCELING).recorded(NOW), seen=task.version)
    assert [event.state for event in log_of(stores)] == [State.QUEUED, State.RUNNING]


def test_adding_a_task_again_makes_no_second_event(stores):
    task = Task(id=new_task_id(NOW), spec=SPEC, created_at=NOW).recorded(NOW)
    stores.tasks.add(task)
    relayed(stores)
    stores.tasks.add(task)
    assert len(log_of(stores)) == 1


def test_an_event_has_as_many_tags_as_fit(stores):
    added(stores, tags={"small": "1", **{f"large{i}": "x" * 3000 for i in range(5)}})
    (event,) = log_of(stores)
    assert event.tags["small"] == "1" and len(event.tags) == 3


def test_an_event_of_many_small_tags_has_few_of_them(stores):
    """Each takes much more memory than its text."""
    added(stores, tags={f"{i}": "" for i in range(2000)})
    (event,) = log_of(stores)
    assert 100 <= len(event.tags) < 130


def test_the_tag_that_names_webhooks_precedes_shorter_ones(stores):
    added(stores, tags={"poiesis/webhook": "wh_1,wh_2", **{f"{i}": "" for i in range(4000)}})
    (event,) = log_of(stores)
    assert event.tags["poiesis/webhook"] == "wh_1,wh_2"


def test_a_tag_that_does_not_fit_leaves_room_for_others(stores):
    added(stores, tags={"poiesis/webhook": "x" * 9000, "a": "1"})
    (event,) = log_of(stores)
    assert event.tags == {"a": "1"}


# 2. and 3. reading


def test_reading_goes_on_after_a_number(stores):
    tasks = [added(stores).id for _ in range(7)]
    relayed(stores)
    assert (stores.events.first_seq(), stores.events.last_seq()) == (1, 7)
    found, seq = [], 0
    while page := stores.events.after(seq, limit=3):
        found += page
        seq = page[-1].seq
    assert [event.task_id for event in found] == tasks
    assert [event.seq for event in found] == list(range(1, 8))


def test_an_empty_log_has_no_events(stores):
    assert (stores.events.first_seq(), stores.events.last_seq()) == (1, 0)
    assert list(stores.events.after(0, limit=5)) == []
    assert list(stores.events.ended_between(NOW, NOW + SECOND)) == []
    assert stores.events.purge(NOW + SECOND, limit=5) == 0


def test_a_user_reads_only_events_of_tasks_they_may_see(stores):
    ada = added(stores, owner="ada", groups=("g1", "g2"))
    bob = added(stores, owner="bob", groups=("g2",))
    added(stores, owner="eve")
    added(stores)
    saved(stores, ada, NOW + SECOND, state=State.RUNNING)
    expected = {
        Access("ada"): [ada.id, ada.id],
        Access("ada", frozenset({"g1", "g2"})): [ada.id, bob.id, ada.id],
        Access(None, frozenset({"g2"})): [ada.id, bob.id, ada.id],
        Access("g2", frozenset({"ada"})): [],
        Access(None): [],
        Access("zoe", frozenset(f"g{i}" for i in range(3, 600))): [],
    }
    for access, ids in expected.items():
        assert [event.task_id for event in log_of(stores, access=access)] == ids
        own = [task_id for task_id in ids if task_id == ada.id]
        assert [event.task_id for event in log_of(stores, access=access, task_id=ada.id)] == own
    assert [e.task_id for e in stores.events.after(0, limit=2, access=Access(None, frozenset({"g2"})))] == [
        ada.id,
        bob.id,
    ]


def test_one_task_is_read_alone(stores):
    one, two = added(stores), added(stores)
    saved(stores, two, state=State.RUNNING)
    saved(stores, one, state=State.RUNNING)
    relayed(stores)
    first, second = stores.events.after(0, limit=9, task_id=one.id)
    assert (first.state, second.state) == (State.QUEUED, State.RUNNING)
    assert list(stores.events.after(first.seq, limit=9, task_id=one.id)) == [second]


# 4. relays

WRITE = """
import sys, random
from dataclasses import replace
from datetime import UTC, datetime
from poiesis.domain.naming import new_task_id
from poiesis.domain.states import State
from poiesis.domain.task import *
from tests.contract.stores import open_stores
stores = open_stores(sys.argv[1])
for i in range(int(sys.argv[2])):
    now = datetime.now(UTC)
    task = Task(id=new_task_id(now), spec=TaskSpec(executors=()), created_at=now).recorded(now)
    stores.tasks.add(task)
    for version, state in ((1, State.INITIALIZING), (2, State.RUNNING), (3, State.COMPLETE)):
        task = replace(task, state=state, version=Version(version)).recorded(datetime.now(UTC))
        assert stores.tasks.save(task, seen=Version(version))
print("done", flush=True)
"""
RELAY = """
import sys
from tests.contract.stores import open_stores
stores = open_stores(sys.argv[1])
print("ready", flush=True)
while True:
    stores.events.relay(int(sys.argv[2]))
"""


def child(program: str, place: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", program, place, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


@pytest.mark.parametrize("place", ["sqlite", "mongo"], indirect=True)
def test_relays_that_run_at_once_and_are_killed_append_every_change_exactly_once(place):
    """Two relays at any time, one of which is killed and started again every fraction of a second, beside two writers."""
    count, dice = 40, random.Random(5)
    open_stores(place).close()
    writers = [child(WRITE, place, count) for _ in range(2)]
    relays = [child(RELAY, place, batch) for batch in (3, 50)]
    kills = 0
    deadline = time.monotonic() + 120
    while any(writer.poll() is None for writer in writers) or kills < 6:
        assert time.monotonic() < deadline
        victim = dice.randrange(2)
        output = relays[victim].stdout
        assert output is not None and output.readline() == "ready\n"
        time.sleep(dice.uniform(0.05, 0.6))
        kill(relays[victim])
        kills += 1
        relays[victim] = child(RELAY, place, dice.choice([1, 7, 100]))
    for relay in relays:
        kill(relay)
    assert [(writer.communicate()[0], writer.returncode) for writer in writers] == [("done\n", 0)] * 2
    stores = open_stores(place)
    try:
        events = log_of(stores)
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
        in_order = [State.QUEUED, State.INITIALIZING, State.RUNNING, State.COMPLETE]
        by_task: dict[TaskId, list[State]] = {}
        for event in events:
            by_task.setdefault(event.task_id, []).append(event.state)
        assert len(by_task) == 2 * count
        assert all(states == in_order for states in by_task.values())
    finally:
        stores.close()


def test_a_relay_that_comes_second_leaves_no_number_out(mongo_url, monkeypatch):
    """It has read the last number before the first one appended, and has many more changes than that."""
    stores = in_mongo(mongo_url)
    try:
        added(stores)
        relayed(stores)
        for _ in range(33):
            task = added(stores)
            for state in (State.INITIALIZING, State.RUNNING, State.COMPLETE):
                task = saved(stores, task, state=state)
        with monkeypatch.context() as patch:
            patch.setattr(stores.events, "_end", lambda _: 0)
            stores.events.relay(200)
        assert [event.seq for event in log_of(stores)] == list(range(1, 4 * 33 + 2))
    finally:
        stores.close()


def test_what_the_log_still_lacks_is_known_by_its_age(stores):
    assert stores.events.missing_since() is None
    first, second = added(stores), added(stores)
    assert stores.events.missing_since() in (None, first.created_at)  # None: appended by the save
    stores.events.relay(1)
    assert stores.events.missing_since() in (None, second.created_at)
    relayed(stores)
    assert stores.events.missing_since() is None


def test_relays_in_threads_append_every_change_once(stores):
    tasks = [added(stores) for _ in range(30)]
    stop = threading.Event()

    def relay() -> None:
        while stores.events.relay(4) or not stop.is_set():
            pass

    threads = [threading.Thread(target=relay) for _ in range(3)]
    for thread in threads:
        thread.start()
    for task in tasks:
        saved(stores, task, state=State.RUNNING)
    stop.set()
    for thread in threads:
        thread.join(60)
    events = log_of(stores)
    assert Counter((event.task_id, event.state) for event in events) == Counter(
        itertools.product([task.id for task in tasks], [State.QUEUED, State.RUNNING])
    )
    assert [event.seq for event in events] == list(range(1, 61))


def test_a_reader_never_meets_an_event_before_one_that_it_has_read(stores):
    """The next numbers only ever follow the last one, while writers and relays run."""
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            added(stores)
            stores.events.relay(5)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    seq, deadline = 0, time.monotonic() + 60
    while seq < 40 and time.monotonic() < deadline:
        for event in stores.events.after(seq, limit=7):
            assert event.seq == seq + 1
            seq = event.seq
    stop.set()
    for thread in threads:
        thread.join(60)
    assert seq >= 40


# 5. purge


def test_purging_deletes_old_events_in_order_and_keeps_the_newest(stores):
    task = added(stores, owner="ada")
    for i, state in enumerate((State.INITIALIZING, State.RUNNING, State.COMPLETE), 1):
        task = saved(stores, task, NOW + i * 10 * SECOND, state=state)
    relayed(stores)
    assert stores.events.purge(NOW + 15 * SECOND, limit=1) == 1
    assert stores.events.purge(NOW + 15 * SECOND, limit=9) == 1
    assert stores.events.purge(NOW + 15 * SECOND, limit=9) == 0
    assert (stores.events.first_seq(), stores.events.last_seq()) == (3, 4)
    assert [event.seq for event in log_of(stores, access=Access("ada"))] == [3, 4]
    assert stores.events.purge(NOW + 99 * SECOND, limit=9) == 1, "the newest stays"
    other = added(stores)
    assert [(event.seq, event.task_id) for event in log_of(stores)] == [(4, task.id), (5, other.id)]


# 6. ended_between


def test_ends_are_read_by_time_each_once(stores):
    ended = []
    for i in range(7):
        task = added(stores)
        task = saved(stores, task, NOW + SECOND, state=State.RUNNING)
        saved(stores, task, NOW + (10 + i // 2) * SECOND, state=State.COMPLETE)
        ended.append(task.id)
    relayed(stores)
    every = [event.task_id for event in stores.events.ended_between(NOW, NOW + 99 * SECOND)]
    assert sorted(every) == sorted(ended) and len(set(every)) == 7
    found = list(stores.events.ended_between(NOW + 11 * SECOND, NOW + 13 * SECOND))
    assert {event.task_id for event in found} == set(ended[2:6])
    assert [event.at for event in found] == sorted(event.at for event in found)


# 7. deletion


def test_a_task_is_deleted_only_when_its_changes_are_in_the_log(stores):
    task = added(stores)
    task = saved(stores, task, state=State.RUNNING)
    task = saved(stores, task, state=State.COMPLETE, stage=Stage.DONE)
    early = stores.tasks.purge(NOW + 99 * SECOND, limit=1)
    assert [event.state for event in log_of(stores)] == [State.QUEUED, State.RUNNING, State.COMPLETE]
    assert early or stores.tasks.purge(NOW + 99 * SECOND, limit=1)


# history


def test_a_history_keeps_its_first_and_last_changes(stores):
    task = added(stores)
    for i in range(300):
        task = replace(task, waiting=f"Reason{i}: x", version=Version(task.version + 1)).recorded(NOW)
    assert (len(task.history), task.changes) == (200, 301)
    assert [c.reason for c in task.history[:3]] == [None, "Reason0: x", "Reason1: x"]
    assert task.history[-1].reason == "Reason299: x" and task.history[50].reason == "Reason150: x"
    assert stores.tasks.save(replace(task, version=Version(1)), seen=Version(1))
    assert stores.tasks.get(task.id).history == task.history


def test_a_clock_that_is_behind_does_not_reverse_the_history(stores):
    task = added(stores)
    task = saved(stores, task, NOW + 9 * SECOND, state=State.INITIALIZING)
    task = saved(stores, task, NOW, state=State.RUNNING)
    assert [event.state for event in log_of(stores)] == [State.QUEUED, State.INITIALIZING, State.RUNNING]
    assert task.history[-1].at == NOW + 9 * SECOND
