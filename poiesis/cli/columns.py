"""Columns of tables of tasks, from documents of any TES server: whatever is missing or odd is shown as nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from poiesis.cli.output import Table

DEFAULT: Final = ("id", "state", "created", "duration", "name")
WIDE: Final = (*DEFAULT[:-1], "cpu", "ram", "image", "exit", "node", "reason", "tags", "name")


def dig(document: Any, *path: str | int) -> Any:
    """The value at a path of keys and indices; None if there is none."""
    for step in path:
        try:
            document = document[step]
        except (KeyError, IndexError, TypeError):
            return None
    return document


def log_of(task: Any) -> Mapping[str, Any]:
    """The latest entry of `logs`."""
    found = dig(task, "logs", -1)
    return found if isinstance(found, dict) else {}


def metadata_of(task: Any) -> Mapping[str, Any]:
    found = log_of(task).get("metadata")
    return found if isinstance(found, dict) else {}


def when(text: Any) -> datetime | None:
    """RFC 3339, as servers write it; without a zone it is UTC."""
    try:
        found = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


def created(task: Any) -> datetime | None:
    return when(dig(task, "creation_time"))


def seconds(task: Any, now: datetime | None = None) -> float | None:
    """From the start, or the creation, to the end, or now."""
    log = log_of(task)
    begin = when(log.get("start_time")) or created(task)
    end = when(log.get("end_time")) or now or datetime.now(UTC)
    return None if begin is None else max(0.0, (end - begin).total_seconds())


def span(value: float | None) -> str:
    """`9s`, `4m05s`, `3h07m`, `2d11h`."""
    if value is None:
        return ""
    total = int(value)
    days, hours, minutes = total // 86400, total // 3600 % 24, total // 60 % 60
    if days:
        return f"{days}d{hours:02}h"
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{total % 60:02}s" if minutes else f"{total}s"


def size(value: Any) -> str:
    """Bytes in decimal units, as TES counts."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return ""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 999.5:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"


def time_text(value: Any) -> str:
    found = when(value)
    return "" if found is None else found.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def state_of(task: Any) -> str:
    return _text(dig(task, "state")) or "UNKNOWN"


def _exit_codes(task: Any) -> list[Any]:
    logs = log_of(task).get("logs")
    return [dig(each, "exit_code") for each in logs] if isinstance(logs, list) else []


def _image(task: Any) -> str:
    executors = dig(task, "executors")
    return ",".join(_text(dig(each, "image")) for each in executors) if isinstance(executors, list) else ""


def _tags(task: Any) -> str:
    tags = dig(task, "tags")
    return ",".join(f"{k}={v}" for k, v in tags.items()) if isinstance(tags, dict) else ""


def _reason(task: Any) -> str:
    known = metadata_of(task)
    return _text(known.get("failure_message") or known.get("failure_reason") or known.get("waiting_reason"))


def _peak_memory(task: Any) -> str:
    peaks = [v for k, v in metadata_of(task).items() if k.startswith("executor_") and k.endswith("_peak_memory_bytes")]
    return size(max((float(v) for v in peaks if str(v).isdigit()), default=None))


def _staged(task: Any, kind: str) -> str:
    known = metadata_of(task)
    files, total = known.get(f"{kind}_files"), size(known.get(f"{kind}_bytes"))
    return f"{files} files, {total}" if files is not None and total else ""


COLUMNS: Final[Mapping[str, Callable[[Any], str]]] = {
    "id": lambda task: _text(dig(task, "id")),
    "state": state_of,
    "name": lambda task: _text(dig(task, "name")),
    "created": lambda task: time_text(dig(task, "creation_time")),
    "started": lambda task: time_text(log_of(task).get("start_time")),
    "ended": lambda task: time_text(log_of(task).get("end_time")),
    "duration": lambda task: span(seconds(task)),
    "cpu": lambda task: _text(dig(task, "resources", "cpu_cores")),
    "ram": lambda task: _text(dig(task, "resources", "ram_gb")),
    "disk": lambda task: _text(dig(task, "resources", "disk_gb")),
    "image": _image,
    "tags": _tags,
    "exit": lambda task: ",".join(map(_text, _exit_codes(task))),
    "reason": _reason,
    "node": lambda task: _text(metadata_of(task).get("node")),
    "attempts": lambda task: _text(metadata_of(task).get("attempts")),
    "peak": _peak_memory,
    "inputs": lambda task: _staged(task, "inputs"),
    "outputs": lambda task: _staged(task, "outputs"),
}


def table(tasks: Sequence[Any], columns: Sequence[str], *, header: bool = True) -> Table:
    return Table(columns, [[COLUMNS[column](task) for column in columns] for task in tasks], header)


def exit_code(task: dict[str, Any]) -> int | None:
    """Return the exit code of the first command that failed, if a process can exit with it."""
    return next((code for code in _exit_codes(task) if isinstance(code, int) and 0 < code < 256), None)


def failure(task: dict[str, Any]) -> str:
    """Why, from the documents of any server: metadata of Poiesis, else the last line of the system logs, else the exit code."""
    metadata, notes = metadata_of(task), log_of(task).get("system_logs")
    known = metadata.get("failure_message") or metadata.get("failure_reason")
    if not known and isinstance(notes, list) and notes:
        known = notes[-1]
    code = exit_code(task)
    return str(known or (f"exit code {code}" if code else ""))
