"""The task's volume: visibility and permissions."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import replace

import pytest

from poiesis.cluster.kubernetes.client import Client
from poiesis.cluster.kubernetes.errors import ApiError
from poiesis.domain.observed import TIF, TOF
from poiesis.domain.policy import Policy
from poiesis.domain.states import Stage
from poiesis.domain.task import Executor, FileType, Input, Output, TaskSpec
from tests.integration.kubernetes.conftest import Driver, busybox, eventually, make_namespace, settings, shell
from tests.integration.kubernetes.test_executors import record_of

IN = Input(path="/data/in.txt", url="s3://bucket/in.txt", type=FileType.FILE)
OUT = Output(path="/data/out.txt", url="s3://bucket/out.txt", type=FileType.FILE)


@pytest.fixture
def restricted(admin: Client, namespace: str) -> Iterator[Driver]:
    """In a namespace that enforces Pod Security `restricted`."""
    name = f"{namespace}-restricted"
    eventually(lambda: _made(admin, name), 60)
    # the default service account is created shortly after the namespace
    eventually(lambda: _exists(admin, f"/api/v1/namespaces/{name}/serviceaccounts/default"))
    made = Driver(settings(name, pod_security="restricted", run_as_user=1000, run_as_group=1000), Policy())
    yield made
    made.close()
    admin.delete(f"/api/v1/namespaces/{name}", {})


def _made(admin: Client, name: str) -> bool:
    try:
        make_namespace(admin, name, {"pod-security.kubernetes.io/enforce": "restricted"})
    except ApiError as error:
        assert error.status in (403, 409)
        return False
    return True


def _exists(admin: Client, path: str) -> bool:
    try:
        admin.get(path)
    except ApiError as error:
        assert error.status == 404
        return False
    return True


def test_inputs_outputs_and_reports(driver: Driver) -> None:
    spec = TaskSpec((shell("cat /data/in.txt > /data/out.txt"),), inputs=(IN,), outputs=(OUT,))
    task = driver.task(spec)
    driver.begin(task)
    observed = driver.until(task, lambda pod: pod.ended)
    assert {c.name for c in observed.pods[0].containers} == {TIF, "executor-0", TOF}
    assert all(c.record is not None and c.record.ok for c in observed.pods[0].containers), observed
    assert observed.reports[TOF].files[0].url == OUT.url and observed.reports[TIF].total_files == 1
    staged = json.loads(record_of(observed.pods[0], TOF).stderr)
    assert staged["inputs"][0]["url"] == IN.url


def test_everything_of_a_task_is_gone_after_its_volume(driver: Driver, admin: Client, namespace: str) -> None:
    task = driver.task(TaskSpec((shell("true"),), inputs=(IN,)))
    driver.begin(task)
    driver.until(task, lambda pod: pod.ended)
    core = f"/api/v1/namespaces/{namespace}"
    query = {"labelSelector": f"poiesis/task-id={task.id}"}
    kinds = ("pods", "persistentvolumeclaims", "secrets")
    assert [len(admin.get(f"{core}/{kind}", query)["items"]) for kind in kinds] == [1, 1, 1]
    driver.clean(task)
    eventually(lambda: not any(admin.get(f"{core}/{kind}", query)["items"] for kind in kinds))
    driver.cluster.delete_all(task.id, task.attempt)  # again: nothing to do


def test_executors_see_neither_documents_nor_the_whole_volume(driver: Driver) -> None:
    spec = TaskSpec((shell("ls -a /poiesis /poiesis/control; ls /data"),), inputs=(IN,))
    shown = record_of(driver.run(spec)).stdout
    assert "task" not in shown.splitlines() and "volume" not in shown.splitlines() and "in.txt" in shown


def test_volumes_are_shared_by_executors_of_any_user(driver: Driver) -> None:
    spec = TaskSpec(
        (
            shell("id -u; umask 077; echo first > a; chmod 644 a", workdir="/scratch/deep/er"),
            shell("cat /scratch/deep/er/a"),
        ),
        volumes=("/scratch",),
    )
    pod = driver.run(spec)
    assert record_of(pod, "executor-1").stdout == "first\n"


def test_an_unprivileged_user_writes_where_inputs_were_staged(namespace: str) -> None:
    made = Driver(settings(namespace, run_as_user=12345, run_as_group=12345), Policy())
    try:
        script = "id -u; cat in.txt > out.txt && echo more >> in.txt && mkdir new && touch /vol/x && ls -n"
        spec = TaskSpec((shell(script, workdir="/data"),), inputs=(IN,), outputs=(OUT,), volumes=("/vol",))
        pod = made.run(spec)
        record = record_of(pod)
        assert record.ok and record.stdout.startswith("12345\n"), record
        assert record_of(pod, TOF).ok
    finally:
        made.close()


def test_an_unprivileged_user_has_a_writable_workdir_without_any_input(namespace: str) -> None:
    made = Driver(settings(namespace, run_as_user=12345, run_as_group=12345), Policy())
    try:
        spec = TaskSpec(
            (
                shell("touch x && pwd", workdir="/work/a/b", stdout="/work/a/out.txt"),
                shell("cat /work/a/out.txt; touch /work/y"),
            ),
            volumes=("/work/a/b", "/work"),
        )
        pod = made.run(spec)
        assert record_of(pod, "executor-0").ok, pod
        assert record_of(pod, "executor-1").stdout == "/work/a/b\n", pod
    finally:
        made.close()


def test_a_single_file_in_a_directory_of_the_image(driver: Driver) -> None:
    conf = Input(path="/etc/app.conf", url="s3://bucket/conf", type=FileType.FILE)
    script = "mkdir -p /poiesis/volume/root/etc; echo staged > /poiesis/volume/root/etc/app.conf; echo '{\"files\":[]}'"
    changed = replace(driver.cluster.settings, filer_command=("sh", "-c", script, "filer"))
    made = Driver(changed, driver.policy)
    try:
        pod = made.run(TaskSpec((shell("cat /etc/app.conf; ls /etc/passwd"),), inputs=(conf,)))
        assert record_of(pod).stdout == "staged\n/etc/passwd\n"
        assert pod.containers[0].name == TIF and record_of(pod, TIF).ok
    finally:
        made.close()


def test_when_staging_in_fails_no_command_runs(driver: Driver) -> None:
    changed = replace(driver.cluster.settings, filer_command=("sh", "-c", "echo broken >&2; exit 1", "filer"))
    made = Driver(changed, driver.policy)
    try:
        pod = made.run(TaskSpec((busybox("true"),), inputs=(IN,), outputs=(OUT,)))
        assert record_of(pod, TIF).stderr == "broken\n" and not record_of(pod, TIF).ok
        assert record_of(pod, "executor-0").reason == "Skipped"
        assert record_of(pod, TOF).exit_code == 1  # ran: outputs of a failed task are uploaded too
    finally:
        made.close()


def test_streams_are_redirected_to_files(driver: Driver) -> None:
    first = shell("cat; echo err >&2", stdin="/data/in.txt", stdout="/o/out.txt", stderr="/o/err.txt")
    pod = driver.run(TaskSpec((first, shell("cat /o/out.txt /o/err.txt")), inputs=(IN,)))
    shown = record_of(pod, "executor-1").stdout
    assert '"inputs"' in shown and shown.endswith("err\n")


def test_a_large_document_is_split_into_several_secrets(driver: Driver, admin: Client, namespace: str) -> None:
    content = "x" * (1024 * 1024)
    script = (
        "cat /poiesis/task/tif.json.0 /poiesis/task/tif.json.1 /poiesis/task/tif.json.2 | wc -c; ls /poiesis/task >&2"
    )
    changed = replace(driver.cluster.settings, filer_command=("sh", "-c", script, "filer"))
    made = Driver(changed, driver.policy)
    try:
        inputs = tuple(Input(path=f"/data/{i}", content=content) for i in range(2))
        task = made.task(TaskSpec((busybox("true"),), inputs=inputs))
        made.begin(task)
        pod = made.until(task, lambda pod: pod.ended).pods[0]
        files = record_of(pod, TIF).stderr.split()
        assert files == ["filer.json", "hosts", "resolv.conf", "tif.json.0", "tif.json.1", "tif.json.2"]
        query = {"labelSelector": f"poiesis/task-id={task.id}"}
        secrets = admin.get(f"/api/v1/namespaces/{namespace}/secrets", query)["items"]
        size = sum(len(base64.b64decode(v)) for s in secrets for k, v in s["data"].items() if k.startswith("tif"))
        assert len(secrets) == 3 and size > 2 * 1024 * 1024
    finally:
        made.close()


def test_a_restricted_namespace_accepts_all_pods(restricted: Driver) -> None:
    spec = TaskSpec((shell("id -u; cp /data/in.txt /data/out.txt"),), inputs=(IN,), outputs=(OUT,))
    pod = restricted.run(spec)
    assert record_of(pod).stdout == "1000\n"
    assert [c for c in pod.containers if c.record is None or not c.record.ok] == []


def test_documents_for_a_deleted_volume_are_rejected(driver: Driver) -> None:
    from poiesis.domain.errors import ClusterRefused
    from poiesis.domain.plan import plan

    task = driver.task(TaskSpec((Executor(busybox().image, ("true",)),), inputs=(IN,)))
    with pytest.raises(ClusterRefused):
        driver.cluster.create_documents(replace(task, stage=Stage.STAGE_IN), plan(task.spec, driver.policy))
