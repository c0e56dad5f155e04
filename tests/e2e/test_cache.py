"""The input cache: an installation with a cache on a claim, then in a directory of each node.

The source counts its requests.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Final

import pytest

from tests.e2e.conftest import PART, Cluster, Installation, installation, until
from tests.e2e.site import BUSYBOX, Site, one_log, shell, site_of

CLAIM: Final = "reference-cache"
SIZE: Final = 8_000_000
SAME: Final = 6
RIGHT: Final = hashlib.sha256(bytes(SIZE)).hexdigest()
FILERS_USER: Final = 65532


@pytest.fixture(scope="module")
def site(cluster: Cluster, image: str) -> Iterator[Site]:
    cache = {"existingClaim": CLAIM, "subPath": "inputs"}
    with installation(cluster, image, filer={"cache": cache}) as made:
        claim = {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": CLAIM, "labels": {PART: "cache"}},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
        }
        made.kubectl("apply", "-f", "-", stdin=json.dumps(claim))
        with site_of(made) as found:
            yield found


def test_concurrent_tasks_with_the_same_input_fetch_it_once(site: Site):
    """All get the complete file, each may change its copy, and no executor sees the cache."""
    path = f"large/{SIZE}/genome"
    script = "sha256sum < /data/in; echo changed >> /data/in; ls /poiesis"
    task = {"inputs": [{"url": f"{site.web}/{path}", "path": "/data/in"}], "executors": [shell(script)]}
    for turn in ([site.post(task) for _ in range(SAME)], [site.post(task)]):
        for task_id in turn:
            log = one_log(site.complete(task_id))
            assert log["logs"][0]["stdout"].split() == [RIGHT, "-", "bin", "control"]
            assert not [line for line in log["system_logs"] if "cache" in line]
        assert site.fetched(path) == 1


def test_each_version_has_its_own_entry(site: Site):
    for version in ("one", "two"):
        path = f"large/{SIZE}/{version}"
        task = {"inputs": [{"url": f"{site.web}/{path}", "path": "/data/in"}], "executors": [shell("true")]}
        site.complete(site.post(task))
        assert site.fetched(path) == 1


def on_every_node(service: Installation, script: str) -> int:
    """Run a script as root with the nodes' /var/tmp at /node; return the number of nodes."""
    nodes = [n["metadata"]["name"] for n in json.loads(service.cluster.kubectl("get", "nodes", "-o", "json"))["items"]]
    for i, node in enumerate(nodes):
        name = f"s3-on-node-{i}"
        container = {
            "name": "main",
            "image": BUSYBOX,
            "command": ["sh", "-ec", script],
            "volumeMounts": [{"name": "node", "mountPath": "/node"}],
        }
        volumes = [{"name": "node", "hostPath": {"path": "/var/tmp"}}]
        spec = {"nodeName": node, "restartPolicy": "Never", "containers": [container], "volumes": volumes}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {PART: "cache"}}, "spec": spec}
        service.kubectl("apply", "-f", "-", stdin=json.dumps(pod))
        service.kubectl(
            "wait", "--for=jsonpath={.status.phase}=Succeeded", f"pod/{name}", "--timeout=60s", timeout_s=70
        )
        service.kubectl("delete", "pod", name)
    return len(nodes)


def test_the_cache_can_be_a_directory_of_each_node(site: Site):
    """Created by the site as documented. One created by Kubernetes belongs to root: tasks run without it and note it."""
    service = site.service
    ours = f"poiesis-cache-{service.namespace}"
    both = f"/node/{ours} /node/{ours}/made"
    nodes = on_every_node(service, f"mkdir {both} && chown {FILERS_USER} {both} && chmod 0750 {both}")
    try:
        for name in ("made", "roots"):
            directory = f"/var/tmp/{ours}/{name}"
            service.upgrade(filer={"cache": {"existingClaim": "", "subPath": "", "hostPath": directory}})
            until(lambda: not any("deletionTimestamp" in p["metadata"] for p in service.get("pods")), 90, service.story)
            path = f"large/{SIZE}/{name}"
            task = {
                "inputs": [{"url": f"{site.web}/{path}", "path": "/data/in"}],
                "executors": [shell("sha256sum < /data/in")],
            }
            for task_id in [site.post(task) for _ in range(SAME)]:
                log = one_log(site.complete(task_id))
                assert log["logs"][0]["stdout"].split() == [RIGHT, "-"]
                noted = [line for line in log["system_logs"] if "cache" in line]
                assert bool(noted) == (name == "roots"), noted
            assert site.fetched(path) <= nodes if name == "made" else site.fetched(path) == SAME
    finally:
        on_every_node(service, f"rm -rf /node/{ours}")
