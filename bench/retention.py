"""Creates while the retention sweep deletes old tasks, against creates while it does not, in one process and on one SQLite file.

    python -m bench retention [--tasks 100000] [--rate 50] [--seconds 20] [--directory DIR]

The file is filled with old tasks (98 % of them done). One thread creates `rate` tasks a second throughout. Idle and sweep alternate
in periods of `seconds`, so that a busy machine slows both equally.
"""

from __future__ import annotations

import argparse
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from bench.lists import fill, quantile
from poiesis.domain.policy import Policy
from poiesis.domain.task import Executor, TaskSpec
from poiesis.ports.repository import TaskFilter
from poiesis.repository.sqlite.database import SqliteDatabase
from poiesis.repository.sqlite.tasks import SqliteTaskRepository
from poiesis.services.monitor import Monitor
from poiesis.services.tasks import TaskService
from poiesis.testing.queue import RecordingQueue

SPEC = TaskSpec((Executor("alpine:3.20", ("true",)),), name="new", tags={"project": "p"})


class Now:
    def now(self) -> datetime:
        return datetime.now(UTC)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=100_000)
    parser.add_argument("--rate", type=float, default=50)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--directory", type=Path, default=Path(".cache/bench"))
    arguments = parser.parse_args()
    path = arguments.directory / f"retention-{arguments.tasks}.sqlite"
    path.unlink(missing_ok=True)
    fill(path, arguments.tasks)
    database = SqliteDatabase(path)
    repository, queue, policy = SqliteTaskRepository(database), RecordingQueue(), Policy()
    service = TaskService(repository, queue, Now(), policy)
    cluster: Any = object()
    taken: dict[str, list[float]] = {"idle": [], "sweep": []}
    purged, rounds, is_left = 0, 0, True
    while is_left:
        for period in ("idle", "sweep"):
            monitor = Monitor(
                Any, repository, queue, cluster, Now(), policy,
                threads=1, resync_every=timedelta(seconds=5), retention=timedelta(hours=1),
            )  # type: ignore[arg-type]  # fmt: skip
            found: list[int] = []
            sweep = threading.Thread(target=lambda monitor=monitor, found=found: found.append(monitor.purge_expired()))
            if period == "sweep":
                sweep.start()
            end = time.monotonic() + arguments.seconds
            while time.monotonic() < end and (period == "idle" or sweep.is_alive()):
                begin = time.perf_counter()
                service.create(SPEC, owner="ada", groups=("g1", "g2"))
                taken[period].append((time.perf_counter() - begin) * 1000)
                time.sleep(max(0.0, 1 / arguments.rate - (time.perf_counter() - begin)))
            if period == "sweep":
                monitor._stop.set()
                sweep.join()
                purged += found[0]
        rounds += 1
        is_left = purged < arguments.tasks * 0.97
    remaining = repository.count(TaskFilter(name_prefix="r"), limit=arguments.tasks)
    print(
        f"{purged} tasks purged in {rounds} periods of at most {arguments.seconds:g} s; {remaining} old ones have not ended"
    )
    print("| Creates | n | p50 ms | p99 ms |\n|---|---|---|---|")
    for period, values in taken.items():
        print(f"| {period} | {len(values)} | {quantile(values, 0.5):.1f} | {quantile(values, 0.99):.1f} |")
    database.close()
    path.unlink()


if __name__ == "__main__":
    main()
