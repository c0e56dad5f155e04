"""Two users in a cohort of a real Kueue: borrowing, preemption, a queue that is missing, and a restart of Kueue in the middle.

make kueue-e2e
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

import pytest

from tests.e2e import users
from tests.e2e.conftest import Cluster, Installation, Json, installation, until
from tests.e2e.site import BUSYBOX, TERMINAL

pytestmark = [pytest.mark.addon, pytest.mark.timeout(600)]

KUEUE: Final = "kueue.x-k8s.io/v1beta2"
USERS: Final = ("ada", "bob")
WAITS_S: Final = 300.0
LONG_S: Final = 90.0  # of tasks that hold their quota while others wait
CORES: Final = 0.1  # of one task, and of a queue


class Queues:
    """An installation whose users have a queue each, with room for one task, in one cohort."""

    def __init__(self, service: Installation) -> None:
        self.service = service
        self.name = service.namespace

    def apply(self, *objects: Json) -> None:
        self.service.cluster.kubectl(
            "apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})
        )

    def cluster_queue(self, user: str, **spec: Any) -> Json:
        flavor = {"name": self.name, "resources": [{"name": "cpu", "nominalQuota": str(CORES)}]}
        return {
            "apiVersion": KUEUE,
            "kind": "ClusterQueue",
            "metadata": {"name": f"{self.name}-{user}"},
            "spec": {
                "cohortName": self.name,
                "namespaceSelector": {},
                "resourceGroups": [{"coveredResources": ["cpu"], "flavors": [flavor]}],
                "preemption": {"reclaimWithinCohort": "Any", "withinClusterQueue": "Never"},
                **spec,
            },
        }

    def local_queue(self, user: str, target: str | None = None) -> Json:
        return {
            "apiVersion": KUEUE,
            "kind": "LocalQueue",
            "metadata": {"name": user, "namespace": self.service.namespace},
            "spec": {"clusterQueue": f"{self.name}-{target or user}"},
        }

    def call(self, user: str, method: str, path: str, body: Json | None = None) -> Any:
        return users.call(self.service, user, method, path, body)

    def post(self, user: str, seconds: float, queue: str | None = None) -> str:
        resources = {"cpu_cores": CORES, "backend_parameters": {"queue": queue} if queue else {}}
        task = {"executors": [{"image": BUSYBOX, "command": ["sleep", str(seconds)]}], "resources": resources}
        return str(self.call(user, "POST", "/tasks", task)["id"])

    def task(self, user: str, task_id: str) -> Json:
        found: Json = self.call(user, "GET", f"/tasks/{task_id}?view=FULL")
        return found

    def until(self, user: str, task_id: str, *states: str) -> Json:
        def look() -> Json | None:
            found = self.task(user, task_id)
            assert found["state"] in states or found["state"] not in TERMINAL, json.dumps(found, indent=1)
            return found if found["state"] in states else None

        return until(look, WAITS_S, lambda: json.dumps(self.task(user, task_id), indent=1) + self.service.story())

    def waiting_reason(self, user: str, task_id: str) -> str:
        logs = self.task(user, task_id)["logs"]
        return str(logs[0].get("metadata", {}).get("waiting_reason", "")) if logs else ""

    def reason(self, user: str, task_id: str, part: str) -> str:
        """The waiting reason, once it contains `part`."""

        def look() -> str | None:
            why = self.waiting_reason(user, task_id)
            return why if part in why else None

        return until(look, WAITS_S, lambda: f"{part!r}: {json.dumps(self.task(user, task_id), indent=1)}")


@pytest.fixture(scope="module")
def queues(cluster: Cluster, image: str) -> Iterator[Queues]:
    if "workloads.kueue.x-k8s.io" not in cluster.kubectl("get", "crd", "-o", "name"):
        pytest.skip("this cluster has no Kueue")
    values: dict[str, Any] = {
        "api": users.VALUES,
        "tasks": {
            "defaultQueues": {user: user for user in USERS},
            "queues": {"*": ["missing", "stopped"]},
        },
        "settings": {"POIESIS_POLICY__RECHECK": "5s", "POIESIS_POLICY__GRACE": "3s"},
    }
    with installation(cluster, image, before=users.credentials(USERS), **values) as service:
        made = Queues(service)
        cluster.kubectl("label", "namespace", service.namespace, "kueue=on")
        flavor = {"apiVersion": KUEUE, "kind": "ResourceFlavor", "metadata": {"name": made.name}}
        made.apply(
            flavor,
            *map(made.cluster_queue, USERS),
            made.cluster_queue("stopped", stopPolicy="Hold", cohortName=f"{made.name}-2"),
        )
        made.apply(*map(made.local_queue, USERS), made.local_queue("stopped"))
        yield made
        for kind in ("clusterqueue", "resourceflavor"):
            names = [n for n in cluster.kubectl("get", kind, "-o", "name").split() if made.name in n]
            service.kubectl("delete", "localqueue", "--all", check=False)
            cluster.kubectl("delete", *names, "--timeout=30s", check=False)


def test_users_borrow_in_their_cohort_and_its_owner_takes_the_quota_back(queues: Queues) -> None:
    own, borrowed = queues.post("ada", LONG_S), queues.post("ada", LONG_S)
    for task_id in (own, borrowed):
        queues.until("ada", task_id, "RUNNING")
    third = queues.post("ada", 1)
    why = queues.reason("ada", third, "insufficient")
    assert why.startswith("Queued: ") and "queue ada" in why
    assert queues.task("ada", third)["state"] == "QUEUED"
    reclaimed = queues.post("bob", 1)
    queues.until("bob", reclaimed, "COMPLETE")
    attempts = [queues.until("ada", i, "COMPLETE")["logs"][0]["metadata"].get("attempts") for i in (own, borrowed)]
    assert sorted(attempts, key=str) == ["2", None], "one of them was preempted, and repeated"
    queues.until("ada", third, "COMPLETE")


def test_positions_are_shown(queues: Queues) -> None:
    if "visibility.kueue.x-k8s.io" not in queues.service.cluster.kubectl("get", "apiservices", "-o", "name"):
        pytest.skip("this cluster does not have Kueue's visibility API")
    running = [queues.post("bob", LONG_S) for _ in range(2)]  # all that the cohort has room for
    for task_id in running:
        queues.until("bob", task_id, "RUNNING")
    waiting = [queues.post("bob", 1) for _ in range(3)]

    def look() -> bool:
        # Kueue orders workloads by their second of creation, so the three can have any order.
        reasons = [queues.waiting_reason("bob", task_id) for task_id in waiting]
        return all(any(f"position {n} in queue bob" in reason for reason in reasons) for n in (1, 2, 3))

    until(look, LONG_S / 2, lambda: str([queues.task("bob", task_id) for task_id in waiting]))
    for task_id in running + waiting:
        queues.until("bob", task_id, "COMPLETE")


@pytest.mark.parametrize("queue, words", [("missing", "LocalQueue missing doesn't exist"), ("stopped", "inactive")])
def test_a_queue_that_admits_nothing_is_named(queues: Queues, queue: str, words: str) -> None:
    task_id = queues.post("ada", 1, queue)
    assert f"queue {queue}" in queues.reason("ada", task_id, words)
    assert queues.task("ada", task_id)["state"] == "QUEUED"
    queues.call("ada", "POST", f"/tasks/{task_id}:cancel")
    queues.until("ada", task_id, "CANCELED")


def test_a_restart_of_kueue_in_the_middle_loses_nothing(queues: Queues) -> None:
    tasks = [queues.post("ada", 5) for _ in range(6)]
    queues.reason("ada", tasks[-1], "insufficient")
    kubectl = queues.service.cluster.kubectl
    kubectl("-n", "kueue-system", "delete", "pod", "-l", "control-plane=controller-manager", "--grace-period=1")
    tasks += [queues.post("ada", 1), queues.post("ada", 1)]  # its webhook is away now
    kubectl(
        "-n", "kueue-system", "rollout", "status", "deployment/kueue-controller-manager", "--timeout=90s", timeout_s=100
    )
    for task_id in tasks:
        ended = queues.until("ada", task_id, "COMPLETE")
        assert "attempts" not in ended["logs"][0]["metadata"], "a restart preempts nothing"
