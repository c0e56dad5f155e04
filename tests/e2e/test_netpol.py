"""The table of docs/operators.md, section Network, proved from inside task pods. Needs a cluster that enforces NetworkPolicy.

make netpol-e2e
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from typing import Final

import pytest

from tests.e2e.conftest import S3_PORT, Installation, Json
from tests.e2e.site import Site, one_log

pytestmark = [pytest.mark.addon, pytest.mark.timeout(400)]

OPEN, CLOSED = "open", "closed"
LISTEN_PORT: Final = 8123
PROBE: Final = """
import json, socket, sys, time
time.sleep(3)  # until engines that learn addresses from the API server know this pod
found = {}
for name, host, port in json.loads(sys.argv[1]):
    try:
        socket.create_connection((host, port), timeout=3).close()
        found[name] = "open"
    except OSError as error:
        found[name] = f"closed: {error}"
try:
    socket.getaddrinfo("kubernetes.default.svc", 443)
    found["DNS"] = "open"
except OSError as error:
    found["DNS"] = f"closed: {error}"
print(json.dumps(found))
"""
LISTEN: Final = f"""
import socket, time
server = socket.create_server(("", {LISTEN_PORT}))
time.sleep(240)
"""


def python(site: Site, script: str, *arguments: str) -> Json:
    return {"image": site.service.image, "command": ["python", "-c", script, *arguments]}


@pytest.fixture(scope="module")
def listener(site: Site) -> Iterator[str]:
    """Address of another task's pod that listens."""
    task_id = site.post({"executors": [python(site, LISTEN)]})
    pod = site.pod_of(task_id, lambda p: p["status"].get("podIP") and p["status"]["phase"] == "Running")
    yield str(pod["status"]["podIP"])
    site.cancel(task_id)


@pytest.fixture(scope="module")
def enforced(site: Site) -> None:
    """Skip where policies are only stored: with one that denies everything, a pod can still connect."""
    name = f"probe-{secrets.token_hex(3)}"
    policy = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name},
        "spec": {"podSelector": {"matchLabels": {"poiesis.test/part": "web"}}, "policyTypes": ["Egress"]},
    }
    site.service.kubectl("apply", "-f", "-", stdin=json.dumps(policy))
    try:
        for _ in range(10):
            if from_pod(site.service, "deployment/s3-web", f"{site.service.fullname}-api", 8000) == CLOSED:
                return
    finally:
        site.service.kubectl("delete", "networkpolicy", name)
    pytest.skip("this cluster does not enforce NetworkPolicy")


def from_pod(service: Installation, pod: str, host: str, port: int) -> str:
    script = f"import socket; socket.create_connection(({host!r}, {port}), timeout=3)"
    try:
        service.kubectl("exec", pod, "--", "python", "-c", script)
    except Exception:
        return CLOSED
    return OPEN


@pytest.mark.usefixtures("enforced")
def test_a_task_reaches_what_the_table_allows_and_nothing_else(site: Site, listener: str) -> None:
    service = site.service
    node = service.cluster.kubectl(
        "get",
        "nodes",
        "-l",
        "type!=kwok",
        "-o",
        "jsonpath={.items[0].status.addresses[?(@.type=='InternalIP')].address}",
    )
    pods = service.get("pods", "-l", f"app.kubernetes.io/instance={service.release}")
    roles = {p["metadata"]["labels"]["app.kubernetes.io/component"]: p for p in pods}
    health = [(f"health of {role}", roles[role]["status"]["podIP"], 8081) for role in ("torc", "texam", "monitor")]
    closed = [
        ("API", f"{service.fullname}-api", 8000),
        ("Redis", f"{service.fullname}-redis", 6379),
        ("MongoDB", f"{service.fullname}-mongodb", 27017),
        ("Kubernetes API", "kubernetes.default.svc", 443),
        ("kubelet", node, 10250),
        ("metadata", "169.254.169.254", 80),
        ("another task", listener, LISTEN_PORT),
        *health,
    ]
    allowed = [("poke", f"{service.fullname}-monitor", 8082), ("extraEgress", "s3", S3_PORT)]
    task = site.complete(site.post({"executors": [python(site, PROBE, json.dumps(closed + allowed))]}))
    found = json.loads(one_log(task)["logs"][0]["stdout"])
    assert {name: state.partition(":")[0] for name, state in found.items()} == {
        **{name: CLOSED for name, *_ in closed},
        **{name: OPEN for name, *_ in allowed},
        "DNS": OPEN,
    }, found
    assert "timed out" in found["Redis"], "denied by a policy, not refused by the server"


@pytest.mark.usefixtures("enforced")
def test_other_pods_reach_the_api_and_neither_tasks_nor_the_store(site: Site, listener: str) -> None:
    service = site.service
    assert {
        name: from_pod(service, "deployment/s3-web", host, port)
        for name, host, port in (
            ("API", f"{service.fullname}-api", 8000),
            ("a task", listener, LISTEN_PORT),
            ("Redis", f"{service.fullname}-redis", 6379),
            ("MongoDB", f"{service.fullname}-mongodb", 27017),
            ("poke", f"{service.fullname}-monitor", 8082),
        )
    } == {"API": OPEN, "a task": CLOSED, "Redis": CLOSED, "MongoDB": CLOSED, "poke": CLOSED}


@pytest.mark.usefixtures("enforced")
def test_a_task_with_files_from_s3_completes(site: Site) -> None:
    url = site.put("netpol/in", b"x" * 1000)
    task = {
        "inputs": [{"url": url, "path": "/data/in"}],
        "outputs": [{"path": "/data/out", "url": site.url("netpol/out")}],
        "executors": [python(site, "import shutil; shutil.copy('/data/in', '/data/out')")],
    }
    site.complete(site.post(task))
    assert site.got("netpol/out") == b"x" * 1000
