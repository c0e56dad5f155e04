"""One range of bytes of a representation (RFC 9110, section 14). Several ranges are answered with the whole, as the RFC allows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from poiesis.api.errors import Refused

_RANGE: Final = re.compile(r"bytes=[ \t]*(\d*)-(\d*)[ \t]*", re.ASCII | re.IGNORECASE)
MAX_DIGITS: Final = 18


def requested_range(header: str | None, size: int) -> tuple[int, int] | None:
    """First byte and end (exclusive) of the requested range; None: the whole. An invalid header is ignored, as the RFC requires.

    Raises: Refused (416) for a range without a byte of the representation.
    """
    match = _RANGE.fullmatch(header) if header is not None else None
    if match is None or not any(match.groups()):
        return None
    first, last = match.groups()
    if first == "":
        start, end = max(0, size - _number(last)), size
    else:
        if last and _number(last) < _number(first):
            return None
        start, end = _number(first), min(size, _number(last) + 1) if last else size
    if start >= end:
        headers = {"Content-Range": f"bytes */{size}", "Accept-Ranges": "bytes"}
        raise Refused(416, f"invalid range {header}: the log has {size} bytes", "range_not_satisfiable", headers)
    return start, end


def _number(digits: str) -> int:
    return int(digits) if len(digits) <= MAX_DIGITS else 10**MAX_DIGITS


def content_range(start: int, end: int, size: int) -> Mapping[str, str]:
    return {"content-range": f"bytes {start}-{end - 1}/{size}"}
