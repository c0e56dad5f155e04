"""What to do next about a task: pure, from the task, what is observed of it, the time and the policy.

`decide` is level-triggered: it looks at the current situation, never at events, so calling it twice, late or from several
processes gives the same result. It returns a `Decision`: effects to apply to the cluster, and the task to save once they have succeeded.

    stage      when                                      effects                     then
    admit      -                                         -                           wait: the admitter moves it to prepare
    prepare    -                                         volume, if one is needed    stage_in, or launch without filers
    stage_in   single layout                             filers' documents           launch
               staged, TIF not launched                  documents, TIF pod          wait
               staged, TIF succeeded                     -                           launch
    launch     -                                         first executors' pod        run
    run        pod not ended                             -                           wait; show state and reason
               succeeded, another executors' pod         that pod                    wait
               ended                                     -                           stage_out (staged with outputs), or finish
               TOF lost                                  -                           stage_out
    stage_out  TOF not launched / ended                  TOF pod / -                 wait / finish
               TOF lost                                  -                           wait, then a TOF pod of the next name
    finish     canceled, pods exist / gone               delete pods / -             wait / CANCELED, clean
               attempt lost and to be retried            delete all, until gone      next attempt: prepare, or admit if it asks for more
               else                                      -                           the outcome's state, clean
    clean      not observed yet, or not gone             delete all                  wait
               gone                                      -                           done
    others     pod lost to the infrastructure            -                           finish: retry, or SYSTEM_ERROR

Any role may move a task through a stage without effects. `progress` follows a pod, which `run`, `stage_in` and `stage_out` share;
`endings` classifies how containers ended; `journal` writes what clients see of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from poiesis.domain.decide.admission import next_attempt
from poiesis.domain.decide.endings import (
    Cause,
    Fault,
    fault_state,
    interrupted_upload,
    outcome_of,
    over_disk_limit,
    read_executors,
    read_tif,
    read_tof,
    record_ended,
    with_more_memory,
)
from poiesis.domain.decide.journal import MAX_MESSAGE, add_metadata, move, note, wait, waiting_since
from poiesis.domain.decide.progress import Ended, Lost, Waiting, follow, look_again, note_log_problem, still_runs
from poiesis.domain.errors import ClusterRefused, PoiesisError, QuotaExceeded
from poiesis.domain.observed import DISK_LIMIT, NODE_UNREACHABLE, TIF, TOF, Observed, Room
from poiesis.domain.plan import Layout, Plan, plan
from poiesis.domain.policy import Policy
from poiesis.domain.report import FilerReport
from poiesis.domain.states import Stage, State
from poiesis.domain.task import Outcome, Task
from poiesis.domain.timeline import attempt_ended

CLEAN_AGAIN: Final = timedelta(seconds=20)  # normally an event reports that all is gone; this is for a lost event
CANCEL_AGAIN: Final = timedelta(seconds=5)
OVERDUE: Final = timedelta(minutes=1)  # a node confirms the end of a pod within seconds
SOON: Final = timedelta(seconds=20)  # the next link is published at once; this is for a lost message
LOST_WITH_THE_NODE: Final = frozenset({"Preempted", "NodeLost", "NodeShutdown", "Evicted", "VolumeLost"})
NEVER_STARTED: Final = frozenset(
    {"Unschedulable", "StartTimeout"}
)  # of a pod that waited in vain for a node or its volume
MAX_RETRY_DELAY: Final = timedelta(minutes=5)


class Effect(StrEnum):
    """On the cluster, before the task is saved. LAUNCH creates the pod that becomes the task's `part`."""

    CREATE_VOLUME = "create_volume"
    CREATE_DOCUMENTS = "create_documents"
    LAUNCH = "launch"
    DELETE_PODS = "delete_pods"
    DELETE_ALL = "delete_all"


@dataclass(frozen=True)
class Decision:
    """`task`: to save after all `effects` have succeeded, if it differs. `again`: the new stage can be decided at once."""

    task: Task
    effects: tuple[Effect, ...] = ()
    again: bool = False


def plan_of(task: Task, policy: Policy) -> Plan:
    """The plan of this attempt: its layout stays as first decided even if the policy changes meanwhile."""
    return plan(task.spec, policy if task.layout is None else replace(policy, layout=task.layout), uploads=task.uploads)


def needs_observation(task: Task) -> bool:
    """Whether `decide` needs to see the cluster; if not, no call is made to it."""
    stage = task.due_stage
    if stage is Stage.FINISH:
        return not task.state.is_terminal and (_is_canceled(task) or (task.outcome is not None and task.outcome.retry))
    return stage in (Stage.CLEAN, Stage.DONE) or task.part is not None


def decide(
    task: Task, observed: Observed | None, now: datetime, policy: Policy, the_plan: Plan | None = None
) -> Decision:
    """See the module.

    `observed` None: not observed, which is allowed where `needs_observation` is False and in stage `clean`. `the_plan`: of this
    task, if the caller has made it; else it is made here where the stage needs it.
    """
    stage = task.due_stage
    if task.state.is_terminal and stage not in (Stage.CLEAN, Stage.DONE):
        return Decision(_enter(task, Stage.CLEAN, now, wake=now), again=True)
    if stage is Stage.ADMIT:
        return Decision(task)
    if stage is Stage.DONE:
        return Decision(task, (Effect.DELETE_ALL,) if observed is not None and not observed.is_empty else ())
    if stage is Stage.CLEAN:
        return _clean(task, observed, now, policy)
    if stage is Stage.FINISH:
        return _finish(task, observed, now, policy)
    if stage is Stage.PREPARE and task.attempt > 1 and _is_too_early(task, _retry_delay(task.attempt, policy), now):
        return Decision(task)
    the_plan = the_plan or plan_of(task, policy)
    if stage is Stage.PREPARE:
        first = Stage.STAGE_IN if the_plan.has_filers else Stage.LAUNCH
        effects = (Effect.CREATE_VOLUME,) if the_plan.volume_bytes is not None else ()
        task = replace(task, layout=the_plan.layout.value)
        return Decision(_enter(task, first, now, wake=now + SOON), effects, again=True)
    if stage is Stage.STAGE_IN:
        return _stage_in(task, observed, now, policy, the_plan)
    if stage is Stage.LAUNCH:
        part = the_plan.executor_pods[0].part
        return _launch(_enter(task, Stage.RUN, now, wake=now), part, now)
    if stage is Stage.RUN:
        return _run(task, observed, now, policy, the_plan)
    return _stage_out(task, observed, now, policy, the_plan)


def decide_after(task: Task, error: PoiesisError, now: datetime, policy: Policy) -> Task:
    """The task to save after the cluster did not accept an effect: wait and show why, or give up."""
    if isinstance(error, ClusterRefused):
        return _end(task, Outcome(State.SYSTEM_ERROR, "ClusterRefused", str(error)), now, policy)
    reason = "QuotaExceeded" if isinstance(error, QuotaExceeded) else "ClusterUnavailable"
    since = waiting_since(task, reason, now)
    if now - since > policy.cluster_deadline:
        return _end(task, Outcome(State.SYSTEM_ERROR, reason, str(error)), now, policy)
    backed_off = min(timedelta(seconds=2) + (now - since) / 4, timedelta(minutes=1))
    delay = error.delay if isinstance(error, QuotaExceeded) else backed_off
    return replace(wait(task, f"{reason}: {error}", now), wake_at=now + delay)


# ── stages ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _stage_in(task: Task, observed: Observed | None, now: datetime, policy: Policy, the_plan: Plan) -> Decision:
    pod_plan = the_plan.pod(TIF) if the_plan.layout is Layout.STAGED else None
    if pod_plan is None:
        return Decision(_enter(task, Stage.LAUNCH, now, wake=now + SOON), (Effect.CREATE_DOCUMENTS,), again=True)
    if task.part is None:
        return _launch(task, TIF, now, Effect.CREATE_DOCUMENTS)
    match follow(task, observed, pod_plan, now, policy):
        case Waiting(task):
            return Decision(task)
        case Lost(task, cause):
            return _end_attempt(task, cause, now, policy)
        case Ended(task, pod):
            task, failure = read_tif(task, pod, _report(observed, TIF), now, policy)
            if failure is not None:
                return _end_attempt(task, failure, now, policy)
            return Decision(_enter(task, Stage.LAUNCH, now, wake=now + SOON), again=True)


def _run(task: Task, observed: Observed | None, now: datetime, policy: Policy, the_plan: Plan) -> Decision:
    pods = the_plan.executor_pods
    pod_plan = next((p for p in pods if p.part == task.part), pods[0])
    match follow(task, observed, pod_plan, now, policy):
        case Waiting(task):
            return Decision(task)
        case Lost(task, cause):
            return _end_attempt(task, cause, now, policy)
        case Ended(task, pod):
            pass
    if TIF in pod_plan.names:
        task, failure = read_tif(task, pod, _report(observed, TIF), now, policy)
        if failure is not None:
            return _end_attempt(task, failure, now, policy)
    task, failure = read_executors(task, pod, pod_plan, now, policy)
    outcome = None if failure is None else outcome_of(failure, task, policy)
    if failure is not None and outcome is not None and outcome.retry:
        return _end_attempt(task, failure, now, policy)
    later = pods[pods.index(pod_plan) + 1 :]
    if later and outcome is None:
        return _launch(task, later[0].part, now)
    if the_plan.layout is Layout.STAGED and the_plan.pod(TOF) is not None:
        return Decision(replace(_enter(task, Stage.STAGE_OUT, now, wake=now + SOON), outcome=outcome), again=True)
    if TOF not in pod_plan.names:
        return _end_attempt(task, outcome or Outcome(State.COMPLETE), now, policy)
    report = _report(observed, TOF)
    interrupted = interrupted_upload(pod, report)
    if interrupted is not None:
        return _retry_upload(task, interrupted, outcome, now, policy)
    task, outcome = read_tof(task, pod, report, outcome, now, policy)
    return _end_attempt(task, outcome, now, policy)


def _stage_out(task: Task, observed: Observed | None, now: datetime, policy: Policy, the_plan: Plan) -> Decision:
    """A lost TOF pod is created again over the same volume; executors are not repeated for it."""
    pod_plan = the_plan.pods[-1]
    if pod_plan.names != (TOF,):
        return _end_attempt(task, task.outcome or Outcome(State.COMPLETE), now, policy)
    if task.part is None:
        if task.uploads > 1 and _is_too_early(task, _retry_delay(task.uploads, policy), now):
            return Decision(task)
        return _launch(task, pod_plan.part, now)
    match follow(task, observed, pod_plan, now, policy):
        case Waiting(shown):
            unreachable = _unreachable_volume(shown, observed, pod_plan.part, now, policy)
            return Decision(shown) if unreachable is None else _end_attempt(task, unreachable, now, policy)
        case Lost(_, cause):
            if _lacks_only_outputs(task) and cause.reason in NEVER_STARTED:
                return _end_attempt(task, _volume_lost(cause.message), now, policy)
            return _retry_upload(task, cause, task.outcome, now, policy)
        case Ended(shown, pod):
            report = _report(observed, TOF)
            interrupted = interrupted_upload(pod, report)
            if interrupted is not None:
                return _retry_upload(task, interrupted, task.outcome, now, policy)
            task, outcome = read_tof(shown, pod, report, task.outcome, now, policy)
            return _end_attempt(task, outcome, now, policy)


def _finish(task: Task, observed: Observed | None, now: datetime, policy: Policy) -> Decision:
    if _is_canceled(task):
        if observed is None:
            return Decision(task)
        if observed.pods:
            canceling = replace(
                move(record_ended(task, observed), State.CANCELING, now), stage=Stage.FINISH, wake_at=now + CANCEL_AGAIN
            )
            canceling = _show_overdue(canceling, observed, now)
            return Decision(canceling, () if all(p.deleting for p in observed.pods) else (Effect.DELETE_PODS,))
        task = note(move(task, State.CANCELED, now), now, "Canceled by request.")
        return Decision(_cleanable(task, now), again=True)
    outcome = task.outcome or Outcome(State.SYSTEM_ERROR, "Bug", "the task ended without an outcome")
    if outcome.retry:
        if observed is None:
            return Decision(task)
        if not observed.is_empty:
            over = next((p for p in observed.pods if p.lost == DISK_LIMIT and p.attempt == task.attempt), None)
            if over is not None:  # the launchers' records of a termination arrive before the cluster shows why
                task = add_metadata(task, {"attempts": str(task.attempt)})
                return Decision(replace(task, outcome=over_disk_limit(over)), again=True)
            task = _show_overdue(task, observed, now)
            return Decision(replace(task, wake_at=now + CLEAN_AGAIN), (Effect.DELETE_ALL,))
        task = attempt_ended(task, now)
        task = replace(task, attempt=task.attempt + 1, uploads=1, outcome=None, layout=None)
        delay = _retry_delay(task.attempt, policy)
        task = note(task, now, f"Attempt {task.attempt} starts in {delay.total_seconds():g} s.")
        task = replace(task, log=replace(task.log, logs=(), outputs=()))
        task = _enter(_on_demand(task, now, policy), Stage.PREPARE, now, wake=now + delay)
        if task.claim is not None:
            task = next_attempt(task, plan_of(task, policy), policy.admission, now)
        return Decision(task)
    task = move(task, outcome.state, now)
    if outcome.reason is not None:
        failure = {"failure_reason": outcome.reason, "failure_message": (outcome.message or "")[:MAX_MESSAGE]}
        task = note(add_metadata(task, failure), now, f"{outcome.reason}: {outcome.message}")
    return Decision(_cleanable(task, now), again=True)


def _clean(task: Task, observed: Observed | None, now: datetime, policy: Policy) -> Decision:
    kept_until = (task.log.end_time or now) + policy.keep
    if now < kept_until:
        if observed is None:
            return Decision(task)
        if any(still_runs(pod) for pod in observed.pods):
            return Decision(replace(task, wake_at=now + CLEAN_AGAIN), (Effect.DELETE_PODS,))
        return Decision(look_again(task, now, kept_until))
    if observed is None:
        return Decision(task, (Effect.DELETE_ALL,))
    problems = [pod for pod in observed.pods if pod.log_problem is not None and pod.attempt == task.attempt]
    if problems and (noted := note_log_problem(task, problems[0], now)) is not task:
        return Decision(noted, again=True)
    if observed.is_empty:
        return Decision(replace(_enter(task, Stage.DONE, now, wake=now), wake_at=None))
    if task.wake_at is not None and now < task.wake_at:
        return Decision(task, (Effect.DELETE_ALL,))
    delay = min(max(now - (task.stage_since or now), CLEAN_AGAIN), timedelta(minutes=5))
    return Decision(replace(task, wake_at=now + delay), (Effect.DELETE_ALL,))


# ── steps that stages share ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _end(task: Task, outcome: Outcome, now: datetime, policy: Policy) -> Task:
    """Enter the finish stage with `outcome`; a retry is noted."""
    if outcome.retry:
        task = note(task, now, f"Attempt {task.attempt} failed. {outcome.reason}: {outcome.message}")
        task = add_metadata(task, {"attempts": str(task.attempt + 1)})
        if outcome.reason == "OutOfMemory":
            task = with_more_memory(task, policy)
    return replace(_enter(task, Stage.FINISH, now, wake=now), outcome=outcome)


def _show_overdue(task: Task, observed: Observed, now: datetime) -> Task:
    """Show why the task waits for pods that have been deleted: their node does not confirm that no container runs."""
    for pod in observed.pods:
        if pod.deletion_due is not None and now - pod.deletion_due > OVERDUE:
            due = pod.deletion_due.isoformat(timespec="seconds").replace("+00:00", "Z")
            where = f"node {pod.node}" if pod.node is not None else "its node"
            return wait(
                task, f"{NODE_UNREACHABLE}: pod {pod.name} should have ended by {due}; {where} may be down", now
            )
    return task


def _on_demand(task: Task, now: datetime, policy: Policy) -> Task:
    """The next attempt on other nodes, if the task has been preempted too often."""
    if not task.is_preemptible or policy.on_demand_after is None or task.preemptions < policy.on_demand_after:
        return task
    times = "once" if task.preemptions == 1 else f"{task.preemptions} times"
    task = note(task, now, f"Attempt {task.attempt} runs on on-demand nodes: the task was preempted {times}.")
    return add_metadata(replace(task, on_demand=True), {"on_demand": "true", "preemptions": str(task.preemptions)})


def _end_attempt(task: Task, cause: Cause, now: datetime, policy: Policy) -> Decision:
    outcome = outcome_of(cause, task, policy)
    with_its_node = isinstance(cause, Fault) and cause.reason in LOST_WITH_THE_NODE and not cause.of_queue
    if outcome.retry and with_its_node and task.is_preemptible:
        task = replace(task, preemptions=task.preemptions + 1)
    return Decision(_end(task, outcome, now, policy), again=True)


def _retry_upload(task: Task, cause: Cause, earlier: Outcome | None, now: datetime, policy: Policy) -> Decision:
    """Another TOF pod over the same volume, under the next name, after a delay; no command is run again for it.

    `earlier`: the outcome of an executor that failed before the upload, which stays the task's.
    """
    is_last = not isinstance(cause, Fault) or task.uploads >= policy.max_attempts
    message = (cause.message or "")[:MAX_MESSAGE]
    if is_last and earlier is not None:
        task = note(task, now, f"The outputs could not be uploaded after the failure: {message}")
        return Decision(_end(task, earlier, now, policy), again=True)
    if is_last:
        state = fault_state(cause, policy) if isinstance(cause, Fault) else cause.state
        return Decision(_end(task, Outcome(state, cause.reason, message), now, policy), again=True)
    task = replace(task, uploads=task.uploads + 1, outcome=earlier)
    delay = _retry_delay(task.uploads, policy)
    text = f"The upload was interrupted and starts again in {delay.total_seconds():g} s. {cause.reason}: {message}"
    task = add_metadata(note(task, now, text), {"uploads": str(task.uploads)})
    return Decision(_enter(task, Stage.STAGE_OUT, now, wake=now + delay))


def _unreachable_volume(
    task: Task, observed: Observed | None, part: str, now: datetime, policy: Policy
) -> Fault | None:
    """A repeated upload that no node can run: the volume may have been on the node that was lost, so only a new attempt helps."""
    pod = observed.pod(part, task.attempt) if observed is not None else None
    if not _lacks_only_outputs(task) or pod is None or pod.scheduled:
        return None
    if pod.queued or pod.room is Room.BUSY:
        return None
    if now - (task.waiting_since or pod.created_at or now) <= policy.start_deadline:  # not counting the time in a queue
        return None
    return _volume_lost(pod.waiting or "the upload was not scheduled to a node")


def _lacks_only_outputs(task: Task) -> bool:
    """Whether all commands have succeeded and the upload has been lost once: its node may have had the volume."""
    return task.outcome is None and task.uploads > 1


def _volume_lost(why: str | None) -> Fault:
    return Fault("VolumeLost", f"the outputs are no longer reachable: {why}", began=True)


def _report(observed: Observed | None, filer: str) -> FilerReport | None:
    return observed.reports.get(filer) if observed is not None else None


def _is_canceled(task: Task) -> bool:
    return task.cancel_requested_at is not None and not task.state.is_terminal


def _is_too_early(task: Task, delay: timedelta, now: datetime) -> bool:
    """Whether the task was woken before the delay of its retry has passed."""
    return now < (task.stage_since or now) + delay


def _retry_delay(number: int, policy: Policy) -> timedelta:
    """Before the attempt, or the upload, with this number (2 or more)."""
    return min(policy.retry_delay * (1 << min(max(number - 2, 0), 20)), MAX_RETRY_DELAY)


def _enter(task: Task, stage: Stage, now: datetime, *, wake: datetime) -> Task:
    return replace(task, stage=stage, stage_since=now, wake_at=wake, part=None, waiting=None, waiting_since=None)


def _launch(task: Task, part: str, now: datetime, *before: Effect) -> Decision:
    task = replace(task, part=part, stage_since=now, wake_at=now + SOON, waiting=None, waiting_since=None)
    return Decision(task, (*before, Effect.LAUNCH))


def _cleanable(task: Task, now: datetime) -> Task:
    end = task.log.end_time or now
    return replace(_enter(task, Stage.CLEAN, now, wake=now + CLEAN_AGAIN), log=replace(task.log, end_time=end))
