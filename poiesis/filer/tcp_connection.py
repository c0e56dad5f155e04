"""One TCP connection to an HTTP server: direct or through a proxy, with or without TLS.

urllib3 could open it too, but importing urllib3 takes longer than fetching a small file.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit

from poiesis.domain.errors import AccessDenied, ConfigurationError, PoiesisError, StorageUnavailable

if TYPE_CHECKING:
    import ssl

MAX_ANSWER_BYTES: Final = 16 * 1024  # of a proxy to CONNECT
PROXY_AUTHENTICATION: Final = "the proxy refused the user name or password (407)"
_PORTS: Final = {"http": 80, "https": 443}


class Proxy:
    """An HTTP proxy in the form of HTTPS_PROXY: `http://user:password@host:port`, or without the scheme."""

    def __init__(self, url: str) -> None:
        """Raises: ConfigurationError."""
        parts = urlsplit(url if "://" in url else f"http://{url}")
        try:
            port = parts.port
        except ValueError:
            port = 0
        if parts.scheme not in _PORTS or not parts.hostname or port == 0:
            raise ConfigurationError("filer: invalid proxy: must be an http or https URL (SOCKS is not supported)")
        self.is_secure = parts.scheme == "https"
        self.host, self.port = parts.hostname, port or _PORTS[parts.scheme]
        host = f"[{self.host}]" if ":" in self.host else self.host
        self.url = f"{parts.scheme}://{host}:{self.port}"
        """Without user and password."""
        self.headers: dict[str, str] = {}
        """For requests to the proxy itself."""
        if parts.username is not None:
            self.headers["proxy-authorization"] = _basic(unquote(parts.username), unquote(parts.password or ""))


class TcpConnection:
    """Open after `connect`. `timeout_s` applies until the first byte of a request."""

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
        """`tls`: None for plain http. `proxy_tls`: for a proxy that is reached by https."""
        self._host, self._port = host, port
        self._timeout_s = timeout_s
        self._tls, self._proxy, self._proxy_tls = tls, proxy, proxy_tls
        self.sock: socket.socket | None = None

    def connect(self) -> None:
        """Raises: OSError, AccessDenied if the proxy refuses the request, StorageUnavailable if it cannot reach the host."""
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
        # for a str, the standard library loads the IDNA codec (measured: 4 ms)
        name = host.encode("ascii") if host.isascii() else host
        found = socket.create_connection((name, port), self._timeout_s)  # type: ignore[arg-type]
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return found

    def _wrapped(self, found: socket.socket, tls: ssl.SSLContext) -> socket.socket:
        if type(found) is socket.socket:
            return tls.wrap_socket(found, server_hostname=self._host)
        from urllib3.util.ssltransport import SSLTransport  # TLS within TLS, for a proxy reached by https

        return SSLTransport(found, tls, server_hostname=self._host)  # type: ignore[return-value]

    def _tunnel(self, found: socket.socket, proxy: Proxy) -> None:
        host = f"[{self._host}]" if ":" in self._host else self._host
        lines = [f"CONNECT {host}:{self._port} HTTP/1.1", f"host: {host}:{self._port}"]
        lines += [f"{name}: {value}" for name, value in proxy.headers.items()]
        found.sendall(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            byte = found.recv(1)  # one at a time: the bytes after the head are the server's
            if not byte or len(head) > MAX_ANSWER_BYTES:
                raise StorageUnavailable(f"the proxy {proxy.host} sent no valid response")
            head += byte
        status = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")[1:2]
        if status == ["200"]:
            return
        raise tunnel_refused(status[0] if status and status[0].isdigit() else "nothing", host)


def tunnel_refused(status: str, where: str) -> PoiesisError:
    """The error of a proxy's response to CONNECT."""
    if status == "407":
        return AccessDenied(f"{where}: {PROXY_AUTHENTICATION}")
    if status in ("401", "403", "405"):
        return AccessDenied(f"{where}: the proxy refused the connection (status {status})")
    return StorageUnavailable(f"{where}: the proxy cannot reach the host (status {status})")


def _basic(user: str, password: str) -> str:
    import binascii

    return "Basic " + binascii.b2a_base64(f"{user}:{password}".encode(), newline=False).decode()
