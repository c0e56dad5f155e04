"""Template filters: values as a person reads them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from poiesis.domain.states import State

_UNITS: Final = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
_BYTES: Final = ("B", "kB", "MB", "GB", "TB", "PB")
_GROUPS: Final = {
    State.QUEUED: "waiting",
    State.INITIALIZING: "starting",
    State.RUNNING: "running",
    State.COMPLETE: "done",
    State.EXECUTOR_ERROR: "failed",
    State.SYSTEM_ERROR: "failed",
    State.PREEMPTED: "failed",
    State.CANCELING: "canceling",
    State.CANCELED: "canceled",
}


def duration(value: timedelta | float | None) -> str:
    """The two largest units: `3 min 20 s`, `2 d 4 h`; below a second `0.4 s`."""
    if value is None:
        return "\N{EN DASH}"
    seconds = max(0.0, value.total_seconds() if isinstance(value, timedelta) else float(value))
    if seconds < 1:
        return f"{seconds:.1f} s" if seconds >= 0.05 else "0 s"
    left, parts = int(seconds), []
    for size, unit in _UNITS:
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count} {unit}")
        if len(parts) == 2 or (parts and not count):
            break
    return " ".join(parts)


def ago(at: datetime, now: datetime) -> str:
    """`just now`, `5 min ago`, `3 d ago`."""
    seconds = (now - at).total_seconds()
    if seconds < 10:
        return "just now"
    size, unit = next((size, unit) for size, unit in _UNITS if seconds >= size)
    return f"{int(seconds // size)} {unit} ago"


def iso(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def moment(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def size(value: float | None) -> str:
    """Bytes in decimal units: `1.2 GB`."""
    if value is None:
        return "\N{EN DASH}"
    amount, unit = float(value), 0
    while amount >= 1000 and unit < len(_BYTES) - 1:
        amount, unit = amount / 1000, unit + 1
    return f"{amount:.0f} B" if unit == 0 else f"{amount:.3g} {_BYTES[unit]}"


def state_word(state: State) -> str:
    """`EXECUTOR_ERROR` → `Executor error`."""
    return str(state).replace("_", " ").capitalize()


def state_group(state: State) -> str:
    """What a state has in common with others, for its colour."""
    return _GROUPS.get(state, "unknown")


FILTERS: Final[dict[str, Callable[..., Any]]] = {
    "duration": duration,
    "ago": ago,
    "iso": iso,
    "moment": moment,
    "size": size,
    "state_word": state_word,
    "state_group": state_group,
}
