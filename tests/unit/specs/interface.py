"""What an OpenAPI document promises to programs, as a flat mapping from place to value.

Two documents describe the same interface when these mappings are equal. The walk is generic: everything in a
document is part of its interface unless it is an annotation (text for people, `x-` extensions), so that unforeseen
keywords are compared too. Order counts only where OpenAPI gives it a meaning. A reference is compared by the
name it ends in, wherever it points, so that a schema fetched from elsewhere equals a copy of the same name in the
document. References to parameters are followed, since a parameter is identified by its name and location and not by the
component that contains it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Document = dict[str, Any]
Place = tuple[str, ...]
Interface = dict[Place, str]
"""Leaves by their place; values as JSON text, which distinguishes `false` from `0` and `1` from `1.0`."""

_COMPARED_AT_THE_TOP = ("servers", "security", "paths", "components")
_ANNOTATIONS = frozenset({"description", "summary", "title", "example", "examples", "externalDocs"})
_MAPS_OF_NAMES = frozenset(
    {
        "callbacks",
        "content",
        "headers",
        "links",
        "parameters",
        "paths",
        "properties",
        "responses",
        "schemas",
        "securitySchemes",
    }
)
"""Keywords below which keys are names chosen by the author; a property may be called `description`."""

_UNORDERED = frozenset({"enum", "required", "tags"})
_SAME_AS_ABSENT = frozenset({"deprecated", "nullable", "readOnly", "required", "uniqueItems", "writeOnly"})
"""Keywords whose default is `false`."""


@dataclass(frozen=True)
class Differences:
    """The differences of a second document's interface from a first one's; places as readable text."""

    missing: dict[str, str]
    changed: dict[str, tuple[str, str]]
    added: dict[Place, str]


def interface(document: Document) -> Interface:
    found: Interface = {
        ("openapi",): json.dumps(document["openapi"].rsplit(".", 1)[0]),
        ("info", "version"): json.dumps(document["info"]["version"]),
    }
    for key in _COMPARED_AT_THE_TOP:
        if key in document:
            found.update(_leaves(document[key], (key,), document, names=key in _MAPS_OF_NAMES))
    return found


def differences(first: Document, second: Document) -> Differences:
    before, after = interface(first), interface(second)
    return Differences(
        missing={written(place): value for place, value in before.items() if place not in after},
        changed={
            written(place): (value, after[place])
            for place, value in before.items()
            if place in after and after[place] != value
        },
        added={place: value for place, value in after.items() if place not in before},
    )


def written(place: Place) -> str:
    return " > ".join(place)


def references(node: Any, place: Place = ()) -> Iterator[tuple[Place, str]]:
    """Every `$ref` below `node`, with its place."""
    if isinstance(node, Mapping):
        if isinstance(node.get("$ref"), str):
            yield place, node["$ref"]
        for key, value in node.items():
            yield from references(value, (*place, str(key)))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from references(value, (*place, str(index)))


def resolve(document: Document, reference: str) -> Any:
    """The node that a local reference points to. Raises KeyError when it does not exist."""
    node: Any = document
    for part in reference.removeprefix("#/").split("/"):
        node = node[part.replace("~1", "/").replace("~0", "~")]
    return node


def _leaves(node: Any, place: Place, document: Document, *, names: bool = False) -> Iterator[tuple[Place, str]]:
    if isinstance(node, Mapping):
        yield from _leaves_of_a_mapping(node, place, document, names=names)
    elif isinstance(node, list) and place[-1] == "parameters":
        for parameter in (resolve(document, each["$ref"]) if "$ref" in each else each for each in node):
            yield from _leaves(parameter, (*place, f"{parameter['in']}:{parameter['name']}"), document)
    elif isinstance(node, list) and place[-1] in _UNORDERED:
        yield place, json.dumps(sorted(node))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _leaves(value, (*place, str(index)), document)
    elif place[-1] == "$ref":
        yield place, json.dumps("/".join(node.split("/")[-2:]))
    else:
        yield place, json.dumps(node)


def _leaves_of_a_mapping(
    node: Mapping[Any, Any], place: Place, document: Document, *, names: bool
) -> Iterator[tuple[Place, str]]:
    if not node:
        yield place, "{}"
    for key, value in node.items():
        keyword = "" if names else str(key)
        if keyword in _ANNOTATIONS or keyword.startswith("x-") or (keyword in _SAME_AS_ABSENT and value is False):
            continue
        yield from _leaves(value, (*place, str(key)), document, names=keyword in _MAPS_OF_NAMES)
