"""CPU time of what a save does, with and without a change that history and events record, on SQLite.

    python -m bench saves [--rounds 2000]

A task of one executor, two inputs and three tags, of one user in two groups. Kinds alternate, so that a busy machine slows all equally.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median

from poiesis.domain.naming import new_task_id
from poiesis.domain.states import State
from poiesis.domain.task import Executor, Input, Task, TaskSpec, Version
from poiesis.repository.sqlite.database import SqliteDatabase
from poiesis.repository.sqlite.tasks import SqliteTaskRepository

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SPEC = TaskSpec(
    (Executor("alpine:3.20", ("wc", "-l", "/data/a")),),
    inputs=(Input("/data/a", "s3://bucket/a"), Input("/data/b", "s3://bucket/b")),
    tags={"project": "p", "sample": "s", "run": "1"},
)
STATES = (State.INITIALIZING, State.RUNNING, State.COMPLETE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2000)
    arguments = parser.parse_args()
    taken: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as directory:
        database = SqliteDatabase(Path(directory) / "tasks.sqlite")
        repository = SqliteTaskRepository(database)

        def timed(name: str, begin: float) -> None:
            taken.setdefault(name, []).append((time.thread_time() - begin) * 1e6)

        for i in range(arguments.rounds):
            for kind in ("no history", "history"):
                at = NOW + timedelta(seconds=i)
                task = Task(new_task_id(at), SPEC, at, owner="ada", groups=("g1", "g2"), wake_at=at)
                begin = time.thread_time()
                task = task.recorded(at) if kind == "history" else task
                repository.add(task)
                timed(f"create, {kind}", begin)
                for seen, state in enumerate(STATES, 1):
                    task = replace(task, state=state, version=Version(seen))
                    begin = time.thread_time()
                    task = task.recorded(at) if kind == "history" else task
                    assert repository.save(task, seen=task.version)
                    timed(f"save with a new state, {kind}", begin)
                task = replace(task, version=Version(len(STATES) + 1), nonce="x")
                begin = time.thread_time()
                task = task.recorded(at) if kind == "history" else task
                assert repository.save(task, seen=task.version)
                timed(f"save with nothing to record, {kind}", begin)
        database.close()
    print("| CPU time in microseconds, median | no history | history and event |\n|---|---|---|")
    for name in ("create", "save with a new state", "save with nothing to record"):
        print(f"| {name} | {median(taken[f'{name}, no history']):.0f} | {median(taken[f'{name}, history']):.0f} |")


if __name__ == "__main__":
    main()
