"""The chart from a clean namespace and back: installed, tested, upgraded, removed, nothing left."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Final

from tests.e2e.conftest import Installation, until

ROLES: Final = ("torc", "tif", "texam", "tof", "monitor")
LONG: Final = {"executors": [{"image": "localhost/busybox:1", "command": ["sleep", "600"]}]}


def test_every_role_is_ready(poiesis: Installation):
    pods = poiesis.get("pods", "-l", f"app.kubernetes.io/instance={poiesis.release}")
    found = {pod["metadata"]["labels"]["app.kubernetes.io/component"]: pod for pod in pods}
    assert set(found) >= {"api", "mongodb", "redis", *ROLES}
    for component in ("api", "mongodb", "redis", *ROLES):
        conditions = {c["type"]: c["status"] for c in found[component]["status"]["conditions"]}
        assert conditions["Ready"] == "True", component


def test_no_role_was_restarted(poiesis: Installation):
    """They wait for store and broker instead of exiting, whichever starts first."""
    for pod in poiesis.get("pods", "-l", f"app.kubernetes.io/instance={poiesis.release}"):
        for container in pod["status"].get("containerStatuses", []):
            assert container["restartCount"] == 0, pod["metadata"]["name"]


def test_service_info_answers(poiesis: Installation):
    status, document = poiesis.call("GET", "/service-info")
    assert status == 200
    assert (document["type"]["group"], document["type"]["artifact"]) == ("org.ga4gh", "tes")


def test_the_notes_contain_a_first_call_that_works(poiesis: Installation):
    assert f"port-forward service/{poiesis.fullname}-api" in poiesis.notes
    assert "/ga4gh/tes/v1/service-info" in poiesis.notes


def test_helm_test_passes_and_cleans_up(poiesis: Installation):
    """The pod of service-info; `test_doctor.py` has the other one, which would name the faults of these values."""
    only = f"name={poiesis.fullname}-test"
    output = poiesis.helm("test", poiesis.release, "--timeout", "120s", "--filter", only)
    assert "Succeeded" in output
    assert not poiesis.get("pods", "-l", "app.kubernetes.io/component=test")


def test_the_monitor_leads_by_the_lease_of_the_chart(poiesis: Installation):
    (lease,) = poiesis.get("leases")
    assert lease["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "Helm"
    holder = until(lambda: poiesis.get("leases")[0].get("spec", {}).get("holderIdentity"), 30, poiesis.story)
    assert holder.startswith(f"{poiesis.fullname}-monitor-")


def test_roles_have_only_their_own_permissions(poiesis: Installation):
    def may(role: str, verb: str, kind: str, *more: str) -> bool:
        account = f"system:serviceaccount:{poiesis.namespace}:{poiesis.fullname}-{role}"
        return poiesis.kubectl("auth", "can-i", verb, kind, *more, "--as", account, check=False).strip() == "yes"

    assert may("torc", "create", "persistentvolumeclaims")
    assert may("texam", "create", "pods")
    assert may("monitor", "watch", "pods")
    assert not may("torc", "create", "pods")
    assert not may("texam", "create", "persistentvolumeclaims")
    assert not any(may(role, "get", "secrets") or may(role, "list", "secrets") for role in ROLES)
    assert not any(may(role, "create", "pods", "--subresource=exec") for role in ROLES)


def test_settings_that_changed_reach_the_pods_and_data_stays(installed: Callable[..., Installation]):
    service = installed()
    task = service.create({**LONG, "executors": [{"image": "localhost/busybox:1", "command": ["true"]}]})
    before = _uids(service)
    secrets = {
        s["metadata"]["name"]: s["data"] for s in service.get("secrets", "-l", "app.kubernetes.io/managed-by=Helm")
    }
    service.upgrade(service={"name": "Renamed"}, api={"replicas": 2})
    # a kept-open connection leads to the old pod while that finishes its requests
    until(lambda: service.call("GET", "/service-info")[1]["name"] == "Renamed", 30, service.story)
    deployment = json.loads(service.kubectl("get", f"deployment/{service.fullname}-api", "-o", "json"))
    assert deployment["status"]["readyReplicas"] == 2
    after = _uids(service)
    assert after["configmap"] == before["configmap"], "with a new owner, tasks' objects would be deleted"
    assert after["pod-mongodb"] == before["pod-mongodb"]
    assert after["pod-torc"] != before["pod-torc"]
    kept = {s["metadata"]["name"]: s["data"] for s in service.get("secrets", "-l", "app.kubernetes.io/managed-by=Helm")}
    assert kept == secrets, "passwords generated at the first install must be kept"
    assert service.task(task)["id"] == task


def _uids(service: Installation) -> dict[str, str]:
    pods = service.get("pods", "-l", f"app.kubernetes.io/instance={service.release}")
    found = {
        f"pod-{pod['metadata']['labels']['app.kubernetes.io/component']}": pod["metadata"]["uid"]
        for pod in pods
        if "deletionTimestamp" not in pod["metadata"]
    }
    owner = json.loads(service.kubectl("get", f"configmap/{service.fullname}-tasks", "-o", "json"))
    return {**found, "configmap": owner["metadata"]["uid"]}


def test_uninstalling_in_the_middle_of_a_task_leaves_nothing(installed: Callable[..., Installation]):
    """Task pods, volumes, Secrets and the launcher belong to a ConfigMap of the release, so they go with it."""
    service = installed()
    inputs = [{"path": "/data/in.txt", "content": "here"}]
    outputs = [{"path": "/data/in.txt", "url": service.s3.url("never.txt")}]
    task = service.create({**LONG, "inputs": inputs, "outputs": outputs})
    service.wait(task, ["RUNNING"], 120)
    assert [
        kind
        for kind in ("pods", "persistentvolumeclaims", "secrets")
        if not service.get(kind, "-l", f"poiesis/task-id={task}")
    ] == []
    service.uninstall()
    service.assert_nothing_left()
