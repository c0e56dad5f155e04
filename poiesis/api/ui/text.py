"""Text of users in pages: what steers a browser, a terminal or the direction of writing is shown instead of obeyed.

Jinja escapes HTML. What remains are control characters, which browsers drop or show as nothing, overrides of the direction of text, which
let a name look like another one, and URLs of schemes that run code.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import urlsplit

LINKED_SCHEMES: Final = frozenset({"http", "https"})
STEERS: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufff9-\ufffb]")
_ESCAPES: Final = re.compile(
    r"\x1b(?:\[[0-?]{0,64}[ -/]{0,8}[@-~]|[\]PX^_][^\x07\x1b]{0,4096}(?:\x07|\x1b\\)|[ -/]{0,8}[0-~])"
)


def visible(text: str) -> str:
    """The text with a symbol or a code point for each character that steers: `␛`, `⟨U+202E⟩`."""
    return STEERS.sub(_symbol, text)


def _symbol(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code < 0x20:
        return chr(0x2400 + code)
    return "\N{SYMBOL FOR DELETE}" if code == 0x7F else f"⟨U+{code:04X}⟩"


def plain_log(text: str) -> str:
    """Output of a command as text: without the escape sequences of terminals, and what else steers made visible."""
    return visible(_ESCAPES.sub("", text).replace("\r\n", "\n").replace("\r", "\n"))


def link_of(url: str | None) -> str | None:
    """The URL if a browser may follow it; None for any scheme but http and https, for credentials, and for text that is not a URL."""
    if not url or STEERS.search(url) or re.search(r"[\s\\]", url):
        return None
    try:
        parts = urlsplit(url)
        is_usable = parts.scheme in LINKED_SCHEMES and bool(parts.hostname) and parts.username is None
    except ValueError:
        return None
    return url if is_usable else None
