"""A small HTTP server for health checks, metrics and pokes: one request per connection, with bounds on connections, bytes and time.

It has its own thread and event loop, so that nothing else in the process delays it. A connection that has not sent its whole
request by its deadline is closed; if there are too many connections of one address or in total, or too many announced bytes, the oldest is
closed. So a client that sends its request at once is served, however many others send slowly.
"""

from __future__ import annotations

import asyncio
import http
import logging
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, Self

from poiesis.domain.errors import ConfigurationError

log = logging.getLogger(__name__)

MAX_HEAD_BYTES: Final = 8 * 1024
BACKLOG: Final = 128  # of connections that the system keeps for us, and that are accepted at once
RESPONSE_DEADLINE_S: Final = 30.0
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
    unfinished_bytes: int = 16 * 1024 * 1024
    """Of the bodies of all unfinished requests together, as announced in their heads."""
    threads: int = 2
    """For responses that take time."""


Handler = Callable[[Request], "Response | Callable[[], Response]"]


@dataclass(eq=False)
class _Connection:
    address: str
    transport: asyncio.WriteTransport
    body_bytes: int = 0
    is_waiting: bool = True
    """For the rest of its request."""


class HttpListener:
    """`handle` returns a Response, or a function that computes one in another thread.

    Raises: ConfigurationError when the address cannot be listened on.
    """

    def __init__(self, address: str, handle: Handler, bounds: Bounds | None = None, *, name: str) -> None:
        self._handle = handle
        self._bounds = bounds or Bounds()
        self._socket = _listening_socket(address)
        self._pool = ThreadPoolExecutor(self._bounds.threads, thread_name_prefix=name)
        self._loop = asyncio.new_event_loop()
        self._closing = asyncio.Event()
        self._open: dict[_Connection, None] = {}  # the oldest first
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def port(self) -> int:
        return int(self._socket.getsockname()[1])

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._closing.set)
            self._thread.join(5)
        else:
            self._loop.close()
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._socket.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        async def serve() -> None:
            server = await asyncio.start_server(self._serve, sock=self._socket, backlog=BACKLOG, limit=MAX_HEAD_BYTES)
            await self._closing.wait()
            server.close()

        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(serve())

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(str(writer.get_extra_info("peername")[0]), writer.transport)
        try:
            self._enter(connection)
            async with asyncio.timeout(self._bounds.request_deadline_s):
                found = await self._read(reader, connection)
            connection.is_waiting = False
            result = self._handle(found) if isinstance(found, Request) else found
            response = result if isinstance(result, Response) else await self._computed(result)
            async with asyncio.timeout(SEND_TIMEOUT_S):
                writer.write(_bytes(response))
                writer.close()
                await writer.wait_closed()
        except (asyncio.IncompleteReadError, asyncio.CancelledError, OSError):  # by `close`; TimeoutError too
            log.debug("connection_broken")
        except Exception:
            log.exception("connection_failed")
        finally:
            self._drop(connection)

    def _enter(self, connection: _Connection) -> None:
        """Make room by closing the connection that has waited longest; without one the new connection is closed."""
        bounds = self._bounds
        self._open[connection] = None
        waiting = [c for c in self._open if c.is_waiting]
        same = [c for c in waiting if c.address == connection.address]
        if len(same) > bounds.connections_per_address:
            self._drop(same[0])
        elif len(self._open) > bounds.connections:
            self._drop(waiting[0])

    def _drop(self, connection: _Connection) -> None:
        self._open.pop(connection, None)
        connection.transport.abort()

    async def _read(self, reader: asyncio.StreamReader, connection: _Connection) -> Request | Response:
        """A Response: the request cannot be served."""
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            return Response(431, b"request head too large\n")
        line, *headers = head[:-4].decode("latin-1").split("\r\n")
        words = line.split(" ")
        fields = [(name.strip().lower(), value.strip()) for name, _, value in (h.partition(":") for h in headers)]
        sizes = [value for name, value in fields if name == "content-length"] or ["0"]
        if len(words) != 3 or len(sizes) > 1 or not (sizes[0].isascii() and sizes[0].isdigit()):
            return Response(400, b"bad request\n")
        if any(name == "transfer-encoding" for name, _ in fields):
            return Response(411, b"length required\n")
        if len(sizes[0]) > 9 or int(sizes[0]) > self._bounds.body_bytes:
            return Response(413, b"too large\n")
        connection.body_bytes = int(sizes[0])
        waiting = [c for c in self._open if c.is_waiting]
        if sum(c.body_bytes for c in waiting) > self._bounds.unfinished_bytes:
            self._drop(next(c for c in waiting if c.body_bytes))
        return Request(words[0], words[1], await reader.readexactly(connection.body_bytes), connection.address)

    async def _computed(self, respond: Callable[[], Response]) -> Response:
        try:
            async with asyncio.timeout(RESPONSE_DEADLINE_S):
                return await self._loop.run_in_executor(self._pool, respond)
        except Exception:
            log.exception("response_failed")
            return Response(500, b"internal error\n")


def _bytes(response: Response) -> bytes:
    head = f"HTTP/1.1 {response.status} {http.HTTPStatus(response.status).phrase}\r\n"
    head += (
        f"Content-Type: {response.content_type}\r\nContent-Length: {len(response.body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + response.body


def _listening_socket(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        if not 0 <= int(port) <= 65535:
            raise ValueError("the port must be between 0 and 65535")
        return socket.create_server(
            (host.strip("[]") or "0.0.0.0", int(port)),
            family=family,
            dualstack_ipv6=family is socket.AF_INET6 and socket.has_dualstack_ipv6(),
        )
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"cannot listen on {address}: {error}; use HOST:PORT") from None
