"""Connexion's validators for the extensions: parameters and bodies, read by the schemas of `specs/poiesis.openapi.yaml`.

The rules are those of the other API: an empty parameter counts as missing, unknown ones are ignored, and of a repeated one the last counts,
unless it is a list. Bodies are checked by jsonschema, which explains every problem; they are small, or their schema says little.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from connexion.datastructures import MediaTypeDict
from connexion.json_schema import Draft4RequestValidator, extend

from poiesis.api.errors import InvalidBody, NotJson
from poiesis.api.normalize import parse
from poiesis.api.query import parse_pairs
from poiesis.api.validation import DOCUMENT, VALIDATORS, Scope, problems, read_body
from poiesis.domain.errors import InvalidRequest

PARAMETERS: Final = "poiesis.parameters"
"""Key of the ASGI scope: the parameters of the query by name, with the defaults of the document."""
_INTEGER: Final = re.compile(r"[0-9]{1,18}", re.ASCII)
_BOOLEANS: Final = {"true": True, "1": True, "false": False, "0": False}


class ParameterValidator:
    def __init__(self, parameters: Sequence[Mapping[str, Any]], **_: Any) -> None:
        self._known = [p for p in parameters if p["in"] == "query"]

    def validate(self, scope: Scope) -> None:
        """Raises: InvalidRequest."""
        scope[PARAMETERS] = read_parameters(scope["query_string"], self._known)


def _bounded_items(validator: Any, items: Any, instance: Any, schema: Mapping[str, Any]) -> Iterator[Any]:
    """The elements of a list, unless it has more than `maxItems`: half a million of them take seconds, in the event loop."""
    if not isinstance(instance, list) or len(instance) <= schema.get("maxItems", len(instance)):
        yield from Draft4RequestValidator.VALIDATORS["items"](validator, items, instance, schema)


BoundedValidator: Final = extend(Draft4RequestValidator, {"items": _bounded_items})


class JsonBodyValidator:
    """Reads a JSON body, validates it by its schema, and leaves it in the scope; None where it is empty and optional."""

    _validators: Final[dict[int, Any]] = {}  # by id of the schema, which its validator keeps alive

    def __init__(self, *, schema: Mapping[str, Any], required: bool = False, **_: Any) -> None:
        self._required = required
        if id(schema) not in self._validators:
            self._validators[id(schema)] = BoundedValidator(schema)
        self._validator = self._validators[id(schema)]

    async def wrap_receive(self, receive: Any, *, scope: Scope) -> tuple[Any, Scope]:
        """Raises: NotJson, InvalidBody, Refused."""
        body = await read_body(receive, scope)
        scope[DOCUMENT] = None
        if body.strip() or self._required:
            scope[DOCUMENT] = document = parse(body)
            _require_characters(document)
            if wrong := problems(self._validator.iter_errors(document)):
                raise InvalidBody(wrong)
        return receive, scope


def _require_characters(document: Any) -> None:
    """Refuse lone surrogates, which JSON can have and UTF-8, so every store and response, cannot. Raises: NotJson."""
    try:
        json.dumps(document, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise NotJson("invalid text: a lone surrogate is not a character") from None
    except RecursionError:
        raise NotJson("invalid JSON: nested too deeply") from None


EXTENSION_VALIDATORS: Final = {
    **VALIDATORS,
    "parameter": ParameterValidator,
    "body": MediaTypeDict({"application/json": JsonBodyValidator}),
}


def read_parameters(raw: bytes, known: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Raises: InvalidRequest."""
    given: dict[str, list[str]] = {}
    for name, value in parse_pairs(raw):
        if value:
            given.setdefault(name, []).append(value)
    found = {}
    for parameter in known:
        name, schema = parameter["name"], parameter["schema"]
        if name in given:
            found[name] = _read(name, given[name], schema)
        elif parameter.get("required"):
            raise InvalidRequest(name, "missing: this parameter is required")
        elif "default" in schema:
            found[name] = schema["default"]
    return found


def _read(name: str, values: list[str], schema: Mapping[str, Any]) -> Any:
    if schema["type"] != "array":
        return _value(name, values[-1], schema)
    if len(values) > schema["maxItems"]:
        raise InvalidRequest(name, f"must be given at most {schema['maxItems']} times")
    return [_value(name, value, schema["items"]) for value in values]


def _value(name: str, text: str, schema: Mapping[str, Any]) -> Any:
    match schema["type"]:
        case "integer":
            least, most = schema["minimum"], schema["maximum"]
            if not _INTEGER.fullmatch(text.strip()) or not least <= int(text) <= most:
                raise InvalidRequest(name, f"must be a whole number from {least} to {most}")
            return int(text)
        case "boolean":
            if text.strip().lower() not in _BOOLEANS:
                raise InvalidRequest(name, "must be true or false")
            return _BOOLEANS[text.strip().lower()]
    if "enum" in schema:
        text = text.strip().upper()
        if text not in schema["enum"]:
            raise InvalidRequest(name, f"must be one of: {', '.join(schema['enum'])}")
    return text
