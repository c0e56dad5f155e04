"""The path of an output (spec: tesOutput.path), parsed in this one place. Validation, plan and filers use the parsed value.

Syntax (POSIX 2.13, glob(7)): `*`, `?` and `[...]` match within one name; a leading dot is matched only by a dot; a backslash makes the next
character a plain one, inside brackets too. `path_prefix` knows the same escapes. So `/w/a\\*b` is the one file `/w/a*b`.

    pattern = PathPattern("/w/s\\[1\\]/part-*.txt")
    pattern.has_wildcard     True
    pattern.fixed_directory  "/w/s[1]"               exists before the first command; matching starts here
    pattern.fixed_text       "/w/s[1]/part-"         what every match begins with; `path_prefix` is a prefix of it
    pattern.literal          "/w/s[1]/part-*.txt"    escapes resolved: the file to try first where `needs_matching` is False
    pattern.names[-1].matches("part-1.txt")          one name of a directory, in time linear in the name

Clients also send shell braces (`a.{x,y}`), which are not part of TES. They count as a wildcard, but match only themselves;
`brace_alternatives` is for when nothing has that literal name.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final, NamedTuple

from poiesis.domain import paths

MAX_ALTERNATIVES: Final = 1000

_NOT_PLAIN: Final = re.compile(r"[*?\[{\\]")
_ESCAPE: Final = re.compile(r"\\(.)", re.DOTALL)
_BRACES: Final = re.compile(r"\\.|\{([^{}/,]*,[^{}/]*)\}", re.DOTALL)  # or an escape, to step over
_PLAIN_TOKEN: Final = re.compile(r"(?P<stars>\*+)|(?P<one>\?)|\\(?P<escaped>.)|(?P<plain>.)", re.DOTALL)
_BRACKET: Final = r"\[(?P<bracket>[!^]?+\]?+(?:\[:[a-z]*:\]|\\.|[^\]\\])*+)\]"
_TOKEN: Final = re.compile(f"{_BRACKET}|{_PLAIN_TOKEN.pattern}", re.DOTALL)
_BRACKET_ITEM: Final = re.compile(
    r"\[:(?P<name>[a-z]*):\]|\\?(?P<first>.)(?:-(?!\[:[a-z]*:\])\\?(?P<last>.))?", re.DOTALL
)
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


class _Token(NamedTuple):
    """One character or wildcard: `plain` is its text with escapes resolved, `wildcard` one of `*`, `?`, `[`, `{`, or empty."""

    plain: str
    expression: str
    wildcard: str = ""


@dataclass(frozen=True)
class Name:
    """One component of a pattern. `literal`: with escapes resolved. `fixed_length`: of the beginning of `literal` before any wildcard."""

    text: str
    literal: str
    fixed_length: int

    @property
    def has_wildcard(self) -> bool:
        return self.fixed_length < len(self.literal)

    def matches(self, name: str) -> bool:
        """Whether the component matches the name of a file or directory."""
        if not self.has_wildcard:
            return name == self.literal
        return (self.literal.startswith(".") or not name.startswith(".")) and self._compiled.fullmatch(name) is not None

    @cached_property
    def _compiled(self) -> re.Pattern[str]:
        return re.compile(_join(_tokens(self.text)), re.DOTALL)


@dataclass(frozen=True)
class PathPattern:
    """A parsed path; see the head of the module. Every text has a meaning: an unclosed `[` and a backslash that nothing follows stand for
    themselves. Only a path with special characters is split before `names` is used."""

    text: str

    @cached_property
    def names(self) -> tuple[Name, ...]:
        """The components, without empty ones."""
        return tuple(_parse_name(name) for name in self.text.split("/") if name)

    @cached_property
    def _is_plain(self) -> bool:
        return _NOT_PLAIN.search(self.text) is None

    @cached_property
    def has_wildcard(self) -> bool:
        return not self._is_plain and any(name.has_wildcard for name in self.names)

    @cached_property
    def needs_matching(self) -> bool:
        """Whether there is a `*` or `?`. A path with only brackets or braces may as well be the name of a file, which is tried first."""
        return self.has_wildcard and any(t.wildcard in ("*", "?") for name in self.names for t in _tokens(name.text))

    @property
    def is_directory(self) -> bool:
        """Whether it ends with a slash."""
        return self.text.endswith("/")

    @cached_property
    def literal(self) -> str:
        """The path with escapes resolved; a trailing slash stays."""
        if self._is_plain:
            return self.text
        return "/" + "/".join(name.literal for name in self.names) + ("/" if self.is_directory else "")

    @cached_property
    def fixed_text(self) -> str:
        """The beginning without any wildcard, with escapes resolved; the whole `literal` where there is no wildcard."""
        if not self.has_wildcard:
            return self.literal
        before, first = self._split
        return "".join(f"/{name.literal}" for name in before) + "/" + first.literal[: first.fixed_length]

    @cached_property
    def fixed_directory(self) -> str:
        """The innermost directory without any wildcard that all matches are in; of a plain path its parent."""
        if not self.has_wildcard:
            return paths.parent(paths.without_slash(self.literal))
        return "/" + "/".join(name.literal for name in self._split[0])

    @property
    def _split(self) -> tuple[tuple[Name, ...], Name]:
        i = next(i for i, name in enumerate(self.names) if name.has_wildcard)
        return self.names[:i], self.names[i]


def unescape(text: str) -> str:
    """The text with each escaped character as itself: what a `path_prefix` means."""
    return _ESCAPE.sub(r"\1", text)


def brace_alternatives(text: str) -> list[PathPattern]:
    """`a.{x,y}` → `a.x`, `a.y`; nested ones too, at most MAX_ALTERNATIVES. Empty without braces that hold a comma."""
    if _find_braces(text) is None:
        return []
    done: list[str] = []
    todo = [text]  # the next one is the last one
    while todo and len(done) + len(todo) <= MAX_ALTERNATIVES:
        item = todo.pop()
        match = _find_braces(item)
        if match is None:
            done.append(item)
        else:
            todo += [item[: match.start()] + part + item[match.end() :] for part in reversed(match[1].split(","))]
    return [PathPattern(item) for item in dict.fromkeys(done)]


def _parse_name(text: str) -> Name:
    if _NOT_PLAIN.search(text) is None:
        return Name(text, text, len(text))
    tokens = list(_tokens(text))
    literal = "".join(token.plain for token in tokens)
    ignored = "" if _find_braces(text) else "{"
    fixed = itertools.takewhile(lambda token: token.wildcard in ("", ignored), tokens)
    return Name(text, literal, sum(len(token.plain) for token in fixed))


def _find_braces(text: str) -> re.Match[str] | None:
    return next((match for match in _BRACES.finditer(text) if match[1] is not None), None)


def _tokens(text: str) -> Iterator[_Token]:
    """A run of stars is one token: as several, an expression would try every way to split a name. After a `[` without an end, none of the
    name is a bracket expression: looking for an end again and again would not be linear."""
    i, expression = 0, _TOKEN
    while found := expression.match(text, i):
        i = found.end()
        match found.lastgroup:
            case "stars":
                yield _Token(found[0], "", "*")
            case "one":
                yield _Token("?", ".", "?")
            case "bracket":
                yield _Token(found[0], _bracket(found["bracket"]), "[")
            case _:
                if found[0] == "[":
                    expression = _PLAIN_TOKEN
                character = found["escaped"] or found[0]
                yield _Token(character, re.escape(character), "{" if found[0] == "{" else "")


def _join(tokens: Iterable[_Token]) -> str:
    """One expression. What follows a star is taken where it first fits and never tried again, so that time is linear in the name."""
    runs: list[list[str]] = [[]]
    for token in tokens:
        if token.wildcard == "*":
            runs.append([])
        else:
            runs[-1].append(token.expression)
    first, *rest = ("".join(run) for run in runs)
    if not rest:
        return first
    return first + "".join(f"(?>.*?{run})" for run in rest[:-1]) + ".*" + rest[-1]


def _bracket(text: str) -> str:
    negated = text[0] in "!^"
    inner = "".join(map(_bracket_item, _BRACKET_ITEM.finditer(text, negated)))
    if not inner:
        return r"[^\s\S]" if not negated else "."
    return f"[{'^' if negated else ''}{inner}]"


def _bracket_item(item: re.Match[str]) -> str:
    """A class such as `[:alpha:]`, a range, or a character."""
    if item["name"] is not None:
        return _CLASSES.get(item["name"], "")
    first, last = item["first"], item["last"]
    if last is None:
        return re.escape(first)
    return f"{re.escape(first)}-{re.escape(last)}" if first <= last else ""
