"""A real HTTP server in a thread that serves bytes from memory and injects faults."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote


@dataclass
class Fault:
    """What happens to one request: `status` instead of an answer; `cut` closes the connection after so many bytes of the body, with
    `reset` hard; `length` is the Content-Length sent; `drip` seconds between bytes; `redirect` where to;
    `unconditional` ignores If-Match and If-Range."""

    status: int | None = None
    cut: int | None = None
    reset: bool = False
    length: int | None = None
    drip: float = 0.0
    redirect: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    no_range: bool = False
    wrong_range: bool = False
    chunked: bool = False
    no_length: bool = False
    body: bytes | None = None
    unconditional: bool = False


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]


class Made:
    """A large body that is generated while it is sent, the same each time; `sent_bytes` counts the bytes."""

    BLOCK = random.Random(8).randbytes(1 << 20)

    def __init__(self, size: int) -> None:
        self.size = size
        self.sent_bytes = 0
        self._lock = threading.Lock()

    def blocks(self, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Each block begins with its number, so that blocks cannot be confused."""
        end = self.size if end is None else end
        step = len(self.BLOCK)
        for index in range(start // step, -(-end // step)):
            block = index.to_bytes(8, "big") + self.BLOCK[8:]
            yield block[max(0, start - index * step) : end - index * step]

    def send(self, handler: BaseHTTPRequestHandler) -> None:
        start, end = 0, self.size
        asked = handler.headers.get("range", "")
        if asked:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last) + 1, self.size)
        handler.send_response(206 if asked else 200)
        handler.send_header("etag", '"made"')
        handler.send_header("content-length", str(end - start))
        if asked:
            handler.send_header("content-range", f"bytes {start}-{end - 1}/{self.size}")
        handler.end_headers()
        if handler.command == "HEAD":
            return
        for block in self.blocks(start, end):
            handler.wfile.write(block)
            with self._lock:
                self.sent_bytes += len(block)


class HttpServer:
    """`files`: what GET answers by path, `made`: large generated bodies; PUT stores in the former. `faults`: called
    for each request, in any thread; None: no fault."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.made: dict[str, Made] = {}
        self.etags: dict[str, str] = {}
        self.post = b""
        self.put_status = 201
        self.requests: list[Request] = []
        self.faults: Callable[[Request], Fault | None] = lambda _: None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 60  # seconds that a kept connection may be idle, on a busy machine too
            disable_nagle_algorithm = (
                True  # otherwise each response on a kept connection waits 40 ms for an acknowledgement
            )

            def log_message(self, format: str, *args: object) -> None:
                pass

            def do_GET(self) -> None:
                outer._answer(self)

            do_HEAD = do_GET

            def do_POST(self) -> None:
                outer._noted(self)
                self.rfile.read(int(self.headers.get("content-length", "0")))
                self.send_response(200)
                self.send_header("content-length", str(len(outer.post)))
                self.end_headers()
                self.wfile.write(outer.post)

            def do_PUT(self) -> None:
                request = outer._noted(self)
                if self.headers.get("transfer-encoding", "") == "chunked":
                    body = b""
                    while size := int(self.rfile.readline(), 16):
                        body += self.rfile.read(size)
                        self.rfile.readline()
                    self.rfile.readline()
                else:
                    body = self.rfile.read(int(self.headers["content-length"]))
                    if len(body) < int(self.headers["content-length"]):
                        self.close_connection = True  # the client went away
                        return
                fault = outer.faults(request)
                if fault and fault.redirect:
                    self.send_response(307)
                    self.send_header("location", fault.redirect)
                elif fault and fault.status:
                    self.send_response(fault.status)
                else:
                    outer.files[unquote(self.path.partition("?")[0])] = body
                    self.send_response(outer.put_status)
                self.send_header("content-length", "0")
                self.end_headers()

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, request: object, client_address: object) -> None:
                pass  # clients disconnect, as intended

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _noted(self, handler: BaseHTTPRequestHandler) -> Request:
        request = Request(handler.command, handler.path, {k.lower(): v for k, v in handler.headers.items()})
        self.requests.append(request)
        return request

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        request = self._noted(handler)
        fault = self.faults(request) or Fault()
        path = unquote(handler.path.partition("?")[0])
        if path in self.made:
            self.made[path].send(handler)
            return
        body = fault.body if fault.body is not None else self.files.get(path)
        if fault.redirect is not None:
            handler.send_response(fault.status or 302)
            handler.send_header("location", fault.redirect)
            handler.send_header("content-length", "0")
            handler.end_headers()
            return
        if fault.status is not None or body is None:
            handler.send_response(fault.status or 404)
            for name, value in fault.headers.items():
                handler.send_header(name, value)
            handler.send_header("content-length", "0")
            handler.end_headers()
            return
        etag = self.etags.get(path, f'"{hash(body) & 0xFFFFFFFF:x}"')
        if request.headers.get("if-match") not in (None, etag) and not fault.unconditional:
            handler.send_response(412)
            handler.send_header("content-length", "0")
            handler.end_headers()
            return
        start, end, status = 0, len(body), 200
        asked = request.headers.get("range", "")
        fits = fault.unconditional or request.headers.get("if-range") in (None, etag)
        if asked.startswith("bytes=") and fits and not fault.no_range:
            first, _, last = asked[6:].partition("-")
            start, end, status = int(first), min(int(last) + 1 if last else len(body), len(body)), 206
            if start >= len(body):
                handler.send_response(416)
                handler.send_header("content-length", "0")
                handler.end_headers()
                return
        handler.send_response(status)
        if etag:
            handler.send_header("etag", etag)
        if not fault.no_range:
            handler.send_header("accept-ranges", "bytes")
        if status == 206:
            reported_start = start + (1 if fault.wrong_range else 0)
            handler.send_header("content-range", f"bytes {reported_start}-{end - 1}/{len(body)}")
        for name, value in fault.headers.items():
            handler.send_header(name, value)
        part = body[start:end]
        if fault.chunked:
            handler.send_header("transfer-encoding", "chunked")
        elif not fault.no_length:
            handler.send_header("content-length", str(len(part) if fault.length is None else fault.length))
        else:
            handler.send_header("connection", "close")
            handler.close_connection = True
        handler.end_headers()
        if handler.command == "HEAD":
            return
        self._write(handler, part, fault)

    def _write(self, handler: BaseHTTPRequestHandler, part: bytes, fault: Fault) -> None:
        if fault.chunked:
            pieces = [part[i : i + 1000] for i in range(0, len(part), 1000)]
            part = b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in pieces) + b"0\r\n\r\n"
        if fault.cut is not None:
            part = part[: fault.cut]
        if fault.drip:
            for i in range(len(part)):
                handler.wfile.write(part[i : i + 1])
                handler.wfile.flush()
                time.sleep(fault.drip)
        else:
            handler.wfile.write(part)
        handler.wfile.flush()
        if fault.cut is not None or fault.length is not None:
            handler.close_connection = True
            if fault.reset:
                handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                handler.connection.close()
            else:
                handler.connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def http_server() -> Iterator[HttpServer]:
    server = HttpServer()
    try:
        yield server
    finally:
        server.close()
