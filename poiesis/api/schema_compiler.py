"""Compiles a schema of the spec to one function that returns whether a value is valid.

jsonschema explains well and takes 0.2 ms for a usual task; nearly all tasks are valid and need no explanation. `compile_schema` supports
only the few keywords that requests use: any other is an error, never a gap in validation. jsonschema explains why a value is invalid
(docs/adr/0002; tests compare the two).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

Check = Callable[[Any], bool]

_ANNOTATIONS: Final = frozenset({"description", "example", "default", "format", "readOnly", "title", "components"})
"""Keywords that check nothing: annotations, formats of numbers (jsonschema does not check them either), and what Connexion adds."""
_TYPES: Final[Mapping[str, tuple[type, ...]]] = {
    "string": (str,),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
}


def compile_schema(schema: Mapping[str, Any]) -> Check:
    """Compile a schema without references, which Connexion has resolved. Raises: ValueError for an unsupported keyword."""
    rest = {k: v for k, v in schema.items() if k not in _ANNOTATIONS and not k.startswith("x-")}
    kind, values = rest.pop("type", None), rest.pop("enum", None)
    below = {name: compile_schema(s) for name, s in rest.pop("properties", {}).items()}
    required = tuple(rest.pop("required", ()))
    others, items = rest.pop("additionalProperties", None), rest.pop("items", None)
    if rest:
        raise ValueError(f"unsupported schema keyword {sorted(rest)[0]!r}")
    if kind == "object":
        return _object(below, required, None if others in (None, True) else compile_schema(others))
    if kind == "array":
        return _array(compile_schema(items or {}))
    if kind in ("integer", "number"):
        types = (int,) if kind == "integer" else (int, float)
        return lambda value: isinstance(value, types) and not isinstance(value, bool)
    if kind is None and (below or required or others or items):
        raise ValueError("unsupported schema: has parts but no type")
    return _plain(_TYPES[kind] if kind else (object,), None if values is None else tuple(values))


def _object(below: Mapping[str, Check], required: tuple[str, ...], others: Check | None) -> Check:
    def check(value: Any) -> bool:
        if not isinstance(value, dict):
            return False
        for name in required:
            if name not in value:
                return False
        for name, item in value.items():
            wanted = below.get(name, others)
            if wanted is not None and not wanted(item):
                return False
        return True

    return check


def _array(item: Check) -> Check:
    return lambda value: isinstance(value, list) and all(map(item, value))


def _plain(types: tuple[type, ...], values: tuple[Any, ...] | None) -> Check:
    if values is None:
        return lambda value: isinstance(value, types)
    return lambda value: isinstance(value, types) and value in values
