"""Connexion's validators, replaced at its own hook (`validator_map`) by ones that know how requests are read.

They validate normalized values, and collect every problem instead of the first (docs/adr/0002). They pass what they have read to the
handler in the ASGI scope.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from typing import Any, Final

from connexion.datastructures import MediaTypeDict
from connexion.exceptions import NonConformingResponseBody
from connexion.json_schema import Draft4RequestValidator
from connexion.validators import JSONResponseBodyValidator
from starlette.requests import Request

from poiesis.api.errors import MAX_PROBLEMS, Refused
from poiesis.api.normalize import as_specified, load_task, normalize, parse
from poiesis.api.query import QUERY, read_query
from poiesis.domain.errors import InvalidTask, Problem
from poiesis.domain.task import TaskSpec

Scope = MutableMapping[str, Any]
ValidationError = Any  # jsonschema's, which has no types
DOCUMENT: Final = "poiesis.document"
"""Key of the ASGI scope: the normalized body."""
TASK: Final = "poiesis.task"
"""Key of the ASGI scope: the `TaskSpec` in the body."""

_NAMES: Final = {
    "string": "a string",
    "array": "an array",
    "object": "an object",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
}


class QueryValidator:
    """Reads and checks the parameters of the query (`poiesis.api.query`); Connexion makes one for each request."""

    def __init__(self, parameters: Sequence[Mapping[str, Any]], **_: Any) -> None:
        self._parameters = parameters

    def validate(self, scope: Scope) -> None:
        """Raises: InvalidRequest."""
        scope[QUERY] = read_query(scope["query_string"], {p["name"] for p in self._parameters if p["in"] == "query"})


class BodyValidator:
    """Reads the task in a JSON body once, and leaves it in the scope."""

    def __init__(self, *, schema: Mapping[str, Any], **_: Any) -> None:
        self._reader = TaskReader(schema)

    async def wrap_receive(self, receive: Any, *, scope: Scope) -> tuple[Any, Scope]:
        """Raises: InvalidTask, Refused."""
        scope[DOCUMENT] = document = normalize(parse(await read_body(receive, scope)))
        scope[TASK] = self._reader.load(document)
        return receive, scope


class TaskReader:
    """Reads tasks. `schema`: of the spec, without references.

    What can be decoded is valid by the schema, as tests compare. Only for the rest jsonschema, which is slow, looks for the problems.
    """

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._schema = schema

    def read(self, document: Any) -> TaskSpec:
        """Raises: InvalidTask."""
        return self.load(normalize(document))

    def load(self, document: Any) -> TaskSpec:
        """Of a normalized document. Raises: InvalidTask."""
        try:
            return load_task(document)
        except InvalidTask:
            errors = Draft4RequestValidator(self._schema).iter_errors(as_specified(document))
            if found := problems(errors):
                raise InvalidTask(found) from None
            raise


async def read_body(receive: Any, scope: Scope) -> bytes:
    """Raises: Refused."""
    for name, value in scope["headers"]:
        if name == b"content-encoding" and value.strip().lower() not in (b"", b"identity"):
            raise Refused(415, "unsupported Content-Encoding: send the task uncompressed")
    return await Request(scope, receive).body()


class ResponseValidator(JSONResponseBodyValidator):  # type: ignore[misc]
    """Connexion's, except that TES requires `executors` in every task and at the same time MINIMAL tasks of only id and state."""

    def _validate(self, body: Any) -> None:
        wrong = [e for e in self.validator.iter_errors(body) if not _is_minimal(e)]
        if wrong:
            found = "; ".join(f"{p.path}: {p.message}" for p in problems(wrong))
            raise NonConformingResponseBody(f"the response does not conform to the specification: {found}")


VALIDATORS: Final = {
    "parameter": QueryValidator,
    "body": MediaTypeDict({"application/json": BodyValidator}),
    "response": MediaTypeDict({"application/json": ResponseValidator}),
}


def problems(errors: Iterable[ValidationError]) -> list[Problem]:
    """The errors of jsonschema as problems with JSON paths; at most MAX_PROBLEMS."""
    found = []
    for error in errors:
        found.append(Problem(json_path(error.absolute_path), _message(error)))
        if error.validator == "required":
            missing = _missing(error)
            found[-1] = Problem(f"{found[-1].path}.{missing}", "missing: this field is required")
        if len(found) == MAX_PROBLEMS:
            break
    return found


def json_path(place: Iterable[str | int]) -> str:
    return "$" + "".join(f"[{p}]" if isinstance(p, int) else f".{p[:60]}" for p in place)


def _message(error: ValidationError) -> str:
    match error.validator:
        case "type":
            wanted = _NAMES.get(str(error.validator_value), str(error.validator_value))
            return f"invalid type: must be {wanted}, not {_kind(error.instance)}"
        case "enum":
            return "unsupported value: must be one of: " + ", ".join(str(v) for v in error.validator_value)
        case "additionalProperties":
            known = error.schema.get("properties", {})
            unknown = next(key for key in error.instance if key not in known)
            return f"unknown field {unknown[:60]!r}: must be one of: {', '.join(known) or 'none'}"
        case "minItems" | "minLength" | "maxItems" | "maxLength":
            bound = "at least" if error.validator.startswith("min") else "at most"
            unit = "elements" if error.validator.endswith("Items") else "characters"
            return f"invalid length {len(error.instance)}: must have {bound} {error.validator_value} {unit}"
        case "minimum" | "maximum":
            bound = "at least" if error.validator == "minimum" else "at most"
            return f"invalid number {str(error.instance)[:30]}: must be {bound} {error.validator_value}"
    return re.sub(r"\s+", " ", error.message)[:200]


def _missing(error: ValidationError) -> str:
    """jsonschema raises one error for each missing key; its name is only in the message."""
    return next((key for key in error.validator_value if error.message.startswith(f"{key!r} ")), "?")


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    for kind, name in ((str, "a string"), (int | float, "a number"), (list, "an array"), (dict, "an object")):
        if isinstance(value, kind):
            return name
    return type(value).__name__


def _is_minimal(error: ValidationError) -> bool:
    return error.validator == "required" and isinstance(error.instance, dict) and set(error.instance) == {"id", "state"}
