"""S3: any number of endpoints, each with its own credentials.

Requests go through `poiesis.filer.http_connection`, at a fifth of the CPU of the MinIO SDK; large objects are moved in parallel ranges and
parts directly between socket and file. The SDK (`poiesis.filer.minio_client`) only gives the credentials of roles and unusual AWS host
names. It is imported on first use, because the import costs more than a small file.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Final

from poiesis.domain.errors import (
    NotFound,
    PoiesisError,
    StagingFailed,
    StorageUnavailable,
    UnsupportedUrl,
)
from poiesis.filer.atomic_write import PartialFile, atomic_file
from poiesis.filer.http_connection import MAX_HEAD_BYTES, FileRange, Response
from poiesis.filer.network import network_errors
from poiesis.filer.registry import Context
from poiesis.filer.s3_checksum import ChecksumVerifier
from poiesis.filer.s3_client import RangeNotSatisfiable, S3Client
from poiesis.filer.s3_endpoint import (
    CONTENT_TYPE,
    ObjectRef,
    get_headers,
    put_headers,
)
from poiesis.filer.s3_errors import WrongRegion, response_error
from poiesis.filer.s3_small_files import Get, Put
from poiesis.filer.settings import MIB
from poiesis.filer.transfer import Changed
from poiesis.filer.urls import shown
from poiesis.ports.filer import RemoteFile, Sent

MAX_PARTS: Final = 10_000
UNSIGNED: Final = "UNSIGNED-PAYLOAD"  # over TLS, which protects the content already
_AT_ONCE: Final = 1 * MIB  # up to which a body is sent together with its head
_CONTENT_RANGE: Final = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


class S3Filer:
    def __init__(self, context: Context) -> None:
        self._settings = context.settings
        self._control = context.control
        self._pool = context.pool
        self._client = S3Client(context.settings)

    def close(self) -> None:
        self._client.close()

    def stat(self, url: str) -> RemoteFile | None:
        return self._client.in_region(url, self._stat)

    def walk(self, url: str) -> Iterator[RemoteFile]:
        _, __, key = self._client.parsed(url)
        base = url[: len(url) - len(key)]
        base = base if base.endswith("/") else base + "/"
        plain = key.rstrip("/") + "/" if key.strip("/") else ""
        if key.startswith(plain + "/"):  # an empty part, unless nothing is there: then a slash too many
            found = False
            for file in self._walk(url, base, key):
                found = True
                yield file
            if found:
                return
        yield from self._walk(url, base, plain)

    def _walk(self, url: str, base: str, prefix: str) -> Iterator[RemoteFile]:
        token = ""
        while True:
            found, token = self._client.in_region(url, lambda ref, token=token: self._client.page(ref, prefix, token))  # type: ignore[misc]
            for key, size, etag in found:
                if not key.startswith(prefix):
                    continue  # a server that reads "//" as "/"
                name = key[len(prefix) :]
                if name and not name.endswith("/"):
                    yield RemoteFile(base + key, name, size, etag)
                elif size:
                    raise StagingFailed(
                        f'{shown(base + key)}: the key ends with "/" but the object is not empty ({size} bytes), so it is neither'
                        " a directory nor a file that can be staged in one; use an input of type FILE for it"
                    )
                else:
                    yield RemoteFile(base + key, name.removesuffix("/"), 0, is_directory=True)
            if not token:
                return

    def fetch(self, file: RemoteFile, target: Path) -> Sent:
        return self._client.in_region(file.url, lambda ref: self._fetch(ref, file, target))

    def send(self, source: int, url: str) -> Sent:
        size = os.fstat(source).st_size
        self._check_name(url)
        if size <= 2 * self._settings.part_bytes:
            return self._client.in_region(url, lambda ref: self._put(ref, source, size))
        return self._client.in_region(url, lambda ref: self._put_in_parts(ref, source, size))

    def get_exchange(self, file: RemoteFile, target: Path) -> Get | None:
        if (file.size_bytes or 0) > self._max_small_bytes:
            return None
        return Get(self._control, self._client.ref(file.url), file, target)

    def put_exchange(self, opened: Callable[[], AbstractContextManager[int]], size: int, url: str) -> Put | None:
        if size > self._max_small_bytes:
            return None
        self._check_name(url)
        return Put(self._control, self._client.ref(url), opened, self._max_small_bytes)

    @property
    def _max_small_bytes(self) -> int:
        """The largest response body that fits in a connection's buffer."""
        return max(0, self._settings.buffer_bytes - MAX_HEAD_BYTES)

    def _check_name(self, url: str) -> None:
        """Check the key of a new object. Raises: UnsupportedUrl, StagingFailed."""
        _, __, key = self._client.parsed(url)
        if not key or key.endswith("/"):
            raise UnsupportedUrl(f"{shown(url)}: missing key; use s3://bucket/key")
        try:
            key.encode()
        except UnicodeEncodeError:
            raise StagingFailed(f"{shown(url)}: the name is not valid UTF-8, as S3 requires") from None

    def make_directory(self, url: str) -> None:
        if not self._client.parsed(url)[2].strip("/"):
            return
        marker = url.rstrip("/") + "/"

        def put(ref: ObjectRef) -> None:
            with self._client.request(ref, "PUT", headers=ref.endpoint.write_headers):
                pass

        self._client.in_region(marker, put)

    # one object

    def _stat(self, ref: ObjectRef) -> RemoteFile | None:
        if not ref.key:
            return None
        try:
            with self._client.request(ref, "HEAD", headers=ref.endpoint.read_headers) as response:
                length = response.headers.get("content-length", "")
                size = int(length) if length.isdecimal() else None
                version = response.headers.get("etag", "").strip('"') or None
        except NotFound:
            return None
        if ref.key.endswith("/") and not size:
            return None  # a directory marker
        return RemoteFile(ref.url, ref.key.rsplit("/", 1)[-1], size, version)

    def _fetch(self, ref: ObjectRef, file: RemoteFile, target: Path) -> Sent:
        if not ref.key:
            raise NotFound(f"{shown(ref.url)}: missing key; use s3://bucket/key")
        with atomic_file(target, sync=self._control.sync, size_bytes=file.size_bytes) as part:
            size, checksum = self._get(ref, file, part)
            if size == 0 and ref.key.endswith("/"):
                raise NotFound(f"{shown(ref.url)}: is a directory marker, not a file")
        return Sent(ref.url, size, checksum)

    def _get(self, ref: ObjectRef, file: RemoteFile, part: PartialFile) -> tuple[int, str | None]:
        """An object whose size is not known is requested as a whole too, since stores send no checksum with a range; if it turns out
        to be large, that response is not read."""
        step = self._settings.part_bytes
        if (file.size_bytes or 0) <= 2 * step:
            with self._client.request(ref, "GET", headers=get_headers(ref.endpoint, file.version)) as response:
                total = response.size_bytes if file.size_bytes is None else self._content_length(ref, response)
                self._check_listed(file, total)
                if total is not None and total <= 2 * step:
                    self._control.check_size(ref.url, total)
                    check = ChecksumVerifier(response.headers)
                    self._get_range(ref, part, 0, total, response.headers.get("etag", ""), total, response, check)
                    return total, check.verified(ref.url)
        return self._get_in_parts(ref, file, part, step), None

    def _get_in_parts(self, ref: ObjectRef, file: RemoteFile, part: PartialFile, step: int) -> int:
        """The first range's head has the size; the others are fetched in parallel, and one that breaks off is resumed."""
        headers = {**ref.endpoint.read_headers, "range": f"bytes=0-{step - 1}"}
        if file.version:
            headers["if-match"] = f'"{file.version}"'
        try:
            with self._client.request(ref, "GET", headers=headers) as response:
                if response.status == 200:  # a server without ranges
                    total = self._content_length(ref, response)
                    self._check_listed(file, total)
                    self._control.check_size(ref.url, total)
                    if self._save(response, part) != total:
                        raise StorageUnavailable(f"{shown(ref.url)}: fewer than {total} bytes were received")
                    return total
                first, last, total = self._range(ref, response)
                end = last + 1
                self._check_listed(file, total)
                if first != 0 or end != min(step, total):
                    raise StorageUnavailable(f"{shown(ref.url)}: the server returned a different range than requested")
                self._control.check_size(ref.url, total)
                etag = response.headers.get("etag", "")
                if total > step and not etag:
                    raise StagingFailed(
                        f"{shown(ref.url)}: the server returned no ETag, so the parts might belong to different objects"
                    )
                self._pool.together(
                    lambda start=start: self._get_range(  # type: ignore[misc]
                        ref, part, start, min(start + step, total), etag, total, None if start else response
                    )
                    for start in range(0, total, step)
                )
        except RangeNotSatisfiable:  # of the first range
            self._check_listed(file, 0)
            return 0
        return total

    def _check_listed(self, file: RemoteFile, total: int | None) -> None:
        if file.size_bytes not in (None, total):
            raise Changed(
                f"{shown(file.url)}: the object changed: it has {total} bytes, but {file.size_bytes} were listed"
            )

    def _get_range(
        self,
        ref: ObjectRef,
        part: PartialFile,
        start: int,
        end: int,
        etag: str,
        total: int,
        begun: Response | None,
        check: ChecksumVerifier | None = None,
    ) -> None:
        """`begun`: the response to a request for the range. Without an ETag it cannot be resumed. `check` gets all bytes, once."""
        reached = start
        changed = f"{shown(ref.url)}: the object changed during the transfer"

        def save(response: Response) -> None:
            nonlocal reached
            if check is None or check.is_void:
                for count in response.save(part, reached):
                    reached += count
                    self._control.moved(count)
            else:
                for view in response.chunks():
                    part.write(view, reached)
                    check.update(view)
                    reached += len(view)
                    self._control.moved(len(view))
            if reached != end:
                raise StorageUnavailable(f"{shown(ref.url)}: the connection ended early")

        def once() -> None:
            nonlocal begun
            if begun is not None:
                response, begun = begun, None
                with network_errors(ref.url):
                    return save(response)
            headers = {**ref.endpoint.read_headers, "range": f"bytes={reached}-{end - 1}", "if-match": etag}
            try:
                with self._client.request(ref, "GET", headers=headers) as response:
                    if response.status == 200 and (start, end) == (0, total):
                        text = f"{shown(ref.url)}: the server does not support resuming a download"
                        raise Changed(text)  # start again
                    found = self._range(ref, response) if response.status == 206 else None
                    if found and (found[2], response.headers.get("etag", etag)) != (total, etag):
                        raise Changed(changed)  # despite If-Match, which some servers ignore
                    if found != (reached, end - 1, total):
                        raise StorageUnavailable(
                            f"{shown(ref.url)}: the server returned a different range than requested"
                        )
                    save(response)
            except RangeNotSatisfiable:
                raise Changed(changed) from None

        self._control.repeat(once, lambda: reached, final=(Changed,) if etag else (StorageUnavailable,))

    def _save(self, response: Response, part: PartialFile) -> int:
        """Write the whole body to the file, and return its size."""
        size = 0
        for count in response.save(part, 0):
            size += count
            self._control.moved(count)
        return size

    def _content_length(self, ref: ObjectRef, response: Response) -> int:
        if response.size_bytes is None:
            raise StagingFailed(f"{shown(ref.url)}: the server returned no content length")
        return response.size_bytes

    def _range(self, ref: ObjectRef, response: Response) -> tuple[int, int, int]:
        match = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
        if match is None:
            raise StorageUnavailable(f"{shown(ref.url)}: the server returned no valid content range")
        return int(match[1]), int(match[2]), int(match[3])

    def _put(self, ref: ObjectRef, source: int, size: int) -> Sent:
        body: bytes | FileRange = FileRange(source, 0, size)
        if size <= _AT_ONCE:
            body = os.pread(source, size, 0)
            size = len(body)
            digest = hashlib.sha256(body).digest()
        else:
            digest = self._client.sha256(source, 0, size)
        headers = put_headers(ref.endpoint, digest)
        with self._client.request(
            ref, "PUT", headers=headers, body=body, sha256=digest.hex(), moved=self._control.moved
        ):
            if isinstance(body, bytes):
                self._control.moved(size)
        return Sent(ref.url, size, f"sha256:{digest.hex()}")

    def _put_in_parts(self, ref: ObjectRef, source: int, size: int) -> Sent:
        """The object appears when the last part has arrived; after an error nothing is left."""
        step = max(self._settings.part_bytes, -(-size // MAX_PARTS))
        step = -(-step // MIB) * MIB
        upload = self._control.repeat(lambda: self._create_upload(ref))
        starts = range(0, size, step)
        etags = [""] * len(starts)

        def put(index: int) -> None:
            start = index * step
            etags[index] = self._control.repeat(
                lambda: self._put_part(ref, source, start, min(step, size - start), upload, index + 1)
            )

        try:
            self._pool.together(lambda index=index: put(index) for index in range(len(starts)))  # type: ignore[misc]
            self._complete(ref, upload, etags, size)
        except BaseException:
            with suppress(PoiesisError, WrongRegion), self._client.request(ref, "DELETE", query={"uploadId": upload}):
                pass
            raise
        return Sent(ref.url, size)

    def _create_upload(self, ref: ObjectRef) -> str:
        headers = {**ref.endpoint.write_headers, "content-type": CONTENT_TYPE}
        with self._client.request(ref, "POST", headers=headers, query={"uploads": ""}) as response:
            text = response.read(MIB)
        from xml.etree import ElementTree

        try:
            upload = ElementTree.fromstring(text).findtext("{*}UploadId")
        except ElementTree.ParseError:
            upload = None
        if not upload:
            raise StorageUnavailable(f"{shown(ref.url)}: the server returned no upload id")
        return upload

    def _put_part(self, ref: ObjectRef, source: int, start: int, count: int, upload: str, number: int) -> str:
        sha256 = UNSIGNED if ref.endpoint.is_secure else self._client.sha256(source, start, count).hex()
        with self._client.request(
            ref,
            "PUT",
            headers=ref.endpoint.read_headers,
            query={"partNumber": str(number), "uploadId": upload},
            body=FileRange(source, start, count),
            sha256=sha256,
            moved=self._control.moved,
        ) as response:
            etag = response.headers.get("etag", "").strip('"')
        if not etag or "<" in etag or "&" in etag:
            raise StagingFailed(f"{shown(ref.url)}: the server confirmed a part without a valid ETag")
        return etag

    def _complete(self, ref: ObjectRef, upload: str, etags: list[str], size: int) -> None:
        tried, query = 0, {"uploadId": upload}
        parts = (f'<Part><PartNumber>{i}</PartNumber><ETag>"{etag}"</ETag></Part>' for i, etag in enumerate(etags, 1))
        body = f"<CompleteMultipartUpload>{''.join(parts)}</CompleteMultipartUpload>".encode()
        sha256 = hashlib.sha256(body).hexdigest()

        def complete() -> None:
            nonlocal tried
            tried += 1
            try:
                with self._client.request(ref, "POST", query=query, body=body, sha256=sha256) as response:
                    text = response.read(MIB)
                    if b"<Code>" in text:  # an error may follow the status 200
                        raise response_error(ref.url, response, text)
                    if b"<ETag>" not in text:
                        raise StorageUnavailable(f"{shown(ref.url)}: the server did not confirm the upload")
            except PoiesisError:
                # the response was lost: the upload is gone because it is complete
                if tried > 1 and self._is_there(ref, size, len(etags)):
                    return
                raise

        self._control.repeat(complete)

    def _is_there(self, ref: ObjectRef, size: int, parts: int) -> bool:
        with suppress(PoiesisError):
            found = self._stat(ref)
            return found is not None and found.size_bytes == size and str(found.version).endswith(f"-{parts}")
        return False
