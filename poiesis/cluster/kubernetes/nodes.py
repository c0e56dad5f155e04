"""What nodes have room for, from their documents and the pods of tasks on them. Pure.

A node is usable if it is ready, not cordoned, and has no taint that keeps away all tasks: one that some class of tasks tolerates does not.
Node selectors are not looked at, so a task may have fewer nodes to run on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, Final

from poiesis.cluster.kubernetes.cache import PodView
from poiesis.cluster.kubernetes.quantities import amount_of
from poiesis.cluster.kubernetes.settings import KubernetesSettings
from poiesis.domain.capacity import Capacity
from poiesis.domain.quotas import Amount

Json = Mapping[str, Any]

_ENDED: Final = ("Succeeded", "Failed")  # phases of pods that hold nothing
_KEEPS_AWAY: Final = ("NoSchedule", "NoExecute")


def capacity_of(nodes: Iterable[Json], pods: Iterable[PodView], settings: KubernetesSettings, at: datetime) -> Capacity:
    """`nodes` are read one by one and not kept: their documents are large."""
    tolerations = list(_tolerations(settings))
    found: Counter[str] = Counter()
    usable: set[str] = set()
    allocatable = largest = requested = Amount()
    for node in nodes:
        status, name = node.get("status") or {}, (node.get("metadata") or {}).get("name", "")
        is_ready = any(c.get("type") == "Ready" and c.get("status") == "True" for c in status.get("conditions") or [])
        found.update({"nodes": 1, "ready": int(is_ready)})
        if is_ready and _accepts(node.get("spec") or {}, tolerations):
            usable.add(name)
            offered = amount_of(status.get("allocatable") or {}, settings.gpu_resource)
            allocatable = allocatable.plus(offered)
            largest = Amount(*map(max, zip(largest, offered, strict=True)))
    for pod in pods:
        if pod.node in usable and pod.phase not in _ENDED:
            requested = requested.plus(pod.requested)
    return Capacity(at, found["nodes"], found["ready"], len(usable), allocatable, requested, largest)


def _tolerations(settings: KubernetesSettings) -> Iterator[Json]:
    placements = [settings.preemptible, settings.on_demand, settings.gpu]
    placements += [*settings.node_classes.values(), *settings.service_classes.values()]
    for placement in placements:
        yield from placement.tolerations
    yield from settings.extra_pod_spec.get("tolerations") or []


def _accepts(spec: Json, tolerations: list[Json]) -> bool:
    taints = [taint for taint in spec.get("taints") or [] if taint.get("effect") in _KEEPS_AWAY]
    return not spec.get("unschedulable") and all(any(_tolerates(t, taint) for t in tolerations) for taint in taints)


def _tolerates(toleration: Json, taint: Json) -> bool:
    if toleration.get("effect") not in (None, "", taint.get("effect")):
        return False
    if toleration.get("operator") == "Exists":
        return toleration.get("key") in (None, "", taint.get("key"))
    return toleration.get("key") == taint.get("key") and (toleration.get("value") or "") == (taint.get("value") or "")
