"""The checksums that S3 stores with objects."""

from __future__ import annotations

import hashlib
from binascii import crc32
from collections.abc import Mapping

from poiesis.domain.errors import StorageUnavailable
from poiesis.filer.s3_signature import base64
from poiesis.filer.urls import shown


class ChecksumVerifier:
    """Verifies the checksum of a whole object, where the server returns one of a kind that is implemented here."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        self._sha256 = self._crc32 = None
        if headers.get("x-amz-checksum-type", "FULL_OBJECT").upper() == "FULL_OBJECT":
            # with a dash it is a checksum of the parts' checksums
            self._sha256, self._crc32 = (
                value if value and "-" not in value else None
                for value in (headers.get(f"x-amz-checksum-{kind}") for kind in ("sha256", "crc32"))
            )
        self._digest = hashlib.sha256()
        self._crc = 0

    @property
    def is_void(self) -> bool:
        """Whether there is nothing to verify."""
        return not (self._sha256 or self._crc32)

    def update(self, data: memoryview) -> None:
        if self._sha256:
            self._digest.update(data)
        if self._crc32:
            self._crc = crc32(data, self._crc)

    def verified(self, url: str) -> str | None:
        """The checksum for the report, if it is SHA-256. Raises: StorageUnavailable if the data is not what was stored."""
        for kind, stored, computed in (
            ("sha256", self._sha256, self._digest.digest()),
            ("crc32", self._crc32, self._crc.to_bytes(4, "big")),
        ):
            if stored and base64(computed) != stored:
                raise StorageUnavailable(
                    f"{shown(url)}: the data does not match the checksum that the store keeps ({kind})"
                )
        return f"sha256:{self._digest.hexdigest()}" if self._sha256 else None
