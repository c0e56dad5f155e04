"""Charts as coordinates for SVG: templates draw them, so they need no script, and a strict Content-Security-Policy allows them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Final

from poiesis.services.overview import Hour

WIDTH: Final = 720
HEIGHT: Final = 210
LEFT: Final = 46
RIGHT: Final = 8
TOP: Final = 10
BOTTOM: Final = 24
_TIMES: Final = (
    (1, "1 s"),
    (10, "10 s"),
    (60, "1 min"),
    (600, "10 min"),
    (3600, "1 h"),
    (36000, "10 h"),
    (86400, "1 d"),
)


@dataclass(frozen=True)
class Rect:
    x: float
    y: float
    width: float
    height: float
    kind: str


@dataclass(frozen=True)
class Mark:
    """A text at a place of an axis."""

    at: float
    text: str


@dataclass(frozen=True)
class Slot:
    """The whole height above one hour, with what a pointer shows there."""

    x: float
    width: float
    title: str


@dataclass
class Chart:
    rows: list[Mark]
    columns: list[Mark]
    slots: list[Slot]
    rects: list[Rect] = field(default_factory=list)
    lines: dict[str, list[str]] = field(default_factory=dict)
    dots: list[tuple[float, float, str]] = field(default_factory=list)
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


def ended_chart(hours: Sequence[Hour]) -> Chart:
    """Tasks that ended in each hour, as bars of three parts."""
    step = _step(max((hour.ended for hour in hours), default=0))

    def y(value: int) -> float:
        return _height(value / (step * 4))

    chart = _frame(hours, [Mark(y(step * i), count(step * i)) for i in range(5)], _ended_title)
    pitch = _pitch(hours)
    for i, hour in enumerate(hours):
        below = 0
        for kind in ("complete", "failed", "canceled"):
            if value := getattr(hour, kind):
                top = y(below + value)
                height = round(max(1.0, y(below) - top), 1)
                left = round(LEFT + (i + 0.15) * pitch, 1)
                chart.rects.append(Rect(left, top, round(pitch * 0.7, 1), height, kind))
                below += value
    return chart


def waits_chart(hours: Sequence[Hour]) -> Chart:
    """How long tasks that ended in each hour had waited, on a logarithmic scale."""
    slowest = max((hour.slow_wait or 0.0 for hour in hours), default=0.0)
    shown = [(seconds, text) for seconds, text in _TIMES if seconds / 10 < max(slowest, 10)]
    most = math.log(max(shown[-1][0], slowest, 10))

    def y(seconds: float) -> float:
        return _height(math.log(max(1.0, seconds)) / most)

    chart = _frame(hours, [Mark(y(seconds), text) for seconds, text in shown], _waits_title)
    pitch = _pitch(hours)
    for kind in ("slow_wait", "median_wait"):
        points = [(round(LEFT + (i + 0.5) * pitch, 1), getattr(hour, kind)) for i, hour in enumerate(hours)]
        for is_known, group in groupby(points, lambda point: point[1] is not None):
            if is_known:
                line = [(x, y(seconds)) for x, seconds in group]
                chart.dots += [(*dot, kind) for dot in line]
                if len(line) > 1:
                    chart.lines.setdefault(kind, []).append(" ".join(f"{x},{y_}" for x, y_ in line))
    return chart


def _height(part: float) -> float:
    """Return the y coordinate of a part of the axis, from 0 at its bottom to 1."""
    return round(HEIGHT - BOTTOM - part * (HEIGHT - BOTTOM - TOP), 1)


def _pitch(hours: Sequence[Hour]) -> float:
    return (WIDTH - LEFT - RIGHT) / max(1, len(hours))


def _frame(hours: Sequence[Hour], rows: list[Mark], title: Callable[[Hour], str]) -> Chart:
    pitch = _pitch(hours)
    columns = [
        Mark(round(LEFT + (i + 0.5) * pitch, 1), hour.begin.strftime("%H:%M"))
        for i, hour in enumerate(hours)
        if hour.begin.hour % 4 == 0
    ]
    slots = [Slot(round(LEFT + i * pitch, 1), round(pitch, 1), title(hour)) for i, hour in enumerate(hours)]
    return Chart(rows, columns, slots)


def _ended_title(hour: Hour) -> str:
    begin = hour.begin.strftime("%H:%M")
    return f"{begin} UTC: {hour.complete} complete, {hour.failed} failed, {hour.canceled} canceled"


def _waits_title(hour: Hour) -> str:
    begin = hour.begin.strftime("%H:%M")
    if hour.median_wait is None or hour.slow_wait is None:
        return f"{begin} UTC: no task ended"
    return f"{begin} UTC: half started within {wait(hour.median_wait)}, 95 of 100 within {wait(hour.slow_wait)}"


def wait(seconds: float | None) -> str:
    """About as exact as it is known: `4 s`, `12 min`, `3.5 h`."""
    if seconds is None:
        return "\N{EN DASH}"
    if seconds < 60:
        return f"{max(1, round(seconds))} s"
    if seconds < 3600:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.2g} h" if seconds < 86400 else f"{seconds / 86400:.2g} d"


def count(value: float) -> str:
    """A number in three digits or less: `950`, `1.2k`, `34k`, `1.2M`."""
    for size, unit in ((1_000_000, "M"), (1_000, "k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:g}"


def _step(most: int) -> int:
    """A round number, four of which are at least `most`."""
    if most <= 4:
        return 1
    size = 10 ** math.floor(math.log10(most / 4))
    return next(int(size * i) for i in (1, 2, 2.5, 5, 10) if size * i * 4 >= most and size * i == int(size * i))
