"""The bytes of logs over HTTP: whole, in ranges to the byte, followed; and what a log's text cannot do to a browser."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from poiesis.api.extensions import logs as module
from poiesis.api.ranges import requested_range
from poiesis.api.server import BackgroundServer
from poiesis.config import ApiSettings
from poiesis.domain.errors import StorageUnavailable
from poiesis.domain.states import Stage, State
from poiesis.domain.task import ExecutorLog, TaskId, TaskLog
from poiesis.logstore.directory import DirectoryLogStore
from poiesis.ports.logs import LogRef, Stream
from tests.unit.api.service import Site, assert_error

BASE = "/poiesis/v1/tasks"
DATA = os.urandom(1_500_000)


class Given:
    def __init__(self, directory: Path, **site: Any) -> None:
        self.store = DirectoryLogStore(directory / "logs")
        self.directory = directory
        self.site = Site(logs=self.store, **site)
        self.task_id = self.site.create()
        self.size = 0

    def ref(self, stream: Stream = "stdout", attempt: int = 1) -> LogRef:
        return LogRef(TaskId(self.task_id), attempt, 0, stream)

    def add(self, data: bytes, stream: Stream = "stdout", attempt: int = 1) -> None:
        path = self.directory / "data"
        path.write_bytes(data)
        with path.open("rb") as file:
            self.store.write(self.ref(stream, attempt), self.size, file.fileno(), 0, len(data))
        self.size += len(data)

    def get(self, path: str = "0/stdout", **headers: str) -> Any:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.site.client.get(f"{BASE}/{self.task_id}/logs/{path}", headers=names)


@pytest.fixture
def given(tmp_path: Path) -> Given:
    return Given(tmp_path)


@pytest.fixture
def complete(given: Given) -> Given:
    for start in range(0, len(DATA), 400_000):
        given.add(DATA[start : start + 400_000])
    given.store.end(given.ref(), truncated=False)
    return given


def test_a_whole_log_and_its_headers(complete: Given) -> None:
    response = complete.get()
    assert response.status_code == 200 and response.content == DATA
    assert response.headers["content-length"] == str(len(DATA))
    assert response.headers["accept-ranges"] == "bytes"
    assert response.headers["etag"] == f'"1-0-stdout-{len(DATA)}"'
    assert response.headers["poiesis-log-complete"] == "true"
    assert response.headers["poiesis-log-truncated"] == "false"
    assert response.headers["poiesis-log-source"] == "store"


@pytest.mark.parametrize("path", ["0/stdout", "0/stdout?follow=true"])
def test_head_reads_nothing_of_a_log(complete: Given, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    whole = complete.get(path).headers
    monkeypatch.setattr("poiesis.services.logs.OpenLog.read", None)
    response = complete.site.client.head(f"{BASE}/{complete.task_id}/logs/{path}")
    assert response.status_code == 200 and not response.content
    assert {n: v for n, v in response.headers.items() if n != "x-request-id"} == {
        n: v for n, v in whole.items() if n != "x-request-id"
    }


def test_a_browser_never_runs_a_log(given: Given) -> None:
    given.add(b"<html><script>alert(1)</script>")
    for path in ("0/stdout", "0/stdout?follow=false&download=true"):
        headers = given.get(path).headers
        assert headers["content-type"] == "text/plain; charset=utf-8"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["content-security-policy"].startswith("sandbox; default-src 'none'")
        assert headers["cache-control"] == "no-store"
        assert headers["cross-origin-resource-policy"] == "same-origin"
    name = f"{given.task_id}-attempt-1-executor-0-stdout.txt"
    assert headers["content-disposition"] == f'attachment; filename="{name}"'


def test_the_list(complete: Given) -> None:
    document = complete.site.client.get(f"{BASE}/{complete.task_id}/logs").json()
    path = f"/poiesis/v1/tasks/{complete.task_id}/logs/0/stdout?attempt=1"
    assert document == {
        "whole": True,
        "logs": [
            {
                "attempt": 1, "executor": 0, "stream": "stdout", "size": len(DATA), "complete": True, "truncated": False,
                "source": "store", "path": path,
            }
        ],
    }  # fmt: skip
    assert complete.site.client.get(path).content == DATA


@pytest.mark.parametrize(
    ("header", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=0-99", 0, 100),
        ("bytes=399999-400000", 399_999, 400_001),
        ("bytes=100-", 100, len(DATA)),
        ("bytes=-1", len(DATA) - 1, len(DATA)),
        ("bytes=-5000000", 0, len(DATA)),
        ("bytes=1000000-99999999999999999999999", 1_000_000, len(DATA)),
        (f"bytes={len(DATA) - 1}-{len(DATA)}", len(DATA) - 1, len(DATA)),
        ("Bytes=5-6", 5, 7),
    ],
)
def test_a_range_is_exact_to_the_byte(complete: Given, header: str, start: int, end: int) -> None:
    response = complete.get(range=header)
    assert response.status_code == 206
    assert response.content == DATA[start:end]
    assert response.headers["content-range"] == f"bytes {start}-{end - 1}/{len(DATA)}"
    assert response.headers["content-length"] == str(end - start)


@pytest.mark.parametrize(
    "header",
    [
        "bytes=5-1",
        "bytes=",
        "bytes=-",
        "lines=0-1",
        "bytes=a-b",
        "bytes=0-1,5-6",
        "0-1",
        "bytes=\u0663-\u0664",
        "bytes=--1",
    ],
)
def test_other_ranges_are_ignored(complete: Given, header: str) -> None:
    response = complete.site.client.get(f"{BASE}/{complete.task_id}/logs/0/stdout", headers={"range": header.encode()})
    assert response.status_code == 200 and response.content == DATA


@pytest.mark.parametrize("header", [f"bytes={len(DATA)}-", "bytes=99999999999999999999999-", "bytes=-0"])
def test_a_range_without_a_byte_is_416_with_the_size(complete: Given, header: str) -> None:
    response = complete.get(range=header)
    assert_error(response, 416, "range_not_satisfiable")
    assert response.headers["content-range"] == f"bytes */{len(DATA)}"


def test_an_empty_log_has_no_range() -> None:
    from poiesis.api.errors import Refused

    for header in ("bytes=0-", "bytes=-1", "bytes=-99999999999999999999"):
        with pytest.raises(Refused):
            requested_range(header, 0)


def test_if_range_needs_the_same_representation(complete: Given) -> None:
    etag = complete.get(range="bytes=0-0").headers["etag"]
    assert complete.get(range="bytes=0-0", if_range=etag).status_code == 206
    for other in ('"other"', f"W/{etag}", "Sun, 29 Nov 2026 10:00:00 GMT"):
        assert complete.get(range="bytes=0-0", if_range=other).status_code == 200


def test_head_has_the_size_and_no_bytes(complete: Given) -> None:
    response = complete.site.client.head(f"{BASE}/{complete.task_id}/logs/0/stdout")
    assert (response.status_code, response.content) == (200, b"")
    assert response.headers["content-length"] == str(len(DATA))


def test_a_growing_log_is_answered_up_to_its_present_size_without_an_etag(given: Given) -> None:
    given.add(b"so far")
    response = given.get()
    assert response.content == b"so far" and "etag" not in response.headers
    assert response.headers["poiesis-log-complete"] == "false"


def test_an_earlier_attempt_has_its_own_log(given: Given) -> None:
    given.add(b"first")
    given.size = 0
    given.add(b"second", attempt=2)
    given.site.change(given.task_id, attempt=2)
    assert given.get().content == b"second"
    assert given.get("0/stdout?attempt=1").content == b"first"
    assert_error(given.get("0/stdout?attempt=3"), 404, "unknown_log")


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("1/stdout", 404),
        ("-1/stdout", 404),
        ("0/stdin", 404),
        ("x/stdout", 404),
        ("%D9%A0/stdout", 404),  # a digit, but not of ASCII
        ("999999999999999999999/stdout", 400),
        ("0/stdout/0000000000000000", 404),
        ("0/%2e%2e%2fstderr", 404),
        ("%2e%2e/stdout", 404),
        ("0/stdout?attempt=0", 400),
        ("0/stdout?attempt=../1", 400),
        ("0/stdout?offset=5", 400),
        ("0/stdout?follow=maybe", 400),
    ],
)
def test_tricks_in_names_are_refused(complete: Given, path: str, status: int) -> None:
    assert complete.get(path).status_code in (status, 404)


@pytest.mark.parametrize("task_id", ["..", "%2e%2e%2f%2e%2e", "0" * 26, "x", "A" * 26, "..%5c..%5cetc"])
def test_tricks_in_ids_are_unknown_tasks(complete: Given, task_id: str) -> None:
    for path in ("logs", "logs/0/stdout"):
        assert complete.site.client.get(f"{BASE}/{task_id}/{path}").status_code == 404


def test_without_a_log_store_the_tails_are_answered_and_said_to_be_tails() -> None:
    site = Site()
    task_id = site.create()
    site.change(task_id, state=State.RUNNING)
    site.change(task_id, state=State.COMPLETE, log=TaskLog(logs=(ExecutorLog(0, stdout="the end", stderr="é"),)))
    document = site.client.get(f"{BASE}/{task_id}/logs").json()
    assert document["whole"] is False
    assert [(each["source"], each["size"], each["truncated"]) for each in document["logs"]] == [
        ("tail", 2, True),
        ("tail", 7, True),
    ]
    response = site.client.get(f"{BASE}/{task_id}/logs/0/stdout", headers={"range": "bytes=4-"})
    assert (response.status_code, response.content) == (206, b"end")
    assert response.headers["poiesis-log-source"] == "tail"
    assert_error(site.client.get(f"{BASE}/{task_id}/logs/0/stdout?follow=true"), 400, "invalid_request")


def test_a_store_that_is_away_is_503(given: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: Any) -> Any:
        raise StorageUnavailable("s3://logs: no route to host")

    monkeypatch.setattr(given.store, "log", away)
    monkeypatch.setattr(given.store, "logs", away)
    assert_error(given.get(), 503, "storage_unavailable")
    assert_error(given.site.client.get(f"{BASE}/{given.task_id}/logs"), 503, "storage_unavailable")


# ── other users ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_logs_of_others_are_unknown(tmp_path: Path) -> None:
    import hashlib

    users = [
        {"name": name, "token_hash": "sha256$" + hashlib.sha256(name.encode()).hexdigest(), "admin": name == "root"}
        for name in ("ada", "eve", "root")
    ]
    (tmp_path / "users.json").write_text(json.dumps(users))
    store = DirectoryLogStore(tmp_path / "logs")
    site = Site(api=ApiSettings(auth=("bearer",), credentials_file=str(tmp_path / "users.json")), logs=store)
    task_id = site.create(headers={"Authorization": "Bearer ada"})
    (tmp_path / "data").write_bytes(b"private")
    with (tmp_path / "data").open("rb") as file:
        store.write(LogRef(TaskId(task_id), 1, 0, "stdout"), 0, file.fileno(), 0, 7)
    paths = ("logs", "logs/0/stdout", "logs/0/stdout?follow=true", "logs/9/stdout", "logs/0/stdout?attempt=9")
    for path in paths:
        url = f"{BASE}/{task_id}/{path}"
        assert_error(site.client.get(url), 401, "unauthenticated")
        refused = site.client.get(url, headers={"Authorization": "Bearer eve", "Range": "bytes=0-"})
        assert_error(refused, 404, "unknown_task")
    for name in ("ada", "root"):
        found = site.client.get(f"{BASE}/{task_id}/logs/0/stdout", headers={"Authorization": f"Bearer {name}"})
        assert found.content == b"private"


# ── followed ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Reader(threading.Thread):
    """A client that collects a followed log with the times of its pieces."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        import urllib3

        self.http = urllib3.PoolManager(retries=False, timeout=urllib3.Timeout(30))
        self.response = self.http.request("GET", url, preload_content=False)
        self.data, self.error = b"", ""
        self.start()

    def run(self) -> None:
        try:
            while piece := self.response.read1(1 << 20):
                self.data += piece
        except Exception as error:
            self.error = type(error).__name__

    def until(self, data: bytes, seconds: float = 5) -> None:
        end = time.monotonic() + seconds
        while self.data != data:
            assert time.monotonic() < end, (self.data[-50:], data[-50:])
            time.sleep(0.01)

    def close(self) -> None:
        self.response.close()
        self.http.clear()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Given, str]]:
    given = Given(tmp_path, validate_responses=False)
    with BackgroundServer(given.site.app, replace(given.site.api, port=0), timedelta(seconds=6)) as server:
        yield given, f"{server.url}{BASE}/{given.task_id}/logs/0/stdout?follow=true"


def test_a_followed_log_comes_while_it_grows_and_ends_with_it(served: tuple[Given, str]) -> None:
    given, url = served
    given.site.change(given.task_id, state=State.RUNNING)
    reader = Reader(url)
    assert reader.response.headers.get("content-length") is None
    expected = b""
    for piece in (b"one", b"\r two", DATA, b"end"):
        given.add(piece)
        expected += piece
        reader.until(expected)
    given.store.end(given.ref(), truncated=False)
    reader.join(5)
    assert not reader.is_alive() and reader.data == expected and not reader.error
    reader.close()


def test_follow_from_an_offset(served: tuple[Given, str]) -> None:
    given, url = served
    given.add(b"0123456789")
    given.store.end(given.ref(), truncated=False)
    for offset in (0, 4, 10, 11):
        reader = Reader(f"{url}&offset={offset}")
        reader.join(5)
        assert reader.data == b"0123456789"[offset:]
        reader.close()


def test_a_log_whose_pod_was_killed_ends_when_nothing_more_can_come(
    served: tuple[Given, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "OVER_EVERY_S", 0.2)
    given, url = served
    given.site.change(given.task_id, state=State.RUNNING)
    given.add(b"the part so far")
    reader = Reader(url)
    reader.until(b"the part so far")
    time.sleep(0.5)
    assert reader.is_alive()
    given.site.change(given.task_id, state=State.SYSTEM_ERROR, stage=Stage.DONE)
    reader.join(5)
    assert not reader.is_alive() and not reader.error
    reader.close()


def test_a_store_that_fails_breaks_the_response_off(served: tuple[Given, str], monkeypatch: pytest.MonkeyPatch) -> None:
    given, url = served
    given.add(b"part")
    reader = Reader(url)
    reader.until(b"part")

    def away(*_: Any) -> Any:
        raise StorageUnavailable("away")

    monkeypatch.setattr(given.store, "chunks", away)
    reader.join(5)
    assert not reader.is_alive() and reader.error  # not taken for the end
    reader.close()


def test_a_client_that_leaves_and_a_server_that_stops_end_it(served: tuple[Given, str]) -> None:
    given, url = served
    given.site.change(given.task_id, state=State.RUNNING)
    for _ in range(3):
        reader = Reader(url)
        given.add(b"x")
        reader.until(b"x" * given.size)
        reader.close()
    last = Reader(url)
    last.until(b"xxx")


def test_one_user_has_a_bounded_number_of_streams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_STREAMS_PER_USER", 2)
    given = Given(tmp_path, validate_responses=False)
    given.site.change(given.task_id, state=State.RUNNING)
    with BackgroundServer(given.site.app, replace(given.site.api, port=0), timedelta(seconds=6)) as server:
        url = f"{server.url}{BASE}/{given.task_id}/logs/0/stdout?follow=true"
        readers = [Reader(url) for _ in range(3)]
        assert [r.response.status for r in readers] == [200, 200, 429]
        assert readers[2].response.headers["retry-after"]
        for reader in readers:
            reader.close()
