"""The room on nodes, from nodes as the API server shows them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import pytest

from poiesis.cluster.kubernetes.cache import PodView, project_pod
from poiesis.cluster.kubernetes.nodes import capacity_of
from poiesis.cluster.kubernetes.quantities import requested
from poiesis.cluster.kubernetes.settings import KubernetesSettings, Placement
from poiesis.domain.quotas import Amount
from poiesis.testing.clock import START
from tests.unit.cluster.kubernetes.conftest import pod_json

NODES: Final[list[dict[str, Any]]] = json.loads((Path(__file__).parent / "nodes.json").read_text())["items"]
"""A control plane (tainted), two workers (the second cordoned), a GPU node (tainted), and a worker that is not ready."""
MEBIBYTE: Final = 1024**2
GPUS: Final = Placement(tolerations=({"key": "nvidia.com/gpu", "operator": "Exists"},))


def pod(name: str, node: str | None, cpu: str = "500m", phase: str = "Running") -> PodView:
    document = pod_json(name, node=node, phase=phase)
    document["spec"]["containers"] = [{"name": "a", "resources": {"requests": {"cpu": cpu, "memory": "1Gi"}}}]
    view = project_pod(document)
    assert view is not None
    return view


def test_nodes_count_that_are_ready_and_accept_pods_of_tasks() -> None:
    found = capacity_of(NODES, [], KubernetesSettings(), START)
    assert (found.nodes, found.ready, found.usable) == (5, 4, 1)
    assert found.allocatable == Amount(110, 7910, 32107 * MEBIBYTE) == found.largest
    assert found.requested == Amount()


def test_a_taint_that_some_class_of_tasks_tolerates_keeps_no_node_away() -> None:
    found = capacity_of(NODES, [], KubernetesSettings(gpu=GPUS), START)
    assert found.usable == 2
    assert found.allocatable == Amount(220, 7910 + 31850, (32107 + 257000) * MEBIBYTE, gpus=4)
    assert found.largest == Amount(110, 31850, 257000 * MEBIBYTE, gpus=4)


@pytest.mark.parametrize(
    ("toleration", "accepts"),
    [
        ({"operator": "Exists"}, True),
        ({"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoExecute"}, False),
        ({"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}, True),
        ({"key": "nvidia.com/gpu", "value": "absent"}, False),
        ({"key": "other", "operator": "Exists"}, False),
    ],
)
@pytest.mark.parametrize("where", ["class", "extra"])
def test_tolerations_match_as_in_kubernetes(toleration: dict[str, str], accepts: bool, where: str) -> None:
    settings = (
        KubernetesSettings(node_classes={"gpu": Placement(tolerations=(toleration,))})
        if where == "class"
        else KubernetesSettings(extra_pod_spec={"tolerations": [toleration]})
    )
    gpu_node = [node for node in NODES if node["metadata"]["name"] == "gpu-1"]
    assert capacity_of(gpu_node, [], settings, START).usable == int(accepts)


def test_pods_of_tasks_count_that_hold_something_on_usable_nodes() -> None:
    pods = [
        pod("a", "worker-1"),
        pod("b", "worker-1", cpu="2", phase="Pending"),
        pod("c", "worker-1", phase="Succeeded"),
        pod("d", "worker-2"),
        pod("e", None, phase="Pending"),
    ]
    assert capacity_of(NODES, pods, KubernetesSettings(), START).requested == Amount(2, 2500, 2048 * MEBIBYTE)


def test_a_pod_requests_the_sum_of_its_containers_or_more_for_an_init_container() -> None:
    def container(cpu: str, **more: str) -> dict[str, Any]:
        return {"resources": {"requests": {"cpu": cpu, **more}}}

    spec = {"containers": [container("1", **{"example.org/gpu": "2"}), {}], "initContainers": [container("100m")]}
    assert requested(spec, "example.org/gpu") == Amount(1, 1000, 0, gpus=2)
    assert requested({**spec, "initContainers": [container("3")]}).millicores == 3000
