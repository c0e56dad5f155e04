"""What a check is and what it reports."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

DEADLINE_S: Final = 20.0  # of one check, unless it has its own


class Status(StrEnum):
    """`error`: tasks or the service fail. `warning`: they work, but not as safely or as long as they should. `skipped`: not known."""

    OK = "ok"
    SKIPPED = "skipped"
    WARNING = "warning"
    ERROR = "error"

    @property
    def severity(self) -> int:
        return list(Status).index(self)


@dataclass(frozen=True)
class Finding:
    """`what` is wrong, or was seen; what `follows` from it; how to `repair` it. Never with secrets."""

    status: Status
    what: str
    follows: str = ""
    repair: str = ""


Findings = Iterator[Finding]


def ok(what: str) -> Finding:
    return Finding(Status.OK, what)


def warning(what: str, follows: str, repair: str) -> Finding:
    return Finding(Status.WARNING, what, follows, repair)


def error(what: str, follows: str, repair: str) -> Finding:
    return Finding(Status.ERROR, what, follows, repair)


def skipped(what: str, repair: str = "") -> Finding:
    return Finding(Status.SKIPPED, what, "", repair)


NOT_TRIED: Final = skipped("not tried out", "Run without --no-trial.")
"""The finding of a check that has to create something, in a run that may not."""


@dataclass(frozen=True)
class Check:
    """`after`: the name of a check whose error makes this one meaningless. It stops at the first error that it raises as an exception."""

    name: str
    group: str
    run: Callable[[], Findings]
    after: str | None = None
    deadline_s: float = DEADLINE_S


@dataclass(frozen=True)
class Result:
    """A finding of a check, with the check's name and group."""

    name: str
    group: str
    finding: Finding

    @property
    def status(self) -> Status:
        return self.finding.status
