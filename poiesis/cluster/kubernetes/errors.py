"""Translate the API server's responses into the service's errors: one table, first match.

What may succeed later is Unavailable; what is wrong with the object itself is ClusterRefused. A 403 has many causes, distinguished by its
message: an exhausted quota or a missing permission may change, a rejection by an admission plug-in does not.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

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
    statuses: Collection[int]
    message: str
    error: type[PoiesisError]
    again: bool
    """Whether the client repeats the call at once, with back-off."""
    advice: str = ""
    """What to change, added to the message."""


TABLE: Final = (
    #    status, message, becomes, repeated by the client
    Rule([0], "", ClusterUnavailable, True),  # no connection, no response in time
    Rule([401], "", ClusterUnavailable, True),  # a token that is being rotated
    Rule([403], r"exceeded quota|no quota|insufficient quota", QuotaExceeded, False),
    Rule([403], r"is being terminated", ClusterRefused, False),
    # RBAC: a missing permission is not the task's fault, or the API server has just started and has not loaded its roles yet
    Rule([403], r'User "[^"]+" cannot ', ClusterUnavailable, False),
    # admission plug-ins that do not know the state of the namespace yet, after a start of the API server or changes of quotas
    Rule(
        [403],
        r"not yet ready to handle request|status unknown for quota|error looking up service account|error enforcing limit ranges",
        ClusterUnavailable,
        False,
    ),
    Rule(
        [403],
        r"minimum \S+ usage per Container is ",
        ClusterRefused,
        False,
        "the operator sets tasks.minRequests (POIESIS_KUBERNETES__MIN_REQUESTS) to the min of the LimitRange",
    ),
    Rule([403], "", ClusterRefused, False),  # Pod Security, LimitRange, an admission plug-in
    Rule([404], "", ClusterRefused, False),  # on create: no such namespace
    # concurrent writers of one quota
    Rule([409], r"resourcequotas|please apply your changes", ClusterUnavailable, True),
    Rule([409], "", ClusterUnavailable, False),
    Rule([410], "", ClusterUnavailable, False),
    Rule([429], "", ClusterUnavailable, True),
    Rule(range(400, 500), "", ClusterRefused, False),  # invalid, too large, …
    Rule(range(500, 600), "", ClusterUnavailable, True),
    Rule(range(0, 1000), "", ClusterUnavailable, False),
)


def rule_for(error: ApiError) -> Rule:
    return next(r for r in TABLE if error.status in r.statuses and re.search(r.message, error.message))


def is_transient(error: ApiError) -> bool:
    """Whether the same call may succeed later."""
    return rule_for(error).error is not ClusterRefused


@contextlib.contextmanager
def translated(what: str) -> Iterator[None]:
    """Errors of the API server in this block as those of the service."""
    try:
        yield
    except ApiError as error:
        raise translate(error, what) from error


def translate(error: ApiError, what: str) -> PoiesisError:
    """`what`: the attempted operation, such as "create pod poiesis-…"."""
    rule = rule_for(error)
    message = f"{what}: {error}" + (f": {rule.advice}" if rule.advice else "")
    if rule.error is QuotaExceeded:
        return QuotaExceeded(message, timedelta(seconds=max(5.0, error.retry_after or 0.0)))
    return rule.error(message)


def from_answer(status: int, body: bytes, retry_after: str | None) -> ApiError:
    """From a `Status` object, or the text of a proxy in between."""
    reason, message = "", body[: 2 * MAX_MESSAGE].decode("utf-8", "replace")
    with contextlib.suppress(ValueError):
        document = json.loads(body)
        if isinstance(document, dict):
            reason, message = str(document.get("reason") or ""), str(document.get("message") or "")
            retry_after = retry_after or str((document.get("details") or {}).get("retryAfterSeconds") or "")
    wait = float(retry_after) if retry_after and re.fullmatch(r"\d{1,6}(\.\d+)?", retry_after) else None
    return ApiError(status, reason, message[:MAX_MESSAGE], wait)
