"""Every error response of the APIs: one body (schema `Error` of the spec), made only here.

| Raised | Status |
|---|---|
| InvalidTask, InvalidRequest | 400, every problem with its path |
| Forbidden / UnknownTask, UnknownKey, UnknownWebhook / Conflict | 403 / 404 / 409 |
| Unavailable and its subclasses | 503 with Retry-After |
| Refused, and other HTTPExceptions: of Starlette and Connexion | their own status |
| anything else: a bug | 500; the traceback goes to the log once, and not to the client |

Requests that the server refuses before the application sees them get the same body (`connections`).
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

from starlette.exceptions import HTTPException
from starlette.responses import Response

from poiesis.domain.errors import (
    Conflict,
    Forbidden,
    InvalidRequest,
    InvalidTask,
    PoiesisError,
    Problem,
    QuotaExceeded,
    Unavailable,
    UnknownKey,
    UnknownTask,
)
from poiesis.domain.webhooks import UnknownWebhook
from poiesis.observability import current_request_id

log = logging.getLogger(__name__)

RETRY_AFTER_S: Final = 5  # seconds; about how long a restarted store or broker takes
MAX_MESSAGE: Final = 2_000  # characters; `problems` has everything
MAX_PROBLEMS: Final = 1_000

_STATUS: Final[Mapping[type[PoiesisError], int]] = {
    InvalidTask: 400,
    InvalidRequest: 400,
    Forbidden: 403,
    Conflict: 409,
    UnknownTask: 404,
    UnknownWebhook: 404,
    UnknownKey: 404,
    Unavailable: 503,
}
_MESSAGES: Final = {
    404: "not found: the APIs are at /ga4gh/tes/v1 and /poiesis/v1, each with its openapi.json",
    405: "unsupported method",
    415: "unsupported Content-Type: send the task with Content-Type: application/json",
    500: "internal error: the service's log has the details",
}


class NotJson(InvalidTask):
    """The body of a request is not JSON."""

    code = "not_json"

    def __init__(self, message: str) -> None:
        super().__init__([Problem("$", message)])


class InvalidBody(InvalidTask):
    """The body of a request of the extensions has problems."""

    code = "invalid_request"


class Refused(HTTPException):
    """A request that the API refuses; `code` is by default the name of the status: `request_timeout`."""

    def __init__(
        self, status: int, message: str, code: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(status, message, headers)
        self.code = code


class BrokenOff(Refused):
    """The rest of a response does not come. Its connection is closed, so that the part is not taken for the whole."""

    def __init__(self, message: str) -> None:
        super().__init__(503, message, headers={"Retry-After": str(RETRY_AFTER_S)})


class ErrorResponse(Response):
    """`code`: the `error` of its body."""

    code: str


def body_too_large(limit_bytes: int) -> Refused:
    return Refused(413, f"the body is larger than {limit_bytes} bytes: pass large content by URL", "body_too_large")


def respond(error: Exception) -> ErrorResponse:
    """The response to a client for `error`, which is logged where the service is at fault."""
    if isinstance(error, Refused):
        answer = plain(error.status_code, error.detail, error.headers, error.code)
    elif isinstance(error, HTTPException):
        answer = plain(error.status_code, _MESSAGES.get(error.status_code) or error.detail, error.headers)
    else:
        answer = _known(error) if isinstance(error, PoiesisError) else plain(500)
    if answer.status_code == 503:
        log.warning("unavailable", extra={"error": str(error), "code": getattr(error, "code", None)})
    elif answer.status_code >= 500:
        log.error("request_failed", exc_info=error)
    return answer


def plain(
    status: int,
    message: str | None = None,
    headers: Mapping[str, str] | None = None,
    code: str | None = None,
    problems: Sequence[Problem] = (),
) -> ErrorResponse:
    """The response for an HTTP status; its code is by default the name of the status: `not_found`, `method_not_allowed`."""
    phrase = HTTPStatus(status).phrase
    message = message or _MESSAGES.get(status) or phrase
    document: dict[str, Any] = {
        "status": status,
        "error": code or ("internal" if status == 500 else re.sub(r"\W+", "_", phrase.lower())),
        "message": message if len(message) <= MAX_MESSAGE else message[: MAX_MESSAGE - 1] + "…",
    }
    if (request_id := current_request_id()) is not None:
        document["request_id"] = request_id
    if problems:
        document["problems"] = [{"path": p.path, "message": p.message} for p in problems[:MAX_PROBLEMS]]
    answer = ErrorResponse(json.dumps(document), status, headers, "application/json")
    answer.code = document["error"]
    return answer


def _known(error: PoiesisError) -> ErrorResponse:
    status = next((status for kind, status in _STATUS.items() if isinstance(error, kind)), 500)
    if status == 500:
        return plain(500)
    headers = {}
    if error.retryable:
        delay_s = math.ceil(error.delay.total_seconds()) if isinstance(error, QuotaExceeded) else RETRY_AFTER_S
        headers["Retry-After"] = str(max(1, delay_s))
    problems = error.problems if isinstance(error, InvalidTask | InvalidRequest) else ()
    return plain(status, str(error), headers, error.code, problems)
