"""One sentence about a task: for every stage, every reason of waiting, and every reason of a failure."""

from __future__ import annotations

import inspect
import re
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from poiesis.cluster.kubernetes import observe
from poiesis.cluster.local import container_runtime, process_runtime, supervisor
from poiesis.domain import timeline
from poiesis.domain.decide import endings, progress, stages
from poiesis.domain.errors import StagingFailed
from poiesis.domain.states import Stage, State
from poiesis.domain.task import Executor, ExecutorLog, Outcome, Task, TaskId, TaskLog, TaskSpec
from poiesis.domain.why import FAILURES, WAITS, explain
from poiesis.filer import outputs

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ONE = TaskSpec(executors=(Executor("i", ("c",)),))
TWO = TaskSpec(executors=(Executor("i", ("c",)), Executor("i", ("c",))))
TASK = Task(id=TaskId("t"), spec=ONE, created_at=NOW)
ENDED = ExecutorLog(0)
LIVE = ExecutorLog(None)


def _failed(reason: str, message: str, **more: object) -> Task:
    log = TaskLog(metadata={"failure_reason": reason, "failure_message": message})
    return replace(TASK, state=State.SYSTEM_ERROR, stage=Stage.CLEAN, log=log, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("task", "sentence"),
    [
        (TASK, "The task is accepted and about to be prepared."),
        (replace(TASK, stage=Stage.ADMIT), "The task waits for its turn in the site's queue."),
        (replace(TASK, stage=Stage.ADMIT, waiting="Queued: third in your queue; your quota of 8 cores is in use"),
         "The task waits because the site's quotas leave no room for it yet: third in your queue; your quota of 8 cores is in use."),
        (replace(TASK, stage=Stage.STAGE_IN), "The task is about to start: its inputs are prepared for the download."),
        (replace(TASK, stage=Stage.STAGE_IN, part="tif"), "The task waits for a node: its pod is created and not scheduled yet."),
        (replace(TASK, stage=Stage.STAGE_IN, part="tif", state=State.INITIALIZING),
         "The task is starting: its inputs are being downloaded."),
        (replace(TASK, stage=Stage.LAUNCH), "The task is about to start: its pod is being created."),
        (replace(TASK, stage=Stage.RUN), "The task waits for a node: its pod is created and not scheduled yet."),
        (replace(TASK, stage=Stage.RUN, state=State.INITIALIZING),
         "The task is starting: its images are being pulled, its inputs downloaded, or its containers started."),
        (replace(TASK, stage=Stage.RUN, state=State.RUNNING), "The task's command is running."),
        (replace(TASK, spec=TWO, stage=Stage.RUN, state=State.RUNNING, log=TaskLog(logs=(ENDED, LIVE))),
         "The task's command 2 of 2 is running."),
        (replace(TASK, stage=Stage.RUN, state=State.RUNNING, log=TaskLog(logs=(ENDED,))),
         "The task's commands have ended and its outputs are being uploaded."),
        (replace(TASK, stage=Stage.STAGE_OUT, state=State.RUNNING), "The task's commands have ended and its outputs are being uploaded."),
        (replace(TASK, stage=Stage.STAGE_OUT, state=State.RUNNING, uploads=2),
         "The task's outputs are being uploaded again (upload 2) because the upload was interrupted."),
        (replace(TASK, stage=Stage.FINISH, state=State.RUNNING, outcome=Outcome(State.COMPLETE)),
         "The task's commands have ended and its results are being recorded."),
        (replace(TASK, stage=Stage.FINISH, outcome=Outcome(State.SYSTEM_ERROR, "NodeLost", "node n1 is gone", retry=True)),
         "The task is tried again as soon as the objects of attempt 1 are gone, because its node was lost: node n1 is gone."),
        (replace(TASK, stage=Stage.FINISH, outcome=Outcome(State.EXECUTOR_ERROR, "ExecutorFailed", "executor 0 failed with exit code 3")),
         "The task is about to end as failed because a command failed: executor 0 failed with exit code 3."),
        (replace(TASK, stage=Stage.FINISH, cancel_requested_at=NOW, state=State.CANCELING),
         "The task is being canceled: it ends when its containers are gone."),
        (replace(TASK, cancel_requested_at=NOW, state=State.CANCELING, waiting="QuotaExceeded: x"),
         "The task is being canceled: it ends when its containers are gone."),
        (replace(TASK, cancel_requested_at=NOW, state=State.CANCELING, waiting="NodeUnreachable: node n1 may be down"),
         "The task is being canceled: it ends when its containers are gone. "
         "The task waits because its node does not confirm that its containers have ended: node n1 may be down."),
        (replace(TASK, attempt=2, log=TaskLog(system_logs=("2026-01-01T00:00:00.000Z Attempt 1 failed. Evicted: disk pressure",))),
         "The task waits for attempt 2, which starts after a delay because attempt 1 failed: its node evicted the pod: disk pressure."),
        (replace(TASK, attempt=2), "The task waits for attempt 2, which starts after a delay."),
        (replace(TASK, waiting="Unschedulable: 0/3 nodes are available: 3 Insufficient cpu."),
         "The task waits because no node can take its pod yet: 0/3 nodes are available: 3 Insufficient cpu."),
        (replace(TASK, waiting="ErrImagePull in executor-0: not there\nat all"),
         "The task waits because an image cannot be pulled (executor-0): not there at all."),
        (replace(TASK, waiting="Waiting for free capacity on this machine: other tasks are running."),
         "The task waits. Waiting for free capacity on this machine: other tasks are running."),
        (replace(TASK, waiting="SomethingNew: of a later version"), "The task waits because of SomethingNew: of a later version."),
        (replace(TASK, waiting="SomethingNew"), "The task waits because of SomethingNew."),
        (replace(TASK, state=State.COMPLETE, stage=Stage.DONE), "The task is complete: its commands have run and its outputs are stored."),
        (replace(TASK, state=State.CANCELED, stage=Stage.DONE), "The task was canceled by request."),
        (_failed("NotFound", "s3://b/k does not exist."), "The task failed because a file does not exist: s3://b/k does not exist."),
        (_failed("NodeLost", "gone", attempt=3), "The task failed after 3 attempts because its node was lost: gone."),
        (_failed("NewReason", "x"), "The task failed because of NewReason: x."),
        (replace(TASK, state=State.SYSTEM_ERROR, stage=Stage.DONE), "The task failed because of an unknown reason."),
    ],
)  # fmt: skip
def test_the_sentence(task: Task, sentence: str) -> None:
    assert explain(task) == sentence


@pytest.mark.parametrize("stage", list(Stage))
@pytest.mark.parametrize("state", [s for s in State if s not in (State.UNKNOWN, State.PAUSED)])
def test_every_stage_and_state_has_one(stage: Stage, state: State) -> None:
    text = explain(replace(TASK, stage=stage, state=state))
    assert re.fullmatch(r"The task[^\n]*\.", text)


@pytest.mark.parametrize("reason", sorted(WAITS))
def test_every_reason_of_waiting_is_explained(reason: str) -> None:
    assert explain(replace(TASK, waiting=f"{reason}: details")).endswith(f"{WAITS[reason]}: details.")


@pytest.mark.parametrize("reason", sorted(FAILURES))
def test_every_reason_of_a_failure_is_explained(reason: str) -> None:
    assert explain(_failed(reason, "details")).endswith(f"because {FAILURES[reason]}: details.")


def _kinds(kind: type[StagingFailed]) -> set[type[StagingFailed]]:
    """With those of the filers, which have to be imported."""
    return {kind}.union(*map(_kinds, kind.__subclasses__()))


def test_the_tables_know_every_reason_that_the_code_gives() -> None:
    """Reasons are literals where an outcome, a fault or a lost pod is made."""
    made = re.compile(
        r"(?:Outcome\(State\.\w+|Fault|Lost|_filer_reason\(report|else own or|StartFailed)[(, ]+\"([A-Z]\w+)\""
    )
    source = "".join(
        inspect.getsource(m) for m in (stages, progress, endings, supervisor, container_runtime, process_runtime)
    )
    found = set(made.findall(source)) | set(endings._RECORD_REASONS.values())
    found |= set(observe.DISRUPTIONS.values()) | set(observe.POD_REASONS.values())
    found |= {"".join(w.capitalize() for w in kind.code.split("_")) for kind in _kinds(StagingFailed)}
    assert len(found) > 25 and outputs.OutputMissing.code == "output_missing"
    assert found - set(FAILURES) - set(WAITS) == set()
    assert not timeline.IMAGE_REASONS - set(WAITS)
