"""Small S3 objects as exchanges for `poiesis.filer.small_files`, with the same requests that `poiesis.filer.s3` makes one by one."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from poiesis.domain.errors import StorageUnavailable
from poiesis.filer.atomic_write import atomic_file
from poiesis.filer.http_connection import head_of
from poiesis.filer.s3_checksum import ChecksumVerifier
from poiesis.filer.s3_endpoint import ObjectRef, get_headers, put_headers
from poiesis.filer.transfer import Control
from poiesis.filer.urls import shown
from poiesis.ports.filer import RemoteFile, Sent


class Get:
    """The parent of `target` exists."""

    def __init__(self, control: Control, ref: ObjectRef, file: RemoteFile, target: Path) -> None:
        self.pool = ref.endpoint.pool(ref.bucket)
        self._control, self._ref, self._file, self._target = control, ref, file, target

    def request(self) -> bytes:
        ref = self._ref
        target, headers = ref.endpoint.signed(
            "GET", ref.bucket, ref.key, headers=get_headers(ref.endpoint, self._file.version)
        )
        return head_of("GET", target, headers, 0)

    def handle_response(self, status: int, headers: Mapping[str, str], body: memoryview) -> Sent:
        """Raises: StorageUnavailable, StagingFailed, Cancelled."""
        url = self._ref.url
        _expect(url, status)
        check = ChecksumVerifier(headers)
        check.update(body)
        checksum = check.verified(url)
        if len(body) != self._file.size_bytes:
            raise StorageUnavailable(
                f"{shown(url)}: {len(body)} bytes were received, but {self._file.size_bytes} were listed"
            )
        with atomic_file(self._target, sync=self._control.sync) as part:
            part.write(body, 0)
            self._control.moved(len(body))
        return Sent(url, len(body), checksum)


class Put:
    """`opened` yields a descriptor of the file. A file of more than `most` bytes is an error."""

    def __init__(
        self, control: Control, ref: ObjectRef, opened: Callable[[], AbstractContextManager[int]], most: int
    ) -> None:
        self.pool = ref.endpoint.pool(ref.bucket)
        self._control, self._ref, self._opened, self._most = control, ref, opened, most
        self._size, self._sha256 = 0, ""

    def request(self) -> bytes:
        """Raises: StorageUnavailable if the file has grown, and what `opened` raises."""
        ref = self._ref
        with self._opened() as source:
            body = os.pread(source, self._most + 1, 0)
        self._size = len(body)
        if self._size > self._most:
            raise StorageUnavailable(f"{shown(ref.url)}: the file grew during the transfer")
        digest = hashlib.sha256(body)
        self._sha256 = digest.hexdigest()
        headers = put_headers(ref.endpoint, digest.digest())
        target, headers = ref.endpoint.signed("PUT", ref.bucket, ref.key, headers=headers, sha256=self._sha256)
        return head_of("PUT", target, headers, self._size) + body

    def handle_response(self, status: int, headers: Mapping[str, str], body: memoryview) -> Sent:
        """Raises: StorageUnavailable, Cancelled."""
        _expect(self._ref.url, status)
        self._control.moved(self._size)
        return Sent(self._ref.url, self._size, f"sha256:{self._sha256}")


def _expect(url: str, status: int) -> None:
    if status != 200:
        raise StorageUnavailable(f"{shown(url)}: status {status}")
