"""Pods in every state that the kubelet and the controllers give them."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from poiesis.cluster.kubernetes.cache import PodView, project_pod
from poiesis.cluster.kubernetes.observe import pod_of
from poiesis.domain.decide.endings import Fault
from poiesis.domain.decide.progress import Lost, follow
from poiesis.domain.decide.stages import plan_of
from poiesis.domain.observed import Observed, Phase, Pod, Record
from poiesis.domain.policy import Policy
from poiesis.domain.states import Stage
from poiesis.domain.task import Executor, Task, TaskSpec
from tests.unit.cluster.kubernetes.conftest import make_task, pod_json

TASK = make_task(TaskSpec((Executor("i", ("c",)),)))
RUNNING = {"running": {"startedAt": "2026-01-02T03:04:06Z"}}
INITIALIZING = {"waiting": {"reason": "PodInitializing"}}
DONE = {"terminated": {"exitCode": 0, "reason": "Completed"}}


def observed(task: Task = TASK, records: dict[str, Record] | None = None, **more: Any) -> Pod:
    view = project_pod(pod_json(**more))
    assert view is not None
    return pod_of(view, task, records or {})


def condition(kind: str, status: str, reason: str, message: str = "words") -> dict[str, Any]:
    return {"conditions": [{"type": kind, "status": status, "reason": reason, "message": message}]}


def test_an_unscheduled_pod_has_a_reason() -> None:
    pod = observed(node=None, status=condition("PodScheduled", "False", "Unschedulable", "0/1 nodes"))
    assert (pod.waiting, pod.scheduled, pod.node, pod.ended, pod.lost) == (
        "Unschedulable: 0/1 nodes",
        False,
        None,
        False,
        None,
    )


def test_a_scheduled_pod_has_no_waiting_reason() -> None:
    pod = observed(status=condition("PodScheduled", "True", ""))
    assert (pod.scheduled, pod.node, pod.waiting) == (True, "node1", None)


@pytest.mark.parametrize(
    "reason",
    [
        "ErrImagePull",
        "ImagePullBackOff",
        "InvalidImageName",
        "CreateContainerConfigError",
        "CreateContainerError",
        "RunContainerError",
    ],
)
def test_waiting_reasons_of_containers(reason: str) -> None:
    pod = observed(containers={"executor-0": {"waiting": {"reason": reason, "message": "no"}}})
    assert (pod.containers[0].phase, pod.containers[0].reason, pod.containers[0].message) == (
        Phase.WAITING,
        reason,
        "no",
    )


def test_a_pod_has_ended_when_its_containers_have() -> None:
    assert not observed(containers={"tif": DONE, "executor-0": RUNNING}, phase="Running").ended
    assert observed(containers={"tif": DONE, "executor-0": DONE}, phase="Running").ended
    assert observed(containers={"executor-0": INITIALIZING}, phase="Failed").ended


def test_a_record_shows_the_end_of_a_container_before_its_status() -> None:
    record = Record(name="executor-0", ok=False, exit_code=3)
    pod = observed(records={"executor-0": record}, containers={"executor-0": RUNNING})
    assert pod.ended and pod.containers[0].exit_code == 3 and pod.containers[0].record is record


def test_an_out_of_memory_kill_without_a_record() -> None:
    killed = {"terminated": {"exitCode": 137, "reason": "OOMKilled", "startedAt": "2026-01-02T03:04:06Z"}}
    container = observed(containers={"executor-0": killed}).containers[0]
    assert (container.exit_code, container.reason, container.record) == (137, "OOMKilled", None)


def test_the_runtimes_message_is_kept_and_a_truncated_record_is_not() -> None:
    said = {"terminated": {"exitCode": 128, "reason": "StartError", "message": "exec: no such file"}}
    assert observed(containers={"executor-0": said}).containers[0].message == "exec: no such file"
    said = {"terminated": {"exitCode": 0, "reason": "Completed", "message": '{"v":1,"na'}}
    assert observed(containers={"executor-0": said}).containers[0].message is None


@pytest.mark.parametrize(
    ("status", "lost"),
    [
        (condition("DisruptionTarget", "True", "PreemptionByScheduler"), "Preempted"),
        (condition("DisruptionTarget", "True", "EvictionByEvictionAPI"), "Evicted"),
        (condition("DisruptionTarget", "True", "DeletionByTaintManager"), "NodeLost"),
        (condition("DisruptionTarget", "True", "DeletionByPodGC"), "NodeLost"),
        ({**condition("DisruptionTarget", "True", "TerminationByKubelet"), "reason": "Evicted"}, "Evicted"),
        ({**condition("DisruptionTarget", "True", "TerminationByKubelet"), "reason": "Terminated"}, "NodeShutdown"),
        (condition("DisruptionTarget", "True", "SomethingNew"), "Evicted"),
        (condition("DisruptionTarget", "False", "PreemptionByScheduler"), None),
        ({"phase": "Unknown"}, "NodeLost"),
        ({"phase": "Failed", "reason": "Evicted", "message": "low on memory"}, "Evicted"),
        *(
            ({"phase": phase, "reason": "Evicted", "message": message}, "DiskLimit")
            for phase in ("Running", "Failed")
            for message in (
                'Usage of EmptyDir volume "control" exceeds the limit "64Mi". ',
                "Pod ephemeral local storage usage exceeds the total limit of containers 1Gi. ",
                'Container executor-0 exceeded its local ephemeral storage limit "1Gi". ',
            )
        ),
        (
            {"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: ephemeral-storage."},
            "Evicted",
        ),
        ({"phase": "Failed", "reason": "NodeShutdown"}, "NodeShutdown"),
        ({"phase": "Failed", "reason": "OutOfcpu"}, "OutOfcpu"),
        ({"phase": "Failed", "reason": "DeadlineExceeded"}, "DeadlineExceeded"),
        ({"phase": "Failed"}, "PodFailed"),
        ({"phase": "Running"}, None),
    ],
)
def test_reasons_for_a_lost_pod(status: dict[str, Any], lost: str | None) -> None:
    pod = observed(status=status)
    assert (pod.lost, pod.lost_to_queue) == (lost, False)


def test_a_failed_container_is_not_lost() -> None:
    failed = {"terminated": {"exitCode": 1, "reason": "Error"}}
    assert observed(containers={"executor-0": failed}, phase="Failed").lost is None


def test_a_container_with_an_unknown_end() -> None:
    unknown = {"terminated": {"exitCode": 137, "reason": "ContainerStatusUnknown"}}
    assert observed(containers={"executor-0": unknown}, phase="Failed").lost == "ContainerStatusUnknown"


def test_a_deletion_is_a_loss_unless_it_is_our_own() -> None:
    deleted = {"deletionTimestamp": "2026-01-02T03:05:05Z"}
    assert observed(metadata=deleted).lost == "PodDeleted"
    assert observed(metadata=deleted, attempt=2).lost is None  # of another attempt
    for stage in (Stage.FINISH, Stage.CLEAN, Stage.DONE):
        pod = observed(replace(TASK, stage=stage), metadata=deleted)
        assert pod.lost is None and pod.deleting
        assert pod.deletion_due == datetime(2026, 1, 2, 3, 5, 5, tzinfo=UTC)
    assert observed(replace(TASK, cancel_requested_at=TASK.created_at), metadata=deleted).lost is None


def with_init(init: dict[str, Any], containers: dict[str, Any], phase: str) -> PodView:
    document = pod_json(containers=containers, phase=phase)
    document["spec"]["initContainers"] = [{"name": name} for name in init]
    document["status"]["initContainerStatuses"] = [{"name": name, "state": state} for name, state in init.items()]
    view = project_pod(document)
    assert view is not None
    return view


INJECTED = {"terminated": {"exitCode": 1, "reason": "Error", "message": "iptables: no permission"}}
OK = Record(name="tif", ok=True, exit_code=0)


@pytest.mark.parametrize(
    ("init", "containers", "records", "message"),
    [
        ({"launcher": INJECTED}, {}, {}, "container launcher failed with exit code 1 (Error: iptables: no permission)"),
        (
            {"launcher": DONE, "istio-init": INJECTED},
            {"tif": INITIALIZING, "istio-proxy": INITIALIZING},
            {},
            "container istio-init failed with exit code 1 (Error: iptables: no permission)",
        ),
        (
            {"tif": DONE, "vault-agent-init": {"terminated": {"exitCode": 137}}},
            {},
            {"tif": OK},
            "container vault-agent-init failed with exit code 137",
        ),
    ],
)
def test_a_failed_init_container_is_named_and_no_command_has_begun(
    init: dict[str, Any], containers: dict[str, Any], records: dict[str, Record], message: str
) -> None:
    pod = pod_of(with_init(init, {**containers, "executor-0": INITIALIZING}, "Failed"), TASK, records)
    assert (pod.lost, pod.message) == ("PodFailed", message)
    found = follow(TASK, Observed(pods=(pod,)), plan_of(TASK, Policy()).pods[0], TASK.created_at, Policy())
    assert isinstance(found, Lost) and found.cause == Fault("PodFailed", message, began=False)


def test_a_failed_tif_as_an_init_container_is_not_a_failed_pod() -> None:
    record = Record(name="tif", ok=False, exit_code=1)
    for records in ({"tif": record}, {}):
        pod = pod_of(with_init({"tif": INJECTED}, {"executor-0": INITIALIZING}, "Failed"), TASK, records)
        assert pod.lost is None and pod.ended


def test_containers_that_the_cluster_adds_do_not_count() -> None:
    injected = {"istio-init": DONE, "istio-proxy": RUNNING}
    pod = pod_of(with_init(injected, {"executor-0": DONE, "vault-agent": RUNNING}, "Running"), TASK, {})
    assert [c.name for c in pod.containers] == ["executor-0"] and pod.ended
    lost = with_init(injected, {"executor-0": {"waiting": {"reason": "ContainerCreating"}}}, "Unknown")
    found = follow(
        TASK, Observed(pods=(pod_of(lost, TASK, {}),)), plan_of(TASK, Policy()).pods[0], TASK.created_at, Policy()
    )
    assert (
        isinstance(found, Lost) and isinstance(found.cause, Fault) and not found.cause.began
    )  # it was still being created


def test_init_containers_come_first() -> None:
    launcher, tif = {"launcher": DONE}, {"tif": RUNNING}
    pod = pod_of(with_init(launcher | tif, {"executor-0": INITIALIZING}, "Pending"), TASK, {})
    assert [c.name for c in pod.containers] == ["tif", "executor-0"]
    launcher = {"launcher": {"waiting": {"reason": "ErrImagePull", "message": "no"}}}
    pod = pod_of(with_init(launcher | tif, {"executor-0": INITIALIZING}, "Pending"), TASK, {})
    assert [c.name for c in pod.containers] == ["launcher", "tif", "executor-0"]
