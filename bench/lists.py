"""Lists, counts and reads of events on SQLite, with 10^3 to 10^6 tasks.

    python -m bench lists [--sizes 1000,100000,1000000] [--repeat 60] [--directory DIR]

Each file is filled once and kept in the directory. 100 users own the tasks, the first of them a third; each task belongs to one or two of
50 groups. A page has 256 tasks. Shown are p50 and p99 in milliseconds of CPU time over `repeat` rounds, in which all queries alternate:
SQLite works in the calling thread, so this is the time of a query on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from poiesis.domain.access import Access
from poiesis.domain.naming import new_task_id
from poiesis.domain.states import Stage, State
from poiesis.domain.task import Executor, Task, TaskId, TaskSpec, View
from poiesis.ports.repository import TaskFilter
from poiesis.repository.sqlite import tasks as adapter
from poiesis.repository.sqlite.database import SqliteDatabase
from poiesis.repository.sqlite.events import SqliteEventLog
from poiesis.repository.sqlite.tasks import SqliteTaskRepository

BEGIN: Final = datetime(2026, 1, 1, tzinfo=UTC)
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


def a_task(dice: random.Random, number: int) -> Task:
    created_at = BEGIN + timedelta(seconds=number)
    share = dice.random()
    state = State.RUNNING if share < 0.01 else State.QUEUED if share < 0.02 else State.COMPLETE
    owner = 0 if dice.random() < 1 / 3 else dice.randrange(1, 100)
    groups = tuple({f"group{dice.randrange(50)}" for _ in range(dice.choice((1, 2)))})
    kind = "rare" if dice.random() < 0.001 else dice.choice(("run", "other"))
    project = 0 if dice.random() < 1 / 3 else dice.randrange(1, 50)
    return Task(
        id=new_task_id(created_at, lambda size: dice.randbytes(size)),
        spec=TaskSpec(
            (Executor("alpine:3.20", ("wc", "-l", "/data/in")),),
            name=f"{kind}-{number}",
            tags={"project": f"p{project}", "sample": f"s{dice.randrange(1000)}"},
        ),
        created_at=created_at,
        state=state,
        stage=Stage.DONE if state.is_terminal else Stage.RUN,
        wake_at=created_at,
        owner=f"user{owner}",
        groups=groups,
    ).recorded(created_at)


def fill(path: Path, count: int) -> None:
    """In large transactions that are not synced."""
    database, dice = SqliteDatabase(path), random.Random(count)
    with database.writing() as db:
        filled = db.execute("SELECT count(*) FROM tasks").fetchone()[0]
    if filled == count:
        return database.close()
    path.unlink()
    database.close()
    database = SqliteDatabase(path)
    for first in range(0, count, 20_000):
        with database.writing() as db:
            for number in range(first, min(count, first + 20_000)):
                adapter.insert_task(db, a_task(dice, number))
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
