"""Whole logs on a cluster: seen while they are written, of short tasks, of killed pods, and with a store that refuses."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest
import urllib3

from tests.e2e.conftest import S3_PORT, S3_SECRET, Cluster, Installation, Json, installation
from tests.e2e.site import TASK_LABEL, shell

pytestmark = pytest.mark.timeout(600)
HTTP = urllib3.PoolManager(retries=False, timeout=urllib3.Timeout(60))
SETTINGS: Json = {"POIESIS_POLICY__GRACE": "3s", "POIESIS_POLICY__RETRY_DELAY": "1s"}


def store(prefix: str, **changed: Any) -> Json:
    values = {"url": f"s3://{prefix}", "endpoint": f"http://s3:{S3_PORT}", "existingSecret": S3_SECRET}
    return {"logs": values | changed, "settings": SETTINGS}


@pytest.fixture(scope="module")
def service(cluster: Cluster, image: str) -> Iterator[Installation]:
    with ExitStack() as stack:
        yield stack.enter_context(installation(cluster, image, **store("tasks/whole-logs")))


def address(service: Installation, task_id: str, path: str) -> str:
    return f"{service.url}/poiesis/v1/tasks/{task_id}/logs{path}"


def listed(service: Installation, task_id: str) -> dict[str, Json]:
    found: Json = HTTP.request("GET", address(service, task_id, "")).json()
    return {f"{e['attempt']}/{e['executor']}/{e['stream']}": e for e in found["logs"] if e["source"] == "store"}


def eventually(look: Callable[[], Any], seconds: float = 90) -> Any:
    end = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < end, "not in time"
        time.sleep(0.2)
    return found


def _all_four(service: Installation, task_id: str) -> dict[str, Json] | None:
    found = listed(service, task_id)
    return found if len(found) == 4 else None


def _all_complete(service: Installation, task_id: str) -> bool:
    return all(e["complete"] for e in listed(service, task_id).values())


def run(service: Installation, *executors: Json, **task: Any) -> str:
    return service.create({"executors": list(executors), **task})


def test_output_without_a_newline_is_followed_while_the_command_runs(service: Installation) -> None:
    script = r"""for i in 1 2 3 4 5; do printf '\r%s' $(date +%s); sleep 1; done"""
    task_id = run(service, shell(script))
    service.wait(task_id, ("RUNNING", "COMPLETE"))
    response = HTTP.request("GET", address(service, task_id, "/0/stdout?follow=true"), preload_content=False)
    text, delays = b"", []
    while piece := response.read1(1 << 16):
        text += piece
        delays.append(time.time() - int(piece.split(b"\r")[-1]))
    print(f"seen after {[f'{d:.1f}' for d in delays]} s (clocks of whole seconds)")
    assert text.count(b"\r") == 5
    assert max(delays[1:], default=0) < 4.5  # a second of the clock, two of the service, a busy machine


def test_the_logs_of_short_tasks_are_complete(service: Installation) -> None:
    ids = [run(service, shell(f"echo {i}; echo e{i} >&2"), shell("echo second")) for i in range(4)]
    for i, task_id in enumerate(ids):
        service.wait(task_id, ("COMPLETE",))
        logs = eventually(partial(_all_four, service, task_id))
        eventually(partial(_all_complete, service, task_id))
        assert not any(e["truncated"] for e in logs.values()), logs
        assert HTTP.request("GET", address(service, task_id, "/0/stdout")).data == f"{i}\n".encode()
        assert HTTP.request("GET", address(service, task_id, "/0/stderr")).data == f"e{i}\n".encode()
        assert HTTP.request("GET", address(service, task_id, "/1/stdout")).data == b"second\n"


def test_a_larger_log_is_whole_and_its_ranges_are_exact(service: Installation) -> None:
    task_id = run(service, shell("seq 1 3000000"))
    service.wait(task_id, ("COMPLETE",), 240)
    eventually(lambda: listed(service, task_id)["1/0/stdout"]["complete"])
    expected = b"".join(b"%d\n" % i for i in range(1, 3_000_001))
    assert HTTP.request("GET", address(service, task_id, "/0/stdout")).data == expected
    for start, end in ((0, 1), (8_388_600, 8_388_620), (12_345_678, 13_345_678), (len(expected) - 5, len(expected))):
        answer = HTTP.request(
            "GET", address(service, task_id, "/0/stdout"), headers={"Range": f"bytes={start}-{end - 1}"}
        )
        assert (answer.status, answer.data) == (206, expected[start:end])


def test_a_pod_that_is_killed_in_the_middle_leaves_the_part_so_far(service: Installation) -> None:
    task_id = run(service, shell("echo so far; sleep 600"))
    eventually(lambda: listed(service, task_id).get("1/0/stdout", {}).get("size") == 7)
    service.kubectl("delete", "pods", "-l", f"{TASK_LABEL}={task_id}", "--force", "--grace-period=0")
    eventually(lambda: listed(service, task_id).get("2/0/stdout", {}).get("size") == 7)
    assert HTTP.request("GET", address(service, task_id, "/0/stdout?attempt=1")).data == b"so far\n"
    followed = HTTP.request("GET", address(service, task_id, "/0/stdout?attempt=1&follow=true"))
    assert followed.data == b"so far\n"  # which ends, since nothing more can come
    service.call("POST", f"/tasks/{task_id}:cancel")
    service.wait(task_id, ("CANCELED",))
    assert HTTP.request("GET", address(service, task_id, "/0/stdout")).data == b"so far\n"


def test_a_store_that_refuses_fails_no_task_and_is_noted(installed: Callable[..., Installation]) -> None:
    service = installed(**store("NOT_a_bucket/logs"))  # for its admin, the test server makes a bucket that is missing
    task_id = run(service, shell("echo output; sleep 25"))
    task = service.wait(task_id, ("COMPLETE",), 180)
    assert task["logs"][0]["logs"][0]["stdout"] == "output\n"
    notes = [line for line in task["logs"][0]["system_logs"] if "whole output" in line]
    assert len(notes) == 1 and "bucket" in notes[0], task["logs"][0]["system_logs"]
