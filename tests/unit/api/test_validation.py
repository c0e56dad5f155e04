"""What can be decoded into the domain is valid by the spec, and the reverse."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
from connexion.json_schema import Draft4RequestValidator
from connexion.spec import Specification
from hypothesis import given
from hypothesis import strategies as st

from poiesis.api.app import load_specification
from poiesis.api.normalize import as_specified, load_task, normalize
from poiesis.domain.errors import InvalidTask
from tests.unit.api.test_any_request import VALUES
from tests.unit.api.test_create_task import FULL, RULES, SHAPE

SCHEMA: dict[str, Any] = Specification.load(load_specification())["components"]["schemas"]["tesTask"]
JSONSCHEMA = Draft4RequestValidator(SCHEMA)
TYPES = {"type", "enum", "properties", "additionalProperties", "required", "items"}
"""The keywords that the domain's types stand for."""
ANNOTATIONS = {"description", "example", "default", "format", "readOnly", "title", "components"}


def _agree(document: Any) -> bool:
    document = normalize(document)
    is_valid: bool = JSONSCHEMA.is_valid(as_specified(document))
    try:
        load_task(document)
    except InvalidTask:
        assert not is_valid
    else:
        assert is_valid
    return is_valid


def test_both_accept_a_valid_task() -> None:
    assert _agree(FULL)


@pytest.mark.parametrize("case", SHAPE + RULES, ids=lambda case: str(case[1]))
def test_both_agree_on_each_broken_task(case: Any) -> None:
    _agree(case[0])


@given(VALUES)
def test_both_agree_on_any_value(document: Any) -> None:
    _agree(document)


@given(st.data())
def test_both_agree_on_any_change_of_a_good_task(data: st.DataObject) -> None:
    document: Any = copy.deepcopy(FULL)
    place: Any = document
    while isinstance(place, dict | list) and place:
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else list(range(len(place)))))
        if not isinstance(place[key], dict | list) or data.draw(st.integers(0, 3)) == 0:
            place[key] = data.draw(VALUES)
            break
        place = place[key]
    _agree(document)


def _keywords(schema: dict[str, Any]) -> Iterator[str]:
    yield from schema
    below = [*schema.get("properties", {}).values(), schema.get("items"), schema.get("additionalProperties")]
    for part in below:
        if isinstance(part, dict):
            yield from _keywords(part)


def test_the_spec_has_no_keyword_that_decoding_does_not_check() -> None:
    assert {word for word in _keywords(SCHEMA) if not word.startswith("x-")} <= TYPES | ANNOTATIONS
