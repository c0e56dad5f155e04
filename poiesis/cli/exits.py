"""Exit codes of the command line, by what happened. docs/cli.md has the same table.

The numbers are those of timeout(1), sysexits.h and shells where these have one, and above 99 for states of tasks: `poiesis run` exits as
its command did, and commands use such numbers rarely.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import IntEnum
from typing import Final

from poiesis.domain.errors import ConfigurationError, Forbidden, PoiesisError, Unauthenticated, Unavailable, UnknownTask


class Exit(IntEnum):
    OK = 0
    FAILED = 1
    USAGE = 2
    UNKNOWN = 66
    UNAVAILABLE = 69
    MISSING_EXTENSION = 76
    NOT_AUTHORIZED = 77
    EXECUTOR_ERROR = 100
    SYSTEM_ERROR = 101
    CANCELED = 102
    PREEMPTED = 103
    TIMEOUT = 124
    INTERRUPTED = 130
    CLOSED_PIPE = 141


MEANINGS: Final[Mapping[Exit, str]] = {
    Exit.OK: "success; every task that was waited for is COMPLETE",
    Exit.FAILED: "another error: the server refused the request or failed, or a file is not valid JSON",
    Exit.USAGE: "invalid command line, setting or profile",
    Exit.UNKNOWN: "no such task",
    Exit.UNAVAILABLE: "no usable response: connection, TLS, 429 or 503 after retries, or no TES server at the address",
    Exit.MISSING_EXTENSION: "the server does not have an operation that the command cannot do without",
    Exit.NOT_AUTHORIZED: "credentials are missing or refused (401), or do not suffice (403)",
    Exit.EXECUTOR_ERROR: "a task ended as EXECUTOR_ERROR (`poiesis run`: the exit code of the command instead)",
    Exit.SYSTEM_ERROR: "a task ended as SYSTEM_ERROR",
    Exit.CANCELED: "a task was canceled",
    Exit.PREEMPTED: "a task was preempted",
    Exit.TIMEOUT: "--timeout passed; the tasks continue",
    Exit.INTERRUPTED: "interrupted with Ctrl-C; the tasks continue",
    Exit.CLOSED_PIPE: "the reader of the output has closed it, as `head` does",
}


class MissingExtension(PoiesisError):
    """The server is not Poiesis, or an older one."""


_OF_STATE: Final[Mapping[str, Exit]] = {
    "SYSTEM_ERROR": Exit.SYSTEM_ERROR,
    "EXECUTOR_ERROR": Exit.EXECUTOR_ERROR,
    "PREEMPTED": Exit.PREEMPTED,
    "CANCELED": Exit.CANCELED,
    "CANCELING": Exit.CANCELED,
}
"""In the order of precedence where several tasks ended differently."""
_OF_ERROR: Final[Mapping[type[PoiesisError], Exit]] = {
    ConfigurationError: Exit.USAGE,
    UnknownTask: Exit.UNKNOWN,
    MissingExtension: Exit.MISSING_EXTENSION,
    Unauthenticated: Exit.NOT_AUTHORIZED,
    Forbidden: Exit.NOT_AUTHORIZED,
    Unavailable: Exit.UNAVAILABLE,
}

TEXT: Final = "Exit codes:\n" + "\n".join(f"  {code.value:<4} {meaning}" for code, meaning in MEANINGS.items())


def of_states(states: Iterable[str]) -> int:
    """The exit code after tasks have ended in these states. A final state of a later TES version counts as a failure."""
    seen = set(states) - {"COMPLETE"}
    return next((code for state, code in _OF_STATE.items() if state in seen), Exit.FAILED if seen else Exit.OK)


def of_error(error: PoiesisError) -> int:
    return next((code for kind, code in _OF_ERROR.items() if isinstance(error, kind)), Exit.FAILED)
