"""Projections, and the bounds of what is kept."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from poiesis.cluster.kubernetes import cache as module
from poiesis.cluster.kubernetes.cache import PODS, VOLUMES, Cache, PodView, VolumeView, project_pod, project_volume
from poiesis.domain.task import TaskId
from tests.unit.cluster.kubernetes.conftest import TASK_ID, pod_json


def view_of(**more: Any) -> PodView:
    found = project_pod(pod_json(**more))
    assert found is not None
    return found


def test_objects_without_a_task_are_not_kept() -> None:
    assert project_pod({"metadata": {"name": "a"}}) is None and project_volume({}) is None


def test_the_full_id_takes_precedence_over_its_label() -> None:
    assert view_of(metadata={"annotations": {"poiesis/task-id": "Odd Id"}}).task_id == "Odd Id"


def test_a_volume() -> None:
    document = pod_json("v", part="volume")
    document["metadata"]["deletionTimestamp"] = "2026-01-02T03:04:05Z"
    assert project_volume(document) == VolumeView("v", "uid-v", TASK_ID, bound=False)
    document["status"]["phase"] = "Bound"
    found = project_volume(document)
    assert found is not None and found.bound


def test_messages_are_kept_within_their_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_MESSAGES_BYTES", 5000)
    kept = Cache(lambda _: None)
    ended = {"executor-0": {"terminated": {"exitCode": 0, "message": "x" * 2000}}}
    for i in range(4):
        kept.put(PODS, i + 1, view_of(name=f"p{i}", task_id=f"t{i}", containers=ended))
    messages = [kept.pods(TaskId(f"t{i}"))[0].containers[0].termination_message for i in range(4)]
    assert [m is not None for m in messages] == [True, True, False, False]
    kept.delete(PODS, 10, view_of(name="p0", task_id="t0"))
    kept.put(PODS, 11, view_of(name="p4", task_id="t4", containers=ended))
    assert kept.pods(TaskId("t4"))[0].containers[0].termination_message is not None


def test_names_of_deleted_objects_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_GONE", 2)
    kept = Cache(lambda _: None)
    for i in range(3):
        kept.delete(PODS, i + 1, view_of(name=f"p{i}"))
    assert [kept.is_gone(PODS, f"p{i}") for i in range(3)] == [False, True, True]
    assert not kept.is_gone(VOLUMES, "p2")


def test_an_object_created_again_under_a_deleted_name_is_found() -> None:
    kept = Cache(lambda _: None)
    kept.delete(PODS, 5, view_of(name="p"))
    kept.put(PODS, 6, view_of(name="p"))
    assert not kept.is_gone(PODS, "p") and kept.pods(TASK_ID)


def test_a_task_without_objects_is_forgotten() -> None:
    kept = Cache(lambda _: None)
    kept.put(PODS, 1, view_of(name="p"))
    assert kept.task_ids() == [TASK_ID]
    kept.delete(PODS, 2, view_of(name="p"))
    assert kept.task_ids() == []


WAITS = {"executor-0": {"waiting": {"reason": "ContainerCreating"}}}
RUNS = {"executor-0": {"running": {"startedAt": "2026-01-02T03:04:05Z"}}}
STUCK = {"executor-0": {"waiting": {"reason": "ImagePullBackOff", "message": "no"}}}


@pytest.mark.parametrize(
    ("containers", "phase", "node", "starts"),
    [
        (WAITS, "Pending", "node1", True),
        ({}, "Pending", "node1", True),
        ({}, "Pending", None, False),  # it may wait for a node for days
        (STUCK, "Pending", "node1", False),  # or for an image
        (RUNS, "Running", "node1", False),
    ],
)
def test_a_pod_is_starting_from_scheduling_until_all_containers_run(
    containers: dict[str, Any], phase: str, node: str | None, starts: bool
) -> None:
    kept = Cache(lambda _: None)
    kept.put(PODS, 1, replace(view_of(containers=containers), phase=phase, node=node, scheduled=node is not None))
    assert kept.starting() == ([TASK_ID] if starts else [])


def test_a_task_without_pods_is_not_on_its_way() -> None:
    assert not Cache(lambda _: None).is_on_its_way(TASK_ID)


ENDED = {"terminated": {"exitCode": 0}}
ON_ITS_WAY: list[dict[str, Any]] = [
    {"containers": {"executor-0": {}}, "node": None},
    {"containers": WAITS},
    {"containers": RUNS, "phase": "Running"},
    {"containers": {"tif": ENDED, **RUNS}, "phase": "Running"},
]
TO_BE_LOOKED_AT: list[dict[str, Any]] = [
    {"containers": STUCK},
    {"containers": {**STUCK, "tof": {"running": {}}}},
    {"containers": {"executor-0": ENDED}, "phase": "Running"},
    {"containers": {"executor-0": {"terminated": {"exitCode": 1}}, "tof": {"running": {}}}, "phase": "Running"},
    {"containers": RUNS, "phase": "Succeeded"},
    {"containers": RUNS, "phase": "Unknown"},
    {"containers": RUNS, "metadata": {"deletionTimestamp": "2026-01-02T03:04:05Z"}},
    {"node": None, "status": {"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}]}},
    {"containers": RUNS, "status": {"conditions": [{"type": "DisruptionTarget", "status": "True"}]}},
    {"containers": RUNS, "status": {"reason": "NodeLost"}},
    {"containers": {**RUNS, "logs": {"waiting": {"reason": "CreateContainerConfigError"}}}},
    {"containers": {**RUNS, "logs": {"terminated": {"exitCode": 1}}}},
]


@pytest.mark.parametrize(
    ("shown", "expected"), [(s, True) for s in ON_ITS_WAY] + [(s, False) for s in TO_BE_LOOKED_AT], ids=str
)
def test_only_what_shows_no_end_no_fault_and_no_reason_to_wait_can_be_looked_at_later(
    shown: dict[str, Any], expected: bool
) -> None:
    kept = Cache(lambda _: None)
    kept.put(PODS, 1, view_of(**shown))
    assert kept.is_on_its_way(TASK_ID) is expected
    kept.put(PODS, 2, replace(view_of(name="another", containers=STUCK), gates=("kueue.x-k8s.io/admission",)))
    assert not kept.is_on_its_way(TASK_ID)
