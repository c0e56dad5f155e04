"""The table from exceptions to responses."""

from __future__ import annotations

import json
import logging
from datetime import timedelta

import pytest
from starlette.exceptions import HTTPException

from poiesis.api import errors
from poiesis.domain.errors import (
    ClusterRefused,
    ClusterUnavailable,
    Forbidden,
    IllegalTransition,
    InvalidRequest,
    InvalidTask,
    Problem,
    QuotaExceeded,
    RepositoryUnavailable,
    StagingFailed,
    UnknownTask,
)


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (InvalidTask([Problem("$.x", "wrong")]), 400, "invalid_task"),
        (errors.NotJson("no"), 400, "not_json"),
        (InvalidRequest("view", "no"), 400, "invalid_request"),
        (Forbidden("no"), 403, "forbidden"),
        (UnknownTask("x"), 404, "unknown_task"),
        (errors.Refused(408, "late"), 408, "request_timeout"),
        (errors.body_too_large(10), 413, "body_too_large"),
        (errors.Refused(429, "slow", "too_many_logins"), 429, "too_many_logins"),
        (RepositoryUnavailable("away"), 503, "repository_unavailable"),
        (ClusterUnavailable("away"), 503, "cluster_unavailable"),
        (QuotaExceeded("full"), 503, "quota_exceeded"),
        (IllegalTransition("bug"), 500, "internal"),
        (ClusterRefused("bug"), 500, "internal"),
        (StagingFailed("bug"), 500, "internal"),
        (ZeroDivisionError("bug"), 500, "internal"),
        (HTTPException(404), 404, "not_found"),
        (HTTPException(405, headers={"Allow": "GET"}), 405, "method_not_allowed"),
        (HTTPException(418, "short and stout"), 418, "i_m_a_teapot"),
    ],
)
def test_each_error_has_its_status_and_code(error: Exception, status: int, code: str) -> None:
    response = errors.respond(error)
    document = json.loads(bytes(response.body))
    assert (response.status_code, document["status"], document["error"]) == (status, status, code)
    assert "bug" not in document["message"]


@pytest.mark.parametrize(
    ("error", "name", "value"),
    [
        (RepositoryUnavailable("away"), "Retry-After", "5"),
        (QuotaExceeded("full", timedelta(seconds=0.2)), "Retry-After", "1"),
        (QuotaExceeded("full", timedelta(seconds=7.5)), "Retry-After", "8"),
        (errors.Refused(401, "no", headers={"WWW-Authenticate": "Basic"}), "WWW-Authenticate", "Basic"),
        (HTTPException(405, headers={"Allow": "GET"}), "Allow", "GET"),
    ],
)
def test_headers_say_what_to_do(error: Exception, name: str, value: str) -> None:
    assert errors.respond(error).headers[name] == value


def test_problems_and_messages_are_bounded() -> None:
    response = errors.respond(InvalidTask([Problem(f"$.x[{i}]", "wrong" * 10) for i in range(50_000)]))
    document = json.loads(bytes(response.body))
    assert len(document["problems"]) == errors.MAX_PROBLEMS
    assert len(document["message"]) == errors.MAX_MESSAGE


def test_only_bugs_are_logged_with_a_trace(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        for error in (UnknownTask("x"), HTTPException(404), RepositoryUnavailable("away"), ValueError("bug")):
            errors.respond(error)
    assert [(r.levelname, r.getMessage(), bool(r.exc_info)) for r in caplog.records] == [
        ("WARNING", "unavailable", False),
        ("ERROR", "request_failed", True),
    ]
