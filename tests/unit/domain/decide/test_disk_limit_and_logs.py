"""What the cluster shows only while a pod is removed: that it was over its disk limit, and that its output was not stored."""

from dataclasses import replace

import pytest

from poiesis.domain.decide.progress import LOGS_INCOMPLETE
from poiesis.domain.observed import DISK_LIMIT, Pod
from poiesis.domain.states import ROLE_OF, Stage, State
from poiesis.domain.task import Task
from tests.unit.domain.samples import ID, World, running, text_of

FULL = 'Usage of EmptyDir volume "control" exceeds the limit "64Mi". '


def change(world: World, **fields: object) -> None:
    def changed(pod: Pod) -> Pod:
        return replace(pod, **fields)  # type: ignore[arg-type]

    world.cluster._change(ID, "task", changed)


def steps(world: World, count: int = 4) -> Task:
    """Some links; while pods are being removed a task does not settle."""
    for _ in range(count):
        world.link(ROLE_OF[world.task.due_stage])
    return world.task


def removed(world: World) -> Task:
    world.cluster.slow = False
    world.cluster.remove(ID)
    return world.to_the_end()


def test_a_pod_over_its_disk_limit_ends_the_task_without_another_attempt():
    world = running()
    world.cluster.lose(ID, "task", DISK_LIMIT, FULL)
    task = world.to_the_end()
    assert (task.state, task.attempt) == (State.EXECUTOR_ERROR, 1)
    assert (task.log.metadata["failure_reason"], task.log.metadata["failure_message"]) == ("DiskLimit", FULL)
    assert world.cluster.created == {(ID, 1, "task"): 1}


@pytest.mark.parametrize("is_shown_late", [False, True])
def test_the_limit_is_the_reason_also_if_the_record_of_the_termination_came_first(is_shown_late: bool):
    world = running()
    world.cluster.slow = True
    record = world.cluster.record("executor-0", 143, reason="Terminated")
    if not is_shown_late:
        change(world, lost=DISK_LIMIT, message=FULL)
    world.cluster.end(ID, "task", "executor-0", record)
    task = steps(world)
    if is_shown_late:
        assert (task.stage, task.outcome and task.outcome.reason) == (Stage.FINISH, "PodTerminated")
        change(world, lost=DISK_LIMIT, message=FULL)
        steps(world)
    task = removed(world)
    assert (task.state, task.attempt, task.log.metadata["failure_reason"]) == (State.EXECUTOR_ERROR, 1, "DiskLimit")
    assert task.log.metadata.get("attempts", "1") == "1"
    assert world.cluster.created == {(ID, 1, "task"): 1}


def test_a_pod_of_an_earlier_attempt_does_not_end_the_task():
    world = running()
    world.cluster.slow = True
    world.cluster.end(ID, "task", "executor-0", world.cluster.record("executor-0", 143, reason="Terminated"))
    steps(world)
    change(world, lost=DISK_LIMIT, message=FULL, attempt=7)
    steps(world)
    assert world.task.outcome is not None
    assert world.task.outcome.reason == "PodTerminated"


def test_a_store_of_logs_that_is_away_at_the_end_is_noted_once_when_the_pod_is_removed():
    world = running()
    world.cluster.slow = True
    world.cluster.end(ID, "task", "executor-0", world.cluster.record("executor-0"))
    task = steps(world)
    assert (task.stage, task.state) == (Stage.CLEAN, State.COMPLETE)
    assert LOGS_INCOMPLETE not in task.log.metadata
    change(world, log_problem="connection refused")
    for _ in range(3):
        world.monitor()  # follows the pods; the link only deletes them
    task = removed(world)
    assert (task.stage, task.state) == (Stage.DONE, State.COMPLETE)
    assert task.log.metadata[LOGS_INCOMPLETE] == "true"
    assert text_of(task).count("The whole output is not stored: connection refused") == 1


def test_no_note_without_a_problem():
    world = running()
    world.cluster.slow = True
    world.cluster.end(ID, "task", "executor-0", world.cluster.record("executor-0"))
    steps(world)
    task = removed(world)
    assert LOGS_INCOMPLETE not in task.log.metadata
