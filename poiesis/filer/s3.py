"""S3: any number of endpoints, each with credentials of its own.

The minio SDK knows credentials (web identity, profiles), addresses, server-side encryption and multipart uploads. What is asked for once a
file takes the thin path of `poiesis.filer.wire`: objects and pages of listings. It costs a fifth of the SDK's CPU, and large objects come
and go in parallel ranges straight between socket and file.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote, unquote_plus, urlsplit
from xml.etree import ElementTree

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError

from poiesis import __version__
from poiesis.domain.errors import (
    AccessDenied,
    ConfigurationError,
    FileTooLarge,
    NotFound,
    PoiesisError,
    StagingFailed,
    StorageUnavailable,
    UnsupportedUrl,
)
from poiesis.filer.addresses import shown
from poiesis.filer.network import proxy_of, tls_context
from poiesis.filer.registry import Context
from poiesis.filer.s3_signature import EMPTY_SHA256, Signer
from poiesis.filer.sdk import (
    AWSConfigProvider,
    EnvAWSProvider,
    IamAwsProvider,
    InvalidResponseError,
    Minio,
    MinioException,
    Part,
    Provider,
    S3Error,
    ServerError,
    SseCustomerKey,
    StaticProvider,
)
from poiesis.filer.settings import MIB, FilerSettings, S3Endpoint
from poiesis.filer.transfer import Changed
from poiesis.filer.wire import Answer, Connectable, Slice, Wire, WireError
from poiesis.filer.writing import Partial, partial
from poiesis.ports.filer import RemoteFile, Sent

T = TypeVar("T")
MAX_PARTS: Final = 10_000
UNSIGNED: Final = "UNSIGNED-PAYLOAD"  # over TLS, which guards the content already
MAX_PAGE_BYTES: Final = 16 * MIB  # a thousand keys of 1 KiB, percent-encoded, with their tags
_AT_ONCE: Final = 1 * MIB  # a body up to this is sent with its head, in one piece
_CODE: Final = re.compile(rb"<Code>([^<]{1,100})</Code>")
_MESSAGE: Final = re.compile(rb"<Message>([^<]{1,500})</Message>")
_REGION: Final = re.compile(rb"<Region>([^<]{1,60})</Region>")
_CONTENT_RANGE: Final = re.compile(r"bytes (\d+)-(\d+)/(\d+)")

_MISSING: Final = {
    "NoSuchKey": "there is no such object",
    "NoSuchBucket": "there is no such bucket",
    "NoSuchVersion": "there is no such version",
    "ResourceNotFound": "there is no such thing",
}
_DENIED: Final = {
    "AccessDenied": "access denied",
    "AllAccessDisabled": "access denied",
    "InvalidAccessKeyId": "the access key is unknown there",
    "SignatureDoesNotMatch": "the secret key is wrong",
    "ExpiredToken": "the session token has expired",
    "InvalidToken": "the session token is not valid there",
    "RequestTimeTooSkewed": "the clocks of this machine and of the store differ by too much; set them right",
}
_PASSING: Final = frozenset(
    {
        "SlowDown",
        "SlowDownRead",
        "SlowDownWrite",
        "InternalError",
        "ServiceUnavailable",
        "RequestTimeout",
        "OperationAborted",
        "ServerBusy",
        "Throttling",
        "ThrottlingException",
        "TooManyRequests",
        "RequestLimitExceeded",
        "BandwidthLimitExceeded",
        "BadDigest",
        "IncompleteBody",
        "XAmzContentSHA256Mismatch",
        "XAmzContentChecksumMismatch",
        "NoSuchUpload",
        "PreconditionFailed",
        "ConditionalRequestConflict",
        "XMinioServerNotInitialized",
    }
)
_FULL: Final = frozenset(
    {"QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "InsufficientStorage"}
)
_PASSING_STATUS: Final = frozenset({408, 429, 500, 502, 503, 504, 509, 520, 521, 522, 523, 524})


class _Elsewhere(Exception):
    """The bucket lives in another region."""

    def __init__(self, region: str) -> None:
        super().__init__(region)
        self.region = region


class _Locked(Provider):
    """The SDK's providers are not made for many threads."""

    def __init__(self, inner: Provider) -> None:
        self._inner = inner
        self._lock = threading.Lock()

    def retrieve(self) -> Any:
        with self._lock:
            return self._inner.retrieve()


class _Site:
    """One endpoint in one region."""

    def __init__(self, endpoint: S3Endpoint, region: str, settings: FilerSettings) -> None:
        self.endpoint, self.region, self._settings = endpoint, region, settings
        parts = urlsplit(endpoint.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigurationError(f"filer: s3 endpoint {endpoint.name!r}: {shown(endpoint.url)} is no http URL")
        self.is_secure = parts.scheme == "https"
        self._tls = tls_context(endpoint.ca_file, verify=endpoint.verify) if self.is_secure else None
        self._proxy = proxy_of(parts.scheme, parts.hostname)
        self._timeout_s = settings.connect_timeout.total_seconds()
        self._stall_s = settings.stall_timeout.total_seconds()
        options: dict[str, Any] = {
            "maxsize": settings.parallel,
            "retries": False,
            "timeout": urllib3.Timeout(connect=self._timeout_s, read=self._stall_s),
            "ssl_context": self._tls,
        }
        manager = urllib3.ProxyManager(self._proxy, **options) if self._proxy else urllib3.PoolManager(**options)
        provider = _provider(endpoint)
        try:
            self.client = Minio(
                parts.netloc,
                credentials=_Locked(provider) if provider else None,
                secure=self.is_secure,
                region=region,
                http_client=manager,
            )
        except ValueError as error:
            raise ConfigurationError(f"filer: s3 endpoint {endpoint.name!r} cannot be used: {error}") from error
        if endpoint.virtual_style:
            self.client.enable_virtual_style_endpoint()  # type: ignore[no-untyped-call]
        self.manager = manager
        self.read_headers, self.write_headers = _sse(endpoint)
        self._wires: dict[str, Wire] = {}
        self._addresses: dict[str, tuple[str, str]] = {}
        self._signer = Signer(region)
        self._lock = threading.Lock()

    def close(self) -> None:
        self.manager.clear()
        for wire in self._wires.values():
            wire.close()

    @contextmanager
    def request(
        self,
        method: str,
        bucket: str,
        key: str,
        *,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
        body: bytes | Slice = b"",
        sha256: str = EMPTY_SHA256,
        moved: Callable[[int], None] = lambda _: None,
    ) -> Iterator[Answer]:
        """One signed request over the thin path. Raises: what `Wire.request` and the SDK's providers raise."""
        netloc, prefix = self._address(bucket)
        path = prefix + quote(key, safe="/~")
        asked = "&".join(f"{quote(k, safe='~')}={quote(v, safe='~')}" for k, v in sorted((query or {}).items()))
        sent = {"host": netloc}
        for name, value in (headers or {}).items():
            sent[name.lower()] = value
        provider = self.client._provider
        if provider is not None:
            credentials = provider.retrieve()
            sent["x-amz-content-sha256"] = sha256
            if credentials.session_token:
                sent["x-amz-security-token"] = credentials.session_token
            self._signer.sign(method, path, asked, sent, sha256, credentials.access_key, credentials.secret_key)
        sent["user-agent"] = f"poiesis/{__version__}"
        target = f"{path}?{asked}" if asked else path
        if self._proxy and not self.is_secure:
            target = f"http://{netloc}{target}"
        with self._wire(netloc).request(method, target, sent, body, moved) as answer:
            yield answer

    def _address(self, bucket: str) -> tuple[str, str]:
        """Host and beginning of the path, as the SDK makes them: by its rules for AWS, virtual style and dots."""
        found = self._addresses.get(bucket)
        if found is None:
            url = self.client._base_url.build(method="GET", region=self.region, bucket_name=bucket)
            found = self._addresses[bucket] = (url.netloc, url.path.rstrip("/") + "/")
        return found

    def _wire(self, netloc: str) -> Wire:
        with self._lock:
            if netloc not in self._wires:
                self._wires[netloc] = Wire(
                    lambda: self._connection(netloc),
                    buffer_bytes=self._settings.buffer_bytes,
                    stall_s=self._stall_s,
                    keep=self._settings.parallel,
                )
            return self._wires[netloc]

    def _connection(self, netloc: str) -> Connectable:
        parts = urlsplit(f"//{netloc}")
        host, port = str(parts.hostname), parts.port
        timeout: Any = self._timeout_s
        if self._proxy:
            via = urlsplit(self._proxy)
            if not self.is_secure:
                return HTTPConnection(str(via.hostname), via.port or 80, timeout=timeout)
            tunnel = HTTPSConnection(str(via.hostname), via.port or 80, timeout=timeout, ssl_context=self._tls)
            headers = {}
            if via.username:
                login = f"{via.username}:{via.password or ''}".encode()
                headers["proxy-authorization"] = "Basic " + base64.b64encode(login).decode()
            tunnel.set_tunnel(host, port or 443, headers)
            return tunnel
        if self.is_secure:
            return HTTPSConnection(host, port, timeout=timeout, ssl_context=self._tls)
        return HTTPConnection(host, port, timeout=timeout)


@dataclass(frozen=True)
class _Place:
    url: str
    site: _Site
    bucket: str
    key: str


class S3Filer:
    def __init__(self, context: Context) -> None:
        self._settings = context.settings
        self._control = context.control
        self._pool = context.pool
        self._endpoints = context.settings.endpoints() or (_default_endpoint(),)
        self._sites: dict[tuple[str, str], _Site] = {}
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

    def _page(self, place: _Place, prefix: str, token: str) -> tuple[list[tuple[str, int, str | None]], str]:
        """One page of a listing, of at most a thousand: key, size, ETag; and what the next page is asked for with. Read here, since
        the SDK takes longer over an entry than over a whole request."""
        query = {"list-type": "2", "prefix": prefix, "encoding-type": "url", "max-keys": "1000"}
        if token:
            query["continuation-token"] = token
        bucket = _Place(place.url, place.site, place.bucket, "")
        with self._asked(bucket, "GET", query=query) as answer:
            text = answer.read(MAX_PAGE_BYTES)
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
        _, __, key = self._parsed(url)
        if not key or key.endswith("/"):
            raise UnsupportedUrl(f"{shown(url)}: names no object")
        try:
            key.encode()
        except UnicodeEncodeError:
            raise StagingFailed(f"{shown(url)}: the name is no UTF-8, which S3 needs") from None
        if size <= 2 * self._settings.part_bytes:
            return self._at(url, lambda place: self._put(place, source, size))
        return self._at(url, lambda place: self._put_in_parts(place, source, size))

    def make_directory(self, url: str) -> None:
        if not self._parsed(url)[2].strip("/"):
            return
        marker = url.rstrip("/") + "/"

        def put(place: _Place) -> None:
            with self._asked(place, "PUT", headers=place.site.write_headers):
                pass

        self._at(marker, put)

    # one object

    def _stat(self, place: _Place) -> RemoteFile | None:
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

    def _fetch(self, place: _Place, file: RemoteFile, target: Path) -> Sent:
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

    def _get_whole(self, place: _Place, version: str | None, part: Partial) -> tuple[int, str | None]:
        headers = {**place.site.read_headers, "x-amz-checksum-mode": "ENABLED"}
        if version:
            headers["if-match"] = f'"{version}"'
        with self._asked(place, "GET", headers=headers) as answer:
            total = self._promised(place, answer)
            check = _Check(answer.headers)
            size = self._take(answer, part, 0, check)
        if size != total:
            raise StorageUnavailable(f"{shown(place.url)}: {size} bytes of {total} came")
        return size, check.verified(place.url)

    def _get_in_parts(self, place: _Place, file: RemoteFile, part: Partial, step: int) -> int:
        """The first range tells the size; the others come beside each other."""
        headers = {**place.site.read_headers, "range": f"bytes=0-{step - 1}"}
        if file.version:
            headers["if-match"] = f'"{file.version}"'
        try:
            with self._asked(place, "GET", headers=headers) as answer:
                if answer.status == 200:  # a server without ranges
                    total = self._promised(place, answer)
                    self._check_size(place, total)
                    if self._take(answer, part, 0) != total:
                        raise StorageUnavailable(f"{shown(place.url)}: fewer than {total} bytes came")
                    return total
                first, last, total = self._range(place, answer)
                etag = answer.headers.get("etag", "")
                if first != 0 or last != min(step, total) - 1:
                    raise StorageUnavailable(
                        f"{shown(place.url)}: the server answered with another range than asked for"
                    )
                self._check_size(place, total)
                if self._take(answer, part, 0) != last + 1:
                    raise StorageUnavailable(f"{shown(place.url)}: fewer than {last + 1} bytes came")
        except _EmptyObject:
            return 0
        if total > step and not etag:
            raise StagingFailed(
                f"{shown(place.url)}: the server tells no ETag, so its parts might be of different objects"
            )
        starts = range(step, total, step)
        self._pool.together(
            lambda start=start: self._get_range(place, part, start, min(start + step, total), etag, total)  # type: ignore[misc]
            for start in starts
        )
        return total

    def _get_range(self, place: _Place, part: Partial, start: int, end: int, etag: str, total: int) -> None:
        reached = start

        def once() -> None:
            nonlocal reached
            headers = {**place.site.read_headers, "range": f"bytes={reached}-{end - 1}", "if-match": etag}
            with self._asked(place, "GET", headers=headers) as answer:
                if answer.status != 206 or self._range(place, answer) != (reached, end - 1, total):
                    raise StorageUnavailable(
                        f"{shown(place.url)}: the server answered with another range than asked for"
                    )
                for view in answer.chunks():
                    part.write(view, reached)
                    reached += len(view)
                    self._control.moved(len(view))
            if reached != end:
                raise StorageUnavailable(f"{shown(place.url)}: the connection ended early")

        self._control.repeat(once, lambda: reached, final=(Changed,))

    def _take(self, answer: Answer, part: Partial, offset: int, check: _Check | None = None) -> int:
        for view in answer.chunks():
            part.write(view, offset)
            if check:
                check.update(view)
            offset += len(view)
            self._control.moved(len(view))
        return offset

    def _promised(self, place: _Place, answer: Answer) -> int:
        if answer.size_bytes is None:
            raise StagingFailed(f"{shown(place.url)}: the server does not say how long the object is")
        return answer.size_bytes

    def _range(self, place: _Place, answer: Answer) -> tuple[int, int, int]:
        match = _CONTENT_RANGE.fullmatch(answer.headers.get("content-range", ""))
        if match is None:
            raise StorageUnavailable(f"{shown(place.url)}: the server answered without a proper range")
        return int(match[1]), int(match[2]), int(match[3])

    def _check_size(self, place: _Place, size: int) -> None:
        most = self._settings.max_file_bytes
        if most is not None and size > most:
            raise FileTooLarge(f"{shown(place.url)}: {size} bytes; at most {most}")

    def _put(self, place: _Place, source: int, size: int) -> Sent:
        body: bytes | Slice = Slice(source, 0, size)
        if size <= _AT_ONCE:
            body = os.pread(source, size, 0)
            size = len(body)
            digest = hashlib.sha256(body).digest()
        else:
            digest = self._hash(source, 0, size)
        headers = {
            **place.site.write_headers,
            "content-type": "application/octet-stream",
            "x-amz-checksum-sha256": base64.b64encode(digest).decode(),
        }
        with self._asked(place, "PUT", headers=headers, body=body, sha256=digest.hex(), moved=self._control.moved):
            if isinstance(body, bytes):
                self._control.moved(size)
        return Sent(place.url, size, f"sha256:{digest.hex()}")

    def _put_in_parts(self, place: _Place, source: int, size: int) -> Sent:
        """Nothing shows under the name before the last part has arrived; after an error nothing is left."""
        step = max(self._settings.part_bytes, -(-size // MAX_PARTS))
        step = -(-step // MIB) * MIB
        client, headers = place.site.client, {**place.site.write_headers}

        def create() -> str:
            with _sdk_errors(place.url):
                return client._create_multipart_upload(place.bucket, place.key, dict(headers))

        upload = self._control.repeat(create)
        starts = range(0, size, step)
        etags: list[str | None] = [None] * len(starts)

        def put(index: int) -> None:
            start = index * step
            etags[index] = self._control.repeat(
                lambda: self._put_part(place, source, start, min(step, size - start), upload, index + 1)
            )

        try:
            self._pool.together(lambda index=index: put(index) for index in range(len(starts)))  # type: ignore[misc]
            parts = [Part(i + 1, str(etag)) for i, etag in enumerate(etags)]
            self._complete(place, upload, parts, size)
        except BaseException:
            with suppress(MinioException, HTTPError, ValueError, OSError):
                client._abort_multipart_upload(place.bucket, place.key, upload)
            raise
        return Sent(place.url, size)

    def _put_part(self, place: _Place, source: int, start: int, count: int, upload: str, number: int) -> str:
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

    def _complete(self, place: _Place, upload: str, parts: Sequence[Part], size: int) -> None:
        tried = 0

        def complete() -> None:
            nonlocal tried
            tried += 1
            try:
                with _sdk_errors(place.url):
                    done = place.site.client._complete_multipart_upload(place.bucket, place.key, upload, list(parts))
                if not done.etag:
                    raise StorageUnavailable(f"{shown(place.url)}: the server did not confirm the upload")
            except PoiesisError:
                # an answer that was lost: the upload is gone because it is complete
                if tried > 1 and self._is_there(place, size, len(parts)):
                    return
                raise

        self._control.repeat(complete)

    def _is_there(self, place: _Place, size: int, parts: int) -> bool:
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
    def _asked(self, place: _Place, method: str, **more: Any) -> Iterator[Answer]:
        """A request whose answer is a success. Raises the family of domain.errors, and _Elsewhere."""
        try:
            with place.site.request(method, place.bucket, place.key, **more) as answer:
                if answer.status not in (200, 204, 206):
                    if answer.status == 416 and method == "GET":
                        raise _EmptyObject
                    raise _refusal(place, answer, answer.read(MIB))
                yield answer
        except WireError as error:
            raise StorageUnavailable(f"{shown(place.url)}: {error}") from error
        except (HTTPError, OSError, ValueError) as error:
            raise translated(place.url, error) from error

    # where

    def _at(self, url: str, call: Callable[[_Place], T]) -> T:
        for _ in range(3):
            try:
                return call(self._place(url))
            except _Elsewhere as elsewhere:
                self._moved_to(url, elsewhere.region)
        raise StagingFailed(f"{shown(url)}: its region cannot be found")

    def _moved_to(self, url: str, region: str) -> None:
        endpoint, bucket, _ = self._parsed(url)
        with self._lock:
            self._regions[endpoint.name, bucket] = region

    def _place(self, url: str) -> _Place:
        endpoint, bucket, key = self._parsed(url)
        with self._lock:
            region = self._regions.get((endpoint.name, bucket)) or endpoint.region or _default_region()
            if (endpoint.name, region) not in self._sites:
                self._sites[endpoint.name, region] = _Site(endpoint, region, self._settings)
            return _Place(url, self._sites[endpoint.name, region], bucket, key)

    def _parsed(self, url: str) -> tuple[S3Endpoint, str, str]:
        """Endpoint, bucket, key. The key is all that follows, as it is. Raises: UnsupportedUrl."""
        first, _, tail = url.partition("://")[2].partition("/")
        endpoint = next((e for e in self._endpoints if first in (e.name, urlsplit(e.url).netloc)), None)
        if endpoint is not None:
            first, _, tail = tail.partition("/")
        else:
            claiming = (e for e in self._endpoints if any(fnmatchcase(first, pattern) for pattern in e.buckets))
            endpoint = next(claiming, self._endpoints[0])
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:-]{1,254}", first):
            raise UnsupportedUrl(f"{shown(url)}: names no bucket; write s3://bucket/key")
        return endpoint, first, tail


class _EmptyObject(Exception):
    """A range of nothing was asked for."""


class _Check:
    """The checksum that the server keeps of the whole object, where it tells one that we can compute."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        whole = headers.get("x-amz-checksum-type", "FULL_OBJECT").upper() == "FULL_OBJECT"
        self._sha256 = headers.get("x-amz-checksum-sha256") if whole else None
        self._crc32 = headers.get("x-amz-checksum-crc32") if whole else None
        if "-" in (self._sha256 or ""):
            self._sha256 = None  # of the parts' checksums
        if "-" in (self._crc32 or ""):
            self._crc32 = None
        self._digest = hashlib.sha256()
        self._crc = 0

    def update(self, data: memoryview) -> None:
        if self._sha256:
            self._digest.update(data)
        if self._crc32:
            self._crc = zlib.crc32(data, self._crc)

    def verified(self, url: str) -> str | None:
        """Raises: StorageUnavailable when what came is not what was stored."""
        if self._sha256 and base64.b64encode(self._digest.digest()).decode() != self._sha256:
            raise StorageUnavailable(
                f"{shown(url)}: what came does not have the checksum that the store keeps (sha256)"
            )
        if self._crc32 and base64.b64encode(self._crc.to_bytes(4, "big")).decode() != self._crc32:
            raise StorageUnavailable(f"{shown(url)}: what came does not have the checksum that the store keeps (crc32)")
        return f"sha256:{self._digest.hexdigest()}" if self._sha256 else None


@contextmanager
def _sdk_errors(url: str) -> Iterator[None]:
    try:
        yield
    except (MinioException, HTTPError, ValueError, OSError) as error:
        raise translated(url, error) from error


def _refusal(place: _Place, answer: Answer, body: bytes) -> Exception:
    code, message, region = (p.search(body) for p in (_CODE, _MESSAGE, _REGION))
    return _problem(
        place.url,
        answer.status,
        code[1].decode(errors="replace") if code else "",
        message[1].decode(errors="replace") if message else "",
        answer.headers.get("x-amz-bucket-region") or (region[1].decode() if region else ""),
    )


def translated(url: str, error: Exception) -> Exception:
    """A vendor's error as one of ours."""
    text = shown(url)
    if isinstance(error, S3Error):
        region = error.response.headers.get("x-amz-bucket-region") or ""
        found = _REGION.search(error.response.data or b"") if not region else None
        return _problem(
            url,
            error.response.status,
            str(error.code or ""),
            str(error.message or ""),
            found[1].decode() if found else region,
        )
    if isinstance(error, ServerError):
        return _problem(url, error.status_code, "", "", "")
    if isinstance(error, InvalidResponseError):
        return _problem(url, int(getattr(error, "_code", 500) or 500), "", "the answer is no S3", "")
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return StagingFailed(f"{text}: the server's certificate is not trusted")
    if isinstance(error, ValueError):
        return StagingFailed(f"{text}: {_brief(error)}")
    return StorageUnavailable(f"{text}: {_brief(error)}")


def _problem(url: str, status: int, code: str, message: str, region: str) -> Exception:
    """What a refusal means."""
    told = f"{code}: {message}" if code and message else code or message or f"status {status}"
    text = f"{shown(url)}: "
    if code == "PreconditionFailed" or status == 412:
        return Changed(text + "the object has changed meanwhile")
    if code in _MISSING or (status == 404 and code not in _PASSING):
        return NotFound(text + _MISSING.get(code, "there is no such object"))
    if region and (status in (301, 307, 400)) and (code in _WRONG_REGION or not code):
        return _Elsewhere(region)
    if code in _DENIED or status in (401, 403):
        explained = _DENIED.get(code, "access denied")
        return AccessDenied(f"{text}{explained}" + (f" ({code})" if code else ""))
    if code in _FULL:
        return StagingFailed(f"{text}the store has no room left ({code})")
    if code in _PASSING or status in _PASSING_STATUS:
        return StorageUnavailable(text + told)
    if code == "EntityTooLarge":
        return FileTooLarge(text + "larger than the store takes")
    return StagingFailed(text + told)


_WRONG_REGION: Final = frozenset(
    {
        "PermanentRedirect",
        "TemporaryRedirect",
        "AuthorizationHeaderMalformed",
        "IllegalLocationConstraintException",
        "Redirect",
    }
)


def _brief(error: Exception) -> str:
    return (
        re.sub(r"<[^>]*>|https?://\S+|HTTPS?ConnectionPool\([^)]*\):? ?", "", str(error))[:200] or type(error).__name__
    )


def _default_endpoint() -> S3Endpoint:
    url = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "https://s3.amazonaws.com"
    return S3Endpoint("aws", url)


def _default_region() -> str:
    named = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if named:
        return named
    path = os.environ.get("AWS_CONFIG_FILE") or os.path.expanduser("~/.aws/config")
    if os.path.isfile(path):
        import configparser

        parser = configparser.ConfigParser()
        profile = os.environ.get("AWS_PROFILE", "default")
        with suppress(OSError, configparser.Error, UnicodeError):
            parser.read(path)
            for section in (f"profile {profile}", profile):
                if found := parser.get(section, "region", fallback=None):
                    return found
    return "us-east-1"


def _provider(endpoint: S3Endpoint) -> Provider | None:
    """Where credentials come from; None: requests are anonymous."""
    if endpoint.anonymous:
        return None
    if endpoint.access_key and endpoint.secret_key:
        return StaticProvider(endpoint.access_key, endpoint.secret_key, endpoint.session_token)
    if endpoint.credentials_file or endpoint.profile:
        return AWSConfigProvider(endpoint.credentials_file, endpoint.profile)
    if os.environ.get("AWS_ACCESS_KEY_ID") or os.environ.get("AWS_ACCESS_KEY"):
        return EnvAWSProvider()
    roles = (
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    )
    if any(os.environ.get(name) for name in roles):
        return IamAwsProvider(custom_endpoint=os.environ.get("AWS_ENDPOINT_URL_STS"))
    path = os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or os.path.expanduser("~/.aws/credentials")
    return AWSConfigProvider() if os.path.isfile(path) else None


def _sse(endpoint: S3Endpoint) -> tuple[dict[str, str], dict[str, str]]:
    """Headers of server-side encryption for reading (and parts), and for new objects. Raises: ConfigurationError."""
    if endpoint.sse_key_file is not None:
        try:
            headers = SseCustomerKey(Path(endpoint.sse_key_file).read_bytes()).headers()
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"filer: s3 endpoint {endpoint.name!r}: sse_key_file: {error}") from None
        return headers, headers
    if endpoint.sse is None:
        return {}, {}
    kind, _, key = endpoint.sse.partition(":") if endpoint.sse == "AES256" else endpoint.sse.partition("kms:")
    if endpoint.sse == "AES256":
        return {}, {"x-amz-server-side-encryption": "AES256"}
    if kind == "aws:" or endpoint.sse == "aws:kms":
        named = {"x-amz-server-side-encryption-aws-kms-key-id": key} if key else {}
        return {}, {"x-amz-server-side-encryption": "aws:kms", **named}
    raise ConfigurationError(
        f"filer: s3 endpoint {endpoint.name!r}: sse {endpoint.sse!r} is neither AES256 nor aws:kms"
    )
