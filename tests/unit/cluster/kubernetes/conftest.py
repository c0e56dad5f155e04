"""Tasks to build objects from, and a scripted API server."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from kubernetes.client import Configuration

from poiesis.cluster.kubernetes.client import Client
from poiesis.cluster.kubernetes.settings import KubernetesSettings
from poiesis.domain.states import Stage
from poiesis.domain.task import Task, TaskId, TaskSpec

TASK_ID = TaskId("0pgfkqhb3o9ek1qmlgpsrchc2k")


def make_task(spec: TaskSpec, **changes: Any) -> Task:
    known: dict[str, Any] = {
        "id": TASK_ID,
        "spec": spec,
        "created_at": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        "nonce": "n0nce",
        "stage": Stage.RUN,
        "part": "task",
    }
    return Task(**(known | changes))


class Answer:
    """What the server says to one request: a JSON body, or for a stream `lines` sent one by one; `cut` closes in the middle."""

    def __init__(
        self,
        body: object = None,
        *,
        status: int = 200,
        headers: dict[str, str] | None = None,
        lines: list[bytes] | None = None,
        cut: bool = False,
        hold: threading.Event | None = None,
    ) -> None:
        self.body = body
        self.status = status
        self.headers = headers or {}
        self.lines = lines
        self.cut = cut
        self.hold = hold


class Request:
    def __init__(self, method: str, path: str, query: dict[str, str], body: Any) -> None:
        self.method = method
        self.path = path
        self.query = query
        self.body = body

    def __repr__(self) -> str:
        return f"{self.method} {self.path} {self.query}"


class ApiServer:
    """`answer(request)` decides; every request is kept in `requests`. No answer (None) closes the connection."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.answer: Callable[[Request], Answer | None] = lambda request: Answer(
            status=404, body={"reason": "NotFound"}
        )
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                url = urlsplit(self.path)
                length = int(self.headers.get("Content-Length") or 0)
                text = self.rfile.read(length)
                request = Request(
                    self.command, url.path, dict(parse_qsl(url.query)), json.loads(text) if text else None
                )
                outer.requests.append(request)
                answer = outer.answer(request)
                if answer is None:
                    self.close_connection = True
                    return
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                if answer.lines is not None:
                    self._stream(answer)
                    return
                body = answer.body.encode() if isinstance(answer.body, str) else json.dumps(answer.body).encode()
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def _stream(self, answer: Answer) -> None:
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                for line in answer.lines or []:
                    self.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")
                    self.wfile.flush()
                if answer.hold is not None:
                    answer.hold.wait(20)
                if answer.cut:
                    self.close_connection = True
                    return
                self.wfile.write(b"0\r\n\r\n")

            do_GET = do_POST = do_PUT = do_DELETE = handle_any

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                """A client that went away."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def server() -> Iterator[ApiServer]:
    made = ApiServer()
    yield made
    made.close()


@pytest.fixture
def settings() -> KubernetesSettings:
    return KubernetesSettings(namespace="tasks")


@pytest.fixture
def slept() -> list[float]:
    return []


@pytest.fixture
def client(server: ApiServer, settings: KubernetesSettings, slept: list[float]) -> Iterator[Client]:
    """Never really sleeps; jitter is 1.0 times."""
    made = Client(settings, Configuration(host=server.url, retries=0), sleep=slept.append, jitter=lambda: 0.5)
    yield made
    made.close()


def pod_json(
    name: str = f"poiesis-{TASK_ID}-1-task",
    *,
    task_id: str = TASK_ID,
    version: int = 1,
    containers: dict[str, dict[str, Any]] | None = None,
    phase: str = "Pending",
    node: str | None = "node1",
    status: dict[str, Any] | None = None,
    metadata: dict[str, Any] | None = None,
    part: str = "task",
    attempt: int = 1,
) -> dict[str, Any]:
    """A pod as the API server shows it; `containers`: name → state."""
    states = {"executor-0": {"waiting": {"reason": "ContainerCreating"}}} if containers is None else containers
    labels = {
        "app.kubernetes.io/managed-by": "poiesis",
        "app.kubernetes.io/instance": "poiesis",
        "app.kubernetes.io/component": "task",
        "poiesis/task-id": task_id,
        "poiesis/attempt": str(attempt),
        "poiesis/part": part,
    }
    return {
        "metadata": {
            "name": name,
            "uid": f"uid-{name}",
            "resourceVersion": str(version),
            "creationTimestamp": "2026-01-02T03:04:05Z",
            "labels": labels,
            **(metadata or {}),
        },
        "spec": {"containers": [{"name": n} for n in states], **({"nodeName": node} if node else {})},
        "status": {
            "phase": phase,
            "containerStatuses": [{"name": n, "state": s} for n, s in states.items()],
            **(status or {}),
        },
    }
