"""The timeline of a task as rows of a table, each with a bar in an SVG of its own: percentages, so that it fits any width.

The table is what a screen reader gets, so the bars need no description beyond a title.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from poiesis.api.ui.formats import duration
from poiesis.domain.timeline import Phase

LEAST_WIDTH: Final = 0.6  # per cent; a phase of a second in a day is still seen
MAX_ROWS: Final = 150
_STEPS: Final = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400)
_MEANINGS: Final = {
    "queued": "waits for its turn and for a node",
    "admitted": "admitted by the quotas; waits for a node",
    "scheduled": "on a node; images are pulled and containers started",
    "images": "an image could not be pulled at once",
    "inputs": "inputs are downloaded",
    "outputs": "outputs are uploaded",
    "cleanup": "everything in the cluster is deleted",
}


@dataclass(frozen=True)
class Bar:
    """`left` and `width` in per cent of the whole; `kind` is its colour."""

    phase: Phase
    meaning: str
    kind: str
    left: str
    width: str
    seconds: float
    is_open: bool


@dataclass(frozen=True)
class Tick:
    left: str
    text: str


@dataclass(frozen=True)
class Drawing:
    """`attempts`: (number, why it was lost or None, its bars). `total`: seconds. `omitted`: rows that are not drawn."""

    attempts: tuple[tuple[int, str | None, tuple[Bar, ...]], ...]
    ticks: tuple[Tick, ...]
    total: float
    omitted: int


def draw(phases: Sequence[Phase], now: datetime) -> Drawing | None:
    """None where no time is known."""
    if not phases:
        return None
    begin = min(phase.start for phase in phases)
    end = max((phase.end or max(now, phase.start)) for phase in phases)
    total = max((end - begin).total_seconds(), 0.001)
    shown, omitted = phases[-MAX_ROWS:], max(0, len(phases) - MAX_ROWS)
    attempts = []
    for number in sorted({phase.attempt for phase in shown}):
        mine = [phase for phase in shown if phase.attempt == number]
        lost = next((phase.reason for phase in mine if phase.reason), None)
        attempts.append((number, lost, tuple(_bar(phase, begin, now, total) for phase in mine)))
    return Drawing(tuple(attempts), tuple(_ticks(total)), total, omitted)


def _bar(phase: Phase, begin: datetime, now: datetime, total: float) -> Bar:
    end = phase.end or max(now, phase.start)
    seconds = (end - phase.start).total_seconds()
    width = min(100.0, max(100 * seconds / total, LEAST_WIDTH))
    left = min(100 * (phase.start - begin).total_seconds() / total, 100 - width)
    command = phase.name.startswith("executor")
    kind = "command" if command else phase.name
    if phase.outcome in ("failed", "canceled"):
        kind = phase.outcome
    meaning = "the command runs" if command else _MEANINGS.get(phase.name, "")
    return Bar(phase, meaning, kind, f"{left:.3f}%", f"{width:.3f}%", seconds, phase.end is None)


def _ticks(total: float) -> Iterator[Tick]:
    """About four round times."""
    step = next((step for step in _STEPS if total / step <= 5), None)
    if step is None:
        step = 86400 * max(1, round(total / 86400 / 4))
    if total < 2:
        return
    count = int(total / step)
    for index in range(count + 1):
        at = index * step
        if at == 0 or 100 * at / total < 94:
            yield Tick(f"{100 * at / total:.3f}%", "0" if at == 0 else duration(timedelta(seconds=at)))
