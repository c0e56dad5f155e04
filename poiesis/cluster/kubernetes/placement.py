"""Resources and placement of a pod. Pure, from the task and the settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from poiesis.cluster.kubernetes.objects import given
from poiesis.cluster.kubernetes.quantities import quantity
from poiesis.cluster.kubernetes.settings import KubernetesSettings, Placement, Resources
from poiesis.domain.errors import ClusterRefused
from poiesis.domain.parameters import PARAMETERS, gpu_count, parse_size_gb
from poiesis.domain.policy import GIGABYTE
from poiesis.domain.quotas import MILLI, whole_units
from poiesis.domain.task import Task

ARCHITECTURE_LABEL: Final = "kubernetes.io/arch"
REQUIRED: Final = "requiredDuringSchedulingIgnoredDuringExecution"
SHARED: Final = "ReadWriteMany"  # the access mode of volumes that every node can mount


def usable_parameters(settings: KubernetesSettings) -> frozenset[str]:
    """Backend parameters that these settings support; `domain.parameters` has all of them."""
    needs = {
        "gpu_type": settings.gpu_type_label is not None,
        "node_class": bool(settings.node_classes),
        "service_class": bool(settings.service_classes),
        "priority_class": bool(settings.priority_classes),
        "queue": bool(allowed_queues(settings)),
    }
    return frozenset(key for key in PARAMETERS if needs.get(key, True))


def allowed_queues(settings: KubernetesSettings) -> dict[str, tuple[str, ...]]:
    """Kueue's queues that tasks may name, by user or group; the default one is everyone's."""
    found = {key: tuple(queues) for key, queues in settings.queues.items()}
    if settings.queue is not None:
        found["*"] = (*found.get("*", ()), settings.queue)
    return found


def placements(task: Task, settings: KubernetesSettings, *, devices: bool) -> tuple[Placement, ...]:
    """All that apply; later ones take precedence. `devices`: whether the pod gets the task's GPUs. The pods of its transfers go to the same
    nodes, unless every node reaches the volume: the first pod may bind it to its own node or zone.

    Raises: ClusterRefused for a class that the site does not have.
    """
    asked = task.spec.requested
    parameters = asked.backend_parameters
    found = [settings.preemptible if task.is_preemptible else settings.on_demand]
    if gpu_count(parameters) > 0 and (devices or settings.access_mode != SHARED):
        found.append(settings.gpu)
        kind = parameters.get("gpu_type")
        if kind is not None:
            if settings.gpu_type_label is None:
                raise ClusterRefused("gpu_type is not supported by this service")
            found.append(Placement(node_selector={settings.gpu_type_label: kind}))
    for key, classes in (("node_class", settings.node_classes), ("service_class", settings.service_classes)):
        name = parameters.get(key)
        if name is not None and not (key == "service_class" and name in settings.admission_classes - classes.keys()):
            if name not in classes:
                raise ClusterRefused(f"unknown {key} {name!r}: use one of {', '.join(sorted(classes)) or '(none)'}")
            found.append(classes[name])
    return tuple(found)


def node_selector(task: Task, settings: KubernetesSettings, found: tuple[Placement, ...]) -> dict[str, str]:
    selector: dict[str, str] = dict(settings.extra_pod_spec.get("nodeSelector") or {})
    for placement in found:
        selector |= placement.node_selector
    pinned = architecture(task, settings)
    return selector | ({ARCHITECTURE_LABEL: pinned} if pinned else {})


def architecture(task: Task, settings: KubernetesSettings) -> str | None:
    """None: any, since an init container delivers the matching launcher. Raises: ClusterRefused for one without a launcher."""
    asked = task.spec.requested.backend_parameters.get("architecture")
    if settings.delivery == "init":
        return asked
    chosen = asked or settings.architecture or "amd64"
    if settings.launchers and chosen not in settings.launchers:
        known = ", ".join(sorted(settings.launchers))
        raise ClusterRefused(f"unsupported architecture {chosen!r}: use one of {known}")
    return chosen


def affinity(task: Task, settings: KubernetesSettings) -> dict[str, Any]:
    """The site's own, with the task's zones in each of its terms, of which a node has to match one."""
    zones, own = task.spec.requested.zones, dict(settings.extra_pod_spec.get("affinity") or {})
    if not zones:
        return own
    zone = {"key": settings.zone_label, "operator": "In", "values": list(zones)}
    of_nodes = own.get("nodeAffinity") or {}
    terms = (of_nodes.get(REQUIRED) or {}).get("nodeSelectorTerms") or [{}]
    terms = [{**term, "matchExpressions": [*(term.get("matchExpressions") or []), zone]} for term in terms]
    return {**own, "nodeAffinity": {**of_nodes, REQUIRED: {"nodeSelectorTerms": terms}}}


def tolerations(settings: KubernetesSettings, found: tuple[Placement, ...]) -> list[dict[str, Any]]:
    seen: list[dict[str, Any]] = []
    for each in (settings.extra_pod_spec.get("tolerations") or [], *(p.tolerations for p in found)):
        seen += [dict(t) for t in each if dict(t) not in seen]
    return seen


def priority_class(task: Task, settings: KubernetesSettings, found: tuple[Placement, ...]) -> str | None:
    asked = task.spec.requested.backend_parameters.get("priority_class")
    if asked is not None:
        if asked not in settings.priority_classes:
            allowed = ", ".join(sorted(settings.priority_classes)) or "(none)"
            raise ClusterRefused(f"priority class {asked!r} is not allowed: use one of {allowed}")
        return asked
    return next((p.priority_class for p in reversed(found) if p.priority_class), settings.default_priority_class)


def runtime_class(found: tuple[Placement, ...]) -> str | None:
    return next((p.runtime_class for p in reversed(found) if p.runtime_class), None)


def executor_resources(
    task: Task, settings: KubernetesSettings, found: tuple[Placement, ...], *, counts: bool
) -> dict[str, Any]:
    """Requests and limits of one executor's container.

    The containers of a pod take turns, so only the one that `counts` has the task's requests; the others request zero, because a limit
    without a request would be used as the request. `with_min_requests` raises it where the site asks for more. All have the limits. GPUs
    cannot be shared; each container gets its own.
    """
    asked = task.spec.requested
    cores = asked.cpu_cores if asked.cpu_cores is not None else settings.default_cpu_cores
    ram_gb = task.ram_gb if task.ram_gb is not None else settings.default_ram_gb
    limited = next((p.cpu_limit for p in reversed(found) if p.cpu_limit is not None), settings.cpu_limit)
    requests: dict[str, str] = {}
    limits: dict[str, str] = {}
    if cores is not None:
        requests["cpu"] = cores_quantity(cores) if counts else "0"
        if limited:
            limits["cpu"] = cores_quantity(cores)
    if ram_gb is not None:
        limits["memory"] = bytes_quantity(ram_gb)
        requests["memory"] = limits["memory"] if counts else "0"
    if settings.ephemeral_storage_limit is not None:
        requests["ephemeral-storage"], limits["ephemeral-storage"] = "0", settings.ephemeral_storage_limit
    gpus = gpu_count(asked.backend_parameters)
    if gpus:
        limits[settings.gpu_resource] = str(gpus)
    return given({"requests": requests, "limits": limits})


def with_min_requests(resources: Mapping[str, Any], settings: KubernetesSettings) -> dict[str, Any]:
    """A container's requests and limits, raised to the site's minimum of requests. What it does not set is left to the defaults of the
    LimitRange, which are at least its minimum."""

    def raised(name: str, amount: str) -> str:
        least = settings.min_requests.get(name, "0")
        return least if quantity(amount) < quantity(least) else amount

    return {key: {name: raised(name, amount) for name, amount in amounts.items()} for key, amounts in resources.items()}


def filer_resources(resources: Resources) -> dict[str, Any]:
    requests = {"cpu": resources.cpu_request, "memory": resources.memory_request}
    limits = {"cpu": resources.cpu_limit, "memory": resources.memory_limit}
    return given({"requests": given(requests), "limits": given(limits)})


def shm_bytes(task: Task) -> str | None:
    text = task.spec.requested.backend_parameters.get("shm_gb")
    return None if text is None else bytes_quantity(parse_size_gb(text))


def cores_quantity(cores: float) -> str:
    return f"{whole_units(cores, MILLI)}m"


def bytes_quantity(gigabytes: float) -> str:
    return str(whole_units(gigabytes, GIGABYTE))
