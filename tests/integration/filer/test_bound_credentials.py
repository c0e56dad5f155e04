"""Two users of one S3 server, each bound to separate keys: neither reads or writes the other's bucket, whatever the shared keys may."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from minio import Minio
from minio.error import S3Error

from poiesis.domain.report import FilerReport
from poiesis.filer.settings import FilerSettings
from poiesis.filer.staging import stage
from tests.integration.filer.servers import HttpServer
from tests.servers.s3 import S3Server

Users = dict[str, S3Server]
LARGE = b"x" * (2 * 1024 * 1024)  # is cached


@pytest.fixture(autouse=True)
def shared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, s3_of_users: Users, s3_server: S3Server) -> None:
    """The site's shared keys, which may do everything, in every place where a filer looks for them."""
    for name in [n for n in os.environ if n.startswith("AWS_")]:
        monkeypatch.delenv(name)
    profile = tmp_path / ".aws" / "credentials"
    profile.parent.mkdir()
    profile.write_text(
        f"[default]\naws_access_key_id = {s3_server.access_key}\naws_secret_access_key = {s3_server.secret_key}\n"
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(profile))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_server.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_server.secret_key)
    for user, server in s3_of_users.items():
        put(server.client(), server, "secret.txt", user.encode())
        put(server.client(), server, "large.bin", user.encode() + LARGE)


def put(client: Minio, server: S3Server, key: str, content: bytes) -> None:
    client.put_object(server.bucket, key, io.BytesIO(content), len(content))


@pytest.fixture
def site(s3_server: S3Server, tmp_path: Path) -> FilerSettings:
    endpoint = {
        "url": s3_server.endpoint,
        "region": s3_server.region,
        "access_key": s3_server.access_key,
        "secret_key": s3_server.secret_key,
    }
    return FilerSettings(s3={"lab": endpoint}, attempts=1, cache_dir=str(tmp_path / "cache"))


@pytest.fixture
def bound(site: FilerSettings, tmp_path: Path) -> Callable[..., FilerSettings]:
    """The settings of a user's task, with files of the given content as credentials."""

    def settings(user: str, **files: str) -> FilerSettings:
        directory = tmp_path / f"of-{user}"
        directory.mkdir(exist_ok=True)
        for name, text in (files or keys(user)).items():
            (directory / name).write_text(text)
        # as a site passes them to a container
        values = json.loads(site.to_json())
        values |= {"credentials_dir": str(directory), "credentials_name": f"the Secret of {user}", "cache_scope": user}
        return FilerSettings.from_json(json.dumps(values))

    return settings


def keys(user: str) -> dict[str, str]:
    return {"AWS_ACCESS_KEY_ID": user, "AWS_SECRET_ACCESS_KEY": f"{user}-secret"}


def profile(**sections: str) -> dict[str, str]:
    """A file `credentials` with a section for each name, with the keys of a user."""
    text = "".join(
        f"[{name}]\naws_access_key_id = {user}\naws_secret_access_key = {user}-secret\n"
        for name, user in sections.items()
    )
    return {"credentials": text}


def fetch(settings: FilerSettings, volume: Path, url: str, **more: Any) -> tuple[FilerReport, Path]:
    document = {"inputs": [{"path": "/data/x", "url": url, **more}], "directories": [], "touched": []}
    target = volume / "root" / "data" / "x"
    target.parent.parent.mkdir(parents=True, exist_ok=True)
    return stage("in", document, volume, settings), target


def send(settings: FilerSettings, volume: Path, url: str) -> FilerReport:
    source = volume / "root" / "out"
    source.parent.mkdir(parents=True, exist_ok=True)
    source.write_text("from a task")
    document = {"outputs": [{"path": "/out", "url": url, "path_prefix": None, "type": "FILE"}], "touched": []}
    return stage("out", document, volume, settings)


@pytest.mark.parametrize("credentials", [keys("ada"), profile(default="ada"), profile(lab="ada", default="eve")])
def test_a_user_reads_and_writes_the_users_own_bucket(
    bound: Callable[..., FilerSettings], s3_of_users: Users, tmp_path: Path, credentials: dict[str, str]
) -> None:
    own, settings = s3_of_users["ada"], bound("ada", **credentials)
    report, target = fetch(settings, tmp_path / "v", f"s3://{own.bucket}/secret.txt")
    assert report.error is None and target.read_text() == "ada"
    assert send(settings, tmp_path / "v", f"s3://{own.bucket}/new.txt").error is None
    assert own.client().stat_object(own.bucket, "new.txt").size == len("from a task")


@pytest.mark.parametrize(
    "url",
    [
        "s3://{bucket}/secret.txt",
        "s3://{bucket}/large.bin",
        "s3://lab/{bucket}/secret.txt",
        "s3://{host}/{bucket}/secret.txt",
        "s3://{bucket}/",
        "s3://{bucket}/./secret.txt",
        "s3://{own}/../{bucket}/secret.txt",
        "s3://{own}/%2e%2e/{bucket}/secret.txt",
        "s3://ada:ada-secret@{host}/{bucket}/secret.txt",
        "s3://test:testtest@{bucket}/secret.txt",
        "http://{host}/{bucket}/secret.txt",
    ],
)
@pytest.mark.parametrize(
    "credentials", [keys("eve"), profile(default="eve"), {"netrc": ""}, {"AWS_ACCESS_KEY_ID": "eve"}]
)
def test_no_user_reads_the_bucket_of_another(
    bound: Callable[..., FilerSettings],
    s3_of_users: Users,
    s3_server: S3Server,
    tmp_path: Path,
    url: str,
    credentials: dict[str, str],
) -> None:
    host = s3_server.endpoint.removeprefix("http://")
    address = url.format(bucket=s3_of_users["ada"].bucket, own=s3_of_users["eve"].bucket, host=host)
    more = {"type": "DIRECTORY"} if address.endswith("/") else {}
    report, target = fetch(bound("eve", **credentials), tmp_path / "v", address, **more)
    refused = report.error_code in ("access_denied", "not_found", "unsupported_url") or "status 400" in str(
        report.error
    )
    assert refused, report.error
    assert report.error is not None
    assert not target.exists() or not any(target.iterdir())
    assert "secret" not in report.error.replace("secret.txt", "").replace("ada-secret", "")


def test_no_user_writes_the_bucket_of_another(
    bound: Callable[..., FilerSettings], s3_of_users: Users, tmp_path: Path
) -> None:
    other = s3_of_users["ada"]
    for url in (f"s3://{other.bucket}/secret.txt", f"s3://lab/{other.bucket}/planted.txt"):
        assert send(bound("eve"), tmp_path / "v", url).error is not None
    with other.client().get_object(other.bucket, "secret.txt") as answer:
        assert answer.read() == b"ada"
    with pytest.raises(S3Error):
        other.client().stat_object(other.bucket, "planted.txt")


@pytest.mark.parametrize(("user", "is_allowed"), [("ada", True), ("eve", False)])
def test_an_object_that_drs_resolves_to_s3_is_read_with_the_users_own_keys_and_no_shared_token(
    site: FilerSettings,
    bound: Callable[..., FilerSettings],
    s3_of_users: Users,
    web: HttpServer,
    tmp_path: Path,
    user: str,
    is_allowed: bool,
) -> None:
    access = {"type": "s3", "access_url": {"url": f"s3://{s3_of_users['ada'].bucket}/secret.txt"}}
    description = {"id": "x", "self_uri": "x", "created_time": "2020", "access_methods": [access]}
    web.files["/ga4gh/drs/v1/objects/x"] = json.dumps(description).encode()
    (tmp_path / "token").write_text("shared-token")
    settings = replace(
        bound(user), drs_hosts=(web.url,), drs_token_file=str(tmp_path / "token"), allow_addresses=("127.0.0.0/8",)
    )
    report, target = fetch(settings, tmp_path / "v", f"drs://{web.url.removeprefix('http://')}/x")
    assert (report.error_code is None) == target.exists() == is_allowed, report.error
    assert is_allowed or report.error_code == "access_denied"
    assert web.requests and not any("authorization" in request.headers for request in web.requests)


def test_a_cached_input_is_only_for_tasks_with_the_same_credentials(
    bound: Callable[..., FilerSettings], site: FilerSettings, s3_of_users: Users, tmp_path: Path
) -> None:
    """A user who may list a bucket gets the names, sizes and ETags that the cache asks for, and must not get the content with them."""
    url, cache = f"s3://{s3_of_users['ada'].bucket}/", tmp_path / "cache" / "entries"
    for settings, volume in ((site, "shared"), (bound("ada"), "ada")):
        report, target = fetch(settings, tmp_path / volume, url, type="DIRECTORY")
        assert report.error is None and (target / "large.bin").read_bytes()[:3] == b"ada"
    assert len(list(cache.glob("*/*"))) == 2
    report, target = fetch(bound("lister"), tmp_path / "lister", url, type="DIRECTORY")
    assert report.error is not None and not (target / "large.bin").exists()
    report, target = fetch(bound("ada"), tmp_path / "again", url, type="DIRECTORY")
    assert report.error is None and (target / "large.bin").read_bytes()[:3] == b"ada"
    assert len(list(cache.glob("*/*"))) == 2


def test_a_missing_secret_is_reported_in_words(bound: Callable[..., FilerSettings], tmp_path: Path) -> None:
    settings = bound("eve", **{"..data": "of the kubelet"})
    report, _ = fetch(settings, tmp_path / "v", "s3://bucket/key")
    assert report.error is not None
    assert report.error.startswith("the Secret of eve is missing or empty")
    assert report.error_code == "configuration"
