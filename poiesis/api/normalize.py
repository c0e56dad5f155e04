"""From the body of a request to the domain's `TaskSpec`: parse, normalize, and after validation by the spec, decode.

Normalizing follows "How requests are read" in the spec: nulls count as missing, at every depth; read-only and unknown keys are dropped;
whole numbers may have a decimal point; empty `content` beside a `url` counts as missing (spec: tesInput.content). It repairs nothing: a
null in a list stays and is refused, because a command without it would be a different command. The fields are read from the domain's
dataclasses (docs/adr/0008).
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, Final, NoReturn, get_args, get_origin, get_type_hints

import msgspec

from poiesis.api.errors import NotJson
from poiesis.domain.errors import InvalidTask, Problem
from poiesis.domain.task import TaskSpec

MAX_DIGITS: Final = 18  # of an integer; more are out of range wherever a number is allowed

_Fields = Mapping[str, Any]
_PLAIN: Final = "plain"
_TEXT_MAP: Final = "map"


def _described(hint: Any) -> Any:
    """What a field may hold: `_PLAIN`, `_TEXT_MAP` (every key is the user's own), or the fields of the object or objects below."""
    if get_origin(hint) is Mapping:
        return _TEXT_MAP
    if dataclasses.is_dataclass(hint):
        hints = get_type_hints(hint)
        return {field.name: _described(hints[field.name]) for field in dataclasses.fields(hint)}
    return next((below for part in get_args(hint) if (below := _described(part)) != _PLAIN), _PLAIN)


_TASK: Final[_Fields] = _described(TaskSpec)
_READ_ONLY: Final = frozenset({"id", "state", "logs", "creation_time"})


def parse(body: bytes) -> Any:
    """Parse JSON as RFC 8259 defines it: no NaN, no Infinity. Raises: NotJson."""
    if not body.strip():
        raise NotJson("the body is empty: send the task as a JSON object")
    try:
        return json.loads(body, parse_constant=_refuse_constant, parse_int=_integer)
    except RecursionError:
        raise NotJson("invalid JSON: nested too deeply") from None
    except json.JSONDecodeError as error:
        raise NotJson(f"invalid JSON at line {error.lineno}, column {error.colno}") from None
    except UnicodeDecodeError:
        raise NotJson("invalid JSON: not UTF-8") from None


def normalize(document: Any) -> Any:
    """The task document to validate and load. A value of a wrong type stays as it is, to be refused by the validation."""
    document = _object(document, _TASK)
    if isinstance(document, dict) and isinstance(document.get("resources"), dict):
        resources = document["resources"]
        for key in ("cpu_cores", "ram_gb", "disk_gb"):
            if key in resources:
                resources[key] = _number(resources[key])
    inputs = document.get("inputs") if isinstance(document, dict) else None
    for item in inputs if isinstance(inputs, list) else ():
        if isinstance(item, dict) and item.get("content") == "" and item.get("url"):
            del item["content"]
    return document


def unknown_fields(document: Any) -> Iterator[Problem]:
    """The fields of a task document that TES does not have, which `normalize` drops."""
    yield from _unknown(document, {**_TASK, **dict.fromkeys(_READ_ONLY, _PLAIN)}, "$")


def as_specified(document: Any) -> Any:
    """Return the document with the cores rounded up to the spec's integer, for validation by the spec; the domain keeps the fraction."""
    cores = document.get("resources") if isinstance(document, dict) else None
    if not isinstance(cores, dict) or not isinstance(cores.get("cpu_cores"), float):
        return document
    return document | {"resources": cores | {"cpu_cores": math.ceil(cores["cpu_cores"])}}


def load_task(document: Any) -> TaskSpec:
    """Raises: InvalidTask, where the spec allows what the domain does not."""
    try:
        return msgspec.convert(document, TaskSpec)
    except (msgspec.ValidationError, UnicodeEncodeError) as error:  # an unpaired surrogate, where no text is allowed
        message, _, place = str(error).partition(" - at `")
        raise InvalidTask([Problem(place.rstrip("`") or "$", f"invalid value: {message}")]) from None


def _object(value: Any, known: _Fields) -> Any:
    if not isinstance(value, dict):
        return value
    kept = {}
    for key, below in known.items():
        item = value.get(key)
        if item is None:
            continue
        if below == _TEXT_MAP:
            item = {k: v for k, v in item.items() if v is not None} if isinstance(item, dict) else item
        elif below != _PLAIN:
            item = [_object(i, below) for i in item] if isinstance(item, list) else _object(item, below)
        kept[key] = item
    return kept


def _unknown(value: Any, known: _Fields, path: str) -> Iterator[Problem]:
    for key, item in value.items() if isinstance(value, dict) else ():
        below = known.get(key)
        if below is None:
            yield Problem(path, f"unknown field {key[:60]!r}: must be one of: {', '.join(known)}")
        elif isinstance(below, Mapping):
            for index, part in enumerate(item if isinstance(item, list) else [item]):
                yield from _unknown(
                    part, below, f"{path}.{key}[{index}]" if isinstance(item, list) else f"{path}.{key}"
                )


def _number(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if isinstance(value, float) and math.isinf(value):  # 1e999
        return math.copysign(2.0**53, value)
    if isinstance(value, int) and abs(value) >= 2**53:
        return 2**53 if value > 0 else -(2**53)
    return value


def _integer(digits: str) -> int:
    """Bounded: Python refuses thousands of digits, and takes more than linear time for many."""
    if len(digits) <= MAX_DIGITS:
        return int(digits)
    return -(10**MAX_DIGITS) if digits.startswith("-") else 10**MAX_DIGITS


def _refuse_constant(name: str) -> NoReturn:
    raise NotJson(f"invalid JSON: {name} is not a number")
