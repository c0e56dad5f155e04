"""Whole logs of a real service on one machine: followed while they are written, exact ranges, flat memory, and kills in the middle.

POIESIS_TEST_LOG_BYTES is the size of the large log: `make large-log` uses a gigabyte.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import urllib3

from tests.integration.embedded.service import HTTP, Service, command_line, eventually, processes_of, request, sh
from tests.servers import S3Server

SIZE = int(os.environ.get("POIESIS_TEST_LOG_BYTES", "60000000"))
LATENCY_S = 2.0
MEMORY_BYTES = 40_000_000  # what a role may grow by, whatever the size of a log

Make = Callable[..., Service]


class Follower(threading.Thread):
    """Reads a log while it grows and compares it with `expected` piece by piece."""

    def __init__(self, url: str, expected: Callable[[int], bytes]) -> None:
        super().__init__(daemon=True)
        self.http = urllib3.PoolManager(retries=False, timeout=urllib3.Timeout(120))
        self.response = self.http.request("GET", url, preload_content=False)
        assert self.response.status == 200, self.response.read()
        self.size, self.wrong = 0, ""
        self.at: list[tuple[float, bytes]] = []
        self._expected = expected
        self.start()

    def run(self) -> None:
        try:
            while piece := self.response.read1(1 << 20):
                if piece != self._expected(len(piece)):
                    self.wrong = f"different bytes after {self.size}"
                    return
                self.size += len(piece)
                if len(self.at) < 1000:
                    self.at.append((time.time(), piece))
        except Exception as error:
            self.wrong = f"{type(error).__name__}: {error}"


@pytest.fixture(params=["directory", "s3"])
def service(make_service: Make, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Service]:
    variables = {"POIESIS_LOGS__URL": f"file://{tmp_path}/logs"}
    if request.param == "s3":
        s3: S3Server = request.getfixturevalue("s3_server")
        variables = {
            "POIESIS_LOGS__URL": f"s3://{s3.bucket}/logs",
            "POIESIS_LOGS__ENDPOINT": s3.endpoint,
            "POIESIS_LOGS__ACCESS_KEY": s3.access_key,
            "POIESIS_LOGS__SECRET_KEY": s3.secret_key,
        }
    with make_service(**variables) as made:
        yield made


def log_url(service: Service, task_id: str, query: str = "", stream: str = "stdout") -> str:
    return f"{service.url}/poiesis/v1/tasks/{task_id}/logs/0/{stream}{query}"


def listed(service: Service, task_id: str) -> dict[str, Any]:
    document = request("GET", f"{service.url}/poiesis/v1/tasks/{task_id}/logs").document
    assert document["whole"]
    return {f"{entry['executor']}/{entry['stream']}": entry for entry in document["logs"]}


def memory(pid: int) -> int:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("RssAnon:")[2].split()[0]) * 1024


def test_output_without_a_newline_is_seen_within_two_seconds(service: Service) -> None:
    script = r"""i=0; while [ $i -lt 5 ]; do printf '\r%s ' "$(date +%s.%N)"; i=$((i+1)); sleep 1; done"""
    task_id = service.post({"executors": [sh(script)]})
    service.wait(task_id, "RUNNING", "COMPLETE")
    text = b""
    delays = []
    http = urllib3.PoolManager(retries=False)
    response = http.request("GET", log_url(service, task_id, "?follow=true"), preload_content=False)
    while piece := response.read1(1 << 16):
        text += piece
        now = time.time()
        if stamp := piece.strip().split(b"\r")[-1].strip():
            delays.append(now - float(stamp))
    assert text.count(b"\r") == 5
    print(f"seen after {[f'{d:.2f}' for d in delays]} s")
    assert max(delays) < LATENCY_S + 1.0, delays  # a busy machine
    entry = listed(service, task_id)["0/stdout"]
    assert entry["complete"] and not entry["truncated"] and entry["size"] == len(text)


@pytest.mark.timeout(1200)  # a gigabyte takes minutes on a busy machine
def test_a_large_log_is_followed_while_it_is_written(service: Service, tmp_path: Path) -> None:
    expected = tmp_path / "expected"
    lines = SIZE // 10
    with expected.open("wb") as file:
        subprocess.run(["seq", "-f", "%09.0f", str(lines)], stdout=file, check=True)
    size = expected.stat().st_size
    before = memory(service.pid)
    task_id = service.post({"executors": [sh(f"sleep 1; seq -f %09.0f {lines}")]})
    service.wait(task_id, "RUNNING", "COMPLETE")
    with expected.open("rb") as file:
        began = time.monotonic()
        follower = Follower(log_url(service, task_id, "?follow=true"), file.read)
        most = 0
        ended_at = 0.0
        while follower.is_alive() and time.monotonic() - began < 900:
            most = max(most, memory(service.pid))
            if not ended_at and service.state(task_id) == "COMPLETE":
                ended_at = time.monotonic()
            time.sleep(0.05)
        follower.join(1)
    assert not follower.is_alive() and not follower.wrong, follower.wrong
    assert follower.size == size
    print(f"{size} bytes followed in {time.monotonic() - began:.1f} s; memory {before} + {most - before}")
    assert most - before < MEMORY_BYTES
    entry = listed(service, task_id)["0/stdout"]
    assert (entry["size"], entry["complete"], entry["truncated"]) == (size, True, False)
    check_ranges(service, task_id, expected)
    assert memory(service.pid) - before < MEMORY_BYTES


def check_ranges(service: Service, task_id: str, expected: Path) -> None:
    size, pick = expected.stat().st_size, random.Random(12)
    with expected.open("rb") as file:
        for _ in range(60):
            start = pick.choice([pick.randrange(size), pick.randrange(0, size, 8 << 20)])
            end = min(size, start + pick.choice([1, 2, 100, 65_537, 3_000_000]))
            answer = HTTP.request(
                "GET", log_url(service, task_id), headers={"Range": f"bytes={start}-{end - 1}"}, timeout=60
            )
            file.seek(start)
            assert answer.status == 206 and answer.data == file.read(end - start), (start, end)
            assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/{size}"


def test_a_command_that_is_killed_in_the_middle_leaves_the_part_so_far(service: Service) -> None:
    task_id = service.post({"executors": [sh("echo so far; echo problem >&2; sleep 600")]})
    eventually(lambda: listed(service, task_id).get("0/stdout", {}).get("size") == 7 or None, "the first line")
    (launcher,) = [p for p in processes_of(service.directory) if command_line(p).startswith("/poiesis/launcher")][:1]
    os.kill(launcher, signal.SIGKILL)
    service.wait(task_id, "SYSTEM_ERROR", "RUNNING", "COMPLETE", "EXECUTOR_ERROR")
    eventually(lambda: listed(service, task_id)["0/stdout"]["complete"] or None, "the end of the log")
    assert HTTP.request("GET", log_url(service, task_id, "?attempt=1")).data == b"so far\n"
    assert HTTP.request("GET", log_url(service, task_id, "?attempt=1", "stderr")).data == b"problem\n"
    service.cancel(task_id)


def test_a_service_that_is_killed_continues_the_log_after_its_restart(service: Service) -> None:
    script = "head -c 9000000 /dev/zero; echo one; while [ ! -e /tmp/never ]; do sleep 3; echo two; break; done; sleep 2; echo three"
    task_id = service.post({"executors": [sh(script)]})
    eventually(lambda: listed(service, task_id).get("0/stdout", {}).get("size") == 9_000_004 or None, "one")
    service.kill()
    time.sleep(4)
    service.start()
    service.wait(task_id, "COMPLETE")
    eventually(lambda: listed(service, task_id)["0/stdout"]["complete"] or None, "the end of the log")
    assert HTTP.request("GET", log_url(service, task_id)).data == bytes(9_000_000) + b"one\ntwo\nthree\n"


def test_a_dead_store_fails_and_delays_no_task(make_service: Make) -> None:
    variables = {
        "POIESIS_LOGS__URL": "s3://bucket/logs",
        "POIESIS_LOGS__ENDPOINT": "http://127.0.0.1:9",
        "POIESIS_LOGS__FINISH": "1s",
        "POIESIS_LOGS__ACCESS_KEY": "a",
        "POIESIS_LOGS__SECRET_KEY": "b",
    }
    with make_service(**variables) as service:
        began = time.monotonic()
        task = service.run(sh("echo output"))
        assert task["state"] == "COMPLETE" and time.monotonic() - began < 20
        assert task["logs"][0]["logs"][0]["stdout"] == "output\n"
        answer = request("GET", log_url(service, task["id"]))
        assert answer.status == 503
        service.assert_nothing_is_left()
