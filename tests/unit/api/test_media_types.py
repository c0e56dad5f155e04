"""Content-Type as defined by RFC 9110."""

from __future__ import annotations

import pytest

from tests.unit.api.service import HELLO, Site, assert_error


@pytest.mark.parametrize(
    "value",
    ["Application/JSON", "application/json ; charset=utf-8", "APPLICATION/JSON;CHARSET=UTF-8", 'application/json; charset="utf-8"',
     "application/json;", "application/json; version=1"],
)  # fmt: skip
def test_json_is_accepted_in_any_spelling(site: Site, value: str) -> None:
    assert site.post("/tasks", HELLO, headers={"Content-Type": value}).status_code == 200


@pytest.mark.parametrize(
    "value",
    ["", "json", "application/json, application/json", "application/xml", "application/json/x", "*/*", "a" * 5000],
)
def test_other_values_are_415(site: Site, value: str) -> None:
    assert_error(site.post("/tasks", HELLO, headers={"Content-Type": value}), 415, "unsupported_media_type")
