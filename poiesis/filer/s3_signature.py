"""AWS Signature Version 4 for S3. The SDK's signer costs four times as much; a test compares the two, request for request."""

from __future__ import annotations

import hashlib
import hmac
import threading
import time
from binascii import b2a_base64
from collections.abc import Callable
from typing import Final, NamedTuple


class Credentials(NamedTuple):
    access_key: str
    secret_key: str
    session_token: str | None = None


Provider = Callable[[], Credentials]
"""Called before each request, by many threads. Raises: ConfigurationError; for roles StorageUnavailable, StagingFailed."""

EMPTY_SHA256: Final = hashlib.sha256().hexdigest()


class Signer:
    """Signs for one region; caches the key of the day and the time of the second."""

    def __init__(self, region: str) -> None:
        self._region = region
        self._lock = threading.Lock()
        self._second = -1
        self._stamp = ""
        self._keys: dict[tuple[str, str], bytes] = {}

    def sign(
        self, method: str, path: str, query: str, headers: dict[str, str], sha256: str, access_key: str, secret_key: str
    ) -> None:
        """Add `x-amz-date` and `authorization` to `headers`, all of which are signed. `path` and `query` are percent-encoded, the query
        is sorted, header names are in lower case, and header values have no repeated spaces."""
        stamp = self._now()
        headers["x-amz-date"] = stamp
        names = sorted(headers)
        signed = ";".join(names)
        listed = "".join(f"{name}:{headers[name].strip()}\n" for name in names)
        request = f"{method}\n{path}\n{query}\n{listed}\n{signed}\n{sha256}"
        scope = f"{stamp[:8]}/{self._region}/s3/aws4_request"
        text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
        signature = hmac.digest(self._key(stamp[:8], secret_key), text.encode(), "sha256").hex()
        headers["authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={access_key}/{scope}, SignedHeaders={signed}, Signature={signature}"
        )

    def _now(self) -> str:
        second = int(time.time())
        with self._lock:
            if second != self._second:
                self._second, self._stamp = second, time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(second))
            return self._stamp

    def _key(self, day: str, secret_key: str) -> bytes:
        with self._lock:
            if (day, secret_key) not in self._keys:
                key = b"AWS4" + secret_key.encode()
                for part in (day, self._region, "s3", "aws4_request"):
                    key = hmac.digest(key, part.encode(), "sha256")
                self._keys.clear()  # of yesterday, or of rotated credentials
                self._keys[day, secret_key] = key
            return self._keys[day, secret_key]


def base64(data: bytes) -> str:
    return b2a_base64(data, newline=False).decode()
