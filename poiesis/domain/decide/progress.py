"""Following one pod: what it shows of the task while it runs, and whether it has ended or never will."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from poiesis.domain.decide.endings import (
    START_FAILURES,
    Cause,
    Fault,
    describe_end,
    log_entry,
    lost_by_the_cluster,
    over_disk_limit,
    read_executors,
)
from poiesis.domain.decide.journal import (
    MAX_MESSAGE,
    add_metadata,
    move,
    note,
    note_progress,
    wait,
    waiting_since,
    with_executor_logs,
)
from poiesis.domain.observed import DISK_LIMIT, TIF, TOF, Container, Observed, Phase, Pod, Room, executor_name
from poiesis.domain.plan import PodPlan
from poiesis.domain.policy import Policy
from poiesis.domain.states import State
from poiesis.domain.task import ExecutorLog, Outcome, Task
from poiesis.domain.timeline import IMAGE_REASONS, commands_lost, scheduled

MAX_STARTS: Final = 25  # times the start deadline: that long a pod on a node may change between waiting and starting
LOGS_INCOMPLETE: Final = "whole_logs_incomplete"
"""Key of the metadata of a task whose output could not be stored."""
MAX_RECHECKS: Final = 10  # times `Policy.recheck`
_FINAL_REASONS: Final = frozenset({"InvalidImageName", "ErrImageNeverPull", "ImageRefused"})
_ORDINARY_REASONS: Final = frozenset({None, "ContainerCreating", "PodInitializing"})
_IMAGE_REFUSED: Final = re.compile(
    r"not ?found|unauthorized|authentication required|denied|forbidden|manifest unknown|no such image|does not exist|invalid reference",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Waiting:
    """The pod has not ended; `task` shows how far it is."""

    task: Task


@dataclass(frozen=True)
class Ended:
    """All of the pod has ended; its records and reports can be read."""

    task: Task
    pod: Pod


@dataclass(frozen=True)
class Lost:
    """The pod is gone, or will never start or end by itself."""

    task: Task
    cause: Cause


def follow(
    task: Task, observed: Observed | None, pod_plan: PodPlan, now: datetime, policy: Policy
) -> Waiting | Ended | Lost:
    if observed is None:
        return Waiting(task)
    pod = observed.pod(pod_plan.part, task.attempt)
    if pod is None:
        message = "the pod was deleted by another user or controller"
        return Lost(task, Fault("PodDeleted", message, began=_began(task, None)))
    if None not in map(pod.record, pod_plan.names):  # then it does not matter what the cluster still shows
        return Ended(show(task, pod, now), pod)
    if pod.lost is not None:
        return _lost_by_the_cluster(show(task, pod, now), pod, pod.lost, pod_plan, now, policy)
    if pod.ended:
        return Ended(show(task, pod, now), pod)
    never_started = next((c for c in pod.containers if c.record is None and c.reason in START_FAILURES), None)
    if never_started is not None:  # the other containers would wait for it until their last deadline
        return Lost(task, Fault("ContainerNotStarted", describe_end(never_started), began=_may_have_begun(pod)))
    task = look_again(show(task, pod, now, observed.tails), now, now + _recheck(task, now, policy))
    return _starting_or_running(task, pod, now, policy) if pod.scheduled else _unscheduled(task, pod, now, policy)


def _recheck(task: Task, now: datetime, policy: Policy) -> timedelta:
    """The longer a pod has run, the more rarely it is checked without an event: ten thousand running tasks must not keep the store busy."""
    age = now - (task.stage_since or now)
    return min(max(policy.recheck, age / 4), MAX_RECHECKS * policy.recheck)


def look_again(task: Task, now: datetime, at: datetime) -> Task:
    """Wake at about `at`: a wake-up already set in the second half of the time until then is kept, which saves a write."""
    if task.wake_at is not None and now + (at - now) / 2 <= task.wake_at <= at:
        return task
    return replace(task, wake_at=at)


def still_runs(pod: Pod) -> bool:
    """Whether a container of a finished task's pod may still run."""
    all_ended = pod.containers and all(c.phase is Phase.ENDED or c.record is not None for c in pod.containers)
    return not (pod.ended or pod.deleting or all_ended)


def _lost_by_the_cluster(
    task: Task, pod: Pod, reason: str, pod_plan: PodPlan, now: datetime, policy: Policy
) -> Ended | Lost:
    if _lacks_only_the_upload(pod, pod_plan):
        return Ended(task, pod)
    if _has_failed(pod):  # a failed command is never repeated, even though its outputs are lost
        task, cause = read_executors(task, pod, pod_plan, now, policy)
        if cause is not None:
            return Lost(note(task, now, f"{reason}: the pod was lost before its outputs were uploaded."), cause)
    if reason == DISK_LIMIT:
        task, cause = read_executors(task, pod, pod_plan, now, policy)
        return Lost(task, cause if isinstance(cause, Outcome) else over_disk_limit(pod))
    task = commands_lost(task, [pod.record(executor_name(index)) for index in range(len(task.spec.executors))])
    return Lost(task, lost_by_the_cluster(pod, reason, began=_began(task, pod)))


def _unscheduled(task: Task, pod: Pod, now: datetime, policy: Policy) -> Waiting | Lost:
    why = _in_words(pod)
    if why is not None:
        task = wait(task, why, now)
    if pod.queued or pod.room is Room.BUSY:
        return Waiting(look_again(task, now, now + policy.recheck))
    deadline = policy.schedule_deadline
    if pod.room is Room.NO_NODE:
        deadline = min(deadline, policy.no_node_deadline)
    since = task.waiting_since or pod.created_at or task.stage_since or now
    if now - since > deadline:
        message = why or f"the pod was not scheduled to a node within {deadline}"
        return Lost(task, Outcome(State.SYSTEM_ERROR, "Unschedulable", message))
    return Waiting(look_again(task, now, min(now + policy.recheck, since + deadline)))


def _in_words(pod: Pod) -> str | None:
    """Why the pod has no node, under a reason that has its own deadline."""
    if pod.waiting is None or pod.room is None:
        return pod.waiting
    details = pod.waiting.partition(": ")[2] or pod.waiting
    if pod.room is Room.BUSY:
        return f"NodesBusy: waiting for room on a node: {details}"
    return f"NoNode: no node of the cluster can run this task, even if it was empty: {details}"


def _starting_or_running(task: Task, pod: Pod, now: datetime, policy: Policy) -> Waiting | Lost:
    """Of a scheduled pod: why a container does not start, and whether it ever will."""
    stuck = next((c for c in pod.containers if c.phase is Phase.WAITING and c.reason not in _ORDINARY_REASONS), None)
    if stuck is None:
        return _starting_normally(task, pod, now, policy)
    message = f"{stuck.reason} in {stuck.name}: {stuck.message or 'the cluster gives no details'}"
    is_image = stuck.reason in IMAGE_REASONS
    is_final = stuck.reason in _FINAL_REASONS or (is_image and _IMAGE_REFUSED.search(stuck.message or "") is not None)
    since = waiting_since(task, message, now)
    if is_final or now - since > policy.image_deadline:
        reason = "ImagePullFailed" if is_image else "ContainerNotCreated"
        return Lost(task, Outcome(State.SYSTEM_ERROR, reason, message))
    task = wait(task, message, now)
    return Waiting(look_again(task, now, min(now + policy.recheck, since + policy.image_deadline)))


def _starting_normally(task: Task, pod: Pod, now: datetime, policy: Policy) -> Waiting | Lost:
    slow = [c.name for c in pod.containers if c.phase is Phase.WAITING]
    tif = pod.container(TIF)
    stages_in = tif is not None and tif.phase is Phase.RUNNING and len(slow) < len(pod.containers)
    if not slow or stages_in:  # as an init container TIF holds the others back; it has its own deadline
        return Waiting(replace(task, waiting=None, waiting_since=None) if task.waiting_since is not None else task)
    if task.waiting is not None or task.waiting_since is None:  # from now on it is only starting
        task = replace(task, waiting=None, waiting_since=now)
    staged_in = tif.ended_at if tif is not None else None
    starting = now - _later(task.waiting_since or now, staged_in)
    # however often it changed between waiting and starting
    in_all = now - _later(pod.scheduled_at or pod.created_at or now, staged_in)
    if starting > policy.start_deadline or in_all > MAX_STARTS * policy.start_deadline:
        message = f"containers did not start within {policy.start_deadline}: {', '.join(slow)}"
        return Lost(task, Fault("StartTimeout", message, began=_may_have_begun(pod)))
    return Waiting(task)


def _later(since: datetime, staged_in: datetime | None) -> datetime:
    return since if staged_in is None else max(since, staged_in)


def show(task: Task, pod: Pod, now: datetime, tails: Mapping[str, tuple[str, str]] | None = None) -> Task:
    """The task with state, start time, node and live output as the pod shows them."""
    if pod.scheduled:
        task = scheduled(task, pod.scheduled_at or now)
        task = move(task, State.INITIALIZING, now) if task.state is State.QUEUED else task
    if pod.node is not None and task.log.metadata.get("node") != pod.node:
        task = add_metadata(task, {"node": pod.node})
    if task.state is State.INITIALIZING and _executors_run(pod):
        task = replace(move(task, State.RUNNING, now), waiting=None, waiting_since=None)
    task = note_log_problem(task, pod, now)
    if tails and task.state is State.RUNNING:
        task = with_executor_logs(task, _live_logs(task, pod, tails))
    return task


def note_log_problem(task: Task, pod: Pod, now: datetime) -> Task:
    """Note once that the log store lacks a part of the output. If the store is away, this is known only after the task's end."""
    if pod.log_problem is None or LOGS_INCOMPLETE in task.log.metadata:
        return task
    task = add_metadata(task, {LOGS_INCOMPLETE: "true"})
    return note_progress(task, now, f"The whole output is not stored: {pod.log_problem[:MAX_MESSAGE]}")


def _live_logs(task: Task, pod: Pod, tails: Mapping[str, tuple[str, str]]) -> tuple[ExecutorLog, ...]:
    """Entries of the executors that have ended, and the last output of the running one."""
    logs: list[ExecutorLog] = []
    containers = {c.name: c for c in pod.containers}
    for index in range(len(task.spec.executors)):
        name = executor_name(index)
        container = containers.get(name)
        if container is None:  # in an earlier or a later pod
            logs += task.log.logs[index : index + 1]
        elif container.record is not None and container.record.exit_code is not None:
            logs.append(log_entry(container.record))
        elif name in tails:
            live = ExecutorLog(exit_code=None, stdout=tails[name][0], stderr=tails[name][1])
            before = task.log.logs[index : index + 1]
            if not any(tails[name]) and before and before[0].exit_code is None:
                live = before[0]  # an observer that has just started has read nothing yet
            logs.append(live)
            break
        else:
            break
    return tuple(logs)


def _lacks_only_the_upload(pod: Pod, pod_plan: PodPlan) -> bool:
    """Whether every container except TOF has a record, and none of them was terminated from outside."""
    others = [pod.record(name) for name in pod_plan.names if name != TOF]
    known = bool(others) and all(record is not None and record.reason != "Terminated" for record in others)
    return known and TOF in pod_plan.names


def _has_failed(pod: Pod) -> bool:
    """Whether a record shows that an executor's command failed by itself."""
    records = [c.record for c in _executors(pod) if c.record is not None]
    return any(not r.ok and r.exit_code is not None and r.reason != "Terminated" for r in records)


def _executors_run(pod: Pod) -> bool:
    executors = _executors(pod)
    if any(c.record is not None and c.record.started_at is not None for c in executors):
        return True
    tif = pod.container(TIF)
    if tif is not None and not (tif.record.ok if tif.record else tif.phase is Phase.ENDED and not tif.exit_code):
        return False
    return bool(executors) and all(c.phase is not Phase.WAITING for c in pod.containers)


def _may_have_begun(pod: Pod) -> bool:
    """Of a pod with a container that has not started: the first executor waits for all others, except perhaps TOF."""
    return all(c.phase is not Phase.WAITING and c.reason not in START_FAILURES for c in _executors(pod))


def _began(task: Task, pod: Pod | None) -> bool:
    """Whether a user's command may have begun; True when in doubt."""
    return task.state is State.RUNNING or any(c.phase is not Phase.WAITING for c in (_executors(pod) if pod else ()))


def _executors(pod: Pod) -> list[Container]:
    return [c for c in pod.containers if c.name not in (TIF, TOF)]
