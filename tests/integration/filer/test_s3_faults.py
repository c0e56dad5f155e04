"""S3 downloads from a server that disconnects at any byte, changes the object, or refuses; uploads that fail in the middle."""

from __future__ import annotations

import hashlib
import os
import random
from base64 import b64encode
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from poiesis.filer.s3 import S3Filer
from poiesis.filer.settings import MIB
from tests.integration.filer.servers import Fault, HttpServer, Request
from tests.integration.filer.test_s3 import keys, put, settings_of
from tests.servers import S3Server
from tests.unit.filer.tasks import bring, given, leftovers, quick, send, tree, wanted

SMALL = random.Random(4).randbytes(700)
LARGE = random.Random(5).randbytes(23 * MIB + 17)


def anonymous(web: HttpServer, **changes: Any):
    return quick(s3={"fake": {"url": web.url, "anonymous": True}}, part_bytes=5 * MIB, **changes)


def fetch(volume: Path, web: HttpServer, **changes: Any):
    report = bring(volume, given("/data/x", "s3://bucket/key"), settings=anonymous(web, **changes))
    path = volume / "root/data/x"
    assert leftovers(volume) == []
    got = path.read_bytes() if path.exists() else None
    assert (got is None) == (report.error is not None)
    path.unlink(missing_ok=True)
    return report, got


@pytest.mark.parametrize("reset", [False, True])
def test_a_small_object_truncated_at_every_byte_arrives_complete(volume: Path, web: HttpServer, reset: bool) -> None:
    web.files["/bucket/key"] = SMALL
    for cut in range(0, len(SMALL), 7):
        web.requests.clear()
        web.faults = lambda _, cut=cut: Fault(cut=cut, reset=reset) if len(web.requests) == 1 else None  # type: ignore[misc]
        assert fetch(volume, web)[1] == SMALL


def test_an_object_that_arrives_in_small_steps_arrives_in_the_end(volume: Path, web: HttpServer) -> None:
    web.files["/bucket/key"] = SMALL
    web.faults = lambda _: Fault(cut=10)
    assert fetch(volume, web)[1] == SMALL
    assert len(web.requests) == len(SMALL) / 10


def test_an_object_that_is_always_truncated_makes_no_file(volume: Path, web: HttpServer) -> None:
    web.files["/bucket/key"] = SMALL
    web.faults = lambda _: Fault(cut=0)
    report, got = fetch(volume, web)
    assert got is None
    assert (report.error_code, report.retryable) == ("storage_unavailable", True)


@pytest.mark.parametrize("kind", [None, "FILE"])
def test_a_file_is_compared_with_its_stored_checksum(volume: Path, web: HttpServer, kind: str | None) -> None:
    """As stores do, without one for a range."""
    digest = b64encode(hashlib.sha256(SMALL).digest()).decode()
    web.files["/bucket/key"], web.etags["/bucket/key"] = SMALL, '"same"'

    def checked(request: Request) -> Fault | None:
        if "range" in request.headers or request.headers.get("x-amz-checksum-mode") != "ENABLED":
            return None
        body = SMALL[::-1] if len(web.requests) == 1 else None
        return Fault(headers={"x-amz-checksum-sha256": digest}, body=body, cut=300)

    web.faults = checked
    report = bring(volume, given("/data/x", "s3://bucket/key", type=kind), settings=anonymous(web))
    assert report.error is None, report.error
    assert (volume / "root/data/x").read_bytes() == SMALL
    assert report.files[0].checksum == f"sha256:{hashlib.sha256(SMALL).hexdigest()}"


def test_a_file_of_unknown_size_that_is_large_is_fetched_in_parts(volume: Path, web: HttpServer) -> None:
    web.files["/bucket/key"] = LARGE
    assert fetch(volume, web)[1] == LARGE
    whole = [r for r in web.requests if "range" not in r.headers]
    assert (len(whole), len(web.requests)) == (1, 6)


def test_truncated_parts_of_a_large_object_are_resumed(volume: Path, web: HttpServer) -> None:
    web.files["/bucket/key"] = LARGE
    chance = random.Random(6)
    web.faults = lambda _: Fault(cut=chance.randrange(0, 5 * MIB)) if chance.random() < 0.5 else None
    assert fetch(volume, web, attempts=8)[1] == LARGE
    assert len({r.headers.get("range") for r in web.requests}) >= 5


def test_parts_of_two_versions_are_never_combined(volume: Path, web: HttpServer) -> None:
    other = LARGE[::-1]
    web.files["/bucket/key"] = LARGE

    def change(_: Request) -> Fault | None:
        if len(web.requests) == 3:
            web.files["/bucket/key"] = other
        return None

    web.faults = change
    assert fetch(volume, web)[1] == other


def test_an_object_that_keeps_changing_is_an_error(volume: Path, web: HttpServer) -> None:
    def change(_: Request) -> Fault | None:
        web.files["/bucket/key"] = LARGE[len(web.requests) :]
        return None

    web.files["/bucket/key"] = LARGE
    web.faults = change
    report, got = fetch(volume, web)
    assert got is None
    assert "changed" in str(report.error)


@pytest.mark.parametrize("fault", [Fault(no_range=True), Fault(chunked=True)])
def test_a_server_without_ranges_or_length(volume: Path, web: HttpServer, fault: Fault) -> None:
    web.files["/bucket/key"] = LARGE
    web.faults = lambda _: fault
    report, got = fetch(volume, web)
    assert got == LARGE or report.error is not None


@pytest.mark.parametrize(
    "status, code", [(403, "access_denied"), (404, "not_found"), (503, "storage_unavailable"), (400, "staging_failed")]
)
def test_errors_without_a_body(volume: Path, web: HttpServer, status: int, code: str) -> None:
    web.faults = lambda _: Fault(status=status)
    report, _ = fetch(volume, web)
    assert report.error_code == code


def test_slow_down_is_retried(volume: Path, web: HttpServer) -> None:
    web.files["/bucket/key"] = SMALL
    web.faults = lambda _: Fault(status=503) if len(web.requests) < 3 else None
    assert fetch(volume, web)[1] == SMALL


def test_a_large_object_is_transferred_in_parts(volume: Path, s3: S3Server) -> None:
    (volume / "root/data").mkdir(parents=True)
    (volume / "root/data/x").write_bytes(LARGE)
    settings = replace(settings_of(s3), part_bytes=5 * MIB)
    url = f"s3://{s3.bucket}/large"
    assert send(volume, wanted("/data/x", url), settings=settings).error is None
    assert str(s3.client().stat_object(s3.bucket, "large").etag).endswith("-5")
    assert bring(volume, given("/data/y", url), settings=settings).error is None
    assert (volume / "root/data/y").read_bytes() == LARGE


def test_an_interrupted_upload_leaves_nothing(volume: Path, s3: S3Server) -> None:
    (volume / "root/data").mkdir(parents=True)
    (volume / "root/data/x").write_bytes(LARGE)
    settings = replace(settings_of(s3), part_bytes=5 * MIB, parallel=1)
    calls = iter(range(10**9))
    report = send(
        volume, wanted("/data/x", f"s3://{s3.bucket}/large"), settings=settings, cancelled=lambda: next(calls) > 15
    )
    assert report.error_code == "cancelled"
    assert keys(s3) == {}
    assert list(s3.client()._list_multipart_uploads(s3.bucket).uploads) == []


@pytest.mark.parametrize(
    "answer, code",
    [
        (b"<Error><Code>InternalError</Code><Message>try again</Message></Error>", "storage_unavailable"),
        (b"<Error><Code>AccessDenied</Code></Error>", "access_denied"),
        (b"", "storage_unavailable"),
        (b'<CompleteMultipartUploadResult><ETag>"x-3"</ETag></CompleteMultipartUploadResult>', None),
    ],
)
def test_an_error_after_the_status_of_a_completed_upload_is_an_error(
    volume: Path, web: HttpServer, monkeypatch: pytest.MonkeyPatch, answer: bytes, code: str | None
) -> None:
    (volume / "root").mkdir()
    (volume / "root/x").write_bytes(bytes(11 * MIB))
    monkeypatch.setattr(S3Filer, "_create_upload", lambda *_: "id")
    monkeypatch.setattr(S3Filer, "_put_part", lambda *_: "etag")
    web.post = answer
    report = send(volume, wanted("/x", "s3://bucket/x"), settings=replace(anonymous(web), part_bytes=5 * MIB))
    assert report.error_code == code


def test_the_listing_has_pages_markers_and_odd_names(volume: Path, s3: S3Server) -> None:
    names = [f"p/{i:04}" for i in range(1005)] + ["p/ü +%25&<>\"'", "p/日本/語", "p/sub/"]
    for name in names:
        put(s3, name, b"" if name.endswith("/") else name.encode())
    report = bring(volume, given("/d", f"s3://{s3.bucket}/p/"), settings=settings_of(s3))
    assert report.error is None
    expected: dict[str, bytes | None] = {n[2:]: n.encode() for n in names if not n.endswith("/")}
    assert tree(volume / "root/d") == {**expected, "sub": None}


def listing(web: HttpServer, *keys: str) -> None:
    """Store one byte at each of the keys, and list them."""
    entries = "".join(f"<Contents><Key>{key}</Key><Size>1</Size></Contents>" for key in keys)
    web.faults = lambda r: Fault(body=f"<R>{entries}</R>".encode()) if "list-type" in r.path else None
    for key in keys:
        web.files[f"/bucket/{key}"] = b"x"


@pytest.mark.parametrize(
    "name, problem",
    [
        ("../../../etc/evil", 'has the part ".."'),
        ("/abs", 'has an empty part ("//")'),
        ("a/../../b", 'has the part ".."'),
        ("./a", 'has the part "."'),
        ("a//b", 'has an empty part ("//")'),
    ],
)
def test_a_key_that_no_path_can_have_is_refused(volume: Path, web: HttpServer, name: str, problem: str) -> None:  # I9
    listing(web, f"p/{name}")
    report = bring(volume, given("/data/d", "s3://bucket/p/"), settings=anonymous(web))
    assert report.error_code == "staging_failed"
    assert f"s3://bucket/p/{name}: cannot be staged below /data/d: its name {problem}" in str(report.error)
    assert not (volume.parent / "etc").exists()


@pytest.mark.parametrize("names", [("a", "a/b"), ("a/b", "a")])
def test_a_name_that_is_a_file_and_a_directory_at_once_is_an_error(
    volume: Path, web: HttpServer, names: tuple[str, str]
) -> None:  # I10
    listing(web, *(f"p/{name}" for name in names))
    report = bring(volume, given("/data/d", "s3://bucket/p/"), settings=anonymous(web))
    assert (report.error_code, report.retryable) == ("staging_failed", False)
    assert str(volume) not in str(report.error)
    assert str(report.error) in (
        "s3://bucket/p/a: cannot be staged at /data/d/a: a directory is already there",
        "s3://bucket/p/a/b: cannot be staged at /data/d/a/b: /data/d/a is not a directory",
    )


def test_no_message_shows_where_the_service_keeps_the_volume(volume: Path, web: HttpServer) -> None:
    (volume / "root/data/x").mkdir(parents=True)
    web.files["/bucket/key"] = b"x"
    report = bring(volume, given("/data/x", "s3://bucket/key"), settings=anonymous(web))
    assert str(report.error) == "s3://bucket/key: cannot be staged at /data/x: a directory is already there"
    report = bring(volume, given("/data/x", content="x"), settings=anonymous(web))
    assert str(report.error) == "/data/x: a directory is already there"


def test_an_object_whose_key_ends_in_a_slash_is_a_file_input(
    volume: Path, s3: S3Server, web: HttpServer
) -> None:  # I11
    web.files["/bucket/a/"] = b"bytes"
    report = bring(volume, given("/data/x", "s3://bucket/a/", type="FILE"), settings=anonymous(web))
    assert report.error is None
    assert tree(volume / "root/data") == {"x": b"bytes"}


def test_an_empty_object_whose_key_ends_in_a_slash_is_a_directory(volume: Path, s3: S3Server) -> None:
    put(s3, "a/", b"")
    put(s3, "a/b", b"x")
    report = bring(volume, given("/data/x", f"s3://{s3.bucket}/a/", type="FILE"), settings=settings_of(s3))
    assert report.error is None
    assert tree(volume / "root/data") == {"x/b": b"x"}


@pytest.mark.parametrize("key", ["p/", "p/a/"])
def test_bytes_at_a_key_that_ends_in_a_slash_are_not_lost_in_a_directory(
    volume: Path, web: HttpServer, key: str
) -> None:
    listing(web, key, "p/b")
    report = bring(volume, given("/data/d", "s3://bucket/p/"), settings=anonymous(web))
    assert report.error_code == "staging_failed"
    assert f's3://bucket/{key}: the key ends with "/" but the object is not empty (1 bytes)' in str(report.error)


def test_a_prefix_with_an_empty_part_is_staged(volume: Path, web: HttpServer) -> None:
    def answer(request: Any) -> Fault | None:
        if "list-type" not in request.path:
            return None
        found = "q/1//x" if "prefix=q%2F1%2F%2F" in request.path else None
        return Fault(
            body=f"<R><Contents><Key>{found}</Key><Size>1</Size></Contents></R>".encode() if found else b"<R/>"
        )

    web.faults = answer
    web.files["/bucket/q/1//x"] = b"x"
    report = bring(volume, given("/data/d", "s3://bucket/q/1//", type="DIRECTORY"), settings=anonymous(web))
    assert report.error is None
    assert tree(volume / "root/data/d") == {"x": b"x"}


def test_a_second_slash_at_the_end_of_a_prefix_is_tolerated(volume: Path, s3: S3Server) -> None:
    put(s3, "q/1/x", b"x")
    report = bring(volume, given("/data/d", f"s3://{s3.bucket}/q/1//", type="DIRECTORY"), settings=settings_of(s3))
    assert report.error is None
    assert tree(volume / "root/data/d") == {"x": b"x"}


def test_credentials_of_variables_profiles_and_web_identity(
    volume: Path, s3: S3Server, web: HttpServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    put(s3, "k", b"here")
    bare = {"url": s3.endpoint, "region": s3.region}

    def comes(**endpoint: Any) -> bool:
        report = bring(volume, given("/data/x", f"s3://{s3.bucket}/k"), settings=quick(s3={"m": {**bare, **endpoint}}))
        return report.error is None

    for name in [n for n in os.environ if n.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert not comes()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.secret_key)
    assert comes()
    assert not comes(anonymous=True)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    login = f"aws_access_key_id = {s3.access_key}\naws_secret_access_key = {s3.secret_key}\n"
    (tmp_path / "mine").write_text(f"[lab]\n{login}")
    assert comes(credentials_file=str(tmp_path / "mine"), profile="lab")
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws/credentials").write_text(f"[default]\n{login}")
    assert comes()
    (tmp_path / ".aws/credentials").unlink()
    (tmp_path / "token").write_text("a web identity")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/r")
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", web.url)
    answer = (
        '<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleWithWebIdentityResult>'
        f"<Credentials><AccessKeyId>{s3.access_key}</AccessKeyId><SecretAccessKey>{s3.secret_key}</SecretAccessKey>"
        "<SessionToken>passing</SessionToken><Expiration>2099-01-01T00:00:00Z</Expiration></Credentials>"
        "</AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"
    )
    web.post = answer.encode()
    report = bring(volume, given("/data/x", f"s3://{s3.bucket}/k"), settings=quick(s3={"m": bare}))
    assert any(r.method == "POST" for r in web.requests)
    assert "passing" not in str(report)


def test_server_side_encryption_is_requested(volume: Path, web: HttpServer, tmp_path: Path) -> None:
    web.put_status = 200
    (tmp_path / "key").write_bytes(b"k" * 32)
    (volume / "root/data").mkdir(parents=True)
    (volume / "root/data/x").write_bytes(SMALL)
    for options, header in (
        ({"sse": "AES256"}, ("x-amz-server-side-encryption", "AES256")),
        ({"sse": "aws:kms:mine"}, ("x-amz-server-side-encryption-aws-kms-key-id", "mine")),
        ({"sse_key_file": str(tmp_path / "key")}, ("x-amz-server-side-encryption-customer-algorithm", "AES256")),
    ):
        settings = quick(s3={"fake": {"url": web.url, "anonymous": True, **options}})
        assert send(volume, wanted("/data/x", "s3://bucket/up"), settings=settings).error is None
        assert web.requests[-1].headers[header[0]] == header[1]


def test_a_bucket_in_another_region_is_found(volume: Path, web: HttpServer) -> None:
    web.files["/bucket/key"] = SMALL
    web.faults = lambda _: (
        Fault(status=301, headers={"x-amz-bucket-region": "eu-west-3"}) if len(web.requests) == 1 else None
    )
    assert fetch(volume, web)[1] == SMALL


def test_virtual_style_puts_the_bucket_in_the_host(volume: Path, web: HttpServer) -> None:
    web.files["/key"] = SMALL
    url = web.url.replace("127.0.0.1", "localhost")
    settings = quick(s3={"fake": {"url": url, "anonymous": True, "virtual_style": True}})
    report = bring(volume, given("/data/x", "s3://bucket/key"), settings=settings)
    # bucket.localhost resolves to loopback where the resolver knows RFC 6761
    assert report.error is None or "resolve" in str(report.error) or report.error_code == "storage_unavailable"
    if report.error is None:
        assert web.requests[0].headers["host"].startswith("bucket.localhost:")
