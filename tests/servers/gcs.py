"""Google Cloud Storage: fake-gcs-server, from the Go module proxy or PATH, behind a proxy for writes by the XML API.

The emulator reads and lists by the XML API as the store does, but accepts an upload only with a signed URL, and not in parts. The proxy
rewrites uploads, keeps the parts of one until it is completed, and passes everything else on.
"""

from __future__ import annotations

import hashlib
import json
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote

import pytest
import urllib3

from tests.servers.emulators import program
from tests.servers.process import HOST, running

SERVICE_ACCOUNT = {"client_email": "", "private_key": "", "private_key_id": "", "disable_oauth": True}


@dataclass(frozen=True)
class GcsServer:
    endpoint: str
    bucket: str = ""
    requests: list[str] = field(default_factory=list, compare=False)
    """Requests to the proxy: method and path."""
    uploads: dict[str, dict[int, bytes]] = field(default_factory=dict, compare=False)
    """Parts of incomplete uploads, by upload."""
    failures: list[int] = field(default_factory=list, compare=False)
    """Statuses of the next responses."""

    def service_account(self) -> str:
        """Content of the file that GOOGLE_SERVICE_ACCOUNT names: it makes a client send no token."""
        return json.dumps({**SERVICE_ACCOUNT, "gcs_base_url": self.endpoint})

    def put(self, name: str, data: bytes) -> None:
        path = f"/upload/storage/v1/b/{self.bucket}/o?uploadType=media&name={quote(name, safe='')}"
        self.request("POST", path, data, {"content-type": "application/octet-stream"})

    def names(self) -> set[str]:
        found = json.loads(self.request("GET", f"/storage/v1/b/{self.bucket}/o?maxResults=5000"))
        return {item["name"] for item in found.get("items", ())}

    def request(self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> bytes:
        with urllib3.PoolManager(timeout=30, retries=False) as pool:
            answer = pool.request(method, self.endpoint + path, body=body, headers=headers)
        if answer.status >= 300:
            raise RuntimeError(f"{method} {path}: {answer.status} {answer.data[:300]!r}")
        return answer.data

    def make_bucket(self, name: str) -> None:
        body = json.dumps({"name": name}).encode()
        self.request("POST", "/storage/v1/b?project=test", body, {"content-type": "application/json"})


class _Front(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _FrontServer

    def log_message(self, *_: object) -> None:
        pass

    def _handle(self) -> None:
        body = self._body()
        state = self.server.state
        state.requests.append(f"{self.command} {self.path}")
        if state.failures:
            self._answer(state.failures.pop(0), b"")
            return
        path, _, query = self.path.partition("?")
        asked = parse_qs(query, keep_blank_values=True)
        upload = asked.get("uploadId", [""])[0]
        if self.command == "POST" and "uploads" in asked:
            upload = uuid.uuid4().hex
            state.uploads[upload] = {}
            self._answer(200, _xml("InitiateMultipartUploadResult", UploadId=upload))
        elif self.command == "PUT" and upload:
            state.uploads[upload][int(asked["partNumber"][0])] = body
            self._answer(200, b"", {"ETag": f'"{hashlib.md5(body).hexdigest()}"'})
        elif self.command == "DELETE" and upload:
            state.uploads.pop(upload, None)
            self._answer(204, b"")
        elif self.command == "POST" and upload:
            parts = state.uploads.pop(upload)
            _, headers, _ = self._put(path, b"".join(parts[number] for number in sorted(parts)))
            self._answer(200, _xml("CompleteMultipartUploadResult", ETag=headers["ETag"]))
        elif self.command == "PUT" and not path.startswith("/storage/"):
            self._answer(*self._put(path, body))
        else:
            status, headers, data = self._pass_on(self.command, self.path, body)
            self._answer(status, data, headers)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _handle

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("content-length") or 0))

    def _put(self, path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        status, _, data = self._pass_on("PUT", f"{path}?X-Goog-Algorithm=none", body)
        return status, {"ETag": f'"{hashlib.md5(body).hexdigest()}"'}, data

    def _pass_on(self, method: str, path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        passed = {n: v for n, v in self.headers.items() if n.lower() not in ("content-length", "connection", "host")}
        answer = self.server.pool.request(
            method, self.server.upstream + path, body=body, headers=passed, preload_content=False, decode_content=False
        )
        data = answer.read(decode_content=False)
        headers = {n: v for n, v in answer.headers.items() if n.lower() not in ("transfer-encoding", "connection")}
        return answer.status, headers, data

    def _answer(self, status: int, *more: bytes | dict[str, str]) -> None:
        data = next((item for item in more if isinstance(item, bytes)), b"")
        headers = next((item for item in more if isinstance(item, dict)), {})
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() != "content-length" or self.command == "HEAD":
                self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("content-length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


class _FrontServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, upstream: str) -> None:
        super().__init__((HOST, 0), _Front)
        self.upstream = upstream
        self.pool = urllib3.PoolManager(timeout=30, retries=False, maxsize=32)
        self.state = GcsServer(f"http://{HOST}:{self.server_port}")


def _xml(kind: str, **fields: str) -> bytes:
    inner = "".join(f"<{name}>{value}</{name}>" for name, value in fields.items())
    return f'<?xml version="1.0"?><{kind}>{inner}</{kind}>'.encode()


@pytest.fixture(scope="session")
def gcs_server() -> Iterator[GcsServer]:
    """A server that all tests of this worker share; tests use `gcs`, with their own bucket."""
    emulator = program("fake-gcs-server")

    def command(_: Path, ports: list[int]) -> list[str]:
        address = f"{HOST}:{ports[0]}"
        where = ["-scheme", "http", "-host", HOST, "-port", str(ports[0]), "-public-host", address]
        return [emulator, "-backend", "memory", "-log-level", "error", *where, "-external-url", f"http://{address}"]

    def ready(ports: list[int]) -> str:
        server = GcsServer(f"http://{HOST}:{ports[0]}")
        server.make_bucket("ready")
        return server.endpoint

    with running("gcs", 1, command, ready) as upstream:
        front = _FrontServer(upstream)
        thread = threading.Thread(target=front.serve_forever, daemon=True)
        thread.start()
        try:
            yield front.state
        finally:
            front.shutdown()
            front.server_close()
            thread.join()


@pytest.fixture
def gcs(gcs_server: GcsServer) -> GcsServer:
    """The endpoint and an empty bucket for this test only."""
    server = replace(gcs_server, bucket=f"test-{uuid.uuid4().hex[:12]}")
    server.make_bucket(server.bucket)
    server.requests.clear()
    server.uploads.clear()
    return server
