"""The compiled validation agrees with jsonschema, which explains why a value is invalid."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from connexion.json_schema import Draft4RequestValidator
from connexion.spec import Specification
from hypothesis import given
from hypothesis import strategies as st

from poiesis.api.app import load_specification
from poiesis.api.schema_compiler import compile_schema
from tests.unit.api.test_any_request import VALUES
from tests.unit.api.test_create_task import FULL, RULES, SHAPE

SCHEMA: dict[str, Any] = Specification.load(load_specification())["components"]["schemas"]["tesTask"]
COMPILED = compile_schema(SCHEMA)
JSONSCHEMA = Draft4RequestValidator(SCHEMA)


def _agree(document: Any) -> bool:
    assert COMPILED(document) == JSONSCHEMA.is_valid(document)
    return COMPILED(document)


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


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": "x"},
        {"oneOf": []},
        {"$ref": "#/x"},
        {"properties": {}, "required": ["a"]},
        {"type": "object", "properties": {"a": {"minLength": 1}}},
    ],
)
def test_a_keyword_that_is_not_supported_is_an_error(schema: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="unsupported"):
        compile_schema(schema)


def test_other_properties_may_have_a_schema_or_none() -> None:
    texts = compile_schema({"type": "object", "additionalProperties": {"type": "string"}})
    assert texts({"a": "b"}) and not texts({"a": 1})
    anything = compile_schema(
        {"type": "object", "additionalProperties": True, "properties": {"a": {"type": "integer"}}}
    )
    assert anything({"b": None}) and not anything({"a": True})
