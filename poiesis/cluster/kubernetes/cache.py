"""The state that the watch has reported: a small projection of each pod and volume, and the names of deleted objects.

A pod's JSON is 5 to 15 KB; a projection keeps the one or two KB that `observe` reads. Termination messages are by far the largest part, so
their total is bounded; one for which there is no room is read from the container's log instead. Names of deleted objects are kept, bounded
too: names are never reused, so an object that was seen deleted is certainly absent.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from poiesis.cluster.kubernetes import labels
from poiesis.cluster.kubernetes.kueue import WorkloadView
from poiesis.cluster.kubernetes.quantities import GPU, requested
from poiesis.domain.observed import is_of_task
from poiesis.domain.quotas import Amount
from poiesis.domain.task import TaskId

MAX_GONE: Final = 50_000  # names: about 8 MB
MAX_MESSAGES_BYTES: Final = 32 * 1024 * 1024
MAX_TEXT: Final = 1024
LOGS: Final = "logs"  # `whole_logs.CONTAINER`
RELEASED: Final = "Admitted: the pod's scheduling gates have been removed"  # and the scheduler has not looked at it yet

NOTHING: Final = Amount()
ON_ITS_WAY: Final = ("", "Pending", "Running")  # phases

PODS: Final = "pods"
VOLUMES: Final = "persistentvolumeclaims"


@dataclass(frozen=True, slots=True)
class ContainerView:
    """Of status.containerStatuses: `state` is waiting, running or terminated."""

    name: str
    state: str
    reason: str | None = None
    message: str | None = None
    exit_code: int | None = None
    started_at: str | None = None
    ended_at: str | None = None
    termination_message: str | None = None
    """None: there is none, or no room for it."""


@dataclass(frozen=True, slots=True)
class PodView:
    name: str
    uid: str
    task_id: TaskId
    attempt: int
    part: str
    created_at: str | None
    node: str | None
    phase: str
    reason: str | None
    message: str | None
    scheduled: bool
    gates: tuple[str, ...]
    """Names of the scheduling gates that hold it back, such as Kueue's."""
    waiting: str | None
    disruption: str | None
    disruption_message: str | None
    deleting: bool
    containers: tuple[ContainerView, ...]
    """The filers and executors."""
    others: tuple[ContainerView, ...] = ()
    """Of the other containers, such as the one that copies the launcher or injected ones, those that cannot start or have failed."""
    scheduled_at: str | None = None
    logs: ContainerView | None = None
    """The one that fills the log store, which the task does not wait for."""
    requested: Amount = NOTHING
    deletion_due: str | None = None
    """When its grace period after a deletion ends. The object exists until its node has confirmed that no container runs."""


@dataclass(frozen=True, slots=True)
class VolumeView:
    name: str
    uid: str
    task_id: TaskId
    bound: bool


View = PodView | VolumeView | WorkloadView
Key = tuple[str, str]  # kind and name


def project_pod(document: Mapping[str, Any], gpu_resource: str = GPU) -> PodView | None:
    """None: not the pod of a task."""
    metadata, spec, status = document.get("metadata") or {}, document.get("spec") or {}, document.get("status") or {}
    task_id = labels.task_id_of(metadata)
    if task_id is None:
        return None
    conditions = {c.get("type"): c for c in status.get("conditions") or []}
    scheduled = conditions.get("PodScheduled") or {}
    # the second one is Kueue's, before it deletes the pod
    disruption = conditions.get("DisruptionTarget") or conditions.get("TerminationTarget") or {}
    is_disrupted = disruption.get("status") == "True"
    shown = (*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or []))
    statuses = {s.get("name"): s for s in shown}
    declared = (*(spec.get("initContainers") or []), *(spec.get("containers") or []))
    gates = tuple(str(gate.get("name")) for gate in spec.get("schedulingGates") or [])
    views = [_container(c["name"], statuses.get(c["name"]) or {}) for c in declared]
    return PodView(
        name=metadata.get("name", ""),
        uid=metadata.get("uid", ""),
        task_id=task_id,
        attempt=labels.attempt_of(metadata),
        part=(metadata.get("labels") or {}).get(labels.PART, ""),
        created_at=metadata.get("creationTimestamp"),
        node=spec.get("nodeName"),
        phase=status.get("phase", ""),
        reason=_text(status.get("reason")),
        message=_text(status.get("message")),
        scheduled=bool(spec.get("nodeName")),
        gates=gates,
        waiting=_waiting(scheduled, gates),
        disruption=_text(disruption.get("reason")) or "DisruptionTarget" if is_disrupted else None,
        disruption_message=_text(disruption.get("message")) if is_disrupted else None,
        deleting="deletionTimestamp" in metadata,
        containers=tuple(view for view in views if is_of_task(view.name)),
        others=tuple(
            replace(view, termination_message=_text(view.termination_message))
            for view in views
            if not is_of_task(view.name) and view.name != LOGS and (view.exit_code or _is_stuck(view))
        ),
        logs=next((view for view in views if view.name == LOGS), None),
        scheduled_at=scheduled.get("lastTransitionTime") if scheduled.get("status") == "True" else None,
        requested=requested(spec, gpu_resource),
        deletion_due=metadata.get("deletionTimestamp"),
    )


def project_volume(document: Mapping[str, Any]) -> VolumeView | None:
    metadata = document.get("metadata") or {}
    task_id = labels.task_id_of(metadata)
    if task_id is None:
        return None
    return VolumeView(
        name=metadata.get("name", ""),
        uid=metadata.get("uid", ""),
        task_id=task_id,
        bound=(document.get("status") or {}).get("phase") == "Bound",
    )


def _waiting(scheduled: Mapping[str, Any], gates: Sequence[str]) -> str | None:
    """Why the pod has no node, by its condition PodScheduled; None: it has one, or nothing is known yet."""
    if scheduled.get("status") != "False":
        return None
    reason, message = scheduled.get("reason"), scheduled.get("message")
    if reason == "SchedulingGated":
        if not gates:
            return RELEASED
        message = f"another controller holds the pod back with the scheduling gate {', '.join(gates)}"
    words = (reason, message)
    return _text(": ".join(word for word in words if word)) or "Unscheduled"


def _container(name: str, status: Mapping[str, Any]) -> ContainerView:
    state = status.get("state") or {}
    if "terminated" in state:
        t = state["terminated"] or {}
        return ContainerView(
            name=name,
            state="terminated",
            reason=_text(t.get("reason")),
            exit_code=t.get("exitCode"),
            started_at=t.get("startedAt"),
            ended_at=t.get("finishedAt"),
            termination_message=t.get("message") or None,
        )
    if "running" in state:
        return ContainerView(name=name, state="running", started_at=(state["running"] or {}).get("startedAt"))
    w = state.get("waiting") or {}
    return ContainerView(name=name, state="waiting", reason=_text(w.get("reason")), message=_text(w.get("message")))


def _text(value: object) -> str | None:
    return value[:MAX_TEXT] if isinstance(value, str) and value else None


class Cache:
    """`changed` is called, without the lock, with the id of a task whose projection changed; `gone`, with the lock, with a deleted pod."""

    def __init__(self, changed: Callable[[TaskId], None], gone: Callable[[PodView], None] = lambda _: None) -> None:
        self._on_change = changed
        self._on_gone = gone
        self._lock = threading.Lock()
        self._views: dict[Key, tuple[int, View]] = {}
        self._of_task: dict[TaskId, set[Key]] = {}
        self._starting: dict[Key, TaskId] = {}
        self._gone: OrderedDict[Key, int] = OrderedDict()
        self._message_bytes = 0

    def replace_all(self, kind: str, documents: Iterable[tuple[int, View]]) -> None:
        """After a list: exactly these objects exist. Vanished ones wake their tasks too."""
        woken: set[TaskId] = set()
        with self._lock:
            listed = set()
            for version, view in documents:
                listed.add((kind, view.name))
                if self._put((kind, view.name), version, view):
                    woken.add(view.task_id)
            for key in [k for k in self._views if k[0] == kind and k not in listed]:
                woken.add(self._views[key][1].task_id)
                self._remove(key, 0)
        for task_id in woken:
            self._on_change(task_id)

    def put(self, kind: str, version: int, view: View) -> None:
        with self._lock:
            changed = self._put((kind, view.name), version, view)
        if changed:
            self._on_change(view.task_id)

    def delete(self, kind: str, version: int, view: View) -> None:
        with self._lock:
            known = (kind, view.name) in self._views
            self._remove((kind, view.name), version)
        if known:
            self._on_change(view.task_id)

    def pods(self, task_id: TaskId) -> tuple[PodView, ...]:
        return tuple(v for v in self._of(task_id) if isinstance(v, PodView))

    def volumes(self, task_id: TaskId) -> tuple[VolumeView, ...]:
        return tuple(v for v in self._of(task_id) if isinstance(v, VolumeView))

    def workload(self, task_id: TaskId, pod: str) -> WorkloadView | None:
        return next((v for v in self._of(task_id) if isinstance(v, WorkloadView) and v.pod == pod), None)

    def is_gone(self, kind: str, name: str) -> bool:
        """Whether an object of that name was seen deleted."""
        with self._lock:
            return (kind, name) in self._gone

    def task_ids(self) -> list[TaskId]:
        with self._lock:
            return list(self._of_task)

    def all_pods(self) -> list[PodView]:
        with self._lock:
            return [view for _, view in self._views.values() if isinstance(view, PodView)]

    def starting(self) -> list[TaskId]:
        """Tasks with a scheduled pod whose containers are being started."""
        with self._lock:
            return list(self._starting.values())

    def is_on_its_way(self, task_id: TaskId) -> bool:
        """Whether the task has pods, and all that they show is that they are being scheduled, start, or run without a fault."""
        pods = self.pods(task_id)
        return bool(pods) and all(map(_is_on_its_way, pods))

    def __len__(self) -> int:
        with self._lock:
            return len(self._views)

    def _of(self, task_id: TaskId) -> list[View]:
        with self._lock:
            return [self._views[key][1] for key in sorted(self._of_task.get(task_id, ()))]

    def _put(self, key: Key, version: int, view: View) -> bool:
        """Whether the view is new; older versions, also of deleted objects, are ignored."""
        if version <= self._gone.get(key, -1):
            return False
        self._gone.pop(key, None)
        known = self._views.get(key)
        if known is not None and 0 < version <= known[0]:
            return False
        if known is not None:
            self._message_bytes -= _message_bytes(known[1])
        if isinstance(view, PodView) and self._message_bytes + _message_bytes(view) > MAX_MESSAGES_BYTES:
            view = replace(view, containers=tuple(replace(c, termination_message=None) for c in view.containers))
        self._message_bytes += _message_bytes(view)
        self._views[key] = (version, view)
        if isinstance(view, PodView) and _starts(view):
            self._starting[key] = view.task_id
        else:
            self._starting.pop(key, None)
        self._of_task.setdefault(view.task_id, set()).add(key)
        return known is None or known[1] != view

    def _remove(self, key: Key, version: int) -> None:
        known = self._views.pop(key, None)
        self._starting.pop(key, None)
        if known is not None:
            if isinstance(known[1], PodView):
                self._on_gone(known[1])
            self._message_bytes -= _message_bytes(known[1])
            mine = self._of_task[known[1].task_id]
            mine.remove(key)
            if not mine:
                del self._of_task[known[1].task_id]
        self._gone[key] = max(version, known[0] if known else 0)
        self._gone.move_to_end(key)
        while len(self._gone) > MAX_GONE:
            self._gone.popitem(last=False)


def _starts(view: PodView) -> bool:
    if not view.scheduled or view.deleting or view.phase != "Pending":
        return False
    return not any(map(_is_stuck, (*view.containers, *view.others)))


def _is_on_its_way(view: PodView) -> bool:
    if view.deleting or view.gates or view.waiting or view.disruption or view.reason or view.phase not in ON_ITS_WAY:
        return False
    shown = (*view.containers, view.logs) if view.logs is not None else view.containers
    if view.others or any(c.exit_code or _is_stuck(c) for c in shown):
        return False
    return not all(c.state == "terminated" for c in view.containers)


def _is_stuck(container: ContainerView) -> bool:
    return container.state == "waiting" and container.reason not in (None, "ContainerCreating", "PodInitializing")


def _message_bytes(view: View) -> int:
    containers = view.containers if isinstance(view, PodView) else ()
    return sum(len(c.termination_message or "") for c in containers)
