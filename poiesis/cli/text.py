"""Text of servers, made safe for a terminal. Everything that did not come from this program goes through `printable`."""

from __future__ import annotations

import re
from typing import Final

# C0 but for tab and line feed, C1, line and paragraph separators, marks that change the direction of text, lone surrogates
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """The text with escapes, as in JSON, for characters that steer a terminal."""
    return _CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def one_line(text: str) -> str:
    """The same, for a line of a table."""
    return printable(" ".join(text.split()))
