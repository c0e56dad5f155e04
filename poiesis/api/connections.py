"""Limits of a connection outside the bodies of its requests, as a subclass of uvicorn's protocol.

uvicorn passes requests on and bounds neither the bytes of their heads nor the number of connections, and it closes none that stays
silent or stops in the middle of a head. `LimitedProtocol` is passed to it by its option `http`, overrides only callbacks of asyncio
and httptools, and answers in JSON what the parser rejects (docs/adr/0002). The bodies of requests are limited in `bodies`.

A connection is *waiting* unless it has a request that is complete up to its body and not answered yet. Where a limit on connections
is reached, the one that has waited longest is closed for the new one; only when none waits is the new one refused with 503.

A request that waits for events (a stream, a long poll) *holds* its connection: it does not count towards these limits, where it would
shut out others, but has limits of its own (`streams`). It may be idle; if its client does not read, it ends after the time-out for writes.
"""

from __future__ import annotations

import asyncio
import ipaddress
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any, Final, cast

import httptools
from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from poiesis.api.errors import Refused, plain
from poiesis.config import ApiSettings
from poiesis.domain.errors import ConfigurationError

CONNECTION: Final = "poiesis.connection"
"""Key of the ASGI scope: the `LimitedProtocol` of the request."""
MAX_HEADERS: Final = 200
MAX_PIPELINED: Final = 8  # pipelined requests; no known client sends any
HEADER_OVERHEAD_BYTES: Final = 32  # overhead of a name and a value in the list of headers, without their text
SWEEP_S: Final = 1.0
WRITE_TIMEOUT_S: Final = 60.0
MIN_WRITE_BYTES: Final = 64 * 1024  # of a response that a client must read within WRITE_TIMEOUT_S
MAX_UNWRITTEN_BYTES: Final = 64 * 1024 * 1024  # of all answers that clients have not taken yet


class ConnectionGate:
    """The connections of one process, the longest-waiting first. Used in the event loop only."""

    def __init__(self, settings: ApiSettings) -> None:
        self.header_bytes: Final = settings.max_header_bytes
        self.header_timeout_s: Final = settings.header_timeout.total_seconds()
        self.idle_timeout_s: Final = settings.idle_timeout.total_seconds()
        self._max = settings.max_connections
        self._max_per_address = settings.max_connections_per_address
        self._proxies = parse_networks(settings.trusted_proxies)
        self._all: set[LimitedProtocol] = set()
        self._held: set[LimitedProtocol] = set()
        self._waiting: dict[LimitedProtocol, None] = {}  # in the order in which they began to wait
        self._per_address: Counter[str] = Counter()
        self._writing: dict[LimitedProtocol, None] = {}  # whose clients do not keep up, in the order they fell behind
        self._is_sweeping = False

    def enter(self, connection: LimitedProtocol) -> bool:
        """Count a new connection; False: the limit is reached, and no waiting connection can be closed instead."""
        address = connection.address
        while (full := len(self._all) - len(self._held) >= self._max) or self._per_address[
            address
        ] >= self._max_per_address:
            victim = next((c for c in self._waiting if full or c.address == address), None)
            if victim is None:
                return False
            self.leave(victim)
            victim.evict()
        if not self._is_sweeping:
            self._is_sweeping = True
            connection.loop.call_later(SWEEP_S, self._sweep, connection.loop)
        self._all.add(connection)
        self._count(address, 1)
        self._waiting[connection] = None
        return True

    def leave(self, connection: LimitedProtocol) -> None:
        self._writing.pop(connection, None)
        if connection not in self._all:
            return
        self._all.remove(connection)
        self._waiting.pop(connection, None)
        if connection not in self._held:
            self._count(connection.address, -1)
        self._held.discard(connection)

    def set_held(self, connection: LimitedProtocol, held: bool) -> None:
        if connection in self._all and held is not (connection in self._held):
            (self._held.add if held else self._held.discard)(connection)
            self._count(connection.address, -1 if held else 1)

    def set_waiting(self, connection: LimitedProtocol, waits: bool) -> None:
        self._waiting.pop(connection, None)
        if waits and connection in self._all:
            self._waiting[connection] = None

    def set_writing(self, connection: LimitedProtocol, writes: bool) -> None:
        """Record whether a client does not keep up. Beyond MAX_UNWRITTEN_BYTES, the address with most bytes loses its oldest connection."""
        self._writing.pop(connection, None)
        if not writes or connection not in self._all:  # one that has left would never be removed again
            return
        self._writing[connection] = None
        sizes = {c: c.transport.get_write_buffer_size() for c in self._writing}
        while len(sizes) > 1 and sum(sizes.values()) > MAX_UNWRITTEN_BYTES:
            held: Counter[str] = Counter()
            for c, size in sizes.items():
                held[c.address] += size
            address = held.most_common(1)[0][0]
            victim = next(c for c in sizes if c.address == address)
            del sizes[victim], self._writing[victim]
            victim.transport.abort()

    def _count(self, address: str, by: int) -> None:
        if is_in(address, self._proxies):
            return
        self._per_address[address] += by
        if self._per_address[address] <= 0:
            del self._per_address[address]

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            for connection in list(self._all):
                connection.check_deadlines(loop.time())
        finally:  # an error in one sweep must not end the time-outs of all connections
            self._is_sweeping = bool(self._all)
            if self._is_sweeping:
                loop.call_later(SWEEP_S, self._sweep, loop)


class _Droppable:
    """A transport that drops what is written once it closes. uvloop's raises then, in the middle of a response that is being made, and
    uvicorn knows only of the last request of a connection that its client has left. `waits`: called before closing; True: not yet."""

    def __init__(self, transport: asyncio.Transport, waits: Callable[[], bool]) -> None:
        self._transport = transport
        self._waits = waits

    def close(self) -> None:
        if not self._waits():
            self._transport.close()

    def write(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class LimitedProtocol(HttpToolsProtocol):
    """One connection. Deadlines are times of the event loop."""

    def __init__(self, gate: ConnectionGate, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.address = ""
        self._gate = gate
        self._deadline = 0.0  # of a waiting connection
        self._write_deadline: float | None = None  # while the client does not read its response
        self._unwritten = 0
        self._is_answered = False  # the client has not taken the response yet
        self._requests = 0  # started and not answered
        self._in_head = False
        self._in_body = False
        self._head_bytes = 0
        self._unparsed = 0  # bytes received since the parser last reported anything
        self._closes_after_body = False
        self._on_end: Callable[[], None] | None = None  # while a request holds the connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(cast(asyncio.Transport, _Droppable(transport, self._waits_for_body)))
        self.address = network_key(self.client[0] if self.client else "")
        self._deadline = self.loop.time() + self._gate.header_timeout_s
        if not self._gate.enter(self):
            self._refuse(Refused(503, "too many connections", headers={"Retry-After": "5"}))

    def connection_lost(self, exc: Exception | None) -> None:
        self._gate.leave(self)
        self._end_hold()
        super().connection_lost(exc)

    def hold(self, on_end: Callable[[], None]) -> None:
        """Until the response to the present request is complete. `on_end` is called when the client has left or the server is to stop."""
        self._on_end = on_end
        self._gate.set_held(self, True)

    def break_off(self) -> None:
        """Close in the middle of a response; what was written of it still goes out."""
        self.cycle.disconnected = True  # else uvicorn reports a response without an end
        self.transport.close()

    def _waits_for_body(self) -> bool:
        """Whether to close only after the rest of the body, which is not used: a client that is still sending would get a reset instead
        of the response. The second call closes; `check_deadlines` makes it in the end."""
        if self._closes_after_body or not self._in_body or not self.cycle.response_complete:
            return False
        self._closes_after_body = True
        return True

    def shutdown(self) -> None:
        super().shutdown()
        self._end_hold()

    def _end_hold(self) -> None:
        if self._on_end is not None:
            self._on_end()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self._unparsed += len(data)
        super().data_received(data)
        if (
            self._unparsed > self._gate.header_bytes and not self.transport.is_closing()
        ):  # in one header, or in a chunk's extension
            self._refuse(self._too_long())

    # callbacks of the parser
    def on_message_begin(self) -> None:
        self._in_head, self._head_bytes = True, 0
        self._deadline = self.loop.time() + self._gate.header_timeout_s
        super().on_message_begin()
        self.scope[CONNECTION] = self  # type: ignore[typeddict-unknown-key]

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:  # of trailers too
        self._count(len(name) + len(value) + HEADER_OVERHEAD_BYTES)
        if len(self.headers) >= MAX_HEADERS:
            raise Refused(431, f"more than {MAX_HEADERS} headers")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._unparsed = 0
        self._in_head, self._in_body = False, True
        if self._requests >= MAX_PIPELINED:
            raise Refused(400, "too many pipelined requests")
        for name, value in self.headers:
            if name == b"transfer-encoding" and value.strip().lower() != b"chunked":
                raise Refused(501, "the only supported Transfer-Encoding is chunked")
        super().on_headers_complete()
        self._requests += 1
        self._gate.set_waiting(self, False)

    def on_body(self, body: bytes) -> None:
        self._unparsed = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._unparsed = 0
        self._in_body = False
        super().on_message_complete()
        if self._closes_after_body:
            self.transport.close()

    # callbacks of uvicorn
    def on_response_complete(self) -> None:
        self._is_answered = self._write_deadline is not None
        if self._is_answered:  # the next request waits until the client has taken this response
            return
        super().on_response_complete()
        if self._on_end is not None:
            self._on_end = None
            self._gate.set_held(self, False)
        self._requests -= 1
        if self._requests == 0:  # the rest of a refused body has the same time-out as a head
            partial = self._in_head or self._in_body
            self._deadline = self.loop.time() + (self._gate.header_timeout_s if partial else self._gate.idle_timeout_s)
            self._gate.set_waiting(self, True)

    def pause_writing(self) -> None:
        super().pause_writing()
        self.flow.pause_reading()
        self._await_write()
        self._gate.set_writing(self, True)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._write_deadline = None
        self._gate.set_writing(self, False)
        if self._is_answered:
            self.on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Called by uvicorn where the parser stops, in the handler of its exception."""
        error = sys.exception()
        cause = error.__context__ if error is not None else None
        if isinstance(cause, Refused):
            self._refuse(cause)
        elif isinstance(error, httptools.HttpParserInvalidMethodError):
            self._refuse(Refused(501, "unknown method"))
        elif isinstance(error, httptools.HttpParserInvalidURLError | httptools.HttpParserCallbackError):
            self._refuse(Refused(400, "invalid request target"))
        else:
            self._refuse(Refused(400, "invalid HTTP request: the request line, a header or a chunk is malformed"))

    # called by the gate
    def check_deadlines(self, now: float) -> None:
        if self._write_deadline is not None:
            if now >= self._write_deadline:
                if self.transport.get_write_buffer_size() > self._unwritten - MIN_WRITE_BYTES:
                    self.transport.abort()
                else:
                    self._await_write()
        elif self._requests == 0 and now >= self._deadline:
            if self._in_head and not self.transport.is_closing():
                self._refuse(Refused(408, "the request did not arrive in time"))
                self._deadline = now + self._gate.header_timeout_s
            else:
                self.evict()

    def evict(self) -> None:
        """Close without an answer."""
        if self.transport.is_closing() or self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self.transport.close()

    def _await_write(self) -> None:
        self._unwritten = self.transport.get_write_buffer_size()
        self._write_deadline = self.loop.time() + WRITE_TIMEOUT_S

    def _count(self, size: int) -> None:
        self._unparsed = 0
        self._head_bytes += size
        if self._head_bytes > self._gate.header_bytes:
            raise self._too_long()

    def _too_long(self) -> Refused:
        limit = f"at most {self._gate.header_bytes} bytes"
        if self._in_head and not self.headers:
            return Refused(414, f"the request target is too long: {limit}", "uri_too_long")
        return Refused(431, f"the headers are too long: {limit}")

    def _refuse(self, error: Refused) -> None:
        """Answer and close; once another response has begun, only close."""
        if self._requests == 0 or (self._requests == 1 and not self.cycle.response_started):
            self.transport.write(http_response(plain(error.status_code, error.detail, error.headers)))
            self.transport.close()
        else:
            self.transport.abort()


def http_response(answer: Response) -> bytes:
    """A response that ends its connection, as the bytes of HTTP/1.1."""
    head = f"HTTP/1.1 {answer.status_code} {HTTPStatus(answer.status_code).phrase}\r\n".encode()
    fields = b"".join(b"%b: %b\r\n" % field for field in answer.raw_headers)
    return head + fields + b"connection: close\r\n\r\n" + bytes(answer.body)


Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def parse_networks(texts: Sequence[str]) -> tuple[Network, ...]:
    """Addresses and networks in CIDR notation. Raises: ConfigurationError."""
    try:
        return tuple(ipaddress.ip_network(text, strict=False) for text in texts)
    except ValueError as error:
        raise ConfigurationError(f"invalid address or network in POIESIS_API__TRUSTED_PROXIES: {error}") from None


def is_in(address: str, networks: Sequence[Network]) -> bool:
    if not networks:
        return False
    try:
        found = ipaddress.ip_address(address.partition("/")[0])
    except ValueError:
        return False
    return any(found in network for network in networks)


def network_key(address: str) -> str:
    """What counts as one address: of IPv6 the /64, which one host can fill at will."""
    if ":" not in address:
        return address
    try:
        return str(ipaddress.ip_network(f"{address.partition('%')[0]}/64", strict=False))
    except ValueError:
        return address
