"""Every way in which a task can fail, as a client sees it: state, exit code, reason, and remaining outputs."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from minio import Minio

from tests.e2e.conftest import Json
from tests.e2e.site import BUSYBOX, NOSHELL, Site, codes, content, failure, one_log, posted, shell, why

FOREVER = "while :; do sleep 0.2; done"
TAKEN_AWAY = ("PodDeleted", "Evicted", "PodTerminated")
"""What is observed first: the deletion of the pod, or the launcher's record that it was terminated."""


def allocates(megabytes: int) -> str:
    """A script that allocates this much memory."""
    return f"head -c {megabytes}000000 /dev/zero | tail -c {megabytes}000000 > /dev/null"


# ── the command ───────────────────────────────────────────────────────────────────────────────────────────────────────


@posted(
    lambda site: {
        "executors": [
            shell(
                "echo 4 > /work/half; echo out; echo complained >&2; exit 3", stdout="/work/.out", stderr="/work/.err"
            ),
            shell("echo never > /work/never"),
        ],
        "outputs": [
            {"path": f"/work/{name}", "url": site.url(f"failed/{name}")} for name in ("half", ".out", ".err", "never")
        ],
    }
)
def test_an_exit_code_ends_the_task_and_what_was_written_is_uploaded(site: Site, task: str):
    found = site.wait(task, ("EXECUTOR_ERROR",))
    assert codes(found) == [3], "the executor that never ran has no entry"
    assert (one_log(found)["logs"][0]["stdout"], one_log(found)["logs"][0]["stderr"]) == ("out\n", "complained\n")
    assert failure(found) == "ExecutorFailed"
    assert site.keys("failed/") == {"half": 2, ".out": 4, ".err": 11}
    assert any("/work/never" in line for line in one_log(found)["system_logs"]), "missing outputs are listed"


@pytest.mark.parametrize(("signal", "code"), [("KILL", 137), ("SEGV", 139), ("TERM", 143)])
@posted(lambda site, signal, code: {"executors": [shell(f"kill -{signal} $$")]})
def test_a_signal_is_128_and_its_number(site: Site, task: str, signal: str, code: int):
    found = site.wait(task, ("EXECUTOR_ERROR",))
    assert (codes(found), failure(found)) == ([code], "ExecutorFailed")


@pytest.mark.parametrize(
    ("of", "program", "code", "reason"),
    [
        (BUSYBOX, "no-such-program", 127, "CommandNotFound"),
        (NOSHELL, "sh", 127, "CommandNotFound"),
        (BUSYBOX, "/etc/passwd", 126, "CommandNotExecutable"),
    ],
)
@posted(lambda site, of, program, code, reason: {"executors": [{"image": of, "command": [program, "-c", "true"]}]})
def test_an_invalid_command(site: Site, task: str, of: str, program: str, code: int, reason: str):
    found = site.wait(task, ("EXECUTOR_ERROR",))
    assert (codes(found), failure(found)) == ([code], reason)
    assert program in why(found)
    assert program in one_log(found)["logs"][0]["stderr"]


@posted(lambda site: {"resources": {"ram_gb": 0.1}, "executors": [shell(allocates(300))]})
def test_out_of_memory_is_distinguished_from_other_failures(site: Site, task: str):
    found = site.wait(task, ("EXECUTOR_ERROR",))
    assert (codes(found), failure(found)) == ([137], "OutOfMemory")
    assert "0.1 GB" in why(found)


@posted(
    lambda site: {
        "resources": {"ram_gb": 0.1, "backend_parameters": {"memory_retries": "2"}},
        "executors": [shell(f"{allocates(140)} && echo it fits")],
    }
)
def test_out_of_memory_is_retried_with_more_memory_if_requested(site: Site, task: str):
    found = site.complete(task)
    log = one_log(found)
    assert (log["metadata"]["attempts"], codes(found), log["logs"][0]["stdout"]) == ("2", [0], "it fits\n")
    limits = [p["spec"]["containers"][0]["resources"]["limits"]["memory"] for p in site.pods.of(task).values()]
    assert sorted(limits) == ["100M", "200M"]


@posted(lambda site: {"resources": {"ram_gb": 0.1}, "executors": [shell(f"{allocates(300)} | wc -c; echo went on")]})
def test_an_oom_kill_in_a_pipeline_is_reported_although_the_task_is_complete(site: Site, task: str):
    found = site.ended(task)
    log = one_log(found)
    if found["state"] == "EXECUTOR_ERROR":  # cgroup v2: the kubelet lets the kernel end the whole container
        assert failure(found) == "OutOfMemory"
        return
    assert log["metadata"]["executor_0_oom_killed"] == "true"
    assert (found["state"], log["logs"][0]["stdout"]) == ("COMPLETE", "0\nwent on\n")
    assert any("killed for running out of memory" in line for line in log["system_logs"])


@posted(
    lambda site: {
        "resources": {"backend_parameters": {"time_limit": "2s"}},
        "executors": [shell(f"trap '' TERM; echo begun > /out/begun; {FOREVER}"), shell("true")],
        "volumes": ["/out"],
        "outputs": [{"path": "/out/begun", "url": site.url("limit")}],
    }
)
def test_a_time_limit_ends_even_a_command_that_ignores_sigterm(site: Site, task: str):
    found = site.wait(task, ("EXECUTOR_ERROR",))
    assert (codes(found), failure(found)) == ([137], "TimeLimit")
    assert site.got("limit") == b"begun\n"


# ── the image and the node ────────────────────────────────────────────────────────────────────────────────────────────


@posted(
    lambda site: {
        "executors": [
            shell(f"wget -q -O- {site.web}/count/{site.run}-wasted"),
            {"image": "localhost/poiesis-test/absent:1", "command": ["true"]},
        ]
    }
)
def test_a_missing_image_ends_the_task_before_any_command_runs(site: Site, task: str):
    found = site.wait(task, ("SYSTEM_ERROR",))
    assert (codes(found), failure(found)) == ([], "ImagePullFailed")
    assert "poiesis-test/absent" in why(found)
    assert "executor-1" in why(found)
    assert site.counted(f"{site.run}-wasted") == 0
    assert "attempts" not in one_log(found)["metadata"]


def test_an_invalid_image_name_is_rejected_at_once(site: Site):
    body = {"executors": [{"image": "Not/A/Reference", "command": ["true"]}]}
    status, document = site.service.call("POST", "/tasks", body)
    assert status == 400
    assert "$.executors[0].image" in str(document)


@posted(lambda site: {"resources": {"cpu_cores": 4000}, "executors": [shell("true")]})
def test_an_unschedulable_task_stays_queued_with_a_reason(site: Site, task: str):
    def reported() -> str | None:
        waiting: str | None = one_log(site.service.task(task))["metadata"].get("waiting_reason")
        return waiting

    reason = site.until(reported, 60, "no reason is shown")
    assert "cpu" in reason
    assert site.service.task(task, "MINIMAL")["state"] == "QUEUED"
    site.cancel(task)
    site.wait(task, ("CANCELED",))


# ── inputs and outputs ────────────────────────────────────────────────────────────────────────────────────────────────

INPUTS = {
    "no such key": ("s3://tasks/nothing/here", "NotFound", "nothing/here"),
    "no such bucket": ("s3://no-such-bucket-here/key", "NotFound", "no-such-bucket-here"),
    "bucket of others": ("s3://denied/key", "AccessDenied", "denied"),
    "http 404": ("{web}/nothing", "NotFound", "404"),
    "http 403": ("{web}/status/403", "AccessDenied", "403"),
    "metadata service": ("http://169.254.169.254/latest/meta-data", "AccessDenied", "169.254.169.254"),
}


def _with_input(site: Site, case: str) -> Json:
    return {
        "inputs": [{"url": INPUTS[case][0].format(web=site.web), "path": "/data/in"}],
        "executors": [shell(f"wget -q -O- {site.web}/count/{site.run}-{case.replace(' ', '-')}")],
    }


@pytest.mark.parametrize("case", INPUTS)
@posted(_with_input)
def test_an_unavailable_input(site: Site, task: str, case: str):
    found = site.wait(task, ("SYSTEM_ERROR",))
    _, reason, word = INPUTS[case]
    assert (codes(found), failure(found)) == ([], reason), why(found)
    assert word in why(found)
    assert any(word in line for line in one_log(found)["system_logs"])
    assert site.counted(f"{site.run}-{case.replace(' ', '-')}") == 0


@pytest.mark.parametrize("url", ["gopher://host/file", "file:///etc/passwd", "s3:///key"])
def test_an_unusable_url_is_rejected_at_once(site: Site, url: str):
    status, answer = site.service.call(
        "POST", "/tasks", {"inputs": [{"url": url, "path": "/data/in"}], "executors": [shell("true")]}
    )
    assert (status, [p["path"] for p in answer["problems"]]) == (400, ["$.inputs[0].url"])


@posted(
    lambda site: {
        "inputs": [{"url": f"{site.web}/later/{site.run}", "path": "/data/in"}],
        "executors": [shell("cat /data/in")],
    }
)
def test_a_transient_server_error_is_retried(site: Site, task: str):
    assert one_log(site.complete(task))["logs"][0]["stdout"] == "at last\n"


def _one_missing(site: Site, script: str) -> Json:
    return {
        "executors": [shell(f"echo 1 > /data/there; {script}")],
        "outputs": [
            {"path": "/data/there", "url": site.url(f"missing-{script.replace(' ', '')}/there")},
            {"path": "/data/missing", "url": site.url("missing/missing")},
        ],
    }


@posted(lambda site: _one_missing(site, "true"))
def test_a_missing_declared_output_is_an_error_with_its_path(site: Site, task: str):
    found = site.wait(task, ("SYSTEM_ERROR",))
    assert (codes(found), failure(found)) == ([0], "OutputMissing")
    assert "/data/missing" in why(found)
    assert site.got("missing-true/there") == b"1\n", "existing files are uploaded nevertheless"


IN_IMAGE_DIRECTORIES = ("/home/u/result.txt", "/opt/r", "/mnt/r", "/root/r", "/var/lib/r", "/etc/r")
"""Outputs here are mounted as files, for which TIF makes placeholders."""


@posted(
    lambda site: {
        "executors": [shell("true"), shell("cat " + " ".join(IN_IMAGE_DIRECTORIES))],
        "outputs": [
            {"path": path, "url": site.put(f"placeholders/{i}", b"from an earlier task")}
            for i, path in enumerate(IN_IMAGE_DIRECTORIES)
        ],
    }
)
def test_an_unwritten_output_in_an_image_directory_is_missing(site: Site, task: str):
    found = site.wait(task, ("SYSTEM_ERROR",))
    assert (codes(found), failure(found)) == ([0, 0], "OutputMissing")
    assert IN_IMAGE_DIRECTORIES[0] in why(found)
    assert not one_log(found)["outputs"]
    assert [site.got(f"placeholders/{i}") for i in range(len(IN_IMAGE_DIRECTORIES))] == [b"from an earlier task"] * len(
        IN_IMAGE_DIRECTORIES
    )


@posted(
    lambda site: {
        "executors": [shell(": > /home/u/empty; echo x > /etc/full")],
        "outputs": [
            {"path": "/home/u/empty", "url": site.put("written/empty", b"from an earlier task")},
            {"path": "/etc/full", "url": site.put("written/full", b"from an earlier task")},
        ],
    }
)
def test_an_output_in_an_image_directory_may_be_written_empty(site: Site, task: str):
    site.complete(task)
    assert (site.got("written/empty"), site.got("written/full")) == (b"", b"x\n")


@posted(lambda site: _one_missing(site, "exit 9"))
def test_a_missing_output_does_not_hide_an_executors_error(site: Site, task: str):
    found = site.wait(task, ("EXECUTOR_ERROR",))
    assert (codes(found), failure(found)) == ([9], "ExecutorFailed")
    assert any("/data/missing" in line for line in one_log(found)["system_logs"])


@pytest.mark.parametrize(("script", "state"), [("true", "SYSTEM_ERROR"), ("exit 4", "EXECUTOR_ERROR")])
@posted(
    lambda site, script, state: {
        "executors": [shell(f"echo 1 > /data/out; {script}")],
        "outputs": [{"path": "/data/out", "url": "s3://denied/out"}],
    }
)
def test_a_rejected_upload(site: Site, task: str, script: str, state: str):
    found = site.wait(task, (state,))
    assert codes(found) == [0 if script == "true" else 4]
    assert one_log(found)["outputs"] == []
    assert any("s3://denied/out" in line for line in one_log(found)["system_logs"])


@pytest.fixture
def unreachable_store(site: Site) -> Iterator[Minio]:
    """The object store of bucket `cut-off`, which tasks cannot reach until `site.set_unreachable(False)`."""
    client = site.service.s3.client()
    if not client.bucket_exists("cut-off"):
        client.make_bucket("cut-off")
    site.set_unreachable(True)
    yield client
    site.set_unreachable(True)


def test_an_unavailable_object_store_is_retried_until_the_deadline(site: Site, unreachable_store: Minio):
    from io import BytesIO

    run = site.run
    unreachable_store.put_object("cut-off", f"{run}/in", BytesIO(b"patience\n"), 9)
    output = [{"path": "/data/out", "url": f"s3://cut-off/{run}/out"}]
    waiting = site.post(
        {
            "inputs": [{"url": f"s3://cut-off/{run}/in", "path": "/data/in"}],
            "executors": [shell("cat /data/in > /data/out")],
            "outputs": output,
        }
    )
    uploads = {
        state: site.post(
            {
                "executors": [shell(f"echo 1 > /data/out; exit {code}")],
                "outputs": [{"path": "/data/out", "url": f"s3://cut-off/{run}/{code}"}],
            }
        )
        for state, code in (("SYSTEM_ERROR", 0), ("EXECUTOR_ERROR", 6))
    }
    given_up = site.wait(uploads["SYSTEM_ERROR"], ("SYSTEM_ERROR",))
    assert (codes(given_up), failure(given_up)) == ([0], "StorageUnavailable")
    found = site.wait(uploads["EXECUTOR_ERROR"], ("EXECUTOR_ERROR",))
    assert (codes(found), failure(found)) == ([6], "ExecutorFailed")
    assert not list(unreachable_store.list_objects("cut-off", f"{run}/0")), "no partial object"
    site.until(lambda: one_log(site.service.task(waiting))["metadata"].get("attempts"), 90, "the input is not retried")
    site.set_unreachable(False)
    found = site.complete(waiting)
    with unreachable_store.get_object("cut-off", f"{run}/out") as answer:
        assert answer.read() == b"patience\n"
    assert int(one_log(found)["metadata"]["attempts"]) >= 2
    assert codes(found) == [0]


# ── the infrastructure ────────────────────────────────────────────────────────────────────────────────────────────────


def _second_time(site: Site, name: str) -> Json:
    """Hangs in its first attempt, succeeds in its second."""
    ask = f"n=$(wget -q -O- {site.web}/count/{site.run}-{name}); echo attempt $n; "
    return {
        "inputs": [content("/data/in", "x")],
        "executors": [shell(ask + f'[ "$n" -ge 2 ] || {FOREVER}; cp /data/in /data/out')],
        "outputs": [{"path": "/data/out", "url": site.url(f"again/{name}")}],
    }


@posted(lambda site: _second_time(site, "deleted"))
def test_a_task_whose_pod_was_deleted_is_repeated_in_the_same_log(site: Site, task: str):
    site.until(lambda: site.counted(f"{site.run}-deleted"), 120, "it does not start")
    (name,) = site.pods.of(task)
    site.kubectl("delete", "pod", name, "--wait=false")
    found = site.complete(task)
    log = one_log(found)
    assert (log["metadata"]["attempts"], codes(found), log["logs"][0]["stdout"]) == ("2", [0], "attempt 2\n")
    assert any(reason in line for line in log["system_logs"] for reason in TAKEN_AWAY)
    assert site.got("again/deleted") == b"x"
    assert len(site.pods.of(task)) == 2
    assert site.counted(f"{site.run}-deleted") == 2, "once for each attempt"


@posted(lambda site: _second_time(site, "evicted"))
def test_a_task_whose_pod_was_evicted_is_repeated(site: Site, task: str):
    site.until(lambda: site.counted(f"{site.run}-evicted"), 120, "it does not start")
    (name,) = site.pods.of(task)
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": site.tasks_in}}
    path = f"/api/v1/namespaces/{site.tasks_in}/pods/{name}/eviction"
    site.kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(eviction))
    found = site.complete(task)
    assert (one_log(found)["metadata"]["attempts"], codes(found)) == ("2", [0])
    assert any(reason in line for line in one_log(found)["system_logs"] for reason in TAKEN_AWAY)


def test_a_pod_that_is_deleted_while_it_uploads_repeats_only_the_upload(site: Site, unreachable_store: Minio):
    counter = f"{site.run}-uploaded"
    task = site.post(
        {
            "inputs": [content("/data/in", "x")],
            "executors": [shell(f"wget -q -O- {site.web}/count/{counter} > /data/out")],
            "outputs": [{"path": "/data/out", "url": f"s3://cut-off/{site.run}/uploaded"}],
        }
    )

    def uploads() -> bool:
        statuses = [s for p in site.pods.of(task).values() for s in p["status"].get("containerStatuses", ())]
        return any(s["name"] == "executor-0" and "terminated" in s["state"] for s in statuses)

    site.until(uploads, 120, "its command does not end")
    (first,) = site.pods.of(task)
    site.kubectl("delete", "pod", first, "--wait=false")
    site.until(lambda: len(site.pods.of(task)) == 2, 60, "the upload is not repeated")
    site.set_unreachable(False)
    log = one_log(site.complete(task))
    with unreachable_store.get_object("cut-off", f"{site.run}/uploaded") as answer:
        assert (answer.read(), site.counted(counter)) == (b"1\n", 1)
    assert sorted(site.pods.of(task)) == [f"poiesis-{task}-1-task", f"poiesis-{task}-1-tof-2"]
    assert (log["metadata"]["uploads"], "attempts" in log["metadata"], len(log["outputs"])) == ("2", False, 1)
    assert any("The upload was interrupted and starts again" in line for line in log["system_logs"])
    site.assert_gone(task)


@posted(lambda site: {"executors": [shell(f"trap 'exit 0' TERM; {FOREVER}")]})
def test_attempts_are_counted_and_limited(site: Site, task: str):
    killed: set[str] = set()

    def look() -> bool:
        for name, pod in site.pods.of(task).items():
            if name not in killed and pod["status"].get("phase") == "Running":
                killed.add(name)
                site.kubectl("delete", "pod", name, "--wait=false", check=False)
        return site.service.task(task, "MINIMAL")["state"] == "SYSTEM_ERROR"

    site.until(look, 180, "it never ends")
    found = site.service.task(task)
    assert (len(killed), one_log(found)["metadata"]["attempts"]) == (3, "3")
    assert failure(found) in TAKEN_AWAY


def test_a_task_over_the_quota_waits_and_runs_when_there_is_room(site: Site):
    """The quota counts only pods with a deadline: in this namespace those of tasks with a time limit."""
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "none-that-end"},
        "spec": {"hard": {"pods": "0"}, "scopes": ["Terminating"]},
    }
    site.kubectl("apply", "-f", "-", stdin=json.dumps(quota))
    try:
        site.until(
            lambda: (
                json.loads(site.kubectl("get", "resourcequota", "none-that-end", "-o", "json"))
                .get("status", {})
                .get("hard")
            ),
            30,
            "the quota is not in force",
        )
        task = site.post(
            {"resources": {"backend_parameters": {"time_limit": "1h"}}, "executors": [shell("echo had room")]}
        )
        waiting = site.until(
            lambda: one_log(site.service.task(task))["metadata"].get("waiting_reason"), 60, "no reason is shown"
        )
        assert waiting.startswith("QuotaExceeded")
        assert site.service.task(task, "MINIMAL")["state"] == "QUEUED"
        assert site.pods.of(task) == {}
    finally:
        site.kubectl("delete", "resourcequota", "none-that-end", "--ignore-not-found")
    found = site.complete(task)
    assert one_log(found)["logs"][0]["stdout"] == "had room\n"
    assert "attempts" not in one_log(found)["metadata"]
