"""The service is killed at every point: running commands continue, nothing runs twice, nothing is lost."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from poiesis.cluster.local.disk_usage import DiskUsage
from poiesis.cluster.local.pod import Member
from poiesis.cluster.local.runtime import Run
from poiesis.cluster.local.supervisor import Supervisor
from poiesis.domain.errors import ConfigurationError
from poiesis.domain.observed import Phase
from poiesis.domain.task import Task
from poiesis.services.monitor import Monitor
from poiesis.services.orchestrator import Orchestrator
from poiesis.testing.queue import RecordingQueue
from poiesis.testing.repository import MemoryTaskRepository
from tests.integration.cluster import victim
from tests.integration.cluster.harness import (
    POLICY,
    Lab,
    RealClock,
    container,
    eventually,
    processes_with,
    record,
    sh,
)


class Victim:
    """The process of victim.py, which tests kill; `volume` is what its task sees as /work."""

    def __init__(self, directory: Path, launcher: Path, runtime: str) -> None:
        self.arguments = [str(directory), str(launcher), runtime]
        self.hold = directory.parent / "hold"
        self.task: Task = victim.counted_task(f"v{os.urandom(6).hex()}", self.hold.with_name("count"))
        self.task_dir = directory / "tasks" / f"poiesis-{self.task.id}-1"
        self.volume = self.task_dir / "volume" / "root" / "work"
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, victim.__file__, *self.arguments, self.task.id, str(self.hold)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "launched\n"

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.communicate()

    def filers(self) -> list[str]:
        log = Path(f"{self.hold}.log")
        return log.read_text().split() if log.exists() else []

    def go(self, index: int) -> None:
        (self.volume / f"go-{index}").touch()

    def counted(self) -> str:
        path = self.volume / "count"
        return path.read_text() if path.exists() else ""

    def has_record(self, name: str) -> bool:
        return (self.task_dir / "state" / f"{name}.json").exists()

    def finish(self, make_lab: Callable[..., Lab]) -> Lab:
        """A new service takes over, and every task completes."""
        lab = make_lab(self.arguments[2], filers=victim.holding(self.hold))
        self.hold.unlink(missing_ok=True)
        eventually(self.counted, "the first command")
        self.go(0)
        self.go(1)
        seen = lab.ended(self.task)
        assert seen.pods[0].lost is None
        assert all(c.record is not None and c.record.ok for c in seen.pods[0].containers)
        assert self.hold.with_name("count").read_text() == "0\n1\n"
        return lab

    def assert_nothing_left(self, lab: Lab) -> None:
        lab.remove(self.task)
        assert not self.task_dir.exists()
        assert not processes_with(self.task.id)
        assert not [d for d, _, _ in os.walk("/sys/fs/cgroup") if self.task.id in d]
        assert self.task.id not in Path("/proc/mounts").read_text()


@pytest.fixture(params=["process", "docker", "podman"])
def service(
    request: pytest.FixtureRequest, tmp_path: Path, launcher: Path, why_not: Callable[[str], str | None]
) -> Iterator[Victim]:
    reason = why_not(request.param)
    if reason is not None:
        pytest.skip(reason)
    found = Victim(tmp_path / "service", launcher, request.param)
    try:
        yield found
    finally:
        found.kill()


def test_killed_while_inputs_are_staged(service: Victim, make_lab: Callable[..., Lab]) -> None:
    service.hold.touch()
    service.start()
    eventually(service.filers, "the filer")
    service.kill()
    service.finish(make_lab)
    assert service.filers() == ["tif", "tif", "tof"]


def test_killed_while_a_command_runs(service: Victim, make_lab: Callable[..., Lab]) -> None:
    service.start()
    eventually(service.counted, "the first command")
    for _ in range(3):
        service.kill()
        service.start()
    service.kill()
    lab = service.finish(make_lab)
    assert service.filers() == ["tif", "tof"]
    assert record(lab.cluster.observe(service.task)).stdout == "up\n"


def test_a_command_that_ends_while_there_is_no_service(service: Victim, make_lab: Callable[..., Lab]) -> None:
    service.start()
    eventually(service.counted, "the first command")
    service.kill()
    service.go(0)
    eventually((service.task_dir / "control/executor-0/executor-0.json").exists, "the record")
    service.finish(make_lab)


def test_killed_while_outputs_are_uploaded(service: Victim, make_lab: Callable[..., Lab]) -> None:
    service.start()
    eventually(service.counted, "the first command")
    service.hold.touch()
    service.go(0)
    service.go(1)
    eventually(lambda: "tof" in service.filers(), "the filer")
    service.kill()
    service.finish(make_lab)
    assert service.filers() == ["tif", "tof", "tof"]


@pytest.mark.parametrize("after_ms", [0, 5, 15, 30, 45, 60, 80, 120, 200, 350])
def test_killed_at_any_moment(service: Victim, make_lab: Callable[..., Lab], after_ms: int) -> None:
    if service.arguments[2] != "process" and after_ms % 20:
        pytest.skip("fewer kills with an engine: each takes seconds")
    service.start()
    time.sleep(after_ms / 1000)  # no condition: any moment is possible
    service.kill()
    service.assert_nothing_left(service.finish(make_lab))


def test_a_command_whose_launcher_was_killed_is_lost_and_not_repeated(
    process_lab: Lab, tmp_path: Path, launcher: Path
) -> None:
    task = process_lab.launch(process_lab.task(sh("echo x >> /work/count; sleep 600"), volumes=("/work",)))
    count = process_lab.directory / f"tasks/poiesis-{task.id}-1/volume/root/work/count"
    eventually(count.exists, "the command")
    process = int(
        (process_lab.directory / f"tasks/poiesis-{task.id}-1/state/executor-0.pid")
        .read_text()
        .split(": ")[1]
        .split(",")[0]
    )
    process_lab.cluster.close()
    os.kill(process, signal.SIGKILL)
    process_lab.cluster = process_lab.open()
    seen = process_lab.ended(task)
    assert seen.pods[0].lost == "ExecutorLost" and "executor-0" in (seen.pods[0].message or "")
    assert container(seen).phase is Phase.ENDED and container(seen).record is None
    process_lab.reopen()
    assert process_lab.ended(task).pods[0].lost == "ExecutorLost"
    process_lab.cluster.delete_pods(task.id, task.attempt)
    eventually(lambda: not process_lab.cluster.observe(task).pods, "the end")
    process_lab.launch(task)  # a late link
    assert process_lab.ended(task).pods[0].lost == "ExecutorLost"
    assert count.read_text() == "x\n"


def test_a_requested_deletion_continues_after_a_restart(process_lab: Lab) -> None:
    task = process_lab.launch(
        process_lab.task(sh("trap '' TERM; echo up; while :; do sleep 0.1; done"), volumes=("/work",))
    )
    eventually(lambda: "up" in process_lab.live(task), "output")
    process_lab.cluster.delete_all(task.id, task.attempt)
    process_lab.reopen()
    eventually(lambda: process_lab.cluster.observe(task).is_empty, "the removal")
    assert list((process_lab.directory / "tasks").iterdir()) == []


def unique_seconds() -> int:
    """For a `sleep` that is recognised among all processes."""
    return 600 + time.time_ns() % 10**9


def test_objects_of_an_unknown_task_are_removed_however_many_attempts_it_had(process_lab: Lab) -> None:
    """A command that runs out of memory may be repeated ten times, beyond the policy's attempts."""
    mark = unique_seconds()
    task = replace(process_lab.task(sh(f"sleep {mark}")), attempt=POLICY.max_attempts + 10)
    process_lab.launch(task)
    eventually(lambda: processes_with(f"sleep\0{mark}"), "the command")
    orchestrator = Orchestrator(MemoryTaskRepository(), process_lab.cluster, RealClock(), POLICY)
    orchestrator.repository.add(process_lab.task(sh("true"), id="another"))
    monitor = Monitor(
        orchestrator, orchestrator.repository, RecordingQueue(), process_lab.cluster, RealClock(),
        threads=1, resync_every=timedelta(hours=1),
    )  # fmt: skip
    assert monitor.sweep() == 1
    eventually(lambda: not list(process_lab.cluster.task_ids()), "the removal")
    assert not processes_with(f"sleep\0{mark}")


def test_after_an_internal_error_no_command_goes_on(process_lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: DiskUsage) -> bool:
        raise RuntimeError("a bug")

    mark = unique_seconds()
    task = process_lab.launch(process_lab.task(sh(f"echo up; sleep {mark}")))
    eventually(lambda: "up" in process_lab.live(task), "output")
    monkeypatch.setattr(DiskUsage, "is_exceeded", broken)
    assert process_lab.ended(task).pods[0].lost == "LocalError"
    assert not processes_with(f"sleep\0{mark}")


def test_an_internal_error_while_the_service_closes_ends_no_command(
    process_lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    follow = Supervisor._follow

    def broken(self: Supervisor, run: Run, member: Member) -> bool:
        follow(self, run, member)
        raise RuntimeError("a bug")

    mark = unique_seconds()
    with monkeypatch.context() as patch:
        patch.setattr(Supervisor, "_follow", broken)
        task = process_lab.launch(process_lab.task(sh(f"echo up; sleep {mark}")))
        eventually(lambda: "up" in process_lab.live(task), "output")
        process_lab.cluster.close()
    process_lab.cluster = process_lab.open()
    assert not process_lab.cluster.observe(task).pods[0].ended and processes_with(f"sleep\0{mark}")


def test_two_services_cannot_share_a_directory(process_lab: Lab) -> None:
    with pytest.raises(ConfigurationError, match="in use"):
        process_lab.open()


def test_launching_again_changes_nothing(process_lab: Lab) -> None:
    task = process_lab.task(sh("echo x >> /work/count"), volumes=("/work",))
    for _ in range(5):
        process_lab.launch(task)
    seen = process_lab.ended(task)
    process_lab.launch(task)
    process_lab.reopen()
    assert process_lab.ended(task) == seen
    count = process_lab.directory / f"tasks/poiesis-{task.id}-1/volume/root/work/count"
    assert count.read_text() == "x\n"
    with contextlib.suppress(FileNotFoundError):
        assert not list((process_lab.directory / f"tasks/poiesis-{task.id}-1/scratch").iterdir())
