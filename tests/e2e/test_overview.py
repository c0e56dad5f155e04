"""The overview of an installation whose monitor may list nodes."""

from __future__ import annotations

import json
import re

import pytest

from tests.e2e.conftest import Cluster, installation, until
from tests.e2e.site import BUSYBOX


@pytest.mark.timeout(400)
def test_the_room_on_nodes_is_that_of_the_cluster(cluster: Cluster, image: str) -> None:
    with installation(cluster, image) as service:
        task = {"executors": [{"image": BUSYBOX, "command": ["sleep", "300"]}], "resources": {"cpu_cores": 0.05}}
        task_id = service.create(task)
        service.wait(task_id, ("RUNNING",))
        refused = re.compile(r'"event": "loop_failed".*"loop": "report_capacity".*403')
        nodes = json.loads(cluster.kubectl("get", "nodes", "-o", "json"))["items"]

        def page() -> str:
            text = service._http.request("GET", f"{service.url}/ui/overview", timeout=30).data.decode()
            return " ".join(re.sub(r"<[^>]*>", " ", text).split())

        until(lambda: "the service may not list nodes" in page(), 60, service.story)
        service.upgrade(rbac={"readNodes": True})
        until(lambda: f"of {len(nodes)} nodes accept" in page(), 120, service.story)
        until(lambda: re.search(r"CPU cores 0\.1 of [\d.]+", page()), 120, service.story)  # rounded
        cluster.kubectl("delete", "clusterrole", f"{service.namespace}-{service.fullname}-nodes")
        # what was reported counts for three more minutes (tests/unit/services/test_capacity.py)
        until(
            lambda: refused.search(service.kubectl("logs", f"deployment/{service.fullname}-monitor")),
            120,
            service.story,
        )
        status, _ = service.call("POST", f"/tasks/{task_id}:cancel")
        assert status == 200
