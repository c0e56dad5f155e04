"""Media types as RFC 9110 (8.3.1) has them: the one place that parses Content-Type."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

_TOKEN: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_TYPE: Final = re.compile(rf"[ \t]*({_TOKEN}/{_TOKEN})[ \t]*", re.ASCII)
_PARAMETER: Final = re.compile(rf';[ \t]*(?:({_TOKEN})=({_TOKEN}|"(?:[^"\\]|\\.)*"))?[ \t]*', re.ASCII)


@dataclass(frozen=True)
class MediaType:
    """`essence` and the names of parameters in lower case: `application/json`, `{"charset": "utf-8"}`."""

    essence: str
    parameters: Mapping[str, str]


def parse_media_type(text: str) -> MediaType | None:
    """None where `text` is not a media type."""
    match = _TYPE.match(text)
    if match is None:
        return None
    parameters: dict[str, str] = {}
    position = match.end()
    while position < len(text):
        found = _PARAMETER.match(text, position)
        if found is None:
            return None
        if found[1]:
            value = re.sub(r"\\(.)", r"\1", found[2][1:-1]) if found[2].startswith('"') else found[2]
            parameters.setdefault(found[1].lower(), value)
        position = found.end()
    return MediaType(match[1].lower(), parameters)
