"""Every error response: one body (schema `Error` of the spec), made only here.

| Raised | Status |
|---|---|
| InvalidTask, InvalidRequest, NotJson, BadRequest | 400, every problem with its path |
| Unauthenticated / Forbidden / UnknownTask | 401 with WWW-Authenticate / 403 / 404 |
| RequestTimeout / BodyTooLarge / UnsupportedMediaType | 408 / 413 / 415 |
| TooManyTasks, TooManyLogins | 429 with Retry-After |
| Unavailable and its subclasses, ServerBusy among them | 503 with Retry-After |
| exceptions of Starlette and Connexion | their own status: 404, 405, 415 |
| anything else: a bug | 500; the traceback goes to the log once, and not to the client |

Requests that the server refuses before the application sees them get the same body (`connections`).
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from http import HTTPStatus
from typing import Any, Final

from connexion.exceptions import ProblemException
from connexion.lifecycle import ConnexionResponse
from starlette.exceptions import HTTPException
from starlette.responses import Response

from poiesis.domain.errors import (
    Forbidden,
    InvalidRequest,
    InvalidTask,
    PoiesisError,
    Problem,
    QuotaExceeded,
    TooManyTasks,
    Unauthenticated,
    Unavailable,
    UnknownTask,
)

log = logging.getLogger(__name__)

RETRY_AFTER_S: Final = 5  # seconds; about how long a restarted store or broker takes
MAX_MESSAGE: Final = 2_000  # characters; `problems` has everything
MAX_PROBLEMS: Final = 1_000


class NotJson(InvalidTask):
    """The body of a request is not JSON."""

    code = "not_json"

    def __init__(self, message: str) -> None:
        super().__init__([Problem("$", message)])


class BadRequest(PoiesisError):
    """The request itself is invalid, not one of its parameters."""

    code = "bad_request"


class ClientDisconnected(BadRequest):
    """The client closed the connection; nothing receives the response."""


class RequestTimeout(PoiesisError):
    code = "request_timeout"


class BodyTooLarge(PoiesisError):
    code = "body_too_large"

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"the body is larger than {limit_bytes} bytes: pass large content by URL")


class UnsupportedMediaType(PoiesisError):
    code = "unsupported_media_type"


class ServerBusy(Unavailable):
    code = "server_busy"


class TooManyLogins(PoiesisError):
    """Too many failed logins; try again after `delay`."""

    code = "too_many_logins"

    def __init__(self, message: str, delay: timedelta) -> None:
        super().__init__(message)
        self.delay = delay


class NotAuthenticated(Unauthenticated):
    """`challenge` is the WWW-Authenticate header."""

    def __init__(self, message: str, challenge: str) -> None:
        super().__init__(message)
        self.challenge = challenge


_STATUS: Final[tuple[tuple[type[PoiesisError], int], ...]] = (
    (InvalidTask, 400),
    (InvalidRequest, 400),
    (BadRequest, 400),
    (Unauthenticated, 401),
    (Forbidden, 403),
    (UnknownTask, 404),
    (RequestTimeout, 408),
    (BodyTooLarge, 413),
    (UnsupportedMediaType, 415),
    (TooManyTasks, 429),
    (TooManyLogins, 429),
    (Unavailable, 503),
)


@dataclass(frozen=True)
class ErrorAnswer:
    """Status, the `Error` document and headers beside it."""

    status: int
    document: Mapping[str, Any]
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def body(self) -> bytes:
        return json.dumps(self.document).encode()

    @property
    def phrase(self) -> str:
        return HTTPStatus(self.status).phrase

    def response(self) -> Response:
        """The same as an ASGI application."""
        return Response(self.body, self.status, dict(self.headers), "application/json")


def answer(error: Exception) -> ErrorAnswer:
    """The response to a client for `error`."""
    if isinstance(error, PoiesisError):
        for kind, status in _STATUS:
            if isinstance(error, kind):
                return _known(error, status)
    elif isinstance(error, HTTPException):
        return plain(error.status_code, _detail(error), dict(error.headers or {}))
    return plain(500, "internal error: the service's log has the details")


def plain(status: int, message: str, headers: Mapping[str, str] | None = None) -> ErrorAnswer:
    """An answer for a bare HTTP status; its code is the status' name: `not_found`, `method_not_allowed`."""
    code = "internal" if status == 500 else re.sub(r"\W+", "_", HTTPStatus(status).phrase.lower())
    return ErrorAnswer(status, {"status": status, "error": code, "message": message}, headers or {})


def response(error: Exception) -> Response:
    """The answer as an ASGI application, for what stands outside Connexion; logs like `handle`."""
    _log(error)
    return answer(error).response()


def handle(error: Exception) -> ConnexionResponse:
    """The answer in Connexion's type, for its error handlers."""
    _log(error)
    found = answer(error)
    return ConnexionResponse(
        status_code=found.status, mimetype="application/json", body=found.body, headers=dict(found.headers)
    )


def _known(error: PoiesisError, status: int) -> ErrorAnswer:
    document: dict[str, Any] = {"status": status, "error": error.code, "message": _cut(str(error))}
    headers: dict[str, str] = {}
    if isinstance(error, InvalidTask | InvalidRequest):
        document["problems"] = [{"path": p.path, "message": p.message} for p in error.problems[:MAX_PROBLEMS]]
    if isinstance(error, NotAuthenticated):
        headers["WWW-Authenticate"] = error.challenge
    if isinstance(error, QuotaExceeded | TooManyLogins):
        headers["Retry-After"] = str(max(1, math.ceil(error.delay.total_seconds())))
    elif error.retryable:
        headers["Retry-After"] = str(RETRY_AFTER_S)
    return ErrorAnswer(status, document, headers)


def _detail(error: HTTPException) -> str:
    match error.status_code:
        case 404:
            return "not found: the API is at /ga4gh/tes/v1"
        case 405:
            return "unsupported method"
        case 415:
            return "unsupported Content-Type: send the task with Content-Type: application/json"
    text = error.detail if not isinstance(error, ProblemException) else error.detail or error.title
    return _cut(str(text or HTTPStatus(error.status_code).phrase))


def _cut(text: str) -> str:
    return text if len(text) <= MAX_MESSAGE else text[: MAX_MESSAGE - 1] + "…"


def _log(error: Exception) -> None:
    if isinstance(error, Unavailable):
        log.warning("unavailable", extra={"error": str(error), "code": error.code})
    elif answer(error).status >= 500:
        log.error("request_failed", exc_info=error)
