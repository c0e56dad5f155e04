"""Kubernetes' notation of amounts (`500m`, `16Gi`), and what pods request and nodes offer in it. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from poiesis.domain.quotas import Amount

GPU: Final = "nvidia.com/gpu"
_UNITS: Final = {"": 1.0, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15} | {
    f"{unit}i": 1024.0**power for power, unit in enumerate("KMGTP", start=1)
}


def quantity(text: str) -> float:
    """0 if it is not one."""
    match = re.fullmatch(r"([0-9.]+(?:e[0-9]+)?)([A-Za-z]*)", text)
    return float(match[1]) * _UNITS.get(match[2], 0.0) if match else 0.0


def amount_of(resources: Mapping[str, Any], gpu_resource: str = GPU) -> Amount:
    """Of a container's `requests` or a node's `allocatable`. `tasks` are pods."""

    def value(name: str) -> float:
        return quantity(str(resources.get(name, "0")))

    millicores, memory_bytes = round(1000 * value("cpu")), round(value("memory"))
    return Amount(round(value("pods")), millicores, memory_bytes, gpus=round(value(gpu_resource)))


def requested(pod_spec: Mapping[str, Any], gpu_resource: str = GPU) -> Amount:
    """What the scheduler counts for a pod: the sum of its containers, or more for an init container."""

    def amounts(kind: str) -> list[Amount]:
        found = pod_spec.get(kind) or []
        return [amount_of((c.get("resources") or {}).get("requests") or {}, gpu_resource) for c in found]

    containers = Amount(tasks=1)
    for amount in amounts("containers"):
        containers = containers.plus(amount)
    return Amount(*map(max, zip(containers, *amounts("initContainers"), strict=True)))
