"""The table of the API server's responses."""

from __future__ import annotations

from datetime import timedelta

import pytest

from poiesis.cluster.kubernetes.errors import MAX_MESSAGE, ApiError, from_answer, rule_for, translate
from poiesis.domain.errors import ClusterRefused, ClusterUnavailable, PoiesisError, QuotaExceeded


@pytest.mark.parametrize(
    ("status", "message", "error", "again"),
    [
        (0, "connection refused", ClusterUnavailable, True),
        (400, "bad", ClusterRefused, False),
        (401, "Unauthorized", ClusterUnavailable, True),
        (403, 'pods "x" is forbidden: exceeded quota: q, requested: pods=1', QuotaExceeded, False),
        (403, 'pods "x" is forbidden: violates PodSecurity "restricted:latest"', ClusterRefused, False),
        (
            403,
            'pods is forbidden: User "system:serviceaccount:n:tif" cannot get resource "pods"',
            ClusterUnavailable,
            False,
        ),
        (403, "namespace t because it is being terminated", ClusterRefused, False),
        (403, 'pods "x" is forbidden: not yet ready to handle request', ClusterUnavailable, False),
        (403, 'pods "x" is forbidden: status unknown for quota: q, resources: pods', ClusterUnavailable, False),
        (
            403,
            'pods "x" is forbidden: error looking up service account n/default: serviceaccount "default" not found',
            ClusterUnavailable,
            False,
        ),
        (
            403,
            'pods "x" is forbidden: unable to CREATE pods at this time because there was an error enforcing limit ranges',
            ClusterUnavailable,
            False,
        ),
        (404, 'namespaces "t" not found', ClusterRefused, False),
        (409, "Operation cannot be fulfilled on resourcequotas", ClusterUnavailable, True),
        (409, "the object has been modified; please apply your changes to the latest", ClusterUnavailable, True),
        (410, "too old resource version", ClusterUnavailable, False),
        (413, "Request entity too large: limit is 3145728", ClusterRefused, False),
        (422, "Pod is invalid: spec.containers[0].image: Required value", ClusterRefused, False),
        (429, "too many requests", ClusterUnavailable, True),
        (500, "etcdserver: request timed out", ClusterUnavailable, True),
        (503, "", ClusterUnavailable, True),
        (504, "", ClusterUnavailable, True),
        (302, "elsewhere", ClusterUnavailable, False),
    ],
)
def test_each_response_becomes_its_error(status: int, message: str, error: type[PoiesisError], again: bool) -> None:
    answer = ApiError(status, "Reason", message)
    assert rule_for(answer).again is again
    assert type(translate(answer, "create pod x")) is error
    assert str(translate(answer, "create pod x")).startswith("create pod x: ")


def test_a_quota_error_has_its_delay() -> None:
    error = translate(ApiError(403, "Forbidden", "exceeded quota", 30), "create")
    assert isinstance(error, QuotaExceeded) and error.delay == timedelta(seconds=30)


@pytest.mark.parametrize(
    ("body", "header", "expected"),
    [
        (b'{"reason": "R", "message": "M", "details": {"retryAfterSeconds": 3}}', None, ("R", "M", 3.0)),
        (b'{"reason": "R", "message": null}', "7", ("R", "", 7.0)),
        (b"<html>proxy</html>", "Wed, 21 Oct 2026 07:28:00 GMT", ("", "<html>proxy</html>", None)),
        (b"[]", None, ("", "[]", None)),
    ],
)
def test_responses_are_parsed(body: bytes, header: str | None, expected: tuple[str, str, float | None]) -> None:
    error = from_answer(500, body, header)
    assert (error.reason, error.message, error.retry_after) == expected


def test_a_long_message_is_truncated() -> None:
    assert len(str(from_answer(500, b"x" * 100_000, None))) <= MAX_MESSAGE


def test_a_limit_range_with_a_minimum_is_refused_with_the_setting_that_satisfies_it() -> None:
    message = 'pods "x" is forbidden: minimum cpu usage per Container is 100m, but request is 0'
    error = translate(ApiError(403, "Forbidden", message), "create pods x")
    assert type(error) is ClusterRefused and message in str(error)
    assert "tasks.minRequests (POIESIS_KUBERNETES__MIN_REQUESTS)" in str(error)
