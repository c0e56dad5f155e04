"""A test bench for the local cluster: real launcher, real commands, filers of a few lines."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from poiesis.cluster.local import Filers, LocalCluster
from poiesis.domain.observed import Container, Observed, Record
from poiesis.domain.plan import Plan, plan
from poiesis.domain.policy import Policy
from poiesis.domain.report import FilerReport, TransferredFile
from poiesis.domain.task import Executor, Task, TaskId, TaskSpec

IMAGE = os.environ.get("POIESIS_TEST_CONTAINER_IMAGE", "localhost/busybox:1")
POLICY = Policy(grace=timedelta(seconds=1), tail_bytes=4096)
DEADLINE = 60.0  # seconds; generous, for a machine that is busy with other tests


class RealClock:
    def now(self) -> datetime:
        return datetime.now(UTC)


def stage_in(document: Mapping[str, Any], volume: Path, cancelled: Callable[[], bool]) -> FilerReport:
    files = []
    for item in document["inputs"]:
        path = volume / "root" / item["path"].lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(item["content"])
        path.chmod(0o666)
        files.append(TransferredFile(item["url"] or "", item["path"], len(item["content"])))
    for name in document["touched"]:
        path = volume / "root" / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        path.chmod(0o666)
    return FilerReport(files=tuple(files), total_files=len(files))


def stage_out(document: Mapping[str, Any], volume: Path, cancelled: Callable[[], bool]) -> FilerReport:
    """Copies to the path of the file URL."""
    files = []
    for item in document["outputs"]:
        source = volume / "root" / item["path"].lstrip("/")
        if not source.is_file():
            return FilerReport(error=f"{item['path']} is missing", error_code="not_found")
        Path(item["url"].removeprefix("file://")).write_bytes(source.read_bytes())
        files.append(TransferredFile(item["url"], item["path"], source.stat().st_size))
    return FilerReport(files=tuple(files), total_files=len(files))


FILERS = Filers(stage_in, stage_out)


def eventually(condition: Callable[[], Any], what: str = "condition", deadline: float = DEADLINE) -> Any:
    """Return the first true result of `condition`, which is polled; fail after a deadline."""
    end = time.monotonic() + deadline
    while not (found := condition()):
        assert time.monotonic() < end, f"no {what}"
        time.sleep(0.02)
    return found


def sh(script: str, **more: Any) -> Executor:
    return Executor(IMAGE, ("sh", "-c", script), **more)


class Lab:
    """A service directory and the cluster that uses it. `reopen` is a clean restart; for crashes see victim.py."""

    def __init__(self, directory: Path, launcher: Path, runtime: str, **options: Any) -> None:
        self.directory = directory
        self.launcher = launcher
        self.runtime = runtime
        self.policy: Policy = options.pop("policy", POLICY)
        self.filers: Filers = options.pop("filers", FILERS)
        self.options = options
        self.id = f"t{secrets.token_hex(6)}"  # engines have one space of names for all tests at once
        self.woken: list[TaskId] = []
        self.cluster = self.open()

    def open(self) -> LocalCluster:
        cluster = LocalCluster(
            self.directory, self.runtime, self.policy, self.filers, RealClock(), self.launcher, **self.options
        )
        cluster.follow(self.woken.append)
        return cluster

    def reopen(self) -> None:
        self.cluster.close()
        self.cluster = self.open()

    def task(self, *executors: Executor, id: str | None = None, **spec: Any) -> Task:
        return Task(TaskId(id or self.id), TaskSpec(executors=executors, **spec), RealClock().now())

    def plan(self, task: Task) -> Plan:
        return plan(task.spec, self.policy)

    def launch(self, task: Task, part: str | None = None) -> Task:
        the_plan = self.plan(task)
        self.cluster.create_volume(task, the_plan)
        self.cluster.create_documents(task, the_plan)
        for pod in the_plan.pods:
            if part is None or pod.part == part:
                self.cluster.launch(task, the_plan, pod)
        return task

    def run(self, *executors: Executor, **spec: Any) -> Observed:
        return self.ended(self.launch(self.task(*executors, **spec)))

    def ended(self, task: Task) -> Observed:
        def look() -> Observed | None:
            seen = self.cluster.observe(task)
            return seen if seen.pods and all(p.ended for p in seen.pods) else None

        found: Observed = eventually(look, f"the end of {task.id}")
        return found

    def remove(self, task: Task) -> None:
        self.cluster.delete_all(task.id, task.attempt)
        eventually(lambda: self.cluster.observe(task).is_empty, "the removal")

    def live(self, task: Task, name: str = "executor-0") -> str:
        return self.cluster.observe(task, tails=True).tails.get(name, ("", ""))[0]

    def close(self) -> None:
        """Remove everything, also after a failed test."""
        for task_id in self.cluster.task_ids():
            self.cluster.delete_all(task_id, None)
        with contextlib.suppress(AssertionError):
            eventually(lambda: not list(self.cluster.task_ids()), "clean-up")
        self.cluster.close()


def container(seen: Observed, name: str = "executor-0") -> Container:
    found = [c for p in seen.pods for c in p.containers if c.name == name]
    assert found, f"no container {name} in {seen}"
    return found[0]


def record(seen: Observed, name: str = "executor-0") -> Record:
    found = container(seen, name).record
    assert found is not None, f"no record of {name} in {seen}"
    return found


def processes_with(text: str) -> list[int]:
    """Processes of this machine whose command line contains a text."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if text.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
    return found


@contextlib.contextmanager
def bench(directory: Path, launcher: Path, runtime: str, **options: Any) -> Iterator[Lab]:
    lab = Lab(directory, launcher, runtime, **options)
    try:
        yield lab
    finally:
        lab.close()
