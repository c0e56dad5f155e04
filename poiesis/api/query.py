"""The parameters of a query, read once from the raw string (spec: ListTasks, GetTask).

An empty parameter counts as missing; `view` and `state` in any case; of a repeated parameter the last one counts, except for tags,
which are paired by position. `state=UNKNOWN` is the spec's default and means no filter.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qsl

from marshmallow import Schema, ValidationError, fields, post_load, validate

from poiesis.domain.errors import InvalidRequest
from poiesis.domain.states import State
from poiesis.domain.task import View

QUERY: Final = "poiesis.query"
"""Key of the ASGI scope: the `Query`."""

DEFAULT_PAGE_SIZE: Final = 256  # spec: page_size
MAX_PAGE_SIZE: Final = 2047  # spec: page_size, "less than 2048"
MAX_TAGS: Final = 100
MAX_PARAMETERS: Final = 1_000


@dataclass(frozen=True)
class Query:
    """`state` None: any. `tags`: pairs of (key, value), an empty value for any."""

    view: View = View.MINIMAL
    name_prefix: str = ""
    state: State | None = None
    tags: tuple[tuple[str, str], ...] = ()
    page_size: int = DEFAULT_PAGE_SIZE
    page_token: str | None = None


_DEFAULT: Final = Query()


class _QuerySchema(Schema):
    view = fields.Enum(View, by_value=True, error_messages={"unknown": "must be one of: {choices}"})
    name_prefix = fields.String()
    state = fields.Enum(State, by_value=True, error_messages={"unknown": "must be one of: {choices}"})
    page_size = fields.String(  # not an Integer, which takes 1_000 and digits of any script
        validate=validate.Regexp(
            r"\s*\+?0*[1-9][0-9]{0,17}\s*\Z", error=f"must be a whole number from 1 to {MAX_PAGE_SIZE}"
        )
    )
    page_token = fields.String()
    tags = fields.List(fields.Tuple((fields.String(), fields.String())))

    @post_load
    def build(self, data: dict[str, Any], **_: Any) -> Query:
        if "page_size" in data:
            data["page_size"] = min(int(data["page_size"]), MAX_PAGE_SIZE)
        if data.get("state") is State.UNKNOWN:
            del data["state"]
        return Query(**data)


_SCHEMA: Final = _QuerySchema()


def read_query(raw: bytes, known: Collection[str]) -> Query:
    """The query of an operation that has the parameters `known`; others are ignored. Raises: InvalidRequest."""
    if not raw or not known:
        return _DEFAULT
    pairs = parse_pairs(raw)
    given: dict[str, Any] = {name: value for name, value in pairs if value and name in known}
    for name in given.keys() & {"view", "state"}:
        given[name] = given[name].strip().upper()
    if given.keys() & {"tag_key", "tag_value"}:
        given = {name: value for name, value in given.items() if not name.startswith("tag_")} | {"tags": _paired(pairs)}
    try:
        query: Query = _SCHEMA.load(given)
    except ValidationError as error:
        name, messages = next(iter(error.messages_dict.items()))
        raise InvalidRequest(name, messages[0]) from None
    return query


def parse_pairs(raw: bytes) -> list[tuple[str, str]]:
    """Names and values of a query, in order. Raises: InvalidRequest."""
    try:
        return parse_qsl(raw.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=MAX_PARAMETERS)
    except ValueError:
        raise InvalidRequest("query", f"too many parameters: at most {MAX_PARAMETERS}") from None


def _paired(pairs: list[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Keys with the values at their positions; a key without a value matches any."""
    keys = [value for name, value in pairs if name == "tag_key"]
    values = [value for name, value in pairs if name == "tag_value"]
    if len(values) > len(keys):
        raise InvalidRequest(
            "tag_value", "must not be given more often than tag_key: the n-th value is for the n-th key"
        )
    if len(keys) > MAX_TAGS:
        raise InvalidRequest("tag_key", f"must be given at most {MAX_TAGS} times")
    paired = tuple(zip(keys, values + [""] * (len(keys) - len(values)), strict=True))
    if any(value and not key for key, value in paired):
        raise InvalidRequest("tag_key", "must not be empty where tag_value has a value")
    return tuple(dict.fromkeys(pair for pair in paired if pair[0]))
