"""A second site: the staged layout, a separate namespace for tasks that enforces Pod Security `restricted`, executors as an unprivileged
user, no pokes, and a short schedule deadline."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping

import pytest

from tests.e2e.conftest import (
    OURS,
    PART,
    S3_PASSWORD,
    S3_PORT,
    S3_SECRET,
    S3_USER,
    Cluster,
    Installation,
    Json,
    installation,
)
from tests.e2e.site import (
    NOSHELL,
    Site,
    assert_not_hijacked,
    assert_nothing_left,
    codes,
    content,
    failure,
    hijack,
    one_log,
    post_all,
    posted,
    shell,
    site_of,
)

USER = 1234


def _tasks_namespace(cluster: Cluster, name: str) -> None:
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    cluster.kubectl(
        *("create", "-f", "-"),
        stdin=json.dumps({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}),
    )
    keys = {"AWS_ACCESS_KEY_ID": S3_USER, "AWS_SECRET_ACCESS_KEY": S3_PASSWORD}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": S3_SECRET, "labels": OURS}, "stringData": keys}
    cluster.kubectl("-n", name, "create", "-f", "-", stdin=json.dumps(secret))


@pytest.fixture(scope="module")
def strict(cluster: Cluster, image: str) -> Iterator[Installation]:
    where = f"poiesis-e2e-{secrets.token_hex(3)}-tasks"
    _tasks_namespace(cluster, where)
    storage = {"namespaceSelector": {}, "podSelector": {"matchLabels": OURS}}
    values: Json = {
        "tasks": {
            "namespace": where,
            "podSecurity": "restricted",
            "runAsUser": USER,
            "poke": {"enabled": False},
            "networkPolicy": {"extraEgress": [{"to": [storage], "ports": [{"protocol": "TCP", "port": S3_PORT}]}]},
        },
        "settings": {
            "POIESIS_POLICY__LAYOUT": "staged",
            "POIESIS_POLICY__SCHEDULE_DEADLINE": "5s",
            "POIESIS_POLICY__RECHECK": "2s",
        },
    }
    try:
        with installation(cluster, image, **values) as made:
            yield made
        left = cluster.kubectl(
            "-n", where, "get", "all,persistentvolumeclaims,secrets,roles,rolebindings", "-o", "name"
        )
        assert left.split() == [f"secret/{S3_SECRET}"], "the release leaves nothing in the namespace of tasks"
    finally:
        cluster.kubectl("delete", "namespace", where, "--wait=false", check=False)


@pytest.fixture(scope="module")
def site(strict: Installation) -> Iterator[Site]:
    with site_of(strict, tasks_in=strict.values["tasks"]["namespace"], web=False) as made:
        yield made


@pytest.fixture(scope="module")
def tasks_posted(request: pytest.FixtureRequest, site: Site) -> Iterator[Mapping[str, str]]:
    yield post_all(site, [i for i in request.session.items if getattr(i, "module", None) is request.module])
    assert_nothing_left(site)


def parts(site: Site, task: str) -> list[str]:
    """The parts of the task's pods, in the order of creation."""
    pods = sorted(site.pods.of(task).values(), key=lambda p: str(p["metadata"]["creationTimestamp"]))
    return [p["metadata"]["labels"]["poiesis/part"] for p in pods]


AWAY = "cut-off"  # a bucket whose store is only reachable through s3-away


def _store_of(bucket_leads: bool) -> Json:
    """The Service of the unreachable bucket: without a server behind it, or with one."""
    spec = {"ports": [{"port": S3_PORT, "targetPort": S3_PORT}], "selector": OURS if bucket_leads else {PART: "none"}}
    metadata = {"name": "s3-away", "labels": {PART: "web"}}
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}


@posted(
    lambda site: {
        "inputs": [content("/data/in", "in\n")],
        "executors": [shell("cat in > out; hostname >> out", workdir="/data")],
        "outputs": [{"path": "/data/out", "url": f"s3://{AWAY}/{site.run}/out"}],
    }
)
def test_only_the_upload_is_repeated_after_its_pod_is_lost(site: Site, task: str):
    """Its store is unreachable, so that the first upload lasts long enough to be deleted; this test runs before it gives up."""
    service = site.service
    client = service.s3.client()
    if not client.bucket_exists(AWAY):
        client.make_bucket(AWAY)
    service.kubectl("apply", "-f", "-", stdin=json.dumps(_store_of(False)))

    def uploader(part: str) -> str | None:
        found = [n for n, p in site.pods.of(task).items() if p["metadata"]["labels"]["poiesis/part"] == part]
        return found[0] if found else None

    first = site.until(lambda: uploader("tof"), 120, "no TOF pod was created")
    site.kubectl("delete", "pod", first, "--grace-period=0", "--force")
    second = site.until(lambda: uploader("tof-2"), 60, "no second TOF pod was created")
    service.kubectl("apply", "-f", "-", stdin=json.dumps(_store_of(True)))
    found = site.complete(task)
    log = one_log(found)
    with client.get_object(AWAY, f"{site.run}/out") as answer:
        assert answer.read() == f"in\npoiesis-{task}-1-executors\n".encode()
    assert (first, second) == (f"poiesis-{task}-1-tof", f"poiesis-{task}-1-tof-2")
    assert parts(site, task) == ["tif", "executors", "tof", "tof-2"]
    assert (log["metadata"]["uploads"], "attempts" in log["metadata"], len(log["outputs"])) == ("2", False, 1)
    assert any("The upload was interrupted and starts again" in line for line in log["system_logs"])
    site.assert_gone(task)


@posted(lambda site: hijack(site, "hijacked/staged"))
def test_an_upload_has_a_pod_without_the_tasks_commands(site: Site, task: str):
    """A listener in the executors' pod receives nothing of it."""
    found = site.complete(task)
    assert parts(site, task) == ["tif", "executors", "tof"]
    assert_not_hijacked(site, found, "hijacked/staged")


@posted(
    lambda site: {
        "inputs": [content("/data/in.txt", "in\n"), {"url": site.put("in", b"by s3\n"), "path": "/data/s3.txt"}],
        "executors": [
            shell("cat /data/in.txt /data/s3.txt > /work/out; id -u", workdir="/work", stdout="/work/user"),
            shell("echo more >> /work/out; echo x >> /data/in.txt; mkdir /work/dir; echo d > /work/dir/f"),
        ],
        "outputs": [
            {"path": "/work/out", "url": site.url("staged/out")},
            {"path": "/work/user", "url": site.url("staged/user")},
            {"path": "/work/dir", "url": site.url("staged/dir"), "type": "DIRECTORY"},
        ],
    }
)
def test_staging_and_commands_have_separate_pods_with_one_volume(site: Site, task: str):
    found = site.complete(task)
    assert codes(found) == [0, 0]
    assert site.got("staged/out") == b"in\nby s3\nmore\n"
    assert site.got("staged/user") == f"{USER}\n".encode()
    assert site.got("staged/dir/f") == b"d\n"
    assert parts(site, task) == ["tif", "executors", "tof"]
    site.assert_gone(task)


@posted(
    lambda site: {
        "executors": [shell("echo half > half; exit 3", workdir="/work")],
        "outputs": [{"path": "/work/half", "url": site.url("half")}],
    }
)
def test_outputs_are_stored_after_an_error_too(site: Site, task: str):
    found = site.wait(task, ("EXECUTOR_ERROR",))
    assert (codes(found), failure(found), site.got("half")) == ([3], "ExecutorFailed", b"half\n")
    assert parts(site, task) == ["executors", "tof"]


@posted(
    lambda site: {
        "volumes": ["/made"],
        "executors": [
            shell("id -u; touch here; ls", workdir="/made/for/it"),
            {"image": NOSHELL, "command": ["true"], "workdir": "/made/for/it"},
        ],
    }
)
def test_an_unprivileged_user_can_write_to_its_workdir(site: Site, task: str):
    found = site.complete(task)
    assert one_log(found)["logs"][0]["stdout"] == f"{USER}\nhere\n"
    assert parts(site, task) == ["executors"]


@pytest.mark.parametrize("workdir", ["/work", "/tmp", "/scratch/deep"])
@posted(
    lambda site, workdir: {
        "executors": [
            shell("id -u; touch here; ls", workdir=workdir),
            {"image": NOSHELL, "command": ["true"], "workdir": workdir},
        ]
    }
)
def test_the_usual_workdirs_need_no_volume(site: Site, task: str, workdir: str):
    found = site.complete(task)
    assert one_log(found)["logs"][0]["stdout"] == f"{USER}\nhere\n"
    assert parts(site, task) == ["executors"]


@posted(lambda site: {"inputs": [{"url": site.url("nothing"), "path": "/data/in"}], "executors": [shell("true")]})
def test_no_executor_pod_is_created_when_staging_in_fails(site: Site, task: str):
    found = site.wait(task, ("SYSTEM_ERROR",))
    assert (codes(found), failure(found)) == ([], "NotFound")
    assert parts(site, task) == ["tif"]


@posted(lambda site: {"resources": {"cpu_cores": 4000}, "executors": [shell("true")]})
def test_an_unschedulable_task_ends_at_the_schedule_deadline(site: Site, task: str):
    found = site.wait(task, ("SYSTEM_ERROR",))
    assert failure(found) == "Unschedulable"
    assert "cpu" in one_log(found)["metadata"]["failure_message"]


@posted(
    lambda site: {
        "inputs": [content("/data/in", "x")],
        "executors": [shell("sleep 600")],
        "outputs": [{"path": "/data/in", "url": site.url("never")}],
    }
)
def test_a_task_canceled_while_its_executor_pod_runs_leaves_nothing(site: Site, task: str):
    site.wait(task, ("RUNNING",))
    site.cancel(task)
    site.wait(task, ("CANCELED",), 30)
    site.assert_gone(task)
    assert site.got("never") is None
    assert "tof" not in parts(site, task)


def test_every_pod_complies_with_pod_security_restricted(site: Site, tasks_posted: Mapping[str, str]):
    site.until(lambda: len(site.pods.all()) >= len(tasks_posted), 120, "not all pods were seen")
    for pod in site.pods.all():
        for container in pod["spec"]["containers"]:
            security = container["securityContext"]
            assert (security["runAsNonRoot"], security["capabilities"]) == (True, {"drop": ["ALL"]})
            is_ours = container["name"] in ("tif", "tof")
            assert is_ours or security["runAsUser"] == USER


@posted(
    lambda site: {
        "executors": [shell("cat /home/u/unwritten; : > /home/u/empty")],
        "outputs": [
            {"path": f"/home/u/{name}", "url": site.put(f"placeholders/{name}", b"from an earlier task")}
            for name in ("unwritten", "empty")
        ],
    }
)
def test_only_outputs_that_a_command_wrote_replace_what_the_store_holds(site: Site, task: str):
    """The volume is mounted again between creating the placeholders and checking them."""
    found = site.wait(task, ("SYSTEM_ERROR",))
    assert (codes(found), failure(found)) == ([0], "OutputMissing")
    assert site.got("placeholders/unwritten") == b"from an earlier task"
    assert site.got("placeholders/empty") == b""
