import itertools
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from poiesis.domain.access import Access
from poiesis.domain.errors import ConfigurationError, RepositoryUnavailable, UnknownTask
from poiesis.domain.states import Stage, State
from poiesis.domain.task import Executor, Input, Task, TaskId, TaskLog, TaskSpec, Version, View
from poiesis.ports.repository import TaskFilter
from poiesis.repository.documents import to_document
from poiesis.repository.sqlite import database
from poiesis.repository.sqlite import tasks as sqlite
from poiesis.repository.sqlite.database import MIGRATIONS, FairLock, SqliteDatabase
from poiesis.repository.sqlite.tasks import DUE_QUERY, EXPIRED_QUERY, SqliteTaskRepository, _list_query, _planned

NOW = datetime(2026, 1, 31, 12, 0, 0, 1, tzinfo=UTC)
SPEC = TaskSpec(executors=(Executor("alpine", ("true",)),))
STATES = frozenset({State.RUNNING, State.COMPLETE})
ACCESS = Access("ada", frozenset({"g1", "g2"}))
SHORT = timedelta(seconds=0.2)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "deep" / "tasks.sqlite"


@pytest.fixture
def repository(file):
    made = SqliteTaskRepository(SqliteDatabase(file))
    yield made
    made.close()


def a_task(task_id: str, **changes) -> Task:
    return Task(id=TaskId(task_id), spec=SPEC, created_at=NOW, wake_at=NOW, **changes)


def plan(file, query: str, values) -> list[str]:
    with closing(sqlite3.connect(file)) as db:
        return [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {query}", values)]


# queries


@pytest.mark.parametrize("after", [None, TaskId("x")])
@pytest.mark.parametrize(
    ("where", "scan", "index"),
    [
        (TaskFilter(), "id", "PRIMARY KEY"),
        (TaskFilter(owner="ada"), "reader", "SEARCH reading USING PRIMARY KEY (token=?"),
        (TaskFilter(states=frozenset({State.RUNNING})), "state", "tasks_by_state"),
        (TaskFilter(states=STATES), "state", "tasks_by_state"),
        (TaskFilter(states=STATES, owner="ada"), "reader", "readers_by_state"),
        (TaskFilter(access=ACCESS), "reader", "SEARCH reading USING PRIMARY KEY (token=?"),
        (TaskFilter(states=STATES, access=ACCESS), "reader", "readers_by_state"),
        (TaskFilter("many", STATES, (("k", "v"),), "ada", ACCESS), "reader", "readers_by_state"),
        (TaskFilter("many", STATES, (("k", "v"),), "ada", ACCESS), "tag", "SEARCH tagged USING PRIMARY KEY (token=?"),
        (TaskFilter(tags=(("k", "v"),)), "tag", "PRIMARY KEY (token=?"),
        (TaskFilter(tags=(("k", "v"), ("l", "")), owner="ada", states=STATES), "tag", "PRIMARY KEY (token=?"),
        (TaskFilter("many"), "id", "PRIMARY KEY"),
        (TaskFilter("many", STATES), "state", "tasks_by_state"),
    ],
)
def test_a_list_scans_an_index_in_the_order_of_ids(repository, file, where, scan, index, after):
    found, values = _list_query(where, 257, after, scan=scan)
    steps = plan(file, found, values)
    assert not [step for step in steps if "TEMP B-TREE" in step], "sorted instead of scanned"
    unnarrowed = where in (TaskFilter(), TaskFilter("many"))
    assert any(index in step for step in steps) or (unnarrowed and after is None and steps == ["SCAN tasks"])
    assert not [s for s in steps if s.startswith("SCAN") and not (unnarrowed and after is None)], steps
    assert not [step for step in steps if "documents" in step], "documents are read one by one, for BASIC and FULL"


def test_nothing_is_read_of_a_task_that_the_user_may_not_see_but_its_row_and_readers(repository, file):
    repository.add(a_task("one", owner="ada", groups=("g",)))
    statements: list[str] = []
    with repository._database.reading() as db:
        db.execute("UPDATE documents SET core = 'damaged'")
        db.set_trace_callback(statements.append)
    for view in View:
        with pytest.raises(UnknownTask):
            repository.get(TaskId("one"), view, access=Access("bob"))
    for query in (statement for statement in statements if statement.startswith("SELECT")):
        first, *between, second = plan(file, query, ())
        assert first.startswith("SEARCH tasks") and "readers.token IN ('u:bob')" in query
        assert between == ["CORRELATED SCALAR SUBQUERY 1", "SEARCH readers USING PRIMARY KEY (token=? AND id=?)"]
        assert second.startswith("SEARCH documents")


def test_a_rare_name_is_found_by_its_index(repository, file):
    steps = plan(file, *_list_query(TaskFilter("rare"), 257, None, scan="name"))
    assert "SEARCH tasks USING COVERING INDEX tasks_by_name (name>? AND name<?)" in steps


def test_many_names_are_scanned_in_the_order_of_ids(repository, monkeypatch):
    monkeypatch.setattr(sqlite, "FEW_NAMES", 2)
    for i in range(5):
        repository.add(replace(a_task(str(i)), spec=replace(SPEC, name="many")))
    page = repository.list(TaskFilter("ma"), limit=3, after=None, view=View.BASIC)
    assert ([task.id for task in page.tasks], page.next_after) == (["4", "3", "2"], "2")


def test_the_rarest_of_many_tags_is_scanned(repository):
    for i in range(5):
        spec = replace(SPEC, tags={"many": "x", **({"rare": "y"} if i == 2 else {})})
        repository.add(replace(a_task(str(i)), spec=spec))
    with repository._database.reading() as db:
        ordered, scan = _planned(db, TaskFilter(tags=(("many", "x"), ("rare", ""), ("none", ""))))
    assert ordered.tags == (("none", ""), ("rare", ""), ("many", "x")) and scan == "tag"


@pytest.mark.parametrize(
    ("tag", "groups", "scan"), [("rare", (), "reader"), ("rare", ("g",), "tag"), ("many", ("g",), "tag")]
)
def test_the_rarer_of_tags_and_readers_is_scanned(repository, tag, groups, scan):
    for i in range(6):
        spec = replace(SPEC, tags={"many": "x", **({"rare": "y"} if i < 2 else {})})
        repository.add(replace(a_task(str(i)), spec=spec, owner="ada" if i == 5 else "bob", groups=("g",)))
    with repository._database.reading() as db:
        where = TaskFilter(tags=((tag, ""),), access=Access("ada", frozenset(groups)))
        assert _planned(db, where)[1] == scan


@pytest.mark.parametrize("oldest_first", [False, True])
@pytest.mark.parametrize("groups", [("g",), ("g", "h")])
def test_of_common_conditions_the_one_that_is_rarer_near_the_page_is_scanned(
    repository, monkeypatch, groups, oldest_first
):
    """Those with `old` are all at one end of the list, those with `new` at the other, and readers are everywhere."""
    monkeypatch.setattr(sqlite, "COUNTED", (2, 4))
    monkeypatch.setattr(sqlite, "SAMPLED", 3)
    for i in range(20):
        tags = {"old" if i < 10 else "new": "x", "all": "x"}
        repository.add(
            replace(
                a_task(f"{i:02}"), spec=replace(SPEC, tags=tags), groups=((*groups, "x", "y")[i % (len(groups) + 2)],)
            )
        )
    where = TaskFilter(
        tags=(("all", ""), ("old", ""), ("new", "")), access=Access(None, frozenset(groups)), oldest_first=oldest_first
    )
    with repository._database.reading() as db:
        ordered, scan = _planned(db, where)
        assert (scan, ordered.tags[0]) == ("tag", ("new" if oldest_first else "old", ""))
        ordered, scan = _planned(db, where, TaskId("09"))
        assert (scan, ordered.tags[0]) == ("tag", ("old" if oldest_first else "new", ""))
        assert _planned(db, replace(where, tags=(("all", ""),)))[1] == "reader"


def test_a_list_by_many_conditions_reads_each_row_once_and_no_other_index(repository, file):
    tags = (("k", "v"), ("l", ""))
    for scan in ("tag", "reader"):
        query, values = _list_query(TaskFilter("n", STATES, tags, "ada", ACCESS), 257, None, scan=scan)
        assert "EXISTS" not in query and not [step for step in plan(file, query, values) if "SUBQUERY" in step]


def test_due_scans_its_index_in_order(repository, file):
    steps = plan(file, DUE_QUERY, ("2026", 10))
    assert steps == ["SEARCH tasks USING COVERING INDEX tasks_due (wake_at<?)"]


def test_a_purge_reads_only_tasks_that_it_deletes(repository, file):
    steps = plan(file, EXPIRED_QUERY, ("2026", 10))
    assert steps == ["SEARCH tasks USING INDEX tasks_ended (ended_at<?)"]


# durability

ADD_FOREVER = """
import itertools, sys, threading
from datetime import UTC, datetime
from poiesis.domain.naming import new_task_id
from poiesis.domain.task import *
from poiesis.repository.sqlite.database import SqliteDatabase
from poiesis.repository.sqlite.tasks import SqliteTaskRepository
repository = SqliteTaskRepository(SqliteDatabase(sys.argv[1]))
def add():
    for i in itertools.count():
        now = datetime.now(UTC)
        task = Task(id=new_task_id(now), spec=TaskSpec(executors=(), tags={"k": "v"}), created_at=now)
        repository.add(task)
        assert repository.save(task, seen=1)
        sys.stdout.write(task.id + "\\n")
        sys.stdout.flush()
for _ in range(8):
    threading.Thread(target=add).start()
"""


@pytest.mark.parametrize("wanted", [1, 20, 90])
def test_a_killed_process_loses_nothing_that_it_reported(file, wanted):
    with subprocess.Popen([sys.executable, "-c", ADD_FOREVER, str(file)], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        reported = [line.strip() for line in itertools.islice(child.stdout, wanted)]
        child.send_signal(signal.SIGKILL)
        reported += [line.strip() for line in child.stdout if line.endswith("\n")]
    assert len(reported) >= wanted
    with closing(SqliteTaskRepository(SqliteDatabase(file))) as repository:
        for task_id in reported:
            assert repository.get(TaskId(task_id)).version == 2
        tagged = TaskFilter(tags=(("k", "v"),))
        assert repository.count(TaskFilter()) == repository.count(tagged) >= len(reported)
    with closing(sqlite3.connect(file)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_commits_are_synced(repository):
    with repository._database._connection() as db:
        assert db.execute("PRAGMA synchronous").fetchone() == (2,)
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


RACE = """
import sys
from dataclasses import replace
from poiesis.repository.sqlite.database import SqliteDatabase
from poiesis.repository.sqlite.tasks import SqliteTaskRepository
repository = SqliteTaskRepository(SqliteDatabase(sys.argv[1]))
sys.stdin.readline()
done = 0
while done < 30:
    seen = repository.get("one")
    done += repository.save(replace(seen, attempt=seen.attempt + 1), seen=seen.version)
repository.close()
"""


def test_processes_that_race_lose_no_increment(repository, file):
    repository.add(a_task("one", attempt=0))
    racers = [
        subprocess.Popen([sys.executable, "-c", RACE, str(file)], stdin=subprocess.PIPE, text=True) for _ in range(3)
    ]
    for racer in racers:
        racer.communicate("go\n", timeout=60)
        assert racer.returncode == 0
    assert repository.get(TaskId("one")).attempt == 90


# the file


def test_many_processes_can_open_a_new_file_concurrently(file):
    def opened(_: int) -> None:
        SqliteTaskRepository(SqliteDatabase(file)).close()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(opened, range(16)))
    with closing(sqlite3.connect(file)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)


def test_only_its_user_can_read_the_file(repository, file):
    repository.add(a_task("one"))
    for made in file.parent.iterdir():
        assert stat.S_IMODE(made.stat().st_mode) == 0o600, made.name


def test_a_file_of_a_newer_release_is_refused_untouched(file):
    SqliteTaskRepository(SqliteDatabase(file)).close()
    with closing(sqlite3.connect(file)) as db:
        db.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    with pytest.raises(ConfigurationError, match="newer release"):
        SqliteTaskRepository(SqliteDatabase(file))
    with closing(sqlite3.connect(file)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS) + 1,)


def test_tasks_of_a_file_from_before_groups_are_found_by_their_owner(file, monkeypatch):
    monkeypatch.setattr(database, "MIGRATIONS", MIGRATIONS[:1])
    SqliteTaskRepository(SqliteDatabase(file)).close()
    with closing(sqlite3.connect(file)) as db:
        for task_id, owner in (("one", "ada"), ("two", 'b"o\\b'), ("three", None)):
            head, core, bulk, *_ = sqlite._encode(to_document(a_task(task_id, owner=owner)))[0]
            db.execute("INSERT INTO tasks VALUES (:_id, 1, :state, :wake_at, :due_stage, :owner, :name, :tags)", head)
            db.execute("INSERT INTO documents VALUES (?, ?, ?)", (task_id, core, bulk))
        db.commit()
    monkeypatch.undo()
    with closing(SqliteTaskRepository(SqliteDatabase(file))) as repository:
        for owner, expected in (("ada", ["one"]), ('b"o\\b', ["two"]), ("eve", [])):
            for where in (TaskFilter(access=Access(owner)), TaskFilter(states=STATES | {State.QUEUED}, owner=owner)):
                page = repository.list(where, limit=9, after=None, view=View.MINIMAL)
                assert [task.id for task in page.tasks] == expected
        assert repository.count_unfinished() == {(State.QUEUED, ""): 3}
        assert repository.count_unfinished(owner='b"o\\b') == {(State.QUEUED, ""): 1}
        task = repository.get(TaskId("two"), access=Access('b"o\\b'))
        assert repository.save(replace(task, state=State.RUNNING), seen=Version(1))
        assert repository.count(TaskFilter(states=STATES, access=Access('b"o\\b'))) == 1


def test_ended_tasks_of_an_older_file_are_purged_by_their_ends(file, monkeypatch):
    monkeypatch.setattr(database, "MIGRATIONS", MIGRATIONS[:1])
    SqliteTaskRepository(SqliteDatabase(file)).close()
    log = TaskLog(end_time=NOW + timedelta(days=5))
    with closing(sqlite3.connect(file)) as db:
        for task_id, stage in (("one", Stage.DONE), ("two", Stage.DONE), ("three", Stage.CLEAN)):
            kept = log if task_id == "one" else TaskLog()
            task = replace(a_task(task_id, state=State.COMPLETE), stage=stage, log=kept)
            head, core, bulk, *_ = sqlite._encode(to_document(task))[0]
            db.execute("INSERT INTO tasks VALUES (:_id, 1, :state, :wake_at, :due_stage, :owner, :name, :tags)", head)
            db.execute("INSERT INTO documents VALUES (?, ?, ?)", (task_id, core, bulk))
        db.commit()
    monkeypatch.undo()
    with closing(SqliteTaskRepository(SqliteDatabase(file))) as repository:
        every = [TaskId("one"), TaskId("two"), TaskId("three")]
        assert repository.purge(NOW + timedelta(days=4), limit=9) == 1
        assert set(repository.states(every)) == {"one", "three"}
        assert repository.purge(NOW + timedelta(days=6), limit=9) == 1
        assert set(repository.states(every)) == {"three"}


def test_an_older_file_is_migrated_and_a_failed_step_leaves_it_as_it_was(file, monkeypatch):
    with closing(SqliteTaskRepository(SqliteDatabase(file))) as repository:
        repository.add(a_task("one"))
    monkeypatch.setattr(database, "MIGRATIONS", (*MIGRATIONS, ("ALTER TABLE tasks ADD COLUMN extra TEXT", "nonsense")))
    with pytest.raises(RepositoryUnavailable, match="nonsense"):
        SqliteTaskRepository(SqliteDatabase(file))
    monkeypatch.setattr(database, "MIGRATIONS", (*MIGRATIONS, ("ALTER TABLE tasks ADD COLUMN extra TEXT",)))
    with closing(SqliteTaskRepository(SqliteDatabase(file))) as repository:
        assert repository.get(TaskId("one")).version == 1
    with closing(sqlite3.connect(file)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS) + 1,)


@pytest.mark.parametrize("content", [b"this is not a database, whatever its name says" * 100])
def test_a_file_that_is_not_a_database_is_refused(file, content):
    file.parent.mkdir()
    file.write_bytes(content)
    with pytest.raises(RepositoryUnavailable, match=r"tasks\.sqlite"):
        SqliteTaskRepository(SqliteDatabase(file))
    assert file.read_bytes() == content


def test_a_directory_that_cannot_be_created_is_unavailable(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RepositoryUnavailable):
        SqliteTaskRepository(SqliteDatabase(tmp_path / "file" / "tasks.sqlite"))


def test_a_moved_file_is_not_ready(repository, file):
    repository.ready()
    file.rename(file.with_suffix(".old"))
    with pytest.raises(RepositoryUnavailable, match="no longer exists"):
        repository.ready()


def test_another_process_that_holds_the_write_lock_is_waited_for_until_a_deadline(file):
    with (
        closing(SqliteTaskRepository(SqliteDatabase(file, busy_timeout=SHORT))) as repository,
        closing(sqlite3.connect(file)) as db,
    ):
        repository.add(a_task("one"))
        db.execute("BEGIN IMMEDIATE")
        with pytest.raises(RepositoryUnavailable, match="locked"):
            repository.save(a_task("one"), seen=Version(1))
        assert repository.get(TaskId("one")).version == 1, "readers do not wait for a writer"
        db.rollback()
        assert repository.save(a_task("one"), seen=Version(1))


def test_a_failure_within_a_call_undoes_all_of_it(repository, file, monkeypatch):
    repository.add(a_task("one", state=State.COMPLETE, stage=Stage.DONE))
    monkeypatch.setattr(repository, "_delete_tokens", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        repository.purge(NOW + timedelta(hours=1), limit=1)
    assert repository.get(TaskId("one")).version == 1


def test_connections_are_bounded_and_closed(file):
    repository = SqliteTaskRepository(SqliteDatabase(file))
    barrier = threading.Barrier(20)

    def read(_: int) -> None:
        with repository._database.reading():
            barrier.wait()

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(read, range(20)))
    assert len(repository._database._pool) == database.IDLE_CONNECTIONS
    repository.close()
    held = [
        os.readlink(f"/proc/self/fd/{fd}")
        for fd in os.listdir("/proc/self/fd")
        if os.path.exists(f"/proc/self/fd/{fd}")
    ]
    assert not [name for name in held if name.startswith(str(file))]


def test_a_connection_that_wrote_a_large_task_is_not_kept(repository):
    """It would keep the memory of the statement and its pages: 18 MB after a task of 8 MB."""
    repository.add(a_task("small"))
    assert len(repository._database._pool) == 1
    large = (Input(path="/data/x", content="x" * (sqlite.LARGE_BYTES + 1)),)
    repository.add(replace(a_task("large"), spec=replace(SPEC, inputs=large)))
    assert repository._database._pool == []


class Writers:
    """Threads that queue for the write lock, in order, while the test holds it."""

    def __init__(self, database: SqliteDatabase) -> None:
        self._database = database
        self.returned: list[str] = []
        self.failed: list[BaseException] = []
        self.threads: list[threading.Thread] = []

    def write(self, name: str, statement: str = "", then: Exception | None = None) -> None:
        """Insert a note in another thread and return once it waits for the lock."""

        def work() -> None:
            try:
                with self._database.writing() as db:
                    db.execute("INSERT INTO notes VALUES (?, 1, '')", (name,))
                    if statement:
                        db.execute(statement)
                    if then is not None:
                        raise then
                self.returned.append(name)
            except Exception as error:
                self.failed.append(error)

        waiting = len(self._database._write_lock._waiting)
        self.threads.append(threading.Thread(target=work))
        self.threads[-1].start()
        while len(self._database._write_lock._waiting) == waiting:
            time.sleep(0.001)

    def join(self) -> None:
        for thread in self.threads:
            thread.join()


def notes(file) -> list[str]:
    with closing(sqlite3.connect(file)) as db:
        return [row[0] for row in db.execute("SELECT name FROM notes ORDER BY name")]


@pytest.fixture
def traced(repository, monkeypatch) -> list[str]:
    """The statements that begin and end transactions, of connections opened from now on."""
    store, found = repository._database, []
    connect = store._connect

    def connect_traced() -> sqlite3.Connection:
        db = connect()
        db.set_trace_callback(lambda text: found.append(text) if text in ("BEGIN IMMEDIATE", "COMMIT") else None)
        return db

    monkeypatch.setattr(store, "_connect", connect_traced)
    store._pool.pop().close()
    return found


def test_writers_that_queue_are_committed_together(repository, file, traced):
    """A commit waits for the disk, so 1,000 creates of 8 clients would wait for it 1,000 times, each for those of the other seven."""
    writers = Writers(repository._database)
    with repository._database.writing():
        for name in "abc":
            writers.write(name)
    writers.join()
    assert sorted(writers.returned) == notes(file) == ["a", "b", "c"]
    assert traced == ["BEGIN IMMEDIATE", "COMMIT"]


def test_no_writer_returns_before_its_transaction_is_committed(repository, file):
    writers, seen = Writers(repository._database), []

    def look() -> None:
        writers.threads[0].join(0.1)
        seen.extend([*writers.returned, *notes(file)])

    with repository._database.writing() as db:
        db.create_function("look", 0, look)
        writers.write("first")
        writers.write("last", "SELECT look()")
    writers.join()
    assert seen == []
    assert sorted(writers.returned) == notes(file) == ["first", "last"]


def test_a_writer_does_not_wait_forever_for_one_that_hangs(repository, file, monkeypatch):
    monkeypatch.setattr(database, "COMMIT_TIMEOUT_S", 0.05)
    writers, go_on = Writers(repository._database), threading.Event()
    with pytest.raises(RepositoryUnavailable, match="does not commit"), repository._database.writing() as db:
        db.create_function("hang", 0, lambda: go_on.wait(10))
        writers.write("first")
        writers.write("last", "SELECT hang()")
    writers.threads[0].join()
    assert [type(error) for error in writers.failed] == [RepositoryUnavailable]
    go_on.set()
    writers.join()
    assert writers.returned == ["last"]
    assert notes(file) == ["first", "last"]


def test_a_transaction_has_a_bounded_number_of_writers(repository, file, traced, monkeypatch):
    monkeypatch.setattr(database, "MAX_WRITERS", 2)
    writers = Writers(repository._database)
    with repository._database.writing():
        for name in "abc":
            writers.write(name)
    writers.join()
    assert notes(file) == ["a", "b", "c"]
    assert traced == ["BEGIN IMMEDIATE", "COMMIT"] * 2


def test_a_writer_that_fails_undoes_only_its_own_block(repository, file):
    writers = Writers(repository._database)
    with repository._database.writing():
        writers.write("a")
        writers.write("b", then=ZeroDivisionError())
        writers.write("c")
    writers.join()
    assert sorted(writers.returned) == notes(file) == ["a", "c"]
    assert [type(error) for error in writers.failed] == [ZeroDivisionError]


@pytest.mark.parametrize("failing", ["a", "b", "c"])
def test_writers_whose_transaction_was_rolled_back_all_fail(repository, file, failing):
    """SQLite rolls back a transaction by itself after some errors, such as a full disk."""
    writers = Writers(repository._database)
    with pytest.raises(RepositoryUnavailable, match="disk I/O error"), repository._database.writing():
        for name in "abc":
            fault = sqlite3.OperationalError("disk I/O error") if name == failing else None
            writers.write(name, "ROLLBACK" if name == failing else "", then=fault)
    writers.join()
    after = {"a": ["b", "c"], "b": ["c"], "c": []}[failing]  # in a separate transaction
    assert sorted(writers.returned) == notes(file) == after
    assert all(isinstance(error, RepositoryUnavailable) for error in writers.failed)
    assert len(writers.failed) == 3 - len(after)


def test_writers_whose_commit_fails_all_fail(repository, file):
    def refuse_commit(action: int, operation: str | None, *_: object) -> int:
        is_commit = action == sqlite3.SQLITE_TRANSACTION and operation == "COMMIT"
        return sqlite3.SQLITE_DENY if is_commit else sqlite3.SQLITE_OK

    writers = Writers(repository._database)
    with pytest.raises(RepositoryUnavailable, match="not authorized"), repository._database.writing() as db:
        db.set_authorizer(refuse_commit)
        writers.write("a")
        writers.write("b")
    writers.join()
    assert notes(file) == writers.returned == []
    assert [type(error) for error in writers.failed] == [RepositoryUnavailable] * 2
    repository.add(a_task("one"))  # on another connection


def test_writers_take_turns_in_the_order_of_arrival():
    lock = FairLock()
    assert lock.acquire(timeout=1)
    order: list[int] = []

    def write(number: int) -> None:
        assert lock.acquire(timeout=30)
        order.append(number)
        lock.release()

    threads = []
    for number in range(5):
        threads.append(threading.Thread(target=write, args=(number,)))
        threads[-1].start()
        while len(lock._waiting) <= number:
            time.sleep(0.001)
    assert not lock.acquire(timeout=0.01)
    assert len(lock._waiting) == 5
    lock.release()
    for thread in threads:
        thread.join()
    assert order == [0, 1, 2, 3, 4]
    assert lock.acquire(timeout=0)
