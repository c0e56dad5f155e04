"""Small objects of S3 as exchanges for `poiesis.filer.many`, in the same words as `poiesis.filer.s3` asks for them one by one."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from poiesis.domain.errors import StorageUnavailable
from poiesis.filer.addresses import shown
from poiesis.filer.s3_checksum import Check
from poiesis.filer.s3_site import Place, get_headers, put_headers
from poiesis.filer.transfer import Control
from poiesis.filer.wire import head_of
from poiesis.filer.writing import partial
from poiesis.ports.filer import RemoteFile, Sent


class Get:
    """`target`: its parent exists."""

    def __init__(self, control: Control, place: Place, file: RemoteFile, target: Path) -> None:
        self.wire = place.site.wire(place.bucket)
        self._control, self._place, self._file, self._target = control, place, file, target

    def request(self) -> bytes:
        place = self._place
        target, headers = place.site.signed(
            "GET", place.bucket, place.key, headers=get_headers(place.site, self._file.version)
        )
        return head_of("GET", target, headers, 0)

    def answered(self, status: int, headers: Mapping[str, str], body: memoryview) -> Sent:
        """Raises: StorageUnavailable, StagingFailed, Cancelled."""
        url = self._place.url
        _expect(url, status)
        check = Check(headers)
        check.update(body)
        checksum = check.verified(url)
        if len(body) != self._file.size_bytes:
            raise StorageUnavailable(f"{shown(url)}: {len(body)} bytes came, {self._file.size_bytes} were listed")
        with partial(self._target, sync=self._control.sync) as part:
            part.write(body, 0)
            self._control.moved(len(body))
        return Sent(url, len(body), checksum)


class Put:
    """`opened`: the file, as a descriptor. At most `most` bytes of it are sent."""

    def __init__(
        self, control: Control, place: Place, opened: Callable[[], AbstractContextManager[int]], most: int
    ) -> None:
        self.wire = place.site.wire(place.bucket)
        self._control, self._place, self._opened, self._most = control, place, opened, most
        self._size, self._sha256 = 0, ""

    def request(self) -> bytes:
        """Raises: StorageUnavailable when the file has grown, and what `opened` raises."""
        place = self._place
        with self._opened() as source:
            body = os.pread(source, self._most + 1, 0)
        self._size = len(body)
        if self._size > self._most:
            raise StorageUnavailable(f"{shown(place.url)}: the file became longer")
        digest = hashlib.sha256(body)
        self._sha256 = digest.hexdigest()
        headers = put_headers(place.site, digest.digest())
        target, headers = place.site.signed("PUT", place.bucket, place.key, headers=headers, sha256=self._sha256)
        return head_of("PUT", target, headers, self._size) + body

    def answered(self, status: int, headers: Mapping[str, str], body: memoryview) -> Sent:
        """Raises: StorageUnavailable, Cancelled."""
        _expect(self._place.url, status)
        self._control.moved(self._size)
        return Sent(self._place.url, self._size, f"sha256:{self._sha256}")


def _expect(url: str, status: int) -> None:
    if status != 200:
        raise StorageUnavailable(f"{shown(url)}: status {status}")
