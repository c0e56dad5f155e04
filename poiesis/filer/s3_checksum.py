"""The checksums that S3 keeps of objects."""

from __future__ import annotations

import hashlib
from binascii import crc32
from collections.abc import Mapping

from poiesis.domain.errors import StorageUnavailable
from poiesis.filer.s3_endpoint import base64
from poiesis.filer.urls import shown


class Check:
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

    @property
    def is_void(self) -> bool:
        return not (self._sha256 or self._crc32)

    def update(self, data: memoryview) -> None:
        if self._sha256:
            self._digest.update(data)
        if self._crc32:
            self._crc = crc32(data, self._crc)

    def verified(self, url: str) -> str | None:
        """Raises: StorageUnavailable when what came is not what was stored."""
        if self._sha256 and base64(self._digest.digest()) != self._sha256:
            raise StorageUnavailable(
                f"{shown(url)}: what came does not have the checksum that the store keeps (sha256)"
            )
        if self._crc32 and base64(self._crc.to_bytes(4, "big")) != self._crc32:
            raise StorageUnavailable(f"{shown(url)}: what came does not have the checksum that the store keeps (crc32)")
        return f"sha256:{self._digest.hexdigest()}" if self._sha256 else None
