"""drs, with a real HTTP server as the service."""

from __future__ import annotations

import hashlib
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.integration.filer.servers import Fault, HttpServer
from tests.unit.filer.tasks import bring, given, leftovers, quick, send, tree, wanted

BODY = b"bases" * 1000
API = "/ga4gh/drs/v1/objects"


def offer(web: HttpServer, id: str, **more: Any) -> str:
    web.files[f"{API}/{id}"] = json.dumps({"id": id, "self_uri": "x", "created_time": "2020", **more}).encode()
    return f"drs://{web.url.removeprefix('http://')}/{id}"


def settings(web: HttpServer, **changes: Any):
    return quick(drs_hosts=(web.url,), **changes)


def sums(body: bytes) -> list[dict[str, str]]:
    return [
        {"type": "md5", "checksum": hashlib.md5(body).hexdigest()},
        {"type": "sha-256", "checksum": hashlib.sha256(body).hexdigest()},
    ]


def test_an_object_is_fetched_by_its_access_url_and_headers(volume: Path, web: HttpServer) -> None:
    web.files["/bytes"] = BODY
    method = {"type": "https", "access_url": {"url": f"{web.url}/bytes", "headers": ["Authorization: Basic Zm9v"]}}
    url = offer(web, "one", size=len(BODY), checksums=sums(BODY), access_methods=[{"type": "gs"}, method])
    report = bring(volume, given("/data/x", url), settings=settings(web))
    assert report.error is None
    assert (volume / "root/data/x").read_bytes() == BODY
    assert report.files[0].checksum == f"sha256:{hashlib.sha256(BODY).hexdigest()}"
    assert web.requests[-1].headers["authorization"] == "Basic Zm9v"


def test_an_access_id_is_resolved_with_the_token(volume: Path, web: HttpServer, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret-token\n")
    web.files["/bytes"] = BODY
    url = offer(web, "two", access_methods=[{"type": "https", "access_id": "a b"}])
    web.files[f"{API}/two/access/a b"] = json.dumps({"url": f"{web.url}/bytes"}).encode()
    report = bring(volume, given("/data/x", url), settings=settings(web, drs_token_file=str(tmp_path / "token")))
    assert report.error is None
    assert web.requests[0].headers["authorization"] == "Bearer secret-token"
    assert "authorization" not in web.requests[-1].headers  # the host of the bytes is a different one
    assert "secret-token" not in str(report)


@pytest.mark.parametrize(
    "url, headers", [("{}/bytes", ["Authorization: Basic Zm9v"]), ("{}/bytes", []), ("{secret}/bytes", [])]
)
def test_credentials_for_the_bytes_are_not_sent_unencrypted_where_the_filer_may_not(
    volume: Path, web: HttpServer, url: str, headers: list[str]
) -> None:
    web.files["/bytes"] = BODY
    address = url.format(web.url, secret=web.url.replace("://", "://me:secret@"))
    method = {"type": "https", "access_url": {"url": address, "headers": headers}}
    item = given("/data/x", offer(web, "one", access_methods=[method]))
    report = bring(volume, item, settings=settings(web), allow_unencrypted_credentials=False)
    needs_credentials = bool(headers) or "secret" in url
    assert report.error_code == ("access_denied" if needs_credentials else None)
    assert any(r.path == "/bytes" for r in web.requests) is not needs_credentials


def test_access_headers_are_not_sent_after_a_redirect_to_another_host(volume: Path, web: HttpServer) -> None:
    web.files["/end"] = BODY
    elsewhere = web.url.replace("127.0.0.1", "localhost") + "/end"
    web.faults = lambda r: Fault(redirect=elsewhere) if r.path == "/bytes" else None
    headers = ["Authorization: Basic Zm9v", "X-Api-Key: secret", "Cookie: session=secret"]
    method = {"type": "https", "access_url": {"url": f"{web.url}/bytes", "headers": headers}}
    url = offer(web, "moved", access_methods=[method])
    allowed = settings(web, allow_addresses=("127.0.0.0/8", "::1"))
    assert bring(volume, given("/data/x", url), settings=allowed).error is None
    first, last = web.requests[-2:]
    assert (first.headers["x-api-key"], first.headers["cookie"]) == ("secret", "session=secret")
    assert set(last.headers) == {"host", "accept-encoding", "user-agent"}


def test_access_headers_do_not_change_how_a_request_is_sent(volume: Path, web: HttpServer) -> None:
    web.files["/bytes"] = BODY
    headers = [
        "Host: elsewhere", "content-length : 7", "Transfer-Encoding: chunked", "Range: bytes=0-1", "Connection: close",
        "Accept-Encoding: gzip", "X-A: b\r\nX-B: c", "X\nC: d", "X D: e", "X-E: \u2028", "x-f:g:h", "no header", "",
    ]  # fmt: skip
    method = {"type": "https", "access_url": {"url": f"{web.url}/bytes", "headers": headers}}
    report = bring(volume, given("/data/x", offer(web, "x", access_methods=[method])), settings=settings(web))
    assert (report.error, (volume / "root/data/x").read_bytes()) == (None, BODY)
    sent = web.requests[-1].headers
    assert (sent.pop("x-f"), sent["host"]) == ("g:h", web.url.removeprefix("http://"))
    assert set(sent) == {"host", "accept-encoding", "user-agent"} and sent["accept-encoding"] == "identity"


@pytest.mark.parametrize("name", ["x", "n" * 255])
def test_other_inputs_beside_an_object_are_kept(volume: Path, web: HttpServer, name: str) -> None:
    web.files["/bytes"] = BODY
    url = offer(web, "one", access_methods=[{"type": "https", "access_url": {"url": f"{web.url}/bytes"}}])
    beside = f"/data/{name[:200]}.drs"
    inputs = (given(beside, content="kept"), given(f"/data/{name}", url))
    assert bring(volume, *inputs, settings=settings(web, parallel=1)).error is None
    assert tree(volume / "root/data") == {beside.removeprefix("/data/"): b"kept", name: BODY}


def test_an_object_does_not_replace_a_directory(volume: Path, web: HttpServer) -> None:
    web.files["/bytes"] = BODY
    url = offer(web, "one", access_methods=[{"type": "https", "access_url": {"url": f"{web.url}/bytes"}}])
    (volume / "root/data/x/y").mkdir(parents=True)
    report = bring(volume, given("/data/x", url), settings=settings(web))
    assert report.error_code == "staging_failed" and "a directory is already there" in str(report.error)


@pytest.mark.parametrize("wrong", [{"size": 1}, {"checksums": [{"type": "md5", "checksum": "0" * 32}]}])
def test_a_wrong_size_or_checksum_is_an_error(volume: Path, web: HttpServer, wrong: dict[str, Any]) -> None:
    web.files["/bytes"] = BODY
    method = {"type": "https", "access_url": {"url": f"{web.url}/bytes"}}
    url = offer(web, "bad", access_methods=[method], **wrong)
    report = bring(volume, given("/data/x", url), settings=settings(web))
    assert report.error is not None
    assert tree(volume / "root/data") == {}
    assert leftovers(volume) == []


def test_a_bundle_is_a_directory(volume: Path, web: HttpServer) -> None:
    for name in ("a", "b"):
        web.files[f"/bytes-{name}"] = name.encode()
        offer(web, name, access_methods=[{"type": "https", "access_url": {"url": f"{web.url}/bytes-{name}"}}])
    contents = [{"name": "a.txt", "id": "a"}, {"name": "sub", "contents": [{"name": "b.txt", "id": "b"}]}]
    url = offer(web, "bundle", contents=contents)
    assert bring(volume, given("/data/x", url), settings=settings(web)).error is None
    assert tree(volume / "root/data/x") == {"a.txt": b"a", "sub/b.txt": b"b"}
    evil = offer(web, "evil", contents=[{"name": "../../etc/passwd", "id": "a"}])
    assert "name" in str(bring(volume, given("/data/y", evil), settings=settings(web)).error)


@pytest.mark.parametrize(
    "method",
    [
        {"type": "file", "access_url": {"url": "file:///etc/passwd"}},
        {"type": "https", "access_url": {"url": "/etc/passwd"}},
    ],
)
def test_an_object_cannot_lead_to_files_of_the_service(volume: Path, web: HttpServer, method: dict[str, Any]) -> None:
    url = offer(web, "x", access_methods=[method])
    report = bring(volume, given("/data/x", url), settings=settings(web, file_roots=("/etc",)))
    assert report.error_code == "unsupported_url"


def test_bytes_at_a_private_address_are_refused(volume: Path, web: HttpServer) -> None:
    url = offer(web, "x", access_methods=[{"type": "https", "access_url": {"url": "http://169.254.169.254/latest"}}])
    assert bring(volume, given("/data/x", url), settings=settings(web)).error_code == "access_denied"


def test_refusals(volume: Path, web: HttpServer) -> None:
    host = web.url.removeprefix("http://")
    for url, code in (
        (f"drs://{host}/none", "not_found"),
        ("drs://example.org/x", "access_denied"),
        ("drs://dg.4503:x", "unsupported_url"),
    ):
        assert bring(volume, given("/data/x", url), settings=settings(web)).error_code == code
    (volume / "root/data/x").write_text("x")
    assert send(volume, wanted("/data/x", f"drs://{host}/x"), settings=settings(web)).error_code == "unsupported_url"


def test_a_description_that_is_too_large_or_no_json_is_refused(volume: Path, web: HttpServer) -> None:
    large = offer(web, "large", description="x" * (9 << 20))
    report = bring(volume, given("/data/x", large), settings=settings(web))
    assert (report.error_code, report.retryable) == ("staging_failed", False)
    assert "more than 8388608 bytes" in str(report.error)
    deep = offer(web, "deep")
    web.files[f"{API}/deep"] = b"[" * 200_000
    assert "is not JSON" in str(bring(volume, given("/data/x", deep), settings=settings(web)).error)


def test_a_description_that_arrives_too_slowly_is_an_error(volume: Path, web: HttpServer) -> None:
    url = offer(web, "slow", description="x" * 1000)
    web.faults = lambda _: Fault(drip=0.02, no_range=True)
    slow = settings(web, stall_timeout=timedelta(milliseconds=300), attempts=1)
    assert "fewer than 1024 bytes" in str(bring(volume, given("/data/x", url), settings=slow).error)
