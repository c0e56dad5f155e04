"""http and https: inputs by GET, outputs by PUT where the site allows it.

Every response is checked: status, Content-Length, end of chunks, and when a transfer resumes Content-Range and the validator
(If-Range), so that a file is never joined from two versions. Responses with neither a length nor chunks are refused, because a broken
transfer could not be distinguished from a complete one.
"""

from __future__ import annotations

import os
import re
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import quote, unquote, urljoin, urlsplit

from poiesis import __version__
from poiesis.domain.errors import (
    AccessDenied,
    FileTooLarge,
    NotFound,
    PoiesisError,
    StagingFailed,
    StorageUnavailable,
    UnsupportedUrl,
)
from poiesis.filer.atomic_write import PartialFile, atomic_file
from poiesis.filer.guard import Guard
from poiesis.filer.http_connection import ConnectionPool, FileRange, Response
from poiesis.filer.network import (
    PORTS,
    PROXY_AUTHENTICATION,
    Proxy,
    basic_authorization,
    logins,
    network_errors,
    open_connection,
    proxy_of,
    tls_context,
)
from poiesis.filer.registry import Context
from poiesis.filer.settings import FilerSettings
from poiesis.filer.transfer import Changed
from poiesis.filer.urls import shown
from poiesis.ports.filer import RemoteFile, Sent

if TYPE_CHECKING:
    import ssl

REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
TRANSIENT: Final = frozenset({408, 421, 423, 425, 429, 500, 502, 503, 504, 507, 509, 520, 521, 522, 523, 524})
LEAST_BYTES: Final = 1024  # in a stall_timeout; fewer count as a stall
CONNECTIONS: Final = 8  # at once, to all servers together
ORIGINS: Final = 32  # whose idle connections are kept
BUFFER_BYTES: Final = 1 << 17
_FOR_ANY_ORIGIN: Final = frozenset({"accept", "content-type", "if-range", "range"})  # the others may be credentials
_CONTENT_RANGE: Final = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_HOST: Final = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:-]+")
_STRAY_PERCENT: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_GZIP_OR_ZLIB: Final = zlib.MAX_WBITS + 32
_GZIP: Final = zlib.MAX_WBITS + 16
_PACKED: Final = (".gz", ".tgz", ".bgz", ".svgz", ".emz")


class _Address(NamedTuple):
    """A URL as a request needs it."""

    scheme: str
    host: str
    port: int
    target: str
    """Path and query, percent-encoded."""
    login: str | None
    """User and password of the URL."""

    @property
    def origin(self) -> tuple[str, str, int]:
        return self[:3]

    @property
    def netloc(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"


class Client:
    """GET, HEAD and PUT with redirects, address guard and credentials, and errors of domain.errors. Also for DRS."""

    def __init__(self, settings: FilerSettings, check: Callable[[], None] = lambda: None) -> None:
        """`check`: called whenever bytes arrive; what it raises ends the request."""
        self._settings, self._check = settings, check
        self._guard = Guard(settings.allow_addresses)
        self._pools: dict[tuple[str, str, int], ConnectionPool] = {}  # the one used last is the last one
        self._lock = threading.Lock()
        self._netrc = logins(settings.netrc_file)

    def close(self) -> None:
        for pool in self._pools.values():
            pool.close()

    @contextmanager
    def request(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None = None,
        body: bytes | FileRange = b"",
        moved: Callable[[int], None] = lambda _: None,
    ) -> Iterator[Response]:
        """The first response that is not a redirect, its body unread.

        Raises: AccessDenied, UnsupportedUrl, StagingFailed (too many redirects), StorageUnavailable.
        """
        start, current = _parsed(url), url
        for _ in range(self._settings.max_redirects + 1):
            address = _parsed(current)
            sent = {"host": address.netloc, "accept-encoding": "identity", "user-agent": f"poiesis/{__version__}"}
            is_start = address.origin == start.origin
            sent |= {name: v for name, v in (headers or {}).items() if is_start or name in _FOR_ANY_ORIGIN}
            if is_start and (credentials := start.login or ":".join(self._netrc.get(start.host, ()))):
                sent.setdefault("authorization", basic_authorization(credentials))
            pool, target, more = self._route(address)
            with network_errors(current), pool.request(method, target, sent | more, body, moved) as response:
                if response.status not in REDIRECTS or "location" not in response.headers:
                    yield response
                    return
                following = urljoin(
                    f"{address.scheme}://{address.netloc}{address.target}", response.headers["location"]
                )
            if urlsplit(following).scheme not in PORTS:
                raise AccessDenied(f"{shown(url)}: redirects to {shown(following)}, which is not an http URL")
            current = following
        raise StagingFailed(f"{shown(url)}: more than {self._settings.max_redirects} redirects")

    def _route(self, address: _Address) -> tuple[ConnectionPool, str, dict[str, str]]:
        """Connections that lead to the address, the target of the request, and headers for a proxy."""
        proxy = self._settings.proxy or proxy_of(address.scheme, address.host)
        via = Proxy(proxy) if proxy else None
        if via:
            self._guard.check_name(address.host, must_resolve=self._settings.resolve_before_proxy)
        with self._lock:
            self._pools[address.origin] = pool = self._pools.pop(address.origin, None) or self._pool(address, via)
            if len(self._pools) > ORIGINS:
                self._pools.pop(next(iter(self._pools))).close()
        if via and address.scheme == "http":
            return pool, f"http://{address.netloc}{address.target}", via.headers
        return pool, address.target, {}

    def _pool(self, address: _Address, via: Proxy | None) -> ConnectionPool:
        timeout_s = self._settings.connect_timeout.total_seconds()
        tls = self._tls if address.scheme == "https" else None
        proxy_tls = self._tls if via and via.is_secure else None
        return ConnectionPool(
            lambda: open_connection(
                address.host,
                address.port,
                timeout_s=timeout_s,
                tls=tls,
                proxy=via,
                proxy_tls=proxy_tls,
                guard=self._guard,
            ),
            buffer_bytes=BUFFER_BYTES,
            stall_s=self._settings.stall_timeout.total_seconds(),
            keep=CONNECTIONS,
            least_bytes=LEAST_BYTES,
            check=self._check,
        )

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return tls_context(self._settings.ca_file)  # loading all certificates is slow


def _parsed(url: str) -> _Address:
    """Raises: UnsupportedUrl."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        host = host if host.isascii() else host.encode("idna").decode()
        path = _encoded(parts.path or "/", "/~!$&'()*+,;=:@%")
        query = _encoded(parts.query, "/~!$&'()*+,;=:@%?")
    except ValueError as error:
        raise UnsupportedUrl(f"{shown(url)}: invalid URL: {error}") from error
    if parts.scheme not in PORTS or not _HOST.fullmatch(host):
        raise UnsupportedUrl(f"{shown(url)}: invalid http URL: {'invalid' if host else 'missing'} host")
    login = unquote(parts.netloc.rpartition("@")[0]) or None
    target = f"{path}?{query}" if query else path
    return _Address(parts.scheme, host, port if port is not None else PORTS[parts.scheme], target, login)


def _encoded(text: str, safe: str) -> str:
    return _STRAY_PERCENT.sub("%25", quote(text, safe=safe, errors="surrogateescape"))


def refused(url: str, status: int) -> PoiesisError:
    """The error for a status."""
    from http import HTTPStatus

    text = f"{shown(url)}: the server responded {status}"
    with suppress(ValueError):
        text += f" {HTTPStatus(status).phrase}"
    if status in (404, 410):
        return NotFound(text)
    if status == 407:
        return AccessDenied(f"{shown(url)}: {PROXY_AUTHENTICATION}")
    if status in (401, 403):
        return AccessDenied(text)
    if status in TRANSIENT:
        return StorageUnavailable(text)
    if status == 413:
        return FileTooLarge(text)
    return StagingFailed(text)


@dataclass
class _Reached:
    """Progress of a download over all its requests."""

    offset: int = 0
    validator: str | None = None
    total: int | None = None
    stop: int | None = None
    """Where another request takes over; None: at the end."""
    expected: str | None = None
    """The validator from an earlier HEAD."""
    is_range: bool = False
    """One of several requests for parts of a file, which cannot start again by itself."""

    def is_of_same_file(self, total: str, response: Response) -> bool:
        """Whether a response with a range belongs to the file that was begun; some servers ignore If-Range."""
        validator = self.validator or ""
        found = response.headers.get("etag" if validator.startswith('"') else "last-modified", validator)
        is_same_size = self.total is None or total in (str(self.total), "*")
        return is_same_size and found.removeprefix("W/") == validator


class HttpFiler:
    def __init__(self, context: Context) -> None:
        self._settings = context.settings
        self._control, self._pool = context.control, context.pool
        self._client = Client(context.settings, context.control.check)
        self._turns = threading.BoundedSemaphore(CONNECTIONS)

    def close(self) -> None:
        self._client.close()

    def stat(self, url: str) -> RemoteFile | None:
        """Sends a request only where the cache needs a version: signed URLs often allow GET and not HEAD."""
        name = unquote(urlsplit(url).path.rsplit("/", 1)[-1])
        if self._settings.cache_dir is None:
            return RemoteFile(url, name, None)
        with self._client.request("HEAD", url) as response:
            length = response.headers.get("content-length", "")
        if response.status in (404, 410):
            raise refused(url, response.status)
        if response.status != 200:
            return RemoteFile(url, name, None)
        return RemoteFile(url, name, int(length) if length.isdecimal() else None, _validator(response))

    def walk(self, url: str) -> Iterator[RemoteFile]:
        raise UnsupportedUrl(f"{shown(url)}: http has no directories; use one input for each file")

    def fetch(self, file: RemoteFile, target: Path, headers: Mapping[str, str] | None = None) -> Sent:
        """`headers`: those that another service returned for it."""
        headers = headers or {}
        reached = _Reached(expected=file.version)
        with atomic_file(target, sync=self._control.sync, size_bytes=file.size_bytes) as part:
            self._control.repeat(
                lambda: self._continue(file.url, part, reached, headers), lambda: reached.offset, final=(Changed,)
            )
            if reached.stop is not None and reached.total is not None:
                self._fetch_rest(file.url, part, reached, headers)
            size = part.size_bytes
        return Sent(file.url, size)

    def _fetch_rest(self, url: str, part: PartialFile, begun: _Reached, headers: Mapping[str, str]) -> None:
        """The rest of a large file after its first part, in parallel ranges."""
        total, step = begun.total or 0, self._settings.part_bytes

        def ranged(start: int) -> None:
            stop = min(start + step, total)
            reached = _Reached(offset=start, validator=begun.validator, total=total, stop=stop, is_range=True)
            self._control.repeat(
                lambda: self._continue(url, part, reached, headers), lambda: reached.offset, final=(Changed,)
            )

        self._pool.together(lambda start=start: ranged(start) for start in range(begun.offset, total, step))  # type: ignore[misc]

    def send(self, source: int, url: str) -> Sent:
        size = os.fstat(source).st_size
        headers, body = {"content-type": "application/octet-stream"}, FileRange(source, 0, size)
        with self._turns, self._client.request("PUT", url, headers, body, self._control.moved) as response:
            if response.status not in (200, 201, 204):
                raise refused(url, response.status)
        return Sent(url, size)

    def make_directory(self, url: str) -> None:
        pass

    def _continue(self, url: str, part: PartialFile, reached: _Reached, more: Mapping[str, str]) -> None:
        """Request what is missing."""
        headers, changed = {}, f"{shown(url)}: the file changed during the transfer"
        if reached.offset and reached.validator:
            last = reached.stop - 1 if reached.stop is not None else ""
            headers = {"range": f"bytes={reached.offset}-{last}", "if-range": reached.validator}
        with self._turns, self._client.request("GET", url, {**more, **headers}) as response:
            if response.status == 206 and headers:
                match = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
                if not match or int(match[1]) != reached.offset:
                    if not reached.is_range:
                        reached.validator = None  # start again
                    raise StorageUnavailable(f"{shown(url)}: the server sent a different range than requested")
                if not reached.is_of_same_file(match[3], response):
                    raise Changed(changed)
            elif (response.status == 200 and reached.is_range) or (response.status == 416 and headers):
                raise Changed(changed)
            elif response.status == 200:
                self._begin(url, response, part, reached)
            else:
                raise refused(url, response.status)
            self._read(url, response, part, reached)

    def _begin(self, url: str, response: Response, part: PartialFile, reached: _Reached) -> None:
        length = response.headers.get("content-length", "")
        if length.isdecimal():
            reached.total = int(length)
        elif "chunked" in response.headers.get("transfer-encoding", "").lower():
            reached.total = None
        else:
            raise StagingFailed(
                f"{shown(url)}: the server sends no Content-Length, so a broken transfer could not be distinguished from a complete one"
            )
        self._control.check_size(url, reached.total)
        reached.offset = 0
        reached.stop = None
        reached.validator = _validator(response)
        if reached.expected is not None and reached.validator != reached.expected:
            raise Changed(f"{shown(url)}: the file changed during the transfer")
        os.ftruncate(part.descriptor, 0)
        if (
            (reached.total or 0) > 2 * self._settings.part_bytes
            and (reached.validator or "").startswith('"')
            and response.headers.get("accept-ranges", "").lower() == "bytes"
            and not response.headers.get("content-encoding")
        ):
            reached.stop = self._settings.part_bytes

    def _read(self, url: str, response: Response, part: PartialFile, reached: _Reached) -> None:
        encoding = response.headers.get("content-encoding", "").lower()
        path = urlsplit(url).path.lower()
        unpack = encoding in ("gzip", "x-gzip", "deflate") and not path.endswith(_PACKED)
        if unpack:
            reached.validator = None  # offsets are of the compressed form
        elif encoding not in ("", "identity", "gzip", "x-gzip", "deflate"):
            raise StagingFailed(f"{shown(url)}: unexpected content-encoding {encoding!r}")
        unpacker = _Unpacker(url) if unpack else None
        written = reached.offset
        for data in response.chunks():
            if reached.stop is not None:
                data = data[: reached.stop - reached.offset]
            count = len(data)
            for piece in unpacker.pieces(data) if unpacker else (data,):
                part.write(piece, written)
                written += len(piece)
                self._control.check_size(url, written)
            reached.offset += count
            self._control.moved(count)
            if reached.offset == reached.stop:
                return
        if unpacker is not None and not unpacker.is_complete:
            raise StorageUnavailable(f"{shown(url)}: the compressed response ended early")
        if reached.stop is not None:
            raise StorageUnavailable(f"{shown(url)}: the connection ended early")
        if reached.total is not None and reached.offset != reached.total:
            raise StorageUnavailable(f"{shown(url)}: {reached.offset} bytes of {reached.total} arrived")


class _Unpacker:
    """Decompresses a body. gzip may have several members (RFC 1952, section 2.2), as those of bgzip, pigz and `cat a.gz b.gz`."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._member = zlib.decompressobj(wbits=_GZIP_OR_ZLIB)

    @property
    def is_complete(self) -> bool:
        return self._member.eof

    def pieces(self, data: bytes | memoryview) -> Iterator[bytes]:
        """The next bytes decompressed, in pieces of bounded size whatever the ratio. Raises: StagingFailed."""
        try:
            while data:
                if self._member.eof:
                    data = bytes(data).lstrip(b"\0")  # padding, which gzip ignores too
                    if not data:
                        return
                    self._member = zlib.decompressobj(wbits=_GZIP)
                yield self._member.decompress(data, 1 << 20)
                data = self._member.unconsumed_tail or self._member.unused_data
        except zlib.error as error:
            raise StagingFailed(f"{shown(self._url)}: the compressed response is invalid: {error}") from error


def _validator(response: Response) -> str | None:
    """A validator for If-Range: a strong ETag, else the date of the last change."""
    etag = response.headers.get("etag")
    if etag and etag.startswith('"'):
        return etag
    return response.headers.get("last-modified")
