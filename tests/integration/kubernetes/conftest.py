"""A namespace on the cluster of KUBECONFIG, and a small driver that runs a task's pods as the orchestrator would.

The filers are fakes (a shell script in the executors' image), since the cluster adapter is under test. POIESIS_TEST_EXECUTOR_IMAGE: an
image with a shell on the node, POIESIS_TEST_NOSHELL_IMAGE: one without.
"""

from __future__ import annotations

import json
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from poiesis.cluster.kubernetes.adapter import KubernetesCluster
from poiesis.cluster.kubernetes.client import Client
from poiesis.cluster.kubernetes.errors import ApiError
from poiesis.cluster.kubernetes.settings import KubernetesSettings, Resources
from poiesis.domain.naming import new_task_id
from poiesis.domain.observed import Observed, Pod
from poiesis.domain.plan import Plan, plan
from poiesis.domain.policy import Policy
from poiesis.domain.states import Stage
from poiesis.domain.task import Executor, Task, TaskId, TaskSpec

BUSYBOX = os.environ.get("POIESIS_TEST_EXECUTOR_IMAGE", "localhost/busybox:1")
NOSHELL = os.environ.get("POIESIS_TEST_NOSHELL_IMAGE", "localhost/noshell:1")
TOF_FILE = {"url": "s3://bucket/out.txt", "path": "/data/out.txt", "size_bytes": 4}
FILER = (
    "#\n"
    "root=/poiesis/volume/root\n"
    "umask 0\n"
    'case "$1" in\n'
    "in) mkdir -p $root/data $root/etc/app; cat /poiesis/task/tif.json > $root/data/in.txt; echo staged > $root/etc/app/conf;\n"
    f"    echo '{json.dumps({'files': [], 'total_files': 1})}';;\n"
    "out) cat $root/data/out.txt >&2;\n"
    f"    echo '{json.dumps({'files': [TOF_FILE], 'total_files': 1})}';;\n"
    "esac\n"
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = os.path.dirname(__file__)
    for item in items:
        if str(item.path).startswith(here):
            item.add_marker("e2e")
            item.add_marker(pytest.mark.timeout(180))
            if "KUBECONFIG" not in os.environ:
                item.add_marker(pytest.mark.skip(reason="needs a cluster (KUBECONFIG)"))


def settings(namespace: str, **changes: object) -> KubernetesSettings:
    base = KubernetesSettings(
        namespace=namespace,
        kubeconfig=os.environ["KUBECONFIG"],
        image=BUSYBOX,
        filer_command=("sh", "-c", FILER, "filer"),
        filer_resources=Resources(),
        resolv_conf="nameserver 127.0.0.1",  # the fake filers do not resolve names
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def make_namespace(client: Client, name: str, labels: dict[str, str] | None = None) -> None:
    client.create(
        "/api/v1/namespaces",
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels or {}}},
    )


def eventually(condition: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true in time"
        time.sleep(0.05)


@pytest.fixture(scope="session")
def admin() -> Iterator[Client]:
    client = Client(settings("default"))
    yield client
    client.close()


@pytest.fixture(scope="session")
def namespace(admin: Client) -> Iterator[str]:
    """POIESIS_TEST_NAMESPACE, or a new one that is deleted afterwards."""
    name = os.environ.get("POIESIS_TEST_NAMESPACE", f"poiesis-test-{secrets.token_hex(3)}")
    try:
        make_namespace(admin, name)
    except ApiError as error:
        assert error.status == 409
    yield name
    if "POIESIS_TEST_NAMESPACE" not in os.environ:
        admin.delete(f"/api/v1/namespaces/{name}", {})


class Driver:
    """Runs tasks one after the other and cleans up after each."""

    def __init__(self, settings: KubernetesSettings, policy: Policy) -> None:
        self.policy = policy
        self.cluster = KubernetesCluster(settings, policy, json.dumps({"note": "of the filers"}))
        self.changed = threading.Event()
        self.woken: list[TaskId] = []
        self.tasks: list[Task] = []
        self.cluster.follow(self._wake)
        assert self.cluster.synced(20)

    def _wake(self, task_id: TaskId) -> None:
        self.woken.append(task_id)
        self.changed.set()

    def task(self, spec: TaskSpec | Sequence[Executor]) -> Task:
        now = datetime.now(UTC)
        spec = spec if isinstance(spec, TaskSpec) else TaskSpec(executors=tuple(spec))
        task = Task(id=new_task_id(now), spec=spec, created_at=now, stage=Stage.RUN, part="task", nonce="nonce")
        self.tasks.append(task)
        return task

    def begin(self, task: Task) -> Plan:
        the_plan = plan(task.spec, self.policy)
        self.cluster.create_volume(task, the_plan)
        self.cluster.create_documents(task, the_plan)
        self.cluster.launch(task, the_plan, the_plan.pods[0])
        return the_plan

    def until(self, task: Task, condition: Callable[[Pod], object], seconds: float = 60) -> Observed:
        deadline = time.monotonic() + seconds
        while True:
            observed = self.cluster.observe(task)
            pod = observed.pod(task.part or "task", task.attempt)
            if pod is not None and condition(pod):
                return observed
            assert time.monotonic() < deadline, self.difference(task)
            self.changed.wait(1)
            self.changed.clear()

    def difference(self, task: Task) -> str:
        """The observed state, and the cluster's own."""
        status = self.cluster.client.get(f"/api/v1/namespaces/{self.cluster.settings.namespace}/pods")["items"]
        mine = [p["status"] for p in status if task.id in p["metadata"]["name"]]
        return f"{self.cluster.observe(task)}\n{json.dumps(mine, indent=1)}"

    def run(self, spec: TaskSpec | Sequence[Executor], seconds: float = 60) -> Pod:
        """The task's pod once all of it has ended."""
        task = self.task(spec)
        self.begin(task)
        observed = self.until(task, lambda pod: pod.ended, seconds)
        pod = observed.pod("task", 1)
        assert pod is not None
        return pod

    def clean(self, task: Task) -> None:
        self.cluster.delete_all(task.id, task.attempt)
        ending = replace(task, stage=Stage.CLEAN)
        eventually(lambda: self.cluster.observe(ending).is_empty, 60)

    def close(self) -> None:
        for task in self.tasks:
            self.cluster.delete_all(task.id, task.attempt)
        for task in self.tasks:
            self.clean(task)
        self.cluster.close()


@pytest.fixture(scope="module")
def driver(namespace: str) -> Iterator[Driver]:
    made = Driver(settings(namespace), Policy(tail_bytes=4096))
    yield made
    made.close()


def busybox(*command: str, **more: object) -> Executor:
    return Executor(BUSYBOX, command, **more)  # type: ignore[arg-type]


def shell(script: str, **more: object) -> Executor:
    return busybox("sh", "-c", script, **more)
