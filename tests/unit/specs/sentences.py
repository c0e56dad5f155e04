"""The sentences of an OpenAPI document, with their places; and which of them prescribe behaviour.

A description is split at full stops, blank lines and list items; code blocks and tables are left out (an example prescribes nothing that
the sentence before it does not). Sentences are compared by their words only, so that line breaks and quotes do not matter.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

PRESCRIBES: Final = re.compile(
    r"\b(?:must|should|shall|may|can|could|will|would|cannot|required?|optional(?:ly)?|recommend(?:ed)?|ignored|only|default(?:s|ing)?|not)\b",
    re.IGNORECASE,
)
"""Words that make a sentence a rule. Wider than RFC 2119, because the TES document does not use its words consistently."""

_ENDS: Final = re.compile(r"(?<=\.)\s+(?=[A-Z`])")
_ABBREVIATIONS: Final = re.compile(r"\b(e\.g|i\.e|etc|vs)\.\s+")


class Sentence(NamedTuple):
    place: str
    text: str

    @property
    def words(self) -> str:
        return words(self.text)

    @property
    def prescribes(self) -> bool:
        return bool(PRESCRIBES.search(self.text))


def words(text: str) -> str:
    return " ".join(re.findall(r"[a-z0-9_.]*[a-z0-9_]", text.lower()))


def sentences(node: Any, place: tuple[str, ...] = ()) -> Iterator[Sentence]:
    """Every sentence of a description or summary below `node`, in the order of the document."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            if key in ("description", "x-poiesis-tolerance") and isinstance(value, str):
                for text in split(value):
                    yield Sentence(_written(place), text)
            elif key not in ("example", "examples"):
                yield from sentences(value, (*place, str(key)))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            name = value["name"] if isinstance(value, Mapping) and "name" in value else str(index)
            yield from sentences(value, (*place, name))


def split(description: str) -> Iterator[str]:
    text = re.sub(r"```.*?```", "\n\n", description, flags=re.DOTALL)
    text = re.sub(r"^.*-{20,}\n(.+\n?)*", "\n\n", text, flags=re.MULTILINE)  # a table
    for paragraph in re.split(r"\n\s*\n|\n\s*[-*]\s+(?=\S)|^\s*[-*]\s+|^\s*#+[^\n]*$", text, flags=re.MULTILINE):
        line = " ".join(paragraph.split())
        line = _ABBREVIATIONS.sub(lambda found: found[0].rstrip() + "\0", line)
        for sentence in _ENDS.split(line):
            sentence = sentence.replace("\0", " ").strip()
            if re.search(r"[a-zA-Z]", sentence):
                yield sentence


def _written(place: tuple[str, ...]) -> str:
    skipped = {"components", "schemas", "properties", "paths", "parameters", "responses", "allOf", "schema", "items"}
    return " ".join(part for part in place if part not in skipped) or "info"
