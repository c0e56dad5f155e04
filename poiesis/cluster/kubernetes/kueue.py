"""Kueue: which queue a task's pods go to, and why they wait there.

A pod with a queue's label is created with a scheduling gate, which Kueue removes when the queue's quota has room. Until then the Workload
that Kueue makes for the pod says why not; the position in the queue comes from Kueue's visibility API, if the cluster has it.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from poiesis.cluster.kubernetes.client import Client
from poiesis.cluster.kubernetes.errors import ApiError
from poiesis.cluster.kubernetes.settings import KubernetesSettings
from poiesis.domain.bindings import keys_of
from poiesis.domain.task import Task, TaskId

log = logging.getLogger(__name__)

QUEUE_LABEL: Final = "kueue.x-k8s.io/queue-name"
API: Final = "/apis/kueue.x-k8s.io/v1beta2"
WORKLOADS: Final = "workloads"
VISIBILITY: Final = "/apis/visibility.kueue.x-k8s.io/v1beta2"
POSITIONS_EVERY_S: Final = 5.0
ASKED_FOR_S: Final = 120.0  # how long positions of a queue are kept up to date after a task asked for one
MAX_POSITIONS: Final = 1000  # of one queue; pods further behind have no position
EXACT_POSITIONS: Final = 20  # further behind they are rounded, so that not every admission changes every task
MAX_MESSAGE: Final = 500
_GATES: Final = "kueue.x-k8s.io/"  # admission, topology
_POD: Final = re.compile(r"poiesis-([0-9a-z]{26})-\d+-[a-z0-9-]+")


@dataclass(frozen=True, slots=True)
class WorkloadView:
    """`waiting`: why its pod is not admitted; None: it is. `is_active` False: Kueue ignores it until an operator activates it."""

    name: str
    task_id: TaskId
    pod: str
    queue: str
    waiting: str | None
    is_active: bool = True


def queue_of(task: Task, settings: KubernetesSettings) -> str | None:
    """The task's own choice, else the first of the site's defaults for its owner, the owner's groups or everyone, else `queue`."""
    parameters = task.spec.requested.backend_parameters
    if "queue" in parameters:
        return parameters["queue"]
    keys = keys_of(task.owner, task.groups)
    return next((queue for key, queue in settings.default_queues.items() if key in keys), settings.queue)


def is_used(settings: KubernetesSettings) -> bool:
    return bool(settings.queue or settings.queues or settings.default_queues)


def is_gate(name: str) -> bool:
    """Whether a scheduling gate is one of Kueue's."""
    return name.startswith(_GATES)


def project_workload(document: Mapping[str, Any]) -> WorkloadView | None:
    """None: not that of a task's pod."""
    metadata, spec = document.get("metadata") or {}, document.get("spec") or {}
    owners = (o.get("name", "") for o in metadata.get("ownerReferences") or [] if o.get("kind") == "Pod")
    match = next(filter(None, map(_POD.fullmatch, owners)), None)
    if match is None:
        return None
    return WorkloadView(
        name=metadata.get("name", ""),
        task_id=TaskId(match[1]),
        pod=match[0],
        queue=spec.get("queueName", ""),
        waiting=_waiting(document),
        is_active=spec.get("active") is not False,
    )


def _waiting(document: Mapping[str, Any]) -> str | None:
    status = document.get("status") or {}
    conditions = {c.get("type"): c for c in status.get("conditions") or []}
    if _is_true(conditions.get("Admitted")):
        return None
    if (document.get("spec") or {}).get("active") is False:
        evicted = conditions.get("Evicted") or {}  # says why, such as a rejected admission check
        message = evicted.get("message") if _is_true(evicted) else None
        return str(message)[:MAX_MESSAGE] if message else "its workload was deactivated"
    if _is_true(conditions.get("QuotaReserved")):
        checks = [c.get("name", "") for c in status.get("admissionChecks") or [] if c.get("state") != "Ready"]
        return f"quota is reserved, admission checks are pending: {', '.join(sorted(checks))}"
    message = (conditions.get("QuotaReserved") or {}).get("message")
    return str(message)[:MAX_MESSAGE] if message else "Kueue has not looked at it yet"


def _is_true(condition: Mapping[str, Any] | None) -> bool:
    return condition is not None and condition.get("status") == "True"


class QueuePositions:
    """Asks Kueue for the positions in queues that tasks wait in, in a thread of its own."""

    def __init__(self, client: Client, namespace: str, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._namespace = namespace
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._asked_at: dict[str, float] = {}  # by queue
        self._positions: dict[str, dict[str, int]] = {}  # by queue and workload
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="queue-positions", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._closed.set()

    def of(self, view: WorkloadView) -> int | None:
        """From 1; None: unknown. Makes no call."""
        with self._lock:
            self._asked_at[view.queue] = self._monotonic()
            return self._positions.get(view.queue, {}).get(view.name)

    def refresh(self) -> None:
        now = self._monotonic()
        with self._lock:
            self._asked_at = {queue: at for queue, at in self._asked_at.items() if now - at < ASKED_FOR_S}
            queues = list(self._asked_at)
        found: dict[str, dict[str, int]] = {}
        for queue in queues:
            path = f"{VISIBILITY}/namespaces/{self._namespace}/localqueues/{queue}/pendingworkloads"
            try:
                items = self._client.get(path, {"limit": MAX_POSITIONS}).get("items") or []
            except ApiError as error:
                log.debug("queue_positions_unavailable", extra={"queue": queue, "error": str(error)})
                continue
            found[queue] = {i["metadata"]["name"]: int(i.get("positionInLocalQueue") or 0) + 1 for i in items}
        with self._lock:
            self._positions = found

    def _run(self) -> None:
        while not self._closed.wait(POSITIONS_EVERY_S):
            try:
                self.refresh()
            except Exception:
                log.exception("queue_positions_bug")


def deactivated(view: WorkloadView | None) -> str | None:
    """Why a gated pod will not be admitted by itself, as `Reason: message`; None: it may be."""
    return None if view is None or view.is_active else f"Deactivated: queue {view.queue}: {view.waiting}"


def describe(view: WorkloadView | None, position: int | None) -> str:
    """Why a gated pod waits, as `Reason: message`."""
    if view is None:
        return "Queued: waiting for Kueue to take the pod into its queue"
    if position is None:
        place = ""
    elif position <= EXACT_POSITIONS:
        place = f"position {position} in "
    else:
        place = f"about position {position // EXACT_POSITIONS * EXACT_POSITIONS} in "
    return f"Queued: {place}queue {view.queue}: {view.waiting or 'admitted'}"
