"""drs://HOST/ID: GA4GH Data Repository Service 1.x, only for inputs. Resolved to a URL that another filer reads.

Compact identifiers (`drs://prefix:accession`) are not resolved, because that would ask a third party. The size and checksum that the
service reports are verified. The bearer token is sent only to hosts that the site has listed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, unquote, urlsplit

from poiesis.domain.errors import (
    AccessDenied,
    ConfigurationError,
    NotFound,
    StagingFailed,
    StorageUnavailable,
    UnsupportedUrl,
)
from poiesis.filer.atomic_write import local_error, temporary_name
from poiesis.filer.credentials import http_unencrypted
from poiesis.filer.http import Client, HttpFiler, refused
from poiesis.filer.registry import UNENCRYPTED, Context
from poiesis.filer.urls import name_problem, scheme_of, shown
from poiesis.ports.filer import RemoteFile, Sent

MAX_ANSWER_BYTES: Final = 8 * 1024 * 1024  # of the description of a bundle with all its files
PREFERRED: Final = ("https", "s3", "http", "ftp", "ftps")  # never file: that would read files of the service
_HEADER: Final = re.compile(r"\s*([!#$%&'*+.^_`|~0-9A-Za-z-]+)\s*:([\t\x20-\x7e\x80-\xff]*)")
_OURS: Final = frozenset({
    "accept-encoding", "connection", "content-length", "expect", "host", "if-range", "keep-alive", "proxy-authorization",
    "proxy-connection", "range", "te", "trailer", "transfer-encoding", "upgrade",
})  # fmt: skip
"""Headers of an access method that are not sent: they say where a request goes, what of the file it asks for, and where it ends."""
_SUMS: Final = {"sha-256": "sha256", "sha256": "sha256", "sha-512": "sha512", "sha512": "sha512", "md5": "md5"}


class DrsFiler:
    def __init__(self, context: Context) -> None:
        self._context, self._control = context, context.control
        self._client = Client(context.settings, context.control.check)
        self._http = HttpFiler(context)
        self._bases: dict[str, str] = {}
        for item in context.settings.drs_hosts:
            base = item if "://" in item else f"https://{item}"
            self._bases[urlsplit(base).netloc.lower()] = base.rstrip("/")
        self._token: str | None = None
        if context.settings.drs_token_file is not None:
            try:
                self._token = Path(context.settings.drs_token_file).read_text().strip()
            except OSError as error:
                raise ConfigurationError(f"filer: the DRS token cannot be read: {error.strerror}") from error

    def close(self) -> None:
        self._client.close()
        self._http.close()

    def stat(self, url: str) -> RemoteFile | None:
        found = self._object(url)
        if found.get("contents"):
            return None
        sums = _sums(found)
        version = next(iter(sums.values()), None) or found.get("version") or found.get("updated_time")
        return RemoteFile(url, str(found.get("name") or ""), _size(found), str(version) if version else None)

    def walk(self, url: str) -> Iterator[RemoteFile]:
        found = self._object(url, expand=True)
        contents = found.get("contents")
        if not isinstance(contents, list) or not contents:
            raise NotFound(f"{shown(url)}: is not a bundle")
        yield from self._contents(url, contents, "", 0)

    def fetch(self, file: RemoteFile, target: Path) -> Sent:
        found = self._object(file.url)
        if found.get("contents"):
            raise NotFound(f"{shown(file.url)}: is a bundle")
        address, headers = self._address(file.url, found)
        # under a temporary name until it is verified
        arrived = target.with_name(temporary_name())
        try:
            if scheme_of(address) in ("http", "https"):
                is_open = (headers and scheme_of(address) == "http") or http_unencrypted(
                    address, self._context.settings
                )
                if is_open and not self._context.allow_unencrypted_credentials:
                    raise AccessDenied(f"{shown(file.url)}: {UNENCRYPTED}")
                sent = self._http.fetch(RemoteFile(address, "", None), arrived, headers)
            else:
                sent = self._context.reader(address).fetch(RemoteFile(address, file.name, None), arrived)
            checksum = self._verified(file.url, found, arrived, sent.size_bytes)
            try:
                arrived.rename(target)
            except OSError as error:
                raise local_error(error) from error
        finally:
            with suppress(OSError):
                arrived.unlink(missing_ok=True)
        return Sent(file.url, sent.size_bytes, checksum)

    def _contents(self, url: str, contents: list[Any], name: str, depth: int) -> Iterator[RemoteFile]:
        if depth > 50:
            raise StagingFailed(f"{shown(url)}: bundles are nested more than 50 deep")
        for item in contents:
            child = str(item.get("name") or "") if isinstance(item, dict) else ""
            if name_problem(child) or "/" in child:
                raise StagingFailed(f"{shown(url)}: invalid name {child!r} in the bundle")
            inner = f"{name}/{child}" if name else child
            if isinstance(item.get("contents"), list) and item["contents"]:
                yield from self._contents(url, item["contents"], inner, depth + 1)
            elif item.get("id"):
                host = urlsplit(url).netloc
                yield RemoteFile(f"drs://{host}/{quote(str(item['id']), safe='')}", inner, None)
            else:
                raise StagingFailed(f"{shown(url)}: {inner!r} of the bundle has no id")

    def _object(self, url: str, *, expand: bool = False) -> dict[str, Any]:
        base, identifier, headers = self._service(url)
        return self._get(url, f"{base}/objects/{identifier}{'?expand=true' if expand else ''}", headers)

    def _service(self, url: str) -> tuple[str, str, dict[str, str]]:
        """The API of the host, the percent-encoded id, and headers."""
        try:
            parts = urlsplit(url)
            host, identifier = parts.hostname, unquote(parts.path.strip("/"))
            _ = parts.port
        except ValueError:
            raise UnsupportedUrl(f"{shown(url)}: compact identifiers are not supported; use drs://HOST/ID") from None
        if not host or not identifier:
            raise UnsupportedUrl(f"{shown(url)}: missing host or id; use drs://HOST/ID")
        base = self._bases.get(parts.netloc.lower())
        if base is None and self._bases:
            raise AccessDenied(f"{shown(url)}: {host} is not one of this service's DRS hosts")
        token = {"authorization": f"Bearer {self._token}"} if base and self._token else {}
        return f"{base or 'https://' + parts.netloc}/ga4gh/drs/v1", quote(identifier, safe=""), token

    def _address(self, url: str, found: dict[str, Any]) -> tuple[str, dict[str, str]]:
        """The URL of the bytes, by the preferred access method, and the headers to send."""
        methods = [m for m in found.get("access_methods") or () if isinstance(m, dict)]
        for method in sorted(methods, key=_preference):
            access = method.get("access_url")
            if not isinstance(access, dict) and method.get("access_id"):
                base, identifier, headers = self._service(url)
                access_id = quote(str(method["access_id"]), safe="")
                access = self._get(url, f"{base}/objects/{identifier}/access/{access_id}", headers)
            if not isinstance(access, dict) or not isinstance(access.get("url"), str):
                continue
            if scheme_of(access["url"]) not in PREFERRED:
                continue
            headers = {}
            for line in access.get("headers") or ():
                match = _HEADER.fullmatch(str(line))
                if match is not None and match[1].lower() not in _OURS:
                    headers[match[1].lower()] = match[2].strip()
            return access["url"], headers
        kinds = ", ".join(sorted({str(m.get("type")) for m in methods})) or "none"
        raise UnsupportedUrl(f"{shown(url)}: has no supported access method (it offers: {kinds})")

    def _get(self, url: str, address: str, headers: dict[str, str]) -> dict[str, Any]:
        with self._client.request("GET", address, {**headers, "accept": "application/json"}) as response:
            if response.status == 202:
                raise StorageUnavailable(f"{shown(url)}: is not ready yet")
            if response.status != 200:
                raise refused(url, response.status)
            text = response.read(MAX_ANSWER_BYTES + 1)
        if len(text) > MAX_ANSWER_BYTES:
            raise StagingFailed(f"{shown(url)}: the service's response has more than {MAX_ANSWER_BYTES} bytes")
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise StorageUnavailable(f"{shown(url)}: the service's response is not JSON") from error
        if not isinstance(found, dict):
            raise StagingFailed(f"{shown(url)}: the service's response is not a DRS object")
        return found

    def _verified(self, url: str, found: dict[str, Any], path: Path, size: int) -> str | None:
        expected = _size(found)
        if expected is not None and size != expected:
            raise StorageUnavailable(f"{shown(url)}: {size} bytes arrived, the service reports {expected}")
        for name, value in _sums(found).items():
            digest = hashlib.new(name, usedforsecurity=False)
            with path.open("rb") as file:
                while data := file.read(1 << 20):
                    digest.update(data)
                    self._control.check()
            if digest.hexdigest() != value.lower():
                raise StorageUnavailable(
                    f"{shown(url)}: the checksum differs from the one that the service reports ({name})"
                )
            return f"{name}:{value.lower()}"
        return None


def _preference(method: dict[str, Any]) -> int:
    kind = str(method.get("type"))
    return PREFERRED.index(kind) if kind in PREFERRED else len(PREFERRED)


def _size(found: dict[str, Any]) -> int | None:
    size = found.get("size")
    return size if isinstance(size, int) and not isinstance(size, bool) and size >= 0 else None


def _sums(found: dict[str, Any]) -> dict[str, str]:
    """The supported checksums by hashlib's names, the preferred one first."""
    found_sums = {}
    for item in found.get("checksums") or ():
        if isinstance(item, dict) and (name := _SUMS.get(str(item.get("type")).lower())):
            found_sums[name] = str(item.get("checksum"))
    return {name: found_sums[name] for name in ("sha256", "sha512", "md5") if name in found_sums}
