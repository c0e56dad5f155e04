"""Connections to servers, direct or through a proxy, with or without TLS: proxies from the environment, trusted certificates, logins by
host, and the errors of the network.

urllib3 could open connections too, but importing urllib3 takes longer than fetching a small file.
"""

from __future__ import annotations

import os
import socket
import time
from binascii import b2a_base64
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit

from poiesis.domain.errors import AccessDenied, ConfigurationError, PoiesisError, StagingFailed, StorageUnavailable
from poiesis.filer.urls import shown

if TYPE_CHECKING:
    import ssl

    from poiesis.filer.guard import Guard

CA_BUNDLES: Final = ("SSL_CERT_FILE", "AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE")
MAX_ANSWER_BYTES: Final = 16 * 1024  # of a proxy to CONNECT
PROXY_AUTHENTICATION: Final = "the proxy refused the user name or password (407)"
PORTS: Final = {"http": 80, "https": 443}


class Proxy:
    """An HTTP proxy in the form of HTTPS_PROXY: `http://user:password@host:port`, or without the scheme."""

    def __init__(self, url: str) -> None:
        """Raises: ConfigurationError."""
        parts = urlsplit(url if "://" in url else f"http://{url}")
        try:
            port = parts.port
        except ValueError:
            port = 0
        if parts.scheme not in PORTS or not parts.hostname or port == 0:
            raise ConfigurationError("filer: invalid proxy: must be an http or https URL (SOCKS is not supported)")
        self.is_secure = parts.scheme == "https"
        self.host, self.port = parts.hostname, port or PORTS[parts.scheme]
        self.headers: dict[str, str] = {}
        """For requests to the proxy itself."""
        if parts.username is not None:
            login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            self.headers["proxy-authorization"] = basic_authorization(login)


def open_connection(
    host: str,
    port: int,
    *,
    timeout_s: float,
    tls: ssl.SSLContext | None = None,
    proxy: Proxy | None = None,
    proxy_tls: ssl.SSLContext | None = None,
    guard: Guard | None = None,
    is_late: Callable[[], bool] = lambda: False,
) -> socket.socket:
    """`tls`: None for plain http. `proxy_tls`: for a proxy that is reached by https. `guard`: checks addresses that are reached directly,
    and tries no other address once `is_late`.

    Raises: OSError, AccessDenied if the guard or the proxy refuses, StorageUnavailable if the proxy cannot reach the host."""
    if proxy:
        found = _opened(proxy.host, proxy.port, timeout_s)
    else:
        found = guard.connect(host, port, timeout_s, is_late=is_late) if guard else _opened(host, port, timeout_s)
    try:
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if proxy and proxy.is_secure and proxy_tls:
            found = proxy_tls.wrap_socket(found, server_hostname=proxy.host)
        if tls is not None:
            if proxy:
                _tunnel(found, proxy, f"[{host}]" if ":" in host else host, port, timeout_s)
            found = _wrapped(found, tls, host)
    except BaseException:
        found.close()
        raise
    return found


def _opened(host: str, port: int, timeout_s: float) -> socket.socket:
    # for a str, the standard library loads the IDNA codec (measured: 4 ms)
    name = host.encode("ascii") if host.isascii() else host
    return socket.create_connection((name, port), timeout_s)  # type: ignore[arg-type]


def _wrapped(found: socket.socket, tls: ssl.SSLContext, host: str) -> socket.socket:
    if type(found) is socket.socket:
        return tls.wrap_socket(found, server_hostname=host)
    from urllib3.util.ssltransport import SSLTransport  # TLS within TLS, for a proxy reached by https

    return SSLTransport(found, tls, server_hostname=host)  # type: ignore[return-value]


def _tunnel(found: socket.socket, proxy: Proxy, host: str, port: int, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    lines = [f"CONNECT {host}:{port} HTTP/1.1", f"host: {host}:{port}"]
    lines += [f"{name}: {value}" for name, value in proxy.headers.items()]
    found.sendall(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = found.recv(1)  # one at a time: the bytes after the head are the server's
        if not byte or len(head) > MAX_ANSWER_BYTES or time.monotonic() > deadline:
            raise StorageUnavailable(f"the proxy {proxy.host} sent no valid response")
        head += byte
    status = "".join(head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")[1:2])
    if status == "407":
        raise AccessDenied(f"{host}: {PROXY_AUTHENTICATION}")
    if status in ("401", "403", "405"):
        raise AccessDenied(f"{host}: the proxy refused the connection (status {status})")
    if status != "200":
        status = status if status.isdigit() else "nothing"
        raise StorageUnavailable(f"{host}: the proxy cannot reach the host (status {status})")


@contextmanager
def network_errors(url: str) -> Iterator[None]:
    """Translate the errors of a connection or its TLS, and of values that cannot be sent."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise network_error(url, error, str(error)[:200] or type(error).__name__) from error


def network_error(url: str, error: Exception, text: str) -> PoiesisError:
    """The error of a request without a response. `text`: the part of it that may be shown."""
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return StagingFailed(f"{shown(url)}: the server's certificate is not trusted")
    if isinstance(error, ValueError):
        return StagingFailed(f"{shown(url)}: {text}")
    return StorageUnavailable(f"{shown(url)}: {text}")


def basic_authorization(login: str) -> str:
    """`login`: user and password, separated by a colon."""
    return "Basic " + b2a_base64(login.encode(), newline=False).decode()


def proxy_of(scheme: str, host: str) -> str | None:
    """The proxy for a host by HTTPS_PROXY, HTTP_PROXY and NO_PROXY. (The standard library's reader costs 20 ms of imports.)"""
    for name in os.environ.get("no_proxy", os.environ.get("NO_PROXY", "")).split(","):
        if _covers(name.strip().lower(), host.lower().strip("[]")):
            return None
    name = f"{scheme}_proxy"
    # in a CGI program, HTTP_PROXY may come from the request header `Proxy`
    return os.environ.get(name) or (os.environ.get(name.upper()) if "REQUEST_METHOD" not in os.environ else None)


def _covers(item: str, host: str) -> bool:
    """Whether an entry of NO_PROXY (a domain, address or network, with or without a port, or `*`) matches the host."""
    if "/" in item:
        import ipaddress

        try:
            return ipaddress.ip_address(host) in ipaddress.ip_network(item, strict=False)
        except ValueError:
            return False
    if item.startswith("["):
        item = item[1:].partition("]")[0]
    elif item.count(":") == 1:
        item = item.partition(":")[0]
    domain = item.removeprefix("*.").lstrip(".")
    return item == "*" or (domain != "" and (host == domain or host.endswith("." + domain)))


def tls_context(ca_file: str | None = None, *, verify: bool = True) -> ssl.SSLContext:
    """A context that trusts the system's certificates or the environment's bundle, and `ca_file`. Raises: ConfigurationError."""
    import ssl  # a seventh of the start time, so only where TLS is used

    context = ssl.create_default_context()
    try:
        for name in CA_BUNDLES:
            if path := os.environ.get(name):
                context.load_verify_locations(path)
                break
        else:
            if not context.get_ca_certs():
                import certifi  # some images have no certificates

                context.load_verify_locations(certifi.where())
        if ca_file is not None:
            context.load_verify_locations(ca_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(f"filer: cannot read certificates: {error}") from error
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def logins(path: str | None) -> dict[str, tuple[str, str]]:
    """User and password by host from a netrc file; the key of `default` is empty. Raises: ConfigurationError."""
    if path is None:
        return {}
    import netrc

    try:
        found = netrc.netrc(path).hosts
    except (OSError, netrc.NetrcParseError) as error:
        raise ConfigurationError(f"filer: cannot read the netrc file: {type(error).__name__}") from None
    return {"" if host == "default" else host: (login, password or "") for host, (login, _, password) in found.items()}
