"""Request ids and the audit."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import urllib3

from poiesis import metrics
from poiesis.api import audit
from poiesis.api.audit import AuditLog
from poiesis.api.credentials import hash_secret
from poiesis.api.server import BackgroundServer
from poiesis.config import ApiSettings
from poiesis.domain.errors import ConfigurationError, RepositoryUnavailable
from poiesis.domain.states import State
from poiesis.observability import BoundIdsFilter
from tests.unit.api.service import HELLO, Site, assert_error

ADA = {"Authorization": "Bearer ada-token"}
EVE = {"Authorization": "Bearer eve-token"}


class TestRequestIds:
    def test_one_is_made_and_is_in_the_header_and_the_error(self, site: Site) -> None:
        first, second = site.get("/tasks/x"), site.get("/tasks/x")
        assert len(first.headers["x-request-id"]) == 32
        assert first.headers["x-request-id"] != second.headers["x-request-id"]
        assert assert_error(first, 404)["request_id"] == first.headers["x-request-id"]

    @pytest.mark.parametrize("given", ["a", "Root=1-67891233-abcdef012345678912345678", "x" * 128])
    def test_that_of_the_client_is_kept(self, site: Site, given: str) -> None:
        response = site.get("/tasks/x", headers={"X-Request-Id": given})
        assert response.headers["x-request-id"] == given == response.json()["request_id"]

    @pytest.mark.parametrize("given", ["", " ", "x" * 129, 'a"b', "a b", "a\tb", "<script>", "a,b", b"\xff\xfe"])
    def test_one_that_is_not_well_formed_is_replaced(self, site: Site, given: str | bytes) -> None:
        response = site.get(
            "/tasks/x", headers=[(b"X-Request-Id", given if isinstance(given, bytes) else given.encode())]
        )
        assert len(response.headers["x-request-id"]) == 32

    def test_two_are_replaced(self, site: Site) -> None:
        response = site.get("/tasks/x", headers=[("X-Request-Id", "a"), ("X-Request-Id", "b")])
        assert len(response.headers["x-request-id"]) == 32

    @pytest.mark.parametrize("path", ["/ga4gh/tes/v1/service-info", "/healthz", "/nowhere", "/ga4gh/tes/v1/nowhere"])
    def test_every_response_has_one(self, site: Site, path: str) -> None:
        assert site.client.get(path, headers={"X-Request-Id": "abc"}).headers["x-request-id"] == "abc"

    def test_log_lines_of_the_request_have_it_also_those_of_threads(
        self, site: Site, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def failing(*_: object, **__: object) -> None:
            logging.getLogger("store").warning("in_thread")
            raise RepositoryUnavailable("away")

        task_id = site.create()
        monkeypatch.setattr(site.repository, "summary", failing)
        caplog.handler.addFilter(BoundIdsFilter())
        site.get(f"/tasks/{task_id}", headers={"X-Request-Id": "abc"})
        ids = {
            r.getMessage(): getattr(r, "request_id", None)
            for r in caplog.records
            if r.name in ("store", "poiesis.api.errors")
        }
        assert ids == {"in_thread": "abc", "unavailable": "abc"}


@pytest.fixture
def stream(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


@pytest.fixture
def audited(tmp_path: Path, stream: Path) -> Iterator[Site]:
    credentials = tmp_path / "credentials.json"
    credentials.write_text(
        json.dumps([{"name": name, "token_hash": hash_secret(f"{name}-token", "bearer")} for name in ("ada", "eve")])
    )
    log = AuditLog(str(stream))
    site = Site(
        ApiSettings(auth=("bearer", "api_key"), credentials_file=str(credentials), max_body_bytes=2000), audit=log
    )
    yield site
    log.close()


def lines(stream: Path, count: int) -> list[dict[str, Any]]:
    deadline = time.monotonic() + 10
    while len(found := stream.read_bytes().splitlines()) < count and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(found) == count
    return [json.loads(line) for line in found]


class TestAudit:
    def test_a_create_and_a_cancel_are_recorded_with_user_and_task(self, audited: Site, stream: Path) -> None:
        task_id = audited.create(headers=ADA | {"X-Request-Id": "abc"})
        audited.post(f"/tasks/{task_id}:cancel", headers=ADA)
        create, cancel = lines(stream, 2)
        assert create["request_id"] == "abc"
        assert (create["user"], create["operation"], create["task"], create["status"], create["result"]) == (
            "ada", "CreateTask", task_id, 200, "ok",
        )  # fmt: skip
        assert create["address"] == "testclient" and create["event"] == "audit" and create["time"]
        assert (cancel["operation"], cancel["task"]) == ("CancelTask", task_id)

    def test_each_task_that_a_request_for_many_cancels_has_a_line(self, audited: Site, stream: Path) -> None:
        mine, ended, foreign = (audited.create(headers=user) for user in (ADA, ADA, EVE))
        audited.change(ended, state=State.CANCELED)
        lines(stream, 3)
        for body in ({"ids": [mine, ended, foreign, "x"], "dry_run": True}, {"ids": [mine, ended, foreign, "x"]}):
            audited.client.post("/poiesis/v1/tasks:cancel", json=body, headers=ADA)
        dry, request, task = lines(stream, 6)[3:]
        assert "task" not in dry and "task" not in request
        assert task["task"] == mine
        same = ("request_id", "user", "auth", "address", "operation", "status", "result")
        assert [task[name] for name in same] == [request[name] for name in same]

        more = [audited.create({**HELLO, "name": "many"}, headers=ADA) for _ in range(3)]
        audited.client.post(
            "/poiesis/v1/tasks:cancel", json={"filter": {"name_prefix": "many"}, "limit": 2}, headers=ADA
        )
        assert [line.get("task") for line in lines(stream, 12)[9:]] == [None, *sorted(more)[:0:-1]]

    def test_a_rerun_is_recorded_with_its_task(self, audited: Site, stream: Path) -> None:
        original = audited.create(headers=ADA)
        answer = audited.client.post(f"/poiesis/v1/tasks/{original}:rerun", headers=ADA)
        rerun = lines(stream, 2)[1]
        assert rerun["task"] == answer.json()["id"] and original in rerun["path"]

    def test_reads_that_succeed_are_not(self, audited: Site, stream: Path) -> None:
        audited.get("/tasks", headers=ADA)
        audited.get("/service-info")
        audited.get("/tasks", headers={})
        assert [line["status"] for line in lines(stream, 1)] == [401]

    def test_what_comes_back_from_a_provider_is_recorded_without_its_code(self, tmp_path: Path, stream: Path) -> None:
        log = AuditLog(str(stream))
        issuer = {
            "url": "https://login.example.org",
            "name": "example",
            "audiences": ["poiesis"],
            "browser_client": "poiesis",
        }
        site = Site(ApiSettings(auth=("oidc",), oidc_issuers=json.dumps([issuer])), audit=log)
        site.client.get("/ui/login/oidc/example/callback?code=secret&state=x", follow_redirects=False)
        [line] = lines(stream, 1)
        log.close()
        assert (line["operation"], line["status"], line["result"]) == ("LogIn", 303, "login_pending")
        assert "secret" not in stream.read_text()

    def test_each_kind_of_refusal_is_recorded(self, audited: Site, stream: Path) -> None:
        task_id = audited.create(headers=ADA)
        audited.get("/tasks", headers={"Authorization": "Bearer wrong"})
        audited.get(f"/tasks/{task_id}", headers=EVE)
        audited.post("/tasks", {"executors": []}, headers=ADA)
        audited.post("/tasks", b"x" * 3000, headers=ADA)
        audited.post("/tasks", HELLO, headers=ADA | {"Origin": "https://evil.example"})
        found = [(line["status"], line["result"], line.get("user")) for line in lines(stream, 6)[1:]]
        assert found == [
            (401, "unauthenticated", None),
            (404, "unknown_task", "eve"),
            (400, "invalid_task", "ada"),
            (413, "body_too_large", None),  # refused before the user is known
            (403, "forbidden", None),
        ]

    def test_no_secret_is_recorded(self, audited: Site, stream: Path) -> None:
        audited.get("/tasks?api_key=s3cr3t", headers={"Authorization": "Bearer s3cr3t", "Cookie": "s3cr3t"})
        audited.post("/tasks", {"executors": [{"image": "s3cr3t"}]}, headers=ADA)
        lines(stream, 2)
        assert b"s3cr3t" not in stream.read_bytes()

    @pytest.mark.parametrize(("proxies", "expected"), [((), "127.0.0.1"), (("127.0.0.1",), "203.0.113.7")])
    def test_the_address_is_that_of_a_header_only_from_trusted_proxies(
        self, stream: Path, proxies: tuple[str, ...], expected: str
    ) -> None:
        settings = ApiSettings(port=0, trusted_proxies=proxies)
        with BackgroundServer(Site(settings, audit=AuditLog(str(stream))).app, settings) as server:
            headers = {"X-Forwarded-For": "198.51.100.1, 203.0.113.7", "Forwarded": "for=198.51.100.2"}
            urllib3.request("POST", f"{server.url}/ga4gh/tes/v1/tasks", json={}, headers=headers)
        (line,) = lines(stream, 1)
        assert line["address"] == expected

    def test_fields_are_bounded_and_a_line_is_one_line(self, audited: Site, stream: Path) -> None:
        audited.get("/tasks/" + "x%0Ay%1B" * 500)
        (line,) = lines(stream, 1)
        assert len(line["path"]) == audit.MAX_TEXT
        assert len(stream.read_bytes()) < audit.MAX_WRITE_BYTES

    def test_a_full_disk_stops_nothing_and_is_reported(
        self, audited: Site, stream: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        real, full = os.write, threading.Event()
        full.set()

        def write(descriptor: int, data: bytes) -> int:
            if full.is_set():
                raise OSError(28, "No space left on device")
            return real(descriptor, data)

        before = metrics.AUDIT_LOST._value.get()
        monkeypatch.setattr(os, "write", write)
        audited.create(headers=ADA)
        _wait(lambda: metrics.AUDIT_LOST._value.get() == before + 1)
        full.clear()
        task_id = audited.create(headers=ADA)
        assert [line["task"] for line in lines(stream, 1)] == [task_id]
        reports = [r for r in caplog.records if r.getMessage() == "audit_lost"]
        assert [r.__dict__["reason"] for r in reports] == ["No space left on device"]

    def test_a_line_after_a_torn_one_begins_on_its_own(
        self, audited: Site, stream: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real, failures = os.write, iter([OSError(28, "full")])

        def write(descriptor: int, data: memoryview) -> int:
            if (error := next(failures, None)) is not None:
                real(descriptor, data[:10])
                monkeypatch.setattr(os, "write", lambda *_: (_ for _ in ()).throw(error))
                return 10
            return real(descriptor, data)

        monkeypatch.setattr(os, "write", write)
        before = metrics.AUDIT_LOST._value.get()
        audited.create(headers=ADA)
        _wait(lambda: metrics.AUDIT_LOST._value.get() == before + 1)
        monkeypatch.setattr(os, "write", real)
        audited.create(headers=ADA)
        _wait(lambda: stream.read_bytes().count(b"\n") == 2)
        assert json.loads(stream.read_bytes().splitlines()[1])["operation"] == "CreateTask"

    def test_a_reader_that_stops_holds_up_no_request(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        fifo = tmp_path / "fifo"
        os.mkfifo(fifo)
        reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        log = AuditLog(str(fifo))
        began = time.thread_time()  # without the time that other processes take
        for _ in range(25_000):
            log.write({"path": "x" * 200})
        assert time.thread_time() - began < 5
        assert log._waiting_bytes <= audit.MAX_WAITING_BYTES
        assert [r.__dict__["reason"] for r in caplog.records] == ["the reader or the disk is too slow"]
        os.close(reader)

    def test_a_file_that_was_moved_away_is_opened_again(self, audited: Site, stream: Path) -> None:
        audited.create(headers=ADA)
        lines(stream, 1)
        stream.rename(stream.with_suffix(".1"))
        audited.create(headers=ADA)
        _wait(stream.exists)
        assert len(lines(stream, 1)) == len(lines(stream.with_suffix(".1"), 1)) == 1
        assert stream.stat().st_mode & 0o777 == 0o600

    def test_what_waits_is_written_at_the_end(self, stream: Path) -> None:
        log = AuditLog(str(stream))
        for i in range(1000):
            log.write({"task": str(i)})
        log.close()
        assert [line["task"] for line in lines(stream, 1000)] == [str(i) for i in range(1000)]

    def test_a_file_that_cannot_be_opened_is_an_error_at_the_start(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match=r"cannot write the audit to .*missing/a"):
            AuditLog(str(tmp_path / "missing" / "a"))

    @pytest.mark.parametrize("value", ["", "file.jsonl", "STDOUT"])
    def test_an_invalid_target_is_refused(self, value: str) -> None:
        with pytest.raises(ConfigurationError, match="POIESIS_API__AUDIT"):
            ApiSettings(audit=value)


def _wait(condition: Any) -> None:
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()
