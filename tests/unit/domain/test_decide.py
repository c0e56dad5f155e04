"""How tasks end: every row of the failure table, waiting and its deadlines, retries inside one log."""

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poiesis.domain.decide import (
    KEPT_FOR_THE_END,
    MAX_SYSTEM_LOGS,
    CreateDocuments,
    CreateVolume,
    DeleteAll,
    DeletePods,
    Launch,
    decide,
    decide_after,
    needs_observation,
)
from poiesis.domain.errors import ClusterRefused, ClusterUnavailable, QuotaExceeded
from poiesis.domain.observed import Container, Observed, Phase, Pod
from poiesis.domain.policy import Policy
from poiesis.domain.report import FilerReport, TransferredFile
from poiesis.domain.states import Role, Stage, State
from poiesis.domain.task import Input, Outcome, TaskSpec
from poiesis.testing.clock import START
from tests.unit.domain.samples import (
    FILES,
    GPUS,
    ID,
    POLICY,
    SMALL,
    THREE,
    World,
    executor,
    spec,
    stored,
    with_parameters,
)

STAGED = replace(POLICY, layout="staged")
FAULT = timedelta(minutes=6)  # longer than any delay before a retry


def running(task_spec=SMALL, policy=POLICY) -> World:
    world = World(task_spec, policy)
    world.launch()
    world.cluster.start(ID, "task")
    world.settle()
    return world


def text_of(task) -> str:
    return "\n".join(task.log.system_logs)


# ── stages, row by row ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("task", "effects", "stage", "part"),
    [
        (stored(SMALL), (), Stage.LAUNCH, None),
        (stored(FILES), (CreateVolume(),), Stage.STAGE_IN, None),
        (stored(spec(volumes=("/scratch",))), (CreateVolume(),), Stage.LAUNCH, None),
        (stored(FILES, stage=Stage.STAGE_IN, layout="single"), (CreateDocuments(),), Stage.LAUNCH, None),
        (stored(GPUS, stage=Stage.STAGE_IN, layout="staged"), (CreateDocuments(), Launch("tif")), Stage.STAGE_IN, "tif"),
        (stored(FILES, stage=Stage.LAUNCH, layout="single"), (Launch("task"),), Stage.RUN, "task"),
        (stored(GPUS, stage=Stage.LAUNCH, layout="staged"), (Launch("executor-0"),), Stage.RUN, "executor-0"),
        (stored(FILES, stage=Stage.LAUNCH, layout="staged"), (Launch("executors"),), Stage.RUN, "executors"),
        (stored(GPUS, stage=Stage.STAGE_OUT, layout="staged"), (Launch("tof"),), Stage.STAGE_OUT, "tof"),
    ],
)  # fmt: skip
def test_each_stage_makes_what_it_owns_and_says_what_it_waits_for(task, effects, stage, part):
    decision = decide(task, None, START, POLICY)
    assert (decision.effects, decision.task.stage, decision.task.part) == (effects, stage, part)
    assert decision.task.wake_at is not None and decision.task.wake_at > START


def test_a_task_of_no_work_asks_the_cluster_for_six_things_from_create_to_done():
    world = World(SMALL)
    world.launch()
    world.cluster.run(ID, "task")
    world.to_the_end()
    calls = [call.method for call in world.cluster.calls]
    assert calls.count("launch") == 1
    assert [c for c in calls if c != "observe"] == ["launch", "delete_all"]


def test_a_finished_pod_that_nobody_saw_running_walks_the_table():
    world = World(SMALL)
    world.launch()
    world.cluster.run(ID, "task")
    task = world.settle()
    assert task.state is State.COMPLETE
    assert task.log.start_time is not None and task.log.end_time is not None


@pytest.mark.parametrize("lost", [False, True], ids=["still shown running", "lost meanwhile"])
def test_records_of_all_containers_are_the_end_whatever_the_cluster_shows(lost):
    world = running(FILES)
    for name in ("tif", "executor-0", "tof"):
        world.cluster.set(ID, "task", name, record=world.cluster.record(name))
    if lost:
        world.cluster.lose(ID, "task", "NodeLost")
    assert (world.settle().state, world.task.attempt) == (State.COMPLETE, 1)


def test_a_scheduled_pod_is_initializing_and_a_started_one_running():
    world = World(FILES)
    assert world.launch().state is State.QUEUED
    world.cluster.schedule(ID, "task", "node-7")
    assert world.settle().state is State.INITIALIZING
    assert world.task.log.metadata["node"] == "node-7"
    world.cluster.start(ID, "task")
    assert world.settle().state is State.INITIALIZING  # TIF is still copying
    world.cluster.end(ID, "task", "tif", world.cluster.record("tif"))
    assert world.settle().state is State.RUNNING


def test_a_task_whose_input_failed_was_never_running():
    world = World(FILES)
    world.launch()
    world.cluster.start(ID, "task")
    world.cluster.end(ID, "task", "tif", world.cluster.record("tif", 1))
    assert world.settle().state is State.INITIALIZING


def test_the_staged_layout_launches_one_pod_after_the_other():
    world = World(GPUS)
    for part in ("tif", "executor-0", "executor-1", "tof"):
        assert world.settle().part == part
        world.cluster.run(ID, part)
    assert world.to_the_end().state is State.COMPLETE
    assert [entry.exit_code for entry in world.task.log.logs] == [0, 0]
    assert world.cluster.is_empty(ID)


def test_the_layout_of_an_attempt_stays_when_the_policy_changes():
    task = stored(FILES, stage=Stage.LAUNCH, layout="staged")
    assert decide(task, None, START, replace(POLICY, layout="single")).effects == (Launch("executors"),)


# ── ends ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

ENDS = {  # record of executor 1 of three: fields → state, reason, exit codes
    "exit code": ({"exit_code": 3}, State.EXECUTOR_ERROR, "ExecutorFailed", [0, 3]),
    "signal": ({"exit_code": 139}, State.EXECUTOR_ERROR, "ExecutorFailed", [0, 139]),
    "not found": ({"exit_code": 127, "reason": "NotFound"}, State.EXECUTOR_ERROR, "CommandNotFound", [0, 127]),
    "not executable": (
        {"exit_code": 126, "reason": "NotExecutable"}, State.EXECUTOR_ERROR, "CommandNotExecutable", [0, 126]),
    "no stdin": ({"exit_code": 1, "reason": "StdinUnavailable"}, State.EXECUTOR_ERROR, "StdinUnavailable", [0, 1]),
    "out of memory": ({"exit_code": 137, "oom_killed": True}, State.EXECUTOR_ERROR, "OutOfMemory", [0, 137]),
    "time limit": ({"exit_code": 143, "reason": "TimeLimit"}, State.EXECUTOR_ERROR, "TimeLimit", [0, 143]),
    "ignored error": ({"exit_code": 5, "ok": True}, State.COMPLETE, None, [0, 5, 0]),
}  # fmt: skip


@pytest.mark.parametrize(("fields", "state", "reason", "codes"), ENDS.values(), ids=ENDS)
def test_an_executor_ends_the_task_as_the_failure_table_says(fields, state, reason, codes):
    world = World(THREE)
    world.launch()
    fields = {"ok": False, **fields}
    later = (
        {} if state is State.COMPLETE else {"executor_2": world.cluster.record("executor-2", None, reason="Skipped")}
    )
    written = FilerReport(
        files=(TransferredFile("s3://bucket/out.txt", "/out/out.txt", 5, "sha256:00"),), total_files=1
    )
    world.cluster.report(ID, "tof", written)
    world.cluster.run(ID, "task", executor_1=world.cluster.record("executor-1", **fields), **later)
    task = world.to_the_end()
    assert task.state is state
    assert task.log.metadata.get("failure_reason") == reason
    assert [entry.exit_code for entry in task.log.logs] == codes
    assert [(o.url, o.path, o.size_bytes) for o in task.log.outputs] == [("s3://bucket/out.txt", "/out/out.txt", 5)]
    assert task.log.metadata["checksum:/out/out.txt"] == "sha256:00"
    assert task.attempt == 1


def test_a_container_killed_for_memory_with_its_launcher_is_an_executor_error_with_137():
    world = running(spec(resources=replace(with_parameters(), ram_gb=0.5)))
    world.cluster.end(ID, "task", "executor-0", reason="OOMKilled", exit_code=137)
    task = world.to_the_end()
    assert (task.state, task.log.logs[0].exit_code) == (State.EXECUTOR_ERROR, 137)
    assert task.log.metadata["failure_reason"] == "OutOfMemory"
    assert "0.5 GB" in task.log.metadata["failure_message"]


def test_a_container_that_the_runtime_cannot_start_is_a_system_error_without_a_log_entry():
    world = World(SMALL, replace(POLICY, max_attempts=1))
    world.launch()
    world.cluster.end(ID, "task", "executor-0", reason="StartError", exit_code=128, message="bad mount")
    task = world.to_the_end()
    assert (task.state, task.log.logs) == (State.SYSTEM_ERROR, ())
    assert task.log.metadata["failure_reason"] == "ContainerNotStarted"


@pytest.mark.parametrize(("which", "repeats"), [("executor-0", True), ("tof", False)])
def test_of_a_pod_that_starts_badly_the_executors_may_have_begun_unless_one_of_them_is_what_does_not_start(
    which, repeats
):
    """The first executor waits for the others, not for TOF where TIF has shown that their image is good."""
    world = World(FILES, replace(POLICY, retry_started=False))
    world.launch()
    world.cluster.start(ID, "task")
    world.cluster.set(ID, "task", which, phase=Phase.ENDED, reason="StartError", exit_code=128)
    world.monitor()
    assert world.task.outcome is not None
    assert (world.task.outcome.reason, world.task.outcome.retry) == ("ContainerNotStarted", repeats)


def test_usage_of_every_executor_is_told():
    world = World(SMALL)
    world.launch()
    record = world.cluster.record("executor-0", peak_memory_bytes=1000, cpu_seconds=1.5)
    world.cluster.run(ID, "task", executor_0=record)
    told = world.to_the_end().log.metadata
    assert (told["executor_0_peak_memory_bytes"], told["executor_0_cpu_seconds"]) == ("1000", "1.500")


@pytest.mark.parametrize("layout", ["single", "staged"])
@pytest.mark.parametrize("exit_code", [0, 137], ids=["good", "ignored"])
def test_a_process_killed_for_want_of_memory_behind_a_good_end_is_said_and_changes_nothing(layout, exit_code):
    """The shell of `a | b` ends as `b` did, and a tool may start another one again: only the kernel's count tells."""
    world = World(FILES, replace(POLICY, layout=layout))
    record = world.cluster.record("executor-0", exit_code, ok=True, oom_killed=True)
    for _ in range(3):
        part = world.settle().part
        assert part is not None
        world.cluster.run(ID, part, executor_0=record)
        if part == "task":
            break
    task = world.to_the_end()
    assert (task.state, [e.exit_code for e in task.log.logs]) == (State.COMPLETE, [exit_code])
    assert task.log.metadata["executor_0_oom_killed"] == "true"
    assert text_of(task).count("executor 0 went on, though a process of it was killed for want of memory.") == 1


def test_a_task_whose_memory_sufficed_says_nothing_of_it():
    world = World(FILES)
    world.launch()
    world.cluster.run(ID, "task")
    task = world.to_the_end()
    assert "executor_0_oom_killed" not in task.log.metadata
    assert "memory" not in text_of(task)


@pytest.mark.parametrize("layout", ["single", "staged"])
def test_a_failed_upload_ends_a_good_task_as_system_error_with_its_logs(layout):
    world = World(FILES, replace(POLICY, layout=layout))
    failed = FilerReport(error="/out/out.txt is missing", error_code="not_found")
    end_with(world, failed, tof=1)
    task = world.to_the_end()
    assert (task.state, task.log.metadata["failure_reason"]) == (State.SYSTEM_ERROR, "NotFound")
    assert "/out/out.txt is missing" in task.log.metadata["failure_message"]
    assert [entry.exit_code for entry in task.log.logs] == [0]


@pytest.mark.parametrize("layout", ["single", "staged"])
def test_a_failed_upload_after_a_failed_executor_leaves_the_executors_error(layout):
    world = World(FILES, replace(POLICY, layout=layout))
    end_with(world, FilerReport(error="no room", error_code="staging_failed"), tof=1, executor=4)
    task = world.to_the_end()
    assert (task.state, task.log.metadata["failure_reason"]) == (State.EXECUTOR_ERROR, "ExecutorFailed")
    assert "no room" in text_of(task)


def uploading(*, exit_code: int = 0, policy: Policy = STAGED) -> World:
    """With its executor ended, and TOF's turn to come: in the staged layout in a pod of its own."""
    world = World(FILES, policy)
    world.launch()
    if policy.layout == "single":
        world.cluster.start(ID, "task")
        for name, code in (("tif", 0), ("executor-0", exit_code)):
            world.cluster.end(ID, "task", name, world.cluster.record(name, code))
        assert world.settle().part == "task"
        return world
    world.cluster.run(ID, "tif")
    world.settle()
    world.cluster.run(ID, "executors", executor_0=world.cluster.record("executor-0", exit_code))
    assert world.settle().part == "tof"
    return world


def pods_made(world: World) -> list[tuple[int, str]]:
    assert set(world.cluster.created.values()) == {1}
    return [(attempt, part) for _, attempt, part in world.cluster.created]


ONCE = [(1, "tif"), (1, "executors"), (1, "tof")]
MADE = {"staged": ONCE, "single": [(1, "task")]}


@pytest.mark.parametrize("exit_code", [0, 4])
@pytest.mark.parametrize(
    ("layout", "how"),
    [
        *(("staged", how) for how in ("evicted", "deleted", "terminated", "silent", "not started")),
        *(("single", how) for how in ("evicted", "terminated", "silent", "not started")),
    ],
)
def test_a_lost_upload_is_repeated_alone_over_the_same_volume(layout, how, exit_code):
    world = uploading(exit_code=exit_code, policy=replace(POLICY, layout=layout))
    first = world.task.part or ""
    match how:
        case "evicted":
            world.cluster.lose(ID, first, "Evicted")
        case "deleted":
            world.cluster.vanish(ID, first)
        case "terminated":
            world.cluster.start(ID, first)
            world.cluster.end(ID, first, "tof", world.cluster.record("tof", 143, reason="Terminated"))
        case "silent":
            world.cluster.start(ID, first)
            world.cluster.end(ID, first, "tof", reason="Error", exit_code=137)
        case "not started":
            world.cluster.set(ID, first, "tof", phase=Phase.ENDED, reason="StartError", exit_code=128)
    task = world.settle()
    assert (task.part, task.stage, task.state) == (None, Stage.STAGE_OUT, State.RUNNING)
    assert world.wait(POLICY.retry_delay - timedelta(seconds=1)).part is None
    assert world.wait(timedelta(seconds=1)).part == "tof-2"
    world.cluster.report(ID, "tof", FilerReport(files=(TransferredFile("s3://bucket/out.txt", "/out/out.txt", 3),)))
    world.cluster.run(ID, "tof-2")
    task = world.to_the_end()
    assert (task.state, task.attempt) == (State.EXECUTOR_ERROR if exit_code else State.COMPLETE, 1)
    assert ([e.exit_code for e in task.log.logs], len(task.log.outputs)) == ([exit_code], 1)
    assert pods_made(world) == [*MADE[layout], (1, "tof-2")]
    assert task.log.metadata["uploads"] == "2"
    assert "attempts" not in task.log.metadata
    assert "The upload was lost and begins again in 2 s." in text_of(task)
    assert world.cluster.is_empty(ID)


@pytest.mark.parametrize(
    ("exit_code", "ends"), [(0, (State.SYSTEM_ERROR, "Evicted")), (4, (State.EXECUTOR_ERROR, "ExecutorFailed"))]
)
@pytest.mark.parametrize("retry_started", [True, False])
@pytest.mark.parametrize(("layout", "first"), [("staged", "tof"), ("single", "task")])
def test_an_upload_that_is_lost_again_and_again_ends_the_task_and_repeats_no_command(
    layout, first, exit_code, ends, retry_started
):
    world = uploading(exit_code=exit_code, policy=replace(POLICY, layout=layout, retry_started=retry_started))
    for part in (first, "tof-2", "tof-3"):
        assert world.task.part == part
        world.cluster.lose(ID, part, "Evicted")
        world.settle()
        world.wait(FAULT)
    task = world.to_the_end()
    assert (task.state, task.log.metadata["failure_reason"]) == ends
    assert pods_made(world) == [*MADE[layout], (1, "tof-2"), (1, "tof-3")]
    assert "Evicted" in text_of(task)


def test_the_delay_before_each_upload_doubles():
    world = uploading(policy=replace(STAGED, max_attempts=5))
    waits = []
    for part in ("tof", "tof-2", "tof-3"):
        world.cluster.lose(ID, part, "Evicted")
        task = world.settle()
        assert task.wake_at is not None
        waits.append(task.wake_at - world.now)
        world.wait(waits[-1])
    assert waits == [POLICY.retry_delay, POLICY.retry_delay * 2, POLICY.retry_delay * 4]


def test_what_the_lost_uploader_still_says_is_no_end_of_the_next_one():
    world = uploading()
    world.cluster.lose(ID, "tof", "Evicted")
    world.settle()
    world.wait(FAULT)
    world.cluster.end(ID, "tof", "tof", world.cluster.record("tof", 1))
    assert (world.settle().part, world.task.outcome) == ("tof-2", None)


def test_a_canceled_task_whose_upload_is_to_be_repeated_uploads_nothing_more():
    world = uploading()
    world.cluster.lose(ID, "tof", "Evicted")
    world.settle()
    world.cancel()
    assert world.to_the_end().state is State.CANCELED
    assert pods_made(world) == ONCE


def test_outputs_on_a_volume_that_no_node_can_reach_any_more_are_made_anew():
    """Where volumes belong to nodes and the node is lost, the next TOF pod waits for it in vain."""
    world = uploading()
    world.cluster.lose(ID, "tof", "NodeLost")
    world.settle()
    world.wait(FAULT)
    world.cluster.hold(ID, "tof-2", "Unschedulable: 1 node had volume node affinity conflict")
    assert world.wait(POLICY.start_deadline - timedelta(minutes=1)).attempt == 1
    task = world.wait(timedelta(minutes=2))
    assert "VolumeLost: the outputs cannot be reached any more: Unschedulable: 1 node" in text_of(task)
    world.wait(FAULT)
    assert (world.task.attempt, world.task.uploads, world.task.part) == (2, 1, "tif")


def test_a_first_upload_that_waits_for_a_node_is_waited_for():
    world = uploading()
    world.cluster.hold(ID, "tof", "Unschedulable: 0/1 nodes")
    assert world.wait(POLICY.start_deadline * 2).part == "tof"


@pytest.mark.parametrize("layout", ["single", "staged"])
def test_an_uploader_that_says_nothing_is_a_system_error(layout):
    world = World(FILES, replace(POLICY, layout=layout))
    end_with(world, None, tof=1)
    task = world.to_the_end()
    assert (task.state, task.log.metadata["failure_reason"]) == (State.SYSTEM_ERROR, "OutputFilerFailed")


@pytest.mark.parametrize("reason", ["Evicted", "NodeLost"])
@pytest.mark.parametrize(
    ("tif", "executor"),
    [(None, None), ({}, None), ({}, {"exit_code": 143, "reason": "Terminated"})],
    ids=["inputs", "running", "ended from outside"],
)
def test_a_pod_that_is_lost_before_its_commands_have_ended_is_an_attempt_lost(reason, tif, executor):
    world = World(FILES)
    world.launch()
    world.cluster.start(ID, "task")
    for name, how in (("tif", tif), ("executor-0", executor)):
        if how is not None:
            world.cluster.end(ID, "task", name, world.cluster.record(name, **how))
    world.cluster.lose(ID, "task", reason)
    task = world.settle()
    assert (task.attempt, task.uploads, task.log.logs) == (2, 1, ())
    assert f"Attempt 1 failed. {reason}" in text_of(task)


def test_outputs_that_nobody_reports_on_are_no_success():
    """The pod as the cluster shows it has lost the uploader: the plan knows that there was one."""
    world = running(FILES)
    world.cluster.run(ID, "task")
    pod = world.cluster.pods(ID)[0]
    task = replace(world.task, stage=Stage.RUN, part="task")
    shown = Observed(pods=(replace(pod, containers=pod.containers[:2], ended=True),))
    decision = decide(task, shown, world.now, POLICY)
    assert (decision.task.stage, decision.task.uploads, decision.task.outcome) == (Stage.STAGE_OUT, 2, None)


def end_with(world: World, report: FilerReport | None, *, tof: int = 0, executor: int = 0) -> None:
    if report is not None:
        world.cluster.report(ID, "tof", report)
    records = {
        "tof": world.cluster.record("tof", tof),
        "executor_0": world.cluster.record("executor-0", executor),
    }
    for _ in range(4):
        part = world.settle().part
        if part is None:
            return
        world.cluster.run(ID, part, **records)


INPUT_ENDS = {
    "missing": (FilerReport(error="s3://bucket/in.txt is not there", error_code="not_found"), 1, "NotFound"),
    "denied": (FilerReport(error="no access", error_code="access_denied"), 1, "AccessDenied"),
    "transient": (FilerReport(error="busy", error_code="storage_unavailable", retryable=True), 3, "InputFailed"),
    "no report": (None, 3, "InputFilerFailed"),
}


@pytest.mark.parametrize("layout", ["single", "staged"])
@pytest.mark.parametrize(("report", "attempts", "reason"), INPUT_ENDS.values(), ids=INPUT_ENDS)
def test_a_failed_input_ends_at_once_or_after_retries(report, attempts, reason, layout):
    world = World(FILES, replace(POLICY, layout=layout))
    for attempt in range(1, attempts + 1):
        part = world.launch().part
        assert part is not None
        if report is not None:
            world.cluster.report(ID, "tif", report, attempt)
        skipped = world.cluster.record("executor-0", None, reason="Skipped")
        world.cluster.run(ID, part, tif=world.cluster.record("tif", 1), executor_0=skipped)
        world.settle()
        world.wait(FAULT)
    task = world.to_the_end()
    assert (task.state, task.attempt, task.log.logs) == (State.SYSTEM_ERROR, attempts, ())
    assert task.log.metadata["failure_reason"] == reason
    assert sum(times for (_, _, part), times in world.cluster.created.items() if part == "task") in (0, attempts)


# ── infrastructure ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("fault", ["lose", "vanish", "terminated", "no record"])
def test_a_pod_taken_away_is_made_again_inside_the_same_log(fault):
    world = running()
    match fault:
        case "lose":
            world.cluster.lose(ID, "task", "NodeLost")
        case "vanish":
            world.cluster.vanish(ID, "task")
        case "terminated":
            record = world.cluster.record("executor-0", 143, reason="Terminated")
            world.cluster.end(ID, "task", "executor-0", record)
        case "no record":
            world.cluster.end(ID, "task", "executor-0", reason="Error", exit_code=255)
    world.settle()
    assert world.task.log.logs == ()
    world.wait(FAULT)
    assert (world.task.attempt, world.task.stage) == (2, Stage.RUN)
    world.cluster.run(ID, "task")
    task = world.to_the_end()
    assert task.state is State.COMPLETE
    assert task.log.metadata["attempts"] == "2"
    assert [entry.exit_code for entry in task.log.logs] == [0]
    assert "Attempt 1 failed" in text_of(task)
    assert world.cluster.created == {(ID, 1, "task"): 1, (ID, 2, "task"): 1}


def test_faults_of_the_infrastructure_end_after_the_last_attempt():
    world = World(SMALL)
    for _ in range(3):
        world.wait(FAULT)
        world.cluster.lose(ID, "task", "Evicted", "the node was low on memory")
        world.settle()
    task = world.to_the_end()
    assert (task.state, task.attempt) == (State.SYSTEM_ERROR, 3)
    assert task.log.metadata["failure_reason"] == "Evicted"
    assert task.log.system_logs[-1].endswith(" Evicted: the node was low on memory")


@pytest.mark.parametrize(("shown", "state"), [(False, State.SYSTEM_ERROR), (True, State.PREEMPTED)])
def test_preemption_ends_as_the_site_wants(shown, state):
    world = World(SMALL, replace(POLICY, max_attempts=1, show_preempted=shown))
    world.launch()
    world.cluster.lose(ID, "task", "Preempted")
    assert world.to_the_end().state is state


def test_a_command_that_may_have_begun_is_not_repeated_where_the_site_forbids_it():
    world = running(policy=replace(POLICY, retry_started=False))
    world.cluster.lose(ID, "task", "NodeLost")
    assert (world.to_the_end().state, world.task.attempt) == (State.SYSTEM_ERROR, 1)


def test_a_pod_that_never_started_is_repeated_even_there():
    world = World(SMALL, replace(POLICY, retry_started=False))
    world.launch()
    world.cluster.lose(ID, "task", "NodeLost")
    world.wait(FAULT)
    assert world.task.attempt == 2


def test_a_command_that_failed_is_never_repeated_though_its_pod_is_lost_afterwards():
    world = running(THREE)
    world.cluster.end(ID, "task", "tif", world.cluster.record("tif"))
    world.cluster.end(ID, "task", "executor-0", world.cluster.record("executor-0", 9))
    world.cluster.lose(ID, "task", "Evicted")
    task = world.to_the_end()
    assert (task.state, task.attempt, task.log.logs[0].exit_code) == (State.EXECUTOR_ERROR, 1, 9)
    assert "outputs" in text_of(task)


def test_a_retry_waits_its_time_whoever_wakes_it_before():
    world = running()
    world.cluster.lose(ID, "task", "NodeLost")
    world.settle()
    assert (world.task.stage, world.task.attempt) == (Stage.PREPARE, 2)
    world.link(Role.TORC)
    assert world.task.stage is Stage.PREPARE
    world.clock.advance(POLICY.retry_delay)
    world.link(Role.TORC)
    assert world.task.stage is not Stage.PREPARE


def test_the_delay_of_retries_is_bounded_however_many_there_are():
    policy = replace(POLICY, max_attempts=500)
    task = stored(stage=Stage.FINISH, attempt=400, state=State.RUNNING)
    task = replace(task, outcome=Outcome(State.SYSTEM_ERROR, "Evicted", "", retry=True))
    decided = decide(task, Observed(), START, policy).task
    assert (decided.attempt, decided.wake_at) == (401, START + timedelta(minutes=5))


def test_out_of_memory_is_repeated_with_twice_the_memory_where_the_task_asks():
    world = World(spec(resources=replace(with_parameters(memory_retries="1"), ram_gb=2.0)))
    for ram_gb in (2.0, 4.0):
        world.wait(FAULT)
        assert world.task.ram_gb == ram_gb
        record = world.cluster.record("executor-0", 137, oom_killed=True)
        world.cluster.run(ID, "task", executor_0=record)
        world.settle()
    task = world.to_the_end()
    assert (task.state, task.attempt) == (State.EXECUTOR_ERROR, 2)
    assert [entry.exit_code for entry in task.log.logs] == [137]


def test_memory_is_not_doubled_above_the_sites_limit():
    policy = replace(POLICY, limits=replace(POLICY.limits, max_ram_gb=3))
    world = World(spec(resources=replace(with_parameters(memory_retries="5"), ram_gb=2.0)), policy)
    world.launch()
    world.cluster.run(ID, "task", executor_0=world.cluster.record("executor-0", 137, oom_killed=True))
    assert (world.to_the_end().state, world.task.attempt) == (State.EXECUTOR_ERROR, 1)


# ── waiting ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_pod_that_finds_no_node_stays_queued_with_the_reason_until_the_deadline():
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


def test_a_pod_that_nobody_schedules_and_nobody_says_why_has_a_deadline_too():
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
def test_a_start_that_may_still_succeed_is_borne_for_a_while(reason, failure):
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


def test_a_failing_pull_has_its_whole_time_after_a_long_wait_for_a_node():
    world = World(SMALL)
    world.launch()
    world.cluster.hold(ID, "task", "Unschedulable: 0/3 nodes")
    world.settle()
    world.clock.advance(timedelta(hours=2))
    world.cluster.schedule(ID, "task")
    world.cluster.stick(ID, "task", "executor-0", "ErrImagePull", "connection reset")
    assert world.settle().stage is Stage.RUN
    world.cluster.stick(ID, "task", "executor-0", "ImagePullBackOff", "connection reset")
    world.wait(POLICY.image_deadline + timedelta(seconds=1))  # the two words are one wait
    assert world.task.state is State.SYSTEM_ERROR


def test_a_slow_start_has_its_whole_time_after_a_long_wait_for_a_node():
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


def test_a_start_that_changes_its_mind_for_ever_has_an_end():
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
    raise AssertionError("it flapped for ever")


def test_what_is_waited_for_is_forgotten_when_it_runs():
    world = World(SMALL)
    world.launch()
    world.cluster.schedule(ID, "task")
    world.cluster.stick(ID, "task", "executor-0", "ErrImagePull", "connection reset")
    world.settle()
    world.cluster.start(ID, "task")
    task = world.settle()
    assert (task.state, task.waiting, task.waiting_since) == (State.RUNNING, None, None)


@pytest.mark.parametrize("error", [QuotaExceeded("no room"), ClusterUnavailable("away")])
def test_a_cluster_that_takes_nothing_is_waited_for_and_given_up_in_the_end(error):
    task = stored(stage=Stage.LAUNCH)
    waiting = decide_after(task, error, START, POLICY)
    assert waiting.stage is Stage.LAUNCH and waiting.waiting is not None
    assert waiting.wake_at is not None and START < waiting.wake_at <= START + timedelta(minutes=1)
    still = decide_after(waiting, error, START + POLICY.cluster_deadline, POLICY)
    assert still.outcome is None
    ended = decide_after(still, error, START + POLICY.cluster_deadline + timedelta(seconds=1), POLICY)
    assert ended.outcome is not None and ended.outcome.reason in {"QuotaExceeded", "ClusterUnavailable"}


def test_an_object_that_the_cluster_refuses_ends_the_task():
    ended = decide_after(stored(stage=Stage.LAUNCH), ClusterRefused("invalid"), START, POLICY)
    assert ended.outcome == Outcome(State.SYSTEM_ERROR, "ClusterRefused", "invalid")
    assert ended.stage is Stage.FINISH


def test_the_reason_of_the_end_is_told_however_much_was_told_before():
    world = World(FILES)
    world.launch()
    notes = tuple(f"note {i}" for i in range(100))
    world.cluster.report(ID, "tif", FilerReport(notes=notes))
    world.cluster.report(ID, "tof", FilerReport(notes=notes, error="full", error_code="staging_failed"))
    world.cluster.run(ID, "task", tof=world.cluster.record("tof", 1))
    task = world.to_the_end()
    assert len(task.log.system_logs) <= MAX_SYSTEM_LOGS - KEPT_FOR_THE_END + 1
    assert task.log.system_logs[-1].endswith("StagingFailed: full")


# ── live output ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_running_task_shows_ended_executors_and_the_live_end_of_the_present_one():
    world = running(spec(3))
    world.cluster.end(ID, "task", "executor-0", world.cluster.record("executor-0", stdout="first"))
    world.cluster.tail(ID, "executor-1", "so far")
    world.monitor(tails=True)
    assert [(e.exit_code, e.stdout) for e in world.task.log.logs] == [(0, "first"), (None, "so far")]
    world.cluster.run(ID, "task")
    assert [e.exit_code for e in world.to_the_end().log.logs] == [0, 0, 0]


def test_live_output_that_begins_anew_with_nothing_leaves_what_was_shown():
    world = running(spec(1))
    for said in ("so far", ""):  # an observer that was started anew has read nothing yet
        world.cluster.tail(ID, "executor-0", said)
        world.monitor(tails=True)
        assert [(e.exit_code, e.stdout) for e in world.task.log.logs] == [(None, "so far")]
    world.cluster.tail(ID, "executor-0", "and more")
    world.monitor(tails=True)
    assert [(e.exit_code, e.stdout) for e in world.task.log.logs] == [(None, "and more")]


def test_live_output_of_a_second_pod_leaves_the_first_ones_entry():
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


# ── cancel and clean ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("links", range(6))
@pytest.mark.parametrize("task_spec", [SMALL, FILES, GPUS], ids=["small", "files", "gpus"])
def test_a_cancel_request_at_any_stage_ends_as_canceled_with_nothing_left(task_spec, links):
    world = World(task_spec)
    world.cluster.slow = True
    for role in [Role.TORC, Role.TIF, Role.TEXAM][: min(links, 3)]:
        world.link(role)
    if links > 3 and world.task.part:
        world.cluster.start(ID, world.task.part)
        world.monitor()
    world.cancel()
    world.settle()
    if world.cluster.pods(ID):
        assert world.task.state is State.CANCELING
        assert all(pod.deleting for pod in world.cluster.pods(ID))
    world.cluster.remove(ID)
    task = world.to_the_end()
    assert task.state is State.CANCELED
    assert world.cluster.is_empty(ID)
    assert "Canceled by request." in text_of(task)


def test_pods_that_are_being_deleted_are_not_deleted_again():
    pod = Pod("pod", 1, "task", deleting=True)
    task = stored(stage=Stage.RUN, state=State.CANCELING, cancel_requested_at=START, part="task")
    assert decide(task, Observed(pods=(pod,)), START, POLICY).effects == ()
    assert decide(task, Observed(pods=(replace(pod, deleting=False),)), START, POLICY).effects == (DeletePods(),)


def test_a_finished_tasks_objects_are_kept_as_long_as_the_site_wants():
    world = World(FILES, replace(POLICY, keep=timedelta(hours=1)))
    world.launch()
    world.cluster.run(ID, "task")
    world.settle()
    assert world.task.state is State.COMPLETE
    world.wait(timedelta(minutes=59))
    assert len(world.cluster.pods(ID)) == 1
    world.wait(timedelta(minutes=2))
    world.to_the_end()
    assert world.cluster.is_empty(ID)


def test_what_still_runs_of_a_finished_task_is_not_kept():
    world = World(SMALL, replace(POLICY, keep=timedelta(hours=1)))
    world.launch()
    world.cluster.schedule(ID, "task")
    world.cluster.stick(ID, "task", "executor-0", "InvalidImageName")
    world.settle()
    world.wait(timedelta(seconds=10))
    assert world.cluster.pods(ID) == ()
    assert world.task.stage is Stage.CLEAN


def test_clean_up_goes_on_until_everything_is_seen_to_be_gone():
    task = stored(stage=Stage.CLEAN, state=State.COMPLETE, wake_at=START)
    left = Observed(documents=("secret",))
    decision = decide(task, left, START, POLICY)
    assert decision.effects == (DeleteAll(),)
    assert decision.task.stage is Stage.CLEAN
    assert decide(task, Observed(), START, POLICY).task.stage is Stage.DONE
    assert decide(task, None, START, POLICY).effects == (DeleteAll(),)


def test_what_turns_up_after_the_end_is_removed():
    done = stored(stage=Stage.DONE, state=State.COMPLETE, wake_at=None)
    assert decide(done, Observed(volumes=("late",)), START, POLICY).effects == (DeleteAll(),)
    assert decide(done, Observed(), START, POLICY).effects == ()


# ── properties ───────────────────────────────────────────────────────────────────────────────────────────────────────────────

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
    volumes=st.sampled_from([(), ("volume",)]),
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
        waiting=draw(st.sampled_from([None, "ErrImagePull of executor-0: x", "QuotaExceeded: x"])),
    )


@given(tasks(), OBSERVATIONS, st.integers(0, 200_000))
def test_whatever_is_seen_the_task_goes_on_along_the_table_and_is_looked_at_again(task, observed, seconds):
    now = START + timedelta(seconds=seconds)
    decision = decide(task, observed if needs_observation(task) else None, now, POLICY)
    after = decision.task
    assert after.stage is Stage.DONE or after.wake_at is not None
    assert not task.state.is_terminal or after.state is task.state
    assert all(entry.exit_code is not None for entry in after.log.logs) or not after.state.is_terminal
    assert not (decision.effects and decision.again and after.stage is Stage.DONE)


@given(tasks(), OBSERVATIONS)
def test_deciding_again_about_what_was_saved_changes_nothing_more(task, observed):
    """The same world, looked at again at the same time: the second decision is to wait, or to go on with the next stage."""
    once = decide(task, observed, START, POLICY).task
    if (once.due_stage, once.part, once.attempt) == (task.due_stage, task.part, task.attempt):
        assert decide(once, observed, START, POLICY).task == once


def test_a_tif_that_runs_before_the_others_start_is_not_taken_for_a_pod_that_does_not_start():
    world = World(spec(inputs=(Input("/in.txt", url="s3://bucket/in"),)))
    world.launch()
    world.cluster.schedule(ID, "task")
    world.cluster.set(ID, "task", "tif", phase=Phase.RUNNING)
    world.clock.advance(POLICY.start_deadline * 3)
    world.monitor()
    assert world.task.outcome is None
    assert world.task.attempt == 1


def test_a_container_that_could_not_be_started_ends_the_attempt_although_others_wait_for_it():
    world = World(FILES)
    world.launch()
    world.cluster.start(ID, "task")
    failed = {"phase": Phase.ENDED, "reason": "StartError", "message": "shim: context canceled", "exit_code": 128}
    world.cluster.set(ID, "task", "executor-0", **failed)
    world.monitor()
    assert world.task.outcome is not None
    assert (world.task.outcome.reason, world.task.outcome.retry) == ("ContainerNotStarted", True)
    assert "context canceled" in (world.task.outcome.message or "")
