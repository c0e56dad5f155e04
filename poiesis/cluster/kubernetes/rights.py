"""The rights in the tasks' namespace that each role needs: the one list that the chart's Roles and `poiesis doctor` are checked against."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Final

from poiesis.cluster.kubernetes import kueue
from poiesis.cluster.kubernetes.settings import KubernetesSettings

_LAUNCHING: Final = {
    "pods": frozenset({"create", "get", "list", "delete"}),
    "pods/log": frozenset({"get"}),
    "configmaps": frozenset({"create", "get"}),
}
RIGHTS: Final[Mapping[str, Mapping[str, frozenset[str]]]] = {
    "torc": {
        "persistentvolumeclaims": frozenset({"create", "get", "list", "delete"}),
        "pods": frozenset({"list", "delete"}),
        "pods/log": frozenset({"get"}),
        "configmaps": frozenset({"get"}),
    },
    "tif": {
        **_LAUNCHING,
        "persistentvolumeclaims": frozenset({"get", "list", "delete"}),
        "secrets": frozenset({"create"}),
    },
    "texam": {**_LAUNCHING, "persistentvolumeclaims": frozenset({"get", "list", "delete"})},
    "tof": {**_LAUNCHING, "persistentvolumeclaims": frozenset({"list", "delete"})},
    "monitor": {
        **_LAUNCHING,
        "pods": _LAUNCHING["pods"] | {"watch"},
        "persistentvolumeclaims": frozenset({"list", "watch", "delete"}),
        "leases": frozenset({"get", "update"}),
    },
}
"""Role → resource → verbs."""
KUEUE_RIGHTS: Final[Mapping[str, frozenset[str]]] = {
    "workloads.kueue.x-k8s.io": frozenset({"list", "watch"}),
    "localqueues.visibility.kueue.x-k8s.io/pendingworkloads": frozenset({"get"}),
}
"""Further ones of the monitor where Kueue is used."""
NODE_RIGHTS: Final[Mapping[str, frozenset[str]]] = {"nodes": frozenset({"list"})}
"""Those of the monitor in the cluster where `read_nodes` is set, without which it works too; all others are in the tasks' namespace."""
_GROUPS: Final = {"leases": "coordination.k8s.io"}


@dataclass(frozen=True)
class Right:
    group: str
    resource: str
    subresource: str
    verb: str
    name: str = ""
    """Empty: on all objects of the kind."""

    def __str__(self) -> str:
        group = f".{self.group}" if self.group else ""
        subresource = f"/{self.subresource}" if self.subresource else ""
        name = f" {self.name}" if self.name else ""
        return f"{self.verb} {self.resource}{group}{subresource}{name}"

    def attributes(self, namespace: str) -> dict[str, str]:
        """As in an access review."""
        return {key: value for key, value in {"namespace": namespace, **asdict(self)}.items() if value}


def lease_name(settings: KubernetesSettings) -> str:
    return f"{settings.instance}-monitor"


def rights_of(role: str, settings: KubernetesSettings) -> Iterator[Right]:
    """What a role needs with these settings; nothing for roles without access to Kubernetes."""
    names = {"leases": lease_name(settings)}
    if role == "torc":  # the only ConfigMap that it reads
        names["configmaps"] = settings.owner or ""
    further = KUEUE_RIGHTS if role == "monitor" and kueue.is_used(settings) else {}
    for resource, verbs in {**RIGHTS.get(role, {}), **further}.items():
        if role == "torc" and resource == "configmaps" and settings.owner is None:
            continue
        kind, _, sub = resource.partition("/")
        kind, _, group = kind.partition(".")
        for verb in sorted(verbs):
            yield Right(group or _GROUPS.get(kind, ""), kind, sub, verb, names.get(kind, ""))
