"""Requests to S3: endpoints with their regions, single objects, pages of listings. Used by the filer and by the log store."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar
from urllib.parse import unquote_plus

from poiesis.domain.errors import StagingFailed, StorageUnavailable
from poiesis.filer.http_connection import FileRange, Response
from poiesis.filer.network import network_errors
from poiesis.filer.s3_endpoint import ObjectRef, RegionalEndpoint, default_region
from poiesis.filer.s3_errors import WrongRegion, response_error
from poiesis.filer.s3_urls import parse_s3_url, s3_endpoints
from poiesis.filer.settings import MIB, FilerSettings, S3Endpoint
from poiesis.filer.urls import shown

T = TypeVar("T")
MAX_PAGE_BYTES: Final = 16 * MIB  # a thousand keys of 1 KiB, percent-encoded, with XML tags


class RangeNotSatisfiable(Exception):
    """The requested range begins after the end of the object."""


class S3Client:
    """Raises on construction: ConfigurationError."""

    def __init__(self, settings: FilerSettings) -> None:
        self._settings = settings
        self._endpoints = s3_endpoints(settings)
        self._regional: dict[tuple[str, str], RegionalEndpoint] = {}
        self._regions: dict[tuple[str, str], str] = {}  # of buckets that are not in their endpoint's region
        self._lock = threading.Lock()

    def close(self) -> None:
        for endpoint in self._regional.values():
            endpoint.close()

    def page(
        self, ref: ObjectRef, prefix: str, token: str = "", *, after: str = ""
    ) -> tuple[list[tuple[str, int, str | None]], str]:
        """One page of a listing, at most a thousand entries (key, size, ETag), and the token of the next page. `after`: the key before
        the first one. Parsed here, since the SDK needs more time for an entry than for a whole request."""
        query = {"list-type": "2", "prefix": prefix, "encoding-type": "url", "max-keys": "1000"}
        if token:
            query["continuation-token"] = token
        elif after:
            query["start-after"] = after
        bucket = ObjectRef(ref.url, ref.endpoint, ref.bucket, "")
        with self.request(bucket, "GET", query=query) as response:
            text = response.read(MAX_PAGE_BYTES)
        from xml.etree import ElementTree  # only for listings

        try:
            page = ElementTree.fromstring(text)
            space = page.tag.partition("}")[0] + "}" if page.tag.startswith("{") else ""
            encoded = page.findtext(f"{space}EncodingType") == "url"
            entries = []
            for item in page.iterfind(f"{space}Contents"):
                key = item.findtext(f"{space}Key") or ""
                etag = (item.findtext(f"{space}ETag") or "").strip('"')
                size = int(item.findtext(f"{space}Size") or "")
                entries.append((unquote_plus(key) if encoded else key, size, etag or None))
            following = page.findtext(f"{space}NextContinuationToken") or ""
            more = page.findtext(f"{space}IsTruncated") == "true"
        except (ElementTree.ParseError, ValueError) as error:
            raise StorageUnavailable(f"{shown(ref.url)}: invalid XML in the listing") from error
        if more and (not following or following == token):
            raise StagingFailed(f"{shown(ref.url)}: the listing has no valid continuation token")
        return entries, following if more else ""

    def sha256(self, source: int, start: int, count: int) -> bytes:
        digest = hashlib.sha256()
        buffer = memoryview(bytearray(min(self._settings.buffer_bytes, max(count, 1))))
        end = start + count
        while start < end:
            got = os.preadv(source, [buffer[: min(len(buffer), end - start)]], start)
            if got == 0:
                raise StagingFailed("the file was truncated during the transfer")
            digest.update(buffer[:got])
            start += got
        return digest.digest()

    @contextmanager
    def request(
        self,
        ref: ObjectRef,
        method: str,
        *,
        body: bytes | FileRange = b"",
        moved: Callable[[int], None] = lambda _: None,
        **signed: Any,
    ) -> Iterator[Response]:
        """A request and its successful response; `signed`: arguments of `RegionalEndpoint.signed`.

        Raises the family of domain.errors, WrongRegion and RangeNotSatisfiable."""
        with network_errors(ref.url):
            target, headers = ref.endpoint.signed(method, ref.bucket, ref.key, **signed)
            with ref.endpoint.pool(ref.bucket).request(method, target, headers, body, moved) as response:
                if response.status not in (200, 204, 206):
                    if response.status == 416 and method == "GET":
                        raise RangeNotSatisfiable
                    raise response_error(ref.url, response, response.read(MIB))
                yield response

    def in_region(self, url: str, call: Callable[[ObjectRef], T]) -> T:
        for _ in range(3):
            try:
                return call(self.ref(url))
            except WrongRegion as error:
                endpoint, bucket, _ = self.parsed(url)
                with self._lock:
                    self._regions[endpoint.name, bucket] = error.region
        raise StagingFailed(f"{shown(url)}: its region could not be determined")

    def ref(self, url: str) -> ObjectRef:
        endpoint, bucket, key = self.parsed(url)
        with self._lock:
            region = self._regions.get((endpoint.name, bucket)) or endpoint.region or default_region()
            if (endpoint.name, region) not in self._regional:
                self._regional[endpoint.name, region] = RegionalEndpoint(endpoint, region, self._settings)
            return ObjectRef(url, self._regional[endpoint.name, region], bucket, key)

    def parsed(self, url: str) -> tuple[S3Endpoint, str, str]:
        return parse_s3_url(url, self._endpoints)
