"""s3 against a real S3 server."""

from __future__ import annotations

import io
import random
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from poiesis.filer.settings import FilerSettings
from tests.servers import S3Server
from tests.unit.filer.tasks import bring, given, leftovers, quick, send, tree, wanted


def settings_of(s3: S3Server, **changes: Any) -> FilerSettings:
    endpoint = {"url": s3.endpoint, "region": s3.region, "access_key": s3.access_key, "secret_key": s3.secret_key}
    return quick(s3={"main": endpoint}, stall_timeout=timedelta(seconds=30), **changes)


def put(s3: S3Server, key: str, data: bytes) -> None:
    s3.client().put_object(s3.bucket, key, io.BytesIO(data), len(data))


def keys(s3: S3Server) -> dict[str, int | None]:
    return {str(o.object_name): o.size for o in s3.client().list_objects(s3.bucket, recursive=True)}


@pytest.mark.parametrize("size", [0, 1, 10_000, 6 << 20])
def test_an_object_is_uploaded_and_staged(volume: Path, s3: S3Server, size: int) -> None:
    data = random.Random(size).randbytes(size)
    (volume / "root/data").mkdir(parents=True)
    (volume / "root/data/x").write_bytes(data)
    url = f"s3://{s3.bucket}/some/key with ü+%20?#.txt"
    report = send(volume, wanted("/data/x", url), settings=settings_of(s3))
    assert report.error is None
    assert [(f.url, f.size_bytes) for f in report.files] == [(url, size)]
    assert bring(volume, given("/data/y", url), settings=settings_of(s3)).error is None
    assert (volume / "root/data/y").read_bytes() == data


def test_a_directory_is_uploaded_and_staged(volume: Path, s3: S3Server) -> None:
    root = volume / "root/work"
    (root / "e/f").mkdir(parents=True)
    (root / "empty").mkdir()
    for name in ("a", ".b", "e/c", "e/f/d ü"):
        (root / name).write_text(name)
    assert send(volume, wanted("/work", f"s3://{s3.bucket}/up", "DIRECTORY"), settings=settings_of(s3)).error is None
    assert "up/e/c" in keys(s3)
    report = bring(volume, given("/back", f"s3://{s3.bucket}/up/", type="DIRECTORY"), settings=settings_of(s3))
    assert report.error is None
    assert tree(volume / "root/back") == tree(root)


def test_a_missing_object_is_reported(volume: Path, s3: S3Server) -> None:
    put(s3, "dir/a", b"x")
    for url, code in (
        (f"s3://{s3.bucket}/none", "not_found"),
        (f"s3://{s3.bucket}/di", "not_found"),
        ("s3://no-such-bucket-here/x", "not_found"),
    ):
        report = bring(volume, given("/data/x", url), settings=settings_of(s3))
        assert (report.error_code, report.retryable) == (code, False)
        assert url in str(report.error)
    assert leftovers(volume) == []


def test_wrong_keys_are_denied(volume: Path, s3: S3Server) -> None:
    endpoint = {"url": s3.endpoint, "region": s3.region, "access_key": "test", "secret_key": "wrong-secret"}
    report = bring(volume, given("/data/x", f"s3://{s3.bucket}/x"), settings=quick(s3={"main": endpoint}))
    assert report.error_code == "access_denied"
    assert "wrong-secret" not in str(report)


@pytest.mark.parametrize("form", ["s3://main/{bucket}/k", "s3://{host}/{bucket}/k", "s3://{bucket}/k"])
def test_an_endpoint_is_selected_by_alias_host_or_bucket(volume: Path, s3: S3Server, form: str) -> None:
    put(s3, "k", b"here")
    url = form.format(bucket=s3.bucket, host=s3.endpoint.removeprefix("http://"))
    assert bring(volume, given("/data/x", url), settings=settings_of(s3)).error is None
    assert (volume / "root/data/x").read_bytes() == b"here"
