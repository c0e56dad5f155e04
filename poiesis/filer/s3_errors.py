"""Maps error responses of S3 servers, and network errors, to the errors of the domain."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from poiesis.domain.errors import AccessDenied, FileTooLarge, NotFound, StagingFailed, StorageUnavailable
from poiesis.filer.network import PROXY_AUTHENTICATION
from poiesis.filer.transfer import Changed
from poiesis.filer.urls import shown

if TYPE_CHECKING:
    from poiesis.filer.http_connection import Response

_MISSING: Final = {
    "NoSuchKey": "there is no such object",
    "NoSuchBucket": "there is no such bucket",
    "NoSuchVersion": "there is no such version",
    "ResourceNotFound": "there is no such resource",
}
_DENIED: Final = {
    "AccessDenied": "access denied",
    "AllAccessDisabled": "access denied",
    "InvalidAccessKeyId": "unknown access key",
    "SignatureDoesNotMatch": "wrong secret key",
    "ExpiredToken": "the session token has expired",
    "InvalidToken": "invalid session token",
    "RequestTimeTooSkewed": "the clocks of this machine and of the store differ by too much; synchronize them",
}
_TRANSIENT: Final = frozenset(
    {
        "SlowDown",
        "SlowDownRead",
        "SlowDownWrite",
        "InternalError",
        "ServiceUnavailable",
        "RequestTimeout",
        "OperationAborted",
        "ServerBusy",
        "Throttling",
        "ThrottlingException",
        "TooManyRequests",
        "RequestLimitExceeded",
        "BandwidthLimitExceeded",
        "BadDigest",
        "IncompleteBody",
        "XAmzContentSHA256Mismatch",
        "XAmzContentChecksumMismatch",
        "NoSuchUpload",
        "PreconditionFailed",
        "ConditionalRequestConflict",
        "XMinioServerNotInitialized",
    }
)
_FULL: Final = frozenset(
    {"QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "InsufficientStorage"}
)
_TRANSIENT_STATUS: Final = frozenset({408, 429, 500, 502, 503, 504, 509, 520, 521, 522, 523, 524})
_WRONG_REGION: Final = frozenset(
    {
        "PermanentRedirect",
        "TemporaryRedirect",
        "AuthorizationHeaderMalformed",
        "IllegalLocationConstraintException",
        "Redirect",
    }
)


class WrongRegion(Exception):
    """The bucket is in another region."""

    def __init__(self, region: str) -> None:
        super().__init__(region)
        self.region = region


def response_error(url: str, response: Response, body: bytes) -> Exception:
    """The error that a response without success stands for."""
    status, document = response.status, body.decode(errors="replace")
    code, message = _element(document, "Code", 100), _element(document, "Message", 500)
    region = response.headers.get("x-amz-bucket-region") or _element(document, "Region", 60)
    summary = f"{code}: {message}" if code and message else code or message or f"status {status}"
    text = f"{shown(url)}: "
    if code == "PreconditionFailed" or status == 412:
        return Changed(text + "the object changed during the transfer")
    if status == 407:
        return AccessDenied(text + PROXY_AUTHENTICATION)
    if code in _MISSING or (status == 404 and code not in _TRANSIENT):
        return NotFound(text + _MISSING.get(code, "there is no such object"))
    if region and (status in (301, 307, 400)) and (code in _WRONG_REGION or not code):
        return WrongRegion(region)
    if code in _DENIED or status in (401, 403):
        explained = _DENIED.get(code, "access denied")
        return AccessDenied(f"{text}{explained}" + (f" ({code})" if code else ""))
    if code in _FULL:
        return StagingFailed(f"{text}no space left in the store ({code})")
    if code in _TRANSIENT or status in _TRANSIENT_STATUS:
        return StorageUnavailable(text + summary)
    if code == "EntityTooLarge":
        return FileTooLarge(text + "larger than the store accepts")
    return StagingFailed(text + summary)


def _element(document: str, tag: str, most: int) -> str:
    found = re.search(f"<{tag}>([^<]{{1,{most}}})</{tag}>", document)
    return found[1] if found else ""
