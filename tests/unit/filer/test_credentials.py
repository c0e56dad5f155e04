"""Credentials over unencrypted connections: known from the URL and the settings, and refused where a task's commands share the network."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from poiesis.filer.credentials import first_unencrypted
from poiesis.filer.settings import FilerSettings
from tests.unit.filer.tasks import bring, given, quick, send, wanted

PLAIN = {"main": {"url": "http://minio:9000"}, "tls": {"url": "https://s3.example.org", "buckets": ["safe"]}}
OPEN = {"open": {"url": "http://minio:9000", "anonymous": True}}


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def netrc(tmp_path: Path) -> str:
    path = tmp_path / "netrc"
    path.write_text("machine known.example login me password secret\n")
    path.chmod(0o600)
    return str(path)


@pytest.mark.parametrize(
    "url, changes, expected",
    [
        ("s3://bucket/key", {"s3": PLAIN}, True),
        ("s3://safe/key", {"s3": PLAIN}, False),
        ("s3://tls/bucket/key", {"s3": PLAIN}, False),
        ("s3://minio:9000/bucket/key", {"s3": PLAIN}, True),
        ("s3://bucket/key", {"s3": OPEN}, False),
        ("s3://bucket/key", {}, False),
        ("http://user:secret@host.example/x", {}, True),
        ("http://host.example/x", {}, False),
        ("https://user:secret@host.example/x", {}, False),
        ("https://host.example/x", {"proxy": "http://me:secret@proxy:3128"}, True),
        ("https://host.example/x", {"proxy": "https://me:secret@proxy:3128"}, False),
        ("https://host.example/x", {"proxy": "proxy:3128"}, False),
        ("ftp://user:secret@host.example/x", {}, True),
        ("ftp://host.example/x", {}, False),
        ("ftp://anonymous:me%40example.org@host.example/x", {}, False),
        ("ftps://user:secret@host.example/x", {}, False),
        ("sftp://user:secret@host.example/x", {}, False),
        ("drs://host.example/id", {}, False),
        ("drs://host.example/id", {"drs_hosts": ("http://host.example",), "drs_token_file": "/token"}, True),
        ("drs://host.example/id", {"drs_hosts": ("host.example",), "drs_token_file": "/token"}, False),
        ("file:///x", {}, False),
        ("http://[broken", {}, False),
        ("not a URL", {}, False),
    ],
)
def test_unencrypted_credentials_are_determined_from_the_url(
    url: str, changes: dict[str, object], expected: bool
) -> None:
    assert first_unencrypted([url], FilerSettings(**changes)) == (url if expected else None)  # type: ignore[arg-type]


@pytest.mark.parametrize("scheme", ["http", "ftp"])
def test_logins_of_the_netrc_file_count(netrc: str, scheme: str) -> None:
    settings = FilerSettings(netrc_file=netrc)
    assert first_unencrypted([f"{scheme}://other.example/x", f"{scheme}://known.example/x"], settings) == (
        f"{scheme}://known.example/x"
    )


def test_a_netrc_file_that_only_the_filers_can_read_counts_for_every_host() -> None:
    assert first_unencrypted(["http://host.example/x"], FilerSettings(netrc_file="/nowhere/netrc")) is not None


def test_each_host_is_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def ask(url: str, _: FilerSettings) -> bool:
        asked.append(url)
        return False

    monkeypatch.setattr("poiesis.filer.registry.sends_unencrypted", ask)
    assert first_unencrypted((f"s3://bucket/{i}" for i in range(10_000)), FilerSettings()) is None
    assert asked == ["s3://bucket/0"]


@pytest.mark.parametrize(
    "url", ["http://user:secret@127.0.0.1:1/x", "ftp://user:secret@127.0.0.1:1/x", "s3://main/bucket/x"]
)
@pytest.mark.parametrize("site_allows", [False, True])
def test_the_filer_refuses_if_its_document_requires_it(tmp_path: Path, url: str, site_allows: bool) -> None:
    plain = {"main": {"url": "http://127.0.0.1:1", "access_key": "k", "secret_key": "hidden"}}
    settings = quick(s3=plain, allow_unencrypted_credentials=site_allows, attempts=1, http_put=True)
    (tmp_path / "root").mkdir()
    (tmp_path / "root/out").write_text("x")
    for report in (
        bring(tmp_path, given("/x", url), settings=settings, allow_unencrypted_credentials=False),
        send(tmp_path, wanted("/out", url), settings=settings, allow_unencrypted_credentials=False),
    ):
        assert report.error is not None
        assert ("unencrypted" in report.error) is not site_allows
        assert "secret" not in report.error
        assert report.error_code == ("storage_unavailable" if site_allows else "access_denied"), report.error


def test_a_document_without_the_key_allows_them(tmp_path: Path) -> None:
    report = bring(tmp_path, given("/x", "http://user:secret@127.0.0.1:1/x"), settings=quick(attempts=1))
    assert report.error is not None
    assert "unencrypted" not in report.error


@pytest.mark.parametrize("url", ["s3://bucket{}/k", "https://h{}/x", "ftps://h{}/x", "drs://h{}/x", "sftp://h{}/x"])
def test_ten_thousand_different_hosts_take_little_time(tmp_path: Path, url: str) -> None:
    (tmp_path / "netrc").write_text("not a netrc file")
    endpoints = {f"e{i}": {"url": f"https://h{i}:9000"} for i in range(10)}
    settings = FilerSettings(s3=endpoints, netrc_file=str(tmp_path / "netrc"))
    started = time.process_time()
    assert first_unencrypted((url.format(i) for i in range(10_000)), settings) is None
    assert time.process_time() - started < 1.5  # measured: 0.1 to 0.3 s
