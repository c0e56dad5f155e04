"""A small TES 1.0 server without extensions, in this process: what other implementations serve, with faults on request.

It ignores filters that TES 1.0 does not have, shows only id and state in the view MINIMAL (as Funnel and TESK do), has an empty
`next_page_token` at the end of a list, and answers other paths with its web page.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import ssl
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

Document = dict[str, Any]
Response = tuple[int, dict[str, str], bytes]

PREFIX = "/v1"
WAY = ("QUEUED", "INITIALIZING", "RUNNING")


class PlainTesServer:
    """`reads_until_end`: how often a task is read before it has ended. `fault` may answer a request instead: (method, path) → response."""

    def __init__(self, *, reads_until_end: int = 6, certificate: Path | None = None) -> None:
        self.tasks: dict[str, Document] = {}
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.fault: Callable[[str, str], Response | None] = lambda method, path: None
        self.delay_s = 0.0
        self.drip_s = 0.0  # after each byte of a body
        self.reads_until_end = reads_until_end
        self._reads: dict[str, int] = {}
        self._numbers = itertools.count(1)
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        scheme = "http"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._http.socket = context.wrap_socket(self._http.socket, server_side=True)
            scheme = "https"
        self.url = f"{scheme}://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def __enter__(self) -> PlainTesServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, task: Document) -> str:
        task_id = f"plain-{next(self._numbers)}"
        self.tasks[task_id] = {
            **task,
            "id": task_id,
            "state": "QUEUED",
            "creation_time": "2026-03-02T08:15:30.123456789Z",
        }
        return task_id

    def end(self, task_id: str) -> None:
        """As the last argument of its command says: `fail`, or anything else."""
        task = self.tasks[task_id]
        has_failed = task["executors"][0]["command"][-1] == "fail"
        task["state"] = "EXECUTOR_ERROR" if has_failed else "COMPLETE"
        output = {"exit_code": 3} if has_failed else {}  # Funnel leaves 0 out
        words = " ".join(task["executors"][0]["command"])
        task["logs"] = [{"logs": [{"stdout": f"{words}\n", "stderr": "noise\x1b[2J\n", **output}], "outputs": []}]

    # ── requests ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _answer(self, method: str, target: str, body: bytes) -> Response:
        parts = urlsplit(target)
        query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
        if not parts.path.startswith(f"{PREFIX}/"):
            return 404, {"Content-Type": "text/html"}, b"<html>not found</html>"
        path = parts.path.removeprefix(PREFIX)
        if path == "/tasks/service-info" or path == "/service-info":
            return _json({"name": "plain", "doc": "TES 1.0", "storage": []})
        if path == "/tasks":
            return _json({"id": self.add(json.loads(body))}) if method == "POST" else _json(self._page(query))
        task_id, _, verb = path.removeprefix("/tasks/").partition(":")
        if task_id not in self.tasks:
            return _json({"error": "task not found"}, 404)
        if verb == "cancel":
            self.tasks[task_id]["state"] = "CANCELED"
            return _json({})
        return _json(_view(self._read(task_id), query.get("view", "MINIMAL")))

    def _read(self, task_id: str) -> Document:
        task = self.tasks[task_id]
        if task["state"] in WAY:
            count = self._reads[task_id] = self._reads.get(task_id, 0) + 1
            task["state"] = WAY[min(len(WAY) - 1, count * len(WAY) // max(1, self.reads_until_end))]
            if count >= self.reads_until_end:
                self.end(task_id)
        return task

    def _page(self, query: dict[str, str]) -> Document:
        size = int(query.get("page_size", "256"))
        start = int(query.get("page_token") or "0")
        ids = list(self.tasks)[start : start + size]
        more = start + size < len(self.tasks)
        tasks = [_view(self.tasks[task_id], query.get("view", "MINIMAL")) for task_id in ids]
        return {"tasks": tasks, "next_page_token": str(start + size) if more else ""}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                outer.requests.append((self.command, self.path, dict(self.headers)))
                time.sleep(outer.delay_s)
                path = urlsplit(self.path).path
                status, headers, data = outer.fault(self.command, path) or outer._answer(self.command, self.path, body)
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(data))}.items():
                    self.send_header(name, value)
                self.end_headers()
                if not outer.drip_s:
                    self.wfile.write(data)
                    return
                with contextlib.suppress(OSError):
                    for byte in data:
                        self.wfile.write(bytes([byte]))
                        time.sleep(outer.drip_s)

            do_POST = do_GET

            def log_message(self, *_: object) -> None:
                pass

        return Handler


def _view(task: Document, view: str) -> Document:
    if view == "MINIMAL":
        return {"id": task["id"], "state": task["state"]}
    return task


def _json(document: Document, status: int = 200) -> Response:
    return status, {"Content-Type": "application/json"}, json.dumps(document).encode()


def failing(
    status: int, headers: dict[str, str] | None = None, *, times: int = 1_000_000, body: bytes = b""
) -> Callable[[str, str], Response | None]:
    """A `fault` for so many requests below /tasks."""
    left = [times]

    def fault(method: str, path: str) -> Response | None:
        if not path.startswith(f"{PREFIX}/tasks") or left[0] == 0:
            return None
        left[0] -= 1
        return status, headers or {}, body

    return fault
