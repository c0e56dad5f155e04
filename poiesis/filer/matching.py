"""Wildcards of output paths as glob(7) has them: `*`, `?`, `[...]` within one name; a leading dot is matched by a dot alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Final

_SPECIAL: Final = re.compile(r"[*?\[]")
_BRACES: Final = re.compile(r"\{([^{}/]*,[^{}/]*)\}")
_CLASSES: Final = {
    "alnum": "0-9A-Za-z",
    "alpha": "A-Za-z",
    "blank": " \\t",
    "digit": "0-9",
    "lower": "a-z",
    "punct": r"!-/:-@\[-`{-~",
    "space": r"\s",
    "upper": "A-Z",
    "xdigit": "0-9A-Fa-f",
}
MAX_ALTERNATIVES: Final = 1000
_STAR: Final = ""


def is_pattern(text: str) -> bool:
    return _SPECIAL.search(text) is not None


def has_braces(text: str) -> bool:
    """Whether there are shell braces with a comma: no wildcard of TES, but sent by clients as one."""
    return _BRACES.search(text) is not None


def expand_braces(text: str) -> list[str]:
    """`a.{x,y}` → `a.x`, `a.y`; nested ones too, at most MAX_ALTERNATIVES."""
    done: list[str] = []
    todo = [text]
    while todo and len(done) + len(todo) <= MAX_ALTERNATIVES:
        item = todo.pop(0)
        match = _BRACES.search(item)
        if match is None:
            done.append(item)
        else:
            todo[:0] = [item[: match.start()] + part + item[match.end() :] for part in match[1].split(",")]
    return list(dict.fromkeys(done))


@lru_cache(maxsize=64)
def matcher(pattern: str) -> Callable[[str], bool]:
    """Whether a name (no slash in it) matches one component of a pattern."""
    compiled = re.compile(_join(list(_translate(pattern))), re.DOTALL)
    hidden = pattern.startswith((".", "\\."))

    def matches(name: str) -> bool:
        return (hidden or not name.startswith(".")) and compiled.fullmatch(name) is not None

    return matches


def _join(parts: list[str]) -> str:
    """One expression. What follows a star is taken where it first fits and never tried again, so that time is linear in the name."""
    runs: list[list[str]] = [[]]
    for part in parts:
        if part == _STAR:
            runs.append([])
        else:
            runs[-1].append(part)
    first, *rest = ("".join(run) for run in runs)
    if not rest:
        return first
    return first + "".join(f"(?>.*?{run})" for run in rest[:-1]) + ".*" + rest[-1]


def _translate(pattern: str) -> Iterator[str]:
    i = 0
    while i < len(pattern):
        character = pattern[i]
        i += 1
        if character == "*":
            while pattern[i : i + 1] == "*":
                i += 1  # or the expression would try every way to split a name
            yield _STAR
        elif character == "?":
            yield "."
        elif character == "\\" and i < len(pattern):
            yield re.escape(pattern[i])
            i += 1
        elif character == "[":
            end = _end_of_bracket(pattern, i)
            if end is None:
                yield r"\["
            else:
                yield _bracket(pattern[i:end])
                i = end + 1
        else:
            yield re.escape(character)


def _end_of_bracket(pattern: str, start: int) -> int | None:
    i = start + (pattern[start : start + 1] in ("!", "^"))
    i += pattern[i : i + 1] == "]"  # the first one stands for itself
    while i < len(pattern):
        if pattern.startswith("[:", i) and (close := pattern.find(":]", i)) >= 0:
            i = close + 2
        elif pattern[i] == "]":
            return i
        else:
            i += 1
    return None


def _bracket(text: str) -> str:
    negated = text[0] in "!^"
    body = text[1:] if negated else text
    out: list[str] = []
    i = 0
    while i < len(body):
        if body.startswith("[:", i) and (close := body.find(":]", i)) >= 0:
            out.append(_CLASSES.get(body[i + 2 : close], ""))
            i = close + 2
        elif body[i + 1 : i + 2] == "-" and i + 2 < len(body):
            first, last = body[i], body[i + 2]
            if first <= last:
                out.append(f"{re.escape(first)}-{re.escape(last)}")
            i += 3
        else:
            out.append(re.escape(body[i]))
            i += 1
    inner = "".join(out)
    if not inner:
        return r"[^\s\S]" if not negated else "."
    return f"[{'^' if negated else ''}{inner}]"
