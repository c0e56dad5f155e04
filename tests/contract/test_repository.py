"""One suite for every `TaskRepository`: in memory, SQLite, MongoDB. If a store supports less, its fixture declares it.

 1. add: a new task is version 1; again changes nothing, also after the task moved on; another task cannot take its id
 2. get: views; an unknown id
 3. save: compare-and-set, unknown ids, one winner among many writers for each version
 4. states: only along the table; terminal states never change
 5. list: newest first, exact pages, nothing lost or repeated while tasks arrive
 6. filters: name prefix, states, tags, owner, access, all together, with any characters; count agrees; counts of unfinished tasks
 7. due and postpone
 8. purge: only what is done and ended before a time, oldest end first
 9. contents: exact to the microsecond and the last bit, keys of any text
10. bounds: what cannot be stored is refused, what grew too large is shortened
11. durability: reopened, a task is as it was saved; two instances see each other's writes
12. an unreachable store: RepositoryUnavailable within the timeout; ready; close
"""

import itertools
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from poiesis.domain.access import Access
from poiesis.domain.errors import IllegalTransition, InvalidTask, PoiesisError, RepositoryUnavailable, UnknownTask
from poiesis.domain.naming import new_task_id
from poiesis.domain.quotas import Amount, Claim
from poiesis.domain.states import TERMINAL, TRANSITIONS, Stage, State
from poiesis.domain.states import path as path_of_states
from poiesis.domain.task import (
    Executor,
    ExecutorLog,
    Input,
    Outcome,
    OutputFileLog,
    Resources,
    Task,
    TaskId,
    TaskLog,
    TaskSpec,
    TaskSummary,
    Version,
    View,
)
from poiesis.ports.repository import MAX_PAGE_BYTES, TaskFilter, TaskRepository
from poiesis.repository.mongo.connection import MongoDatabase
from poiesis.repository.mongo.tasks import MongoTaskRepository
from poiesis.repository.sqlite.database import SqliteDatabase
from poiesis.repository.sqlite.tasks import SqliteTaskRepository
from poiesis.testing.repository import MemoryTaskRepository
from tests.unit.repository.strategies import tasks

NOW = datetime(2026, 1, 31, 12, 0, 0, 123457, tzinfo=UTC)
SECOND = timedelta(seconds=1)
EVERYTHING = TaskFilter()
NASTY = ["%", "_", "\\", ".*", "^a$", "a.b", "$set", "$", "'", '"', "a b", "{}", "=", "3:a"]
NASTY += ["é", "e\u0301", "😀", "\x00", "\uffff"]


@dataclass
class Store:
    """A kind of repository: `open` creates another instance on the same data; None if data are lost with the instance."""

    repository: TaskRepository
    open: Callable[[], TaskRepository] | None = None
    bounded: bool = True
    """Whether sizes and characters are limited."""


@pytest.fixture(params=["memory", "sqlite", "mongo"])
def store(request, tmp_path: Path):
    opened: list[TaskRepository] = []

    def opening(make: Callable[[], TaskRepository]) -> Callable[[], TaskRepository]:
        def again() -> TaskRepository:
            opened.append(make())
            return opened[-1]

        return again

    if request.param == "memory":
        made = Store(MemoryTaskRepository(), bounded=False)
    elif request.param == "sqlite":
        sqlite = opening(
            lambda: SqliteTaskRepository(SqliteDatabase(tmp_path / "tasks.sqlite", busy_timeout=timedelta(seconds=60)))
        )
        made = Store(sqlite(), sqlite)
    else:
        url, _, name = request.getfixturevalue("mongo_url").rpartition("/")
        minute = timedelta(seconds=60)
        mongo = opening(lambda: MongoTaskRepository(MongoDatabase(url, name, timeout=minute, connect_timeout=minute)))
        made = Store(mongo(), mongo)
    yield made
    made.repository.close()
    for repository in opened:
        repository.close()


@pytest.fixture
def repository(store: Store) -> TaskRepository:
    return store.repository


_tick = itertools.count()


def a_task(**changes) -> Task:
    """A task newer than all previous ones; `name` and `tags` are set in its spec."""
    created_at = NOW + next(_tick) * timedelta(microseconds=1)
    spec = TaskSpec(
        executors=(Executor(image="alpine", command=("true",)),),
        name=changes.pop("name", None),
        tags=changes.pop("tags", {}),
    )
    defaults = {"id": new_task_id(created_at), "spec": spec, "created_at": created_at, "wake_at": NOW}
    return Task(**{**defaults, **changes})


def added(repository: TaskRepository, **changes) -> Task:
    task = a_task(**changes)
    repository.add(task)
    return repository.get(task.id)


def ids(found) -> list[TaskId]:
    return [task.id for task in found]


def all_pages(repository: TaskRepository, where: TaskFilter = EVERYTHING, limit: int = 3, view: View = View.MINIMAL):
    pages, after = [], None
    while True:
        page = repository.list(where, limit=limit, after=after, view=view)
        pages.append(page.tasks)
        if page.next_after is None:
            return pages
        after = page.next_after


def matching(repository: TaskRepository, **conditions) -> set[TaskId]:
    where = TaskFilter(**conditions)
    found = [task.id for page in all_pages(repository, where) for task in page]
    assert found == sorted(found, reverse=True)
    assert repository.count(where) == len(found) == len(set(found))
    return set(found)


def full_task(**changes) -> Task:
    task = a_task(**changes)
    spec = replace(
        task.spec,
        inputs=(Input(path="/data/a", content="secret content"), Input(path="/data/b", url="s3://bucket/b")),
        resources=Resources(cpu_cores=1.5, backend_parameters={"a.b$c": "1"}),
    )
    log = TaskLog(
        logs=(ExecutorLog(0, NOW, NOW + SECOND, stdout="the stdout", stderr="the stderr"),),
        outputs=(OutputFileLog("s3://bucket/o", "/data/o", 2**63 - 1),),
        metadata={"node.name": "n1"},
        start_time=NOW,
        end_time=NOW + SECOND,
        system_logs=("the system log",),
    )
    return replace(task, spec=spec, log=log, outcome=Outcome(State.COMPLETE), nonce="n", owner="ada")


# 1. add


def test_a_new_task_is_stored_as_version_1(repository):
    task = a_task(version=Version(7))
    repository.add(task)
    assert repository.get(task.id) == replace(task, version=Version(1))


def test_adding_a_task_again_changes_nothing(repository):
    task = full_task()
    repository.add(task)
    repository.add(task)
    assert repository.get(task.id) == replace(task, version=Version(1))
    assert repository.count(EVERYTHING) == 1


def test_adding_a_task_again_after_it_moved_on_changes_nothing(repository):
    task = a_task(tags={"a": "b"})
    repository.add(task)
    assert repository.save(replace(task, state=State.RUNNING, nonce="other"), seen=Version(1))
    moved = repository.get(task.id)
    repository.add(task)
    assert repository.get(task.id) == moved


@pytest.mark.parametrize("change", [{"owner": "eve"}, {"created_at": NOW - SECOND}, {"spec": TaskSpec(executors=())}])
def test_another_task_cannot_use_an_id_again(repository, change):
    task = added(repository, owner="ada")
    with pytest.raises(PoiesisError, match=task.id) as caught:
        repository.add(replace(task, **change))
    assert not caught.value.retryable
    assert repository.get(task.id) == task


def test_of_many_threads_that_add_the_same_task_none_fails(repository):
    task = a_task()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(repository.add, [task] * 8))
    assert repository.count(EVERYTHING) == 1


# 2. get


@pytest.mark.parametrize("view", View)
def test_an_unknown_task_is_unknown(repository, view):
    added(repository)
    with pytest.raises(UnknownTask):
        repository.get(TaskId("0" * 26), view)
    with pytest.raises(UnknownTask):
        repository.summary(TaskId("0" * 26))


@pytest.mark.parametrize("owner", ["ada", "", None])
def test_a_task_that_the_user_may_not_see_is_unknown(repository, owner):
    task = added(repository, owner=owner, groups=("imaging", "x"))
    for other in ("bob", "ad", "ada ", "imaging", "u:ada", None):
        access = Access(other, frozenset({"ada", "imag", "u:ada", "imaging2", ""}))
        for view in View:
            with pytest.raises(UnknownTask):
                repository.get(task.id, view, access=access)
        with pytest.raises(UnknownTask):
            repository.summary(task.id, access=access)
    for allowed in (None, Access("bob", frozenset({"x", "y"})), Access(None, frozenset({"imaging"}))):
        assert repository.get(task.id, access=allowed) == task
        assert repository.summary(task.id, access=allowed) == TaskSummary(task.id, task.state)
    if owner is not None:
        assert repository.get(task.id, access=Access(owner)) == task


def test_full_shows_everything(repository):
    task = full_task()
    repository.add(task)
    assert repository.get(task.id, View.FULL) == replace(task, version=Version(1))
    assert repository.list(EVERYTHING, limit=9, after=None, view=View.FULL).tasks == (
        replace(task, version=Version(1)),
    )


def test_basic_leaves_out_only_contents_tails_and_system_logs(repository):
    task = full_task()
    repository.add(task)
    expected = replace(
        task,
        version=Version(1),
        spec=replace(task.spec, inputs=tuple(replace(item, content=None) for item in task.spec.inputs)),
        log=replace(
            task.log, logs=tuple(replace(item, stdout="", stderr="") for item in task.log.logs), system_logs=()
        ),
    )
    assert repository.get(task.id, View.BASIC) == expected
    assert repository.list(EVERYTHING, limit=9, after=None, view=View.BASIC).tasks == (expected,)


def test_minimal_has_id_and_state(repository):
    task = full_task(state=State.RUNNING)
    repository.add(task)
    (listed,) = repository.list(EVERYTHING, limit=9, after=None, view=View.MINIMAL).tasks
    assert repository.summary(task.id) == listed == TaskSummary(task.id, State.RUNNING)


def test_states_of_many_are_those_of_the_tasks_that_the_user_may_see(repository):
    mine, ours = added(repository, owner="ada"), added(repository, owner="bob", groups=("lab",))
    other = added(repository, owner="eve")
    assert repository.save(replace(ours, state=State.INITIALIZING), seen=ours.version)
    asked = [other.id, mine.id, TaskId("none"), ours.id]
    assert list(repository.states(asked).items()) == [
        (other.id, State.QUEUED),
        (mine.id, State.QUEUED),
        (ours.id, State.INITIALIZING),
    ]
    assert set(repository.states(asked, access=Access("ada", frozenset({"lab"})))) == {mine.id, ours.id}
    assert repository.states([]) == {}


@pytest.mark.parametrize("view", View)
def test_every_view_of_a_list_is_in_the_same_order(repository, view):
    expected = [added(repository).id for _ in range(5)][::-1]
    assert [task.id for page in all_pages(repository, limit=2, view=view) for task in page] == expected


# 3. save


def test_a_save_replaces_the_task_and_counts_the_version(repository):
    task = added(repository, name="old", owner="ada", tags={"k": "old", "same": "1"})
    changed = replace(
        full_task(name="new", tags={"k": "new", "same": "1"}), id=task.id, state=State.RUNNING, owner="bob"
    )
    assert repository.save(replace(changed, version=Version(99)), seen=task.version) is True
    assert repository.get(task.id) == replace(changed, version=Version(2))
    for stale in ({"name_prefix": "old"}, {"owner": "ada"}, {"tags": (("k", "old"),)}, {"states": {State.QUEUED}}):
        assert matching(repository, **stale) == set()
    for fresh in ({"name_prefix": "new"}, {"owner": "bob"}, {"tags": (("k", "new"),)}, {"states": {State.RUNNING}}):
        assert matching(repository, **fresh) == {task.id}


def test_a_save_from_an_old_version_is_refused(repository):
    task = added(repository)
    assert repository.save(replace(task, nonce="first"), seen=task.version)
    assert repository.save(replace(task, nonce="second"), seen=task.version) is False
    assert repository.save(replace(task, nonce="third"), seen=Version(9)) is False
    assert repository.get(task.id) == replace(task, nonce="first", version=Version(2))


def test_an_unknown_task_cannot_be_saved(repository):
    task = a_task()
    with pytest.raises(UnknownTask):
        repository.save(task, seen=Version(0))
    with pytest.raises(UnknownTask):
        repository.get(task.id)


def test_each_version_has_exactly_one_winner_among_many_writers(store):
    repositories = [store.repository, *([store.open()] if store.open else [])]
    writers, rounds = 8, 12
    task = added(store.repository)
    barrier = threading.Barrier(writers)

    def write(writer: int) -> list[int]:
        repository = repositories[writer % len(repositories)]
        won = []
        for version in range(1, rounds + 1):
            barrier.wait()
            if repository.save(replace(task, nonce=f"{writer}"), seen=Version(version)):
                won.append(version)
                assert repository.get(task.id).nonce == f"{writer}"
            barrier.wait()
        return won

    with ThreadPoolExecutor(writers) as pool:
        wins = Counter(version for won in pool.map(write, range(writers)) for version in won)
    assert wins == dict.fromkeys(range(1, rounds + 1), 1)
    assert store.repository.get(task.id).version == rounds + 1


def test_no_increment_is_lost_when_writers_read_again_after_a_lost_race(repository):
    task = added(repository, attempt=1)

    def increment() -> None:
        while True:
            seen = repository.get(task.id)
            if repository.save(replace(seen, attempt=seen.attempt + 1), seen=seen.version):
                return

    with ThreadPoolExecutor(6) as pool:
        for done in [pool.submit(increment) for _ in range(24)]:
            done.result()
    assert repository.get(task.id).attempt == 25


# 4. states


@pytest.mark.parametrize("seen", sorted({*TRANSITIONS, *TERMINAL}))
def test_states_move_only_along_the_table(repository, seen):
    for to in State:
        task = added(repository, state=seen)
        try:
            path_of_states(seen, to)
        except IllegalTransition:
            with pytest.raises(IllegalTransition):
                repository.save(replace(task, state=to, nonce="changed"), seen=task.version)
            assert repository.get(task.id) == task
        else:
            assert repository.save(replace(task, state=to, nonce="changed"), seen=task.version)
            assert repository.get(task.id).state is to


@pytest.mark.parametrize("end", sorted(TERMINAL))
def test_a_terminal_task_may_be_saved_in_its_state_and_in_no_other(repository, end):
    task = added(repository, state=end, stage=Stage.CLEAN)
    assert repository.save(replace(task, stage=Stage.DONE), seen=task.version)
    for other in set(State) - {end}:
        with pytest.raises(IllegalTransition):
            repository.save(replace(task, state=other), seen=Version(2))
    assert repository.get(task.id) == replace(task, stage=Stage.DONE, version=Version(2))


def test_a_lost_race_is_reported_before_an_illegal_move(repository):
    task = added(repository, state=State.RUNNING)
    assert repository.save(replace(task, state=State.COMPLETE), seen=task.version)
    assert repository.save(replace(task, state=State.CANCELING), seen=task.version) is False


def test_only_one_of_two_racing_ends_is_saved(repository):
    for _ in range(5):
        task = added(repository, state=State.RUNNING)
        ends = [State.COMPLETE, State.EXECUTOR_ERROR, State.SYSTEM_ERROR, State.CANCELING]
        barrier = threading.Barrier(len(ends))

        def end(state: State, task: Task = task, barrier: threading.Barrier = barrier) -> bool:
            barrier.wait()
            return repository.save(replace(task, state=state), seen=task.version)

        with ThreadPoolExecutor(len(ends)) as pool:
            won = list(pool.map(end, ends))
        assert sum(won) == 1
        assert repository.get(task.id).state is ends[won.index(True)]


# 5. list


def test_an_empty_store_has_one_empty_page(repository):
    page = repository.list(EVERYTHING, limit=5, after=None, view=View.FULL)
    assert (page.tasks, page.next_after) == ((), None)


@pytest.mark.parametrize(("total", "limit", "sizes"), [(7, 3, [3, 3, 1]), (6, 3, [3, 3]), (3, 3, [3]), (2, 1, [1, 1])])
def test_pages_are_exact_and_newest_first(repository, total, limit, sizes):
    tasks = [a_task() for _ in range(total)]
    for task in random.Random(5).sample(tasks, total):
        repository.add(task)
    pages = all_pages(repository, limit=limit)
    assert [len(page) for page in pages] == sizes
    assert [task.id for page in pages for task in page] == ids(reversed(tasks))


def test_a_page_continues_after_the_id_of_a_missing_task(repository):
    older, newer = added(repository), added(repository)
    between = TaskId(older.id + "0")
    assert ids(repository.list(EVERYTHING, limit=9, after=between, view=View.MINIMAL).tasks) == [older.id]
    assert ids(repository.list(EVERYTHING, limit=9, after=newer.id, view=View.MINIMAL).tasks) == [older.id]
    assert ids(repository.list(EVERYTHING, limit=9, after=TaskId("~"), view=View.MINIMAL).tasks) == [newer.id, older.id]


def test_nothing_is_lost_or_repeated_while_tasks_arrive_and_change(repository):
    before = [added(repository) for _ in range(9)]
    found: list[TaskId] = []
    after = None
    for _ in range(20):
        page = repository.list(EVERYTHING, limit=2, after=after, view=View.MINIMAL)
        found += ids(page.tasks)
        after = page.next_after
        added(repository)
        task = before[len(found) % len(before)]
        assert repository.save(replace(task, state=State.RUNNING), seen=repository.get(task.id).version)
        if after is None:
            break
    assert found == ids(reversed(before))


# 6. filters


def test_a_name_prefix_is_taken_literally(repository):
    named = {name: added(repository, name=name + "x").id for name in NASTY}
    added(repository)
    added(repository, name="")
    for prefix, task_id in named.items():
        expected = {named[name] for name in NASTY if (name + "x").startswith(prefix)}
        assert task_id in expected
        assert matching(repository, name_prefix=prefix) == expected, prefix
    assert len(matching(repository, name_prefix="")) == len(NASTY) + 2


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        ("ab", {"ab", "abc", "ab%", "ab_"}),
        ("AB", {"AB"}),
        ("ab_", {"ab_"}),
        ("ab%", {"ab%"}),
        ("b", {"b"}),
        ("abcd", set()),
        ("\ud7ff", {"\ud7ff1"}),
        ("\U0010ffff", {"\U0010ffff1"}),
        ("a\U0010ffff", {"a\U0010ffff"}),
    ],
)
def test_a_name_prefix_is_anchored_and_exact_in_case(repository, prefix, expected):
    names = ["ab", "abc", "ab%", "ab_", "AB", "b", "xab", "\ud7ff1", "\ue0001", "\U0010ffff1", "a\U0010ffff"]
    named = {name: added(repository, name=name).id for name in names}
    assert matching(repository, name_prefix=prefix) == {named[name] for name in expected}


def test_states_narrow_a_list_to_any_of_them(repository):
    tasks = {state: {added(repository, state=state).id for _ in range(2)} for state in State}
    for state in State:
        assert matching(repository, states=frozenset({state})) == tasks[state]
    some = frozenset({State.RUNNING, State.COMPLETE, State.CANCELED})
    assert matching(repository, states=some) == set().union(*(tasks[state] for state in some))
    assert matching(repository, states=frozenset(State)) == set().union(*tasks.values())


def test_tags_match_by_key_and_value_and_an_empty_value_matches_any(repository):
    one = added(repository, tags={"project": "x", "run": "1"}).id
    two = added(repository, tags={"project": "x", "run": "2"}).id
    empty = added(repository, tags={"project": ""}).id
    swapped = added(repository, tags={"x": "project", "1": "run"}).id
    added(repository)
    assert matching(repository, tags=(("project", "x"),)) == {one, two}
    assert matching(repository, tags=(("project", ""),)) == {one, two, empty}
    assert matching(repository, tags=(("project", "x"), ("run", "1"))) == {one}
    assert matching(repository, tags=(("run", "2"), ("project", ""))) == {two}
    assert matching(repository, tags=(("project", "1"), ("run", "x"))) == set()
    assert matching(repository, tags=(("project", "x"), ("project", "x"))) == {one, two}
    assert matching(repository, tags=(("run", "1"), ("run", "2"))) == set()
    assert matching(repository, tags=(("x", "project"),)) == {swapped}
    assert matching(repository, tags=(("proj", ""),)) == set()
    assert matching(repository, tags=(("project", "X"),)) == set()


def test_tags_may_contain_any_text(repository):
    long = ["k" * 5000, "k" * 5000 + "l", "k" * 128, "k" * 129]
    texts = [*NASTY, "a", "a=b", "a.b.c", *long]
    tagged = {key: added(repository, tags={key: texts[-i]}).id for i, key in enumerate(texts)}
    for i, key in enumerate(texts):
        assert matching(repository, tags=((key, ""),)) == {tagged[key]}, key
        assert matching(repository, tags=((key, texts[-i]),)) == {tagged[key]}, key
        assert matching(repository, tags=((key, texts[-i] + "!"),)) == set(), key


def test_an_owner_sees_only_their_own_tasks(repository):
    ada, bob = added(repository, owner="ada").id, added(repository, owner="bob").id
    unowned = added(repository).id
    assert matching(repository, owner="ada") == {ada}
    assert matching(repository, owner="ad") == set()
    assert matching(repository, owner="") == set()
    assert matching(repository) == {ada, bob, unowned}


def test_members_of_a_group_see_its_tasks(repository):
    ada = added(repository, owner="ada", groups=("g1", "g2")).id
    bob = added(repository, owner="bob", groups=("g2",), state=State.RUNNING).id
    added(repository, owner="eve", groups=())
    added(repository)
    for states in (frozenset(), frozenset({State.QUEUED, State.RUNNING})):
        assert matching(repository, states=states, access=Access("ada")) == {ada}
        assert matching(repository, states=states, access=Access("ada", frozenset({"g1", "g2"}))) == {ada, bob}
        assert matching(repository, states=states, access=Access(None, frozenset({"g2"}))) == {ada, bob}
        assert matching(repository, states=states, access=Access("g2", frozenset({"ada", "g"}))) == set()
        assert matching(repository, states=states, access=Access(None)) == set()
        assert matching(repository, states=states, owner="bob", access=Access("ada", frozenset({"g2"}))) == {bob}
        assert matching(repository, states=states, owner="bob", access=Access("ada", frozenset({"g1"}))) == set()
    assert matching(repository, states=frozenset({State.RUNNING}), access=Access("x", frozenset({"g2"}))) == {bob}


def test_a_saved_task_is_listed_by_its_new_state_for_its_readers(repository):
    task = added(repository, owner="ada", groups=("g",))
    assert repository.save(replace(task, state=State.RUNNING), seen=task.version)
    for access in (Access("ada"), Access("bob", frozenset({"g"}))):
        assert matching(repository, states=frozenset({State.RUNNING}), access=access) == {task.id}
        assert matching(repository, states=frozenset({State.QUEUED}), access=access) == set()


def test_a_user_of_hundreds_of_groups_sees_all_their_tasks(repository):
    groups = [f"g{i:03}" for i in range(300)]
    found = [added(repository, owner="bob", groups=(groups[i], groups[-i - 1])).id for i in range(0, 300, 20)]
    for states in (frozenset(), frozenset({State.QUEUED, State.RUNNING, State.COMPLETE})):
        where = TaskFilter(states=states, access=Access("ada", frozenset(groups)))
        pages = all_pages(repository, where, limit=7)
        assert [task.id for page in pages for task in page] == found[::-1]
        assert repository.count(where) == len(found)


def test_no_text_in_a_tag_or_a_group_is_taken_for_another_one(repository):
    """Also where a store looks for them in the text of a list, as for those that most tasks have."""
    for _ in range(3):
        added(repository, owner="eve", groups=("x",), tags={"p": "x", "q": "1"})
    texts = ["x", 'y"x', '"x', 'y,"g:x', 'y"g:x', ',"1:p=x', '"1:p=x', "x\\", '\\"1:p=x', '["1:p=x', "x]", "x,"]
    groups = {"x", *(f"g{i}" for i in range(1200))}
    for n, text in enumerate(texts):
        task = added(repository, owner=f"u{n}", groups=(text,), tags={"p": text, "own": str(n), "q": "1"})
        by_user = TaskFilter(tags=(("p", "x"), ("q", "1")), access=Access(f"u{n}"))
        own = (("own", str(n)), ("q", "1"))
        by_group = [TaskFilter(tags=own, access=Access(None, frozenset(g))) for g in ({"x"}, groups)]
        for where in (by_user, *by_group):
            found = [found.id for page in all_pages(repository, where) for found in page]
            assert found == ([task.id] if text == "x" else []), (where.tags, text)


def test_all_conditions_hold_at_once(repository):
    dice = random.Random(11)
    tasks = [
        added(
            repository,
            name=dice.choice(["run-1", "run-2", "other", None]),
            state=dice.choice([State.QUEUED, State.RUNNING, State.COMPLETE]),
            owner=dice.choice(["ada", "bob", None]),
            groups=dice.choice([(), ("g1",), ("g1", "g2"), ("g3",)]),
            tags=dice.choice([{}, {"p": "x"}, {"p": "y", "q": ""}, {"p": "x", "q": "1"}]),
        )
        for _ in range(40)
    ]
    for prefix, states, tags, owner, access in itertools.product(
        ["", "run-", "run-1"],
        [frozenset(), frozenset({State.RUNNING}), frozenset({State.QUEUED, State.COMPLETE})],
        [(), (("p", "x"),), (("p", ""), ("q", ""))],
        [None, "ada"],
        [None, Access("ada"), Access("bob", frozenset({"g1", "g2"})), Access(None, frozenset({"g3"}))],
    ):
        where = TaskFilter(prefix, states, tags, owner, access)
        expected = [
            task.id
            for task in reversed(tasks)
            if (task.spec.name or "").startswith(prefix)
            and (not states or task.state in states)
            and all(k in task.spec.tags and v in ("", task.spec.tags[k]) for k, v in tags)
            and owner in (None, task.owner)
            and (access is None or access.allows(task.owner, task.groups))
        ]
        found = [task.id for page in all_pages(repository, where, limit=7) for task in page]
        assert found == expected, where
        assert repository.count(where) == len(expected)


def test_a_list_is_bounded_by_the_time_of_creation(repository):
    made = [added(repository) for _ in range(5)]
    for where, expected in (
        (TaskFilter(created_from=made[1].created_at), made[1:]),
        (TaskFilter(created_to=made[3].created_at), made[:3]),
        (TaskFilter(created_from=made[1].created_at, created_to=made[3].created_at), made[1:3]),
        (TaskFilter(created_from=made[4].created_at + SECOND), []),
    ):
        for oldest_first in (False, True):
            pages = all_pages(repository, replace(where, oldest_first=oldest_first), limit=1)
            assert [t.id for page in pages for t in page] == [
                t.id for t in (expected if oldest_first else expected[::-1])
            ], where
        assert repository.count(where) == len(expected)


@pytest.mark.parametrize(
    "narrowed",
    [
        {},
        {"states": frozenset({State.QUEUED, State.RUNNING})},
        {"access": Access("ada", frozenset({"lab"}))},
        {"tags": (("k", "v"),)},
        {"name_prefix": "n"},
    ],
)
def test_a_list_may_begin_with_the_oldest(repository, narrowed):
    states = (State.QUEUED, State.RUNNING)
    made = [
        added(repository, owner="ada", groups=("lab",), state=states[i % 2], tags={"k": "v"}, name=f"n{9 - i}")
        for i in range(7)
    ]
    where = TaskFilter(oldest_first=True, **narrowed)
    for limit in (1, 3, 50):
        found = [task.id for page in all_pages(repository, where, limit) for task in page]
        assert found == [task.id for task in made]


def test_a_count_stops_at_its_limit(repository):
    for _ in range(5):
        added(repository, owner="ada")
    for where in (EVERYTHING, TaskFilter(access=Access("ada")), TaskFilter(states=frozenset({State.QUEUED}))):
        assert [repository.count(where, limit=limit) for limit in (1, 4, 5, 6)] == [1, 4, 5, 5]


def test_unfinished_tasks_are_counted_by_state_and_reason(repository):
    claim = Claim("ada", Amount(1), "default")
    waits = "NodesBusy: 0/3 nodes are available: 3 Insufficient memory"
    for changes in (
        {"owner": "ada", "stage": Stage.ADMIT, "claim": claim},
        {"owner": "ada", "stage": Stage.ADMIT, "claim": claim, "cancel_requested_at": NOW, "state": State.CANCELING},
        {"owner": "ada", "state": State.INITIALIZING, "waiting": waits},
        {"owner": "bob", "state": State.INITIALIZING, "waiting": waits},
        {"owner": "a/b", "state": State.INITIALIZING, "waiting": "an unusual / text"},
        {"owner": "ada/", "state": State.RUNNING},
        {"owner": None, "state": State.RUNNING},
        {"owner": "ada", "state": State.COMPLETE},
    ):
        added(repository, **changes)
    busy, waiting, running = (State.INITIALIZING, "NodesBusy"), (State.QUEUED, "Queued"), (State.RUNNING, "")
    other, canceling = (State.INITIALIZING, "Other"), (State.CANCELING, "")
    assert repository.count_unfinished() == {waiting: 1, canceling: 1, busy: 2, other: 1, running: 2}
    assert repository.count_unfinished(limit=1) == {waiting: 1, canceling: 1, busy: 1, other: 1, running: 1}
    assert repository.count_unfinished(owner="ada") == {waiting: 1, canceling: 1, busy: 1}
    assert repository.count_unfinished(owner="a/b") == {other: 1}
    assert repository.count_unfinished(owner="ad") == {}


def test_a_task_is_counted_once_where_it_is_until_it_has_ended(repository):
    task = added(repository, owner="ada")
    seen = [repository.count_unfinished(owner="ada")]
    for changes in ({"waiting": "NoNode: none"}, {"waiting": None, "state": State.RUNNING}, {"state": State.COMPLETE}):
        assert repository.save(replace(task, **changes), seen=task.version)
        task = repository.get(task.id)
        seen.append(repository.count_unfinished(owner="ada"))
    groups = [(State.QUEUED, ""), (State.QUEUED, "NoNode"), (State.RUNNING, "")]
    assert seen == [*({group: 1} for group in groups), {}]


# 7. due and postpone


def test_due_tasks_come_longest_overdue_first(repository):
    late = [added(repository, wake_at=NOW - i * SECOND).id for i in (2, 5, 1, 4, 3)]
    added(repository, wake_at=NOW + timedelta(microseconds=1))
    added(repository, wake_at=None)
    in_order = [late[1], late[3], late[4], late[0], late[2]]
    assert [task_id for task_id, _ in repository.due(NOW, limit=10)] == in_order
    assert [task_id for task_id, _ in repository.due(NOW, limit=2)] == in_order[:2]
    assert [task_id for task_id, _ in repository.due(NOW - 5 * SECOND, limit=10)] == in_order[:1]
    assert repository.due(NOW - 6 * SECOND, limit=10) == []


def test_due_reports_the_stage_to_act_on(repository):
    for stage in Stage:
        added(repository, stage=stage, wake_at=NOW)
    assert Counter(stage for _, stage in repository.due(NOW, limit=20)) == Counter(set(Stage) - {Stage.DONE})


def test_a_cancel_request_is_due_at_the_finish(repository):
    task = added(repository, stage=Stage.RUN, cancel_requested_at=NOW)
    assert repository.due(NOW, limit=5) == [(task.id, Stage.FINISH)]


def test_a_task_that_becomes_done_is_not_due(repository):
    task = added(repository, state=State.COMPLETE, stage=Stage.CLEAN)
    assert repository.save(replace(task, stage=Stage.DONE), seen=task.version)
    assert repository.due(NOW, limit=5) == []
    assert repository.get(task.id).wake_at == NOW


def test_postponing_moves_the_wake_up_and_nothing_else(repository):
    task = added(repository, wake_at=NOW)
    until = NOW + timedelta(microseconds=1)
    repository.postpone([task.id], until=until)
    assert repository.get(task.id) == replace(task, wake_at=until)
    assert repository.due(NOW, limit=5) == []
    assert repository.due(until, limit=5) == [(task.id, Stage.PREPARE)]
    assert repository.save(replace(task, nonce="n"), seen=task.version), "no new version"


def test_postponing_never_brings_a_wake_up_forward(repository):
    task = added(repository, wake_at=NOW)
    repository.postpone([task.id], until=NOW - SECOND)
    assert repository.get(task.id) == task


@pytest.mark.parametrize("task", [{"stage": Stage.DONE, "state": State.COMPLETE}, {"wake_at": None}])
def test_a_task_without_a_wake_up_is_not_postponed(repository, task):
    stored = added(repository, **task)
    repository.postpone([stored.id], until=NOW + SECOND)
    assert repository.get(stored.id) == stored


def test_postponing_an_unknown_task_does_nothing(repository):
    repository.postpone([TaskId("0" * 26)], until=NOW)
    assert repository.count(EVERYTHING) == 0


# 8. purge


def ended(end: datetime, **changes) -> dict[str, object]:
    return {"state": State.COMPLETE, "stage": Stage.DONE, "log": TaskLog(end_time=end), **changes}


def test_only_a_done_task_is_purged(repository):
    for stage in set(Stage) - {Stage.DONE}:
        task = added(repository, **ended(NOW, stage=stage))
        assert repository.purge(NOW + 9 * SECOND, limit=9) == 0
        assert repository.get(task.id) == task


def test_tasks_are_purged_by_their_ends_whenever_they_were_created(repository):
    long_one = added(repository, **ended(NOW + 5 * SECOND))
    running = added(repository, state=State.RUNNING)
    short = added(repository, **ended(NOW + SECOND))
    last = added(repository, **ended(NOW + 9 * SECOND))
    assert repository.purge(NOW + SECOND, limit=9) == 0
    assert repository.purge(NOW + 6 * SECOND, limit=1) == 1
    assert matching(repository) == {long_one.id, running.id, last.id}, "the first end goes first"
    assert repository.purge(NOW + 6 * SECOND, limit=9) == 1
    assert repository.purge(NOW + 6 * SECOND, limit=9) == 0
    assert matching(repository) == {running.id, last.id} == matching(repository) - {short.id}


def test_a_task_is_purged_by_the_end_that_its_last_save_gave_it(repository):
    task = added(repository)
    for changes in ({"state": State.RUNNING}, ended(NOW + 5 * SECOND, stage=Stage.CLEAN), {"stage": Stage.DONE}):
        task = replace(task, **changes)
        assert repository.save(task, seen=task.version)
        task = repository.get(task.id)
    assert repository.purge(NOW + 5 * SECOND, limit=9) == 0
    assert repository.purge(NOW + 6 * SECOND, limit=9) == 1


def test_a_purged_task_leaves_nothing(repository):
    kept = added(repository, tags={"k": "v"}, name="n", owner="ada", groups=("g",))
    gone = added(repository, tags={"k": "v"}, name="n", owner="ada", groups=("g",), **ended(NOW))
    assert repository.purge(NOW + SECOND, limit=9) == 1
    assert repository.purge(NOW + SECOND, limit=9) == 0
    with pytest.raises(UnknownTask):
        repository.get(gone.id)
    for where in (
        {},
        {"tags": (("k", "v"),)},
        {"name_prefix": "n"},
        {"owner": "ada"},
        {"access": Access("ada", frozenset({"g"}))},
    ):
        assert matching(repository, **where) == {kept.id}


# 9. contents


def test_a_task_is_read_exactly_as_stored(store):
    """For any text, time and number; each example is one task in the same store."""
    numbers = itertools.count()

    @settings(max_examples=60, suppress_health_check=list(HealthCheck))
    @given(tasks(ids=st.builds(lambda: f"id-{next(numbers)}")))
    def check(task: Task) -> None:
        store.repository.add(task)
        assert store.repository.get(task.id) == replace(task, version=Version(1))
        assert store.repository.save(task, seen=Version(1))
        assert store.repository.get(task.id) == replace(task, version=Version(2))

    check()


# 10. bounds


def test_a_log_that_grew_too_large_is_shortened_so_that_the_task_can_end(store):
    if not store.bounded:
        pytest.skip("this store accepts any size")
    task = added(store.repository, state=State.RUNNING)
    log = TaskLog(
        logs=tuple(ExecutorLog(0, stdout="ü" * 400_000 + "end", stderr="x" * 800_000 + "end") for _ in range(20)),
        outputs=tuple(OutputFileLog(f"s3://bucket/{i}", f"/data/{i}", i) for i in range(300_000)),
        system_logs=tuple(f"line {i} " + "y" * 1000 for i in range(10_000)),
    )
    assert store.repository.save(replace(task, state=State.COMPLETE, log=log), seen=task.version)
    stored = store.repository.get(task.id)
    assert stored.state is State.COMPLETE
    assert all(e.stdout.endswith("end") and e.stderr.endswith("end") for e in stored.log.logs)
    assert len(stored.log.logs) == 20
    assert 0 < len(stored.log.outputs) < 300_000
    assert stored.log.outputs == log.outputs[: len(stored.log.outputs)]
    assert f"{300_000 - len(stored.log.outputs)} output files" in stored.log.system_logs[-1]
    assert stored.log.system_logs[-2] == log.system_logs[-1]
    assert store.repository.save(replace(stored, stage=Stage.DONE), seen=stored.version), "and it can be saved again"


def test_a_request_that_is_too_large_is_refused(store):
    if not store.bounded:
        pytest.skip("this store accepts any size")
    task = a_task()
    large = replace(task, spec=replace(task.spec, inputs=(Input("/a", content="x" * 16_000_000),)))
    with pytest.raises(InvalidTask, match="too large"):
        store.repository.add(large)
    assert store.repository.count(EVERYTHING) == 0


def test_a_page_ends_where_its_documents_are_large(store):
    if not store.bounded:
        pytest.skip("this store accepts any size")
    for _ in range(5):
        task = a_task()
        inputs = (Input("/a", content="x" * (MAX_PAGE_BYTES * 2 // 3)),)
        store.repository.add(replace(task, spec=replace(task.spec, inputs=inputs)))

    assert [len(page) for page in all_pages(store.repository, limit=10, view=View.FULL)] == [2, 2, 1]
    assert [len(page) for page in all_pages(store.repository, limit=10, view=View.BASIC)] == [5]


@pytest.mark.parametrize("changes", [{"name": "\ud800"}, {"tags": {"\udfff": ""}}, {"nonce": "\ud800"}])
def test_text_that_is_not_unicode_is_refused(store, changes):
    if not store.bounded:
        pytest.skip("this store accepts any text")
    with pytest.raises(InvalidTask, match="surrogate"):
        store.repository.add(a_task(**changes))
    assert store.repository.count(EVERYTHING) == 0


# 11. durability


def reopened(store: Store) -> TaskRepository:
    if store.open is None:
        pytest.skip("this store loses everything with its instance")
    store.repository.close()
    return store.open()


def test_a_reopened_store_has_every_task_as_saved(store):
    first = full_task(tags={"k": "v"})
    store.repository.add(first)
    second = added(store.repository)
    assert store.repository.save(replace(second, state=State.COMPLETE, stage=Stage.DONE), seen=second.version)
    store.repository.postpone([first.id], until=NOW + SECOND)
    repository = reopened(store)
    assert repository.get(first.id) == replace(first, wake_at=NOW + SECOND, version=Version(1))
    assert repository.get(second.id).stage is Stage.DONE
    assert matching(repository, tags=(("k", "v"),)) == {first.id}


def test_two_instances_see_each_others_writes_at_once(store):
    if store.open is None:
        pytest.skip("this store belongs to one instance")
    one, other = store.repository, store.open()
    task = added(one)
    for version in range(1, 10):
        writer, reader = (one, other) if version % 2 else (other, one)
        assert reader.get(task.id).version == version
        assert writer.save(replace(task, nonce=str(version)), seen=Version(version))
        assert reader.save(task, seen=Version(version)) is False


# 12. away


def every_call(repository: TaskRepository) -> dict[str, Callable[[], object]]:
    task = a_task()
    return {
        "add": lambda: repository.add(task),
        "get": lambda: repository.get(task.id),
        "summary": lambda: repository.summary(task.id),
        "save": lambda: repository.save(task, seen=Version(1)),
        "list": lambda: repository.list(EVERYTHING, limit=1, after=None, view=View.MINIMAL),
        "due": lambda: repository.due(NOW, limit=1),
        "postpone": lambda: repository.postpone([task.id], until=NOW),
        "count": lambda: repository.count(EVERYTHING),
        "purge": lambda: repository.purge(NOW, limit=1),
        "ready": lambda: repository.ready(),
    }


CALLS = tuple(every_call(MemoryTaskRepository()))


def test_a_responsive_store_is_ready(repository):
    repository.ready()


@pytest.mark.parametrize("call", CALLS)
def test_a_closed_store_is_unavailable(repository, call):
    repository.close()
    repository.close()
    with pytest.raises(RepositoryUnavailable):
        every_call(repository)[call]()


def unreachable_mongo(tmp_path: Path, port: int) -> TaskRepository:
    return MongoTaskRepository(
        MongoDatabase(
            f"mongodb://user:hunter2@127.0.0.1:{port}",
            "poiesis",
            timeout=timedelta(seconds=0.4),
            server_selection_timeout=timedelta(seconds=0.3),
            connect_timeout=timedelta(seconds=0.3),
        )
    )


def unavailable_memory(tmp_path: Path, port: int) -> TaskRepository:
    repository = MemoryTaskRepository()
    repository.down = True
    return repository


def deleted_sqlite(tmp_path: Path, port: int) -> TaskRepository:
    repository = SqliteTaskRepository(SqliteDatabase(tmp_path / "tasks.sqlite", busy_timeout=timedelta(seconds=0.3)))
    repository.close()
    again = SqliteTaskRepository(SqliteDatabase(tmp_path / "tasks.sqlite", busy_timeout=timedelta(seconds=0.3)))
    for db in again._database._pool:
        db.close()
    again._database._pool.clear()
    for file in tmp_path.glob("tasks.sqlite*"):
        file.unlink()
    return again


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("away", [unavailable_memory, deleted_sqlite, unreachable_mongo])
def test_an_unreachable_store_is_unavailable_within_the_timeout(away, call, tmp_path, free_port):
    begun = time.monotonic()
    repository = away(tmp_path, free_port)
    assert time.monotonic() - begun < 2, "creating an instance does not connect"
    begun = time.monotonic()
    with pytest.raises(RepositoryUnavailable) as caught:
        every_call(repository)[call]()
    assert time.monotonic() - begun < 3
    assert caught.value.retryable
    assert "hunter2" not in str(caught.value)
    repository.close()


def test_a_server_that_accepts_and_never_responds_is_unavailable_within_the_timeout(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as mute:
        repository = unreachable_mongo(tmp_path, mute.getsockname()[1])
        begun = time.monotonic()
        with pytest.raises(RepositoryUnavailable):
            repository.ready()
        assert time.monotonic() - begun < 3
        repository.close()


def test_the_memory_store_recovers_with_everything():
    repository = MemoryTaskRepository()
    task = added(repository)
    repository.down = True
    with pytest.raises(RepositoryUnavailable):
        repository.get(task.id)
    repository.down = False
    assert repository.get(task.id) == task
