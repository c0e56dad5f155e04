"""Content-Type as RFC 9110 has it."""

from __future__ import annotations

import pytest

from poiesis.api.media_types import MediaType, parse_media_type
from tests.unit.api.service import HELLO, Site, assert_error


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("application/json", MediaType("application/json", {})),
        ("Application/JSON", MediaType("application/json", {})),
        (" application/json\t", MediaType("application/json", {})),
        ("application/json ; Charset=utf-8", MediaType("application/json", {"charset": "utf-8"})),
        ('application/json;charset="ut\\f-8";', MediaType("application/json", {"charset": "utf-8"})),
        ("application/json;; a=b ;c=d", MediaType("application/json", {"a": "b", "c": "d"})),
        ("", None),
        ("json", None),
        ("application/", None),
        ("application / json", None),
        ("application/json; charset", None),
        ('application/json; charset="utf-8', None),
        ("application/json, text/plain", None),
    ],
)
def test_media_types_are_parsed_as_the_rfc_has_them(text: str, expected: MediaType | None) -> None:
    assert parse_media_type(text) == expected


def test_parsing_is_linear() -> None:
    assert parse_media_type("a/b" + "; a=b" * 100_000 + ",") is None
    assert parse_media_type('a/b; a="' + "\\a" * 100_000) is None


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
