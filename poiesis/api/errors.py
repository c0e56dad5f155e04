"""Every answer that is no success: one body (schema `Error` of the spec), made here and nowhere else.

| Raised | Status |
|---|---|
| InvalidTask, InvalidRequest, NotJson | 400, every problem with its place |
| Unauthenticated / Forbidden / UnknownTask | 401 with WWW-Authenticate / 403 / 404 |
| BodyTooLarge / UnsupportedEncoding | 413 / 415 |
| TooManyTasks | 429 with Retry-After |
| Unavailable and below | 503 with Retry-After |
| what Starlette and Connexion raise | its own status: 404, 405, 415 |
| anything else: a bug | 500; the trace goes to the log, once, and not to the client |
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
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

RETRY_AFTER_S: Final = 5  # seconds; a restarted store or broker answers again within about that time
MAX_MESSAGE: Final = 2_000  # characters; `problems` has everything
MAX_PROBLEMS: Final = 1_000


class NotJson(InvalidTask):
    """The body of a request cannot be parsed."""

    code = "not_json"

    def __init__(self, message: str) -> None:
        super().__init__([Problem("$", message)])


class BodyTooLarge(PoiesisError):
    code = "body_too_large"

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(
            f"the body is larger than the {limit_bytes} bytes this service accepts; give large content by URL"
        )


class UnsupportedEncoding(PoiesisError):
    code = "unsupported_media_type"


class NotAuthenticated(Unauthenticated):
    """`challenge` is the WWW-Authenticate header."""

    def __init__(self, message: str, challenge: str) -> None:
        super().__init__(message)
        self.challenge = challenge


_STATUS: Final[tuple[tuple[type[PoiesisError], int], ...]] = (
    (InvalidTask, 400),
    (InvalidRequest, 400),
    (Unauthenticated, 401),
    (Forbidden, 403),
    (UnknownTask, 404),
    (BodyTooLarge, 413),
    (UnsupportedEncoding, 415),
    (TooManyTasks, 429),
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


def answer(error: Exception) -> ErrorAnswer:
    """What a client is told about `error`."""
    if isinstance(error, PoiesisError):
        for kind, status in _STATUS:
            if isinstance(error, kind):
                return _known(error, status)
    elif isinstance(error, HTTPException):
        return plain(error.status_code, _detail(error), dict(error.headers or {}))
    return plain(500, "the service failed on this request; its log says why")


def plain(status: int, message: str, headers: Mapping[str, str] | None = None) -> ErrorAnswer:
    """An answer for an HTTP status as such; its code is the status' name: `not_found`, `method_not_allowed`."""
    code = "internal" if status == 500 else re.sub(r"\W+", "_", HTTPStatus(status).phrase.lower())
    return ErrorAnswer(status, {"status": status, "error": code, "message": message}, headers or {})


def response(error: Exception) -> Response:
    """The same as an ASGI application, for what stands outside Connexion; logs like `handle`."""
    _log(error)
    told = answer(error)
    return Response(told.body, told.status, dict(told.headers), "application/json")


def handle(error: Exception) -> ConnexionResponse:
    """The same in Connexion's words, for its error handlers."""
    _log(error)
    told = answer(error)
    return ConnexionResponse(
        status_code=told.status, mimetype="application/json", body=told.body, headers=dict(told.headers)
    )


def _known(error: PoiesisError, status: int) -> ErrorAnswer:
    document: dict[str, Any] = {"status": status, "error": error.code, "message": _cut(str(error))}
    headers: dict[str, str] = {}
    if isinstance(error, InvalidTask | InvalidRequest):
        document["problems"] = [{"path": p.path, "message": p.message} for p in error.problems[:MAX_PROBLEMS]]
    if isinstance(error, NotAuthenticated):
        headers["WWW-Authenticate"] = error.challenge
    if isinstance(error, QuotaExceeded):
        headers["Retry-After"] = str(max(1, math.ceil(error.delay.total_seconds())))
    elif error.retryable:
        headers["Retry-After"] = str(RETRY_AFTER_S)
    return ErrorAnswer(status, document, headers)


def _detail(error: HTTPException) -> str:
    match error.status_code:
        case 404:
            return "there is nothing at this address; tasks are below /ga4gh/tes/v1"
        case 405:
            return "this address does not know this method"
        case 415:
            return "send the task as JSON, with the header Content-Type: application/json"
    text = error.detail if not isinstance(error, ProblemException) else error.detail or error.title
    return _cut(str(text or HTTPStatus(error.status_code).phrase))


def _cut(text: str) -> str:
    return text if len(text) <= MAX_MESSAGE else text[: MAX_MESSAGE - 1] + "…"


def _log(error: Exception) -> None:
    if isinstance(error, Unavailable):
        log.warning("unavailable", extra={"error": str(error), "code": error.code})
    elif answer(error).status >= 500:
        log.error("request_failed", exc_info=error)
