"""Results as text and as JSON, and the exit code."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Final

from poiesis import __version__
from poiesis.doctor.result import Result, Status

_COLOURS: Final = {Status.OK: "32", Status.SKIPPED: "2", Status.WARNING: "33", Status.ERROR: "1;31"}
_NAME_WIDTH: Final = 16
_INDENT: Final = "  " + " " * 9


def worst(results: Sequence[Result]) -> Status:
    return max((r.status for r in results), key=lambda status: status.severity, default=Status.OK)


def exit_code(results: Sequence[Result], *, strict: bool) -> int:
    """1: errors; 3: warnings, if they matter. 2 is for an invalid command line."""
    status = worst(results)
    if status is Status.ERROR:
        return 1
    return 3 if status is Status.WARNING and strict else 0


def as_json(results: Sequence[Result], mode: str, role: str | None) -> dict[str, Any]:
    """The format is documented in docs/doctor.md; fields are only added."""
    return {
        "version": __version__,
        "mode": mode,
        "role": role,
        "status": worst(results).value,
        "results": [
            {
                "name": r.name,
                "group": r.group,
                "status": r.status.value,
                "what": r.finding.what,
                "follows": r.finding.follows,
                "repair": r.finding.repair,
            }
            for r in results
        ],
    }


def as_text(results: Sequence[Result], *, width: int, colours: bool) -> Iterator[str]:
    """Lines, by group in the order of the first result of each."""
    for group in dict.fromkeys(r.group for r in results):
        yield group
        for result in (r for r in results if r.group == group):
            yield from _lines(result, width, colours)
    counts = Counter(r.status for r in results)
    words = {Status.ERROR: "error", Status.WARNING: "warning", Status.OK: "ok", Status.SKIPPED: "skipped"}
    yield ""
    yield ", ".join(_count(counts[s], word) for s, word in words.items() if counts[s]) or "nothing to check"


def _lines(result: Result, width: int, colours: bool) -> Iterator[str]:
    finding, status = result.finding, f"{result.status.value:<8}"
    if colours:
        status = f"\x1b[{_COLOURS[result.status]}m{status}\x1b[0m"
    body = _INDENT + " " * (_NAME_WIDTH + 1)
    first = _wrapped(finding.what, width - len(body))
    yield f"  {status} {result.name:<{_NAME_WIDTH}} {first[0]}"
    yield from (body + line for line in first[1:])
    for label, text in (("so: ", finding.follows), ("repair: ", finding.repair)):
        if text:
            lines = _wrapped(label + text, width - len(body))
            yield from (body + line for line in lines)


def _wrapped(text: str, width: int) -> list[str]:
    """Commands and names are not broken, so that they can be copied."""
    return textwrap.wrap(text, max(width, 40), break_long_words=False, break_on_hyphens=False) or [""]


def _count(number: int, word: str) -> str:
    return f"{number} {word}" + ("s" if number != 1 and word in ("error", "warning") else "")
