"""Addresses that user-given URLs may reach, as a table of attempts."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from poiesis.domain.errors import AccessDenied, ConfigurationError, StorageUnavailable
from poiesis.filer.guard import Guard
from tests.unit.filer.tasks import bring, given, quick

PRIVATE = [
    "127.0.0.1",
    "127.9.9.9",
    "0.0.0.0",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "192.0.0.1",
    "192.0.0.192",  # metadata of Oracle Cloud Classic; a global address for some versions of Python
    "168.63.129.16",  # Azure's WireServer, an address of the Internet by its number
    "192.88.99.1",
    "198.18.0.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "::1",
    "::",
    "fe80::1",
    "fc00::1",
    "fd00:ec2::254",
    "ff02::1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:169.254.169.254",
    "::127.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "2002:7f00:1::",
    "2002:a9fe:a9fe::",
    "2001:db8::1",
    "fec0::1",
    "64:ff9b:1::a9fe:a9fe",
    "::ffff:0:7f00:1",
    "::ffff:168.63.129.16",
    "3fff::1",
]


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses_are_refused(address: str) -> None:
    with pytest.raises(AccessDenied, match="does not connect"):
        Guard().check("example.org", address)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "64:ff9b::808:808", "::ffff:8.8.8.8"])
def test_public_addresses_are_allowed(address: str) -> None:
    Guard().check("example.org", address)


def test_addresses_that_the_site_allows_are_allowed() -> None:
    guard = Guard(["10.1.0.0/16", "minio.local", "::1"])
    guard.check("x", "10.1.2.3")
    guard.check("x", "::ffff:10.1.2.3")
    guard.check("MINIO.local.", "127.0.0.1")
    guard.check("x", "::1")
    with pytest.raises(AccessDenied):
        guard.check("x", "10.2.0.1")
    with pytest.raises(ConfigurationError):
        Guard(["10.0.0.0/99"])


def test_a_name_that_resolves_to_loopback_is_refused_at_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same holds for a name with several addresses, and for one that resolves differently each time."""
    asked = []

    def resolve(host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(AccessDenied):
        Guard().connect("rebind.example.org", 80, 1)
    assert asked == ["rebind.example.org"]  # one resolution: the checked address is the one that is connected to


def test_a_name_that_does_not_resolve_is_a_transient_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(*_: object, **__: object) -> list[object]:
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(StorageUnavailable):
        Guard().connect("example.org", 80, 1)


@pytest.mark.parametrize("must_resolve", [False, True])
@pytest.mark.parametrize(
    "host, addresses, is_refused",
    [
        ("public.example", ["8.8.8.8"], (False, False)),
        ("inside.example", ["8.8.8.8", "10.0.0.1"], (True, True)),
        ("inside.example.", ["10.0.0.1"], (True, True)),
        ("only-the-proxy-knows.example", [], (False, True)),
        ("allowed.example", [], (False, False)),
    ],
)
def test_names_behind_a_proxy(
    monkeypatch: pytest.MonkeyPatch, host: str, addresses: list[str], is_refused: tuple[bool, bool], must_resolve: bool
) -> None:
    def resolve(name: str, *_: object, **__: object) -> list[tuple[object, ...]]:
        if not addresses or name.endswith("."):  # as resolvers that know it from a file
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    guard = Guard(["allowed.example"])
    if is_refused[must_resolve]:
        with pytest.raises(AccessDenied, match=host):
            guard.check_name(host, must_resolve=must_resolve)
    else:
        guard.check_name(host, must_resolve=must_resolve)


@pytest.mark.parametrize("scheme", ["http", "https", "drs"])
def test_a_name_that_only_the_proxy_knows_is_refused_if_configured(tmp_path: Path, scheme: str) -> None:
    """The proxy is not contacted: nothing listens on its port."""
    item = given("/data/x", f"{scheme}://nothing.invalid/x")
    for resolve_first, code in ((True, "access_denied"), (False, "storage_unavailable")):
        settings = quick(proxy="http://127.0.0.1:1", resolve_before_proxy=resolve_first, attempts=1)
        report = bring(tmp_path, item, settings=settings)
        assert report.error_code == code, report.error
