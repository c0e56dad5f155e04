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

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final, NamedTuple

from poiesis.domain import paths

MAX_ALTERNATIVES: Final = 1000

_ESCAPE: Final = re.compile(r"\\([^/])")
_SLASHES: Final = re.compile("/{2,}")
_BRACES: Final = re.compile(r"\{([^{}/,]*,[^{}/]*)\}")
_BEFORE_BRACES: Final = re.compile(rf"(?:[^{{\\]++|\\.?+|(?!{_BRACES.pattern})\{{)*+", re.DOTALL)
_BRACKET: Final = r"\[[!^]?+\]?+(?:\[:[a-z]*:\]|\\[^/]|[^\]\\/])*+\]"


def _before(stops: str, bracket: str) -> re.Pattern[str]:
    """Matches up to the first of `stops` that is not escaped, in time linear in the whole path: a request may hold megabytes of them.
    After a `[` without an end, no other of the same name is looked at: it would have none either."""
    return re.compile(rf"(?:[^{stops}\[\\]++|\\[^/]?+|{bracket}\[(?:[^{stops}\\/]++|\\[^/]?+)*+)*+")


_BEFORE_STAR: Final = _before("*?", f"{_BRACKET}|")
_BEFORE_WILDCARD: Final = _before("*?", f"(?!{_BRACKET})")
_BEFORE_WILDCARD_OR_BRACE: Final = _before("*?{", f"(?!{_BRACKET})")
_PLAIN_TOKEN: Final = re.compile(r"(?P<stars>\*+)|(?P<one>\?)|\\(?P<escaped>.)|(?P<plain>.)", re.DOTALL)
_TOKEN: Final = re.compile(f"(?P<bracket>{_BRACKET})|{_PLAIN_TOKEN.pattern}", re.DOTALL)
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
    """One character or wildcard of a name: `plain` is its text with escapes resolved."""

    plain: str
    expression: str
    is_star: bool = False


@dataclass(frozen=True)
class Name:
    """One component of a pattern."""

    text: str

    @cached_property
    def has_wildcard(self) -> bool:
        return _fixed_length(self.text) < len(self.text)

    @cached_property
    def literal(self) -> str:
        """With escapes resolved."""
        if not self.has_wildcard:
            return unescape(self.text)
        return "".join(token.plain for token in _tokens(self.text))

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
    themselves. Only `names`, and `literal` where there is a wildcard, split the path; validation and plan use neither."""

    text: str

    @cached_property
    def names(self) -> tuple[Name, ...]:
        """The components, without empty ones."""
        return tuple(Name(name) for name in self.text.split("/") if name)

    @cached_property
    def _fixed_length(self) -> int:
        return _fixed_length(self.text)

    @property
    def has_wildcard(self) -> bool:
        return self._fixed_length < len(self.text)

    @cached_property
    def needs_matching(self) -> bool:
        """Whether there is a `*` or `?`. A path with only brackets or braces may as well be the name of a file, which is tried first."""
        return self.has_wildcard and _length(_BEFORE_STAR, self.text) < len(self.text)

    @property
    def is_directory(self) -> bool:
        """Whether it ends with a slash."""
        return self.text.endswith("/")

    @cached_property
    def literal(self) -> str:
        """The path with escapes resolved; a trailing slash stays."""
        if not self.has_wildcard:
            return self.fixed_text
        return "/" + "/".join(name.literal for name in self.names) + ("/" if self.is_directory else "")

    @cached_property
    def fixed_text(self) -> str:
        """The beginning without any wildcard, with escapes resolved; the whole `literal` where there is no wildcard."""
        return _SLASHES.sub("/", unescape(self.text[: self._fixed_length]))

    @cached_property
    def fixed_directory(self) -> str:
        """The innermost directory without any wildcard that all matches are in; of a plain path its parent."""
        return paths.parent(self.fixed_text if self.has_wildcard else paths.without_slash(self.fixed_text))


def unescape(text: str) -> str:
    """The text with each escaped character as itself: what a `path_prefix` means."""
    return "".join(_ESCAPE.split(text))  # of re's functions the one that calls no Python code for each match


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


def _fixed_length(text: str) -> int:
    """The length of the beginning without any wildcard. A `{` counts as one in names that have alternatives in braces."""
    fixed = _length(_BEFORE_WILDCARD, text)
    braces = _find_braces(text)
    if braces is None:
        return fixed
    name = text.rfind("/", 0, braces.start()) + 1
    return min(fixed, name + _length(_BEFORE_WILDCARD_OR_BRACE, text[name:]))


def _length(expression: re.Pattern[str], text: str) -> int:
    found = expression.match(text)
    return found.end() if found else 0


def _find_braces(text: str) -> re.Match[str] | None:
    return _BRACES.match(text, _length(_BEFORE_BRACES, text)) if "{" in text else None


def _tokens(text: str) -> Iterator[_Token]:
    """Only for matching, never for a request: a call for each token is slow. A run of stars is one token: as several, an expression would
    try every way to split a name."""
    i, expression = 0, _TOKEN
    while found := expression.match(text, i):
        i = found.end()
        match found.lastgroup:
            case "stars":
                yield _Token(found[0], "", is_star=True)
            case "one":
                yield _Token("?", ".")
            case "bracket":
                yield _Token(found[0], _bracket(found[0][1:-1]))
            case _:
                if found[0] == "[":
                    expression = _PLAIN_TOKEN
                character = found["escaped"] or found[0]
                yield _Token(character, re.escape(character))


def _join(tokens: Iterable[_Token]) -> str:
    """One expression. What follows a star is taken where it first fits and never tried again, so that time is linear in the name."""
    runs: list[list[str]] = [[]]
    for token in tokens:
        if token.is_star:
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
