"""How often a running task is checked without an event, and whose word counts about a pod that was taken away."""

from datetime import timedelta

import pytest

from poiesis.domain.decide.endings import Fault, read_executors
from poiesis.domain.decide.progress import MAX_RECHECKS, Waiting, follow
from poiesis.domain.decide.stages import plan_of
from poiesis.domain.observed import Container, Observed, Phase, Pod, Record
from poiesis.domain.policy import Policy
from poiesis.domain.states import Stage, State
from tests.unit.domain.samples import SMALL, World, stored

POLICY = Policy()


def pod(record: Record | None = None, **more: object) -> Pod:
    container = Container("executor-0", Phase.RUNNING if record is None else Phase.ENDED, record=record)
    return Pod("p", 1, "task", scheduled=True, node="n", containers=(container,), **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "age, pause",
    [
        (timedelta(0), POLICY.recheck),
        (timedelta(minutes=1), POLICY.recheck),
        (timedelta(minutes=8), timedelta(minutes=2)),
        (timedelta(days=3), MAX_RECHECKS * POLICY.recheck),
    ],
)
def test_the_longer_a_pod_has_run_the_more_rarely_it_is_checked(age: timedelta, pause: timedelta) -> None:
    now = World().now
    task = stored(SMALL, state=State.RUNNING, stage=Stage.RUN, part="task", stage_since=now - age, wake_at=now)
    found = follow(task, Observed(pods=(pod(),)), plan_of(task, POLICY).pods[0], now, POLICY)
    assert isinstance(found, Waiting) and found.task.wake_at == now + pause


@pytest.mark.parametrize("lost, reason", [("Preempted", "Preempted"), (None, "PodTerminated")])
def test_the_cluster_knows_better_than_the_record_why_a_command_was_terminated(lost: str | None, reason: str) -> None:
    task, now = stored(SMALL, state=State.RUNNING, stage=Stage.RUN, part="task"), World().now
    ended = pod(Record("executor-0", False, 143, "Terminated"), lost=lost, message="for another workload")
    _, cause = read_executors(task, ended, plan_of(task, POLICY).pods[0], now, POLICY)
    assert isinstance(cause, Fault) and cause.reason == reason and cause.began
