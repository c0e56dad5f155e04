"""Following a pod: waiting and its deadlines, live output."""

from dataclasses import replace
from datetime import timedelta

import pytest

from poiesis.domain.decide.admission import waiting_word
from poiesis.domain.decide.journal import KEPT_FOR_THE_END, MAX_SYSTEM_LOGS
from poiesis.domain.decide.progress import MAX_STARTS
from poiesis.domain.decide.stages import decide_after
from poiesis.domain.errors import ClusterRefused, ClusterUnavailable, QuotaExceeded
from poiesis.domain.observed import Phase, Room
from poiesis.domain.report import FilerReport
from poiesis.domain.states import Stage, State
from poiesis.domain.task import Input, Outcome
from poiesis.testing.clock import START
from tests.unit.domain.samples import (
    FILES,
    GPUS,
    ID,
    POLICY,
    SMALL,
    World,
    running,
    spec,
    stored,
    text_of,
)


def test_an_unschedulable_pod_stays_queued_with_the_reason_until_the_deadline():
    world = World(SMALL)
    world.launch()
    world.cluster.hold(ID, "task", "Unschedulable: 0/3 nodes are available")
    task = world.settle()
    assert (task.state, task.waiting) == (State.QUEUED, "Unschedulable: 0/3 nodes are available")
    assert "Unschedulable" in text_of(task)
    assert task.log.metadata["waiting_reason"] == task.waiting
    world.wait(POLICY.schedule_deadline - timedelta(seconds=1))
    assert world.task.state is State.QUEUED
    world.wait(timedelta(seconds=2))
    assert (world.task.state, world.task.log.metadata["failure_reason"]) == (State.SYSTEM_ERROR, "Unschedulable")


def test_an_unscheduled_pod_without_a_reason_has_a_deadline_too():
    world = World(SMALL)
    world.launch()
    world.wait(POLICY.schedule_deadline + timedelta(seconds=1))
    assert world.task.state is State.SYSTEM_ERROR


@pytest.mark.parametrize(
    ("reason", "message", "failure"),
    [
        ("ErrImagePull", "manifest unknown", "ImagePullFailed"),
        ("ImagePullBackOff", "pull access denied", "ImagePullFailed"),
        ("InvalidImageName", "couldn't parse", "ImagePullFailed"),
    ],
)
def test_a_refused_image_ends_the_task_at_once(reason, message, failure):
    world = World(SMALL)
    world.launch()
    world.cluster.schedule(ID, "task")
    world.cluster.stick(ID, "task", "executor-0", reason, message)
    task = world.settle()
    assert (task.state, task.log.metadata["failure_reason"]) == (State.SYSTEM_ERROR, failure)
    assert message in task.log.metadata["failure_message"]
    assert task.log.logs == ()


@pytest.mark.parametrize(
    ("reason", "failure"),
    [("ErrImagePull", "ImagePullFailed"), ("CreateContainerConfigError", "ContainerNotCreated")],
)
def test_a_failing_start_that_may_still_succeed_is_tolerated_until_a_deadline(reason, failure):
    world = World(SMALL)
    world.launch()
    world.cluster.schedule(ID, "task")
    world.cluster.stick(ID, "task", "executor-0", reason, "connection reset")
    task = world.settle()
    assert (task.state, task.stage) == (State.INITIALIZING, Stage.RUN)
    assert reason in text_of(task)
    assert task.wake_at is not None and task.wake_at <= world.now + POLICY.image_deadline
    world.wait(POLICY.image_deadline + timedelta(seconds=1))
    assert (world.task.state, world.task.log.metadata["failure_reason"]) == (State.SYSTEM_ERROR, failure)


def test_a_failing_pull_has_its_full_deadline_after_a_long_wait_for_a_node():
    world = World(SMALL)
    world.launch()
    world.cluster.hold(ID, "task", "Unschedulable: 0/3 nodes")
    world.settle()
    world.clock.advance(timedelta(hours=2))
    world.cluster.schedule(ID, "task")
    world.cluster.stick(ID, "task", "executor-0", "ErrImagePull", "connection reset")
    assert world.settle().stage is Stage.RUN
    world.cluster.stick(ID, "task", "executor-0", "ImagePullBackOff", "connection reset")
    world.wait(POLICY.image_deadline + timedelta(seconds=1))  # both reasons count as one wait
    assert world.task.state is State.SYSTEM_ERROR


def test_a_slow_start_has_its_full_deadline_after_a_long_wait_for_a_node():
    world = World(SMALL)
    world.launch()
    world.clock.advance(timedelta(hours=2))
    world.cluster.schedule(ID, "task")
    assert world.settle().stage is Stage.RUN
    world.wait(POLICY.start_deadline - timedelta(seconds=1))
    assert world.task.stage is Stage.RUN
    world.wait(timedelta(seconds=2))
    assert world.task.attempt == 2
    assert "StartTimeout" in text_of(world.task)


def test_a_start_that_keeps_flapping_ends():
    world = World(SMALL, replace(POLICY, max_attempts=1))
    world.launch()
    world.cluster.schedule(ID, "task")
    for _ in range(2000):
        world.cluster.stick(ID, "task", "executor-0", "ErrImagePull", "connection reset")
        world.wait(timedelta(seconds=30))
        world.cluster.stick(ID, "task", "executor-0", "ContainerCreating")
        world.wait(timedelta(minutes=30))
        if world.task.state.is_terminal:
            return
    raise AssertionError("it never ended")


def test_the_waiting_reason_is_cleared_when_the_task_runs():
    world = World(SMALL)
    world.launch()
    world.cluster.schedule(ID, "task")
    world.cluster.stick(ID, "task", "executor-0", "ErrImagePull", "connection reset")
    world.settle()
    world.cluster.start(ID, "task")
    task = world.settle()
    assert (task.state, task.waiting, task.waiting_since) == (State.RUNNING, None, None)


@pytest.mark.parametrize("error", [QuotaExceeded("no room"), ClusterUnavailable("unavailable")])
def test_a_cluster_that_accepts_nothing_is_waited_for_until_a_deadline(error):
    task = stored(stage=Stage.LAUNCH)
    waiting = decide_after(task, error, START, POLICY)
    assert waiting.stage is Stage.LAUNCH and waiting.waiting is not None
    assert waiting.wake_at is not None and START < waiting.wake_at <= START + timedelta(minutes=1)
    still = decide_after(waiting, error, START + POLICY.cluster_deadline, POLICY)
    assert still.outcome is None
    ended = decide_after(still, error, START + POLICY.cluster_deadline + timedelta(seconds=1), POLICY)
    assert ended.outcome is not None and ended.outcome.reason in {"QuotaExceeded", "ClusterUnavailable"}


def test_an_object_that_the_cluster_rejects_ends_the_task():
    ended = decide_after(stored(stage=Stage.LAUNCH), ClusterRefused("invalid"), START, POLICY)
    assert ended.outcome == Outcome(State.SYSTEM_ERROR, "ClusterRefused", "invalid")
    assert ended.stage is Stage.FINISH


def test_the_reason_of_the_end_is_noted_however_many_notes_came_before():
    world = World(FILES)
    world.launch()
    notes = tuple(f"note {i}" for i in range(100))
    world.cluster.report(ID, "tif", FilerReport(notes=notes))
    world.cluster.report(ID, "tof", FilerReport(notes=notes, error="full", error_code="staging_failed"))
    world.cluster.run(ID, "task", tof=world.cluster.record("tof", 1))
    task = world.to_the_end()
    assert len(task.log.system_logs) <= MAX_SYSTEM_LOGS - KEPT_FOR_THE_END + 1
    assert task.log.system_logs[-1].endswith("StagingFailed: full")


def test_a_running_task_shows_ended_executors_and_the_live_output_of_the_current_one():
    world = running(spec(3))
    world.cluster.end(ID, "task", "executor-0", world.cluster.record("executor-0", stdout="first"))
    world.cluster.tail(ID, "executor-1", "so far")
    world.monitor(tails=True)
    assert [(e.exit_code, e.stdout) for e in world.task.log.logs] == [(0, "first"), (None, "so far")]
    world.cluster.run(ID, "task")
    assert [e.exit_code for e in world.to_the_end().log.logs] == [0, 0, 0]


def test_live_output_is_kept_when_a_restarted_observer_has_read_nothing():
    world = running(spec(1))
    for output in ("so far", ""):
        world.cluster.tail(ID, "executor-0", output)
        world.monitor(tails=True)
        assert [(e.exit_code, e.stdout) for e in world.task.log.logs] == [(None, "so far")]
    world.cluster.tail(ID, "executor-0", "and more")
    world.monitor(tails=True)
    assert [(e.exit_code, e.stdout) for e in world.task.log.logs] == [(None, "and more")]


def test_live_output_of_a_second_pod_keeps_the_entry_of_the_first():
    world = World(GPUS)
    for part in ("tif", "executor-0"):
        world.settle()
        world.cluster.run(ID, part)
    world.settle()
    world.cluster.start(ID, "executor-1")
    world.cluster.tail(ID, "executor-1", "so far")
    world.monitor(tails=True)
    world.monitor(tails=True)
    assert [(e.exit_code, e.stdout) for e in world.task.log.logs] == [(0, ""), (None, "so far")]
    world.cluster.run(ID, "executor-1")
    world.settle()
    world.cluster.run(ID, "tof")
    assert [e.exit_code for e in world.to_the_end().log.logs] == [0, 0]


def test_a_tif_running_before_the_others_start_is_not_a_start_timeout():
    world = World(spec(inputs=(Input("/in.txt", url="s3://bucket/in"),)))
    world.launch()
    world.cluster.schedule(ID, "task")
    world.cluster.set(ID, "task", "tif", phase=Phase.RUNNING)
    world.clock.advance(POLICY.start_deadline * 3)
    world.monitor()
    assert world.task.outcome is None
    assert world.task.attempt == 1


@pytest.mark.parametrize("is_seen", [True, False], ids=["seen", "while no monitor ran"])
def test_the_time_of_a_download_before_the_others_start_does_not_count_as_their_start(is_seen):
    world = World(spec(inputs=(Input("/in.txt", url="s3://bucket/in"),)))
    world.launch()
    world.cluster.schedule(ID, "task")
    world.settle()
    world.cluster.set(ID, "task", "tif", phase=Phase.RUNNING, started_at=world.now)
    if is_seen:
        world.settle()
    world.clock.advance(POLICY.start_deadline * (MAX_STARTS + 1))
    world.cluster.end(ID, "task", "tif", world.cluster.record("tif"))
    assert (world.settle().stage, world.task.attempt) == (Stage.RUN, 1)
    assert world.wait(POLICY.start_deadline - timedelta(seconds=1)).attempt == 1
    world.wait(timedelta(seconds=2))
    assert (world.task.attempt, "StartTimeout" in text_of(world.task)) == (2, True)


def test_a_container_that_could_not_start_ends_the_attempt_although_others_wait_for_it():
    world = World(FILES)
    world.launch()
    world.cluster.start(ID, "task")
    failed = {"phase": Phase.ENDED, "reason": "StartError", "message": "shim: context canceled", "exit_code": 128}
    world.cluster.set(ID, "task", "executor-0", **failed)
    world.monitor()
    assert world.task.outcome is not None
    assert (world.task.outcome.reason, world.task.outcome.retry) == ("ContainerNotStarted", True)
    assert "context canceled" in (world.task.outcome.message or "")


def test_a_task_that_is_first_seen_after_its_executor_has_run_started_no_later_than_the_executor():
    world = World(SMALL)
    world.launch()
    world.cluster.run(ID, "task")  # the executor runs for a second, and is observed a second later
    world.clock.advance(timedelta(seconds=1))
    log = world.settle().log
    assert log.logs[0].start_time == START - timedelta(seconds=1)
    assert log.start_time == log.logs[0].start_time


def test_a_pod_that_ended_without_being_seen_on_a_node_started_no_later_than_its_executor():
    world = World(SMALL)
    world.launch()
    record = world.cluster.record("executor-0", 1)
    world.cluster.end(ID, "task", "executor-0", record)
    world.clock.advance(timedelta(seconds=1))
    task = world.settle()
    assert task.state is State.EXECUTOR_ERROR
    assert task.log.start_time == task.log.logs[0].start_time == record.started_at


def test_the_clock_of_a_node_may_be_behind_without_an_executor_before_the_start_of_its_task():
    world = running()
    assert world.task.log.start_time == START
    world.cluster.end(ID, "task", "executor-0", world.cluster.record("executor-0"))  # started a second earlier
    assert world.settle().log.start_time == START - timedelta(seconds=1)


def test_a_busy_cluster_ends_no_task_however_long_and_the_time_does_not_count():
    world = World(SMALL)
    world.launch()
    world.cluster.hold(ID, "task", "Unschedulable: 0/3 nodes are available: 3 Insufficient cpu", room=Room.BUSY)
    world.settle()
    world.wait(10 * POLICY.schedule_deadline)
    assert world.task.state is State.QUEUED
    assert world.task.waiting == "NodesBusy: waiting for room on a node: 0/3 nodes are available: 3 Insufficient cpu"
    world.cluster.hold(ID, "task", "Unschedulable: for another reason")
    world.settle()
    world.wait(POLICY.schedule_deadline - timedelta(seconds=1))
    assert world.task.state is State.QUEUED
    world.cluster.schedule(ID, "task")
    world.settle()
    assert world.wait(POLICY.start_deadline - timedelta(seconds=1)).state is State.INITIALIZING
    assert "StartTimeout" in text_of(world.wait(timedelta(seconds=2)))


def test_a_pod_that_no_node_could_ever_run_ends_soon_with_the_reason():
    world = World(SMALL)
    world.launch()
    world.cluster.hold(ID, "task", "Unschedulable: 0/2 nodes are available: 2 Insufficient cpu", room=Room.BUSY)
    world.settle()
    world.wait(timedelta(hours=9))
    world.cluster.hold(ID, "task", "Unschedulable: 0/1 nodes are available: 1 Insufficient cpu", room=Room.NO_NODE)
    world.settle()
    world.wait(POLICY.no_node_deadline - timedelta(seconds=1))
    assert world.task.state is State.QUEUED
    task = world.wait(timedelta(seconds=2))
    assert (task.state, task.log.metadata["failure_reason"]) == (State.SYSTEM_ERROR, "Unschedulable")
    assert "no node of the cluster can run this task" in task.log.metadata["failure_message"]
    assert "1 Insufficient cpu" in task.log.metadata["failure_message"]


@pytest.mark.parametrize(
    ("why", "word"),
    [
        ("ErrImagePull in executor-0: not found", "ErrImagePull"),
        ("NodesBusy: 0/3 nodes", "NodesBusy"),
        ("an unusual text in words", "Other"),
        (None, ""),
    ],
)
def test_waiting_tasks_are_counted_by_the_word_for_why(why, word):
    assert waiting_word(replace(running().task, waiting=why)) == word
