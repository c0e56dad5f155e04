"""http against a real server that violates the protocol on demand."""

from __future__ import annotations

import base64
import gzip
import random
import zlib
from pathlib import Path
from typing import Any

import pytest

from poiesis.filer import http
from tests.integration.filer.servers import Fault, HttpServer, Request
from tests.unit.filer.tasks import bring, given, leftovers, quick, send, wanted

BODY = random.Random(1).randbytes(40_000)


def fetch(volume: Path, url: str, **changes: object):
    report = bring(volume, given("/data/x", url), settings=quick(**changes))
    path = volume / "root/data/x"
    assert leftovers(volume) == []
    assert path.exists() == (report.error is None)
    return report, path.read_bytes() if path.exists() else None


def test_a_file_is_staged(volume: Path, web: HttpServer) -> None:
    web.files["/a b"] = BODY
    report, got = fetch(volume, f"{web.url}/a%20b?sig=1")
    assert got == BODY
    assert report.files[0].url == f"{web.url}/a%20b"


@pytest.mark.parametrize("type_", ["FILE", None])
def test_a_url_that_ends_in_a_slash_is_a_file(volume: Path, web: HttpServer, type_: str | None) -> None:
    web.files["/files/7/content/"] = BODY
    report = bring(volume, given("/data/x", f"{web.url}/files/7/content/?v=1", type=type_), settings=quick())
    assert (report.error, (volume / "root/data/x").read_bytes()) == (None, BODY)


def test_an_empty_file_is_staged(volume: Path, web: HttpServer) -> None:
    web.files["/e"] = b""
    assert fetch(volume, f"{web.url}/e")[1] == b""


@pytest.mark.parametrize(
    "status, code", [(404, "not_found"), (410, "not_found"), (403, "access_denied"), (401, "access_denied")]
)
def test_permanent_statuses(volume: Path, web: HttpServer, status: int, code: str) -> None:
    web.faults = lambda _: Fault(status=status)
    report, _ = fetch(volume, f"{web.url}/x?secret=1")
    assert (report.error_code, report.retryable) == (code, False)
    assert len(web.requests) == 1
    assert "secret" not in str(report.error)


@pytest.mark.parametrize("status", [500, 502, 503, 504, 429, 408])
def test_transient_statuses(volume: Path, web: HttpServer, status: int) -> None:
    web.files["/x"] = BODY
    web.faults = lambda _: Fault(status=status) if len(web.requests) < 3 else None
    assert fetch(volume, f"{web.url}/x")[1] == BODY


def test_attempts_are_limited(volume: Path, web: HttpServer) -> None:
    web.faults = lambda _: Fault(status=503)
    report, _ = fetch(volume, f"{web.url}/x")
    assert (report.error_code, report.retryable) == ("storage_unavailable", True)
    assert len(web.requests) == 3


def _first_cut(web: HttpServer, fault: Fault) -> Any:
    """The fault for the first request, none for the others."""
    return lambda _: fault if len(web.requests) == 1 else None


def _always(fault: Fault | None) -> Any:
    return lambda _: fault


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_connection_dropped_after_any_byte_is_resumed(
    volume: Path, web: HttpServer, reset: bool, chunked: bool
) -> None:
    body = BODY[:3000]
    for cut in [0, 1, 2, 999, 1000, 1001, 2999]:
        web.files[f"/{cut}"] = body
        web.requests.clear()
        web.faults = _first_cut(web, Fault(cut=cut, reset=reset, chunked=chunked))
        assert fetch(volume, f"{web.url}/{cut}")[1] == body
        (volume / "root/data/x").unlink()
        if cut and not reset and not chunked:
            assert web.requests[1].headers["range"] == f"bytes={cut}-"


def test_a_file_that_changes_during_the_transfer_is_fetched_again(volume: Path, web: HttpServer) -> None:
    web.files["/x"] = BODY

    def fault(_: Request) -> Fault | None:
        if len(web.requests) == 1:
            return Fault(cut=1000)
        web.files["/x"] = BODY[::-1]
        return None

    web.faults = fault
    assert fetch(volume, f"{web.url}/x")[1] == BODY[::-1]


@pytest.mark.parametrize("fault", [Fault(wrong_range=True), Fault(no_range=True)])
def test_a_response_with_another_range_is_refused(volume: Path, web: HttpServer, fault: Fault) -> None:
    web.files["/x"] = BODY
    web.faults = lambda _: Fault(cut=1000) if len(web.requests) == 1 else fault if len(web.requests) == 2 else None
    assert fetch(volume, f"{web.url}/x")[1] == BODY


def test_many_drops_are_tolerated_while_there_is_progress(volume: Path, web: HttpServer) -> None:
    web.files["/x"] = BODY
    web.faults = lambda _: Fault(cut=1000)
    assert fetch(volume, f"{web.url}/x")[1] == BODY
    assert len(web.requests) >= 40


def test_a_response_shorter_than_its_length_is_not_a_file(volume: Path, web: HttpServer) -> None:
    web.files["/x"] = BODY
    web.faults = lambda _: Fault(length=len(BODY) + 1, no_range=True)
    report, got = fetch(volume, f"{web.url}/x")
    assert got is None
    assert report.retryable


def test_a_server_without_length_is_refused(volume: Path, web: HttpServer) -> None:
    web.files["/x"] = BODY
    web.faults = lambda _: Fault(no_length=True)
    report, _ = fetch(volume, f"{web.url}/x")
    assert "no Content-Length" in str(report.error)


def test_a_slow_drip_counts_as_a_stall(volume: Path, web: HttpServer) -> None:
    from datetime import timedelta

    web.files["/x"] = BODY
    web.faults = lambda _: Fault(drip=0.05, no_range=True, headers={"etag": "W/weak"})
    report, _ = fetch(volume, f"{web.url}/x", stall_timeout=timedelta(milliseconds=300), max_resumes=1)
    assert report.retryable
    assert "fewer than" in str(report.error)


def test_chunks_and_compressed_transfer(volume: Path, web: HttpServer) -> None:
    web.files["/x"] = BODY
    web.faults = lambda _: Fault(chunked=True)
    assert fetch(volume, f"{web.url}/x")[1] == BODY
    web.faults = lambda _: Fault(body=gzip.compress(BODY), headers={"content-encoding": "gzip"})
    assert fetch(volume, f"{web.url}/x")[1] == BODY
    packed = gzip.compress(BODY)  # a file that is compressed by its name is not decompressed
    web.faults = lambda _: Fault(body=packed, headers={"content-encoding": "gzip"})
    assert fetch(volume, f"{web.url}/x.gz")[1] == packed


GZIP = {"content-encoding": "gzip"}


@pytest.mark.parametrize("chunked", [False, True])
def test_every_member_of_a_compressed_response_is_staged(volume: Path, web: HttpServer, chunked: bool) -> None:
    """As bgzip, pigz and `cat a.gz b.gz` make them."""
    members = b"".join(gzip.compress(BODY[i : i + 1000]) for i in range(0, len(BODY), 1000))
    web.faults = _always(Fault(body=members + bytes(512), headers=GZIP, chunked=chunked))
    assert fetch(volume, f"{web.url}/x")[1] == BODY


def test_a_truncated_compressed_response_is_not_a_file(volume: Path, web: HttpServer) -> None:
    for whole in (b"", gzip.compress(BODY)):
        web.faults = _always(Fault(body=whole + gzip.compress(BODY)[:-9], headers=GZIP))
        assert fetch(volume, f"{web.url}/x")[0].retryable


@pytest.mark.parametrize("module", [gzip, zlib])
def test_other_bytes_after_a_compressed_response_are_refused(volume: Path, web: HttpServer, module: Any) -> None:
    web.faults = _always(Fault(body=module.compress(BODY) + BODY, headers=GZIP))
    report, _ = fetch(volume, f"{web.url}/x")
    assert (report.error_code, report.retryable) == ("staging_failed", False)
    assert f"{web.url}/x: the compressed response is invalid" in str(report.error)


def test_redirects_are_followed_up_to_a_limit(volume: Path, web: HttpServer) -> None:
    web.files["/end"] = BODY
    web.faults = lambda r: (
        Fault(redirect="/b") if r.path == "/a" else Fault(redirect="/end") if r.path == "/b" else None
    )
    assert fetch(volume, f"{web.url}/a")[1] == BODY
    (volume / "root/data/x").unlink()
    web.faults = lambda r: Fault(redirect=r.path + "x")
    report, _ = fetch(volume, f"{web.url}/loop")
    assert "redirects" in str(report.error)
    assert not report.retryable


@pytest.mark.parametrize(
    "target",
    ["http://169.254.169.254/latest/meta-data", "http://[::1]/", "http://10.0.0.1/", "file:///etc/passwd", "ftp://x/y"],
)
def test_a_redirect_to_a_private_address_is_refused(volume: Path, web: HttpServer, target: str) -> None:
    web.faults = lambda _: Fault(redirect=target)
    report, _ = fetch(volume, f"{web.url}/x")
    assert report.error_code == "access_denied"
    assert len(web.requests) == 1


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "[::1]", "0.0.0.0", "[::ffff:127.0.0.1]", "2130706433", "0x7f.1"]
)
def test_loopback_is_refused_unless_allowed(volume: Path, web: HttpServer, host: str) -> None:
    web.files["/x"] = BODY
    port = web.url.rpartition(":")[2]
    report, _ = fetch(volume, f"http://{host}:{port}/x", allow_addresses=())
    assert report.error_code == "access_denied"
    assert web.requests == []


def test_credentials_are_only_sent_to_their_host(volume: Path, web: HttpServer) -> None:
    web.files["/x"] = BODY
    url = web.url.replace("http://", "http://me:p%40ss@")
    assert fetch(volume, f"{url}/x")[1] == BODY
    assert base64.b64decode(web.requests[0].headers["authorization"].split()[1]) == b"me:p@ss"
    web.requests.clear()
    web.faults = lambda r: Fault(redirect=web.url.replace("127.0.0.1", "localhost") + "/x") if r.path == "/r" else None
    report, got = fetch(volume, f"{url}/r", allow_addresses=("127.0.0.0/8", "::1"))
    assert got == BODY
    assert "authorization" not in web.requests[-1].headers
    assert "ss@" not in str(report)


def test_put_where_the_site_allows_it(volume: Path, web: HttpServer) -> None:
    (volume / "root/data").mkdir(parents=True)
    (volume / "root/data/x").write_bytes(BODY)
    refused = send(volume, wanted("/data/x", f"{web.url}/up"), settings=quick())
    assert refused.error_code == "unsupported_url"
    web.faults = lambda r: (
        Fault(status=503) if len(web.requests) == 1 else Fault(redirect="/up2") if r.path.startswith("/up?") else None
    )
    report = send(volume, wanted("/data/x", f"{web.url}/up?sig=1"), settings=quick(http_put=True))
    assert report.error is None
    assert web.files == {"/up2": BODY}


def test_a_file_larger_than_allowed_is_refused(volume: Path, web: HttpServer) -> None:
    web.files["/x"] = BODY
    for fault in (None, Fault(chunked=True)):
        web.faults = _always(fault)
        report, _ = fetch(volume, f"{web.url}/x", max_file_bytes=1000)
        assert report.error_code == "file_too_large"


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        ("/a b?c d", "/a%20b?c%20d"),
        ("/a%20b%2Fc%zz?x=%2f%", "/a%20b%2Fc%25zz?x=%2f%25"),
        ("/ü?ü#part", "/%C3%BC?%C3%BC"),
        ("/a/../b?x=/?&y=a+b", "/a/../b?x=/?&y=a+b"),
        ("/a\u0001\u007fb", "/a%01%7Fb"),
        ("", "/"),
        ("?q", "/?q"),
    ],
)
def test_a_url_is_percent_encoded_for_its_request(volume: Path, web: HttpServer, written: str, sent: str) -> None:
    fetch(volume, f"{web.url}{written}")
    assert {r.path for r in web.requests} == {sent}


@pytest.mark.parametrize("url", ["http:///x", "http://a b/x", "http://h:99999/x", "http://h:p/x", "http://[::1/x"])
def test_an_invalid_url_is_refused(volume: Path, url: str) -> None:
    report, _ = fetch(volume, url)
    assert report.error_code == "unsupported_url"


def test_idle_connections_are_kept_for_a_bounded_number_of_servers(
    volume: Path, web: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "ORIGINS", 1)
    web.files["/x"] = BODY
    port = web.url.rpartition(":")[2]
    client = http.Client(quick(allow_addresses=("127.0.0.0/8",)))
    for host in ("127.0.0.1", "127.1", "127.0.1", "2130706433"):
        with client.request("GET", f"http://{host}:{port}/x") as response:
            assert response.read() == BODY
    assert [pool._open for pool in client._pools.values()] == [1]
    client.close()
    assert not any(pool._open for pool in client._pools.values())
