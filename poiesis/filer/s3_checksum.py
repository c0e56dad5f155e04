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
        is_whole = headers.get("x-amz-checksum-type", "FULL_OBJECT").upper() == "FULL_OBJECT"
        stored = {kind: headers.get(f"x-amz-checksum-{kind}", "") for kind in ("sha256", "crc32") if is_whole}
        # with a dash it is a checksum of the parts' checksums
        self._stored = {kind: value for kind, value in stored.items() if value and "-" not in value}
        self._sha256 = hashlib.sha256()
        self._crc32 = 0

    @property
    def is_void(self) -> bool:
        """Whether there is nothing to verify."""
        return not self._stored

    def update(self, data: memoryview) -> None:
        if "sha256" in self._stored:
            self._sha256.update(data)
        if "crc32" in self._stored:
            self._crc32 = crc32(data, self._crc32)

    def verified(self, url: str) -> str | None:
        """The checksum for the report, if it is SHA-256. Raises: StorageUnavailable if the data is not what was stored."""
        computed = {"sha256": self._sha256.digest(), "crc32": self._crc32.to_bytes(4, "big")}
        for kind, stored in self._stored.items():
            if base64(computed[kind]) != stored:
                raise StorageUnavailable(
                    f"{shown(url)}: the data does not match the checksum that the store keeps ({kind})"
                )
        return f"sha256:{self._sha256.hexdigest()}" if "sha256" in self._stored else None
