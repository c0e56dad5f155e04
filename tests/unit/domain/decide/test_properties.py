"""What holds for any task and any observation."""

from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from poiesis.domain.decide.stages import decide, needs_observation
from poiesis.domain.observed import Container, Observed, Phase, Pod
from poiesis.domain.report import FilerReport
from poiesis.domain.states import Stage, State
from poiesis.domain.task import Outcome, TaskSpec
from poiesis.testing.clock import START
from tests.unit.domain.samples import (
    FILES,
    GPUS,
    POLICY,
    SMALL,
    THREE,
    World,
    executor,
    stored,
)

RECORDS = st.sampled_from([None, (0, {}), (1, {}), (None, {"reason": "Skipped"}), (137, {"oom_killed": True})])
NAMES = ("tif", "executor-0", "executor-1", "executor-2", "tof")


@st.composite
def pods(draw):
    world = World()
    containers = []
    for name in draw(st.lists(st.sampled_from(NAMES), unique=True)):
        given = draw(RECORDS)
        record = None if given is None else world.cluster.record(name, given[0], **given[1])
        reason = draw(st.sampled_from([None, "ContainerCreating", "ErrImagePull", "OOMKilled", "StartError"]))
        containers.append(Container(name, draw(st.sampled_from(Phase)), reason, None, draw(st.none()), record=record))
    return Pod(
        "pod",
        draw(st.integers(1, 2)),
        draw(st.sampled_from(["task", "tif", "executors", "executor-0", "executor-1", "tof", "tof-2"])),
        created_at=draw(st.sampled_from([None, START])),
        scheduled=draw(st.booleans()),
        waiting=draw(st.sampled_from([None, "Unschedulable: no"])),
        lost=draw(st.sampled_from([None, "Evicted"])),
        deleting=draw(st.booleans()),
        ended=draw(st.booleans()),
        containers=tuple(containers),
    )


OBSERVATIONS = st.builds(
    Observed,
    pods=st.lists(pods(), max_size=2).map(tuple),
    others=st.sampled_from([(), ("volume",)]),
    reports=st.sampled_from([{}, {"tif": FilerReport(error="x")}, {"tof": FilerReport(error="x", retryable=True)}]),
    tails=st.sampled_from([{}, {"executor-0": ("out", "err")}]),
)


@st.composite
def tasks(draw):
    stage = draw(st.sampled_from(Stage))
    ended = stage in (Stage.CLEAN, Stage.DONE)
    state = draw(st.sampled_from([State.QUEUED, State.INITIALIZING, State.RUNNING]))
    canceled = draw(st.booleans()) and not ended
    return stored(
        draw(st.sampled_from([SMALL, FILES, THREE, GPUS, TaskSpec((executor(ignore_error=True),))])),
        stage=stage,
        state=State.COMPLETE if ended else State.CANCELING if canceled and state is not State.QUEUED else state,
        part=draw(st.sampled_from([None, "task", "tif", "executors", "executor-0", "executor-1", "tof", "tof-2"])),
        uploads=draw(st.integers(1, 3)),
        layout=draw(st.sampled_from(["single", "staged"])),
        attempt=draw(st.integers(1, 3)),
        wake_at=None if stage is Stage.DONE else START,
        cancel_requested_at=START if canceled else None,
        outcome=draw(
            st.sampled_from([None, Outcome(State.COMPLETE), Outcome(State.SYSTEM_ERROR, "X", "x", retry=True)])
        ),
        waiting=draw(st.sampled_from([None, "ErrImagePull in executor-0: x", "QuotaExceeded: x"])),
    )


@given(tasks(), OBSERVATIONS, st.integers(0, 200_000))
def test_whatever_is_observed_the_task_follows_the_table_and_has_a_wake_up(task, observed, seconds):
    now = START + timedelta(seconds=seconds)
    decision = decide(task, observed if needs_observation(task) else None, now, POLICY)
    after = decision.task
    assert after.stage in (Stage.DONE, Stage.ADMIT) or after.wake_at is not None
    assert not task.state.is_terminal or after.state is task.state
    assert all(entry.exit_code is not None for entry in after.log.logs) or not after.state.is_terminal
    assert not (decision.effects and decision.again and after.stage is Stage.DONE)


@given(tasks(), OBSERVATIONS)
def test_deciding_again_about_the_saved_task_changes_nothing(task, observed):
    """The same observation at the same time: the second decision is to wait, or to continue with the next stage."""
    once = decide(task, observed, START, POLICY).task
    if (once.due_stage, once.part, once.attempt) == (task.due_stage, task.part, task.attempt):
        assert decide(once, observed, START, POLICY).task == once
