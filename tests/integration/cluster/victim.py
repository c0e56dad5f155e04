"""A service process that is to be killed: opens a cluster, launches a task, and waits for its end.

    python victim.py DIRECTORY LAUNCHER RUNTIME TASK-ID HOLD

Prints `launched` once everything is on disk. HOLD names a file: while it exists, filers do not end.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[3]))

from poiesis.cluster.local import Filers, LocalCluster
from poiesis.domain.plan import plan
from poiesis.domain.report import FilerReport
from poiesis.domain.task import Input, Output, Task, TaskId, TaskSpec
from tests.integration.cluster.harness import POLICY, RealClock, sh, stage_in, stage_out

EXECUTORS = (
    # each start of the command is counted in a file that outlives it
    sh("echo 0 >> /work/count; echo up; while [ ! -e /work/go-0 ]; do sleep 0.05; done"),
    sh("echo 1 >> /work/count; while [ ! -e /work/go-1 ]; do sleep 0.05; done"),
)


def counted_task(task_id: str, output: Path) -> Task:
    spec = TaskSpec(
        executors=EXECUTORS,
        inputs=(Input("/work/in", content="x"),),
        outputs=(Output("/work/count", f"file://{output}"),),
    )
    return Task(TaskId(task_id), spec, RealClock().now())


def holding(hold: Path) -> Filers:
    """Filers that write a line to `hold`.log when they begin, and do not end while `hold` exists."""

    def held(stage: Callable[..., FilerReport], name: str) -> Callable[..., FilerReport]:
        def work(document: Mapping[str, Any], volume: Path, cancelled: Callable[[], bool]) -> FilerReport:
            with open(f"{hold}.log", "a") as file:
                file.write(f"{name}\n")
            while hold.exists() and not cancelled():
                time.sleep(0.01)
            return stage(document, volume, cancelled)

        return work

    return Filers(held(stage_in, "tif"), held(stage_out, "tof"))


def main() -> None:
    directory, launcher, runtime, task_id, hold = sys.argv[1:]
    cluster = LocalCluster(Path(directory), runtime, POLICY, holding(Path(hold)), RealClock(), Path(launcher))
    task = counted_task(task_id, Path(hold).with_name("count"))
    the_plan = plan(task.spec, POLICY)
    cluster.create_volume(task, the_plan)
    cluster.create_documents(task, the_plan)
    cluster.launch(task, the_plan, the_plan.pods[0])
    print("launched", flush=True)
    time.sleep(600)


if __name__ == "__main__":
    main()
