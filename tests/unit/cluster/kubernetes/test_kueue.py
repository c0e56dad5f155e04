"""Kueue: which queue, and what its Workloads say. The documents are shortened ones of Kueue 0.17."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from poiesis.cluster.kubernetes.adapter import KubernetesCluster
from poiesis.cluster.kubernetes.cache import PODS, RELEASED, project_pod
from poiesis.cluster.kubernetes.client import Client
from poiesis.cluster.kubernetes.kueue import (
    ASKED_FOR_S,
    WORKLOADS,
    QueuePositions,
    WorkloadView,
    describe,
    project_workload,
    queue_of,
)
from poiesis.cluster.kubernetes.observe import pod_of
from poiesis.cluster.kubernetes.settings import KubernetesSettings
from poiesis.domain.decide.progress import Lost, Waiting, follow
from poiesis.domain.decide.stages import plan_of
from poiesis.domain.observed import Observed
from poiesis.domain.policy import Policy
from poiesis.domain.records import parse_time
from poiesis.domain.task import Executor, Resources, Task, TaskSpec
from tests.unit.cluster.kubernetes.conftest import TASK_ID, Answer, ApiServer, Request, make_task, pod_json
from tests.unit.cluster.kubernetes.test_adapter import CORE, Store, make, store

__all__ = ["make", "store"]  # fixtures

POD = f"poiesis-{TASK_ID}-1-task"
NO_QUOTA = "couldn't assign flavors to pod set main: insufficient unused quota for cpu in flavor default, 1 more needed"
REJECTED = "The workload is deactivated due to Admission check(s): budget, were rejected"


def workload(*conditions: dict[str, str], **status: Any) -> dict[str, Any]:
    return {
        "metadata": {
            "name": f"pod-{POD}-1a2b3",
            "resourceVersion": "5",
            "ownerReferences": [{"kind": "Pod", "name": POD, "uid": "u"}],
        },
        "spec": {"queueName": "users", "active": True},
        "status": {"conditions": list(conditions), **status},
    }


def inactive(*conditions: dict[str, str]) -> dict[str, Any]:
    return workload(*conditions) | {"spec": {"queueName": "users", "active": False}}


def condition(kind: str, status: str, message: str = "", reason: str = "Pending") -> dict[str, str]:
    return {"type": kind, "status": status, "reason": reason, "message": message}


def task_of(owner: str | None, *groups: str, queue: str | None = None) -> Task:
    resources = Resources(backend_parameters={"queue": queue}) if queue else None
    return make_task(TaskSpec((Executor("i", ("true",)),), resources=resources), owner=owner, groups=groups)


SITE = KubernetesSettings(
    queue="site", default_queues={"ada": "urgent", "group:imaging": "imaging", "group:everyone": "shared"}
)


@pytest.mark.parametrize(
    "task, settings, queue",
    [
        (task_of("ada", "imaging", queue="named"), SITE, "named"),
        (task_of("ada", "imaging"), SITE, "urgent"),
        (task_of("bob", "everyone", "imaging"), SITE, "imaging"),
        (task_of("bob"), SITE, "site"),
        (task_of(None), SITE, "site"),
        (task_of("imaging"), SITE, "site"),
        (task_of("bob"), replace(SITE, default_queues={"*": "all"}), "all"),
        (task_of("ada"), KubernetesSettings(), None),
    ],
)
def test_the_queue_is_the_tasks_else_that_of_its_owner_or_group(
    task: Task, settings: KubernetesSettings, queue: str | None
) -> None:
    assert queue_of(task, settings) == queue


@pytest.mark.parametrize(
    "document, waiting",
    [
        (workload(), "Kueue has not looked at it yet"),
        (workload(condition("QuotaReserved", "False", NO_QUOTA)), NO_QUOTA),
        (
            workload(condition("QuotaReserved", "False", "LocalQueue users doesn't exist", "Inadmissible")),
            "LocalQueue users doesn't exist",
        ),
        (
            workload(condition("QuotaReserved", "False", "ClusterQueue big is inactive", "Inadmissible")),
            "ClusterQueue big is inactive",
        ),
        (
            workload(
                condition("QuotaReserved", "True"),
                condition("Admitted", "False"),
                admissionChecks=[{"name": "budget", "state": "Pending"}, {"name": "done", "state": "Ready"}],
            ),
            "quota is reserved, admission checks are pending: budget",
        ),
        (workload(condition("QuotaReserved", "True"), condition("Admitted", "True")), None),
        (inactive(), "its workload was deactivated"),
        (inactive(condition("Evicted", "False", "The workload was evicted")), "its workload was deactivated"),
        (inactive(condition("Evicted", "True", REJECTED)), REJECTED),
    ],
)
def test_what_a_workload_says(document: dict[str, Any], waiting: str | None) -> None:
    view = project_workload(document)
    assert view is not None and (view.task_id, view.pod, view.queue, view.waiting) == (TASK_ID, POD, "users", waiting)


def test_workloads_of_others_are_ignored() -> None:
    assert project_workload({"metadata": {"name": "job-x", "ownerReferences": [{"kind": "Job", "name": POD}]}}) is None
    assert project_workload({"metadata": {"ownerReferences": [{"kind": "Pod", "name": "web-1"}]}}) is None


def test_the_reason_for_waiting_is_a_sentence() -> None:
    view = project_workload(workload(condition("QuotaReserved", "False", NO_QUOTA)))
    assert describe(None, None).startswith("Queued: waiting for Kueue")
    assert describe(view, 3) == f"Queued: position 3 in queue users: {NO_QUOTA}"
    assert describe(view, 377) == f"Queued: about position 360 in queue users: {NO_QUOTA}"
    assert describe(view, None) == f"Queued: queue users: {NO_QUOTA}"


def gated(*gates: str) -> dict[str, Any]:
    document = pod_json(
        node=None, status={"conditions": [condition("PodScheduled", "False", reason="SchedulingGated")]}
    )
    document["spec"] |= {"schedulingGates": [{"name": name} for name in gates or ("kueue.x-k8s.io/admission",)]}
    return document


def test_a_gated_pod_shows_its_workloads_reason(make: Callable[..., KubernetesCluster], store: Store) -> None:
    cluster = make(queue="users")
    store.objects[f"{CORE}/{PODS}/{POD}"] = gated()
    cluster._workloads.put(
        WORKLOADS,
        5,
        project_workload(workload(condition("QuotaReserved", "False", NO_QUOTA))),  # type: ignore[arg-type]
    )
    (pod,) = cluster.observe(task_of("ada")).pods
    assert pod.queued and pod.waiting == f"Queued: queue users: {NO_QUOTA}"


def test_a_deactivated_workload_is_not_waited_for_without_a_deadline(
    make: Callable[..., KubernetesCluster], store: Store
) -> None:
    cluster, task, policy = make(queue="users"), task_of("ada"), Policy()
    store.objects[f"{CORE}/{PODS}/{POD}"] = gated()
    now = parse_time("2026-01-02T03:04:05Z")
    assert now is not None

    def look(task: Task, document: dict[str, Any], version: int, at: datetime) -> Any:
        view = project_workload(document)
        assert view is not None
        cluster._workloads.put(WORKLOADS, version, view)
        return follow(task, cluster.observe(task), plan_of(task, policy).pods[0], at, policy)

    queued = look(task, workload(condition("QuotaReserved", "False", NO_QUOTA)), 5, now)
    assert isinstance(queued, Waiting)
    now += 2 * policy.schedule_deadline  # the time in the queue does not count
    rejected = inactive(condition("Evicted", "True", REJECTED))
    waits = look(queued.task, rejected, 6, now)
    assert isinstance(waits, Waiting) and waits.task.waiting == f"Deactivated: queue users: {REJECTED}"
    over = look(waits.task, rejected, 7, now + policy.schedule_deadline + timedelta(seconds=1))
    assert isinstance(over, Lost) and over.cause.reason == "Unschedulable" and REJECTED in (over.cause.message or "")


@pytest.mark.parametrize(
    "gates, queued, reason",
    [
        (("kueue.x-k8s.io/admission",), True, "Queued: waiting for Kueue"),
        (("kueue.x-k8s.io/topology",), True, "Queued: waiting for Kueue"),
        (("example.org/budget", "kueue.x-k8s.io/topology"), True, "Queued: waiting for Kueue"),
        (
            ("example.org/budget", "b"),
            False,
            "SchedulingGated: another controller holds the pod back with the scheduling gate example.org/budget, b",
        ),
    ],
)
def test_only_kueues_gates_are_a_queue(
    make: Callable[..., KubernetesCluster], store: Store, gates: tuple[str, ...], queued: bool, reason: str
) -> None:
    store.objects[f"{CORE}/{PODS}/{POD}"] = gated(*gates)
    (pod,) = make().observe(task_of("ada")).pods
    assert pod.queued is queued and (pod.waiting or "").startswith(reason)


def test_waiting_for_a_quota_has_no_deadline_and_that_for_a_node_begins_afterwards() -> None:
    policy, task = Policy(), task_of("ada")
    created = parse_time("2026-01-02T03:04:05Z")
    assert created is not None

    def look(task: Task, document: dict[str, Any], later: timedelta, queued: str | None) -> Any:
        view = project_pod(document)
        assert view is not None
        pod = pod_of(view, task, {}, queued=queued)
        return follow(task, Observed(pods=(pod,)), plan_of(task, policy).pods[0], created + later, policy)

    days = timedelta(days=30)
    held = look(task, gated(), days, "Queued: queue users: no quota")
    assert isinstance(held, Waiting) and held.task.log.metadata["waiting_reason"] == "Queued: queue users: no quota"
    full = pod_json(
        node=None, status={"conditions": [condition("PodScheduled", "False", "0/1 nodes", "Unschedulable")]}
    )
    waits = look(held.task, full, days + timedelta(seconds=1), None)
    assert isinstance(waits, Waiting)
    over = look(waits.task, full, days + policy.schedule_deadline + timedelta(seconds=9), None)
    assert not isinstance(over, Waiting)


def test_a_pod_that_was_admitted_no_longer_waits_for_its_gate() -> None:
    document = gated()
    del document["spec"]["schedulingGates"]
    view = project_pod(document)
    assert view is not None and not view.gates and view.waiting == RELEASED


@pytest.mark.parametrize(
    "message, lost",
    [("Preempted to accommodate a workload (UID: a)", "Preempted"), ("The queue was stopped", "Evicted")],
)
def test_a_pod_that_kueue_takes_away_is_lost_to_infrastructure(message: str, lost: str) -> None:
    conditions = [condition("TerminationTarget", "True", message, "WorkloadEvicted")]
    view = project_pod(
        pod_json(status={"conditions": conditions}, metadata={"deletionTimestamp": "2026-01-02T03:04:09Z"})
    )
    assert view is not None
    pod = pod_of(view, task_of("ada"), {})
    assert (pod.lost, pod.lost_to_queue, pod.message) == (lost, True, message)


def test_positions_are_asked_for_beside_and_only_of_queues_that_tasks_wait_in(
    client: Client, server: ApiServer
) -> None:
    asked: list[str] = []

    def answer(request: Request) -> Answer:
        asked.append(request.path)
        if "/broken/" in request.path:
            return Answer(status=404, body={"reason": "NotFound"})
        return Answer(body={"items": [{"metadata": {"name": "w1"}, "positionInLocalQueue": 0}]})

    server.answer = answer
    now = [0.0]
    positions = QueuePositions(client, "tasks", lambda: now[0])
    views = [WorkloadView(name, TASK_ID, POD, queue, None) for name, queue in (("w1", "users"), ("w2", "broken"))]
    assert [positions.of(v) for v in views] == [None, None] and not asked
    positions.refresh()
    assert [positions.of(v) for v in views] == [1, None] and len(asked) == 2
    assert asked[0] == "/apis/visibility.kueue.x-k8s.io/v1beta2/namespaces/tasks/localqueues/users/pendingworkloads"
    now[0] += ASKED_FOR_S + 1
    positions.refresh()
    assert len(asked) == 2
