"""The container that fills the log store: what it gets, what executors do not get, and how it is seen."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from poiesis.cluster.kubernetes import pods
from poiesis.cluster.kubernetes.cache import project_pod
from poiesis.cluster.kubernetes.observe import pod_of
from poiesis.cluster.kubernetes.settings import KubernetesSettings
from poiesis.cluster.kubernetes.whole_logs import CONTAINER, SEGMENT_BYTES, WholeLogs
from poiesis.cluster.local.supervisor import SEGMENT_BYTES as LOCAL_SEGMENT_BYTES
from poiesis.config import LogSettings, read
from poiesis.domain.decide.progress import LOGS_INCOMPLETE, show
from poiesis.domain.errors import ConfigurationError
from poiesis.domain.plan import plan
from poiesis.domain.policy import Policy
from poiesis.domain.task import Executor, FileType, Input, Output, Resources, TaskSpec
from poiesis.logstore import follower
from poiesis.logstore.__main__ import READER
from tests.unit.cluster.kubernetes.conftest import make_task, pod_json

LOGS = LogSettings(url="s3://logs/p$x", endpoint="https://s3", secret_key="secret", access_key="key", max_bytes=10**8)
NAMES = {"hosts": "127.0.0.1 localhost\n", "resolv.conf": "nameserver 10.0.0.1\n"}
SITE = KubernetesSettings(namespace="tasks", logs_env_secrets=("log-store",), logs_file_secrets={"ca": "/ca"})
TRUE = Executor("busybox", ("true",), env={"A": "b"})
IN = Input(path="/data/in.txt", url="s3://b/in.txt", type=FileType.FILE)
OUT = Output(path="/data/out.txt", url="s3://b/out.txt", type=FileType.FILE)
RUNNING = {"running": {"startedAt": "2026-01-02T03:04:06Z"}}
DONE = {"terminated": {"exitCode": 0, "reason": "Completed"}}


def build(
    spec: TaskSpec, site: KubernetesSettings = SITE, store: LogSettings = LOGS, policy: Policy | None = None
) -> list[dict[str, Any]]:
    policy = policy or Policy()
    task, the_plan = make_task(spec), plan(spec, policy)
    logs = WholeLogs(store, NAMES)
    return [
        pods.pod(task, the_plan, p, site, policy, launcher_name="x", document_files={"tif.json": 0}, logs=logs)
        for p in the_plan.pods
    ]


def container(made: dict[str, Any], name: str = CONTAINER) -> dict[str, Any]:
    found: dict[str, Any] = next(c for c in made["spec"]["containers"] if c["name"] == name)
    return found


def test_it_is_the_last_container_and_runs_for_the_executors_of_its_pod() -> None:
    made = build(TaskSpec((TRUE, TRUE), inputs=(IN,), outputs=(OUT,)))[0]
    assert [c["name"] for c in made["spec"]["containers"]][-1] == CONTAINER
    arguments = container(made)["args"]
    options = dict(zip(arguments[::2], arguments[1::2], strict=True))
    assert options == {
        "--control": "/poiesis/control",
        "--task": make_task(TaskSpec((TRUE,))).id,
        "--attempt": "1",
        "--executors": "0,1",
        "--grace": "17",
    }
    assert float(options["--grace"]) < made["spec"]["terminationGracePeriodSeconds"]


def test_pods_of_filers_do_not_have_it() -> None:
    spec = TaskSpec((TRUE, TRUE), inputs=(IN,), outputs=(OUT,), resources=Resources(backend_parameters={"gpu": "1"}))
    made = build(spec)
    found = {p["metadata"]["name"].rsplit("-1-", 1)[1]: [c["name"] for c in p["spec"]["containers"]] for p in made}
    assert [part for part, names in found.items() if CONTAINER in names] == ["executor-0", "executor-1"]
    assert container(made[2])["args"][7] == "1"


def test_without_a_log_store_no_pod_changes() -> None:
    spec = TaskSpec((TRUE,), inputs=(IN,))
    task, the_plan = make_task(spec), plan(spec, Policy())
    without = pods.pod(
        task, the_plan, the_plan.pods[0], SITE, Policy(), launcher_name="x", document_files={"tif.json": 0}
    )
    text = json.dumps(without)
    assert "logs" not in text and "--keep" not in text


def test_only_it_gets_the_stores_credentials_and_settings() -> None:
    made = build(TaskSpec((TRUE,), inputs=(IN,), outputs=(OUT,)))[0]
    for each in made["spec"]["containers"]:
        is_logs = each["name"] == CONTAINER
        assert ("log-store" in json.dumps(each)) is is_logs
        assert ("POIESIS_LOGS__" in json.dumps(each)) is is_logs
        mounted = {m["name"] for m in each["volumeMounts"]}
        assert ("logs-secret-0" in mounted) is is_logs
        assert not (is_logs and mounted & {"volume", "documents", "cache"})
    assert "secret" not in json.dumps(container(made)["env"])


def test_its_settings_are_read_as_they_were_given() -> None:
    store = replace(LOGS, access_key=None, secret_key=None, interval=timedelta(days=20), virtual_style=True)
    env = {v["name"]: v["value"].replace("$$", "$") for v in container(build(TaskSpec((TRUE,)), store=store)[0])["env"]}
    assert read(LogSettings, env, "POIESIS_LOGS__") == store


def test_it_does_not_share_hosts_and_resolv_conf_with_executors() -> None:
    made = build(TaskSpec((TRUE,)))[0]
    own = {m["mountPath"]: m for m in container(made)["volumeMounts"] if m["mountPath"].startswith("/etc/")}
    assert set(own) == {"/etc/hosts", "/etc/resolv.conf"} and all(m["readOnly"] for m in own.values())
    volume = next(v for v in made["spec"]["volumes"] if v["name"] == "logs-names")
    for item in volume["downwardAPI"]["items"]:
        key = item["fieldRef"]["fieldPath"].removeprefix("metadata.annotations['").removesuffix("']")
        assert made["metadata"]["annotations"][key] == NAMES[item["path"]]


def test_it_is_not_root_and_has_no_capability() -> None:
    security = container(build(TaskSpec((TRUE,)))[0])["securityContext"]
    assert security["runAsNonRoot"] and security["readOnlyRootFilesystem"] and not security["allowPrivilegeEscalation"]
    assert security["capabilities"] == {"drop": ["ALL"]}


def test_executors_keep_their_output_within_the_control_directorys_limit() -> None:
    made = build(TaskSpec((TRUE, TRUE, TRUE)))[0]
    arguments = container(made, "executor-1")["args"]
    options = {arguments[i]: arguments[i + 1] for i in range(len(arguments) - 1) if arguments[i].startswith("--keep")}
    assert options == {
        "--keep-output": "100000000",
        "--keep-backlog": str(LOGS.backlog_bytes),
        "--keep-stall": "10",
        "--keep-reader": READER,
    }
    control = next(v for v in made["spec"]["volumes"] if v["name"] == "control")["emptyDir"]["sizeLimit"]
    assert int(control) >= (64 << 20) + 6 * (LOGS.backlog_bytes + 2 * SEGMENT_BYTES)


def test_all_parts_agree_on_the_size_of_a_segment() -> None:
    assert SEGMENT_BYTES == LOCAL_SEGMENT_BYTES == follower.SEGMENT_BYTES


def test_a_claim_is_mounted_where_the_url_says_and_only_there() -> None:
    site = replace(SITE, logs_claim="logs")
    made = build(TaskSpec((TRUE,)), site, LogSettings(url="file:///srv/logs"))[0]
    found = [(c["name"], m) for c in made["spec"]["containers"] for m in c["volumeMounts"] if m["name"] == "logs-store"]
    assert found == [(CONTAINER, {"name": "logs-store", "mountPath": "/srv/logs"})]
    with pytest.raises(ConfigurationError, match="logs_claim requires"):
        build(TaskSpec((TRUE,)), site)


@pytest.mark.parametrize("size", ["64", "x", "-1Mi", "1.5Gi"])
def test_a_control_size_that_is_not_a_quantity_is_refused(size: str) -> None:
    if size == "64":
        build(TaskSpec((TRUE,)), replace(SITE, control_size=size))
        return
    with pytest.raises(ConfigurationError, match="control_size"):
        build(TaskSpec((TRUE,)), replace(SITE, control_size=size))


# ── how it is seen ────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def observed(**containers: Any) -> Any:
    view = project_pod(pod_json(containers={name.replace("_", "-"): state for name, state in containers.items()}))
    assert view is not None
    return pod_of(view, make_task(TaskSpec((TRUE,))), {})


def test_a_task_does_not_wait_for_it() -> None:
    pod = observed(executor_0=DONE, logs=RUNNING)
    assert pod.ended and [c.name for c in pod.containers] == ["executor-0"] and pod.log_problem is None


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (RUNNING, None),
        (DONE, None),
        ({"waiting": {"reason": "ContainerCreating"}}, None),
        ({"waiting": {"reason": "CreateContainerConfigError", "message": 'secret "x" not found'}}, 'secret "x"'),
        ({"terminated": {"exitCode": 0, "message": "s3://logs: access denied"}}, "access denied"),
        ({"terminated": {"exitCode": 137, "reason": "OOMKilled"}}, "OOMKilled"),
    ],
)
def test_its_problems_are_noted_once_and_end_nothing(state: dict[str, Any], words: str | None) -> None:
    pod, task = observed(executor_0=RUNNING, logs=state), make_task(TaskSpec((TRUE,)))
    assert not pod.ended and pod.lost is None
    now = task.created_at
    shown = show(show(task, pod, now), pod, now)
    notes = [line for line in shown.log.system_logs if "whole output" in line]
    assert len(notes) == (0 if words is None else 1)
    if words is not None:
        assert words in notes[0] and shown.log.metadata[LOGS_INCOMPLETE] == "true"
