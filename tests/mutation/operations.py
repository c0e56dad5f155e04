"""The operations of an OpenAPI document, with a valid body for each that has one, as bases for mutations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

METHODS: Final = ("get", "post", "put", "patch", "delete")


@dataclass(frozen=True)
class Operation:
    """`path`: with `{name}` for parameters. `body`: a valid one, None without. `query`, `headers`: names of parameters."""

    method: str
    path: str
    query: tuple[str, ...]
    headers: tuple[str, ...]
    body: Any


def operations(document: Mapping[str, Any]) -> Iterator[Operation]:
    for path, item in document["paths"].items():
        for method in METHODS:
            if method in item:
                yield _operation(document, method, path, item, item[method])


def _operation(document: Mapping[str, Any], method: str, path: str, item: Any, operation: Any) -> Operation:
    parameters = [_resolved(document, p) for p in (*item.get("parameters", ()), *operation.get("parameters", ()))]
    names = {place: tuple(p["name"] for p in parameters if p["in"] == place) for place in ("query", "header")}
    body = _resolved(document, operation.get("requestBody", {})).get("content", {}).get("application/json", {})
    return Operation(
        method.upper(), path, names["query"], names["header"], example(document, body["schema"]) if body else None
    )


def example(document: Mapping[str, Any], schema: Any, depth: int = 0) -> Any:
    """A value of the schema: its example, or one made from its parts."""
    schema = _resolved(document, schema)
    if "example" in schema:
        return schema["example"]
    for part in (*schema.get("oneOf", ()), *schema.get("anyOf", ())):
        return example(document, part, depth)
    if "allOf" in schema:
        return {k: v for part in schema["allOf"] for k, v in example(document, part, depth).items()}
    if schema.get("enum"):
        return schema["enum"][0]
    match schema.get("type", "object" if "properties" in schema else "string"):
        case "object":
            return (
                {}
                if depth > 6
                else {k: example(document, v, depth + 1) for k, v in schema.get("properties", {}).items()}
            )
        case "array":
            return [] if depth > 6 else [example(document, schema.get("items", {}), depth + 1)]
        case "integer" | "number":
            return schema.get("minimum", 1)
        case "boolean":
            return True
    return "text"


def _resolved(document: Mapping[str, Any], node: Any) -> Any:
    while isinstance(node, Mapping) and "$ref" in node:
        reference = node["$ref"]
        node = document
        for part in reference.removeprefix("#/").split("/"):
            node = node[part.replace("~1", "/").replace("~0", "~")]
    return node
