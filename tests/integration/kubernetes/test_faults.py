"""Faults of pods and how the cluster reports them; repeated calls."""

from __future__ import annotations

from dataclasses import replace

import pytest

from poiesis.cluster.kubernetes.client import Client
from poiesis.domain.errors import ClusterRefused, QuotaExceeded
from poiesis.domain.naming import object_name
from poiesis.domain.plan import plan
from poiesis.domain.policy import Policy
from poiesis.domain.states import Stage
from poiesis.domain.task import Executor, FileType, Input, Resources, TaskSpec
from tests.integration.kubernetes.conftest import Driver, busybox, eventually, make_namespace, settings, shell
from tests.integration.kubernetes.test_executors import record_of

IN = Input(path="/data/in.txt", url="s3://bucket/in.txt", type=FileType.FILE)


def test_a_missing_image_is_reported_while_the_pod_waits(driver: Driver) -> None:
    task = driver.task([busybox("true"), Executor("localhost/nothing:1", ("true",))])
    driver.begin(task)
    reasons = {"ErrImagePull", "ImagePullBackOff"}
    pod = driver.until(task, lambda pod: pod.containers[1].reason in reasons).pods[0]
    assert "localhost/nothing:1" in (pod.containers[1].message or "")
    assert pod.containers[0].record is None  # waits for all containers to start


def test_an_invalid_image_name(driver: Driver) -> None:
    task = driver.task([Executor("Not an image", ("true",))])
    driver.begin(task)
    driver.until(task, lambda pod: pod.containers[0].reason == "InvalidImageName")


def test_an_unschedulable_pod_has_a_reason(driver: Driver) -> None:
    task = driver.task(TaskSpec((busybox("true"),), resources=Resources(cpu_cores=1000)))
    driver.begin(task)
    pod = driver.until(task, lambda pod: pod.waiting is not None).pods[0]
    assert (pod.waiting or "").startswith("Unschedulable: ") and "Insufficient cpu" in (pod.waiting or "")
    assert not pod.scheduled


def test_a_pod_deleted_by_another_client_is_lost(driver: Driver, admin: Client, namespace: str) -> None:
    task = driver.task([shell("trap 'exit 0' TERM; sleep 100 & wait")])
    driver.begin(task)
    driver.until(task, lambda pod: pod.containers[0].started_at is not None)
    admin.delete(f"/api/v1/namespaces/{namespace}/pods/{object_name(task.id, 1, 'task')}", {})
    pod = driver.until(task, lambda pod: pod.lost is not None).pods[0]
    assert pod.lost == "PodDeleted"
    eventually(lambda: not driver.cluster.observe(task).pods)


def test_an_evicted_pod_is_lost(driver: Driver, admin: Client, namespace: str) -> None:
    task = driver.task([busybox("sleep", "100")])
    driver.begin(task)
    driver.until(task, lambda pod: pod.containers[0].started_at is not None)
    name = object_name(task.id, 1, "task")
    admin.create(
        f"/api/v1/namespaces/{namespace}/pods/{name}/eviction",
        {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": namespace}},
    )
    assert driver.until(task, lambda pod: pod.lost is not None).pods[0].lost == "Evicted"


def test_a_deletion_by_the_service_is_not_a_loss_and_reaches_the_command(driver: Driver) -> None:
    task = driver.task([shell("trap 'echo caught; exit 0' TERM; echo up; while :; do sleep 0.1; done")])
    driver.begin(task)
    driver.until(task, lambda pod: pod.containers[0].started_at is not None)
    ending = replace(task, stage=Stage.FINISH)
    driver.cluster.delete_pods(ending.id, ending.attempt)
    driver.cluster.delete_pods(ending.id, ending.attempt)
    pod = driver.until(ending, lambda pod: pod.ended).pods[0]
    assert pod.lost is None and pod.deleting
    record = record_of(pod)
    assert (record.reason, record.stdout) == ("Terminated", "up\ncaught\n")
    eventually(lambda: driver.cluster.observe(ending).is_empty)


def test_every_creation_can_be_repeated(driver: Driver) -> None:
    task = driver.task(TaskSpec((busybox("true"),), inputs=(IN,)))
    driver.begin(task)
    other = Driver(driver.cluster.settings, driver.policy)  # another process, without any state
    try:
        other.begin(task)
        assert len(other.until(task, lambda pod: pod.ended).pods) == 1
    finally:
        other.close()


def test_a_foreign_object_with_a_tasks_name_is_rejected(driver: Driver, admin: Client, namespace: str) -> None:
    task = driver.task(TaskSpec((busybox("true"),), inputs=(IN,)))
    the_plan = plan(task.spec, driver.policy)
    name = object_name(task.id, 1, "volume")
    claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1"}}}
    admin.create(
        f"/api/v1/namespaces/{namespace}/persistentvolumeclaims",
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": claim},
    )
    with pytest.raises(ClusterRefused, match="does not belong to this task"):
        driver.cluster.create_volume(task, the_plan)


def test_an_exhausted_quota_is_retried_and_a_forbidden_pod_is_not(admin: Client, namespace: str) -> None:
    name = f"{namespace}-quota"
    make_namespace(admin, name, {"pod-security.kubernetes.io/enforce": "restricted"})
    try:
        eventually(lambda: admin.get(f"/api/v1/namespaces/{name}/serviceaccounts")["items"])
        made = Driver(settings(name), Policy())
        task = made.task([busybox("true")])
        with pytest.raises(ClusterRefused, match="PodSecurity"):
            made.begin(task)
        quota = {"hard": {"persistentvolumeclaims": "0"}}
        admin.create(
            f"/api/v1/namespaces/{name}/resourcequotas",
            {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none"}, "spec": quota},
        )
        path = f"/api/v1/namespaces/{name}/resourcequotas/none"
        eventually(lambda: (admin.get(path).get("status") or {}).get("hard"))
        with pytest.raises(QuotaExceeded):
            made.begin(made.task(TaskSpec((busybox("true"),), volumes=("/data",))))
        made.close()
    finally:
        admin.delete(f"/api/v1/namespaces/{name}", {})


def test_the_sweep_sees_every_task_and_removes_an_unknown_one(driver: Driver) -> None:
    task = driver.task(TaskSpec((busybox("sleep", "100"),), volumes=("/data",)))
    driver.begin(task)
    driver.until(task, lambda pod: pod.scheduled)
    assert task.id in set(driver.cluster.task_ids())
    driver.cluster.delete_all(task.id, 3)
    eventually(lambda: task.id not in set(driver.cluster.task_ids()), 60)


def test_without_a_watch_everything_is_listed(driver: Driver) -> None:
    from poiesis.cluster.kubernetes.adapter import KubernetesCluster

    task = driver.task(TaskSpec((shell("exit 4"),), volumes=("/data",)))
    driver.begin(task)
    driver.until(task, lambda pod: pod.ended)
    blind = KubernetesCluster(driver.cluster.settings, driver.policy)
    try:
        observed = blind.observe(task)
        assert record_of(observed.pods[0]).exit_code == 4
        assert blind.client.calls == {"list pods": 1}
        ending = replace(task, stage=Stage.CLEAN)
        assert blind.observe(ending).others and task.id in set(blind.task_ids())
        blind.delete_all(ending.id, ending.attempt)
        eventually(lambda: blind.observe(ending).is_empty)
    finally:
        blind.close()


def test_deleting_the_owner_deletes_all_tasks(admin: Client, namespace: str) -> None:
    core = f"/api/v1/namespaces/{namespace}"
    admin.create(
        f"{core}/configmaps", {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "owner-of-tasks"}}
    )
    made = Driver(settings(namespace, owner="owner-of-tasks", instance="owned"), Policy())
    try:
        task = made.task(TaskSpec((busybox("sleep", "100"),), inputs=(IN,)))
        made.begin(task)
        made.until(task, lambda pod: pod.scheduled)
        admin.delete(f"{core}/configmaps/owner-of-tasks", {"propagationPolicy": "Background"})
        query = {"labelSelector": "app.kubernetes.io/instance=owned"}
        kinds = ("pods", "persistentvolumeclaims", "secrets", "configmaps")
        eventually(lambda: not any(admin.get(f"{core}/{kind}", query)["items"] for kind in kinds), 60)
    finally:
        made.close()
