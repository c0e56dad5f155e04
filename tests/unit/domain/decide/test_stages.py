"""The stage machine, row by row: what each stage does, cancel, clean-up, retries."""

from dataclasses import replace
from datetime import timedelta

import pytest

from poiesis.domain.decide.admission import admit
from poiesis.domain.decide.stages import OVERDUE, Effect, decide
from poiesis.domain.observed import Container, Observed, Phase, Pod, Record
from poiesis.domain.policy import Policy
from poiesis.domain.quotas import AdmissionRules, Amount, Claim, Quota
from poiesis.domain.states import Role, Stage, State
from poiesis.domain.task import ExecutorLog, Outcome, Resources
from poiesis.testing.clock import START
from tests.unit.domain.samples import (
    FAULT,
    FILES,
    GPUS,
    ID,
    POLICY,
    SMALL,
    THREE,
    World,
    running,
    spec,
    stored,
    text_of,
    with_parameters,
)


@pytest.mark.parametrize(
    ("task", "effects", "stage", "part"),
    [
        (stored(SMALL), (), Stage.LAUNCH, None),
        (stored(FILES), (Effect.CREATE_VOLUME,), Stage.STAGE_IN, None),
        (stored(spec(volumes=("/scratch",))), (Effect.CREATE_VOLUME,), Stage.LAUNCH, None),
        (stored(FILES, stage=Stage.STAGE_IN, layout="single"), (Effect.CREATE_DOCUMENTS,), Stage.LAUNCH, None),
        (stored(GPUS, stage=Stage.STAGE_IN, layout="staged"), (Effect.CREATE_DOCUMENTS, Effect.LAUNCH), Stage.STAGE_IN, "tif"),
        (stored(FILES, stage=Stage.LAUNCH, layout="single"), (Effect.LAUNCH,), Stage.RUN, "task"),
        (stored(GPUS, stage=Stage.LAUNCH, layout="staged"), (Effect.LAUNCH,), Stage.RUN, "executor-0"),
        (stored(FILES, stage=Stage.LAUNCH, layout="staged"), (Effect.LAUNCH,), Stage.RUN, "executors"),
        (stored(GPUS, stage=Stage.STAGE_OUT, layout="staged"), (Effect.LAUNCH,), Stage.STAGE_OUT, "tof"),
    ],
)  # fmt: skip
def test_each_stage_creates_its_objects_and_names_the_pod_it_waits_for(task, effects, stage, part):
    decision = decide(task, None, START, POLICY)
    assert (decision.effects, decision.task.stage, decision.task.part) == (effects, stage, part)
    assert decision.task.wake_at is not None and decision.task.wake_at > START


def test_a_task_without_files_is_one_launch_and_one_deletion():
    world = World(SMALL)
    world.launch()
    world.cluster.run(ID, "task")
    world.to_the_end()
    calls = [call.method for call in world.cluster.calls]
    assert calls.count("launch") == 1
    assert [c for c in calls if c != "observe"] == ["launch", "delete_all"]


def test_a_finished_pod_never_seen_running_passes_through_every_state():
    world = World(SMALL)
    world.launch()
    world.cluster.run(ID, "task")
    task = world.settle()
    assert task.state is State.COMPLETE
    assert task.log.start_time is not None and task.log.end_time is not None


@pytest.mark.parametrize("lost", [False, True], ids=["still shown running", "lost in the meantime"])
def test_records_of_all_containers_end_the_pod_whatever_the_cluster_shows(lost):
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
    decision = decide(task, None, START, replace(POLICY, layout="single"))
    assert (decision.effects, decision.task.part) == ((Effect.LAUNCH,), "executors")


@pytest.mark.parametrize("fault", ["lose", "vanish", "terminated", "no record"])
def test_a_lost_pod_is_recreated_within_the_same_task_log(fault):
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


def test_faults_of_the_infrastructure_end_the_task_after_the_last_attempt():
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
def test_preemption_ends_as_the_site_configures(shown, state):
    world = World(SMALL, replace(POLICY, max_attempts=1, show_preempted=shown))
    world.launch()
    world.cluster.lose(ID, "task", "Preempted")
    assert world.to_the_end().state is state


def test_a_command_that_may_have_begun_is_not_repeated_where_the_site_forbids_it():
    world = running(policy=replace(POLICY, retry_started=False))
    world.cluster.lose(ID, "task", "NodeLost")
    assert (world.to_the_end().state, world.task.attempt) == (State.SYSTEM_ERROR, 1)


@pytest.mark.parametrize("how", ["lost", "not started", "too slow", "not its turn"])
def test_commands_that_have_ended_are_not_repeated_there_for_one_that_cannot_start(how):
    world = World(spec(2, resources=GPUS.resources), replace(POLICY, retry_started=False))
    world.launch()
    world.cluster.run(ID, "executor-0")
    assert world.settle().part == "executor-1"
    match how:
        case "lost":
            world.cluster.lose(ID, "executor-1", "NodeLost")
        case "not started":
            world.cluster.schedule(ID, "executor-1")
            world.cluster.set(ID, "executor-1", "executor-1", phase=Phase.ENDED, reason="StartError", exit_code=128)
        case "too slow":
            world.cluster.schedule(ID, "executor-1")
            world.settle()
            world.clock.advance(POLICY.start_deadline + timedelta(minutes=1))
        case _:
            world.cluster.run(
                ID, "executor-1", executor_1=world.cluster.record("executor-1", None, reason="WaitTimeout")
            )
    task = world.to_the_end()
    assert (task.state, task.attempt, [e.exit_code for e in task.log.logs]) == (State.SYSTEM_ERROR, 1, [0])


def test_commands_that_have_ended_in_the_same_pod_are_not_repeated_there_either():
    world = running(spec(2), replace(POLICY, retry_started=False))
    late = world.cluster.record("executor-1", None, reason="WaitTimeout")
    world.cluster.run(ID, "task", executor_1=late)
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


def test_a_retry_waits_its_delay_even_when_woken_early():
    world = running()
    world.cluster.lose(ID, "task", "NodeLost")
    world.settle()
    assert (world.task.stage, world.task.attempt) == (Stage.PREPARE, 2)
    world.link(Role.TORC)
    assert world.task.stage is Stage.PREPARE
    world.clock.advance(POLICY.retry_delay)
    world.link(Role.TORC)
    assert world.task.stage is not Stage.PREPARE


def test_the_delay_of_retries_is_bounded():
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


def out_of_memory(world: World) -> None:
    world.wait(FAULT)
    world.cluster.run(ID, "task", executor_0=world.cluster.record("executor-0", 137, oom_killed=True))
    world.settle()


def test_attempts_that_ran_out_of_memory_leave_as_many_for_faults_as_the_site_allows():
    world = World(spec(resources=replace(with_parameters(memory_retries="2"), ram_gb=1.0)))
    out_of_memory(world)
    for attempt in (2, 3):
        world.wait(FAULT)
        world.cluster.lose(ID, "task", "NodeLost")
        assert (world.settle().attempt, world.task.state.is_terminal) == (attempt + 1, False)
    out_of_memory(world)
    assert world.wait(FAULT).attempt == 5
    world.cluster.lose(ID, "task", "NodeLost")
    assert (world.to_the_end().state, world.task.attempt) == (State.SYSTEM_ERROR, 5)


def test_retries_request_memory_up_to_the_limit_of_the_site_and_never_less_than_at_first():
    policy = replace(POLICY, limits=replace(POLICY.limits, max_ram_gb=3))
    world = World(spec(resources=replace(with_parameters(memory_retries="5"), ram_gb=2.0)), policy)
    for ram_gb in (2.0, 3.0):
        out_of_memory(world)
        assert world.task.ram_gb == (3.0 if ram_gb == 2.0 else ram_gb)
    assert (world.to_the_end().state, world.task.attempt) == (State.EXECUTOR_ERROR, 2)
    shrunk = replace(world.task, memory_scale=4, most_ram_gb=1)  # the site's limit is below the first request now
    assert shrunk.ram_gb == 2.0


def test_an_attempt_that_needs_more_memory_waits_for_admission_again_and_others_do_not():
    rules = AdmissionRules(site=Quota(max_ram_gb=4))
    policy = replace(POLICY, admission=rules)
    world = World(spec(resources=replace(with_parameters(memory_retries="1"), ram_gb=2.0)), policy)
    claim = Claim("", Amount(tasks=1, memory_bytes=2 * 10**9), "default")
    world.change(claim=claim)
    world.launch()
    world.cluster.lose(ID, "task", "NodeLost")
    assert (world.settle().stage, world.task.attempt, world.task.claim) == (Stage.PREPARE, 2, claim)
    out_of_memory(world)
    task = world.task
    assert (task.stage, task.attempt, task.wake_at) == (Stage.ADMIT, 3, None)
    assert task.claim == replace(claim, amount=Amount(tasks=1, memory_bytes=4 * 10**9))
    world.change(**{f: getattr(admit(task, world.now), f) for f in ("stage", "stage_since", "wake_at")})
    assert world.wait(FAULT).part == "task"


def preempted(policy: Policy, reason: str = "Preempted", *, to_queue: bool = False) -> World:
    world = World(spec(resources=Resources(preemptible=True)), policy)
    for _ in range(2):
        world.wait(FAULT)
        world.cluster.lose(ID, "task", reason, to_queue=to_queue)
        world.settle()
    return world


def test_after_enough_preemptions_a_task_runs_on_demand_and_says_so():
    task = preempted(replace(POLICY, on_demand_after=2)).task
    assert (task.attempt, task.is_preemptible, task.preemptions) == (3, False, 2)
    assert task.log.metadata["on_demand"] == "true"
    assert any(
        "Attempt 3 runs on on-demand nodes: the task was preempted 2 times." in line for line in task.log.system_logs
    )


@pytest.mark.parametrize("reason", ["Preempted", "Evicted"])
def test_a_queue_that_takes_its_quota_back_does_not_move_a_task_to_other_nodes(reason):
    task = preempted(replace(POLICY, on_demand_after=1), reason, to_queue=True).task
    assert (task.attempt, task.is_preemptible, task.preemptions) == (3, True, 0)


def test_a_command_terminated_with_its_node_counts_like_a_pod_without_a_record():
    world = World(spec(resources=Resources(preemptible=True)), replace(POLICY, on_demand_after=1))
    world.launch()
    world.cluster.start(ID, "task")
    terminated = world.cluster.record("executor-0", 143, reason="Terminated")
    world.cluster.end(ID, "task", "executor-0", terminated)
    world.cluster.lose(ID, "task", "Preempted")
    assert (world.settle().attempt, world.task.is_preemptible) == (2, False)


@pytest.mark.parametrize("after", [None, 3])
def test_a_task_stays_preemptible_where_the_site_does_not_allow_more_or_not_yet(after):
    assert preempted(replace(POLICY, on_demand_after=after)).task.is_preemptible


def test_a_task_that_waits_for_admission_is_left_alone():
    waiting = stored(stage=Stage.ADMIT, wake_at=None)
    assert decide(waiting, None, START, POLICY).task == waiting


@pytest.mark.parametrize(
    ("resources", "record", "hint"),
    [
        (Resources(ram_gb=16), {"peak_memory_bytes": 10**9}, "used at most 1 GB of 16 GB of memory"),
        (Resources(ram_gb=16), {"peak_memory_bytes": 8 * 10**9}, None),
        (Resources(ram_gb=0.5), {"peak_memory_bytes": 10**6}, None),
        (Resources(cpu_cores=8), {"cpu_seconds": 60.0, "seconds": 120}, "used 0.5 of 8 CPU cores on average"),
        (Resources(cpu_cores=8), {"cpu_seconds": 5.0, "seconds": 10}, None),
        (Resources(cpu_cores=8), {"cpu_seconds": 600.0, "seconds": 120}, None),
        (Resources(), {"cpu_seconds": 1.0, "peak_memory_bytes": 1}, None),
    ],
)
def test_a_task_that_used_far_less_than_it_asked_for_gets_a_hint(resources, record, hint):
    world = World(spec(resources=resources))
    world.launch()
    seconds = record.pop("seconds", 1)
    made = replace(
        world.cluster.record("executor-0", 0, **record), started_at=START, ended_at=START + timedelta(seconds=seconds)
    )
    world.cluster.run(ID, "task", executor_0=made)
    task = world.to_the_end()
    assert task.state is State.COMPLETE
    assert task.log.metadata.get("resource_hint") == (hint and f"{hint}: request less")


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


def test_a_canceled_task_keeps_the_logs_of_the_commands_that_ended():
    world = World(THREE)
    world.cluster.slow = True
    world.launch()
    world.cluster.start(ID, "task")
    world.monitor()
    world.cluster.tail(ID, "executor-0", "live")
    world.monitor(tails=True)
    first = world.cluster.record("executor-0", stdout="result", peak_memory_bytes=7)
    world.cluster.end(ID, "task", "executor-0", first)
    world.cancel()
    world.settle()
    assert world.task.log.logs == (ExecutorLog(0, first.started_at, first.ended_at, "result"),)
    terminated = world.cluster.record("executor-1", 143, reason="Terminated", stdout="so far")
    world.cluster.end(ID, "task", "executor-1", terminated)
    world.cluster.end(ID, "task", "executor-2", world.cluster.record("executor-2", None, reason="Terminated"))
    world.settle()
    world.cluster.remove(ID)
    task = world.to_the_end()
    assert task.state is State.CANCELED
    assert [(entry.exit_code, entry.stdout) for entry in task.log.logs] == [(0, "result"), (143, "so far")]
    assert task.log.metadata["executor_0_peak_memory_bytes"] == "7"


def test_the_live_output_of_a_canceled_command_stays_until_its_record_is_known():
    live = ExecutorLog(exit_code=None, stdout="live")
    task = stored(stage=Stage.RUN, state=State.CANCELING, cancel_requested_at=START, part="task")
    task = replace(task, log=replace(task.log, logs=(live,)))
    record = Record("executor-0", True, 0, stdout="of an earlier attempt")
    container = Container("executor-0", Phase.ENDED, record=record)
    still_running = Pod("pod", 1, "task", containers=(Container("executor-0", Phase.RUNNING),))
    assert decide(task, Observed(pods=(still_running,)), START, POLICY).task.log.logs == (live,)
    earlier = Pod("old", 1, "task", containers=(container,))
    assert decide(replace(task, attempt=2), Observed(pods=(earlier,)), START, POLICY).task.log.logs == (live,)


@pytest.mark.parametrize(
    "task",
    [
        stored(stage=Stage.RUN, state=State.CANCELING, cancel_requested_at=START, part="task"),
        stored(
            stage=Stage.FINISH, state=State.RUNNING, outcome=Outcome(State.SYSTEM_ERROR, "NodeLost", "x", retry=True)
        ),
    ],
    ids=["canceled", "retried"],
)
def test_a_deleted_pod_that_its_node_does_not_end_is_the_reason_of_waiting(task):
    observed = Observed(pods=(Pod("pod", 1, "task", node="node-1", deleting=True, deletion_due=START),))
    shown = decide(task, observed, START + OVERDUE, POLICY).task
    assert shown.waiting is None
    for minutes in (2, 60):
        shown = decide(shown, observed, START + timedelta(minutes=minutes), POLICY).task
    due = START.isoformat().replace("+00:00", "Z")
    assert shown.waiting == f"NodeUnreachable: pod pod should have ended by {due}; node node-1 may be down"
    assert shown.log.metadata["waiting_reason"] == shown.waiting
    assert text_of(shown).count("NodeUnreachable") == 1
    gone = decide(shown, Observed(), START + timedelta(hours=2), POLICY).task
    assert gone.waiting is None


def test_pods_that_are_being_deleted_are_not_deleted_again():
    pod = Pod("pod", 1, "task", deleting=True)
    task = stored(stage=Stage.RUN, state=State.CANCELING, cancel_requested_at=START, part="task")
    assert decide(task, Observed(pods=(pod,)), START, POLICY).effects == ()
    assert decide(task, Observed(pods=(replace(pod, deleting=False),)), START, POLICY).effects == (Effect.DELETE_PODS,)


def test_objects_of_a_finished_task_are_kept_as_long_as_configured():
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


def test_a_container_still_running_after_the_end_is_not_kept():
    world = World(SMALL, replace(POLICY, keep=timedelta(hours=1)))
    world.launch()
    world.cluster.schedule(ID, "task")
    world.cluster.stick(ID, "task", "executor-0", "InvalidImageName")
    world.settle()
    world.wait(timedelta(seconds=10))
    assert world.cluster.pods(ID) == ()
    assert world.task.stage is Stage.CLEAN


def test_cleanup_continues_until_everything_is_observed_to_be_gone():
    task = stored(stage=Stage.CLEAN, state=State.COMPLETE, wake_at=START)
    left = Observed(others=("secret",))
    decision = decide(task, left, START, POLICY)
    assert decision.effects == (Effect.DELETE_ALL,)
    assert decision.task.stage is Stage.CLEAN
    assert decide(task, Observed(), START, POLICY).task.stage is Stage.DONE
    assert decide(task, None, START, POLICY).effects == (Effect.DELETE_ALL,)


def test_objects_that_appear_after_the_end_are_removed():
    done = stored(stage=Stage.DONE, state=State.COMPLETE, wake_at=None)
    assert decide(done, Observed(others=("late",)), START, POLICY).effects == (Effect.DELETE_ALL,)
    assert decide(done, Observed(), START, POLICY).effects == ()
