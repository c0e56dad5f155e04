"""Intermediaries between a filer and its server: a TLS terminator and a proxy. Real sockets, in threads."""

from __future__ import annotations

import base64
import contextlib
import selectors
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

IDLE_S = 30.0


class _Listener:
    """Accepts connections on a port of 127.0.0.1, each in a thread."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self.accepted = 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        threading.Thread(target=self._run, daemon=True).start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _run(self) -> None:
        while True:
            try:
                found, _ = self._socket.accept()
            except OSError:
                return
            self.accepted += 1
            threading.Thread(target=self._serve, args=(found,), daemon=True).start()

    def _serve(self, found: socket.socket) -> None:
        found.settimeout(IDLE_S)
        with contextlib.suppress(OSError), found:
            if self._tls is None:
                self.handle(found)
                return
            with self._tls.wrap_socket(found, server_side=True) as secure:
                self.handle(secure)

    def handle(self, client: socket.socket) -> None:
        raise NotImplementedError


class TlsFront(_Listener):
    """TLS in front of a plain server. `cut`: after how many bytes of its responses to close the connection of that number."""

    def __init__(self, target: str, tls: ssl.SSLContext) -> None:
        parts = urlsplit(target)
        self._target = (str(parts.hostname), parts.port or 80)
        self.cut: Callable[[int], int | None] = lambda _: None
        self.secured = 0
        """The number of connections that sent a request."""
        super().__init__(tls)

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def handle(self, client: socket.socket) -> None:
        self.secured += 1
        most = self.cut(self.secured)
        with socket.create_connection(self._target, timeout=IDLE_S) as server:
            pump(client, server, most)


class Pieces(_Listener):
    """Passes on the bytes of a server at that port in pieces of a given size: TLS records arrive in parts."""

    def __init__(self, port: int, size: int) -> None:
        self._port, self._size = port, size
        super().__init__()

    def handle(self, client: socket.socket) -> None:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with socket.create_connection(("127.0.0.1", self._port), timeout=IDLE_S) as server:
            threading.Thread(target=self._pass_on, args=(client, server), daemon=True).start()
            while data := server.recv(self._size):
                client.sendall(data)
                time.sleep(0.001)

    def _pass_on(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(1 << 16):
                server.sendall(data)
            server.shutdown(socket.SHUT_RDWR)


class Proxy(_Listener):
    """An HTTP proxy: absolute URLs and CONNECT. `login`: the `user:password` that it requires; `refuses`: the status of each response."""

    def __init__(
        self, *, tls: ssl.SSLContext | None = None, login: str | None = None, refuses: int | None = None
    ) -> None:
        self._login, self._refuses = login, refuses
        self._scheme = "https" if tls else "http"
        self.seen: list[str] = []
        """First lines of the requests that were passed on."""
        super().__init__(tls)

    def url(self, login: str | None = None) -> str:
        user = f"{login}@" if login else ""
        return f"{self._scheme}://{user}127.0.0.1:{self.port}"

    def handle(self, client: socket.socket) -> None:
        while (head := _head(client)) is not None:
            first, *lines = head.decode("latin-1").split("\r\n")
            headers = {n.strip().lower(): v.strip() for n, _, v in (line.partition(":") for line in lines)}
            if self._refuses is not None:
                client.sendall(f"HTTP/1.1 {self._refuses} No\r\ncontent-length: 0\r\n\r\n".encode())
                return
            if self._login is not None:
                expected = "Basic " + base64.b64encode(self._login.encode()).decode()
                if headers.get("proxy-authorization") != expected:
                    client.sendall(b"HTTP/1.1 407 Who\r\nproxy-authenticate: Basic\r\ncontent-length: 0\r\n\r\n")
                    return
            self.seen.append(first)
            method, target, version = first.split(" ")
            if method == "CONNECT":
                host, _, port = target.rpartition(":")
                with socket.create_connection((host.strip("[]"), int(port)), timeout=IDLE_S) as server:
                    client.sendall(b"HTTP/1.1 200 Connected\r\n\r\n")
                    pump(client, server)
                return
            parts = urlsplit(target)
            kept = [line for line in lines if not line.lower().startswith(("proxy-", "connection:"))]
            path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            with socket.create_connection((str(parts.hostname), parts.port or 80), timeout=IDLE_S) as server:
                server.sendall(
                    "\r\n".join([f"{method} {path} {version}", *kept, "connection: close"]).encode("latin-1")
                )
                server.sendall(b"\r\n\r\n")
                pump(client, server)
            return


def pump(client: socket.socket, server: socket.socket, most: int | None = None) -> None:
    """In both directions until one of them ends, or `most` bytes of the server were passed on."""
    with selectors.DefaultSelector() as both:
        both.register(client, selectors.EVENT_READ, server)
        both.register(server, selectors.EVENT_READ, client)
        while True:
            ready: list[tuple[socket.socket, socket.socket]] = []
            if isinstance(client, ssl.SSLSocket) and client.pending():
                ready.append((client, server))
            for key, _ in [] if ready else both.select(IDLE_S):
                ready.append((client, server) if key.fileobj is client else (server, client))
            if not ready:
                return
            for source, target in ready:
                data = source.recv(1 << 16)
                if source is server and most is not None:
                    data = data[:most]
                    most -= len(data)
                if not data:
                    return
                target.sendall(data)


def _head(client: socket.socket) -> bytes | None:
    found = b""
    while not found.endswith(b"\r\n\r\n"):
        byte = client.recv(1)
        if not byte:
            return None
        found += byte
    return found[:-4]


@contextlib.contextmanager
def closing(item: _Listener) -> Iterator[None]:
    try:
        yield
    finally:
        item.close()
