"""What to do next about a task: pure, from the task, what is observed of it, the time and the policy.

`decide` is level-triggered: it looks at where things stand, never at what happened, so that calling it twice, late or from several
processes comes to the same. It answers a `Decision`: effects to apply to the cluster, and the task to save once they have succeeded.

    stage      when                                      effects                     then
    prepare    -                                         volume, if one is needed    stage_in, or launch without filers
    stage_in   single layout                             filers' documents           launch
               staged, TIF not launched                  documents, TIF pod          wait
               staged, TIF ended well                    -                           launch
    launch     -                                         first executors' pod        run
    run        pod not ended                             -                           wait; state and reason are shown
               ended well, another executors' pod        that pod                    wait
               ended                                     -                           stage_out (staged with outputs), or finish
               TOF lost                                  -                           stage_out
    stage_out  TOF not launched / ended                  TOF pod / -                 wait / finish
               TOF lost                                  -                           wait, then a TOF pod of the next name
    finish     canceled, pods there / gone               delete pods / -             wait / CANCELED, clean
               attempt lost and to be repeated           delete all, until gone      next attempt: prepare
               else                                      -                           the outcome's state, clean
    clean      not looked yet or not gone                delete all                  wait
               gone                                      -                           done
    others     infrastructure took the pod away          -                           finish: retry, or SYSTEM_ERROR

A stage without effects belongs to nobody: whoever meets it may pass through it. The stages that follow a pod share `_follow`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from poiesis.domain import states
from poiesis.domain.errors import ClusterRefused, PoiesisError, QuotaExceeded
from poiesis.domain.observed import TIF, TOF, Container, Observed, Phase, Pod, Record, executor_name
from poiesis.domain.parameters import parse_count
from poiesis.domain.plan import Layout, Plan, PodPlan, plan
from poiesis.domain.policy import Policy
from poiesis.domain.report import FilerReport
from poiesis.domain.states import Stage, State
from poiesis.domain.task import ExecutorLog, Outcome, OutputFileLog, Task

MAX_SYSTEM_LOGS: Final = 200
KEPT_FOR_THE_END: Final = 50  # of these lines: filers and waiting may not crowd out how the task ended
MAX_MESSAGE: Final = 4096
MAX_CHECKSUMS: Final = 100
CLEAN_AGAIN: Final = timedelta(seconds=20)  # an event tells that all is gone; this is for a lost one
CANCEL_AGAIN: Final = timedelta(seconds=5)
SOON: Final = timedelta(seconds=20)  # the link that follows is published at once; this is for a lost one
MAX_RETRY_DELAY: Final = timedelta(minutes=5)
MAX_MEMORY_RETRIES: Final = 10  # a thousand times the memory

_REFUSED_IMAGE: Final = re.compile(
    r"not ?found|unauthorized|authentication required|denied|forbidden|manifest unknown|no such image|does not exist|invalid reference",
    re.IGNORECASE,
)
_IMAGE_REASONS: Final = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"}
)
_FINAL_REASONS: Final = frozenset({"InvalidImageName", "ErrImageNeverPull", "ImageRefused"})
_CLUSTER_REASONS: Final = frozenset({"QuotaExceeded", "ClusterUnavailable"})
_OF_CONTAINER: Final = re.compile(r"\w+ of (tif|tof|executor-\d+)")
_UNAVAILABLE: Final = frozenset({"StdinUnavailable", "StdoutUnavailable", "StderrUnavailable", "WorkdirUnavailable"})
_START_FAILURES: Final = frozenset({"StartError", "ContainerCannotRun"})  # of a container that has ended
_ORDINARY_REASONS: Final = frozenset({None, "ContainerCreating", "PodInitializing"})


@dataclass(frozen=True)
class CreateVolume:
    pass


@dataclass(frozen=True)
class CreateDocuments:
    pass


@dataclass(frozen=True)
class Launch:
    part: str


@dataclass(frozen=True)
class DeletePods:
    pass


@dataclass(frozen=True)
class DeleteAll:
    pass


Effect = CreateVolume | CreateDocuments | Launch | DeletePods | DeleteAll


@dataclass(frozen=True)
class Decision:
    """`task`: to save when all `effects` have succeeded, if it differs. `again`: the new stage can be decided at once."""

    task: Task
    effects: tuple[Effect, ...] = ()
    again: bool = False


def plan_of(task: Task, policy: Policy) -> Plan:
    """The plan that this attempt follows: its layout stays as first decided even if the policy changes meanwhile."""
    return plan(task.spec, policy if task.layout is None else replace(policy, layout=task.layout), uploads=task.uploads)


def needs_observation(task: Task) -> bool:
    """Whether `decide` has to see the cluster; where not, nothing is asked of it."""
    stage = task.due_stage
    if stage is Stage.FINISH:
        return not task.state.is_terminal and (_is_canceled(task) or (task.outcome is not None and task.outcome.retry))
    return stage in (Stage.CLEAN, Stage.DONE) or task.part is not None


def decide(task: Task, observed: Observed | None, now: datetime, policy: Policy) -> Decision:
    """See the module. `observed` None: nobody looked, which is right where `needs_observation` says no and allowed for `clean`."""
    stage = task.due_stage
    if task.state.is_terminal and stage not in (Stage.CLEAN, Stage.DONE):
        return Decision(_to(task, Stage.CLEAN, now, wake=now), again=True)
    if stage is Stage.DONE:
        return Decision(task, (DeleteAll(),) if observed is not None and not observed.is_empty else ())
    if stage is Stage.CLEAN:
        return _clean(task, observed, now, policy)
    if stage is Stage.FINISH:
        return _finish(task, observed, now, policy)
    if (
        stage is Stage.PREPARE
        and task.attempt > 1
        and now < (task.stage_since or now) + _retry_delay(task.attempt, policy)
    ):
        return Decision(task)  # woken too early
    the_plan = plan_of(task, policy)
    if stage is Stage.PREPARE:
        first = Stage.STAGE_IN if the_plan.has_filers else Stage.LAUNCH
        effects = (CreateVolume(),) if the_plan.volume_bytes is not None else ()
        return Decision(
            _to(replace(task, layout=the_plan.layout.value), first, now, wake=now + SOON), effects, again=True
        )
    if stage is Stage.STAGE_IN:
        return _stage_in(task, observed, now, policy, the_plan)
    if stage is Stage.LAUNCH:
        part = the_plan.executor_pods[0].part
        return Decision(_launched(_to(task, Stage.RUN, now, wake=now + SOON), part, now), (Launch(part),))
    if stage is Stage.RUN:
        return _run(task, observed, now, policy, the_plan)
    return _stage_out(task, observed, now, policy, the_plan)


def decide_after(task: Task, error: PoiesisError, now: datetime, policy: Policy) -> Task:
    """The task to save after the cluster did not take an effect: wait and say why, or give up."""
    if isinstance(error, ClusterRefused):
        return _end(task, now, Outcome(State.SYSTEM_ERROR, "ClusterRefused", str(error)))
    reason = "QuotaExceeded" if isinstance(error, QuotaExceeded) else "ClusterUnavailable"
    since = _waiting_since(task, reason, now)
    if now - since > policy.cluster_deadline:
        return _end(task, now, Outcome(State.SYSTEM_ERROR, reason, str(error)))
    delay = (
        error.delay
        if isinstance(error, QuotaExceeded)
        else min(timedelta(seconds=2) + (now - since) / 4, timedelta(minutes=1))
    )
    return replace(_wait(task, f"{reason}: {error}", now), wake_at=now + delay)


# ── stages ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _stage_in(task: Task, observed: Observed | None, now: datetime, policy: Policy, the_plan: Plan) -> Decision:
    pod_plan = the_plan.pod(TIF) if the_plan.layout is Layout.STAGED else None
    if pod_plan is None:
        return Decision(_to(task, Stage.LAUNCH, now, wake=now + SOON), (CreateDocuments(),), again=True)
    if task.part is None:
        return Decision(_launched(task, TIF, now), (CreateDocuments(), Launch(TIF)))
    task, pod = _follow(task, observed, pod_plan, now, policy)
    if pod is None or observed is None:
        return Decision(task, again=task.outcome is not None)
    task, failure = _read_tif(task, pod, observed.reports.get(TIF), now, policy)
    if failure is not None:
        return Decision(_end(task, now, failure), again=True)
    return Decision(_to(task, Stage.LAUNCH, now, wake=now + SOON), again=True)


def _run(task: Task, observed: Observed | None, now: datetime, policy: Policy, the_plan: Plan) -> Decision:
    pod_plan = next((p for p in the_plan.executor_pods if p.part == task.part), the_plan.executor_pods[0])
    task, pod = _follow(task, observed, pod_plan, now, policy)
    if pod is None or observed is None:
        return Decision(task, again=task.outcome is not None)
    if TIF in pod_plan.names:
        task, failure = _read_tif(task, pod, observed.reports.get(TIF), now, policy)
        if failure is not None:
            return Decision(_end(task, now, failure), again=True)
    task, outcome = _read_executors(task, pod, pod_plan, now, policy)
    if outcome is not None and outcome.retry:
        return Decision(_end(task, now, outcome), again=True)
    later = the_plan.executor_pods[the_plan.executor_pods.index(pod_plan) + 1 :]
    if later and outcome is None:
        return Decision(_launched(task, later[0].part, now), (Launch(later[0].part),))
    if the_plan.layout is Layout.STAGED and the_plan.pod(TOF) is not None:
        return Decision(replace(_to(task, Stage.STAGE_OUT, now, wake=now + SOON), outcome=outcome), again=True)
    if TOF in pod_plan.names:
        report = observed.reports.get(TOF)
        lost = _uploader_lost(pod, report)
        if lost is not None:
            return _upload_lost(task, lost, outcome, now, policy)
        task, outcome = _read_tof(task, pod, report, outcome, now)
    return Decision(_end(task, now, outcome or Outcome(State.COMPLETE)), again=True)


def _stage_out(task: Task, observed: Observed | None, now: datetime, policy: Policy, the_plan: Plan) -> Decision:
    """A TOF pod that was lost is made again over the same volume: what executors did is not repeated for it."""
    pod_plan = the_plan.pods[-1]
    if pod_plan.names != (TOF,):
        return Decision(_end(task, now, task.outcome or Outcome(State.COMPLETE)), again=True)
    if task.part is None:
        delay = _retry_delay(task.uploads, policy) if task.uploads > 1 else timedelta(0)
        if now < (task.stage_since or now) + delay:
            return Decision(task)  # woken too early
        return Decision(_launched(task, pod_plan.part, now), (Launch(pod_plan.part),))
    if observed is None:
        return Decision(task)
    earlier, repeatable = task.outcome, replace(policy, retry_started=True, max_attempts=task.attempt + 1)
    followed, pod = _follow(replace(task, outcome=None), observed, pod_plan, now, repeatable)
    lost = followed.outcome if pod is None else _uploader_lost(pod, observed.reports.get(TOF))
    if lost is not None:
        return _upload_lost(task, lost, earlier, now, policy)
    if pod is not None:
        task, outcome = _read_tof(followed, pod, observed.reports.get(TOF), earlier, now)
        return Decision(_end(task, now, outcome or Outcome(State.COMPLETE)), again=True)
    shown = observed.pod(pod_plan.part, task.attempt)
    waits = timedelta(0) if shown is None or shown.scheduled else now - (shown.created_at or now)
    if earlier is None and task.uploads > 1 and waits > policy.start_deadline:
        # The volume may be where the lost node was: then only a new attempt helps.
        why = (shown.waiting if shown else None) or "no node takes the upload"
        message = f"the outputs cannot be reached any more: {why}"
        return Decision(_lost(task, "VolumeLost", message, now, policy, began=True), again=True)
    return Decision(replace(followed, outcome=earlier))


def _finish(task: Task, observed: Observed | None, now: datetime, policy: Policy) -> Decision:
    if _is_canceled(task):
        if observed is None:
            return Decision(task)
        if observed.pods:
            canceling = replace(_move(task, State.CANCELING, now), stage=Stage.FINISH, wake_at=now + CANCEL_AGAIN)
            return Decision(canceling, () if all(p.deleting for p in observed.pods) else (DeletePods(),))
        task = _note(_move(task, State.CANCELED, now), now, "Canceled by request.")
        return Decision(_cleanable(task, now), again=True)
    outcome = task.outcome or Outcome(State.SYSTEM_ERROR, "Bug", "the task ended without an outcome")
    if outcome.retry:
        if observed is None:
            return Decision(task)
        if not observed.is_empty:
            return Decision(replace(task, wake_at=now + CLEAN_AGAIN), (DeleteAll(),))
        task = replace(task, attempt=task.attempt + 1, uploads=1, outcome=None, layout=None)
        delay = _retry_delay(task.attempt, policy)
        task = _note(task, now, f"Attempt {task.attempt} begins in {delay.total_seconds():g} s.")
        task = replace(task, log=replace(task.log, logs=(), outputs=()))
        return Decision(_to(task, Stage.PREPARE, now, wake=now + delay))
    task = _move(task, outcome.state, now)
    if outcome.reason is not None:
        told = {"failure_reason": outcome.reason, "failure_message": (outcome.message or "")[:MAX_MESSAGE]}
        task = _note(_metadata(task, told), now, f"{outcome.reason}: {outcome.message}")
    return Decision(_cleanable(task, now), again=True)


def _clean(task: Task, observed: Observed | None, now: datetime, policy: Policy) -> Decision:
    kept_until = (task.log.end_time or now) + policy.keep
    if now < kept_until:
        if observed is None:
            return Decision(task)  # looked at soon
        if any(_still_runs(pod) for pod in observed.pods):
            return Decision(replace(task, wake_at=now + CLEAN_AGAIN), (DeletePods(),))
        return Decision(_look_again(task, now, kept_until))
    if observed is None:
        return Decision(task, (DeleteAll(),))
    if observed.is_empty:
        return Decision(replace(_to(task, Stage.DONE, now, wake=now), wake_at=None))
    if task.wake_at is not None and now < task.wake_at:
        return Decision(task, (DeleteAll(),))
    patience = min(max(now - (task.stage_since or now), CLEAN_AGAIN), timedelta(minutes=5))
    return Decision(replace(task, wake_at=now + patience), (DeleteAll(),))


def _still_runs(pod: Pod) -> bool:
    """Whether something in the pod of a finished task may still go on: only what has ended is kept to be looked at."""
    return not (pod.ended or pod.deleting) and not all(
        c.phase is Phase.ENDED or c.record is not None for c in pod.containers or (Container("", Phase.WAITING),)
    )


# ── following a pod ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _follow(
    task: Task, observed: Observed | None, pod_plan: PodPlan, now: datetime, policy: Policy
) -> tuple[Task, Pod | None]:
    """The task with what can be shown of the pod now, and the pod once all of it has ended; an outcome when it never will."""
    if observed is None:
        return task, None
    pod = observed.pod(pod_plan.part, task.attempt)
    if pod is None:
        return _lost(
            task, "PodDeleted", "the pod was deleted by somebody else", now, policy, began=_began(task, None)
        ), None
    if _all_recorded(pod, pod_plan):
        return _shown(task, pod, now), pod
    if pod.lost is not None:
        task = _shown(task, pod, now)
        if _lacks_upload_alone(pod, pod_plan):
            return task, pod
        if _has_failed(pod):  # never repeated, though its outputs are lost
            task, outcome = _read_executors(task, pod, pod_plan, now, policy)
            if outcome is not None:
                task = _note(task, now, f"{pod.lost}: the pod was lost before its outputs were uploaded.")
                return _end(task, now, outcome), None
        message = pod.message or "the cluster took the pod away"
        return _lost(task, pod.lost, message, now, policy, began=_began(task, pod)), None
    if pod.ended:
        return _shown(task, pod, now), pod
    never_started = next((c for c in pod.containers if c.record is None and c.reason in _START_FAILURES), None)
    if never_started is not None:  # the others would wait for it until their last deadline
        return _lost(
            task, "ContainerNotStarted", _how_it_ended(never_started), now, policy, began=_may_have_begun(pod)
        ), None
    task = _shown(task, pod, now, tails=observed.tails)
    task = _look_again(task, now, now + policy.recheck)
    if not pod.scheduled:
        if pod.waiting is not None:
            task = _wait(task, pod.waiting, now)
        since = pod.created_at or task.stage_since or now
        if now - since > policy.schedule_deadline:
            message = pod.waiting or f"no node took the pod within {policy.schedule_deadline}"
            return _end(task, now, Outcome(State.SYSTEM_ERROR, "Unschedulable", message)), None
        return _look_again(task, now, min(now + policy.recheck, since + policy.schedule_deadline)), None
    return _waiting_containers(task, pod, now, policy), None


def _all_recorded(pod: Pod, pod_plan: PodPlan) -> bool:
    """Whether every container has said how it ended; then it does not matter what the cluster still shows."""
    found = [pod.container(name) for name in pod_plan.names]
    return all(c is not None and c.record is not None for c in found)


def _lacks_upload_alone(pod: Pod, pod_plan: PodPlan) -> bool:
    """Whether every other container has said how it ended, and none of them that it was ended from outside."""
    others = [pod.container(name) for name in pod_plan.names if name != TOF]
    records = [c.record for c in others if c is not None and c.record is not None]
    is_known = len(records) == len(others) > 0 and not any(r.reason == "Terminated" for r in records)
    return is_known and TOF in pod_plan.names


def _waiting_containers(task: Task, pod: Pod, now: datetime, policy: Policy) -> Task:
    """A scheduled pod: why a container does not start, in words, and an end when it never will."""
    stuck = [c for c in pod.containers if c.phase is Phase.WAITING and c.reason not in _ORDINARY_REASONS]
    if not stuck:
        slow = [c for c in pod.containers if c.phase is Phase.WAITING]
        tif = pod.container(TIF)
        stages_in = tif is not None and tif.phase is Phase.RUNNING and len(slow) < len(pod.containers)
        if not slow or stages_in:  # as an init container TIF holds the others back, and has a deadline of its own
            return replace(task, waiting=None, waiting_since=None) if task.waiting_since is not None else task
        if task.waiting is not None or task.waiting_since is None:  # from now on it only starts
            task = replace(task, waiting=None, waiting_since=now)
        since = task.waiting_since or now
        in_all = now - (pod.created_at or task.stage_since or now)  # whatever it changed between
        if now - since > policy.start_deadline or in_all > policy.schedule_deadline + policy.start_deadline:
            names = ", ".join(c.name for c in slow)
            message = f"containers did not start within {policy.start_deadline}: {names}"
            return _lost(task, "StartTimeout", message, now, policy, began=_may_have_begun(pod))
        return task
    worst = stuck[0]
    message = f"{worst.reason} of {worst.name}: {worst.message or 'no more is said'}"
    is_image = worst.reason in _IMAGE_REASONS or worst.reason in _FINAL_REASONS
    refused = worst.reason in _FINAL_REASONS or (is_image and _REFUSED_IMAGE.search(worst.message or "") is not None)
    since = _waiting_since(task, message, now)
    if refused or now - since > policy.image_deadline:
        reason = "ImagePullFailed" if is_image else "ContainerNotCreated"
        return _end(task, now, Outcome(State.SYSTEM_ERROR, reason, message))
    task = _wait(task, message, now)
    return _look_again(task, now, min(now + policy.recheck, since + policy.image_deadline))


def _shown(task: Task, pod: Pod, now: datetime, tails: Mapping[str, tuple[str, str]] | None = None) -> Task:
    """State, start time and node as the pod shows them, and live ends of output."""
    if pod.scheduled and task.state is State.QUEUED:
        task = _move(task, State.INITIALIZING, now)
    if pod.node is not None and task.log.metadata.get("node") != pod.node:
        task = _metadata(task, {"node": pod.node})
    if task.state is State.INITIALIZING and _executors_run(pod):
        task = replace(_move(task, State.RUNNING, now), waiting=None, waiting_since=None)
    if tails and task.state is State.RUNNING:
        task = replace(task, log=replace(task.log, logs=_live_logs(task, pod, tails)))
    return task


def _live_logs(task: Task, pod: Pod, tails: Mapping[str, tuple[str, str]]) -> tuple[ExecutorLog, ...]:
    """Entries of the executors that have ended, and the end of what the running one has written so far."""
    logs: list[ExecutorLog] = []
    executors = {c.name: c for c in pod.containers}
    for index in range(len(task.spec.executors)):
        name = executor_name(index)
        container = executors.get(name)
        if container is None:  # of an earlier pod, or of a later one
            logs += task.log.logs[index : index + 1]
        elif container.record is not None and container.record.exit_code is not None:
            logs.append(_entry(container.record))
        elif name in tails:
            shown = ExecutorLog(exit_code=None, stdout=tails[name][0], stderr=tails[name][1])
            before = task.log.logs[index : index + 1]
            if not any(tails[name]) and before and before[0].exit_code is None:
                shown = before[0]  # read anew from nothing, after a restart: what was seen was said all the same
            logs.append(shown)
            break
        else:
            break
    return tuple(logs)


def _has_failed(pod: Pod) -> bool:
    """Whether an executor has said that its command failed by itself."""
    records = [c.record for c in pod.containers if c.name not in (TIF, TOF) and c.record is not None]
    return any(not r.ok and r.exit_code is not None and r.reason != "Terminated" for r in records)


def _executors_run(pod: Pod) -> bool:
    executors = [c for c in pod.containers if c.name not in (TIF, TOF)]
    if not executors:
        return False
    if any(c.record is not None and c.record.started_at is not None for c in executors):
        return True
    tif = pod.container(TIF)
    if tif is not None and not (tif.record.ok if tif.record else tif.phase is Phase.ENDED and not tif.exit_code):
        return False
    return all(c.phase is not Phase.WAITING for c in pod.containers)


def _may_have_begun(pod: Pod) -> bool:
    """Of a pod in which a container has not started: the first executor waits for all others, though perhaps not for TOF."""
    executors = [c for c in pod.containers if c.name not in (TIF, TOF)]
    return all(c.phase is not Phase.WAITING and c.reason not in _START_FAILURES for c in executors)


def _began(task: Task, pod: Pod | None) -> bool:
    """Whether a command of the user may have begun: in doubt yes."""
    executors = [c for c in pod.containers if c.name not in (TIF, TOF)] if pod else []
    return task.state is State.RUNNING or any(c.phase is not Phase.WAITING for c in executors)


# ── reading what ended ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _read_tif(
    task: Task, pod: Pod, report: FilerReport | None, now: datetime, policy: Policy
) -> tuple[Task, Outcome | None]:
    container = pod.container(TIF)
    task = _read_report(task, report, "inputs", now)
    if container is not None and container.record is not None and container.record.ok:
        return task, None
    if report is not None and report.error is not None:
        if report.retryable:
            return task, _fault(task, "InputFailed", report.error, policy, began=False)
        return task, Outcome(State.SYSTEM_ERROR, _filer_reason(report, "InputFailed"), report.error)
    return task, _fault(task, "InputFilerFailed", _how_it_ended(container), policy, began=False)


def _read_tof(
    task: Task, pod: Pod, report: FilerReport | None, outcome: Outcome | None, now: datetime
) -> tuple[Task, Outcome | None]:
    """Outputs into the log; a failed upload is the outcome only when the executors had none."""
    container = pod.container(TOF)
    task = _read_report(task, report, "outputs", now)
    if report is not None:
        outputs = tuple(OutputFileLog(f.url, f.path, f.size_bytes) for f in report.files)
        task = replace(task, log=replace(task.log, outputs=outputs))
        sums = {f"checksum:{f.path}": f.checksum for f in report.files[:MAX_CHECKSUMS] if f.checksum}
        task = _metadata(task, sums)
        if report.omitted:
            task = _note(task, now, f"{report.omitted} more uploaded files are not listed.")
    if container is not None and container.record is not None and container.record.ok:
        return task, outcome
    error = report.error if report is not None and report.error else _how_it_ended(container)
    if outcome is not None:
        return _note(task, now, f"After the failure, outputs could not all be uploaded: {error}"), outcome
    reason = _filer_reason(report, "OutputFailed") if report is not None else "OutputFilerFailed"
    return task, Outcome(State.SYSTEM_ERROR, reason, error)


def _uploader_lost(pod: Pod, report: FilerReport | None) -> Outcome | None:
    """An end of TOF that says nothing about the upload: from outside, or without a word."""
    container = pod.container(TOF)
    record = container.record if container is not None else None
    if (record is not None and record.reason != "Terminated") or (report is not None and report.error is None):
        return None
    return Outcome(State.SYSTEM_ERROR, "OutputFilerLost", _how_it_ended(container)[:MAX_MESSAGE], retry=True)


def _filer_reason(report: FilerReport, otherwise: str) -> str:
    """`not_found` → `NotFound`: the filer's stable code in the form of the other reasons."""
    return "".join(w.capitalize() for w in report.error_code.split("_")) if report.error_code else otherwise


def _read_report(task: Task, report: FilerReport | None, what: str, now: datetime) -> Task:
    if report is None:
        return task
    told = {
        f"{what}_files": str(report.total_files),
        f"{what}_bytes": str(report.total_bytes),
        f"{what}_seconds": f"{report.seconds:.3f}",
    }
    task = _metadata(task, told)
    for note in report.notes:
        task = _note(task, now, note, room=MAX_SYSTEM_LOGS - KEPT_FOR_THE_END)
    return task


def _read_executors(
    task: Task, pod: Pod, pod_plan: PodPlan, now: datetime, policy: Policy
) -> tuple[Task, Outcome | None]:
    """Log entries of the executors that ran, usage, and the outcome when one failed. Executors that never ran have no entry."""
    indices = [c.executor for c in pod_plan.containers if c.executor is not None]
    logs = list(task.log.logs[: indices[0]]) if indices else []  # of earlier pods; this one's are made anew
    usage: dict[str, str] = {}
    outcome: Outcome | None = None
    for index in indices:
        container = pod.container(executor_name(index))
        record = container.record if container is not None else None
        if record is not None and record.exit_code is not None:
            logs.append(_entry(record))
            usage |= _usage(index, record)
            if record.ok and record.oom_killed:  # a failure with it is an outcome of its own
                task = _note(
                    task, now, f"executor {index} went on, though a process of it was killed for want of memory."
                )
            outcome = _outcome_of_record(task, index, record, policy)
        elif record is not None:
            outcome = _outcome_of_no_run(task, index, record, policy)
        else:
            entry, outcome = _outcome_without_record(task, index, container, policy)
            logs += [entry] if entry is not None else []
        if outcome is not None:
            break
    task = _metadata(task, usage)
    return replace(task, log=replace(task.log, logs=tuple(logs))), outcome


def _entry(record: Record) -> ExecutorLog:
    return ExecutorLog(record.exit_code, record.started_at, record.ended_at, record.stdout, record.stderr)


def _usage(index: int, record: Record) -> dict[str, str]:
    told = {}
    if record.peak_memory_bytes is not None:
        told[f"executor_{index}_peak_memory_bytes"] = str(record.peak_memory_bytes)
    if record.cpu_seconds is not None:
        told[f"executor_{index}_cpu_seconds"] = f"{record.cpu_seconds:.3f}"
    if record.oom_killed:
        told[f"executor_{index}_oom_killed"] = "true"
    return told


def _outcome_of_record(task: Task, index: int, record: Record, policy: Policy) -> Outcome | None:
    if record.ok:
        return None
    who = f"executor {index}"
    code = record.exit_code
    if record.reason == "Terminated":
        return _fault(
            task, "PodTerminated", f"{who} was ended from outside: {record.message or 'SIGTERM'}", policy, began=True
        )
    if record.reason == "TimeLimit":
        return Outcome(State.EXECUTOR_ERROR, "TimeLimit", f"{who} ran longer than its time limit and was ended")
    if record.oom_killed:
        limit = f"; the limit is {task.ram_gb:g} GB" if task.ram_gb is not None else ""
        peak = f"; its peak was {record.peak_memory_bytes} bytes" if record.peak_memory_bytes is not None else ""
        return _out_of_memory(task, f"{who} used more memory than it may{limit}{peak}; ask for more ram_gb", policy)
    if record.reason == "OutputLost":
        return Outcome(State.SYSTEM_ERROR, "OutputLost", f"{who}: {record.message or 'its output file is incomplete'}")
    if record.reason in {"NotFound", "NotExecutable", "StartFailed", *_UNAVAILABLE}:
        reason = {"NotFound": "CommandNotFound", "NotExecutable": "CommandNotExecutable"}.get(
            record.reason, record.reason
        )
        return Outcome(State.EXECUTOR_ERROR, reason, f"{who}: {record.message or record.reason}")
    return Outcome(State.EXECUTOR_ERROR, "ExecutorFailed", f"{who} ended with exit code {code}")


def _out_of_memory(task: Task, message: str, policy: Policy) -> Outcome:
    parameters = task.spec.resources.backend_parameters if task.spec.resources else {}
    retries = min(parse_count(parameters.get("memory_retries", "0")), MAX_MEMORY_RETRIES)
    most = policy.limits.max_ram_gb
    fits = task.ram_gb is not None and (most is None or task.ram_gb * 2 <= most)
    repeat = fits and task.memory_scale < 2**retries
    return Outcome(State.EXECUTOR_ERROR, "OutOfMemory", message, retry=repeat)


def _outcome_of_no_run(task: Task, index: int, record: Record, policy: Policy) -> Outcome:
    """The launcher never started the command, and not because an earlier executor failed (that outcome is known already)."""
    message = f"executor {index} was not started: {record.message or record.reason}"
    return _fault(task, record.reason or "NotStarted", message, policy, began=record.reason == "AlreadyBegun")


def _outcome_without_record(
    task: Task, index: int, container: Container | None, policy: Policy
) -> tuple[ExecutorLog | None, Outcome]:
    who = f"executor {index}"
    if container is not None and container.reason == "OOMKilled":
        limit = f"; the limit is {task.ram_gb:g} GB" if task.ram_gb is not None else ""
        entry = ExecutorLog(137, container.started_at, container.ended_at, stderr="Killed: out of memory\n")
        return entry, _out_of_memory(task, f"{who} used more memory than it may{limit}; ask for more ram_gb", policy)
    if container is not None and container.reason in _START_FAILURES:
        return None, _fault(task, "ContainerNotStarted", _how_it_ended(container), policy, began=False)
    return None, _fault(task, "ContainerLost", f"{who}: {_how_it_ended(container)}", policy, began=True)


def _how_it_ended(container: Container | None) -> str:
    if container is None:
        return "its container is gone"
    record = container.record
    if record is not None:
        tail = record.stderr.strip()[-500:]
        said = record.message or record.reason or f"exit code {record.exit_code}"
        return f"{container.name} failed: {said}" + (f": {tail}" if tail else "")
    words = [w for w in (container.reason, container.message) if w]
    code = "" if container.exit_code is None else f" with exit code {container.exit_code}"
    return f"{container.name} ended{code} without a record" + (f" ({': '.join(words)})" if words else "")


# ── small moves ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _is_canceled(task: Task) -> bool:
    return task.cancel_requested_at is not None and not task.state.is_terminal


def _fault(task: Task, reason: str, message: str, policy: Policy, *, began: bool) -> Outcome:
    """A fault of the infrastructure: repeat the attempt where the policy allows."""
    repeat = task.attempt < policy.max_attempts and (policy.retry_started or not began)
    preempted = reason == "Preempted" and policy.show_preempted
    return Outcome(State.PREEMPTED if preempted else State.SYSTEM_ERROR, reason, message[:MAX_MESSAGE], retry=repeat)


def _retry_delay(number: int, policy: Policy) -> timedelta:
    """Before the attempt, or the upload, of this number, which is not the first."""
    return min(policy.retry_delay * (1 << min(max(number - 2, 0), 20)), MAX_RETRY_DELAY)


def _lost(task: Task, reason: str, message: str, now: datetime, policy: Policy, *, began: bool) -> Task:
    return _end(task, now, _fault(task, reason, message, policy, began=began))


def _end(task: Task, now: datetime, outcome: Outcome) -> Task:
    """To the finish with `outcome`; a repetition is noted."""
    if outcome.retry:
        task = _note(task, now, f"Attempt {task.attempt} failed. {outcome.reason}: {outcome.message}")
        task = _metadata(task, {"attempts": str(task.attempt + 1)})
        if outcome.reason == "OutOfMemory":
            task = replace(task, memory_scale=task.memory_scale * 2)
    return replace(_to(task, Stage.FINISH, now, wake=now), outcome=outcome)


def _to(task: Task, stage: Stage, now: datetime, *, wake: datetime) -> Task:
    return replace(task, stage=stage, stage_since=now, wake_at=wake, part=None, waiting=None, waiting_since=None)


def _launched(task: Task, part: str, now: datetime) -> Task:
    return replace(task, part=part, stage_since=now, wake_at=now + SOON, waiting=None, waiting_since=None)


def _upload_lost(task: Task, lost: Outcome, earlier: Outcome | None, now: datetime, policy: Policy) -> Decision:
    """Another TOF pod, under a name of its own, over the same volume, while the policy allows and after the same delay as before an
    attempt; no command is run again for it. `earlier`: of an executor that had failed, which stays the task's."""
    if not lost.retry or task.uploads >= policy.max_attempts:
        if earlier is not None:
            task = _note(task, now, f"After the failure, outputs could not be uploaded: {lost.message}")
        return Decision(_end(task, now, earlier or replace(lost, retry=False)), again=True)
    task = replace(task, uploads=task.uploads + 1, outcome=earlier)
    delay = _retry_delay(task.uploads, policy)
    task = _note(
        task, now, f"The upload was lost and begins again in {delay.total_seconds():g} s. {lost.reason}: {lost.message}"
    )
    return Decision(_to(_metadata(task, {"uploads": str(task.uploads)}), Stage.STAGE_OUT, now, wake=now + delay))


def _look_again(task: Task, now: datetime, at: datetime) -> Task:
    """Wake at about `at`: a wake-up already set for the second half of the time until then does, and costs no save."""
    if task.wake_at is not None and now + (at - now) / 2 <= task.wake_at <= at:
        return task
    return replace(task, wake_at=at)


def _cleanable(task: Task, now: datetime) -> Task:
    end = task.log.end_time or now
    return replace(_to(task, Stage.CLEAN, now, wake=now + CLEAN_AGAIN), log=replace(task.log, end_time=end))


def _move(task: Task, to: State, now: datetime) -> Task:
    """Along the table, however many steps; times of the log are set on the way."""
    steps = states.path(task.state, to)
    if not steps:
        return task
    log = task.log
    if State.INITIALIZING in steps and log.start_time is None:
        log = replace(log, start_time=now)
    if to.is_terminal:
        log = replace(log, end_time=now)
    return replace(task, state=to, log=log)


def _wait(task: Task, why: str, now: datetime) -> Task:
    """Show why nothing goes on; noted once for each reason."""
    why = why[:MAX_MESSAGE]
    if task.waiting == why:
        return task
    same_reason = task.waiting is not None and task.waiting.split(":")[0] == why.split(":")[0]
    if not same_reason:
        task = _note(task, now, why, room=MAX_SYSTEM_LOGS - KEPT_FOR_THE_END)
    task = _metadata(task, {"waiting_reason": why})
    return replace(task, waiting=why, waiting_since=_waiting_since(task, why, now))


def _waiting_since(task: Task, why: str, now: datetime) -> datetime:
    """Since when the task has been waiting for this sort of thing: room in the cluster, a node, or a container's start."""
    same_sort = task.waiting is not None and _sort_of_wait(task.waiting) == _sort_of_wait(why)
    return task.waiting_since if same_sort and task.waiting_since is not None else now


def _sort_of_wait(why: str) -> str:
    reason = why.split(":")[0]
    if reason in _CLUSTER_REASONS:
        return "cluster"
    return "container" if _OF_CONTAINER.fullmatch(reason) else "node"


def _note(task: Task, now: datetime, text: str, room: int = MAX_SYSTEM_LOGS) -> Task:
    if len(task.log.system_logs) >= room:
        return task
    line = f"{now.isoformat(timespec='milliseconds').replace('+00:00', 'Z')} {text[:MAX_MESSAGE]}"
    return replace(task, log=replace(task.log, system_logs=(*task.log.system_logs, line)))


def _metadata(task: Task, told: Mapping[str, str]) -> Task:
    if not told:
        return task
    return replace(task, log=replace(task.log, metadata={**task.log.metadata, **told}))
