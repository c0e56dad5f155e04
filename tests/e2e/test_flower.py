"""Flower on the broker of a real installation: no access without the password; with it an operator sees workers and links."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import urllib3

from poiesis.domain.states import Role
from poiesis.queue.lanes import FROM, queue_name
from tests.e2e.conftest import PART, Installation, ServiceAddress, until

USER, PASSWORD = "operator", "only-for-tests"
ROLES = ("torc", "tif", "texam", "tof")
LINKS = ("texam.launch", "torc.finish")  # of a task without files


def test_only_an_operator_sees_workers_and_links(installed: Callable[..., Installation]):
    service = installed(torc={"replicas": 2})
    keys = {"FLOWER_BASIC_AUTH": f"{USER}:{PASSWORD}"}
    metadata = {"name": "flower-users", "labels": {PART: "flower"}}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": keys}
    service.kubectl("create", "-f", "-", stdin=json.dumps(secret))
    service.upgrade(flower={"enabled": True, "existingSecret": "flower-users"})
    door = ServiceAddress(service.cluster, service.namespace, f"{service.fullname}-flower", 5555)
    allowed = urllib3.make_headers(basic_auth=f"{USER}:{PASSWORD}")

    def ask(path: str, headers: dict[str, str]) -> urllib3.BaseHTTPResponse:
        return urllib3.request("GET", f"{door.url}{path}", headers=headers, timeout=30, retries=False)

    def shown(path: str) -> dict[str, Any]:
        answer = ask(path, allowed)
        assert answer.status == 200, (path, answer.status, answer.data[:500])
        found: dict[str, Any] = answer.json()
        return found

    try:
        wrong = urllib3.make_headers(basic_auth=f"{USER}:guessed")
        for path in ("/", "/workers", "/tasks", "/api/workers", "/api/tasks", "/api/queues/length"):
            assert ask(path, {}).status == ask(path, wrong).status == 401, path
        assert ask("/healthcheck", {}).status == 200

        pods = service.get("pods", "-l", f"app.kubernetes.io/component in ({','.join(ROLES)})")
        expected = {f"{p['metadata']['labels']['app.kubernetes.io/component']}@{p['metadata']['name']}" for p in pods}
        assert len(expected) == len(ROLES) + 1
        until(lambda: set(shown("/api/workers?refresh=true")) == expected, 60, service.story)
        workers = shown("/api/workers")
        for name, worker in workers.items():
            role = Role(name.partition("@")[0])
            queues = {queue["name"] for queue in worker["active_queues"]}
            assert queues == {queue_name(role, lane) for lane in range(len(FROM))}

        tasks: list[str] = []

        def ran() -> dict[str, dict[str, Any]]:
            """The links of a task that Flower has seen whole: it asks workers for their events every five seconds."""
            links = [link for link in shown("/api/tasks").values() if link["state"] == "SUCCESS"]
            of = [{link["name"]: link for link in links if task in str(link["args"])} for task in tasks]
            return max(of, key=len, default={})

        def has_seen_one() -> bool:
            tasks.append(service.create({"executors": [{"image": "localhost/busybox:1", "command": ["true"]}]}))
            service.wait(tasks[-1], ["COMPLETE"])
            return set(ran()) >= set(LINKS)

        until(has_seen_one, 60, lambda: f"{shown('/api/tasks')}\n{service.story()}")
        for name, link in ran().items():
            assert str(link["worker"]).partition("@")[0] == name.partition(".")[0]
            assert link["root_id"] in tasks  # the group that docs/adr/0007 describes

        page = ask("/workers", allowed)
        assert page.status == 200
        text = page.data.decode()
        assert "Flower" in text
        assert all(name in text for name in workers)
        assert ask("/tasks", allowed).status == 200
        assert PASSWORD not in text
    finally:
        door.close()
