"""One TCP connection to an HTTP server: straight or through a proxy, with TLS or without.

What the usual client offers beyond that (pools, redirects, headers of its own) has its place in `wire` or is not wanted, and importing it
takes longer than fetching a small file.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit

from poiesis.domain.errors import AccessDenied, ConfigurationError, PoiesisError, StorageUnavailable

if TYPE_CHECKING:
    import ssl

MAX_ANSWER_BYTES: Final = 16 * 1024  # of a proxy to CONNECT
PROXY_WANTS: Final = "the proxy wants another user and password (407)"
_PORTS: Final = {"http": 80, "https": 443}


class Proxy:
    """An HTTP proxy as HTTPS_PROXY and the like write it: `http://user:password@host:port`, or without the scheme."""

    def __init__(self, url: str) -> None:
        """Raises: ConfigurationError."""
        parts = urlsplit(url if "://" in url else f"http://{url}")
        try:
            port = parts.port
        except ValueError:
            port = 0
        if parts.scheme not in _PORTS or not parts.hostname or port == 0:
            raise ConfigurationError("filer: the proxy is no http URL (socks proxies are not supported)")
        self.is_secure = parts.scheme == "https"
        self.host, self.port = parts.hostname, port or _PORTS[parts.scheme]
        host = f"[{self.host}]" if ":" in self.host else self.host
        self.url = f"{parts.scheme}://{host}:{self.port}"
        """Without user and password."""
        self.headers: dict[str, str] = {}
        """What each request to the proxy itself carries."""
        if parts.username is not None:
            self.headers["proxy-authorization"] = _basic(unquote(parts.username), unquote(parts.password or ""))


class TcpConnection:
    """Not open before `connect`. `timeout_s` is for everything up to the first byte of a request."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        timeout_s: float,
        tls: ssl.SSLContext | None = None,
        proxy: Proxy | None = None,
        proxy_tls: ssl.SSLContext | None = None,
    ) -> None:
        """`tls`: None for plain http. `proxy_tls`: for a proxy that is itself reached by https."""
        self._host, self._port = host, port
        self._timeout_s = timeout_s
        self._tls, self._proxy, self._proxy_tls = tls, proxy, proxy_tls
        self.sock: socket.socket | None = None

    def connect(self) -> None:
        """Raises: OSError, AccessDenied when the proxy refuses us, StorageUnavailable when it cannot reach the host."""
        found = (
            self._opened(self._proxy.host, self._proxy.port) if self._proxy else self._opened(self._host, self._port)
        )
        try:
            if self._proxy and self._proxy.is_secure and self._proxy_tls:
                found = self._proxy_tls.wrap_socket(found, server_hostname=self._proxy.host)
            if self._tls is not None:
                if self._proxy:
                    self._tunnel(found, self._proxy)
                found = self._wrapped(found, self._tls)
        except BaseException:
            found.close()
            raise
        self.sock = found

    def close(self) -> None:
        if self.sock is not None:
            self.sock.close()
            self.sock = None

    def _opened(self, host: str, port: int) -> socket.socket:
        # a host given as text has the standard library load a codec for international names (measured: 4 ms)
        name = host.encode("ascii") if host.isascii() else host
        found = socket.create_connection((name, port), self._timeout_s)  # type: ignore[arg-type]
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return found

    def _wrapped(self, found: socket.socket, tls: ssl.SSLContext) -> socket.socket:
        if type(found) is socket.socket:
            return tls.wrap_socket(found, server_hostname=self._host)
        from urllib3.util.ssltransport import SSLTransport  # TLS within TLS, to a proxy by https

        return SSLTransport(found, tls, server_hostname=self._host)  # type: ignore[return-value]

    def _tunnel(self, found: socket.socket, proxy: Proxy) -> None:
        host = f"[{self._host}]" if ":" in self._host else self._host
        lines = [f"CONNECT {host}:{self._port} HTTP/1.1", f"host: {host}:{self._port}"]
        lines += [f"{name}: {value}" for name, value in proxy.headers.items()]
        found.sendall(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
        told = b""
        while not told.endswith(b"\r\n\r\n"):
            byte = found.recv(1)  # one at a time: what follows is the server's
            if not byte or len(told) > MAX_ANSWER_BYTES:
                raise StorageUnavailable(f"the proxy {proxy.host} gave no proper answer")
            told += byte
        status = told.split(b"\r\n", 1)[0].decode("latin-1").split(" ")[1:2]
        if status == ["200"]:
            return
        raise tunnel_refused(status[0] if status and status[0].isdigit() else "nothing", host)


def tunnel_refused(status: str, where: str) -> PoiesisError:
    """What a proxy's answer to CONNECT means."""
    if status == "407":
        return AccessDenied(f"{where}: {PROXY_WANTS}")
    if status in ("401", "403", "405"):
        return AccessDenied(f"{where}: the proxy does not let us go there (status {status})")
    return StorageUnavailable(f"{where}: the proxy cannot reach it (status {status})")


def _basic(user: str, password: str) -> str:
    import binascii

    return "Basic " + binascii.b2a_base64(f"{user}:{password}".encode(), newline=False).decode()
