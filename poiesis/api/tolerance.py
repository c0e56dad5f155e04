"""Brings what clients send into the shape that the spec asks for, before it is validated (see "How requests are read" in the spec).

Nulls count as missing, at every depth; read-only and unknown keys are dropped; whole numbers may have a decimal point. Nothing wrong
becomes right by it: an element of a list that is null stays and is refused, as a command without it would be another command.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, Final, NoReturn

from poiesis.api.errors import NotJson

_TEXT_MAP: Final = None  # every key is the user's own
_KEYS: Final[Mapping[str, Mapping[str, Any]]] = {
    "task": {
        "name": (),
        "description": (),
        "inputs": "input",
        "outputs": "output",
        "resources": "resources",
        "executors": "executor",
        "volumes": (),
        "tags": _TEXT_MAP,
    },
    "input": dict.fromkeys(("name", "description", "url", "path", "type", "content", "streamable"), ()),
    "output": dict.fromkeys(("name", "description", "url", "path", "path_prefix", "type"), ()),
    "resources": {
        **dict.fromkeys(("cpu_cores", "preemptible", "ram_gb", "disk_gb", "zones", "backend_parameters_strict"), ()),
        "backend_parameters": _TEXT_MAP,
    },
    "executor": {
        **dict.fromkeys(("image", "command", "workdir", "stdin", "stdout", "stderr", "ignore_error"), ()),
        "env": _TEXT_MAP,
    },
}
"""What each object of a request may hold: () a plain value, None a map of texts, or the name of the object(s) below that key."""


def parse(body: bytes) -> Any:
    """Parse JSON as RFC 8259 defines it: no NaN, no Infinity. Raises: NotJson."""
    if not body.strip():
        raise NotJson("the body is empty: send the task as a JSON object")
    try:
        return json.loads(body, parse_constant=_refuse_constant)
    except RecursionError:
        raise NotJson("invalid JSON: nested too deeply") from None
    except UnicodeDecodeError:
        raise NotJson("invalid JSON: not UTF-8") from None
    except json.JSONDecodeError as error:
        raise NotJson(f"invalid JSON at line {error.lineno}, column {error.colno}") from None
    except ValueError:  # Python's limit for the digits of an integer
        raise NotJson("invalid JSON: a number has too many digits") from None


def normalise(document: Any) -> Any:
    """The task document to validate and load. A value of a wrong type stays as it is, for the validation to refuse."""
    document = _object(document, "task")
    if isinstance(document, dict) and isinstance(document.get("resources"), dict):
        resources = document["resources"]
        for key in ("cpu_cores", "ram_gb", "disk_gb"):
            if key in resources:
                resources[key] = _number(resources[key])
    return document


def as_specified(document: Any) -> Any:
    """The same with the cores as the spec's integer, rounded up: what is held against the spec, while the domain keeps the fraction."""
    cores = document.get("resources") if isinstance(document, dict) else None
    if not isinstance(cores, dict) or not isinstance(cores.get("cpu_cores"), float):
        return document
    return document | {"resources": cores | {"cpu_cores": math.ceil(cores["cpu_cores"])}}


def _object(value: Any, kind: str) -> Any:
    if not isinstance(value, dict):
        return value
    kept = {}
    for key, below in _KEYS[kind].items():
        item = value.get(key)
        if item is None:
            continue
        if below is _TEXT_MAP:
            item = {k: v for k, v in item.items() if v is not None} if isinstance(item, dict) else item
        elif isinstance(below, str):
            item = [_object(i, below) for i in item] if isinstance(item, list) else _object(item, below)
        kept[key] = item
    return kept


def _number(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if isinstance(value, float) and math.isinf(value):  # 1e999: refused as a number out of range, not as a fault
        return math.copysign(2.0**53, value)
    if isinstance(value, int) and abs(value) >= 2**53:
        return 2**53 if value > 0 else -(2**53)
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise NotJson(f"invalid JSON: {name} is not a number")
