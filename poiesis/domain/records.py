"""Parsing what containers report: the launcher's closing record and the filers' report.

User code can write to both (a container log, a file in a shared directory), so parsing is bounded and trusts nothing: invalid input gives
None, never an exception, and every field has a maximum length.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Final

from poiesis.domain.observed import Record
from poiesis.domain.report import MAX_REPORT_BYTES, MAX_TEXT, FilerReport, TransferredFile

RECORD_MARKER: Final = "POIESIS-RECORD"  # the launcher's --record-line
MAX_RECORD_BYTES: Final = 8 * 1024 * 1024
MAX_POKED_RECORDS: Final = 256  # in one poke; those of further containers are read elsewhere

_MARKER: Final = re.compile(re.escape(f"{RECORD_MARKER} "))
_MAX_MARKERS: Final = 16  # tried in one line: user code can print any number of them
_SURROGATES: Final = re.compile(r"[\ud800-\udfff]")


def find_records(log: str, names: Collection[str], tail_limit: int) -> dict[str, Record]:
    """Return the last record of each name in a container log, which is read once; in a merged log it may follow an unfinished line of
    stderr."""
    found: dict[str, Record] = {}
    for line in reversed(log.splitlines()):
        for marker in islice(_MARKER.finditer(line), _MAX_MARKERS):
            record = parse_record(line[marker.end() :], tail_limit)
            if record is not None and record.name in names:
                found.setdefault(record.name, record)
                break
        if len(found) == len(names):
            break
    return found


def parse_record(text: str | bytes, tail_limit: int) -> Record | None:
    """Parse a record; None if it is not valid. Output is cut to its last `tail_limit` characters."""
    document = _load(text, MAX_RECORD_BYTES)
    if document is None or not isinstance(document.get("name"), str) or not isinstance(document.get("ok"), bool):
        return None
    return Record(
        name=_clean(document["name"])[:64],
        ok=document["ok"],
        exit_code=_integer(document.get("exit_code"), -(2**31), 2**31 - 1),
        reason=_text(document.get("reason"), 64),
        message=_text(document.get("message"), MAX_TEXT),
        oom_killed=document.get("oom_killed") is True,
        started_at=parse_time(document.get("started")),
        ended_at=parse_time(document.get("ended")),
        peak_memory_bytes=_integer(document.get("peak_memory_bytes"), 0, 2**53),
        cpu_seconds=_number(document.get("cpu_seconds")),
        stdout=_tail(document.get("stdout"), tail_limit),
        stderr=_tail(document.get("stderr"), tail_limit),
        truncated=document.get("truncated") is True,
    )


def parse_poke(body: bytes) -> tuple[Record, ...]:
    """Parse the records in a poke, one a line: the sender's, then those of the pod's other containers. The first of a name counts."""
    found: dict[str, Record] = {}
    for line in body.split(b"\n", MAX_POKED_RECORDS)[:MAX_POKED_RECORDS]:
        record = parse_record(line, MAX_RECORD_BYTES) if line else None
        if record is not None:
            found.setdefault(record.name, record)
    return tuple(found.values())


def parse_report(text: str | bytes) -> FilerReport | None:
    """Parse a filer's report (`format_report`); None if it is not valid."""
    document = _load(text, MAX_REPORT_BYTES + 1024)
    if document is None or not isinstance(document.get("files"), list):
        return None
    files = []
    for item in document["files"]:
        if not isinstance(item, dict) or not isinstance(item.get("url"), str) or not isinstance(item.get("path"), str):
            return None
        size, checksum = _integer(item.get("size_bytes"), 0, 2**63 - 1) or 0, _text(item.get("checksum"), 200)
        files.append(TransferredFile(_clean(item["url"]), _clean(item["path"]), size, checksum))
    notes = document.get("notes")
    return FilerReport(
        files=tuple(files),
        omitted=_integer(document.get("omitted"), 0, 2**53) or 0,
        total_files=_integer(document.get("total_files"), 0, 2**53) or 0,
        total_bytes=_integer(document.get("total_bytes"), 0, 2**63 - 1) or 0,
        seconds=_number(document.get("seconds")) or 0.0,
        notes=tuple(_clean(n)[:MAX_TEXT] for n in notes[:100] if isinstance(n, str)) if isinstance(notes, list) else (),
        error=_text(document.get("error"), MAX_TEXT),
        error_code=_text(document.get("error_code"), 64),
        retryable=document.get("retryable") is True,
    )


def parse_time(text: object) -> datetime | None:
    """Parse an RFC 3339 time to aware UTC; None if it is not valid."""
    if not isinstance(text, str) or len(text) > 40:
        return None
    try:
        moment = datetime.fromisoformat(text)
        return moment.astimezone(UTC) if moment.tzinfo else None
    except (ValueError, OverflowError):  # the latter: year 1 or 9999 with an offset
        return None


def _load(text: str | bytes, limit: int) -> Mapping[str, Any] | None:
    if len(text) > limit:
        return None
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def _clean(text: str) -> str:
    return _SURROGATES.sub("\ufffd", text)


def _text(value: object, limit: int) -> str | None:
    return _clean(value)[:limit] if isinstance(value, str) else None


def _tail(value: object, limit: int) -> str:
    return _clean(value)[-limit:] if isinstance(value, str) and limit > 0 else ""


def _integer(value: object, least: int, most: int) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most else None


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    # NaN fails the comparison; an int may be too large for a float
    return float(value) if 0 <= value <= 2**53 else None
