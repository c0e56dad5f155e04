"""One kept connection over which requests are sent as bytes, also those that no HTTP library would send."""

from __future__ import annotations

import contextlib
import socket
from typing import Final, NamedTuple

TIMEOUT_S: Final = 30.0


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


class Connection:
    """Connects again when the server has closed the connection after an answer, as it does after refusing a request line."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self._address = (host, port)
        self._socket: socket.socket | None = None
        self._rest = b""

    def ask(
        self, method: bytes, target: bytes, headers: list[tuple[bytes, bytes]], body: bytes | None = None
    ) -> Answer:
        lines = [b"%s %s HTTP/1.1" % (method, target), b"Host: localhost", *(b"%s: %s" % pair for pair in headers)]
        if body is not None and not any(name.lower() == b"transfer-encoding" for name, _ in headers):
            lines.append(b"Content-Length: %d" % len(body))
        request = b"\r\n".join(lines) + b"\r\n\r\n" + (body or b"")
        for attempt in (1, 2):
            is_new = self._socket is None
            try:
                return self._exchange(request, method)
            except ConnectionError:
                self.close()
                if is_new or attempt == 2:
                    raise
        raise AssertionError

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket, self._rest = None, b""

    def _exchange(self, request: bytes, method: bytes) -> Answer:
        if self._socket is None:
            self._socket = socket.create_connection(self._address, timeout=TIMEOUT_S)
        with contextlib.suppress(ConnectionError):  # refused before all was sent; the answer is there
            self._socket.sendall(request)
        head, body = self._answer()
        first, *lines = head.decode("latin-1").split("\r\n")
        status = int(first.split()[1])
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if headers.get("transfer-encoding"):  # a stream, which may be endless
            self.close()
            return Answer(status, headers, b"")
        length = 0 if method == b"HEAD" or status == 204 else int(headers.get("content-length", 0))
        while len(body) < length:
            body += self._receive()
        self._rest = body[length:]
        if headers.get("connection", "").lower() == "close":
            self.close()
        return Answer(status, headers, body[:length])

    def _answer(self) -> tuple[bytes, bytes]:
        """The head of the next final response, and what was received after it."""
        buffer = self._rest
        while True:
            while b"\r\n\r\n" not in buffer:
                buffer += self._receive()
            head, _, buffer = buffer.partition(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 1"):
                return head, buffer

    def _receive(self) -> bytes:
        assert self._socket is not None
        received = self._socket.recv(1 << 16)
        if not received:
            raise ConnectionError("the server closed the connection without an answer")
        return received

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
