"""The parameters of a query, read once from the raw string (spec: ListTasks, GetTask).

An empty parameter counts as missing; `view` and `state` in any case; of a repeated parameter the last one counts, except for tags,
which are paired by position. `state=UNKNOWN` is the spec's default and means no filter.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl

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


_NOTHING: Final = Query()


def read_query(raw: bytes, known: Collection[str]) -> Query:
    """The query of an operation that has the parameters `known`; others are ignored. Raises: InvalidRequest."""
    if not raw or not known:
        return _NOTHING
    try:
        pairs = parse_qsl(raw.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=MAX_PARAMETERS)
    except ValueError:
        raise InvalidRequest("query", f"has more than {MAX_PARAMETERS} parameters") from None
    last = {name: value for name, value in pairs if value and name in known}
    keys = [value for name, value in pairs if name == "tag_key"]
    values = [value for name, value in pairs if name == "tag_value"]
    return Query(
        view=_view(last.get("view")),
        name_prefix=last.get("name_prefix", ""),
        state=_state(last.get("state")),
        tags=_tags(keys, values) if "tag_key" in known else (),
        page_size=_page_size(last.get("page_size")),
        page_token=last.get("page_token"),
    )


def _view(text: str | None) -> View:
    try:
        return View(text.strip().upper()) if text else View.MINIMAL
    except ValueError:
        raise InvalidRequest("view", "has to be MINIMAL, BASIC or FULL") from None


def _state(text: str | None) -> State | None:
    try:
        state = State(text.strip().upper()) if text else State.UNKNOWN
    except ValueError:
        raise InvalidRequest("state", "has to be one of " + ", ".join(State)) from None
    return None if state is State.UNKNOWN else state


def _page_size(text: str | None) -> int:
    if text is None:
        return DEFAULT_PAGE_SIZE
    if not re.fullmatch(r"[+-]?[0-9]{1,18}", text.strip(), re.ASCII):
        raise InvalidRequest("page_size", f"has to be a whole number from 1 to {MAX_PAGE_SIZE}")
    size = int(text)
    if size < 1:
        raise InvalidRequest("page_size", "has to be at least 1")
    return min(size, MAX_PAGE_SIZE)


def _tags(keys: list[str], values: list[str]) -> tuple[tuple[str, str], ...]:
    if len(values) > len(keys):
        raise InvalidRequest("tag_value", "is given more often than tag_key; the n-th value belongs to the n-th key")
    if len(keys) > MAX_TAGS:
        raise InvalidRequest("tag_key", f"is given more than {MAX_TAGS} times")
    pairs = tuple(zip(keys, values + [""] * (len(keys) - len(values)), strict=True))
    if any(value and not key for key, value in pairs):
        raise InvalidRequest("tag_key", "is empty where tag_value has a value")
    return tuple(dict.fromkeys(pair for pair in pairs if pair[0]))
