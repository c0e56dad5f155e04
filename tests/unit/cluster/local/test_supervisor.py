"""What the supervisor makes of a command that ended without a record of its launcher."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from poiesis.cluster.local.pod import LocalPod, make_pod
from poiesis.cluster.local.runtime import Ending, Run, RunState, Runtime, Signal
from poiesis.cluster.local.supervisor import Filers, Supervisor, read_record
from poiesis.cluster.local.task_directory import TaskDirectory
from poiesis.domain.decide.stages import plan_of
from poiesis.domain.observed import Record
from poiesis.domain.report import FilerReport
from poiesis.testing.clock import ManualClock
from tests.unit.domain.samples import POLICY, executor, spec, stored

PATIENCE_S = 20.0


class KilledRun:
    """The kernel kills the command and its launcher at once."""

    def __init__(self) -> None:
        self._state = RunState.ABSENT

    def state(self) -> RunState:
        return self._state

    def start(self) -> None:
        self._state = RunState.ENDED

    def wait(self, stop: Signal, seconds: float) -> bool:
        return True

    def terminate(self) -> None: ...

    def kill(self) -> None: ...

    def ending(self) -> Ending:
        return Ending(oom_killed=True)

    def tails(self) -> tuple[str, str]:
        return "", ""

    def clean(self) -> None: ...


class KillingRuntime(Runtime):
    pulls = False

    def describe(self) -> str:
        return "kills"

    def probe(self) -> None:
        return

    def run(self, task_dir: TaskDirectory, pod: LocalPod, member: object) -> Run:
        return KilledRun()

    def release(self, task_dir: TaskDirectory) -> None:
        return

    def close(self) -> None:
        return


@pytest.mark.parametrize("ignore_error", [False, True])
def test_a_command_killed_with_its_launcher_for_lack_of_memory_stops_the_next_unless_ignored(
    tmp_path: Path, ignore_error: bool
) -> None:
    task = stored(spec((executor(ignore_error=ignore_error), executor(ignore_error=True))))
    plan = plan_of(task, POLICY)
    pod, task_dir = make_pod(task, plan, plan.pods[0], POLICY), TaskDirectory(tmp_path, task.id, 1)
    task_dir.make()
    over = threading.Event()
    filers = Filers(lambda *_: FilerReport(), lambda *_: FilerReport())
    Supervisor(
        task_dir,
        pod,
        runtime=KillingRuntime(),
        filers=filers,
        clock=ManualClock(),
        changed=lambda: None,
        ended=over.set,
    ).start()
    assert over.wait(PATIENCE_S)
    records = [record for member in pod.members if (record := read_record(task_dir, member)) is not None]
    assert [_essence(record) for record in records] == [
        (ignore_error, 137, True, None),
        (True, 137, True, None) if ignore_error else (False, None, False, "Skipped"),
    ]


def _essence(record: Record) -> tuple[bool, int | None, bool, str | None]:
    return record.ok, record.exit_code, record.oom_killed, record.reason
