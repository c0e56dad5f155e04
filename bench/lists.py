"""Lists, counts and reads of events on SQLite, with 10^3 to 10^6 tasks.

    python -m bench lists [--sizes 1000,100000,1000000] [--repeat 60] [--directory DIR]

Each file is filled once and kept in the directory. 100 users own the tasks, the first of them a third; each task belongs to one or two of
50 groups. A page has 256 tasks. Shown are p50 and p99 in milliseconds of CPU time over `repeat` rounds, in which all queries alternate:
SQLite works in the calling thread, so this is the time of a query on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from poiesis.domain.access import Access
from poiesis.domain.states import Stage, State
from poiesis.domain.task import Executor, Task, TaskId, TaskSpec, View
from poiesis.ports.events import event_of
from poiesis.ports.repository import TaskFilter
from poiesis.repository.documents import encode_event, format_time, to_document
from poiesis.repository.sqlite import tasks as adapter
from poiesis.repository.sqlite.database import SqliteDatabase
from poiesis.repository.sqlite.events import SqliteEventLog
from poiesis.repository.sqlite.tasks import SqliteTaskRepository

NOW: Final = datetime(2026, 1, 1, tzinfo=UTC)
PAGE: Final = 256
MEMBER: Final = Access("user7", frozenset(f"group{i}" for i in range(10)))
ACTIVE: Final = frozenset({State.QUEUED, State.INITIALIZING, State.RUNNING})
FILTERS: Final = {
    "everything": TaskFilter(),
    "one state (RUNNING, 1 %)": TaskFilter(states=frozenset({State.RUNNING})),
    "three states": TaskFilter(states=ACTIVE),
    "name prefix, half of all": TaskFilter("run-"),
    "name prefix, 1 in 1,000": TaskFilter("rare-"),
    "tag, a third": TaskFilter(tags=(("project", "p0"),)),
    "tag, 1 in 1,000": TaskFilter(tags=(("sample", "s1"),)),
    "two tags": TaskFilter(tags=(("project", "p0"), ("sample", ""))),
    "owner": TaskFilter(owner="user7"),
    "user and 10 groups": TaskFilter(access=MEMBER),
    "user and 10 groups, three states": TaskFilter(states=ACTIVE, access=MEMBER),
    "user and 10 groups, tag": TaskFilter(tags=(("project", "p0"),), access=MEMBER),
    "all of them": TaskFilter("run-", ACTIVE, (("project", "p0"), ("sample", "")), "user0", MEMBER),
}


DRAFT: Final = """
CREATE TEMP TABLE draft AS
WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < :count),
dice AS (SELECT i, abs(random()) AS a, abs(random()) AS b, abs(random()) AS c, abs(random()) AS d, abs(random()) AS e FROM n)
SELECT
    printf('%026d', i) AS id,
    CASE WHEN a % 100 = 0 THEN 'RUNNING' WHEN a % 100 = 1 THEN 'QUEUED' ELSE 'COMPLETE' END AS state,
    'user' || CASE WHEN b % 3 = 0 THEN 0 ELSE 1 + b % 99 END AS owner,
    'group' || (c % 50) AS g1,
    'group' || (c / 50 % 50) AS g2,
    CASE WHEN d % 1000 = 0 THEN 'rare' WHEN d % 2 = 0 THEN 'run' ELSE 'other' END || '-' || i AS name,
    'p' || CASE WHEN d / 1000 % 3 = 0 THEN 0 ELSE 1 + d % 49 END AS project,
    's' || (e % 1000) AS sample,
    strftime('%Y-%m-%dT%H:%M:%S', '2020-01-01', '+' || i || ' seconds') || '.000000Z' AS at
FROM dice
"""
READERS: Final = """
SELECT 'u:' || owner AS token, id, state, rowid AS seq FROM draft
UNION SELECT 'g:' || g1, id, state, rowid FROM draft UNION SELECT 'g:' || g2, id, state, rowid FROM draft
"""
TAGS: Final = """
SELECT '7:project' AS token, id FROM draft UNION ALL SELECT '6:sample', id FROM draft
UNION ALL SELECT '7:project=' || project, id FROM draft UNION ALL SELECT '6:sample=' || sample, id FROM draft
"""
FILLED: Final = (
    "replace(replace(replace(replace(replace(replace({}, '@id', id), '@state', state), '@owner', owner), '@g1', g1),"
    " '@g2', g2), '@at', at)"
)


def fill(path: Path, count: int) -> None:
    """With SQL, from the document and event of one task as the adapter writes them: a million tasks in minutes."""
    database = SqliteDatabase(path)
    with database.reading() as db:
        filled = db.execute("SELECT count(*) FROM tasks").fetchone()[0]
    if filled == count:
        return database.close()
    path.unlink()
    database.close()
    database = SqliteDatabase(path)
    task = Task(
        TaskId("@id"),
        TaskSpec((Executor("alpine:3.20", ("wc", "-l", "/data/in")),), name="@name", tags={"project": "@project", "sample": "@s"}),
        NOW, owner="@owner", groups=("@g1", "@g2"), wake_at=NOW, state=State.COMPLETE, stage=Stage.DONE,
    ).recorded(NOW)  # fmt: skip
    (_, core, bulk, *_), _ = adapter._encode(to_document(task))
    event = encode_event(event_of(task, task.history[0]))
    made = format_time(NOW)
    core, event = (text.replace(made, "@at").replace('"COMPLETE"', '"@state"') for text in (core, event))
    with database.writing() as db:
        db.execute(DRAFT, {"count": count})
        db.execute(
            "INSERT INTO tasks (id, version, state, wake_at, due_stage, owner, name, tags, unfinished, ended_at, readers)"
            " SELECT id, 1, state, at, CASE state WHEN 'COMPLETE' THEN NULL ELSE 'run' END, owner, name,"
            " json_array('6:sample', '6:sample=' || sample, '7:project', '7:project=' || project),"
            " CASE state WHEN 'COMPLETE' THEN NULL ELSE state || '//' || owner END,"
            " CASE state WHEN 'COMPLETE' THEN at END,"
            " CASE WHEN g1 = g2 THEN json_array('g:' || g1, 'u:' || owner)"
            " ELSE json_array('g:' || min(g1, g2), 'g:' || max(g1, g2), 'u:' || owner) END FROM draft"
        )
        db.execute(f"INSERT INTO documents SELECT id, {FILLED.format('?')}, ? FROM draft", (core, bulk))
        db.execute(f"INSERT INTO tags SELECT token, id FROM ({TAGS}) ORDER BY token, id")
        db.execute(f"INSERT INTO readers SELECT token, id, state FROM ({READERS}) ORDER BY token, id")
        db.execute(
            "INSERT INTO events (seq, task, at, ended_at, body)"
            f" SELECT rowid, id, at, CASE state WHEN 'COMPLETE' THEN at END, {FILLED.format('?')} FROM draft",
            (event,),
        )
        db.execute(f"INSERT INTO event_readers SELECT token, seq FROM ({READERS}) ORDER BY token, seq")
        db.execute("DROP TABLE draft")
    database.close()


def at_rank(database: SqliteDatabase, newest: int) -> TaskId:
    with database.reading() as db:
        return TaskId(db.execute("SELECT id FROM tasks ORDER BY id DESC LIMIT 1 OFFSET ?", (newest,)).fetchone()[0])


def last_page_after(
    tasks: SqliteTaskRepository, where: TaskFilter, database: SqliteDatabase, count: int
) -> TaskId | None:
    """A position from which at most about one page follows."""
    rank = PAGE
    while rank < count:
        after = at_rank(database, count - rank)
        if len(tasks.list(where, limit=PAGE, after=after, view=View.MINIMAL).tasks) >= PAGE // 2:
            return after
        rank *= 2
    return None


def queries(database: SqliteDatabase, count: int) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    tasks, events = SqliteTaskRepository(database), SqliteEventLog(database)

    def listing(where: TaskFilter, after: TaskId | None, view: View) -> Callable[[], Any]:
        return lambda: tasks.list(where, limit=PAGE, after=after, view=view)

    middle = at_rank(database, count // 2)
    for name, where in FILTERS.items():
        yield name, "first", listing(where, None, View.MINIMAL)
        yield name, "middle", listing(where, middle, View.MINIMAL)
        yield name, "last", listing(where, last_page_after(tasks, where, database, count), View.MINIMAL)
    yield "everything, BASIC", "first", listing(TaskFilter(), None, View.BASIC)
    yield "everything, BASIC", "middle", listing(TaskFilter(), middle, View.BASIC)
    half = events.last_seq() // 2
    for name, access in (("events of all", None), ("events of user and 10 groups", MEMBER)):
        yield name, "first", lambda access=access: events.after(0, limit=PAGE, access=access)
        yield name, "middle", lambda access=access: events.after(half, limit=PAGE, access=access)
    yield "whether there are tasks (sweep)", "first", lambda: tasks.count(TaskFilter(), limit=1)
    yield "count of tasks not ended, to 10,000", "first", lambda: tasks.count(TaskFilter(states=ACTIVE))


def measure(path: Path, count: int, repeat: int) -> dict[tuple[str, str], list[float]]:
    database = SqliteDatabase(path)
    taken: dict[tuple[str, str], list[float]] = defaultdict(list)
    try:
        every = list(queries(database, count))
        for _ in range(repeat):
            for name, page, query in every:
                begin = time.thread_time()
                query()
                taken[name, page].append((time.thread_time() - begin) * 1000)
    finally:
        database.close()
    return taken


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="1000,100000,1000000")
    parser.add_argument("--repeat", type=int, default=60)
    parser.add_argument("--directory", type=Path, default=Path(".cache/bench"))
    arguments = parser.parse_args()
    sizes = [int(size) for size in arguments.sizes.split(",")]
    found = {}
    for size in sizes:
        path = arguments.directory / f"tasks-{size}.sqlite"
        begin = time.perf_counter()
        fill(path, size)
        print(
            f"# {size} tasks: {path.stat().st_size >> 20} MB, filled in {time.perf_counter() - begin:.0f} s", flush=True
        )
        found[size] = measure(path, size, arguments.repeat)
    print("| Query | Page | " + " | ".join(f"{size:,}" for size in sizes) + " |")
    print("|---|---|" + "---|" * len(sizes))
    for key in found[sizes[0]]:
        cells = [f"{quantile(found[size][key], 0.5):.2f} / {quantile(found[size][key], 0.99):.2f}" for size in sizes]
        print(f"| {key[0]} | {key[1]} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
