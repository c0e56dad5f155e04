"""The filers' report, and the one name they share with `plan`. Separate from `observed` and `records` because a filer is a process that
lives for a second, and every imported module costs it milliseconds."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, TypeVar

ROOT: Final = "root"  # directory on the volume that mirrors the containers' paths
MAX_REPORT_BYTES: Final = 768 * 1024  # fits into the 1 MiB of output that its launcher keeps
MAX_TEXT: Final = 4096

Item = TypeVar("Item")


@dataclass(frozen=True)
class TransferredFile:
    """One transferred file. `path` is its path in the executor's container; `checksum` is like `sha256:…`, or None."""

    url: str
    path: str
    size_bytes: int
    checksum: str | None = None


@dataclass(frozen=True)
class FilerReport:
    """The result of TIF or TOF, bounded: `omitted` counts the files that did not fit into `files`.

    `error` None: success. `error_code` is a `PoiesisError.code`; `retryable`: another attempt may help. `notes` are added to the task's
    system_logs.
    """

    files: tuple[TransferredFile, ...] = ()
    omitted: int = 0
    total_files: int = 0
    total_bytes: int = 0
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
    error: str | None = None
    error_code: str | None = None
    retryable: bool = False


def format_report(report: FilerReport) -> str:
    """Return one line of JSON of at most MAX_REPORT_BYTES; files that do not fit are counted in `omitted`."""
    head = {
        "total_files": report.total_files,
        "total_bytes": report.total_bytes,
        "seconds": round(report.seconds, 3),
        "notes": list(_fitting((n[:MAX_TEXT] for n in report.notes[:100]), MAX_REPORT_BYTES // 4)),
        "error": report.error and report.error[:MAX_TEXT],
        "error_code": report.error_code and report.error_code[:64],
        "retryable": report.retryable,
    }
    files = list(_fitting(map(vars, report.files), MAX_REPORT_BYTES - len(json.dumps(head).encode()) - 64))
    omitted = report.omitted + len(report.files) - len(files)
    return json.dumps({**head, "files": files, "omitted": omitted})


def _fitting(items: Iterable[Item], room: int) -> Iterator[Item]:
    for item in items:
        room -= len(json.dumps(item).encode()) + 2
        if room < 0:
            return
        yield item
