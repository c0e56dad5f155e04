"""The one exception family.

    PoiesisError                      code, retryable
    ├── InvalidTask                   every problem with its JSON path
    ├── InvalidRequest                a parameter of the request (view, page_size, page_token, …)
    ├── Unauthenticated
    ├── Forbidden
    ├── UnknownTask
    ├── TooManyTasks                  admission: the user's or site's limit; retryable after a delay
    ├── StagingFailed                 an input or output cannot be transferred, for good
    │   ├── UnsupportedUrl
    │   ├── NotFound
    │   ├── AccessDenied
    │   └── FileTooLarge
    ├── Unavailable                   something we depend on is away; safe to repeat
    │   ├── RepositoryUnavailable
    │   ├── QueueUnavailable
    │   ├── ClusterUnavailable
    │   ├── QuotaExceeded             of the cluster; try again after `delay`
    │   └── StorageUnavailable
    ├── ClusterRefused                the cluster says that an object is invalid or forbidden: never retried
    ├── ConfigurationError            a setting that cannot be used
    └── IllegalTransition             a bug

Vendors' errors are translated by the adapter which meets them, cause chained. Each class says whether a repetition may help
(`retryable`) and has a stable `code` that logs, metrics and HTTP bodies carry. `poiesis.api.errors` maps them to HTTP once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import ClassVar


class PoiesisError(Exception):
    """Base of all; `str()` is a sentence for people which holds no secret."""

    code: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a document: `path` is a JSON path such as `$.inputs[0].path`, `message` says how to mend it."""

    path: str
    message: str


class InvalidTask(PoiesisError):
    """The task breaks one or more rules; it was not stored."""

    code = "invalid_task"

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(f"{p.path}: {p.message}" for p in self.problems))


class InvalidRequest(PoiesisError):
    """A parameter of the request cannot be used."""

    code = "invalid_request"

    def __init__(self, parameter: str, message: str) -> None:
        self.problems = (Problem(parameter, message),)
        super().__init__(f"{parameter}: {message}")


class Unauthenticated(PoiesisError):
    code = "unauthenticated"


class Forbidden(PoiesisError):
    code = "forbidden"


class UnknownTask(PoiesisError):
    code = "unknown_task"

    def __init__(self, task_id: str) -> None:
        super().__init__(f"there is no task {task_id!r}")


class TooManyTasks(PoiesisError):
    code = "too_many_tasks"
    retryable = True


class StagingFailed(PoiesisError):
    """A file cannot be transferred and repeating does not help; the message names URL (without credentials) and path."""

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
    """Something we depend on does not answer now. Nothing was lost; the call may be repeated."""

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
    """The cluster has no room for another object of ours now; try again after `delay`."""

    code = "quota_exceeded"

    def __init__(self, message: str, delay: timedelta = timedelta(seconds=5)) -> None:
        super().__init__(message)
        self.delay = delay


class ClusterRefused(PoiesisError):
    """The cluster calls an object invalid or forbidden; repeating it unchanged does not help."""

    code = "cluster_refused"


class ConfigurationError(PoiesisError):
    code = "configuration"


class IllegalTransition(PoiesisError):
    code = "illegal_transition"
