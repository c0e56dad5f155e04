"""S3 and http over TLS with a private certificate authority, and through real proxies."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from poiesis.filer.settings import MIB
from tests.integration.filer.intermediaries import Proxy, TlsFront, closing
from tests.integration.filer.servers import HttpServer
from tests.servers import S3Server
from tests.servers.tls import Authority, authority
from tests.unit.filer.tasks import bring, given, leftovers, quick, send, tree, wanted

SMALL = random.Random(1).randbytes(10_000)
LARGE = random.Random(2).randbytes(23 * MIB + 5)
LOGIN = "ada:p%ss w@rd"
QUOTED = "ada:p%25ss%20w%40rd"


pytestmark = pytest.mark.usefixtures("bare")


@pytest.fixture
def front(s3: S3Server, ours: Authority) -> Iterator[TlsFront]:
    made = TlsFront(s3.endpoint, ours.context())
    with closing(made):
        yield made


@pytest.fixture
def secure_web(web: HttpServer, ours: Authority) -> Iterator[TlsFront]:
    made = TlsFront(web.url, ours.context())
    with closing(made):
        yield made


@pytest.fixture
def proxy() -> Iterator[Callable[..., Proxy]]:
    with ExitStack() as stack:

        def make(**options: Any) -> Proxy:
            made = Proxy(**options)
            stack.enter_context(closing(made))
            return made

        yield make


def settings(s3: S3Server, url: str, ours: Authority | None = None, **changes: Any):
    endpoint = {"url": url, "region": s3.region, "access_key": s3.access_key, "secret_key": s3.secret_key}
    if ours is not None:
        endpoint["ca_file"] = str(ours.ca_file)
    return quick(s3={"main": {**endpoint, **changes.pop("endpoint", {})}}, part_bytes=5 * MIB, **changes)


def assert_round_trip(volume: Path, s3: S3Server, made: Any) -> None:
    """A directory with a small file and one that is transferred in parts."""
    root = volume / "root/out"
    root.mkdir(parents=True)
    (root / "small").write_bytes(SMALL)
    (root / "large").write_bytes(LARGE)
    assert send(volume, wanted("/out", f"s3://{s3.bucket}/up", "DIRECTORY"), settings=made).error is None
    assert bring(volume, given("/back", f"s3://{s3.bucket}/up/", type="DIRECTORY"), settings=made).error is None
    assert tree(volume / "root/back") == tree(root)
    assert leftovers(volume) == []


# ── TLS ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_s3_over_tls_with_a_private_authority(volume: Path, s3: S3Server, front: TlsFront, ours: Authority) -> None:
    assert_round_trip(volume, s3, settings(s3, front.url, ours))


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "AWS_CA_BUNDLE"])
def test_the_authority_may_be_set_by_a_variable(
    volume: Path, s3: S3Server, front: TlsFront, ours: Authority, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, str(ours.ca_file))
    assert_round_trip(volume, s3, settings(s3, front.url))


@pytest.mark.parametrize("size", [len(SMALL), len(LARGE)])
def test_an_untrusted_certificate_is_an_error_at_once(volume: Path, s3: S3Server, front: TlsFront, size: int) -> None:
    (volume / "root/data").mkdir(parents=True)
    (volume / "root/data/x").write_bytes(LARGE[:size])
    url = f"s3://{s3.bucket}/x"
    for report in (
        send(volume, wanted("/data/x", url), settings=settings(s3, front.url)),
        bring(volume, given("/data/y", url), settings=settings(s3, front.url)),
    ):
        assert (report.error_code, report.retryable) == ("staging_failed", False)
        assert "certificate is not trusted" in str(report.error)
    assert (front.accepted, front.secured) == (2, 0)
    assert not (volume / "root/data/y").exists()


def test_a_certificate_for_another_host_is_not_trusted(volume: Path, s3: S3Server, tmp_path: Path) -> None:
    other = authority(tmp_path, "other.example.org")
    made = TlsFront(s3.endpoint, other.context())
    with closing(made):
        report = bring(volume, given("/data/y", f"s3://{s3.bucket}/x"), settings=settings(s3, made.url, other))
        assert "certificate is not trusted" in str(report.error)
        unverified = settings(s3, made.url, endpoint={"verify": False})
        assert_round_trip(volume, s3, unverified)


def test_a_tls_connection_cut_in_the_middle_is_resumed(
    volume: Path, s3: S3Server, front: TlsFront, ours: Authority
) -> None:
    (volume / "root/data").mkdir(parents=True)
    (volume / "root/data/x").write_bytes(LARGE)
    url = f"s3://{s3.bucket}/x"
    made = settings(s3, front.url, ours)
    assert send(volume, wanted("/data/x", url), settings=made).error is None
    before = front.secured
    front.cut = lambda number: 1_000_003 * (number - before) if number < before + 6 else None
    assert bring(volume, given("/data/y", url), settings=made).error is None
    assert (volume / "root/data/y").read_bytes() == LARGE
    assert front.secured > before + 6


def test_https_with_a_private_authority(volume: Path, web: HttpServer, secure_web: TlsFront, ours: Authority) -> None:
    web.files["/x"] = SMALL
    refused = bring(volume, given("/data/x", f"{secure_web.url}/x"), settings=quick())
    assert (refused.error_code, refused.retryable) == ("staging_failed", False)
    assert "not trusted" in str(refused.error)
    report = bring(volume, given("/data/x", f"{secure_web.url}/x"), settings=quick(ca_file=str(ours.ca_file)))
    assert report.error is None
    assert (volume / "root/data/x").read_bytes() == SMALL


# ── proxies ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("login", [None, LOGIN])
@pytest.mark.parametrize("secure", [False, True])
def test_s3_goes_through_a_proxy(
    volume: Path,
    s3: S3Server,
    front: TlsFront,
    ours: Authority,
    proxy: Callable[..., Proxy],
    monkeypatch: pytest.MonkeyPatch,
    secure: bool,
    login: str | None,
) -> None:
    between = proxy(login=login)
    monkeypatch.setenv("HTTPS_PROXY" if secure else "HTTP_PROXY", between.url(QUOTED if login else None))
    assert_round_trip(volume, s3, settings(s3, front.url, ours) if secure else settings(s3, s3.endpoint))
    assert between.seen
    assert all(line.startswith("CONNECT ") for line in between.seen) is secure
    if not secure:
        assert {line.split(" ")[0] for line in between.seen} >= {"GET", "PUT", "POST"}  # the SDK's part too


def test_s3_goes_through_a_proxy_that_is_reached_by_tls(
    volume: Path,
    s3: S3Server,
    front: TlsFront,
    ours: Authority,
    proxy: Callable[..., Proxy],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    between = proxy(tls=ours.context(), login=LOGIN)
    monkeypatch.setenv("SSL_CERT_FILE", str(ours.ca_file))
    for variable, url in (("HTTPS_PROXY", front.url), ("HTTP_PROXY", s3.endpoint)):
        monkeypatch.setenv(variable, between.url(QUOTED))
        here = volume / variable
        here.mkdir()
        between.seen.clear()
        assert_round_trip(here, s3, settings(s3, url))
        assert between.seen


@pytest.mark.parametrize("login", [None, LOGIN])
@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize("setting", [False, True])
def test_http_goes_through_a_proxy(
    volume: Path,
    web: HttpServer,
    secure_web: TlsFront,
    ours: Authority,
    proxy: Callable[..., Proxy],
    monkeypatch: pytest.MonkeyPatch,
    secure: bool,
    login: str | None,
    setting: bool,
) -> None:
    between = proxy(login=login)
    web.files["/x"] = SMALL
    url = between.url(QUOTED if login else None)
    options: dict[str, Any] = {"ca_file": str(ours.ca_file), "http_put": True}
    if setting:
        options["proxy"] = url
    else:
        monkeypatch.setenv("https_proxy" if secure else "http_proxy", url)
    base = secure_web.url if secure else web.url
    assert bring(volume, given("/data/x", f"{base}/x"), settings=quick(**options)).error is None
    assert (volume / "root/data/x").read_bytes() == SMALL
    assert send(volume, wanted("/data/x", f"{base}/up"), settings=quick(**options)).error is None
    assert web.files["/up"] == SMALL
    assert between.seen
    assert all(line.startswith("CONNECT ") for line in between.seen) is secure
    assert not any("proxy-authorization" in r.headers for r in web.requests)


@pytest.mark.parametrize("scheme", ["s3", "s3 over tls", "http", "https"])
def test_a_proxy_that_refuses_the_password_is_asked_once_and_no_message_has_it(
    volume: Path,
    s3: S3Server,
    front: TlsFront,
    web: HttpServer,
    secure_web: TlsFront,
    ours: Authority,
    proxy: Callable[..., Proxy],
    monkeypatch: pytest.MonkeyPatch,
    scheme: str,
) -> None:
    between = proxy(login="ada:other")
    for variable in ("HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, between.url("ada:hushhush"))
    urls = {"http": f"{web.url}/x", "https": f"{secure_web.url}/x"}
    made = settings(s3, front.url if scheme == "s3 over tls" else s3.endpoint, ours, ca_file=str(ours.ca_file))
    report = bring(volume, given("/data/x", urls.get(scheme, f"s3://{s3.bucket}/x")), settings=made)
    assert (report.error_code, report.retryable) == ("access_denied", False)
    assert "hush" not in str(report)
    assert between.seen == []


@pytest.mark.parametrize(("status", "code"), [(403, "access_denied"), (502, "storage_unavailable")])
def test_a_proxy_that_refuses(
    volume: Path,
    s3: S3Server,
    front: TlsFront,
    secure_web: TlsFront,
    ours: Authority,
    proxy: Callable[..., Proxy],
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    code: str,
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", proxy(refuses=status).url())
    made = settings(s3, front.url, ours, ca_file=str(ours.ca_file))
    for url in (f"s3://{s3.bucket}/x", f"{secure_web.url}/x"):
        assert bring(volume, given("/data/x", url), settings=made).error_code == code


def test_a_proxy_that_cannot_be_reached_is_retried(
    volume: Path, s3: S3Server, web: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://ada:hushhush@127.0.0.1:9")
    for url in (f"s3://{s3.bucket}/x", f"{web.url}/x"):
        report = bring(volume, given("/data/x", url), settings=settings(s3, s3.endpoint))
        assert (report.error_code, report.retryable) == ("storage_unavailable", True)
        assert "hush" not in str(report)


@pytest.mark.parametrize(
    "exception", ["127.0.0.1", "*", "example.org, 127.0.0.0/8", "127.0.0.1:9999", "localhost,127.0.0.1"]
)
def test_hosts_in_no_proxy_are_reached_directly(
    volume: Path,
    s3: S3Server,
    web: HttpServer,
    proxy: Callable[..., Proxy],
    monkeypatch: pytest.MonkeyPatch,
    exception: str,
) -> None:
    between = proxy()
    monkeypatch.setenv("HTTP_PROXY", between.url())
    monkeypatch.setenv("NO_PROXY", exception)
    web.files["/x"] = SMALL
    assert bring(volume, given("/data/x", f"{web.url}/x"), settings=quick()).error is None
    assert_round_trip(volume, s3, settings(s3, s3.endpoint))
    assert between.seen == []


@pytest.mark.parametrize("url", ["socks5://127.0.0.1:1080", "http://", "http://127.0.0.1:port"])
def test_an_invalid_proxy_is_an_error(
    volume: Path, s3: S3Server, web: HttpServer, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("HTTP_PROXY", url)
    for source in (f"s3://{s3.bucket}/x", f"{web.url}/x"):
        report = bring(volume, given("/data/x", source), settings=settings(s3, s3.endpoint))
        assert report.error_code == "configuration"
        assert "proxy" in str(report.error)
