"""Whole pods as JSON, and every limit. POIESIS_WRITE_GOLDEN=1 writes the files again: read the difference before you commit it."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from poiesis.bootstrap import KUBERNETES_PREFIX
from poiesis.cluster.kubernetes import objects, pods
from poiesis.cluster.kubernetes.settings import CacheVolume, KubernetesSettings, Placement, Resources
from poiesis.config import read
from poiesis.domain.errors import ClusterRefused, ConfigurationError
from poiesis.domain.plan import plan
from poiesis.domain.policy import Policy
from poiesis.domain.task import Executor, FileType, Input, Output, TaskSpec
from poiesis.domain.task import Resources as Asked
from tests.unit.cluster.kubernetes.conftest import make_task

GOLDEN = Path(__file__).parent / "golden"
SITE = KubernetesSettings(
    namespace="tasks",
    instance="lab",
    image="registry/poiesis:1",
    pull_policy="IfNotPresent",
    pull_secrets=("registry",),
    architecture="amd64",
    filer_env={"AWS_REGION": "eu", "NO_PROXY": "$x"},
    filer_env_secrets=("s3",),
    filer_file_secrets={"netrc": "/secrets/netrc"},
    preemptible=Placement(node_selector={"spot": "true"}, tolerations=({"key": "spot", "operator": "Exists"},)),
    gpu=Placement(tolerations=({"key": "gpu", "operator": "Exists"},)),
    gpu_type_label="gpu-type",
    node_classes={"large": Placement(node_selector={"class": "large"})},
    service_classes={"guaranteed": Placement(cpu_limit=True, priority_class="high", labels={"cost": "high"})},
    priority_classes=frozenset({"urgent"}),
    labels={"team": "bio"},
    annotations={"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"},
    extra_pod_spec={"hostAliases": [{"ip": "10.0.0.1", "hostnames": ["s3"]}], "restartPolicy": "Always"},
    poke_address="texam:8081",
)
PLAIN = KubernetesSettings(namespace="tasks")
TRUE = Executor("busybox", ("true",))
IN = Input(path="/data/in.txt", url="s3://b/in.txt", type=FileType.FILE)
OUT = Output(path="/data/out.txt", url="s3://b/out.txt", type=FileType.FILE)

CASES: dict[str, tuple[TaskSpec, KubernetesSettings, Policy]] = {
    "plain": (TaskSpec((TRUE,)), PLAIN, Policy()),
    "files": (
        TaskSpec(
            (
                Executor(
                    "tool:1",
                    ("run", "$(X)", "$$"),
                    workdir="/work",
                    stdin="/data/in.txt",
                    stdout="/data/out.txt",
                    stderr="/data/err.txt",
                    env={"A": "$(B)"},
                    ignore_error=True,
                ),
                Executor("tool:2", ("check",)),
            ),
            inputs=(IN,),
            outputs=(OUT,),
            resources=Asked(cpu_cores=1.5, ram_gb=2, disk_gb=5, preemptible=True, zones=("a", "b")),
            volumes=("/scratch",),
        ),
        SITE,
        Policy(),
    ),
    "staged-gpu": (
        TaskSpec(
            (TRUE, TRUE),
            inputs=(IN,),
            outputs=(OUT,),
            resources=Asked(
                cpu_cores=4,
                ram_gb=8,
                backend_parameters={
                    "gpu": "2",
                    "gpu_type": "a100",
                    "shm_gb": "1",
                    "node_class": "large",
                    "service_class": "guaranteed",
                    "priority_class": "urgent",
                    "queue": "batch",
                    "time_limit": "2h",
                },
            ),
        ),
        SITE,
        Policy(),
    ),
    "cached": (
        TaskSpec((TRUE,), inputs=(IN,), outputs=(OUT,)),
        replace(PLAIN, cache_volume=CacheVolume(claim="cache", sub_path="inputs")),
        Policy(),
    ),
    "file-mount": (
        TaskSpec((TRUE,), inputs=(replace(IN, path="/etc/tool.conf"),)),
        replace(PLAIN, poke_address="texam:8081", poke_start=True),
        Policy(),
    ),
    "restricted-init": (
        TaskSpec((TRUE,), volumes=("/data/deep", "/data")),
        replace(
            PLAIN, pod_security="restricted", run_as_user=1000, run_as_group=1000, delivery="init", fs_group=None,
            read_only_root=True, service_account="tasks", default_cpu_cores=0.1, default_ram_gb=0.5, cpu_limit=True,
        ),
        Policy(),
    ),
}  # fmt: skip


def build(
    spec: TaskSpec, settings: KubernetesSettings = PLAIN, policy: Policy | None = None, **changes: Any
) -> list[dict[str, Any]]:
    policy = policy or Policy()
    task = make_task(spec, **changes)
    the_plan = plan(spec, policy)
    launcher = None if settings.delivery == "init" else "poiesis-launcher-abc"
    return [
        pods.pod(
            task, the_plan, p, settings, policy, launcher_name=launcher, document_files={"tif.json": 0, "filer.json": 0}
        )
        for p in the_plan.pods
    ]


def container(made: dict[str, Any], name: str = "executor-0") -> dict[str, Any]:
    found: dict[str, Any] = next(c for c in made["spec"]["containers"] if c["name"] == name)
    return found


@pytest.mark.parametrize("name", CASES)
def test_whole_pods_equal_the_golden_files(name: str) -> None:
    spec, settings, policy = CASES[name]
    path = GOLDEN / f"{name}.json"
    made = build(spec, settings, policy)
    if os.environ.get("POIESIS_WRITE_GOLDEN"):
        path.write_text(json.dumps(made, indent=2) + "\n")
    assert made == json.loads(path.read_text())


def test_the_same_task_gives_the_same_pod() -> None:
    spec, settings, policy = CASES["files"]
    assert build(spec, settings, policy) == build(spec, settings, policy)


@pytest.mark.parametrize("text", ["$(X)", "$$", "$$(X)", "$é", "$", "a$b", "no dollar"])
def test_what_kubernetes_would_expand_is_escaped(text: str) -> None:
    escaped = objects.escape(text)
    assert escaped.replace("$$", "\0").count("$") == 0  # every $ is doubled, which Kubernetes reduces to one
    assert escaped.replace("$$", "$") == text


def test_one_container_has_the_request_and_all_have_the_limits() -> None:
    made = build(TaskSpec((TRUE, TRUE, TRUE), resources=Asked(cpu_cores=2, ram_gb=4)))[0]
    resources = [c["resources"] for c in made["spec"]["containers"]]
    assert resources[0] == {"requests": {"cpu": "2000m", "memory": "4000000000"}, "limits": {"memory": "4000000000"}}
    assert resources[1] == resources[2] == {"requests": {"cpu": "0", "memory": "0"}, "limits": {"memory": "4000000000"}}


def test_a_task_without_resources_reserves_nothing() -> None:
    assert "resources" not in container(build(TaskSpec((TRUE,)))[0])


def test_a_request_is_as_large_as_it_is_written() -> None:
    """A byte more would not fit into a ResourceQuota of the same size."""
    made = build(TaskSpec((TRUE,), resources=Asked(cpu_cores=1.001, ram_gb=8.3)))[0]
    assert container(made)["resources"]["requests"] == {"cpu": "1001m", "memory": "8300000000"}


def test_memory_grows_with_retries_after_out_of_memory() -> None:
    made = build(TaskSpec((TRUE,), resources=Asked(ram_gb=1)), memory_scale=4)[0]
    assert container(made)["resources"]["limits"] == {"memory": "4000000000"}


def test_only_filers_see_secrets_and_documents() -> None:
    spec, settings, policy = CASES["files"]
    made = build(spec, settings, policy)[0]
    for each in made["spec"]["containers"]:
        is_filer = each["name"] in ("tif", "tof")
        mounted = {m["name"] for m in each["volumeMounts"]}
        assert ({"documents", "secret-0"} <= mounted) is is_filer
        assert ("envFrom" in each) is is_filer
        assert any(m["name"] == "volume" and "subPath" not in m for m in each["volumeMounts"]) is is_filer


@pytest.mark.parametrize("layout", ["single", "staged"])
def test_filers_do_not_share_hosts_and_resolv_conf_with_executors(layout: str) -> None:
    spec = TaskSpec((TRUE,), inputs=(IN,), outputs=(OUT,))
    for each in (c for made in build(spec, PLAIN, Policy(layout=layout)) for c in made["spec"]["containers"]):
        own = {m["mountPath"]: m for m in each["volumeMounts"] if m["mountPath"].startswith("/etc/")}
        shares = layout == "single" and each["name"] != "executor-0"
        assert set(own) == ({"/etc/hosts", "/etc/resolv.conf"} if shares else set())
        assert all(m["name"] == "documents" and m["readOnly"] for m in own.values())


def test_no_container_has_net_raw_unless_the_site_keeps_it() -> None:
    spec = TaskSpec((TRUE,), inputs=(IN,), outputs=(OUT,))
    as_root = replace(PLAIN, filer_run_as_user=0)
    for each in (c for made in build(spec, as_root) for c in made["spec"]["containers"]):
        assert each["securityContext"]["capabilities"] == {"drop": ["NET_RAW"]}
    assert "capabilities" not in container(build(spec, replace(PLAIN, net_raw=True))[0])["securityContext"]


HOST_CACHE = replace(PLAIN, cache_volume=CacheVolume(host_path="/var/cache/poiesis"))


def test_the_cache_is_mounted_where_inputs_are_staged_and_nowhere_else() -> None:
    both = build(TaskSpec((TRUE,), inputs=(IN,), outputs=(OUT,)), HOST_CACHE)[0]
    volume = {"name": "cache", "hostPath": {"path": "/var/cache/poiesis", "type": "DirectoryOrCreate"}}
    assert volume in both["spec"]["volumes"]
    for each in both["spec"]["containers"]:
        found = [m for m in each["volumeMounts"] if m["name"] == "cache"]
        assert found == ([{"name": "cache", "mountPath": "/poiesis/cache"}] if each["name"] == "tif" else [])
    staged = build(TaskSpec((TRUE,), inputs=(IN,), outputs=(OUT,)), HOST_CACHE, Policy(layout="staged"))
    assert [volume in pod["spec"]["volumes"] for pod in staged] == [True, False, False]
    for spec in (TaskSpec((TRUE,)), TaskSpec((TRUE,), outputs=(OUT,))):
        assert "cache" not in {v["name"] for v in build(spec, HOST_CACHE)[0]["spec"]["volumes"]}


def test_the_filers_settings_name_the_cache() -> None:
    assert json.loads(objects.filer_settings('{"parallel": 3}', HOST_CACHE)) == {
        "parallel": 3,
        "cache_dir": "/poiesis/cache",
    }
    assert objects.filer_settings('{"parallel": 3}', PLAIN) == '{"parallel": 3}'


@pytest.mark.parametrize(
    "wrong",
    [
        {"host_path": "/a/b", "claim": "c"},
        {"sub_path": "a"},
        {"host_path": "/"},
        {"host_path": "/etc"},
        {"host_path": "/var/../etc"},
        {"host_path": "cache/here"},
        {"claim": "c", "sub_path": "../a"},
        {"claim": "c", "sub_path": "/a"},
    ],
)
def test_a_cache_in_the_wrong_place_is_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match="cache"):
        CacheVolume(**wrong)


def test_pod_security_restricted_has_no_directory_of_the_node() -> None:
    with pytest.raises(ConfigurationError, match="restricted"):
        replace(HOST_CACHE, pod_security="restricted")
    assert replace(PLAIN, pod_security="restricted", cache_volume=CacheVolume(claim="c")).cache_volume.is_set


def test_every_container_pokes_with_id_and_nonce() -> None:
    spec, settings, policy = CASES["files"]
    made = build(spec, settings, policy)[0]
    assert all("--poke" in c["args"] and "--poke-start" not in c["args"] for c in made["spec"]["containers"])
    arguments = container(made, "tof")["args"]
    assert arguments[arguments.index("--poke") + 1] == "texam:8081/poke/0pgfkqhb3o9ek1qmlgpsrchc2k/n0nce-1-1"


def test_the_first_executor_creates_directories_only_without_tif() -> None:
    made = build(TaskSpec((TRUE, TRUE), volumes=("/data/deep", "/data")))[0]
    first, second = (c["args"] for c in made["spec"]["containers"])
    assert [a for a, o in zip(first[1:], first, strict=False) if o == "--mkdir"] == ["/data", "/data/deep"]
    assert "--mkdir" not in second
    with_tif = build(TaskSpec((TRUE,), volumes=("/data",), inputs=(IN,)))[0]
    assert "--mkdir" not in container(with_tif)["args"]


def test_only_executors_have_shared_memory() -> None:
    spec, settings, policy = CASES["staged-gpu"]
    with_shm = [any(v["name"] == "shm" for v in p["spec"]["volumes"]) for p in build(spec, settings, policy)]
    assert with_shm == [False, True, True, False]


def test_only_executors_request_gpus() -> None:
    spec, settings, policy = CASES["staged-gpu"]
    asked = [
        ["nvidia.com/gpu" in json.dumps(c) for c in p["spec"]["containers"]] for p in build(spec, settings, policy)
    ]
    assert asked == [[False], [True], [True], [False]]


def test_every_pod_of_a_task_is_scheduled_where_its_volume_is_reachable() -> None:
    spec, settings, policy = CASES["staged-gpu"]
    wanted = {"class": "large", "gpu-type": "a100", "kubernetes.io/arch": "amd64"}
    for made in build(spec, settings, policy):
        assert made["spec"]["nodeSelector"] == wanted
        assert made["spec"]["tolerations"] == [{"key": "gpu", "operator": "Exists"}]


def test_the_sites_own_placement_applies_to_all_pods() -> None:
    spec, settings, policy = CASES["staged-gpu"]
    own = {"key": "tes", "operator": "Exists"}
    extra = {"nodeSelector": {"pool": "tes", "class": "any"}, "tolerations": [own]}
    for made in build(spec, replace(settings, extra_pod_spec=extra), policy):
        assert made["spec"]["nodeSelector"].items() > {"pool": "tes", "class": "large", "gpu-type": "a100"}.items()
        assert made["spec"]["tolerations"] == [own, {"key": "gpu", "operator": "Exists"}]
    without = build(TaskSpec((TRUE,)), replace(PLAIN, delivery="init", extra_pod_spec=extra))[0]["spec"]
    assert (without["nodeSelector"], without["tolerations"]) == (extra["nodeSelector"], [own])


def test_a_node_has_to_match_the_sites_affinity_and_the_tasks_zones() -> None:
    spec = TaskSpec((TRUE,), resources=Asked(zones=("a", "b")))
    ssd, gpu = {"key": "ssd", "operator": "Exists"}, {"key": "gpu", "operator": "DoesNotExist"}
    required = {"nodeSelectorTerms": [{"matchExpressions": [ssd]}, {"matchExpressions": [gpu]}]}
    of_nodes = {
        "requiredDuringSchedulingIgnoredDuringExecution": required,
        "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1}],
    }
    settings = replace(PLAIN, extra_pod_spec={"affinity": {"nodeAffinity": of_nodes, "podAntiAffinity": {"x": 1}}})
    assert build(TaskSpec((TRUE,)), settings)[0]["spec"]["affinity"] == settings.extra_pod_spec["affinity"]
    zone = {"key": "topology.kubernetes.io/zone", "operator": "In", "values": ["a", "b"]}
    terms = [{"matchExpressions": [ssd, zone]}, {"matchExpressions": [gpu, zone]}]
    assert build(spec, settings)[0]["spec"]["affinity"] == {
        "nodeAffinity": {**of_nodes, "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}},
        "podAntiAffinity": {"x": 1},
    }


def test_transfers_leave_nodes_with_gpus_to_others_where_every_node_reaches_the_volume() -> None:
    spec, settings, policy = CASES["staged-gpu"]
    made = build(spec, replace(settings, access_mode="ReadWriteMany"), policy)
    assert ["gpu-type" in p["spec"]["nodeSelector"] for p in made] == [False, True, True, False]
    assert ["tolerations" in p["spec"] for p in made] == [False, True, True, False]


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"node_class": "small"}, "node_class 'small'"),
        ({"service_class": "none"}, "service_class"),
        ({"priority_class": "system"}, "priority class"),
        ({"architecture": "s390x"}, "unsupported architecture 's390x'"),
    ],
)
def test_unknown_classes_are_refused(parameters: dict[str, str], words: str) -> None:
    settings = replace(SITE, launchers={"amd64": "x"})
    with pytest.raises(ClusterRefused, match=words):
        build(TaskSpec((TRUE,), resources=Asked(backend_parameters=parameters)), settings)


def test_gpu_type_requires_the_sites_label() -> None:
    asked = Asked(backend_parameters={"gpu": "1", "gpu_type": "a100"})
    with pytest.raises(ClusterRefused, match="gpu_type"):
        build(TaskSpec((TRUE,), resources=asked))


def test_an_argument_longer_than_linux_allows_is_refused() -> None:
    fits = Executor("i", ("x" * pods.MAX_STRING_BYTES,))
    build(TaskSpec((fits,)))
    with pytest.raises(ClusterRefused, match="environment too long"):
        build(TaskSpec((replace(fits, command=("x" * (pods.MAX_STRING_BYTES + 1),)),)))
    with pytest.raises(ClusterRefused, match="environment too long"):
        build(TaskSpec((replace(TRUE, env={"A": "é" * (pods.MAX_STRING_BYTES // 2)}),)))


def test_arguments_longer_in_total_than_linux_allows_are_refused() -> None:
    many = Executor("i", ("x" * 100_000,) * 11)
    with pytest.raises(ClusterRefused, match="in total"):
        build(TaskSpec((many,)))


def test_a_pod_larger_than_etcd_allows_is_refused() -> None:
    one = Executor("i", ("x" * 100_000,) * 8)
    with pytest.raises(ClusterRefused, match="too long for one pod"):
        build(TaskSpec((one, one)))


def test_documents_in_several_secrets_appear_in_one_directory() -> None:
    spec = TaskSpec((TRUE,), inputs=(IN,))
    task, the_plan = make_task(spec), plan(spec, Policy())
    files = {"tif.json.0": 0, "tif.json.1": 1, "filer.json": 1}
    made = pods.pod(task, the_plan, the_plan.pods[0], PLAIN, Policy(), launcher_name="l", document_files=files)
    sources = next(v for v in made["spec"]["volumes"] if v["name"] == "documents")["projected"]["sources"]
    assert [s["secret"]["name"] for s in sources] == [f"poiesis-{task.id}-1-filer", f"poiesis-{task.id}-1-filer-1"]


def test_the_pods_deadline_is_later_than_all_others() -> None:
    policy = Policy(max_time_limit=timedelta(hours=1))
    made = build(TaskSpec((TRUE, TRUE)), PLAIN, policy)[0]
    assert made["spec"]["activeDeadlineSeconds"] >= 2 * 3600 + policy.stage_in_deadline.total_seconds()
    assert "activeDeadlineSeconds" not in build(TaskSpec((TRUE,)))[0]["spec"]


@pytest.mark.parametrize("layout", ["single", "staged"])
def test_each_filer_has_its_deadline(layout: str) -> None:
    policy = Policy(layout=layout, stage_in_deadline=timedelta(minutes=7), stage_out_deadline=timedelta(days=20))
    made = build(TaskSpec((TRUE,), inputs=(IN,), outputs=(OUT,)), PLAIN, policy)
    containers = [c for pod in made for c in (*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"])]
    limits = {c["name"]: option(c, "--time-limit") for c in containers}
    assert limits == {"tif": "420", "executor-0": None, "tof": "1728000"}


@pytest.mark.parametrize(("limit", "seconds"), [("90s", "90"), ("20d", "1728000"), ("36500d", "315360000")])
def test_a_long_time_limit_is_one_that_the_launcher_takes(limit: str, seconds: str) -> None:
    spec = TaskSpec((TRUE,), resources=Asked(backend_parameters={"time_limit": limit}))
    made = build(spec)[0]
    assert option(container(made), "--time-limit") == seconds
    assert made["spec"]["activeDeadlineSeconds"] < 2**31


def option(made: dict[str, Any], name: str) -> str | None:
    arguments = made["args"]
    return str(arguments[arguments.index(name) + 1]) if name in arguments else None


def test_filers_may_have_limits() -> None:
    settings = replace(PLAIN, filer_resources=Resources(cpu_request="10m", cpu_limit="1", memory_limit="1Gi"))
    made = build(TaskSpec((TRUE,), inputs=(IN,)), settings)[0]
    assert container(made, "tif")["resources"] == {"requests": {"cpu": "10m"}, "limits": {"cpu": "1", "memory": "1Gi"}}


def test_what_executors_write_outside_of_the_volume_may_be_limited_without_a_request() -> None:
    made = build(TaskSpec((TRUE,), inputs=(IN,)), replace(PLAIN, ephemeral_storage_limit="20Gi"))[0]
    resources = container(made, "executor-0")["resources"]
    assert (resources["requests"]["ephemeral-storage"], resources["limits"]["ephemeral-storage"]) == ("0", "20Gi")
    assert "ephemeral-storage" not in str(container(made, "tif")["resources"])
    assert "ephemeral-storage" not in str(build(TaskSpec((TRUE,)), PLAIN)[0])


def test_every_container_requests_the_minimum_of_the_site():
    site = replace(PLAIN, min_requests={"cpu": "100m", "memory": "128Mi", "ephemeral-storage": "1Gi"})
    spec = TaskSpec((TRUE, TRUE), inputs=(IN,), outputs=(OUT,), resources=Asked(cpu_cores=2, ram_gb=0.1))
    made = build(spec, replace(site, ephemeral_storage_limit="20Gi"))[0]
    raised = {"memory": "128Mi", "ephemeral-storage": "1Gi"}
    limits = {"memory": "128Mi", "ephemeral-storage": "20Gi"}
    assert container(made, "executor-0")["resources"] == {"requests": {"cpu": "2000m"} | raised, "limits": limits}
    assert container(made, "executor-1")["resources"] == {"requests": {"cpu": "100m"} | raised, "limits": limits}
    # what is not set gets the default of the LimitRange
    assert container(made, "tif")["resources"] == {"requests": {"memory": "128Mi"}, "limits": {"memory": "1Gi"}}
    assert "resources" not in container(build(TaskSpec((TRUE,)), site)[0], "executor-0")


def test_a_minimum_of_requests_that_is_not_an_amount_is_an_error():
    with pytest.raises(
        ConfigurationError, match="min_requests: invalid quantity 'lots' of cpu: use one such as 10m or 16Mi"
    ):
        KubernetesSettings(min_requests={"cpu": "lots"})


def test_an_id_that_is_not_a_valid_label_is_in_an_annotation() -> None:
    made = build(TaskSpec((TRUE,)), id="Task_With.Odd/Id")[0]
    assert made["metadata"]["annotations"] == {"poiesis/task-id": "Task_With.Odd/Id"}
    assert made["metadata"]["labels"]["poiesis/task-id"].startswith("task-with-odd-id-")


@pytest.mark.parametrize("text", ["none", "", "None"])
def test_a_filer_without_an_explicit_user_is_not_root(text: str) -> None:
    """The platform chooses: OpenShift gives every container of the pod the same user from the namespace's range."""
    name = f"{KUBERNETES_PREFIX}FILER_RUN_AS_USER"
    settings = replace(read(KubernetesSettings, {name: text}, KUBERNETES_PREFIX), fs_group=None)
    assert settings.filer_run_as_user is None
    made = build(TaskSpec((TRUE,), inputs=(IN,), outputs=(OUT,)), settings)[0]
    for filer in ("tif", "tof"):
        assert container(made, filer)["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "capabilities": {"drop": ["ALL"]},
        }
    assert made["spec"]["securityContext"] == {"seccompProfile": {"type": "RuntimeDefault"}}


def test_a_working_directory_without_a_volume_is_an_empty_dir_of_the_pod() -> None:
    """One volume each: the kubelet would create a subPath writable only for root."""
    two = TaskSpec((replace(TRUE, workdir="/work"), replace(TRUE, workdir="/tmp/x")))
    made = build(two)[0]
    volumes = {v["name"]: v for v in made["spec"]["volumes"] if "emptyDir" in v and v["name"] != "control"}
    assert volumes == {name: {"name": name, "emptyDir": {}} for name in ("scratch-0", "scratch-1")}
    for name in ("executor-0", "executor-1"):
        mounts = {m["mountPath"]: m["name"] for m in container(made, name)["volumeMounts"] if "scratch" in m["name"]}
        assert mounts == {"/tmp/x": "scratch-0", "/work": "scratch-1"}
