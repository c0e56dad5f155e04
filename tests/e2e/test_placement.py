"""Placement with a real scheduler and kubelet: GPUs, zones, classes of nodes, priority, /dev/shm, time limits.

The fixtures add an extended resource to a node's status (as in Kubernetes' documentation) and labels, and remove them again. Kueue is not
installed: only its label is tested. Nothing is tainted, since the node is shared.
"""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Iterator, Mapping
from typing import Any, Final

import pytest

from tests.e2e.conftest import Cluster, Installation, Json, installation
from tests.e2e.site import (
    Site,
    assert_nothing_left,
    codes,
    content,
    failure,
    one_log,
    post_all,
    posted,
    shell,
    site_of,
    why,
)

GPU: Final = "example.com/gpu"
GPUS: Final = 2
ZONE_LABEL: Final = "topology.kubernetes.io/zone"
POOL_LABEL: Final = "poiesis.test/pool"
KIND_LABEL: Final = "poiesis.test/gpu-kind"
RUN: Final = secrets.token_hex(3)
ZONE: Final = f"zone-{RUN}"
PRIORITY_CLASS: Final = f"poiesis-e2e-{RUN}"
PRIORITY: Final = 1234
SHM_GB: Final = 0.1


def _gpus(cluster: Cluster, node: str, count: int | None) -> None:
    """Set the number of GPUs in the node's status, or remove them."""
    key = GPU.replace("/", "~1")
    paths = [f"/status/{part}/{key}" for part in ("capacity", "allocatable")]
    if count is None:
        patch = [{"op": "remove", "path": path} for path in paths]
    else:
        patch = [{"op": "add", "path": path, "value": str(count)} for path in paths]
    cluster.kubectl(
        *("patch", "node", node, "--subresource=status", "--type=json", "-p", json.dumps(patch)),
        check=count is not None,
    )


@pytest.fixture(scope="module")
def node(cluster: Cluster) -> Iterator[str]:
    """One node with GPUs, in a zone and in pools; and a priority class without preemption."""
    found = json.loads(cluster.kubectl("get", "nodes", "-o", "json"))["items"][0]["metadata"]
    name: str = found["name"]
    labels = {ZONE_LABEL: ZONE, POOL_LABEL: "spot", KIND_LABEL: "small"}
    if ZONE_LABEL in found["labels"]:
        pytest.skip("the node already has a zone")
    priority: Json = {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "value": PRIORITY}
    priority |= {"metadata": {"name": PRIORITY_CLASS}, "preemptionPolicy": "Never"}
    try:
        _gpus(cluster, name, GPUS)
        cluster.kubectl("label", "node", name, *(f"{key}={value}" for key, value in labels.items()))
        cluster.kubectl("create", "-f", "-", stdin=json.dumps(priority))
        yield name
    finally:
        cluster.kubectl("delete", "priorityclass", PRIORITY_CLASS, check=False)
        cluster.kubectl("label", "node", name, *(f"{key}-" for key in labels), check=False)
        _gpus(cluster, name, None)


@pytest.fixture(scope="module")
def placed(cluster: Cluster, image: str, node: str) -> Iterator[Installation]:
    values: Json = {
        "tasks": {
            "gpu": {"resource": GPU, "typeLabel": KIND_LABEL, "placement": {"labels": {"poiesis.test/has": "gpu"}}},
            "preemptible": {"nodeSelector": {POOL_LABEL: "spot"}, "labels": {"poiesis.test/may": "end"}},
            "nodeClasses": {
                "spot": {"nodeSelector": {POOL_LABEL: "spot"}},
                "absent": {"nodeSelector": {POOL_LABEL: "absent"}},
            },
            "priorityClasses": [PRIORITY_CLASS],
            "queue": "batch",
            "queues": {"*": ["urgent"], "group:other": ["theirs"]},
            "limits": {"shmGb": 0.5},
        }
    }
    with installation(cluster, image, **values) as made:
        yield made


@pytest.fixture(scope="module")
def site(placed: Installation) -> Iterator[Site]:
    with site_of(placed, web=False) as made:
        yield made


@pytest.fixture(scope="module")
def tasks_posted(request: pytest.FixtureRequest, site: Site) -> Iterator[Mapping[str, str]]:
    yield post_all(site, [i for i in request.session.items if getattr(i, "module", None) is request.module])
    assert_nothing_left(site)


def asking(script: str, *, zones: list[str] | None = None, preemptible: bool = False, **parameters: str) -> Json:
    """A task of one script with these backend parameters."""
    resources: Json = {"backend_parameters": parameters, "zones": zones or [], "preemptible": preemptible}
    return {"executors": [shell(script)], "resources": resources}


def waiting(site: Site, task: str, *words: str) -> None:
    """The task is QUEUED, with this text in its reason."""

    def look() -> bool:
        found = site.service.task(task)
        assert found["state"] == "QUEUED", json.dumps(found, indent=2)
        reason = one_log(found)["metadata"].get("waiting_reason", "")
        logged = any(reason and reason in line for line in one_log(found)["system_logs"])
        return logged and all(word in reason for word in words)

    site.until(look, 60, f"{task} has no {words!r} in its reason: {json.dumps(site.service.task(task), indent=2)}")


def limits(pod: Json, name: str = "executor-0") -> Json:
    (found,) = (c["resources"].get("limits", {}) for c in pod["spec"]["containers"] if c["name"] == name)
    answer: Json = found
    return answer


# ── GPUs ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_gpus_are_assigned_while_available_and_the_next_task_waits_with_a_reason(site: Site, node: str):
    tasks = [site.post(asking("sleep 600", gpu="1")) for _ in range(GPUS + 1)]

    def running() -> list[str]:
        return [t for t in tasks if site.service.task(t, "MINIMAL")["state"] == "RUNNING"]

    first = site.until(lambda: running() if len(running()) == GPUS else None, 120, "not all GPUs are used")
    (last,) = set(tasks) - set(first)
    waiting(site, last, "NodesBusy", f"Insufficient {GPU}")
    for task in tasks:
        pod = site.pod_of(task)
        assert limits(pod)[GPU] == "1"
        assert pod["metadata"]["labels"]["poiesis.test/has"] == "gpu"
    site.cancel(first[0])
    site.wait(last, ("RUNNING",), 60)
    assert len(running()) == GPUS
    assert one_log(site.service.task(last))["metadata"]["node"] == node
    for task in (last, first[1]):
        site.cancel(task)
    for task in tasks:
        site.wait(task, ("CANCELED",), 60)


def test_no_gpu_is_held_while_files_are_transferred(site: Site):
    task = site.post(
        {
            **asking("cat in > out", gpu=str(GPUS)),
            "executors": [shell("cat in > out", workdir="/data")] * 2,
            "inputs": [content("/data/in", "x")],
            "outputs": [{"path": "/data/out", "url": site.url("gpu/out")}],
        }
    )
    assert codes(site.complete(task)) == [0, 0]
    assert site.got("gpu/out") == b"x"
    pods = {p["metadata"]["labels"]["poiesis/part"]: p for p in site.pods.of(task).values()}
    held = {part: limits(p, p["spec"]["containers"][0]["name"]).get(GPU) for part, p in pods.items()}
    assert held == {"tif": None, "executor-0": str(GPUS), "executor-1": str(GPUS), "tof": None}


@posted(lambda site: asking("true", gpu="0", gpu_type="small"))
def test_a_task_without_gpus_requests_none(site: Site, task: str):
    site.complete(task)
    assert GPU not in limits(site.pod_of(task))


@posted(lambda site: asking("true", gpu="1", gpu_type="large"))
def test_a_task_waits_for_a_gpu_type_that_no_node_has(site: Site, task: str):
    waiting(site, task, "NoNode", "node affinity/selector")
    site.cancel(task)
    site.wait(task, ("CANCELED",), 60)


# ── nodes ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@posted(lambda site: asking("true", zones=["elsewhere", ZONE]))
def test_a_task_runs_in_its_zone(site: Site, task: str, node: str):
    assert one_log(site.complete(task))["metadata"]["node"] == node


@posted(lambda site: asking("true", zones=["elsewhere"]))
def test_a_task_waits_for_a_zone_without_nodes(site: Site, task: str):
    waiting(site, task, "NoNode", "node affinity/selector")
    site.cancel(task)
    site.wait(task, ("CANCELED",), 60)


@posted(lambda site: asking("true", preemptible=True))
def test_a_preemptible_task_runs_in_the_preemptible_pool(site: Site, task: str):
    site.complete(task)
    pod = site.pod_of(task)
    assert pod["spec"]["nodeSelector"][POOL_LABEL] == "spot"
    assert pod["metadata"]["labels"]["poiesis.test/may"] == "end"


@posted(lambda site: asking("true", node_class="spot"))
def test_a_class_of_nodes_is_a_pool(site: Site, task: str):
    site.complete(task)
    assert "poiesis.test/may" not in site.pod_of(task)["metadata"]["labels"]


@posted(lambda site: asking("true", node_class="absent"))
def test_a_task_waits_for_a_pool_without_nodes_until_it_has_one(site: Site, task: str, cluster: Cluster, node: str):
    waiting(site, task, "NoNode")
    cluster.kubectl("label", "node", node, f"{POOL_LABEL}=absent", "--overwrite")
    try:
        site.complete(task)
    finally:
        cluster.kubectl("label", "node", node, f"{POOL_LABEL}=spot", "--overwrite")


@posted(lambda site: asking("true", architecture="arm64"))
def test_nodes_of_the_other_architecture_get_their_launcher(site: Site, task: str, node: str):
    if (
        json.loads(site.kubectl("get", "node", node, "-o", "json"))["metadata"]["labels"]["kubernetes.io/arch"]
        == "arm64"
    ):
        pytest.skip("the node is of that architecture")
    waiting(site, task, "NoNode", "node affinity/selector")
    (volume,) = (v["configMap"] for v in site.pod_of(task)["spec"]["volumes"] if v["name"] == "launcher")
    assert volume["items"] == [{"key": "launcher-arm64", "path": "launcher", "mode": 0o555}]
    kept = json.loads(site.kubectl("get", "configmap", volume["name"], "-o", "json"))["binaryData"]
    machines = {key: base64.b64decode(binary)[18:20] for key, binary in kept.items()}  # e_machine of an ELF header
    assert machines == {"launcher-amd64": b"\x3e\x00", "launcher-arm64": b"\xb7\x00"}
    site.cancel(task)
    site.wait(task, ("CANCELED",), 60)


# ── what goes with the pod ────────────────────────────────────────────────────────────────────────────────────────────


@posted(lambda site: asking("true", priority_class=PRIORITY_CLASS))
def test_a_priority_class_becomes_the_pods_priority(site: Site, task: str):
    site.complete(task)
    pod = site.pod_of(task)
    assert (pod["spec"]["priority"], pod["spec"]["preemptionPolicy"]) == (PRIORITY, "Never")


@posted(lambda site: asking("true", priority_class="system-node-critical"))
def test_a_priority_class_that_is_not_allowed_is_rejected(site: Site, task: str):
    found = site.wait(task, ("SYSTEM_ERROR",))
    assert failure(found) == "ClusterRefused"
    assert "system-node-critical" in why(found)


@pytest.mark.parametrize(("asked", "queue"), [({}, "batch"), ({"queue": "urgent"}, "urgent")])
@posted(lambda site, asked, queue: asking("true", **asked))
def test_the_pod_carries_kueues_label(site: Site, task: str, asked: dict[str, str], queue: str):
    """Kueue itself is not tested."""
    site.complete(task)
    assert site.pod_of(task)["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == queue


@posted(
    lambda site: asking("df -k /dev/shm | tail -n 1 | awk '{print $2}'; mount | grep ' /dev/shm '", shm_gb=str(SHM_GB))
)
def test_shared_memory_has_the_requested_size_in_the_container(site: Site, task: str):
    size, mount = one_log(site.complete(task))["logs"][0]["stdout"].splitlines()
    assert abs(int(size) * 1024 - SHM_GB * 10**9) <= 4096  # whole pages
    assert mount.startswith("tmpfs on /dev/shm")


@pytest.mark.parametrize(
    ("asked", "words"), [({"shm_gb": "0.6"}, "at most 0.5"), ({"queue": "theirs"}, "use one of batch, urgent")]
)
def test_parameters_that_the_site_does_not_allow_are_rejected(site: Site, asked: dict[str, Any], words: str):
    status, document = site.service.call("POST", "/tasks", asking("true", **asked))
    assert status == 400
    assert words in str(document)


@posted(lambda site: asking("trap 'echo trapped; exit 3' TERM; sleep 600 & wait", time_limit="2s"))
def test_a_time_limit_ends_the_command_after_sigterm(site: Site, task: str):
    found = site.wait(task, ("EXECUTOR_ERROR",))
    assert failure(found) == "TimeLimit"
    assert one_log(found)["logs"][0]["stdout"] == "trapped\n"
