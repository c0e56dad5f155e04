"""Keeps user-given URLs from reaching what only this machine can reach: metadata services, the cluster, loopback.

The check is on the address that the socket is about to connect to, after the name was resolved and with no second resolution in
between, so a name that resolves differently each time gains nothing; the connection of every redirect is checked too. Through a
proxy, which resolves names itself, only a name that resolves here can be checked (`FilerSettings.resolve_before_proxy`).
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterable
from typing import Final

from poiesis.domain.errors import AccessDenied, ConfigurationError, StorageUnavailable

_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")
# Besides those that the running version of Python knows: Azure's WireServer, Oracle's metadata (192.0.0.192), translated IPv4 addresses.
_NOT_PUBLIC: Final = [
    ipaddress.ip_network(network)
    for network in ("168.63.129.16", "192.0.0.0/24", "192.88.99.0/24", "::ffff:0:0:0/96", "64:ff9b:1::/48", "3fff::/20")
]

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Guard:
    def __init__(self, allow: Iterable[str] = ()) -> None:
        """`allow`: networks, addresses and host names that may be reached although they are not public. Raises: ConfigurationError."""
        self._networks: list[ipaddress.IPv4Network | ipaddress.IPv6Network] = []
        self._names: set[str] = set()
        for item in allow:
            try:
                self._networks.append(ipaddress.ip_network(item, strict=False))
            except ValueError:
                if "/" in item or not item.strip():
                    raise ConfigurationError(f"filer: {item!r} is neither a network nor a host name") from None
                self._names.add(item.lower().rstrip("."))

    def check(self, host: str, address: str) -> None:
        """Raises: AccessDenied when `address`, which `host` resolved to, is not public and not allowed."""
        found = ipaddress.ip_address(address.partition("%")[0])
        inner = _inside(found)
        for candidate in (found, inner):
            if any(candidate.version == n.version and candidate in n for n in self._networks):
                return
        if self._is_allowed_name(host):
            return
        if not all(_is_public(a) for a in (found, inner)):
            where = host if host == address else f"{host} ({address})"
            raise AccessDenied(
                f"{where} is a private, loopback or link-local address, which this service does not connect to"
            )

    def connect(
        self, host: str, port: int, timeout: float | None, *, is_late: Callable[[], bool] = lambda: False
    ) -> socket.socket:
        """A connection to an address of `host` that passed `check`. `timeout` is for each address, and no other is tried once `is_late`.
        Raises: AccessDenied, StorageUnavailable."""
        name = host.strip("[]")
        try:
            found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise StorageUnavailable(f"the host {name} cannot be resolved: {error}") from error
        last: Exception | None = None
        for family, kind, protocol, _, address in found[:8]:
            if is_late():
                break
            try:
                self.check(name, str(address[0]))
            except AccessDenied as error:
                last = last if isinstance(last, AccessDenied) else error
                continue
            connection = socket.socket(family, kind, protocol)
            try:
                connection.settimeout(timeout)
                connection.connect(address)
                return connection
            except OSError as error:
                connection.close()
                last = error if not isinstance(last, OSError) else last
        if isinstance(last, AccessDenied):
            raise last
        raise StorageUnavailable(f"{name}:{port} cannot be reached: {last or 'no address'}") from last

    def check_name(self, host: str, *, must_resolve: bool) -> None:
        """Check the addresses that `host` resolves to here, for a connection through a proxy, which resolves names itself.

        Raises: AccessDenied for an address as in `check`, and with `must_resolve` for a name that does not resolve here.
        """
        name = host.strip("[]")
        if self._is_allowed_name(name):
            return
        names = {name, name.rstrip(".")}  # a dot at the end keeps resolvers from reading /etc/hosts
        found = [address for each in names for address in _resolved(each)]
        if must_resolve and not found:
            raise AccessDenied(
                f"{name} is reached through a proxy and does not resolve here, so its address cannot be checked"
            )
        for address in found:
            self.check(name, address)

    def _is_allowed_name(self, host: str) -> bool:
        return host.lower().rstrip(".") in self._names


def _resolved(name: str) -> list[str]:
    """Its addresses; none if it does not resolve here."""
    try:
        return [str(address[0]) for *_, address in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)]
    except (OSError, UnicodeError):
        return []


def _is_public(address: Address) -> bool:
    site_local = isinstance(address, ipaddress.IPv6Address) and address.is_site_local
    is_listed = any(address.version == n.version and address in n for n in _NOT_PUBLIC)
    return address.is_global and not (address.is_multicast or site_local or is_listed)


def _inside(address: Address) -> Address:
    """The IPv4 address embedded in an IPv6 one, else itself."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address.sixtofour is not None:
            return address.sixtofour
        if address in _NAT64 or int(address) >> 32 == 0:
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address
