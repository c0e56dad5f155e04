"""The errors that cross module boundaries. Modules derive their own from these; exceptions that they catch themselves need not be.

    PoiesisError                      code, retryable
    ├── InvalidTask                   every problem with its JSON path
    ├── InvalidRequest                a parameter of the request (view, page_size, page_token, …)
    ├── Unauthenticated
    ├── Forbidden
    ├── Conflict                      the request contradicts an earlier one
    ├── UnknownTask
    ├── UnknownKey
    ├── StagingFailed                 an input or output can never be transferred
    │   ├── UnsupportedUrl
    │   ├── NotFound
    │   ├── AccessDenied
    │   └── FileTooLarge
    ├── Unavailable                   a dependency does not answer; safe to retry
    │   ├── RepositoryUnavailable
    │   ├── QueueUnavailable
    │   ├── ClusterUnavailable
    │   ├── QuotaExceeded             of the cluster; retry after `delay`
    │   └── StorageUnavailable
    ├── ClusterRefused                the cluster rejects an object as invalid or forbidden: never retried
    ├── ConfigurationError            an invalid setting
    └── IllegalTransition             a bug

Adapters translate errors of other libraries, with the cause chained. Each class states whether a retry may help (`retryable`) and has a
stable `code`, which appears in logs, metrics and HTTP bodies. `poiesis.api.errors` is the only place that maps them to HTTP.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import ClassVar


class PoiesisError(Exception):
    """Base class. `str()` is a message for users and contains no secrets."""

    code: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False


@dataclass(frozen=True)
class Problem:
    """One problem of a document: `path` is a JSON path such as `$.inputs[0].path`, `message` says what is allowed."""

    path: str
    message: str


class InvalidTask(PoiesisError):
    """The task violates one or more rules; it was not stored."""

    code = "invalid_task"

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(f"{p.path}: {p.message}" for p in self.problems))


class InvalidRequest(PoiesisError):
    """A parameter of the request is invalid."""

    code = "invalid_request"

    def __init__(self, parameter: str, message: str) -> None:
        self.problems = (Problem(parameter, message),)
        super().__init__(f"{parameter}: {message}")


class Unauthenticated(PoiesisError):
    code = "unauthenticated"


class Forbidden(PoiesisError):
    code = "forbidden"


class Conflict(PoiesisError):
    """The request contradicts an earlier one."""

    code = "conflict"


class UnknownTask(PoiesisError):
    code = "unknown_task"

    def __init__(self, task_id: str) -> None:
        super().__init__(f"no such task: {task_id!r}")


class UnknownKey(PoiesisError):
    code = "unknown_key"

    def __init__(self, key_id: str) -> None:
        super().__init__(f"no such API key: {key_id!r}")


class StagingFailed(PoiesisError):
    """A file cannot be transferred and a retry does not help; the message contains URL (without credentials) and path."""

    code = "staging_failed"


class UnsupportedUrl(StagingFailed):
    code = "unsupported_url"


class NotFound(StagingFailed):
    code = "not_found"


class AccessDenied(StagingFailed):
    code = "access_denied"


class FileTooLarge(StagingFailed):
    code = "file_too_large"


class Unavailable(PoiesisError):
    """A dependency does not answer at the moment. Nothing was lost; the call may be retried."""

    code = "unavailable"
    retryable = True


class RepositoryUnavailable(Unavailable):
    code = "repository_unavailable"


class QueueUnavailable(Unavailable):
    code = "queue_unavailable"


class ClusterUnavailable(Unavailable):
    code = "cluster_unavailable"


class StorageUnavailable(Unavailable):
    code = "storage_unavailable"


class QuotaExceeded(Unavailable):
    """The quota of the cluster does not allow another object at the moment; retry after `delay`."""

    code = "quota_exceeded"

    def __init__(self, message: str, delay: timedelta = timedelta(seconds=5)) -> None:
        super().__init__(message)
        self.delay = delay


class ClusterRefused(PoiesisError):
    """The cluster rejects an object as invalid or forbidden; a retry without changes does not help."""

    code = "cluster_refused"


class ConfigurationError(PoiesisError):
    code = "configuration"


class IllegalTransition(PoiesisError):
    code = "illegal_transition"
