"""How tasks end: every row of the failure table, inputs, outputs and interrupted uploads."""

from dataclasses import replace
from datetime import timedelta

import pytest

from poiesis.domain.decide.stages import decide
from poiesis.domain.observed import Observed, Phase, Room
from poiesis.domain.policy import Policy
from poiesis.domain.report import FilerReport, TransferredFile
from poiesis.domain.states import Stage, State
from poiesis.domain.task import Resources, TaskSpec
from tests.unit.domain.samples import (
    FAULT,
    FILES,
    GPUS,
    ID,
    POLICY,
    SMALL,
    STAGED,
    THREE,
    World,
    executor,
    output_file,
    running,
    spec,
    text_of,
    with_parameters,
)

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


def test_an_ignored_container_killed_for_memory_with_its_launcher_is_recorded_and_the_task_goes_on():
    world = World(spec((executor(), executor(ignore_error=True)), outputs=(output_file(),)))
    world.launch()
    world.cluster.run(ID, "task")
    world.cluster.end(ID, "task", "executor-1", reason="OOMKilled", exit_code=137)
    task = world.to_the_end()
    assert task.state is State.COMPLETE and task.attempt == 1
    assert [entry.exit_code for entry in task.log.logs] == [0, 137]
    assert "executor 1 ran out of memory, which its ignore_error allows." in text_of(task)


def test_an_ignored_container_killed_for_memory_in_its_own_pod_is_followed_by_the_next_one():
    world = World(replace(GPUS, executors=(executor(ignore_error=True), executor()), inputs=(), outputs=()))
    part = world.launch().part
    assert part is not None
    world.cluster.start(ID, part)
    world.cluster.end(ID, part, "executor-0", reason="OOMKilled", exit_code=137)
    later = world.settle().part
    assert later is not None and later != part
    world.cluster.run(ID, later)
    task = world.to_the_end()
    assert (task.state, [entry.exit_code for entry in task.log.logs]) == (State.COMPLETE, [137, 0])


def test_an_ignored_container_killed_for_memory_ends_the_task_if_later_commands_of_its_pod_were_not_run():
    world = World(spec((executor(ignore_error=True), executor())))
    world.launch()
    world.cluster.run(ID, "task", executor_1=world.cluster.record("executor-1", None, reason="Skipped"))
    world.cluster.end(ID, "task", "executor-0", reason="OOMKilled", exit_code=137)
    task = world.to_the_end()
    assert (task.state, task.log.metadata["failure_reason"]) == (State.EXECUTOR_ERROR, "OutOfMemory")
    assert [entry.exit_code for entry in task.log.logs] == [137]


def test_a_container_that_the_runtime_cannot_start_is_a_system_error_without_a_log_entry():
    world = World(SMALL, replace(POLICY, max_attempts=1))
    world.launch()
    world.cluster.end(ID, "task", "executor-0", reason="StartError", exit_code=128, message="bad mount")
    task = world.to_the_end()
    assert (task.state, task.log.logs) == (State.SYSTEM_ERROR, ())
    assert task.log.metadata["failure_reason"] == "ContainerNotStarted"


@pytest.mark.parametrize(("which", "repeats"), [("executor-0", True), ("tof", False)])
def test_a_start_failure_of_tof_counts_as_begun_and_one_of_an_executor_does_not(which, repeats):
    """The first executor waits for the others, except for TOF where TIF has already run the same image."""
    world = World(FILES, replace(POLICY, retry_started=False))
    world.launch()
    world.cluster.start(ID, "task")
    world.cluster.set(ID, "task", which, phase=Phase.ENDED, reason="StartError", exit_code=128)
    world.monitor()
    assert world.task.outcome is not None
    assert (world.task.outcome.reason, world.task.outcome.retry) == ("ContainerNotStarted", repeats)


def test_usage_of_every_executor_is_in_the_metadata():
    world = World(SMALL)
    world.launch()
    record = world.cluster.record("executor-0", peak_memory_bytes=1000, cpu_seconds=1.5)
    world.cluster.run(ID, "task", executor_0=record)
    metadata = world.to_the_end().log.metadata
    assert (metadata["executor_0_peak_memory_bytes"], metadata["executor_0_cpu_seconds"]) == ("1000", "1.500")


@pytest.mark.parametrize("layout", ["single", "staged"])
@pytest.mark.parametrize("exit_code", [0, 137], ids=["success", "ignored error"])
def test_a_process_killed_for_memory_in_a_successful_executor_is_noted_and_changes_nothing(layout, exit_code):
    """The shell of `a | b` exits like `b`, and a tool may restart a process: only the kernel's counter shows it."""
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
    assert (
        text_of(task).count("executor 0 continued after one of its processes was killed for running out of memory.")
        == 1
    )


def test_a_task_with_enough_memory_has_no_note_about_memory():
    world = World(FILES)
    world.launch()
    world.cluster.run(ID, "task")
    task = world.to_the_end()
    assert "executor_0_oom_killed" not in task.log.metadata
    assert "memory" not in text_of(task)


@pytest.mark.parametrize("layout", ["single", "staged"])
def test_a_failed_upload_ends_a_successful_task_as_system_error_with_its_logs(layout):
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


def uploading(*, exit_code: int = 0, policy: Policy = STAGED, task_spec: TaskSpec = FILES) -> World:
    """A task whose executor has ended and whose TOF runs next: in the staged layout in its own pod."""
    world = World(task_spec, policy)
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
        *(("staged", how) for how in ("evicted", "deleted", "terminated", "silent", "not started", "other version")),
        *(("single", how) for how in ("evicted", "terminated", "silent", "not started", "other version")),
    ],
)
def test_only_the_upload_is_repeated_after_tof_was_lost(layout, how, exit_code):
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
        case "other version":
            report = FilerReport(error="unknown fields", error_code="configuration", retryable=True)
            world.cluster.report(ID, "tof", report)
            world.cluster.start(ID, first)
            world.cluster.end(ID, first, "tof", world.cluster.record("tof", 1))
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
    assert "The upload was interrupted and starts again in 2 s." in text_of(task)
    assert world.cluster.is_empty(ID)


@pytest.mark.parametrize(
    ("exit_code", "ends"), [(0, (State.SYSTEM_ERROR, "Evicted")), (4, (State.EXECUTOR_ERROR, "ExecutorFailed"))]
)
@pytest.mark.parametrize("retry_started", [True, False])
@pytest.mark.parametrize(("layout", "first"), [("staged", "tof"), ("single", "task")])
def test_an_upload_lost_on_every_attempt_ends_the_task_and_repeats_no_command(
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


def test_a_record_of_the_lost_tof_pod_does_not_end_the_next_one():
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


def uploading_again(policy: Policy = STAGED, task_spec: TaskSpec = FILES) -> World:
    """A task whose node was lost with TOF, so that another pod uploads."""
    world = uploading(policy=policy, task_spec=task_spec)
    world.cluster.lose(ID, "tof", "NodeLost")
    world.settle()
    assert world.wait(FAULT).part == "tof-2"
    return world


def test_outputs_on_a_volume_that_no_node_can_reach_are_made_by_a_new_attempt():
    """If volumes are bound to nodes and the node is lost, the next TOF pod can never be scheduled."""
    world = uploading_again()
    world.cluster.hold(ID, "tof-2", "Unschedulable: 1 node had volume node affinity conflict")
    world.settle()
    assert world.wait(POLICY.start_deadline - timedelta(minutes=1)).attempt == 1
    task = world.wait(timedelta(minutes=2))
    assert "VolumeLost: the outputs are no longer reachable: Unschedulable: 1 node" in text_of(task)
    world.wait(FAULT)
    assert (world.task.attempt, world.task.uploads, world.task.part) == (2, 1, "tif")


@pytest.mark.parametrize("how", ["attached to the lost node", "no node", "no node that may be waited for"])
def test_a_repeated_upload_that_never_starts_is_made_by_a_new_attempt(how):
    """A volume stays attached to a lost node: the next TOF pod gets a node, but not the volume."""
    policy = replace(STAGED, schedule_deadline=timedelta(minutes=30))
    world = uploading_again(policy)
    match how:
        case "attached to the lost node":
            world.cluster.schedule(ID, "tof-2", "node-2")
        case "no node":
            world.cluster.hold(ID, "tof-2", "Unschedulable: 0/1 nodes")
        case _:
            world.cluster.hold(ID, "tof-2", "Unschedulable: 0/1 nodes", Room.NO_NODE)
    world.settle()
    task = world.wait(POLICY.start_deadline + timedelta(minutes=1))
    assert "VolumeLost: the outputs are no longer reachable: " in text_of(task)
    world.wait(FAULT)
    assert (world.task.attempt, world.task.uploads, world.task.part) == (2, 1, "tif")


@pytest.mark.parametrize(
    ("exit_code", "retry_started", "ends"),
    [
        (0, False, (State.SYSTEM_ERROR, "VolumeLost")),
        (4, True, (State.EXECUTOR_ERROR, "ExecutorFailed")),
    ],
)
def test_a_repeated_upload_that_never_starts_repeats_no_command_that_must_not_be(exit_code, retry_started, ends):
    world = uploading(exit_code=exit_code, policy=replace(STAGED, retry_started=retry_started))
    world.cluster.lose(ID, "tof", "NodeLost")
    world.settle()
    for part in ("tof-2", "tof-3"):
        if world.wait(FAULT).part != part:
            break
        world.cluster.schedule(ID, part)
        world.settle()
        world.wait(POLICY.start_deadline + timedelta(minutes=1))
    task = world.to_the_end()
    assert (task.state, task.log.metadata["failure_reason"], task.attempt) == (*ends, 1)


def test_a_lost_volume_counts_as_an_attempt_lost_with_its_node_and_an_interrupted_upload_does_not():
    preemptible = replace(FILES, resources=Resources(preemptible=True))
    world = uploading_again(replace(STAGED, on_demand_after=1), preemptible)
    assert (world.task.attempt, world.task.preemptions, world.task.is_preemptible) == (1, 0, True)
    world.cluster.hold(ID, "tof-2", "Unschedulable: 1 node had volume node affinity conflict")
    world.settle()
    task = world.wait(POLICY.start_deadline + timedelta(minutes=1))
    assert (task.attempt, task.preemptions, task.is_preemptible) == (2, 1, False)


@pytest.mark.parametrize("held", [{"queued": True}, {"room": Room.BUSY}], ids=["in a queue", "by busy nodes"])
def test_a_repeated_upload_that_has_to_wait_for_its_turn_is_waited_for(held):
    world = uploading_again()
    world.cluster.hold(ID, "tof-2", "Queued: position 3 in queue users: no quota", **held)
    world.settle()
    assert world.wait(POLICY.start_deadline * 3).part == "tof-2"
    world.cluster.hold(ID, "tof-2", "Admitted: the pod's scheduling gates have been removed")
    world.settle()
    assert world.wait(POLICY.start_deadline - timedelta(minutes=1)).part == "tof-2", "the time in the queue counts"
    assert "VolumeLost" in text_of(world.wait(timedelta(minutes=2)))


def test_a_first_upload_that_waits_for_a_node_is_waited_for():
    world = uploading()
    world.cluster.hold(ID, "tof", "Unschedulable: 0/1 nodes")
    assert world.wait(POLICY.start_deadline * 2).part == "tof"


@pytest.mark.parametrize("layout", ["single", "staged"])
def test_a_tof_without_a_report_is_a_system_error(layout):
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
def test_a_pod_lost_before_its_commands_have_ended_costs_an_attempt(reason, tif, executor):
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


def test_outputs_without_a_report_are_not_a_success():
    """The observed pod has no TOF container although the plan has one."""
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


@pytest.mark.parametrize("layout", ["single", "staged"])
def test_a_download_beyond_its_deadline_ends_the_task_at_once(layout):
    world = World(FILES, replace(POLICY, layout=layout, stage_in_deadline=timedelta(hours=2)))
    part = world.launch().part
    assert part is not None
    stopped = FilerReport(error="stopped before the end", error_code="cancelled", retryable=True, total_bytes=1100)
    world.cluster.report(ID, "tif", stopped)
    skipped = world.cluster.record("executor-0", None, reason="Skipped")
    world.cluster.run(ID, part, tif=world.cluster.record("tif", 1, reason="TimeLimit"), executor_0=skipped)
    task = world.to_the_end()
    assert (task.state, task.attempt) == (State.SYSTEM_ERROR, 1)
    assert task.log.metadata["failure_reason"] == "InputTimeout"
    assert "within 2:00:00" in task.log.metadata["failure_message"]
    assert "POIESIS_POLICY__STAGE_IN_DEADLINE" in task.log.metadata["failure_message"]
    assert task.log.metadata["inputs_bytes"] == "1100"


@pytest.mark.parametrize("layout", ["single", "staged"])
@pytest.mark.parametrize(("executor", "reason"), [(0, "OutputTimeout"), (3, "ExecutorFailed")])
def test_an_upload_beyond_its_deadline_is_not_repeated(executor, reason, layout):
    world = World(FILES, replace(POLICY, layout=layout))
    records = {
        "tif": world.cluster.record("tif", 0),
        "executor_0": world.cluster.record("executor-0", executor),
        "tof": world.cluster.record("tof", 143, ok=False, reason="TimeLimit"),
    }
    for _ in range(4):
        part = world.settle().part
        if part is None:
            break
        world.cluster.run(ID, part, **records)
    task = world.to_the_end()
    assert task.log.metadata["failure_reason"] == reason
    assert "POIESIS_POLICY__STAGE_OUT_DEADLINE" in text_of(task)
    assert (task.attempt, task.uploads) == (1, 1)


INPUT_ENDS = {
    "missing": (FilerReport(error="no such file: s3://bucket/in.txt", error_code="not_found"), 1, "NotFound"),
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
