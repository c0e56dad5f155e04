"""A schema of the spec as one compiled function that says yes or no.

jsonschema explains well and takes 0.2 ms for a usual task; nearly all tasks are right and need no explanation. `compile_schema` reads the
same schema and knows the few keywords that requests use, no others: one it does not know is an error, never a gap in validation. Where the
answer is no, jsonschema is asked why (docs/adr/0002; tests hold the two against each other).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

Check = Callable[[Any], bool]

_SAID: Final = frozenset({"description", "example", "default", "format", "readOnly", "title", "components"})
"""Keywords that check nothing: words for people, formats of numbers (jsonschema checks none either), and what Connexion adds."""
_TYPES: Final[Mapping[str, tuple[type, ...]]] = {
    "string": (str,),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
}


def compile_schema(schema: Mapping[str, Any]) -> Check:
    """For a schema without references, as Connexion resolves them. Raises: ValueError for a keyword that is not known here."""
    rest = {k: v for k, v in schema.items() if k not in _SAID and not k.startswith("x-")}
    kind, values = rest.pop("type", None), rest.pop("enum", None)
    below = {name: compile_schema(s) for name, s in rest.pop("properties", {}).items()}
    required = tuple(rest.pop("required", ()))
    others, items = rest.pop("additionalProperties", None), rest.pop("items", None)
    if rest:
        raise ValueError(f"the keyword {sorted(rest)[0]!r} of a schema is not known to this validation")
    if kind == "object":
        return _object(below, required, None if others in (None, True) else compile_schema(others))
    if kind == "array":
        return _array(compile_schema(items or {}))
    if kind in ("integer", "number"):
        types = (int,) if kind == "integer" else (int, float)
        return lambda value: isinstance(value, types) and not isinstance(value, bool)
    if kind is None and (below or required or others or items):
        raise ValueError("a schema has parts but no type")
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
