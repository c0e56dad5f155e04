"""Translate the API server's responses into the service's errors: one table, first match.

What may succeed later is Unavailable; what is wrong with the object itself is ClusterRefused. A 403 has many causes, distinguished by its
message: an exhausted quota or a missing permission may change, a rejection by an admission plug-in does not.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from poiesis.domain.errors import ClusterRefused, ClusterUnavailable, PoiesisError, QuotaExceeded

MAX_MESSAGE: Final = 1000


@dataclass
class ApiError(Exception):
    """An unsuccessful response, or (status 0) no response. Internal to this package."""

    status: int
    reason: str = ""
    message: str = ""
    retry_after: float | None = None

    def __str__(self) -> str:
        return f"{self.status or 'no response'} {self.reason}: {self.message}"[:MAX_MESSAGE]


@dataclass(frozen=True)
class Rule:
    status: int | range
    message: str | None
    error: type[PoiesisError]
    again: bool
    """Whether the client repeats the call at once, with back-off."""


TABLE: Final = (
    #    status           message                                     becomes             repeated by the client
    Rule(0, None, ClusterUnavailable, True),  # no connection, no response in time
    Rule(401, None, ClusterUnavailable, True),  # a token that is being rotated
    Rule(403, r"exceeded quota|no quota|insufficient quota", QuotaExceeded, False),
    Rule(403, r"is being terminated", ClusterRefused, False),
    # RBAC: a missing permission is not the task's fault, or the API server has just started and has not loaded its roles yet
    Rule(403, r'User "[^"]+" cannot ', ClusterUnavailable, False),
    Rule(403, None, ClusterRefused, False),  # Pod Security, LimitRange, an admission plug-in
    Rule(404, None, ClusterRefused, False),  # on create: no such namespace
    Rule(409, r"resourcequotas|please apply your changes", ClusterUnavailable, True),  # concurrent writers of one quota
    Rule(409, None, ClusterUnavailable, False),
    Rule(410, None, ClusterUnavailable, False),
    Rule(429, None, ClusterUnavailable, True),
    Rule(range(400, 500), None, ClusterRefused, False),  # invalid, too large, …
    Rule(range(500, 600), None, ClusterUnavailable, True),
    Rule(range(0, 1000), None, ClusterUnavailable, False),
)


def rule_for(error: ApiError) -> Rule:
    return next(r for r in TABLE if _fits(r, error))


def translate(error: ApiError, what: str) -> PoiesisError:
    """`what`: the attempted operation, such as "create pod poiesis-…"."""
    rule = rule_for(error)
    message = f"{what}: {error}"
    if rule.error is QuotaExceeded:
        return QuotaExceeded(message, timedelta(seconds=max(5.0, error.retry_after or 0.0)))
    return rule.error(message)


def from_answer(status: int, body: Any, retry_after: str | None) -> ApiError:
    """From a `Status` object, or the text of a proxy in between."""
    reason, message = "", ""
    if isinstance(body, dict):
        reason, message = str(body.get("reason") or ""), str(body.get("message") or "")
        seconds = (body.get("details") or {}).get("retryAfterSeconds")
        retry_after = retry_after or (str(seconds) if seconds else None)
    elif isinstance(body, str):
        message = body
    wait = float(retry_after) if retry_after and re.fullmatch(r"\d{1,6}(\.\d+)?", retry_after) else None
    return ApiError(status, reason, message[:MAX_MESSAGE], wait)


def _fits(rule: Rule, error: ApiError) -> bool:
    status = error.status == rule.status if isinstance(rule.status, int) else error.status in rule.status
    return status and (rule.message is None or re.search(rule.message, error.message) is not None)
