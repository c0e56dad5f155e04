"""gs:// and az:// against emulators: keys, large objects, credentials, errors, TLS, proxies. What both share with other schemes is in the
contract suite."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from poiesis.domain.errors import ConfigurationError
from poiesis.filer.credentials import first_unencrypted
from poiesis.filer.registry import readable, writable
from poiesis.filer.settings import MIB, FilerSettings
from tests.integration.filer.intermediaries import Proxy, TlsFront
from tests.servers import AzureServer, GcsServer
from tests.servers.tls import Authority
from tests.unit.filer.tasks import bring, given, leftovers, quick, send, tree, wanted

LARGE = random.Random(4).randbytes(23 * MIB + 5)
PATIENT: dict[str, Any] = {"part_bytes": 5 * MIB, "stall_timeout": timedelta(seconds=30)}
pytestmark = pytest.mark.usefixtures("bare")


@dataclass(frozen=True)
class Store:
    """A bucket of one of the emulators. `settings` find the emulator; credentials are in variables."""

    url: str
    settings: FilerSettings
    put: Callable[[str, bytes], None]
    names: Callable[[], set[str]]

    @property
    def scheme(self) -> str:
        return urlsplit(self.url).scheme

    def at(self, endpoint: str, **changes: object) -> FilerSettings:
        """The settings with another address of the emulator."""
        options = {**self.settings.cloud[self.scheme], "endpoint": endpoint}
        return replace(self.settings, cloud={self.scheme: options}, **changes)  # type: ignore[arg-type]

    @property
    def endpoint(self) -> str:
        return str(self.settings.cloud[self.scheme]["endpoint"])


@pytest.fixture
def gs(gcs: GcsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    (tmp_path / "gcs.json").write_text(gcs.service_account())
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(tmp_path / "gcs.json"))
    settings = quick(cloud={"gs": {"endpoint": gcs.endpoint}}, **PATIENT)
    return Store(f"gs://{gcs.bucket}", settings, gcs.put, gcs.names)


@pytest.fixture
def az(azure: AzureServer, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", azure.key)
    settings = quick(
        cloud={"az": {"endpoint": azure.endpoint, "account": azure.account}},
        part_bytes=5 * MIB,
        stall_timeout=timedelta(seconds=30),
    )
    return Store(f"az://{azure.container}", settings, azure.put, azure.names)


@pytest.fixture(params=["gs", "az"])
def store(request: pytest.FixtureRequest) -> Store:
    found: Store = request.getfixturevalue(request.param)
    return found


def assert_round_trip(volume: Path, store: Store, settings: FilerSettings | None = None) -> None:
    (volume / "root/out").mkdir(parents=True)
    (volume / "root/out/small").write_bytes(b"small")
    (volume / "root/out/empty").write_bytes(b"")
    (volume / "root/out/large").write_bytes(LARGE)
    made = settings or store.settings
    assert send(volume, wanted("/out", f"{store.url}/up", "DIRECTORY"), settings=made).error is None
    assert store.names() == {"up/small", "up/empty", "up/large"}
    assert bring(volume, given("/back", f"{store.url}/up/", type="DIRECTORY"), settings=made).error is None
    assert tree(volume / "root/back") == tree(volume / "root/out")
    assert leftovers(volume) == []


def test_a_large_object_is_transferred_in_parts(volume: Path, store: Store) -> None:
    assert_round_trip(volume, store)
    report = bring(volume, given("/one", f"{store.url}/up/large"), settings=store.settings)
    assert (report.error, report.total_bytes) == (None, len(LARGE))
    assert (volume / "root/one").read_bytes() == LARGE


def test_parts_are_sent_and_fetched_side_by_side(volume: Path, gs: Store, gcs: GcsServer) -> None:
    assert_round_trip(volume, gs)
    assert sum("partNumber=" in request for request in gcs.requests) == 3
    assert sum(request.startswith("GET ") and request.endswith("large") for request in gcs.requests) == 5
    assert gcs.uploads == {}


def test_an_interrupted_upload_shows_nothing(volume: Path, store: Store) -> None:
    (volume / "root").mkdir()
    (volume / "root/x").write_bytes(LARGE)
    calls = iter(range(10**9))
    report = send(volume, wanted("/x", f"{store.url}/x"), settings=store.settings, cancelled=lambda: next(calls) > 15)
    assert report.error_code == "cancelled"
    assert store.names() == set()


def test_a_request_that_fails_is_repeated(volume: Path, gs: Store, gcs: GcsServer) -> None:
    gs.put("a/b", b"x")
    for statuses in ([503], [500, 429, 503, 503]):
        gcs.failures[:] = statuses
        report = bring(volume, given("/d", f"{gs.url}/a/", type="DIRECTORY"), settings=gs.settings)
        assert (report.error, gcs.failures) == (None, [])
    gcs.failures[:] = [503] * 100
    report = bring(volume, given("/d", f"{gs.url}/a/b"), settings=gs.settings)
    assert (report.error_code, report.retryable) == ("storage_unavailable", True)
    gcs.failures.clear()


def test_an_unavailable_store_is_retried(volume: Path, store: Store) -> None:
    away = store.at(store.endpoint.replace(str(urlsplit(store.endpoint).port), "9"))
    report = bring(volume, given("/x", f"{store.url}/x?sig=secret"), settings=away)
    assert (report.error_code, report.retryable) == ("storage_unavailable", True)


def test_a_pattern_of_outputs(volume: Path, store: Store) -> None:
    (volume / "root/out/a").mkdir(parents=True)
    for name in ("a/1.txt", "a/2.txt", "a/3.bin"):
        (volume / "root/out" / name).write_text(name)
    report = send(volume, wanted("/out/*/*.txt", f"{store.url}/p", prefix="/out"), settings=store.settings)
    assert report.error is None
    assert store.names() == {"p/a/1.txt", "p/a/2.txt"}


def test_more_objects_than_fit_on_a_page_of_a_listing(volume: Path, gs: Store) -> None:
    for i in range(1005):
        gs.put(f"many/{i}", b"x")
    report = bring(volume, given("/d", f"{gs.url}/many/", type="DIRECTORY"), settings=replace(gs.settings, parallel=16))
    assert (report.error, report.total_files) == (None, 1005)


# ── keys ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_empty_object_whose_key_ends_in_a_slash_is_a_directory(volume: Path, store: Store) -> None:
    for key in ("d/", "d/sub/", "d/empty/"):
        store.put(key, b"")
    store.put("d/sub/x", b"x")
    store.put("d/none", b"")
    report = bring(volume, given("/d", f"{store.url}/d/", type="DIRECTORY"), settings=store.settings)
    assert report.error is None
    assert tree(volume / "root/d") == {"empty": None, "none": b"", "sub/x": b"x"}


def test_bytes_at_a_key_that_ends_in_a_slash_are_an_error(volume: Path, store: Store) -> None:
    store.put("d/a/", b"bytes")
    store.put("d/b", b"x")
    report = bring(volume, given("/d", f"{store.url}/d/", type="DIRECTORY"), settings=store.settings)
    assert report.error_code == "staging_failed", report.error
    assert f"{store.url}/d/a: is listed but cannot be read" in str(report.error)
    assert 'its key ends with "/", which is not supported' in str(report.error)
    report = bring(volume, given("/f", f"{store.url}/d/a/", type="FILE"), settings=store.settings)
    assert report.error_code == "unsupported_url"
    assert f'{store.url}/d/a/: the key of a file cannot end with "/"' in str(report.error)


def test_bytes_at_the_key_of_the_directory_itself_are_an_error(volume: Path, gs: Store) -> None:
    gs.put("d/", b"bytes")
    gs.put("d/b", b"x")
    report = bring(volume, given("/d", f"{gs.url}/d/", type="DIRECTORY"), settings=gs.settings)
    assert f'{gs.url}/d/: the key ends with "/" but the object is not empty (5 bytes)' in str(report.error)


def test_a_key_with_an_empty_part_is_an_error(volume: Path, store: Store) -> None:
    store.put("q/1//x", b"x")
    for url in (f"{store.url}/q/1//", f"{store.url}/q/", f"{store.url}/q/1//x"):
        report = bring(volume, given("/d", url), settings=store.settings)
        assert report.error_code in ("staging_failed", "unsupported_url")
        assert '"q/1//' in str(report.error) and 'has an empty part ("//")' in str(report.error)
    assert tree(volume / "root") in ({}, {"d": None})


def test_a_key_that_is_a_file_and_a_directory_at_once_is_an_error(volume: Path, store: Store) -> None:
    store.put("t/foo", b"1")
    store.put("t/foo/bar", b"2")
    report = bring(volume, given("/d", f"{store.url}/t/", type="DIRECTORY"), settings=store.settings)
    assert report.error_code == "staging_failed"
    assert str(report.error) in (
        f"{store.url}/t/foo: cannot be staged at /d/foo: a directory is already there",
        f"{store.url}/t/foo/bar: cannot be staged at /d/foo/bar: /d/foo is not a directory",
    )


def test_a_url_without_a_bucket_or_key_is_an_error(volume: Path, store: Store) -> None:
    (volume / "root").mkdir()
    (volume / "root/x").write_text("x")
    for url, message in (
        (f"{store.scheme}:///x", f'missing bucket in "{store.scheme}:///x": use {store.scheme}://bucket/key'),
        (f"{store.scheme}://a!b/x", "invalid bucket name 'a!b'"),
        (store.url, "missing key"),
    ):
        for report in (
            send(volume, wanted("/x", url), settings=store.settings),
            bring(volume, given("/y", url, type="FILE"), settings=store.settings),
        ):
            assert report.error_code in ("unsupported_url", "not_found")
            assert message in str(report.error) or "no such directory" in str(report.error)


# ── credentials ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_wrong_key_is_denied(volume: Path, az: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "d3Jvbmc=")
    report = bring(volume, given("/x", f"{az.url}/x"), settings=az.settings)
    assert (report.error_code, report.retryable) == ("access_denied", False)
    assert "d3Jvbmc=" not in str(report)


def test_credentials_of_azures_own_variables(
    volume: Path, az: Store, azure: AzureServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    az.put("k", b"here")
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_KEY")
    connection = f"DefaultEndpointsProtocol=http;AccountName={azure.account};AccountKey={azure.key};BlobEndpoint="
    for variables, options in (
        ({"AZURE_STORAGE_ACCOUNT": azure.account, "AZURE_STORAGE_KEY": azure.key}, {"endpoint": azure.endpoint}),
        ({"AZURE_STORAGE_ACCOUNT_NAME": azure.account, "AZURE_STORAGE_KEY": azure.key}, {"endpoint": azure.endpoint}),
        ({"AZURE_STORAGE_CONNECTION_STRING": connection + azure.endpoint}, {"endpoint": azure.endpoint}),
    ):
        with monkeypatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            report = bring(volume, given("/x", f"{az.url}/k"), settings=replace(az.settings, cloud={"az": options}))
            assert report.error is None, variables
    report = bring(volume, given("/x", f"{az.url}/k"), settings=replace(az.settings, cloud={"az": {}}))
    assert "Account must be specified" in str(report.error)


def test_public_buckets_need_no_credentials(
    volume: Path, gs: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gs.put("k", b"here")
    monkeypatch.delenv("GOOGLE_SERVICE_ACCOUNT")
    settings = replace(gs.settings, cloud={"gs": {"endpoint": gs.endpoint, "anonymous": True}})
    assert bring(volume, given("/x", f"{gs.url}/k"), settings=settings).error is None
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "missing.json"))
    report = bring(volume, given("/x", f"{gs.url}/k"), settings=gs.settings)
    assert report.error is not None and "missing.json" in report.error


# ── networks ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("source", ["setting", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"])
def test_tls_with_a_private_authority(
    volume: Path, store: Store, ours: Authority, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(TlsFront(store.endpoint, ours.context())) as front:
        secure = store.at(front.url + urlsplit(store.endpoint).path)
        report = bring(volume, given("/x", f"{store.url}/x"), settings=secure)
        assert report.error_code == "staging_failed"
        assert "certificate is not trusted" in str(report.error)
        if source == "setting":
            secure = replace(secure, ca_file=str(ours.ca_file))
        else:
            monkeypatch.setenv(source, str(ours.ca_file))
        assert_round_trip(volume / "tls", store, secure)
        assert front.secured


def test_requests_use_the_proxy(volume: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(Proxy()) as between:
        monkeypatch.setenv("HTTP_PROXY", between.url())
        monkeypatch.setenv("http_proxy", between.url())
        assert_round_trip(volume, store)
        assert between.seen
        between.seen.clear()
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        assert bring(volume, given("/one", f"{store.url}/up/small"), settings=store.settings).error is None
        assert between.seen == []


# ── settings ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_schemes_are_offered_where_they_are_configured() -> None:
    assert {"gs", "az"}.isdisjoint(readable(FilerSettings()) | writable(FilerSettings()))
    assert "gs" in readable(FilerSettings(cloud={"gs": {}})) & writable(FilerSettings(cloud={"gs": {}}))
    assert "az" not in readable(FilerSettings(cloud={"gs": {}}))
    again = FilerSettings.from_json(FilerSettings(cloud={"az": {"account": "lab"}}).to_json())
    assert again.cloud == {"az": {"account": "lab"}}


@pytest.mark.parametrize("cloud, message", [({"gcs": {}}, "'gcs'"), ({"az": {"key": "x"}}, "unknown fields: key")])
def test_unknown_settings_are_refused(cloud: dict[str, dict[str, str]], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        FilerSettings(cloud=cloud)


def test_credentials_go_to_the_providers_own_addresses_encrypted() -> None:
    plain = FilerSettings(cloud={"gs": {"endpoint": "http://127.0.0.1:1"}, "az": {}})
    assert first_unencrypted(["az://c/x", "gs://b/x"], plain) == "gs://b/x"
    public = FilerSettings(cloud={"gs": {"endpoint": "http://127.0.0.1:1", "anonymous": True}})
    assert first_unencrypted(["gs://b/x"], public) is None
