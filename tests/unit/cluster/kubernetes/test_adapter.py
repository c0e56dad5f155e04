"""The exact API calls of each operation, including "none"."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from poiesis.cluster.kubernetes import delivery
from poiesis.cluster.kubernetes.adapter import NODES_KNOWN, KubernetesCluster
from poiesis.cluster.kubernetes.cache import PODS, VOLUMES, project_pod, project_volume
from poiesis.cluster.kubernetes.client import Client
from poiesis.cluster.kubernetes.settings import KubernetesSettings
from poiesis.domain.decide.stages import plan_of
from poiesis.domain.errors import ClusterRefused, ClusterUnavailable, ConfigurationError
from poiesis.domain.observed import Record, Room
from poiesis.domain.plan import plan
from poiesis.domain.policy import Policy
from poiesis.domain.quotas import Amount
from poiesis.domain.report import FilerReport, format_report
from poiesis.domain.states import Stage
from poiesis.domain.task import Executor, FileType, Input, Output, Task, TaskSpec
from poiesis.testing.clock import START
from tests.unit.cluster.kubernetes.conftest import TASK_ID, Answer, ApiServer, Request, make_task, pod_json
from tests.unit.cluster.kubernetes.test_nodes import NODES

TRUE = Executor("busybox", ("true",))
PLAIN = TaskSpec((TRUE,))
FILES = TaskSpec((TRUE,), inputs=(Input(path="/data/a", url="s3://b/a", type=FileType.FILE),))
UPLOADED = TaskSpec((TRUE,), outputs=(Output(path="/out/a", url="s3://b/a", type=FileType.FILE),))
CORE = "/api/v1/namespaces/tasks"


class Store:
    """Objects by path, as an API server keeps them; `deny` overrides the response to some requests."""

    def __init__(self, server: ApiServer) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self.deny: Callable[[Request], Answer | None] = lambda _: None
        self.server = server
        server.answer = self.answer

    def answer(self, request: Request) -> Answer:
        denied = self.deny(request)
        if denied is not None:
            return denied
        path = request.path
        if request.method == "POST":
            path = f"{path}/{request.body['metadata']['name']}"
            if path in self.objects:
                return Answer(status=409, body={"reason": "AlreadyExists"})
            self.objects[path] = {
                **request.body,
                "metadata": {**request.body["metadata"], "uid": f"uid-{len(self.objects)}"},
            }
            if path.startswith(f"{CORE}/{VOLUMES}/"):
                self.objects[path]["status"] = {"phase": "Bound"}
        if request.method == "DELETE":
            return Answer(body={}) if self.objects.pop(path, None) else Answer(status=404, body={"reason": "NotFound"})
        if path in self.objects:
            return Answer(body=self.objects[path])
        if path.rsplit("/", 1)[1] in (PODS, VOLUMES):
            items = [o for p, o in self.objects.items() if p.startswith(f"{path}/")]
            return Answer(body={"items": items, "metadata": {"resourceVersion": "1"}})
        return Answer(status=404, body={"reason": "NotFound"})

    def calls(self) -> list[str]:
        made = [f"{r.method} {r.path.removeprefix(CORE + '/')}".replace(TASK_ID, "ID") for r in self.server.requests]
        self.server.requests.clear()
        return made


@pytest.fixture
def store(server: ApiServer) -> Store:
    return Store(server)


@pytest.fixture
def make(client: Client, tmp_path: Path) -> Iterator[Callable[..., KubernetesCluster]]:
    binary = tmp_path / "launcher"
    binary.write_bytes(b"launcher")

    def made(**changes: Any) -> KubernetesCluster:
        settings = KubernetesSettings(
            namespace="tasks", launchers={"amd64": str(binary)}, resolv_conf="nameserver 10.96.0.10"
        )
        return KubernetesCluster(replace(settings, **changes), Policy(), client=client)

    yield made


@pytest.fixture
def cluster(make: Callable[..., KubernetesCluster], store: Store) -> KubernetesCluster:
    made = make()
    made.launcher.ensure()
    store.calls()
    return made


def begin(cluster: KubernetesCluster, task: Task) -> None:
    the_plan = plan(task.spec, Policy())
    cluster.create_volume(task, the_plan)
    cluster.create_documents(task, the_plan)
    for pod in the_plan.pods:
        cluster.launch(task, the_plan, pod)


def followed(cluster: KubernetesCluster) -> None:
    """As if a watch were open; the test puts objects into the cache."""
    cluster._is_followed = lambda: True  # type: ignore[method-assign]


def delete_all(cluster: KubernetesCluster, task: Task) -> None:
    cluster.delete_all(task.id, task.attempt, plan_of(task, Policy()))


def test_a_task_without_files_costs_one_call_to_start_and_one_to_end(cluster: KubernetesCluster, store: Store) -> None:
    task = make_task(PLAIN)
    begin(cluster, task)
    assert store.calls() == ["POST pods"]
    delete_all(cluster, task)
    assert store.calls() == ["DELETE pods/poiesis-ID-1-task"]


def test_a_task_with_files(cluster: KubernetesCluster, store: Store) -> None:
    task = make_task(FILES)
    begin(cluster, task)
    made = [c for c in store.calls() if not c.startswith("GET")]
    assert made == ["POST persistentvolumeclaims", "POST secrets", "POST pods"]
    secret = store.objects[f"{CORE}/secrets/poiesis-{TASK_ID}-1-filer"]
    volume = store.objects[f"{CORE}/persistentvolumeclaims/poiesis-{TASK_ID}-1-volume"]
    assert secret["metadata"]["ownerReferences"][0]["uid"] == volume["metadata"]["uid"]
    delete_all(cluster, task)
    assert store.calls() == ["DELETE pods/poiesis-ID-1-task", "DELETE persistentvolumeclaims/poiesis-ID-1-volume"]


def test_repeated_creations_and_deletions_have_the_effect_of_one(cluster: KubernetesCluster, store: Store) -> None:
    task = make_task(FILES)
    begin(cluster, task)
    before = dict(store.objects)
    begin(cluster, task)
    assert store.objects == before
    delete_all(cluster, task)
    delete_all(cluster, task)


def test_an_object_of_another_attempt_or_service_is_rejected(cluster: KubernetesCluster, store: Store) -> None:
    task = make_task(PLAIN)
    store.objects[f"{CORE}/pods/poiesis-{TASK_ID}-1-task"] = pod_json(attempt=2)
    with pytest.raises(ClusterRefused, match="does not belong to this task"):
        begin(cluster, task)


def test_a_secret_that_cannot_be_read_is_assumed_to_be_ours(cluster: KubernetesCluster, store: Store) -> None:
    task = make_task(FILES)
    begin(cluster, task)
    store.deny = lambda r: Answer(status=403, body={}) if r.method == "GET" and "/secrets/" in r.path else None
    begin(cluster, task)


def test_the_launcher_is_created_once_and_an_existing_one_is_checked(
    make: Callable[..., KubernetesCluster], store: Store
) -> None:
    make().launcher.ensure()
    assert store.calls() == ["POST configmaps"]
    again = make()
    name = again.launcher.ensure()
    assert store.calls() == ["POST configmaps", f"GET configmaps/{name}"]
    again.launcher.ensure()
    assert store.calls() == []
    store.objects[f"{CORE}/configmaps/{name}"]["binaryData"] = {"launcher-amd64": "ZXZpbA=="}
    with pytest.raises(ClusterRefused, match="does not contain the launcher"):
        make().launcher.ensure()


def test_the_owner_is_looked_up_once(make: Callable[..., KubernetesCluster], store: Store) -> None:
    store.objects[f"{CORE}/configmaps/anchor"] = {"metadata": {"uid": "anchor-uid"}}
    cluster = make(owner="anchor")
    begin(cluster, make_task(FILES))
    owners = {p: o["metadata"].get("ownerReferences", [{}])[0].get("uid") for p, o in store.objects.items()}
    assert {p.split("/")[5]: uid for p, uid in owners.items() if not p.endswith("/anchor") and "secrets" not in p} == {
        "persistentvolumeclaims": "anchor-uid",
        "pods": "anchor-uid",
        "configmaps": "anchor-uid",
    }
    assert store.calls().count("GET configmaps/anchor") == 1


def test_following_a_pod_costs_no_call_while_the_watch_shows_it(cluster: KubernetesCluster, store: Store) -> None:
    followed(cluster)
    view = project_pod(pod_json(version=5))
    assert view is not None
    cluster._cache.put(PODS, 5, view)
    observed = cluster.observe(make_task(PLAIN))
    assert observed.pods[0].node == "node1" and store.calls() == []


def test_absence_is_looked_up_unless_the_deletion_was_seen(cluster: KubernetesCluster, store: Store) -> None:
    followed(cluster)
    task = make_task(PLAIN)
    begin(cluster, task)
    store.calls()
    assert cluster.observe(task).pods and store.calls() == ["GET pods"]  # launched, but not reported by the watch yet
    view = project_pod(pod_json(version=5))
    assert view is not None
    cluster._cache.put(PODS, 5, view)
    cluster._cache.delete(PODS, 6, view)
    assert cluster.observe(task).pods == () and store.calls() == []
    assert cluster.observe(replace(task, stage=Stage.CLEAN)).is_empty and store.calls() == []


def test_cleanup_is_not_complete_while_the_volume_exists(cluster: KubernetesCluster, store: Store) -> None:
    followed(cluster)
    task = make_task(FILES, stage=Stage.CLEAN)
    pod = project_pod(pod_json(version=5))
    volume = project_volume(pod_json(f"poiesis-{TASK_ID}-1-volume", version=5, part="volume"))
    assert pod is not None and volume is not None
    cluster._cache.delete(PODS, 6, pod)
    cluster._cache.put(VOLUMES, 5, volume)
    assert cluster.observe(task).others == (f"poiesis-{TASK_ID}-1-volume",)
    cluster._cache.delete(VOLUMES, 7, volume)
    assert cluster.observe(task).is_empty and store.calls() == []


def test_without_a_watch_a_pod_is_found_by_one_list(cluster: KubernetesCluster, store: Store) -> None:
    store.objects[f"{CORE}/pods/a"] = pod_json()
    assert len(cluster.observe(make_task(PLAIN)).pods) == 1
    assert store.calls() == ["GET pods"]
    assert store.server.requests == []
    cluster.observe(make_task(PLAIN, stage=Stage.CLEAN))
    assert store.calls() == ["GET pods", "GET persistentvolumeclaims"]


def test_earlier_attempts_are_removed_too(cluster: KubernetesCluster, store: Store) -> None:
    for attempt in (1, 2):
        name = f"poiesis-{TASK_ID}-{attempt}-task"
        store.objects[f"{CORE}/pods/{name}"] = pod_json(name, attempt=attempt)
    delete_all(cluster, make_task(PLAIN, attempt=2))
    assert not store.objects or all("configmaps" in p for p in store.objects)


def test_what_is_already_gone_is_not_deleted_again(cluster: KubernetesCluster, store: Store) -> None:
    followed(cluster)
    view = project_pod(pod_json(version=5))
    assert view is not None
    cluster._cache.put(PODS, 5, view)
    cluster._cache.delete(PODS, 6, view)
    delete_all(cluster, make_task(PLAIN))
    assert store.calls() == []


def test_documents_for_a_deleted_volume_are_rejected(cluster: KubernetesCluster, store: Store) -> None:
    with pytest.raises(ClusterRefused):
        cluster.create_documents(make_task(FILES), plan(FILES, Policy()))
    assert store.calls() == ["GET persistentvolumeclaims/poiesis-ID-1-volume"]


def test_all_ids_are_found_without_a_watch(cluster: KubernetesCluster, store: Store) -> None:
    store.objects[f"{CORE}/pods/a"] = pod_json("a", task_id="one")
    store.objects[f"{CORE}/persistentvolumeclaims/b"] = pod_json("b", task_id="two")
    assert set(cluster.task_ids()) == {"one", "two"}


def test_an_unreachable_api_server_is_unavailable(cluster: KubernetesCluster, store: Store) -> None:
    store.deny = lambda _: Answer(status=503)
    task = make_task(PLAIN)
    calls: list[Callable[[], Any]] = [
        cluster.ready,
        lambda: begin(cluster, task),
        lambda: cluster.observe(task),
        lambda: delete_all(cluster, task),
        lambda: list(cluster.task_ids()),
    ]
    for call in calls:
        with pytest.raises(ClusterUnavailable):
            call()


def test_a_missing_launcher_is_a_configuration_error(client: Client) -> None:
    settings = KubernetesSettings(launchers={"amd64": "/nowhere"}, resolv_conf="")
    with pytest.raises(ConfigurationError, match="launcher"):
        KubernetesCluster(settings, Policy(), client=client)
    KubernetesCluster(replace(settings, delivery="init"), Policy(), client=client)


@pytest.mark.parametrize("order", [("tof", "tof-2"), ("tof-2", "tof")])
def test_of_two_tof_pods_the_current_one_takes_precedence(
    cluster: KubernetesCluster, store: Store, order: tuple[str, str]
) -> None:
    for part in order:
        name = f"poiesis-{TASK_ID}-1-{part}"
        store.objects[f"{CORE}/pods/{name}"] = pod_json(name, part=part, containers={"tof": {"running": {}}})
    for part, size in (("tof", 1), ("tof-2", 2)):
        report = format_report(FilerReport(total_files=1, total_bytes=size))
        record = Record("tof", ok=True, exit_code=0, stdout=report)
        cluster.accept_records(make_task(UPLOADED, stage=Stage.STAGE_OUT, part=part), [record])
    for part, size in (("tof", 1), ("tof-2", 2)):
        observed = cluster.observe(make_task(UPLOADED, stage=Stage.STAGE_OUT, part=part, uploads=2))
        assert observed.reports["tof"].total_bytes == size
        assert {p.part for p in observed.pods} == set(order)


def test_every_tof_pod_of_an_attempt_is_deleted_and_observed_to_be_gone(
    cluster: KubernetesCluster, store: Store
) -> None:
    followed(cluster)
    task = make_task(UPLOADED, stage=Stage.CLEAN, part=None, layout="staged", uploads=2)
    delete_all(cluster, task)
    assert store.calls() == [
        *(f"DELETE pods/poiesis-ID-1-{part}" for part in ("executors", "tof", "tof-2")),
        "DELETE persistentvolumeclaims/poiesis-ID-1-volume",
    ]
    for part in ("executors", "tof"):
        view = project_pod(pod_json(f"poiesis-{TASK_ID}-1-{part}", part=part, version=5))
        assert view is not None
        cluster._cache.delete(PODS, 6, view)
    volume = project_volume(pod_json(f"poiesis-{TASK_ID}-1-volume", version=5, part="volume"))
    assert volume is not None
    cluster._cache.delete(VOLUMES, 7, volume)
    cluster.observe(task)
    assert store.calls() == ["GET pods", "GET persistentvolumeclaims"]  # the end of the last uploader was not observed


@pytest.mark.parametrize(
    ("machine", "built", "named", "chosen"),
    [
        ("x86_64", ["amd64", "arm64"], None, "amd64"),
        ("aarch64", ["amd64", "arm64"], None, "arm64"),
        ("aarch64", ["amd64", "arm64"], "amd64", "amd64"),
        ("x86_64", ["arm64"], None, "arm64"),
        ("riscv64", ["amd64", "arm64"], None, "amd64"),
    ],
)
def test_tasks_run_on_the_architecture_of_the_service_unless_another_is_set(
    client: Client,
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    machine: str,
    built: list[str],
    named: str | None,
    chosen: str,
) -> None:
    """And the ConfigMap has the launchers of all of them."""
    launchers = {name: tmp_path / f"launcher-{name}" for name in built}
    for name, path in launchers.items():
        path.write_bytes(name.encode())
    monkeypatch.setattr(delivery, "shipped_launchers", lambda: launchers)
    monkeypatch.setattr("platform.machine", lambda: machine)
    cluster = KubernetesCluster(
        KubernetesSettings(namespace="tasks", architecture=named, resolv_conf=""), Policy(), client=client
    )
    begin(cluster, make_task(PLAIN))
    (made,) = (o for path, o in store.objects.items() if "/configmaps/" in path)
    assert sorted(made["binaryData"]) == [f"launcher-{name}" for name in built]
    pod = store.objects[f"{CORE}/pods/poiesis-{TASK_ID}-1-task"]
    assert pod["spec"]["nodeSelector"] == {"kubernetes.io/arch": chosen}


def test_nodes_are_read_in_pages_with_one_list_of_pods_from_the_watch(
    make: Callable[..., KubernetesCluster], server: ApiServer
) -> None:
    def answer(request: Request) -> Answer:
        begin = int(request.query.get("continue", 0))
        rest = {"continue": str(begin + 2)} if begin + 2 < len(NODES) else {}
        return Answer(body={"items": NODES[begin : begin + 2], "metadata": rest})

    cluster = make(page_size=2)
    followed(cluster)
    view = project_pod(pod_json(node="worker-1"))
    assert view is not None
    cluster._cache.put(PODS, 1, view)
    server.answer = answer
    found = cluster.capacity(START)
    assert (found.nodes, found.requested.tasks) == (5, 1)
    assert [(r.path, r.query["limit"]) for r in server.requests] == [("/api/v1/nodes", "2")] * 3


@pytest.mark.parametrize(
    ("cpu", "room"), [("8", Room.NO_NODE), ("7", Room.BUSY)], ids=["more than any node has", "less"]
)
def test_a_pod_that_may_not_preempt_is_compared_with_the_nodes_where_they_are_known(
    make: Callable[..., KubernetesCluster], server: ApiServer, cpu: str, room: Room
) -> None:
    message = "0/5 nodes are available: 5 Insufficient cpu. preemption: not eligible due to preemptionPolicy=Never."
    conditions = [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}]
    document = pod_json(node=None, status={"conditions": conditions})
    document["spec"]["containers"][0]["resources"] = {"requests": {"cpu": cpu}}
    view = project_pod(document)
    assert view is not None
    cluster, task = make(), make_task(PLAIN)
    followed(cluster)
    cluster._cache.put(PODS, 1, view)

    def shown() -> Room | None:
        (pod,) = cluster.observe(task).pods
        return pod.room

    assert shown() is Room.BUSY, "nothing is known of the nodes"
    server.answer = lambda _: Answer(body={"items": NODES})
    cluster.capacity(START)
    assert shown() is room
    server.answer = lambda _: Answer(status=403, body={"reason": "Forbidden", "message": "no"})
    with pytest.raises(ClusterRefused):
        cluster.capacity(START)
    assert shown() is room, "they are as they were"
    with pytest.raises(ClusterRefused):
        cluster.capacity(START + NODES_KNOWN)
    assert shown() is Room.BUSY


def test_without_the_right_or_the_watch_the_room_is_not_known(
    make: Callable[..., KubernetesCluster], server: ApiServer
) -> None:
    cluster = make()
    with pytest.raises(ClusterUnavailable, match="not known yet"):
        cluster.capacity(START)
    followed(cluster)
    message = 'nodes is forbidden: User "system:serviceaccount:tes:monitor" cannot list resource "nodes"'
    server.answer = lambda _: Answer(status=403, body={"reason": "Forbidden", "message": message})
    with pytest.raises(ClusterUnavailable, match="list nodes: 403"):
        cluster.capacity(START)


def test_the_requested_gpus_are_those_of_the_site(make: Callable[..., KubernetesCluster]) -> None:
    document = pod_json()
    document["spec"]["containers"][0]["resources"] = {"requests": {"example.org/gpu": "3"}}
    view = make(gpu_resource="example.org/gpu")._project_pod(document)
    assert view is not None and view.requested == Amount(tasks=1, gpus=3)


def test_a_pod_is_not_created_long_after_its_launch_began(
    make: Callable[..., KubernetesCluster], store: Store, client: Client
) -> None:
    now = [0.0]
    client.monotonic = lambda: now[0]

    def slow_launcher(request: Request) -> Answer | None:
        now[0] += 50 if request.path.endswith("/configmaps") else 0
        return None

    store.deny = slow_launcher
    cluster, task = make(), make_task(PLAIN)
    the_plan = plan(PLAIN, Policy())
    with pytest.raises(ClusterUnavailable, match="TooLate"):
        cluster.launch(task, the_plan, the_plan.pods[0])
    assert not any(path.startswith(f"{CORE}/{PODS}/") for path in store.objects)
    cluster.launch(task, the_plan, the_plan.pods[0])  # the launcher exists now
    assert any(path.startswith(f"{CORE}/{PODS}/") for path in store.objects)
