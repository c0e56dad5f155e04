"""Files that are replaced while they are read, on servers that ignore the conditions of requests (If-Match, If-Range)."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from poiesis.filer.settings import MIB
from tests.integration.filer.servers import Fault, HttpServer, Request
from tests.unit.filer.tasks import bring, given, leftovers, quick

BODY = random.Random(1).randbytes(16 * MIB)
FAULT: dict[str, Any] = {"unconditional": True, "headers": {"last-modified": "Thu, 01 Jan 2026 00:00:00 GMT"}}
pytestmark = pytest.mark.usefixtures("bare")


@dataclass(frozen=True)
class Source:
    """`path` on the server is `url` with `settings`."""

    url: str
    path: str
    settings: dict[str, Any]


def _s3(web: HttpServer) -> Source:
    return Source("s3://bucket/key", "/bucket/key", {"s3": {"fake": {"url": web.url, "anonymous": True}}})


def _http(web: HttpServer) -> Source:
    return Source(f"{web.url}/file", "/file", {})


def _drs(web: HttpServer) -> Source:
    method = {"type": "https", "access_url": {"url": f"{web.url}/file"}}
    web.files["/ga4gh/drs/v1/objects/one"] = json.dumps({"id": "one", "access_methods": [method]}).encode()
    return Source(f"drs://{web.url.removeprefix('http://')}/one", "/file", {"drs_hosts": (web.url,)})


def _gs(web: HttpServer) -> Source:
    return Source("gs://bucket/key", "/bucket/key", {"cloud": {"gs": {"endpoint": web.url, "anonymous": True}}})


def _az(web: HttpServer) -> Source:
    options = {"endpoint": web.url, "account": "account", "anonymous": True}
    return Source("az://bucket/key", "/bucket/key", {"cloud": {"az": options}})


@pytest.mark.parametrize("source", [_s3, _http, _drs, _gs, _az])
@pytest.mark.parametrize("size", [1000, len(BODY)], ids=["whole", "parts"])
@pytest.mark.parametrize("other", ["shorter", "other", "longer"])
@pytest.mark.parametrize("requests", [1, 2])
def test_a_file_that_is_replaced_is_fetched_again(
    volume: Path, web: HttpServer, source: Callable[[HttpServer], Source], size: int, other: str, requests: int
) -> None:
    """After so many requests for its content, which break off."""
    found, before = source(web), BODY[:size]
    after = {"shorter": before[: size // 10], "other": before[::-1], "longer": before + b"x"}[other]
    web.files[found.path] = before
    broken = iter(range(requests))

    def replace(request: Request) -> Fault | None:
        if request.method != "GET" or request.path != found.path:
            return Fault(**FAULT)
        if (number := next(broken, None)) is None:
            return Fault(**FAULT)
        if number == requests - 1:
            web.files[found.path] = after
        return Fault(**FAULT, body=before, cut=size // 5)

    web.faults = replace
    report = bring(volume, given("/x", found.url, type="FILE"), settings=quick(part_bytes=5 * MIB, **found.settings))
    assert (report.error, leftovers(volume)) == (None, [])
    assert (volume / "root/x").read_bytes() == after


@pytest.mark.parametrize("source", [_s3, _http, _drs, _gs, _az])
@pytest.mark.parametrize("size", [1000, len(BODY)], ids=["whole", "parts"])
def test_a_file_that_is_always_replaced_is_an_error_that_says_so(
    volume: Path, web: HttpServer, source: Callable[[HttpServer], Source], size: int
) -> None:
    found = source(web)
    web.files[found.path] = BODY[:size]

    def replace(request: Request) -> Fault | None:
        if request.method != "GET" or request.path != found.path:
            return Fault(**FAULT)
        if "range" in request.headers and not request.headers["range"].startswith("bytes=0-"):
            return Fault(status=416)
        return Fault(**FAULT, cut=size // 5)

    web.faults = replace
    report = bring(volume, given("/x", found.url, type="FILE"), settings=quick(part_bytes=5 * MIB, **found.settings))
    assert (report.error_code, report.retryable) == ("storage_unavailable", True)
    assert "changed during the transfer" in str(report.error)
