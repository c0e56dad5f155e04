"""Nodes that are lost, drained and protected by a PodDisruptionBudget, with simulated nodes behind a real API server and scheduler.

make nodes-e2e
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

import pytest

from bench.scale import with_records
from poiesis.cluster.kubernetes.labels import TASK_ID
from tests.e2e.conftest import OURS, Cluster, Installation, Json, installation, until
from tests.e2e.site import BUSYBOX, TERMINAL

pytestmark = [pytest.mark.addon, pytest.mark.timeout(400)]

TASKS: Final = 6
RUN_S: Final = {"short": 25, "long": 90}  # pods of a deleted node are removed by the control plane after 40 to 60 s
WAIT_S: Final = 200.0
KWOK: Final = ("-n", "kwok")
LABEL: Final = {"poiesis.test/simulated": "yes"}
TAINT: Final = {"key": "poiesis.test/simulated", "value": "yes", "effect": "NoSchedule"}
NODES: Final[dict[str, Json]] = {
    name: {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "labels": {
                **LABEL,
                "kubernetes.io/hostname": name,
                "kubernetes.io/os": "linux",
                "kubernetes.io/arch": "amd64",
            },
            "annotations": {"kwok.x-k8s.io/node": "fake"},
        },
        "spec": {"taints": [TAINT]},
        "status": {
            kind: {"cpu": "32", "memory": "256Gi", "pods": "110", "ephemeral-storage": "1Ti"}
            for kind in ("capacity", "allocatable")
        },
    }
    for name in ("lost-1", "lost-2", "lost-3")
}


@pytest.fixture(scope="module")
def service(cluster: Cluster, image: str) -> Iterator[Installation]:
    if not cluster.kubectl("get", "deployment", *KWOK, "kwok", "--ignore-not-found"):
        pytest.skip("this cluster has no kwok")
    stages = json.loads(cluster.kubectl(*KWOK, "get", "configmap", "kwok", "-o", "json"))
    original = stages["data"]["kwok.yaml"]
    _use(cluster, with_records(original))
    # New nodes: those that the previous process simulated have its lease for 200 s.
    cluster.kubectl(
        "apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": list(NODES.values())})
    )
    place = {"nodeSelector": LABEL, "tolerations": [{"key": TAINT["key"], "operator": "Exists"}]}
    values: dict[str, Any] = {
        "tasks": {"nodeClasses": {name: {**place, "annotations": {"sim/run": str(s)}} for name, s in RUN_S.items()}},
        "settings": {"POIESIS_POLICY__RECHECK": "5s", "POIESIS_POLICY__GRACE": "3s"},
    }
    try:
        with installation(cluster, image, **values) as service:
            yield service
    finally:
        _use(cluster, original)
        cluster.kubectl("delete", "node", "-l", "poiesis.test/simulated")


def _use(cluster: Cluster, stages: str) -> None:
    cluster.kubectl(
        *KWOK, "patch", "configmap", "kwok", "--type=merge", "-p", json.dumps({"data": {"kwok.yaml": stages}})
    )
    cluster.kubectl(*KWOK, "rollout", "restart", "deployment/kwok")
    cluster.kubectl(*KWOK, "rollout", "status", "deployment/kwok", "--timeout=60s", timeout_s=70)


@pytest.fixture
def tasks(request: pytest.FixtureRequest, service: Installation) -> Iterator[list[str]]:
    """Tasks of which each has a running pod on a simulated node."""
    task = {
        "executors": [{"image": BUSYBOX, "command": ["true"]}],
        "resources": {"backend_parameters": {"node_class": getattr(request, "param", "short")}},
    }
    ids = [service.create(task) for _ in range(TASKS)]
    until(lambda: set(ids) <= set(placed(service)), WAIT_S, service.story)
    yield ids
    for task_id in ids:
        if service.task(task_id)["state"] not in TERMINAL:
            service.call("POST", f"/ga4gh/tes/v1/tasks/{task_id}:cancel")


def placed(service: Installation) -> dict[str, Json]:
    """The running pods of tasks, by task."""
    pods = service.get("pods", "-l", TASK_ID)
    running = [p for p in pods if p["status"].get("phase") == "Running" and "deletionTimestamp" not in p["metadata"]]
    return {pod["metadata"]["labels"][TASK_ID]: pod for pod in running}


def a_node_of(service: Installation, tasks: list[str]) -> tuple[str, set[str]]:
    """A node and the tasks that run there."""
    on = {task_id: pod["spec"]["nodeName"] for task_id, pod in placed(service).items() if task_id in tasks}
    node = next(iter(on.values()))
    return node, {task_id for task_id, name in on.items() if name == node}


def assert_repeated(service: Installation, tasks: list[str], lost: set[str], node: str) -> None:
    """All complete; only tasks of the node have a second attempt, and it ran elsewhere."""
    for task_id in tasks:
        ended = service.wait(task_id, TERMINAL, WAIT_S)
        metadata = ended["logs"][0]["metadata"]
        assert ended["state"] == "COMPLETE", json.dumps(ended, indent=1)
        assert metadata.get("attempts") == ("2" if task_id in lost else None), json.dumps(ended, indent=1)
        assert task_id not in lost or metadata["node"] != node


@pytest.mark.parametrize("tasks", ["long"], indirect=True)
def test_tasks_of_a_lost_node_are_repeated_on_another(service: Installation, tasks: list[str]) -> None:
    node, lost = a_node_of(service, tasks)
    service.cluster.kubectl("delete", "node", node)
    assert_repeated(service, tasks, lost, node)


def test_tasks_of_a_drained_node_are_repeated_on_another(service: Installation, tasks: list[str]) -> None:
    node, moved = a_node_of(service, tasks)
    drain = ("drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--grace-period=1")
    try:
        service.cluster.kubectl(*drain, "--timeout=60s", timeout_s=70)
        assert_repeated(service, tasks, moved, node)
    finally:
        service.cluster.kubectl("uncordon", node)


def test_a_disruption_budget_lets_tasks_end_before_their_node_is_drained(
    service: Installation, tasks: list[str]
) -> None:
    node, _ = a_node_of(service, tasks)
    budget = {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": "tasks", "labels": OURS},
        "spec": {"maxUnavailable": 0, "selector": {"matchExpressions": [{"key": TASK_ID, "operator": "Exists"}]}},
    }
    service.kubectl("apply", "-f", "-", stdin=json.dumps(budget))
    try:
        drain = ("drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--force")
        service.cluster.kubectl(*drain, f"--timeout={WAIT_S:g}s", timeout_s=WAIT_S + 10)
        assert_repeated(service, tasks, set(), node)
    finally:
        service.kubectl("delete", "pdb", "tasks")
        service.cluster.kubectl("uncordon", node)
