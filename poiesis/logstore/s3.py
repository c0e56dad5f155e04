"""The log store in a bucket: one object for each chunk."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeVar
from xml.sax.saxutils import escape

from poiesis.domain.errors import ConfigurationError, StagingFailed, StorageUnavailable, UnsupportedUrl
from poiesis.domain.task import TaskId
from poiesis.filer.http_connection import FileRange
from poiesis.filer.s3_client import RangeNotSatisfiable, S3Client
from poiesis.filer.s3_endpoint import CONTENT_TYPE, ObjectRef, put_headers
from poiesis.filer.s3_signature import base64
from poiesis.filer.settings import FilerSettings
from poiesis.logstore import names
from poiesis.ports.logs import Chunk, ChunkPage, LogRef, StoredLog

T = TypeVar("T")
UNSIGNED: Final = "UNSIGNED-PAYLOAD"  # over TLS, which protects the content already
AT_ONCE: Final = 256 * 1024  # up to which a body is read into memory
MAX_ANSWER_BYTES: Final = 1024 * 1024


class S3LogStore:
    """`url`: s3://bucket/prefix. Raises: ConfigurationError."""

    def __init__(self, url: str, settings: FilerSettings) -> None:
        self._client = S3Client(settings)
        self._url = url if url.endswith("/") else url + "/"
        try:
            _, _, self._prefix = self._client.parsed(self._url)
        except UnsupportedUrl as error:
            raise ConfigurationError(f"invalid POIESIS_LOGS__URL: {error}") from None
        self._prefix = self._prefix.lstrip("/")

    def close(self) -> None:
        self._client.close()

    def logs(self, task_id: TaskId) -> Sequence[StoredLog]:
        return names.collect(self._names(names.task_directory(task_id)))

    def log(self, ref: LogRef) -> StoredLog:
        return next(iter(names.collect(self._names(names.directory(ref)))), StoredLog(ref, 0))

    def chunks(self, ref: LogRef, position: int) -> ChunkPage:
        directory = names.directory(ref)
        start = names.before(position)
        found, _ = self._page(directory, after=f"{directory}{start}" if start else "")
        return names.chunk_page(found, position)

    def read(self, ref: LogRef, chunk: Chunk, start: int, size: int) -> bytes:
        def get(found: ObjectRef) -> bytes:
            headers = {"range": f"bytes={start}-{start + size - 1}"}
            with self._client.request(found, "GET", headers=headers) as response:
                data = response.read(size)
            if response.status != 206 or len(data) != size:
                raise StorageUnavailable(wrong)
            return data

        wrong = f"{self._url}: the store returned a different range than requested"
        try:
            return self._call(f"{names.directory(ref)}{names.chunk_name(chunk.offset)}", get)
        except RangeNotSatisfiable:
            raise StorageUnavailable(wrong) from None

    def write(self, ref: LogRef, offset: int, source: int, start: int, size: int) -> None:
        def put(found: ObjectRef) -> None:
            headers, sha256 = {**found.endpoint.write_headers, "content-type": CONTENT_TYPE}, UNSIGNED
            body: bytes | FileRange = FileRange(source, start, size)
            if size <= AT_ONCE:
                body = os.pread(source, size, start)
                if len(body) != size:
                    raise StagingFailed("the file was truncated during the transfer")
            if not found.endpoint.is_secure:
                is_short = isinstance(body, bytes)
                digest = hashlib.sha256(body).digest() if is_short else self._client.sha256(source, start, size)  # type: ignore[arg-type]
                headers, sha256 = put_headers(found.endpoint, digest), digest.hex()
            with self._client.request(found, "PUT", headers=headers, body=body, sha256=sha256):
                pass

        self._call(f"{names.directory(ref)}{names.chunk_name(offset)}", put)

    def end(self, ref: LogRef, *, truncated: bool) -> None:
        def put(found: ObjectRef) -> None:
            with self._client.request(found, "PUT", headers=found.endpoint.write_headers):
                pass

        self._call(f"{names.directory(ref)}{names.mark_name(truncated=truncated)}", put)

    def tasks(self, after: TaskId | None) -> Sequence[TaskId]:
        found, _ = self._page("", after=f"{after}0" if after else "")  # "0" sorts after "/"
        parsed = (names.parse(name) for name, _ in found)
        return list(dict.fromkeys(p[0].task_id for p in parsed if p is not None))

    def delete(self, task_id: TaskId) -> None:
        while found := self._page(names.task_directory(task_id))[0]:
            self._delete([name for name, _ in found])

    def _delete(self, found: Sequence[str]) -> None:
        """In one request (DeleteObjects), at most a thousand."""
        keys = "".join(f"<Object><Key>{escape(self._prefix + name)}</Key></Object>" for name in found)
        body = f"<Delete><Quiet>true</Quiet>{keys}</Delete>".encode()
        headers = {"content-md5": base64(hashlib.md5(body, usedforsecurity=False).digest())}
        sha256 = hashlib.sha256(body).hexdigest()

        def post(found: ObjectRef) -> None:
            bucket = ObjectRef(found.url, found.endpoint, found.bucket, "")
            request = self._client.request(
                bucket, "POST", headers=headers, query={"delete": ""}, body=body, sha256=sha256
            )
            with request as response:
                text = response.read(MAX_ANSWER_BYTES)
            if b"<Error>" in text:
                code = text.partition(b"<Code>")[2].partition(b"</Code>")[0].decode(errors="replace")[:100]
                raise StorageUnavailable(f"{self._url}: some logs could not be deleted ({code or 'unknown error'})")

        self._call("", post)

    def _names(self, directory: str) -> Iterator[tuple[str, int]]:
        token = ""
        while True:
            found, token = self._page(directory, token=token)
            yield from found
            if not token:
                return

    def _page(self, directory: str, *, token: str = "", after: str = "") -> tuple[list[tuple[str, int]], str]:
        prefix, start = self._prefix + directory, self._prefix + after if after else ""
        found, token = self._call("", lambda ref: self._client.page(ref, prefix, token, after=start))
        skipped = len(self._prefix)
        return [(key[skipped:], size) for key, size, _ in found if key.startswith(prefix)], token

    def _call(self, name: str, call: Callable[[ObjectRef], T]) -> T:
        return self._client.in_region(self._url + name, call)
