"""http and https: inputs by GET, outputs by PUT where the site allows it.

Every response is checked: status, Content-Length, end of chunks, and when a transfer resumes Content-Range and the validator
(If-Range), so that a file is never joined from two versions. Responses with neither a length nor chunks are refused, because a broken
transfer could not be distinguished from a complete one.
"""

from __future__ import annotations

import base64
import os
import re
import threading
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urljoin, urlsplit

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError, LocationParseError, LocationValueError, ProxyError, SSLError
from urllib3.util import Timeout, Url, parse_url

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
from poiesis.filer.proxy_tls import logins, proxy_of, tls_context
from poiesis.filer.registry import Context
from poiesis.filer.settings import FilerSettings
from poiesis.filer.tcp_connection import PROXY_AUTHENTICATION, Proxy, tunnel_refused
from poiesis.filer.transfer import Changed
from poiesis.filer.urls import shown
from poiesis.ports.filer import RemoteFile, Sent

REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
TRANSIENT: Final = frozenset({408, 421, 423, 425, 429, 500, 502, 503, 504, 507, 509, 520, 521, 522, 523, 524})
LEAST_BYTES: Final = 1024  # in a stall_timeout; fewer count as a stall
CONNECTIONS: Final = 8  # at once, to all servers together
_CONTENT_RANGE: Final = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_TUNNEL: Final = re.compile(r"Tunnel connection failed: (\d+)")
_PACKED: Final = (".gz", ".tgz", ".bgz", ".svgz", ".emz")
_DRAIN: Final = 64 * 1024  # of an unwanted body, to keep its connection; closing is cheaper for more


def guarded(guard: Guard) -> dict[str, Any]:
    """Pool classes whose connections pass the guard."""

    def connect(self: Any) -> Any:
        timeout = self.timeout if isinstance(self.timeout, int | float) else None
        return guard.connect(self._dns_host, self.port or self.default_port, timeout, self.socket_options or ())

    class Plain(HTTPConnection):
        _new_conn = connect

    class Secure(HTTPSConnection):
        _new_conn = connect

    class PlainPool(urllib3.HTTPConnectionPool):
        ConnectionCls = Plain

    class SecurePool(urllib3.HTTPSConnectionPool):
        ConnectionCls = Secure

    return {"http": PlainPool, "https": SecurePool}


class Client:
    """GET, HEAD and PUT with redirects, address guard and credentials, and errors of domain.errors. Also for DRS."""

    def __init__(self, settings: FilerSettings) -> None:
        self._settings = settings
        self._guard = Guard(settings.allow_addresses)
        self._timeout = Timeout(
            connect=settings.connect_timeout.total_seconds(), read=settings.stall_timeout.total_seconds()
        )
        options: dict[str, Any] = {
            "timeout": self._timeout,
            "retries": False,
            "maxsize": settings.parallel,
            "blocksize": 1 << 17,
        }
        self._options = options
        self._managers: dict[tuple[str, str], urllib3.PoolManager] = {}
        self._lock = threading.Lock()
        self._netrc = logins(settings.netrc_file)

    def close(self) -> None:
        for manager in self._managers.values():
            manager.clear()

    def request(
        self, method: str, url: str, headers: Mapping[str, str] | None = None, body: Any = None
    ) -> urllib3.BaseHTTPResponse:
        """The first response that is not a redirect, its body unread. `body` returns a new iterable of chunks for each attempt.

        Raises: AccessDenied, UnsupportedUrl, StagingFailed (too many redirects), StorageUnavailable.
        """
        start, current = self._parsed(url), url
        origin = (start.scheme, start.host, start.port)
        for _ in range(self._settings.max_redirects + 1):
            parsed = self._parsed(current)
            sent = {"accept-encoding": "identity", "user-agent": f"poiesis/{__version__}", **(headers or {})}
            if (parsed.scheme, parsed.host, parsed.port) == origin:
                login = self._netrc.get(start.host or "")
                credentials = unquote(start.auth) if start.auth else ":".join(login) if login else None
                if credentials and "authorization" not in sent:
                    sent["authorization"] = "Basic " + base64.b64encode(credentials.encode()).decode()
            else:
                sent.pop("authorization", None)
            answer = self._once(method, parsed, sent, body)
            if answer.status not in REDIRECTS or "location" not in answer.headers:
                return answer
            release(answer)
            following = urljoin(parsed._replace(auth=None).url, answer.headers["location"])
            if urlsplit(following).scheme not in ("http", "https"):
                raise AccessDenied(f"{shown(url)}: redirects to {shown(following)}, which is not an http URL")
            current = following
        raise StagingFailed(f"{shown(url)}: more than {self._settings.max_redirects} redirects")

    def _once(self, method: str, url: Url, headers: Mapping[str, str], body: Any) -> urllib3.BaseHTTPResponse:
        target = url._replace(auth=None, fragment=None).url
        manager = self._manager(url)
        try:
            return manager.urlopen(
                method,
                target,
                headers=headers,
                body=body() if body else None,
                redirect=False,
                preload_content=False,
                decode_content=False,
            )
        except HTTPError as error:
            raise translated(target, error) from error
        except (OSError, UnicodeError, ValueError) as error:
            raise translated(target, error) from error

    def _manager(self, url: Url) -> urllib3.PoolManager:
        proxy = self._settings.proxy or proxy_of(str(url.scheme), str(url.host)) or ""
        if proxy:
            self._guard.check_name(str(url.host), must_resolve=self._settings.resolve_before_proxy)
        with self._lock:
            if (proxy, str(url.scheme)) not in self._managers:
                self._managers[proxy, str(url.scheme)] = self._made(proxy, str(url.scheme))
            return self._managers[proxy, str(url.scheme)]

    def _made(self, proxy: str, scheme: str) -> urllib3.PoolManager:
        options = dict(self._options)
        if scheme == "https":
            options["ssl_context"] = tls_context(self._settings.ca_file)  # reading all certificates takes its time
        if proxy:
            via = Proxy(proxy)
            options["proxy_ssl_context"] = tls_context(self._settings.ca_file) if via.is_secure else None
            return urllib3.ProxyManager(via.url, proxy_headers=via.headers, **options)
        manager = urllib3.PoolManager(num_pools=64, **options)
        manager.pool_classes_by_scheme = guarded(self._guard)
        return manager

    def _parsed(self, url: str) -> Url:
        try:
            parsed = parse_url(url)
        except (LocationParseError, LocationValueError, ValueError) as error:
            raise UnsupportedUrl(f"{shown(url)}: invalid URL: {error}") from error
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise UnsupportedUrl(f"{shown(url)}: invalid http URL: missing host")
        return parsed


def translated(url: str, error: Exception) -> PoiesisError:
    """The error of domain.errors for one of urllib3 or the system."""
    if isinstance(error, PoiesisError):
        return error
    text = shown(url)
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, PoiesisError):
            return cause
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, ProxyError) and (match := _TUNNEL.search(str(error))):
        return tunnel_refused(match[1], text)
    if isinstance(error, SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error):
        return StagingFailed(f"{text}: the server's certificate is not trusted: {_brief(error)}")
    if isinstance(error, LocationParseError | LocationValueError | UnicodeError):
        return UnsupportedUrl(f"{text}: invalid URL: {_brief(error)}")
    return StorageUnavailable(f"{text}: {_brief(error)}")


def refused(url: str, answer: urllib3.BaseHTTPResponse) -> PoiesisError:
    """The error for a status."""
    status = answer.status
    text = f"{shown(url)}: the server responded {status}"
    if answer.reason:
        text += f" {answer.reason[:60]}"
    release(answer)
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


def release(answer: urllib3.BaseHTTPResponse) -> None:
    """Return the connection to its pool where little is left to read, else close it."""
    try:
        left = answer.headers.get("content-length")
        if left is not None and left.isdigit() and int(left) <= _DRAIN:
            answer.drain_conn()
            answer.release_conn()
        else:
            answer.close()
    except (HTTPError, OSError):
        answer.close()


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


class HttpFiler:
    def __init__(self, context: Context) -> None:
        self._settings = context.settings
        self._control, self._pool = context.control, context.pool
        self._client = Client(context.settings)
        self._turns = threading.BoundedSemaphore(CONNECTIONS)

    def close(self) -> None:
        self._client.close()

    def stat(self, url: str) -> RemoteFile | None:
        """Sends a request only where the cache needs a version: signed URLs often allow GET and not HEAD."""
        name = unquote(urlsplit(url).path.rsplit("/", 1)[-1])
        if self._settings.cache_dir is None:
            return RemoteFile(url, name, None)
        answer = self._client.request("HEAD", url)
        release(answer)
        if answer.status in (404, 410):
            raise NotFound(f"{shown(url)}: the server responded {answer.status}")
        if answer.status != 200:
            return RemoteFile(url, name, None)
        length = answer.headers.get("content-length", "")
        return RemoteFile(url, name, int(length) if length.isdigit() else None, _validator(answer))

    def walk(self, url: str) -> Iterator[RemoteFile]:
        raise UnsupportedUrl(f"{shown(url)}: http has no directories; use one input for each file")

    def fetch(self, file: RemoteFile, target: Path) -> Sent:
        return self._fetch(file, target, {})

    def fetch_with(self, url: str, target: Path, headers: Mapping[str, str]) -> Sent:
        """With headers that another service returned for it."""
        return self._fetch(RemoteFile(url, "", None), target, headers)

    def _fetch(self, file: RemoteFile, target: Path, headers: Mapping[str, str]) -> Sent:
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

        def chunks() -> Iterator[bytes]:
            offset = 0
            while offset < size and (data := os.pread(source, min(1 << 18, size - offset), offset)):
                offset += len(data)
                yield data
                self._control.moved(len(data))

        headers = {"content-length": str(size), "content-type": "application/octet-stream"}
        with self._turns:
            answer = self._client.request("PUT", url, headers, chunks)
        if answer.status not in (200, 201, 204):
            raise refused(url, answer)
        release(answer)
        return Sent(url, size)

    def make_directory(self, url: str) -> None:
        pass

    def _continue(self, url: str, part: PartialFile, reached: _Reached, more: Mapping[str, str]) -> None:
        """Request what is missing."""
        headers = {}
        if reached.offset and reached.validator:
            last = reached.stop - 1 if reached.stop is not None else ""
            headers = {"range": f"bytes={reached.offset}-{last}", "if-range": reached.validator}
        with self._turns:
            self._continue_now(url, part, reached, more, headers)

    def _continue_now(
        self, url: str, part: PartialFile, reached: _Reached, more: Mapping[str, str], headers: Mapping[str, str]
    ) -> None:
        answer = self._client.request("GET", url, {**more, **headers})
        try:
            if answer.status == 206 and headers:
                match = _CONTENT_RANGE.fullmatch(answer.headers.get("content-range", ""))
                if not match or int(match[1]) != reached.offset or match[3] not in (str(reached.total), "*"):
                    if not reached.is_range:
                        reached.validator = None  # start again
                    raise StorageUnavailable(f"{shown(url)}: the server sent another range than requested")
            elif answer.status == 200 and reached.is_range:
                raise Changed(f"{shown(url)}: the file has changed meanwhile")
            elif answer.status == 200:
                self._begin(url, answer, part, reached)
            elif answer.status == 416 and headers and not reached.is_range:
                reached.validator = None
                raise StorageUnavailable(f"{shown(url)}: the server does not resume the file")
            else:
                raise refused(url, answer)
            self._read(url, answer, part, reached)
        except (HTTPError, OSError) as error:
            raise translated(url, error) from error
        finally:
            answer.close() if not _is_spent(answer) else answer.release_conn()

    def _begin(self, url: str, answer: urllib3.BaseHTTPResponse, part: PartialFile, reached: _Reached) -> None:
        length = answer.headers.get("content-length", "")
        if length.isdigit():
            reached.total = int(length)
        elif "chunked" in answer.headers.get("transfer-encoding", "").lower():
            reached.total = None
        else:
            raise StagingFailed(
                f"{shown(url)}: the server sends no length, so a broken transfer could not be distinguished from a complete one"
            )
        most = self._settings.max_file_bytes
        if most is not None and (reached.total or 0) > most:
            raise FileTooLarge(f"{shown(url)}: {reached.total} bytes; at most {most}")
        reached.offset = 0
        reached.stop = None
        reached.validator = _validator(answer)
        if reached.expected is not None and reached.validator != reached.expected:
            raise Changed(f"{shown(url)}: the file has changed meanwhile")
        os.ftruncate(part.descriptor, 0)
        if (
            (reached.total or 0) > 2 * self._settings.part_bytes
            and (reached.validator or "").startswith('"')
            and answer.headers.get("accept-ranges", "").lower() == "bytes"
            and not answer.headers.get("content-encoding")
        ):
            reached.stop = self._settings.part_bytes

    def _read(self, url: str, answer: urllib3.BaseHTTPResponse, part: PartialFile, reached: _Reached) -> None:
        encoding = answer.headers.get("content-encoding", "").lower()
        path = urlsplit(url).path.lower()
        unpack = encoding in ("gzip", "x-gzip", "deflate") and not path.endswith(_PACKED)
        if unpack:
            reached.validator = None  # offsets are of the compressed form
        elif encoding not in ("", "identity", "gzip", "x-gzip", "deflate"):
            raise StagingFailed(f"{shown(url)}: unexpected content-encoding {encoding!r}")
        unpacker = zlib.decompressobj(wbits=47) if unpack else None
        stall = self._settings.stall_timeout.total_seconds()
        most = self._settings.max_file_bytes
        window, arrived, written = time.monotonic(), 0, reached.offset
        while data := answer.read1(self._settings.buffer_bytes):
            now = time.monotonic()
            arrived += len(data)
            if now - window > stall:
                if arrived < LEAST_BYTES:
                    raise StorageUnavailable(f"{shown(url)}: fewer than {LEAST_BYTES} bytes arrived in {stall:.0f} s")
                window, arrived = now, 0
            if reached.stop is not None:
                data = data[: reached.stop - reached.offset]
            count = len(data)
            for piece in _unpacked(unpacker, data) if unpacker else (data,):
                part.write(piece, written)
                written += len(piece)
                if most is not None and written > most:
                    raise FileTooLarge(f"{shown(url)}: more than {most} bytes")
            reached.offset += count
            self._control.moved(count)
            if reached.offset == reached.stop:
                return
        if unpacker is not None and not unpacker.eof:
            raise StorageUnavailable(f"{shown(url)}: the compressed response ended early")
        if reached.stop is not None:
            raise StorageUnavailable(f"{shown(url)}: the connection ended early")
        if reached.total is not None and reached.offset != reached.total:
            raise StorageUnavailable(f"{shown(url)}: {reached.offset} bytes of {reached.total} arrived")


def _unpacked(unpacker: Any, data: bytes) -> Iterator[bytes]:
    """Decompressed, in pieces of bounded size whatever the ratio."""
    try:
        while data:
            yield unpacker.decompress(data, 1 << 20)
            data = unpacker.unconsumed_tail
            if unpacker.eof:
                return
    except zlib.error as error:
        raise StagingFailed(f"the compressed response is invalid: {error}") from error


def _validator(answer: urllib3.BaseHTTPResponse) -> str | None:
    """A validator for If-Range: a strong ETag, else the date of the last change."""
    etag = answer.headers.get("etag")
    if etag and etag.startswith('"'):
        return etag
    return answer.headers.get("last-modified")


def _is_spent(answer: urllib3.BaseHTTPResponse) -> bool:
    """Whether the body was read to its end, so that the connection can be used again."""
    return getattr(answer, "length_remaining", None) == 0


def _brief(error: Exception) -> str:
    text = str(error)
    return (
        re.sub(r"<[^>]*>|https?://\S+|HTTPS?ConnectionPool\([^)]*\):? ?", "", text)[:200].strip(" :")
        or type(error).__name__
    )
