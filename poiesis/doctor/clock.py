"""Comparing clocks without asking for the time often."""

from __future__ import annotations

import time
from email.utils import parsedate_to_datetime
from typing import Final

from poiesis.doctor.result import Findings, warning

MAX_SKEW_S: Final = 5.0
SYNCHRONIZE: Final = "Synchronize the clocks of the machines (chrony, systemd-timesyncd)."


def skew_s(theirs: float, before: float) -> float:
    """How far another clock is ahead of ours, in seconds; `theirs`, and ours when the request began, since the epoch. Within the round
    trip it is not known: then 0."""
    after = time.time()
    if before <= theirs <= after:
        return 0.0
    return theirs - (after if theirs > after else before)


def date_skew_s(date: str | None, before: float) -> float | None:
    """Return the skew by a response's header Date, which has whole seconds; None without a valid header."""
    try:
        theirs = parsedate_to_datetime(date or "").timestamp()
    except ValueError:
        return None
    skew = skew_s(theirs, before)
    return 0.0 if abs(skew) <= 1 else skew


def shown_skew(skew: float) -> str:
    return f"{abs(skew):.0f} s {'ahead' if skew > 0 else 'behind'}"


def check_skew(of: str, skew: float, follows: str, *, limit_s: float = MAX_SKEW_S) -> Findings:
    """A warning where the clock of a server differs by more than `limit_s`."""
    if abs(skew) > limit_s:
        yield warning(f"the clock of {of} is {shown_skew(skew)}", follows, SYNCHRONIZE)
