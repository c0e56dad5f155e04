"""Comparing clocks without asking for the time often."""

from __future__ import annotations

import time
from email.utils import parsedate_to_datetime


def skew_s(theirs: float, before: float) -> float:
    """How far another clock is ahead of ours, in seconds; `theirs`, and ours when the request began, since the epoch. Within the round
    trip it is not known: then 0."""
    after = time.time()
    if before <= theirs <= after:
        return 0.0
    return theirs - (after if theirs > after else before)


def date_skew_s(date: str | None, before: float) -> float | None:
    """The same by a response's header Date, which has whole seconds. None: it has none."""
    try:
        theirs = parsedate_to_datetime(date or "").timestamp()
    except ValueError:
        return None
    skew = skew_s(theirs, before)
    return 0.0 if abs(skew) <= 1 else skew


def shown_skew(skew: float) -> str:
    return f"{abs(skew):.0f} s {'ahead' if skew > 0 else 'behind'}"
