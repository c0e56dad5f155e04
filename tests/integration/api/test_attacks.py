"""Attacks on a real server process: its memory is bounded and released, and other clients are served (docs/security.md)."""

from __future__ import annotations

import json
import select
import signal
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import requests

from poiesis.api import connections
from poiesis.api.credentials import hash_secret
from poiesis.api.server import BackgroundServer
from tests.integration.api.server_process import ServerProcess, established, guessing, server_process
from tests.unit.api.service import HELLO, Site

MIB = 1024 * 1024
BACK_TO_START = 1.25
"""RSS after an attack, as a multiple of that before: what the allocators keep of the code paths that ran for the first time."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """With short time-outs. Warm: every code path that a client takes has run."""
    times = {"header_timeout": "2s", "body_timeout": "2s", "idle_timeout": "5s"}
    with server_process(tmp_path_factory.mktemp("server"), times) as server:
        for _ in range(50):
            ask(server)
        yield server


def ask(server: ServerProcess) -> None:
    """A normal client, on a new connection."""
    created = requests.post(f"{server.url}/v1/tasks", json=HELLO, timeout=30)
    assert created.status_code == 200, created.text
    found = requests.get(f"{server.url}/v1/tasks/{created.json()['id']}?view=FULL", timeout=30)
    assert found.status_code == 200, found.text


def eventually(is_true: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def assert_back(server: ServerProcess, before: int) -> None:
    eventually(lambda: server.rss() < before * BACK_TO_START)


def head(size: int | None = None, path: str = "/v1/tasks") -> bytes:
    length = "Transfer-Encoding: chunked" if size is None else f"Content-Length: {size}"
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{length}\r\n\r\n".encode()


def closing(head: bytes) -> bytes:
    """Of the last request on a connection, as `urllib` sends it."""
    return head.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)


def error(received: bytes) -> dict[str, object]:
    """The JSON body of the last response."""
    head, _, body = received.rpartition(b"\r\n\r\n")
    assert b"content-type: application/json" in head.lower(), received[:500]
    document = json.loads(body)
    assert isinstance(document, dict)
    return document


class TestHeaders:
    @pytest.mark.parametrize(
        "parts",
        [
            [b"GET /v1/tasks HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"x" * 65_536] + [b"x" * MIB] * 300,
            [b"GET /v1/tasks HTTP/1.1\r\nHost: localhost\r\n"]
            + [b"".join(b"X-%07d: y\r\n" % i for i in range(50_000))] * 300,
            [b"GET /" + b"x" * 65_536] + [b"x" * MIB] * 300,
            [head(), b"1\r\n{\r\n0\r\n"] + [b"X-Trailer: " + b"y" * MIB] * 300,
            [head(), b"1;extension="] + [b"y" * MIB] * 300,
        ],
        ids=["one header", "many headers", "target", "trailers", "chunk extension"],
    )
    def test_of_300_mb_are_refused_early(self, server: ServerProcess, parts: list[bytes]) -> None:
        before = server.rss()
        peak = before
        with server.connect() as connection:
            try:
                for part in parts:
                    connection.sendall(part)
                    peak = max(peak, server.rss())
                raise AssertionError("the server accepted all of it")
            except ConnectionError:
                pass
        assert peak < before + 16 * MIB
        assert_back(server, before)

    @pytest.mark.parametrize(
        ("request_", "status"),
        [
            (b"GET /v1/tasks HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 40_000 + b"\r\n\r\n", 431),
            (b"GET /v1/tasks HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 300 + b"\r\n", 431),
            (b"GET /v1/tasks?" + b"x" * 40_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 414),
            (b"GET /v1/tasks HTTP/1.1\r\nHost: localhost\r\nX: a\0b\r\n\r\n", 400),
            (b"GET /v1/tasks HTTP/1.1\r\nHost: localhost\r\nX: a\x01b\r\n\r\n", 400),
            (b"GET /v1/tasks HTTP/1.1\r\nHost: localhost\r\nX y\r\n\r\n", 400),
            (b"GET /v1/tasks HTTP/1.1\r\n\r\n", 400),
            (b"GET /v1/tasks HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
            (b"GET /v1/\xff HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
            (b"GET //[ HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
            (b"GET http://[/ HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
            (b"FETCH /v1/tasks HTTP/1.1\r\nHost: localhost\r\n\r\n", 501),
            (b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
            (b"CONNECT localhost:1 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
            (b"GET /v1/tasks HTTP/9.9\r\nHost: localhost\r\n\r\n", 400),
            (b"nonsense\r\n\r\n", 501),
            (b"\x16\x03\x01\x02\x00\x01\x00", 501),
            (head()[:-2] + b"Content-Length: 3\r\n\r\n{}", 400),
            (head().replace(b"chunked", b"gzip, chunked") + b"2\r\n{}\r\n0\r\n\r\n", 501),
            (head().replace(b"chunked", b"gzip") + b"{}", 501),
            (head() + b"zz\r\n", 400),
            (head(7).replace(b"7", b"-7"), 400),
            (head(7).replace(b"7", b"9" * 5_000), 400),
            (b"GET /v1/ui/swagger-ui.css HTTP/1.1\r\nHost: localhost\r\nRange: bytes=5-2\r\n\r\n", 400),
            (b"DELETE /v1/tasks HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
            (b"GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
            (b"POST /v1/tasks HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
            (head(20_000_000), 413),
            (b"POST /v1/tasks HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\n{}", 415),
        ],
    )  # fmt: skip
    def test_that_are_wrong_are_answered_in_json(self, server: ServerProcess, request_: bytes, status: int) -> None:
        received = server.exchange(request_)

        assert received.startswith(b"HTTP/1.1 %d " % status), received[:500]
        document = error(received)
        assert document["status"] == status
        assert isinstance(document["message"], str) and document["message"]


class TestBodies:
    def test_twelve_large_tasks_leave_nothing(self, server: ServerProcess) -> None:
        before = server.rss()
        content = [{"path": f"/data/{i}", "content": "x" * 65_000} for i in range(125)]
        task = json.dumps({**HELLO, "inputs": content}).encode()
        assert len(task) > 8_000_000

        def post(_: int) -> int:
            headers = {"Content-Type": "application/json"}
            return requests.post(f"{server.url}/v1/tasks", data=task, headers=headers, timeout=60).status_code

        with ThreadPoolExecutor(12) as threads:
            statuses = threads.map(post, range(12))
            ask(server)
            assert set(statuses) == {200}
        assert_back(server, before)

    def test_stalled_ones_are_bounded_and_closed(self, server: ServerProcess) -> None:
        before = server.rss()
        with ExitStack() as stack:
            for _ in range(20):
                connection = stack.enter_context(server.connect(timeout_s=30))
                connection.setblocking(False)
                connection.send(head(8_000_000))
                try:
                    for _ in range(7):
                        connection.send(b" " * MIB)
                except BlockingIOError:
                    pass  # the server stops reading it
            peak = 0
            for _ in range(5):
                ask(server)
                peak = max(peak, server.rss())
            assert peak < before + 40 * MIB
            eventually(lambda: server.open_connections() == 0, 60)
        assert_back(server, before)

    def test_slow_ones_of_one_user_do_not_keep_another_waiting(self, server: ServerProcess) -> None:
        """Without authentication an address is a user."""
        task = json.dumps({**HELLO, "inputs": [{"path": "/data/x", "content": "x" * 100_000}]}).encode()
        with ExitStack() as stack:
            slow = [stack.enter_context(server.connect()) for _ in range(4)]
            for connection in slow:
                connection.sendall(head(8_000_000) + b" " * 128 * 1024)
                connection.setblocking(False)
            source = ("127.0.0.9", 0)
            other = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 60, source_address=source))
            other.sendall(head(len(task)) + task)
            while not select.select([other], [], [], 0.5)[0]:
                for connection in slow:
                    connection.send(b" " * 16 * 1024)  # as slowly as is allowed

            assert other.recv(65_536).startswith(b"HTTP/1.1 200 ")
            for connection in slow:
                with pytest.raises(BlockingIOError):  # none has been answered: nothing waited for its time-out
                    connection.recv(1)

    def test_a_stalled_one_is_answered_with_408(self, server: ServerProcess) -> None:
        received = server.exchange(head(100) + b"{")

        assert received.startswith(b"HTTP/1.1 408 ")
        assert error(received)["error"] == "request_timeout"

    def test_one_that_is_too_large_is_answered_although_its_client_closes_the_connection(
        self, server: ServerProcess
    ) -> None:
        """The client sends all of it before it reads: closing at once would reset the connection, and the response with it."""
        with server.connect() as connection:
            connection.sendall(closing(head(30 * MIB)))
            for _ in range(30):
                connection.sendall(b" " * MIB)
            received = b"".join(iter(lambda: connection.recv(65_536), b""))

        assert received.startswith(b"HTTP/1.1 413 ")
        assert error(received)["error"] == "body_too_large"

    def test_the_rest_of_one_that_is_refused_has_a_time_out(self, server: ServerProcess) -> None:
        with server.connect() as connection:
            connection.sendall(closing(head(30 * MIB)) + b" ")
            received = b"".join(iter(lambda: connection.recv(65_536), b""))

        assert received.startswith(b"HTTP/1.1 413 ")

    def test_nothing_after_the_last_request_is_answered(self, server: ServerProcess) -> None:
        task_id = requests.post(f"{server.url}/v1/tasks", json=HELLO, timeout=30).json()["id"]
        state = requests.get(f"{server.url}/v1/tasks/{task_id}", timeout=30).json()["state"]
        with server.connect() as connection:
            connection.sendall(closing(head(12 * MIB)))
            received = connection.recv(65_536)
            connection.sendall(b" " * 12 * MIB + head(0, f"/v1/tasks/{task_id}:cancel"))
            received += b"".join(iter(lambda: connection.recv(65_536), b""))

        assert received.count(b"HTTP/1.1 ") == 1
        assert requests.get(f"{server.url}/v1/tasks/{task_id}", timeout=30).json()["state"] == state

    def test_a_body_cut_off_is_not_a_task(self, server: ServerProcess) -> None:
        url = f"{server.url}/v1/tasks?page_size=2047"
        count = len(requests.get(url, timeout=30).json()["tasks"])
        task = json.dumps(HELLO).encode()
        with server.connect() as connection:
            connection.sendall(head(len(task) + 10) + task)
            connection.shutdown(socket.SHUT_RDWR)
        ask(server)

        assert len(requests.get(url, timeout=30).json()["tasks"]) == count + 1


class TestConnections:
    @pytest.mark.parametrize("sent", [b"", b"GET /v1/tasks HT", b"GET /v1/tasks HTTP/1.1\r\nHost: local"])
    def test_that_are_silent_or_half_sent_are_closed(self, server: ServerProcess, sent: bytes) -> None:
        before = server.rss()
        with ExitStack() as stack:
            for _ in range(200):
                stack.enter_context(server.connect()).sendall(sent)
            ask(server)
            eventually(lambda: server.open_connections() == 0)
        assert_back(server, before)

    def test_that_drip_are_closed(self, server: ServerProcess) -> None:
        with server.connect() as connection:
            begin = time.monotonic()
            with pytest.raises(ConnectionError):
                while time.monotonic() < begin + 30:
                    connection.sendall(b"G" if time.monotonic() < begin + 1 else b"E")
                    time.sleep(0.2)

    def test_half_sent_heads_are_answered_with_408(self, server: ServerProcess) -> None:
        received = server.exchange(b"GET /v1/tasks HT")

        assert received.startswith(b"HTTP/1.1 408 ")
        assert error(received)["error"] == "request_timeout"

    def test_that_do_not_read_their_responses_are_closed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(connections, "WRITE_TIMEOUT_S", 0.5)
        site = Site(validate_responses=False)
        for _ in range(2):
            site.create({**HELLO, "inputs": [{"path": f"/data/{i}", "content": "x" * 100_000} for i in range(40)]})
        request = b"GET /v1/tasks?view=FULL HTTP/1.1\r\nHost: localhost\r\n\r\n"
        with (
            BackgroundServer(site.app, replace(site.api, port=0)) as server,
            socket.create_connection(("127.0.0.1", server.port), timeout=30) as silent,
            socket.create_connection(("127.0.0.1", server.port), timeout=30) as reader,
        ):
            silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            silent.sendall(request)
            received = 0
            reader.sendall(request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
            while chunk := reader.recv(MIB):
                received += len(chunk)
            assert received > 8_000_000

            eventually(lambda: not established(server.port))  # although nothing was read

    def test_responses_that_clients_do_not_read_are_bounded(self, server: ServerProcess) -> None:
        inputs = [{"path": f"/data/{i}", "content": "x" * 100_000} for i in range(75)]
        created = requests.post(f"{server.url}/v1/tasks", json={**HELLO, "inputs": inputs}, timeout=60).json()
        request = f"GET /v1/tasks/{created['id']}?view=FULL HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        before = peak = server.rss()
        with ExitStack() as stack:
            for _ in range(60):  # 450 MB, and as much again
                connection = stack.enter_context(server.connect())
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                connection.sendall(request * 2)
            deadline = time.monotonic() + 60
            while server.open_connections() > 30 and time.monotonic() < deadline:
                peak = max(peak, server.rss())
                ask(server)
            assert server.open_connections() <= 30  # whose 64 MiB and kernel buffers are kept
        assert peak < before + 300 * MIB
        eventually(lambda: server.rss() < before + 40 * MIB)

    def test_pipelined_requests_are_bounded(self, server: ServerProcess) -> None:
        before = server.rss()
        request = b"GET /v1/tasks HTTP/1.1\r\nHost: localhost\r\n\r\n"
        with ExitStack() as stack:
            for _ in range(100):
                stack.enter_context(server.connect()).sendall(request * 5_000)
            assert server.rss() < before + 16 * MIB
            ask(server)
        received = server.exchange(request * 3, timeout_s=1)
        assert received.count(b"HTTP/1.1 200 ") == 3

    def test_that_are_aborted_while_they_are_answered_leave_no_trace(self, tmp_path: Path) -> None:
        request = b"GET /v1/tasks HTTP/1.1\r\nHost: localhost\r\n\r\n"
        with server_process(tmp_path, {}) as server:
            for _ in range(10):
                server.exchange(request * 50, timeout_s=5)
            ask(server)
        assert "Traceback" not in (tmp_path / "server.log").read_text()

    def test_above_the_limit_replace_those_that_wait_longest(self, tmp_path: Path) -> None:
        limits = {"max_connections": 40, "max_connections_per_address": 20}
        with server_process(tmp_path, limits) as server, ExitStack() as stack:
            first = stack.enter_context(server.connect())
            for _ in range(100):
                stack.enter_context(server.connect()).sendall(b"GET /v1")
            ask(server)

            assert server.open_connections() <= 20
            assert first.recv(1) == b""

    def test_above_the_limit_are_refused_while_all_are_busy(self, tmp_path: Path) -> None:
        with server_process(tmp_path, {"max_connections_per_address": 5}) as server, ExitStack() as stack:
            for _ in range(5):
                stack.enter_context(server.connect()).sendall(head(100) + b"{")
            eventually(lambda: server.exchange(b"", timeout_s=1).startswith(b"HTTP/1.1 503 "))

    def test_of_a_trusted_proxy_do_not_count_as_one_address(self, tmp_path: Path) -> None:
        limits = {"max_connections_per_address": 5, "trusted_proxies": "127.0.0.0/8"}
        with server_process(tmp_path, limits) as server, ExitStack() as stack:
            for _ in range(20):
                stack.enter_context(server.connect()).sendall(b"GET /v1")
            ask(server)
            eventually(lambda: server.open_connections() == 20)


def test_the_process_ends_within_its_grace_period_while_a_request_computes(tmp_path: Path) -> None:
    with server_process(tmp_path, {}, grace_s=2) as server:
        task = json.dumps({**HELLO, "name": "compute forever"}).encode()
        with server.connect() as connection:
            connection.sendall(head(len(task)) + task)
            ask(server)
            server.process.send_signal(signal.SIGTERM)

            assert server.process.wait(60) == 1
        assert "in create" in (tmp_path / "server.log").read_text()


class TestLogins:
    def test_48_connections_with_wrong_passwords_do_not_slow_down_a_user(self, tmp_path: Path) -> None:
        """Compared in turns with a server that is not attacked, since the machine may be busy."""
        users = [{"name": "ada", "password_hash": hash_secret("right", "basic")}]
        (tmp_path / "users.json").write_text(json.dumps(users))
        settings = {"auth": "basic", "credentials_file": tmp_path / "users.json"}
        directories = [tmp_path / name for name in ("attacked", "control")]
        for directory in directories:
            directory.mkdir()
        with (
            server_process(directories[0], settings) as attacked,
            server_process(directories[1], settings) as control,
            requests.Session() as session,
        ):
            self._get(session, attacked)
            with guessing(attacked, 48) as statuses:
                seconds, pace = [], threading.Event()
                for _ in range(150):
                    seconds.append((self._get(session, attacked), self._get(session, control)))
                    pace.wait(0.02)

        medians = [statistics.median(column) for column in zip(*seconds, strict=True)]
        assert medians[0] < 2 * medians[1], (medians, statuses)
        assert set(statuses) == {"401", "429"}
        assert statuses["401"] < 20 < statuses["429"]

    def _get(self, session: requests.Session, server: ServerProcess) -> float:
        found = session.get(f"{server.url}/v1/tasks", auth=("ada", "right"), timeout=60)
        assert found.status_code == 200, found.text
        return found.elapsed.total_seconds()
