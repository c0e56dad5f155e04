"""Translate a pod of the watch and its containers' records into `domain.observed`. Pure.

Why a pod was lost (`lost`), first match:

    shown as                                                       reason
    evicted for the size of an emptyDir or its ephemeral storage   DiskLimit
    condition DisruptionTarget, PreemptionByScheduler              Preempted
    condition TerminationTarget (Kueue)                            Preempted, or Evicted if not for another workload
               … EvictionByEvictionAPI                             Evicted
               … DeletionByTaintManager, DeletionByPodGC           NodeLost
               … TerminationByKubelet                              the pod's own (Evicted, NodeShutdown, …), else Evicted
    phase Unknown                                                  NodeLost
    phase Failed with a reason of the pod's own                    that: Evicted, NodeShutdown, OutOfcpu, NodeAffinity, …
    a container whose state the kubelet does not know              ContainerStatusUnknown
    phase Failed before any executor could run, TIF not at fault   PodFailed
    being deleted, and the task has not ended                      PodDeleted
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from poiesis.cluster.kubernetes.cache import ContainerView, PodView
from poiesis.cluster.kubernetes.scheduling import room_of
from poiesis.domain.observed import DISK_LIMIT, TIF, Container, Phase, Pod, Record
from poiesis.domain.records import parse_time
from poiesis.domain.states import Stage
from poiesis.domain.task import Task

DISRUPTIONS: Final = {
    "PreemptionByScheduler": "Preempted",
    "EvictionByEvictionAPI": "Evicted",
    "DeletionByTaintManager": "NodeLost",
    "DeletionByPodGC": "NodeLost",
}
EVICTIONS_BY_KUEUE: Final = frozenset({"WorkloadEvicted", "WorkloadDeleted", "NotAdmitted", "NoMatchingWorkload"})
POD_REASONS: Final = {"Terminated": "NodeShutdown", "Preempting": "Preempted", "Shutdown": "NodeShutdown"}
_PHASES: Final = {"waiting": Phase.WAITING, "running": Phase.RUNNING, "terminated": Phase.ENDED}
_OURS: Final = (Stage.FINISH, Stage.CLEAN, Stage.DONE)
# The kubelet's messages about a pod's own limits, in contrast to "The node was low on resource".
_OVER_DISK_LIMIT: Final = re.compile(
    "exceeds the limit|exceeds the total limit of containers|exceeded its local ephemeral storage limit"
)
_NOT_STARTED: Final = frozenset({None, "ContainerCreating", "PodInitializing"})


def pod_of(
    view: PodView,
    task: Task,
    records: Mapping[str, Record],
    *,
    reading: bool = False,
    queued: str | None = None,
    too_large: bool = False,
) -> Pod:
    """`records`: those known of the pod's containers, by name. `reading`: others are still being read, so the pod has not ended yet, nor is
    it known what its loss means. `queued`: why a queue holds it back. `too_large`: it requests more than any node has."""
    stuck = [c for c in view.others if c.state == "waiting"]  # they hold back the rest, or should run beside it
    containers = tuple(_container(c, records.get(c.name)) for c in (*stuck, *view.containers))
    lost, message = _lost(view, task)
    return Pod(
        name=view.name,
        attempt=view.attempt,
        part=view.part,
        created_at=parse_time(view.created_at),
        scheduled=view.scheduled,
        node=view.node,
        scheduled_at=parse_time(view.scheduled_at),
        queued=queued is not None,
        waiting=queued or view.waiting,
        room=None if queued else room_of(view.waiting, too_large=too_large),
        lost=None if reading else lost,
        lost_to_queue=view.disruption in EVICTIONS_BY_KUEUE,
        message=message,
        deleting=view.deleting,
        deletion_due=parse_time(view.deletion_due),
        ended=not reading
        and (has_ended(view) or (bool(containers) and all(c.phase is Phase.ENDED for c in containers))),
        containers=containers,
        log_problem=_log_problem(view.logs),
    )


def has_ended(view: PodView) -> bool:
    """By container states: the pod's phase follows a second later."""
    return view.phase in ("Succeeded", "Failed") or (
        bool(view.containers) and all(c.state == "terminated" for c in view.containers)
    )


def _container(view: ContainerView, record: Record | None) -> Container:
    started, ended = parse_time(view.started_at), parse_time(view.ended_at)
    if record is not None:
        exit_code = record.exit_code if record.exit_code is not None else view.exit_code
        started, ended = started or record.started_at, ended or record.ended_at
        return Container(view.name, Phase.ENDED, view.reason, None, exit_code, started, ended, record)
    message, text = view.message, view.termination_message
    if not message and text and not text.startswith("{"):
        message = text[:1024]  # from the runtime, such as why it could not start the container
    return Container(view.name, _PHASES[view.state], view.reason, message, view.exit_code, started, ended)


def _log_problem(view: ContainerView | None) -> str | None:
    """Why output is not stored: the container ended before its executors with a message, or cannot start."""
    if view is None or view.state == "running":
        return None
    if view.state == "terminated":
        return view.termination_message or (
            f"{view.reason or 'exit code'} {view.exit_code}" if view.exit_code else None
        )
    return None if view.reason in _NOT_STARTED else f"{view.reason}: {view.message or 'no details'}"


def _lost(view: PodView, task: Task) -> tuple[str | None, str | None]:
    own = POD_REASONS.get(view.reason or "", view.reason)
    if own == "Evicted" and _OVER_DISK_LIMIT.search(view.message or ""):
        return DISK_LIMIT, view.message
    if view.disruption in EVICTIONS_BY_KUEUE:
        preempted = "preempt" in (view.disruption_message or "").lower()
        return "Preempted" if preempted else "Evicted", view.disruption_message
    if view.disruption is not None:
        return DISRUPTIONS.get(view.disruption, own or "Evicted"), view.disruption_message or view.message
    if view.phase == "Unknown":
        return own or "NodeLost", view.message
    if view.phase == "Failed" and own is not None:
        return own, view.message
    unknown = next((c for c in view.containers if c.reason == "ContainerStatusUnknown"), None)
    if unknown is not None:
        return "ContainerStatusUnknown", f"the node does not know how container {unknown.name} ended"
    if view.phase == "Failed" and _never_ran(view):
        return "PodFailed", view.message or _failed_before(view)
    if view.deleting and view.attempt == task.attempt and task.due_stage not in _OURS:
        return "PodDeleted", "the pod was deleted by another client"
    return None, view.message


def _never_ran(view: PodView) -> bool:
    """Whether no container of the task ran, except a TIF that succeeded as an init container."""
    others = [c for c in view.containers if c.name != TIF or c.exit_code != 0]
    return bool(others) and all(c.state == "waiting" for c in others)


def _failed_before(view: PodView) -> str:
    failed = next((c for c in view.others if c.exit_code), None)
    if failed is None:
        return "the pod failed before any container ran"
    details = ": ".join(text for text in (failed.reason, failed.termination_message) if text)
    return f"container {failed.name} failed with exit code {failed.exit_code}" + (f" ({details})" if details else "")
