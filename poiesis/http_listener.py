"""A small HTTP server for health checks, metrics and pokes: one request per connection, with bounds on connections, bytes and time.

One thread reads all connections without blocking, so that slow ones occupy no thread. A connection that has not sent its whole request by
its deadline is closed; if there are too many connections of one address or in total, or too many buffered bytes, the oldest is closed. So a
client that sends its request at once is served, however many others send slowly.
"""

from __future__ import annotations

import http
import logging
import selectors
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

from poiesis.domain.errors import ConfigurationError

log = logging.getLogger(__name__)

MAX_HEAD_BYTES: Final = 8 * 1024
READ_BYTES: Final = 64 * 1024
ACCEPTS_AT_ONCE: Final = 64
SEND_TIMEOUT_S: Final = 1.0


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    body: bytes
    address: str


@dataclass(frozen=True)
class Response:
    status: int
    body: bytes = b""
    content_type: str = "text/plain; charset=utf-8"


@dataclass(frozen=True)
class Bounds:
    connections: int = 256
    connections_per_address: int = 64
    """Of one client. Some networks show all pods of a node under the node's address."""
    request_deadline_s: float = 5.0
    """From accepting a connection to the last byte of its request."""
    body_bytes: int = 0
    buffered_bytes: int = 16 * 1024 * 1024
    """Of all unfinished requests together."""
    threads: int = 2
    """For responses that take time."""


Handler = Callable[[Request], "Response | Callable[[], Response]"]


@dataclass(eq=False, slots=True)
class _Connection:
    socket: socket.socket
    address: str
    deadline: float
    received: bytearray = field(default_factory=bytearray)
    is_handled: bool = False


class HttpListener:
    """`handle` returns a Response, or a function that computes one in another thread.

    Raises: ConfigurationError when the address cannot be listened on.
    """

    def __init__(self, address: str, handle: Handler, bounds: Bounds | None = None, *, name: str) -> None:
        self._handle = handle
        self._bounds = bounds or Bounds()
        self._socket = _listening_socket(address)
        self._pool = ThreadPoolExecutor(self._bounds.threads, thread_name_prefix=name)
        self._open: dict[_Connection, None] = {}  # the oldest first
        self._buffered = 0
        self._lock = threading.Lock()
        self._waker, self._wakes = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._socket, selectors.EVENT_READ)
        self._selector.register(self._wakes, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def port(self) -> int:
        return int(self._socket.getsockname()[1])

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._waker.close()
        if self._thread.is_alive():
            self._thread.join(5)
        self._pool.shutdown(wait=False, cancel_futures=True)
        for connection in list(self._open):
            self._close(connection)
        for each in (self._selector, self._socket, self._wakes):
            each.close()

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select(self._next_deadline()):
                if key.fileobj is self._wakes:
                    return
                try:
                    self._accept() if key.fileobj is self._socket else self._read(key.data)
                except Exception:
                    log.exception("connection_failed")
                    if key.data is not None:
                        self._close(key.data)
            now = time.monotonic()
            for connection in [c for c in self._waiting() if c.deadline <= now]:
                self._close(connection)

    def _waiting(self) -> list[_Connection]:
        """Connections whose request is not complete, the oldest first."""
        with self._lock:
            return [c for c in self._open if not c.is_handled]

    def _next_deadline(self) -> float | None:
        waiting = self._waiting()
        return max(0.0, waiting[0].deadline - time.monotonic()) if waiting else None

    def _accept(self) -> None:
        for _ in range(ACCEPTS_AT_ONCE):
            try:
                client, (address, *_) = self._socket.accept()
            except OSError:
                return
            client.setblocking(False)
            bounds, waiting = self._bounds, self._waiting()
            same = [c for c in waiting if c.address == address]
            if len(same) >= bounds.connections_per_address:
                self._close(same[0])
            elif len(self._open) >= bounds.connections:
                if not waiting:
                    client.close()
                    continue
                self._close(waiting[0])
            connection = _Connection(client, address, time.monotonic() + bounds.request_deadline_s)
            with self._lock:
                self._open[connection] = None
            self._selector.register(client, selectors.EVENT_READ, connection)

    def _read(self, connection: _Connection) -> None:
        if connection.socket.fileno() < 0:  # closed for another one just now
            return
        try:
            data = connection.socket.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._close(connection)
            return
        connection.received += data
        self._buffered += len(data)
        found = parse(connection.received, connection.address, self._bounds.body_bytes)
        if found is not None:
            self._answer(connection, found)
        elif self._buffered > self._bounds.buffered_bytes:
            self._close(self._waiting()[0])

    def _answer(self, connection: _Connection, found: Request | Response) -> None:
        self._selector.unregister(connection.socket)
        connection.is_handled = True
        result = self._handle(found) if isinstance(found, Request) else found
        if isinstance(result, Response):
            self._send(connection, result)
        else:
            self._pool.submit(self._answer_later, connection, result)

    def _answer_later(self, connection: _Connection, respond: Callable[[], Response]) -> None:
        response = None
        try:
            if time.monotonic() < connection.deadline:
                connection.socket.settimeout(SEND_TIMEOUT_S)
                response = respond()
        except Exception:
            log.exception("response_failed")
            response = Response(500, b"internal error\n")
        if response is None:
            self._close(connection)
        else:
            self._send(connection, response)

    def _send(self, connection: _Connection, response: Response) -> None:
        head = f"HTTP/1.1 {response.status} {http.HTTPStatus(response.status).phrase}\r\n"
        head += f"Content-Type: {response.content_type}\r\nContent-Length: {len(response.body)}\r\nConnection: close\r\n\r\n"
        try:
            connection.socket.sendall(head.encode() + response.body)
        except OSError:
            log.debug("response_not_sent")
        self._close(connection)

    def _close(self, connection: _Connection) -> None:
        with self._lock:
            if connection not in self._open:
                return
            del self._open[connection]
            self._buffered -= len(connection.received)
        if not connection.is_handled:
            self._selector.unregister(connection.socket)
        connection.socket.close()


def parse(received: bytearray, address: str, max_body_bytes: int) -> Request | Response | None:
    """None: there is more to come. A Response: the request cannot be served."""
    end = received.find(b"\r\n\r\n", 0, MAX_HEAD_BYTES)
    if end < 0:
        return Response(431, b"request head too large\n") if len(received) >= MAX_HEAD_BYTES else None
    line, *headers = received[:end].decode("latin-1").split("\r\n")
    words = line.split(" ")
    fields = [(name.strip().lower(), value.strip()) for name, _, value in (h.partition(":") for h in headers)]
    sizes = [value for name, value in fields if name == "content-length"] or ["0"]
    if len(words) != 3 or len(sizes) > 1 or not (sizes[0].isascii() and sizes[0].isdigit()):
        return Response(400, b"bad request\n")
    if any(name == "transfer-encoding" for name, _ in fields):
        return Response(411, b"length required\n")
    if len(sizes[0]) > 9 or int(sizes[0]) > max_body_bytes:
        return Response(413, b"too large\n")
    start = end + 4
    if len(received) < start + int(sizes[0]):
        return None
    return Request(words[0], words[1], bytes(received[start : start + int(sizes[0])]), address)


def _listening_socket(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        if not 0 <= int(port) <= 65535:
            raise ValueError("the port must be between 0 and 65535")
        made = socket.create_server(
            (host.strip("[]") or "0.0.0.0", int(port)),
            family=family,
            backlog=512,
            dualstack_ipv6=family is socket.AF_INET6 and socket.has_dualstack_ipv6(),
        )
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"cannot listen on {address}: {error}; use HOST:PORT") from None
    made.setblocking(False)
    return made
