"""What pods mount and pull with for users with separate credentials, and for those without."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from poiesis.cluster.kubernetes.adapter import KubernetesCluster
from poiesis.cluster.kubernetes.bindings import CREDENTIALS
from poiesis.cluster.kubernetes.client import Client
from poiesis.cluster.kubernetes.settings import Binding, KubernetesSettings
from poiesis.config import read
from poiesis.domain.errors import ConfigurationError
from poiesis.domain.plan import plan
from poiesis.domain.policy import Policy
from poiesis.domain.task import Executor, FileType, Input, Output, Task, TaskSpec
from poiesis.filer.settings import FilerSettings
from tests.unit.cluster.kubernetes.conftest import ApiServer, make_task
from tests.unit.cluster.kubernetes.test_adapter import Store, begin

SPEC = TaskSpec(
    (Executor("tool", ("run",)), Executor("tool", ("check",))),
    inputs=(Input(path="/data/in", url="s3://b/in", type=FileType.FILE),),
    outputs=(Output(path="/data/out", url="s3://b/out", type=FileType.FILE),),
)
BINDINGS = {
    "ada": Binding(secret="s3-ada"),
    "eve": Binding(secret="s3-eve", pull_secrets=("registry-eve",)),
    "nobody": Binding(secret="", pull_secrets=()),
    "group:lab": Binding(pull_secrets=("registry-lab",)),
}
SHARED = {"s3-shared", "netrc-shared", "registry-shared"}


@pytest.fixture
def make(client: Client, server: ApiServer, tmp_path: Path) -> Iterator[Callable[..., KubernetesCluster]]:
    binary = tmp_path / "launcher"
    binary.write_bytes(b"launcher")

    def made(layout: str = "single", **changes: Any) -> KubernetesCluster:
        settings = KubernetesSettings(
            namespace="tasks",
            launchers={"amd64": str(binary)},
            resolv_conf="nameserver 10.96.0.10",
            pull_secrets=("registry-shared",),
            image_pull_secrets=("registry-image",),
            filer_env_secrets=("s3-shared",),
            filer_file_secrets={"netrc-shared": "/secrets/netrc", "ca": "/secrets/ca"},
            bound_file_secrets=("ca",),
            bindings=BINDINGS,
        )
        filer = FilerSettings(netrc_file="/secrets/netrc/netrc")
        return KubernetesCluster(replace(settings, **changes), Policy(layout=layout), filer.to_json(), client=client)

    yield made


def pods_of(cluster: KubernetesCluster, store: Store, task: Task) -> list[dict[str, Any]]:
    the_plan = plan(task.spec, cluster._policy)
    cluster.create_volume(task, the_plan)
    cluster.create_documents(task, the_plan)
    for pod in the_plan.pods:
        cluster.launch(task, the_plan, pod)
    return [o for path, o in store.objects.items() if "/pods/" in path]


def filer_settings(store: Store) -> FilerSettings:
    [secret] = [o for path, o in store.objects.items() if "/secrets/" in path]
    return FilerSettings.from_json(base64.b64decode(secret["data"]["filer.json"]))


def secrets_of(pod: dict[str, Any], container: dict[str, Any]) -> set[str]:
    """Names of the Secrets that a container can read, other than the task's own documents."""
    volumes = {v["name"]: v.get("secret", {}).get("secretName") for v in pod["spec"]["volumes"]}
    mounted = {volumes[m["name"]] for m in container["volumeMounts"] if volumes[m["name"]] is not None}
    return mounted | {source["secretRef"]["name"] for source in container.get("envFrom", [])}


@pytest.fixture
def store(server: ApiServer) -> Store:
    return Store(server)


@pytest.mark.parametrize("layout", ["single", "staged"])
@pytest.mark.parametrize(
    ("owner", "groups", "expected"),
    [
        ("ada", (), {"s3-ada", "ca"}),
        ("ada", ("lab",), {"s3-ada", "ca"}),
        ("nobody", (), {"ca"}),
        ("bob", ("lab",), {"s3-shared", "netrc-shared", "ca"}),
        ("bob", (), {"s3-shared", "netrc-shared", "ca"}),
        (None, (), {"s3-shared", "netrc-shared", "ca"}),
    ],
)
def test_filers_mount_the_users_own_secret_instead_of_the_shared_ones_and_executors_none(
    make: Callable[..., KubernetesCluster],
    store: Store,
    layout: str,
    owner: str | None,
    groups: tuple[str, ...],
    expected: set[str],
) -> None:
    pods = pods_of(make(layout), store, make_task(SPEC, owner=owner, groups=groups))
    seen = set()
    for pod in pods:
        for container in (*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]):
            is_filer = container["name"] in ("tif", "tof")
            assert secrets_of(pod, container) == (expected if is_filer else set()), container["name"]
            seen.add(container["name"])
    assert seen == {"tif", "executor-0", "executor-1", "tof"}
    everything = json.dumps(pods)
    assert not any(other in everything for other in {"s3-ada", "s3-eve", *SHARED} - expected - {"registry-shared"})


def test_the_filers_settings_name_the_only_credentials(make: Callable[..., KubernetesCluster], store: Store) -> None:
    pods_of(make(), store, make_task(SPEC, owner="ada"))
    found = filer_settings(store)
    assert (found.credentials_dir, found.credentials_name) == (
        CREDENTIALS,
        "the Secret 's3-ada' in the namespace of tasks",
    )
    assert len(found.cache_scope) == 32


def test_tasks_of_one_secret_share_a_scope_of_the_cache_and_others_do_not(
    make: Callable[..., KubernetesCluster], server: ApiServer
) -> None:
    scopes = []
    for owner in ("ada", "eve", "nobody", "bob", "ada"):
        store = Store(server)
        pods_of(make(), store, make_task(SPEC, owner=owner))
        scopes.append(filer_settings(store).cache_scope)
    assert scopes[0] == scopes[4]
    assert len(set(scopes)) == 4 and scopes[3] == ""


def test_a_task_without_a_binding_gets_the_shared_settings(
    make: Callable[..., KubernetesCluster], store: Store
) -> None:
    pods_of(make(), store, make_task(SPEC, owner="bob", groups=("lab",)))
    assert filer_settings(store) == FilerSettings(netrc_file="/secrets/netrc/netrc")


def test_a_missing_secret_does_not_keep_the_pod_waiting(make: Callable[..., KubernetesCluster], store: Store) -> None:
    """The kubelet would say why only in an event; the filer says it in its report."""
    [pod] = pods_of(make(), store, make_task(SPEC, owner="ada"))
    optional = {
        v["secret"]["secretName"]: v["secret"].get("optional", False) for v in pod["spec"]["volumes"] if "secret" in v
    }
    assert optional == {"s3-ada": True, "ca": False}


@pytest.mark.parametrize(
    ("owner", "groups", "expected"),
    [
        ("ada", (), ["registry-shared"]),
        ("eve", (), ["registry-image", "registry-eve"]),
        ("nobody", (), ["registry-image"]),
        ("bob", ("lab",), ["registry-image", "registry-lab"]),
        ("bob", (), ["registry-shared"]),
    ],
)
def test_pull_secrets_are_the_users_own_or_the_shared_ones(
    make: Callable[..., KubernetesCluster], store: Store, owner: str, groups: tuple[str, ...], expected: list[str]
) -> None:
    [pod] = pods_of(make(), store, make_task(SPEC, owner=owner, groups=groups))
    assert [s["name"] for s in pod["spec"]["imagePullSecrets"]] == expected


@pytest.mark.parametrize("owner", ["eve", "bob"])
def test_with_pull_secrets_of_users_no_image_of_a_node_is_used_without_asking(
    make: Callable[..., KubernetesCluster], store: Store, owner: str
) -> None:
    """A node gives an image that one user pulled to every pod that does not pull."""
    [pod] = pods_of(make(), store, make_task(SPEC, owner=owner))
    policies = {c["name"]: c.get("imagePullPolicy") for c in pod["spec"]["containers"]}
    assert (policies["executor-0"], policies["tif"]) == ("Always", None)
    cluster = make(pull_policy="IfNotPresent", bindings={"ada": BINDINGS["ada"]})
    [_, pod] = pods_of(cluster, store, make_task(SPEC, owner="eve", id="another00000000000000000000"))
    assert pod["spec"]["containers"][1]["imagePullPolicy"] == "IfNotPresent"


def test_no_secret_is_read_or_stored(make: Callable[..., KubernetesCluster], store: Store) -> None:
    """So the service needs no right to read them, and a task does not hold their names."""
    cluster = make()
    begin(cluster, make_task(SPEC, owner="eve"))
    assert not [c for c in store.calls() if c.startswith("GET") and "secrets" in c]


def test_bindings_are_read_from_json() -> None:
    text = json.dumps({"group:lab": {"secret": "a", "pull_secrets": ["b", "c"]}, "*": {"secret": ""}})
    found = read(KubernetesSettings, {"P_BINDINGS": text}, "P_").bindings
    assert dict(found) == {"group:lab": Binding("a", ("b", "c")), "*": Binding("")}


@pytest.mark.parametrize(
    "value", [{"secret": "../x"}, {"secret": "A"}, {"pull_secrets": ["a b"]}, {"secrets": "a"}, []]
)
def test_an_invalid_binding_is_refused(value: object) -> None:
    with pytest.raises(ConfigurationError, match=r"(?i)bindings"):
        read(KubernetesSettings, {"P_BINDINGS": json.dumps({"ada": value})}, "P_")
