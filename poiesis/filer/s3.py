"""S3: any number of endpoints, each with credentials of its own.

What is asked for once a file takes the thin path of `poiesis.filer.wire`: objects and pages of listings. It costs a fifth of the MinIO
SDK's CPU, and large objects come and go in parallel ranges straight between socket and file. The SDK (`poiesis.filer.sdk`) has the
rest: roles, multipart uploads, odd addresses. It is imported when one of these is met, since importing it takes longer than a small file.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import unquote_plus, urlsplit

from poiesis.domain.errors import (
    FileTooLarge,
    NotFound,
    PoiesisError,
    StagingFailed,
    StorageUnavailable,
    UnsupportedUrl,
)
from poiesis.filer.addresses import shown
from poiesis.filer.registry import Context
from poiesis.filer.s3_checksum import Check
from poiesis.filer.s3_errors import Elsewhere, refusal, translated
from poiesis.filer.s3_site import Place, Site, default_region, get_headers, put_headers
from poiesis.filer.s3_small import Get, Put
from poiesis.filer.settings import MIB, S3Endpoint
from poiesis.filer.small import Exchange
from poiesis.filer.transfer import Changed
from poiesis.filer.wire import MAX_HEAD_BYTES, Answer, Slice, WireError, Writable
from poiesis.filer.writing import Partial, partial
from poiesis.ports.filer import RemoteFile, Sent

T = TypeVar("T")
MAX_PARTS: Final = 10_000
UNSIGNED: Final = "UNSIGNED-PAYLOAD"  # over TLS, which guards the content already
MAX_PAGE_BYTES: Final = 16 * MIB  # a thousand keys of 1 KiB, percent-encoded, with their tags
_AT_ONCE: Final = 1 * MIB  # a body up to this is sent with its head, in one piece
_CONTENT_RANGE: Final = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_BUCKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{1,254}")


class S3Filer:
    def __init__(self, context: Context) -> None:
        self._settings = context.settings
        self._control = context.control
        self._pool = context.pool
        self._endpoints = context.settings.endpoints() or (_default_endpoint(),)
        self._sites: dict[tuple[str, str], Site] = {}
        self._regions: dict[tuple[str, str], str] = {}  # of buckets, as far as they were found elsewhere
        self._lock = threading.Lock()

    def close(self) -> None:
        for site in self._sites.values():
            site.close()

    def stat(self, url: str) -> RemoteFile | None:
        return self._at(url, self._stat)

    def walk(self, url: str) -> Iterator[RemoteFile]:
        _, __, key = self._parsed(url)
        prefix = key.rstrip("/") + "/" if key.strip("/") else ""
        base = url[: len(url) - len(key)]
        base = base if base.endswith("/") else base + "/"
        token = ""
        while True:
            found, token = self._at(url, lambda place, token=token: self._page(place, prefix, token))  # type: ignore[misc]
            for key, size, etag in found:
                name = key[len(prefix) :]
                if not name or name.endswith("/"):
                    yield RemoteFile(base + key, name.rstrip("/"), 0, is_directory=True)
                else:
                    yield RemoteFile(base + key, name, size, etag)
            if not token:
                return

    def _page(self, place: Place, prefix: str, token: str) -> tuple[list[tuple[str, int, str | None]], str]:
        """One page of a listing, of at most a thousand: key, size, ETag; and what the next page is asked for with. Read here, since
        the SDK takes longer over an entry than over a whole request."""
        query = {"list-type": "2", "prefix": prefix, "encoding-type": "url", "max-keys": "1000"}
        if token:
            query["continuation-token"] = token
        bucket = Place(place.url, place.site, place.bucket, "")
        with self._asked(bucket, "GET", query=query) as answer:
            text = answer.read(MAX_PAGE_BYTES)
        from xml.etree import ElementTree  # for listings alone

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
            raise StorageUnavailable(f"{shown(place.url)}: the listing cannot be read") from error
        if more and (not following or following == token):
            raise StagingFailed(f"{shown(place.url)}: the listing has no proper end")
        return entries, following if more else ""

    def fetch(self, file: RemoteFile, target: Path) -> Sent:
        return self._at(file.url, lambda place: self._fetch(place, file, target))

    def send(self, source: int, url: str) -> Sent:
        size = os.fstat(source).st_size
        self._check_name(url)
        if size <= 2 * self._settings.part_bytes:
            return self._at(url, lambda place: self._put(place, source, size))
        return self._at(url, lambda place: self._put_in_parts(place, source, size))

    def getting(self, file: RemoteFile, target: Path) -> Exchange | None:
        if (file.size_bytes or 0) > self._room:
            return None
        return Get(self._control, self._place(file.url), file, target)

    def putting(self, opened: Callable[[], AbstractContextManager[int]], size: int, url: str) -> Exchange | None:
        if size > self._room:
            return None
        self._check_name(url)
        return Put(self._control, self._place(url), opened, self._room)

    @property
    def _room(self) -> int:
        """For the body of an answer that is in the connection's buffer as a whole."""
        return max(0, self._settings.buffer_bytes - MAX_HEAD_BYTES)

    def _check_name(self, url: str) -> None:
        """Of a new object. Raises: UnsupportedUrl, StagingFailed."""
        _, __, key = self._parsed(url)
        if not key or key.endswith("/"):
            raise UnsupportedUrl(f"{shown(url)}: names no object")
        try:
            key.encode()
        except UnicodeEncodeError:
            raise StagingFailed(f"{shown(url)}: the name is no UTF-8, which S3 needs") from None

    def make_directory(self, url: str) -> None:
        if not self._parsed(url)[2].strip("/"):
            return
        marker = url.rstrip("/") + "/"

        def put(place: Place) -> None:
            with self._asked(place, "PUT", headers=place.site.write_headers):
                pass

        self._at(marker, put)

    # one object

    def _stat(self, place: Place) -> RemoteFile | None:
        if not place.key or place.key.endswith("/"):
            return None
        try:
            with self._asked(place, "HEAD", headers=place.site.read_headers) as answer:
                length = answer.headers.get("content-length", "")
                size = int(length) if length.isdigit() else None
                version = answer.headers.get("etag", "").strip('"') or None
        except NotFound:
            return None
        return RemoteFile(place.url, place.key.rsplit("/", 1)[-1], size, version)

    def _fetch(self, place: Place, file: RemoteFile, target: Path) -> Sent:
        if not place.key or place.key.endswith("/"):
            raise NotFound(f"{shown(place.url)}: names no object")
        step = self._settings.part_bytes
        with partial(target, sync=self._control.sync, size_bytes=file.size_bytes) as part:
            if file.size_bytes is not None and file.size_bytes <= 2 * step:
                size, checksum = self._get_whole(place, file.version, part)
                if size != file.size_bytes:
                    raise Changed(f"{shown(place.url)}: {size} bytes came, {file.size_bytes} were listed")
            else:
                size, checksum = self._get_in_parts(place, file, part, step), None
        return Sent(place.url, size, checksum)

    def _get_whole(self, place: Place, version: str | None, part: Partial) -> tuple[int, str | None]:
        with self._asked(place, "GET", headers=get_headers(place.site, version)) as answer:
            total = self._promised(place, answer)
            check = Check(answer.headers)
            size = self._take(answer, part, check)
        if size != total:
            raise StorageUnavailable(f"{shown(place.url)}: {size} bytes of {total} came")
        return size, check.verified(place.url)

    def _get_in_parts(self, place: Place, file: RemoteFile, part: Partial, step: int) -> int:
        """The head of the first range tells the size; then all come beside each other, and one that breaks off is gone on with."""
        headers = {**place.site.read_headers, "range": f"bytes=0-{step - 1}"}
        if file.version:
            headers["if-match"] = f'"{file.version}"'
        try:
            with self._asked(place, "GET", headers=headers) as answer:
                if answer.status == 200:  # a server without ranges
                    total = self._promised(place, answer)
                    self._check_size(place, total)
                    if self._take(answer, part) != total:
                        raise StorageUnavailable(f"{shown(place.url)}: fewer than {total} bytes came")
                    return total
                first, last, total = self._range(place, answer)
                end = last + 1
                if first != 0 or end != min(step, total):
                    raise StorageUnavailable(
                        f"{shown(place.url)}: the server answered with another range than asked for"
                    )
                self._check_size(place, total)
                etag = answer.headers.get("etag", "")
                if total > step and not etag:
                    raise StagingFailed(
                        f"{shown(place.url)}: the server tells no ETag, so its parts might be of different objects"
                    )
                calls = [lambda: self._get_first(place, part, answer, end, etag, total)]
                calls += [
                    lambda start=start: self._get_range(place, part, start, min(start + step, total), etag, total)  # type: ignore[misc]
                    for start in range(step, total, step)
                ]
                self._pool.together(calls)
        except _EmptyObject:
            return 0
        return total

    def _get_first(self, place: Place, part: Partial, answer: Answer, end: int, etag: str, total: int) -> None:
        reached = 0
        try:
            for count in answer.save(Writable(part.descriptor, 0, part.write)):
                reached += count
                self._control.moved(count)
        except (WireError, OSError) as error:
            if not etag or not reached:
                raise StorageUnavailable(f"{shown(place.url)}: {error}") from error
        if reached < end and not etag:
            raise StorageUnavailable(f"{shown(place.url)}: fewer than {end} bytes came")
        if reached < end:
            self._get_range(place, part, reached, end, etag, total)

    def _get_range(self, place: Place, part: Partial, start: int, end: int, etag: str, total: int) -> None:
        reached = start

        def once() -> None:
            nonlocal reached
            headers = {**place.site.read_headers, "range": f"bytes={reached}-{end - 1}", "if-match": etag}
            with self._asked(place, "GET", headers=headers) as answer:
                if answer.status != 206 or self._range(place, answer) != (reached, end - 1, total):
                    raise StorageUnavailable(
                        f"{shown(place.url)}: the server answered with another range than asked for"
                    )
                for count in answer.save(Writable(part.descriptor, reached, part.write)):
                    reached += count
                    self._control.moved(count)
            if reached != end:
                raise StorageUnavailable(f"{shown(place.url)}: the connection ended early")

        self._control.repeat(once, lambda: reached, final=(Changed,))

    def _take(self, answer: Answer, part: Partial, check: Check | None = None) -> int:
        """All of the answer's body, from the file's beginning; how much that was."""
        size = 0
        if check is None or check.is_void:
            for count in answer.save(Writable(part.descriptor, 0, part.write)):
                size += count
                self._control.moved(count)
            return size
        for view in answer.chunks():
            part.write(view, size)
            check.update(view)
            size += len(view)
            self._control.moved(len(view))
        return size

    def _promised(self, place: Place, answer: Answer) -> int:
        if answer.size_bytes is None:
            raise StagingFailed(f"{shown(place.url)}: the server does not say how long the object is")
        return answer.size_bytes

    def _range(self, place: Place, answer: Answer) -> tuple[int, int, int]:
        match = _CONTENT_RANGE.fullmatch(answer.headers.get("content-range", ""))
        if match is None:
            raise StorageUnavailable(f"{shown(place.url)}: the server answered without a proper range")
        return int(match[1]), int(match[2]), int(match[3])

    def _check_size(self, place: Place, size: int) -> None:
        most = self._settings.max_file_bytes
        if most is not None and size > most:
            raise FileTooLarge(f"{shown(place.url)}: {size} bytes; at most {most}")

    def _put(self, place: Place, source: int, size: int) -> Sent:
        body: bytes | Slice = Slice(source, 0, size)
        if size <= _AT_ONCE:
            body = os.pread(source, size, 0)
            size = len(body)
            digest = hashlib.sha256(body).digest()
        else:
            digest = self._hash(source, 0, size)
        headers = put_headers(place.site, digest)
        with self._asked(place, "PUT", headers=headers, body=body, sha256=digest.hex(), moved=self._control.moved):
            if isinstance(body, bytes):
                self._control.moved(size)
        return Sent(place.url, size, f"sha256:{digest.hex()}")

    def _put_in_parts(self, place: Place, source: int, size: int) -> Sent:
        """Nothing shows under the name before the last part has arrived; after an error nothing is left."""
        step = max(self._settings.part_bytes, -(-size // MAX_PARTS))
        step = -(-step // MIB) * MIB
        client, headers = place.site.client, place.site.write_headers
        upload = self._control.repeat(lambda: client.begin(place.url, place.bucket, place.key, headers))
        starts = range(0, size, step)
        etags = [""] * len(starts)

        def put(index: int) -> None:
            start = index * step
            etags[index] = self._control.repeat(
                lambda: self._put_part(place, source, start, min(step, size - start), upload, index + 1)
            )

        try:
            self._pool.together(lambda index=index: put(index) for index in range(len(starts)))  # type: ignore[misc]
            self._complete(place, upload, etags, size)
        except BaseException:
            client.abort(place.bucket, place.key, upload)
            raise
        return Sent(place.url, size)

    def _put_part(self, place: Place, source: int, start: int, count: int, upload: str, number: int) -> str:
        sha256 = UNSIGNED if place.site.is_secure else self._hash(source, start, count).hex()
        with self._asked(
            place,
            "PUT",
            headers={k: v for k, v in place.site.read_headers.items()},
            query={"partNumber": str(number), "uploadId": upload},
            body=Slice(source, start, count),
            sha256=sha256,
            moved=self._control.moved,
        ) as answer:
            etag = answer.headers.get("etag", "").strip('"')
        if not etag:
            raise StagingFailed(f"{shown(place.url)}: the server confirmed a part without an ETag")
        return etag

    def _complete(self, place: Place, upload: str, etags: list[str], size: int) -> None:
        tried = 0

        def complete() -> None:
            nonlocal tried
            tried += 1
            try:
                if not place.site.client.complete(place.url, place.bucket, place.key, upload, etags):
                    raise StorageUnavailable(f"{shown(place.url)}: the server did not confirm the upload")
            except PoiesisError:
                # an answer that was lost: the upload is gone because it is complete
                if tried > 1 and self._is_there(place, size, len(etags)):
                    return
                raise

        self._control.repeat(complete)

    def _is_there(self, place: Place, size: int, parts: int) -> bool:
        with suppress(PoiesisError):
            found = self._stat(place)
            return found is not None and found.size_bytes == size and str(found.version).endswith(f"-{parts}")
        return False

    def _hash(self, source: int, start: int, count: int) -> bytes:
        digest = hashlib.sha256()
        buffer = memoryview(bytearray(min(self._settings.buffer_bytes, max(count, 1))))
        end = start + count
        while start < end:
            got = os.preadv(source, [buffer[: min(len(buffer), end - start)]], start)
            if got == 0:
                raise StagingFailed("the file became shorter while it was sent")
            digest.update(buffer[:got])
            start += got
        return digest.digest()

    @contextmanager
    def _asked(
        self,
        place: Place,
        method: str,
        *,
        body: bytes | Slice = b"",
        moved: Callable[[int], None] = lambda _: None,
        **signed: Any,
    ) -> Iterator[Answer]:
        """A request over the thin path whose answer is a success; `signed`: what `Site.signed` takes.

        Raises the family of domain.errors, and Elsewhere."""
        try:
            target, headers = place.site.signed(method, place.bucket, place.key, **signed)
            with place.site.wire(place.bucket).request(method, target, headers, body, moved) as answer:
                if answer.status not in (200, 204, 206):
                    if answer.status == 416 and method == "GET":
                        raise _EmptyObject
                    raise refusal(place.url, answer, answer.read(MIB))
                yield answer
        except WireError as error:
            raise StorageUnavailable(f"{shown(place.url)}: {error}") from error
        except (OSError, ValueError) as error:
            raise translated(place.url, error, str(error)[:200] or type(error).__name__) from error

    # where

    def _at(self, url: str, call: Callable[[Place], T]) -> T:
        for _ in range(3):
            try:
                return call(self._place(url))
            except Elsewhere as elsewhere:
                self._moved_to(url, elsewhere.region)
        raise StagingFailed(f"{shown(url)}: its region cannot be found")

    def _moved_to(self, url: str, region: str) -> None:
        endpoint, bucket, _ = self._parsed(url)
        with self._lock:
            self._regions[endpoint.name, bucket] = region

    def _place(self, url: str) -> Place:
        endpoint, bucket, key = self._parsed(url)
        with self._lock:
            region = self._regions.get((endpoint.name, bucket)) or endpoint.region or default_region()
            if (endpoint.name, region) not in self._sites:
                self._sites[endpoint.name, region] = Site(endpoint, region, self._settings)
            return Place(url, self._sites[endpoint.name, region], bucket, key)

    def _parsed(self, url: str) -> tuple[S3Endpoint, str, str]:
        """Endpoint, bucket, key. The key is all that follows, as it is. Raises: UnsupportedUrl."""
        first, _, tail = url.partition("://")[2].partition("/")
        endpoint = next((e for e in self._endpoints if first in (e.name, urlsplit(e.url).netloc)), None)
        if endpoint is not None:
            first, _, tail = tail.partition("/")
        else:
            claiming = (e for e in self._endpoints if any(_claims(pattern, first) for pattern in e.buckets))
            endpoint = next(claiming, self._endpoints[0])
        if not _BUCKET.fullmatch(first):
            raise UnsupportedUrl(f"{shown(url)}: names no bucket; write s3://bucket/key")
        return endpoint, first, tail


class _EmptyObject(Exception):
    """A range of nothing was asked for."""


def _default_endpoint() -> S3Endpoint:
    url = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "https://s3.amazonaws.com"
    return S3Endpoint("aws", url)


def _claims(pattern: str, bucket: str) -> bool:
    from fnmatch import fnmatchcase

    return fnmatchcase(bucket, pattern)
