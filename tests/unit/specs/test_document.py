"""Our document: valid OpenAPI 3.0, self-contained, fully described, in our own words."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import pytest

from tests.unit.specs.interface import Document, Place, interface, references, resolve, written

METHODS: Final = frozenset({"get", "put", "post", "delete", "options", "head", "patch", "trace"})
WORDS_IN_A_ROW: Final = 8
"""Fewer consecutive words are common phrases, such as `in RFC 3339 format`."""


def _operations(document: Document) -> Iterator[tuple[str, str, Document]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            if method in METHODS:
                yield path, method, operation


def _texts(node: Any) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    elif isinstance(node, Mapping):
        for value in node.values():
            yield from _texts(value)
    elif isinstance(node, list):
        for value in node:
            yield from _texts(value)


def _descriptions(node: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Every schema, property, parameter, response and security scheme with its place, without references."""
    described = {"properties", "schemas", "parameters", "responses", "headers", "securitySchemes"}
    if isinstance(node, Mapping):
        for key, value in node.items():
            if place and place[-1] in described and isinstance(value, Mapping) and "$ref" not in value:
                yield (*place, str(key)), value
            yield from _descriptions(value, (*place, str(key)))
    elif isinstance(node, list):
        yield from _descriptions(dict(enumerate(node)), place)


def _runs_of_words(document: Document) -> set[str]:
    runs: set[str] = set()
    for text in _texts(document):
        words = re.findall(r"[a-z0-9]+", text.lower())
        runs.update(" ".join(words[i : i + WORDS_IN_A_ROW]) for i in range(len(words) - WORDS_IN_A_ROW + 1))
    return runs


@pytest.mark.filterwarnings("ignore:jsonschema:DeprecationWarning")  # connexion uses what jsonschema deprecates
def test_it_is_valid_openapi(document_path: Path) -> None:
    from connexion.spec import Specification

    # Validates against the OpenAPI 3.0 schema, and each default against its own schema; raises what is wrong.
    assert Specification.load(str(document_path)).version == (3, 0, 3)


def test_every_reference_is_local(document: Document) -> None:
    assert [
        f"{written(place)}: {ref}" for place, ref in references(document) if not ref.startswith("#/components/")
    ] == []


def test_every_reference_can_be_resolved(document: Document) -> None:
    dangling = []
    for place, reference in references(document):
        try:
            resolve(document, reference)
        except KeyError:
            dangling.append(f"{written(place)}: {reference}")
    assert dangling == []


def test_every_component_is_used(document: Document) -> None:
    defined = {
        f"#/components/{kind}/{name}"
        for kind, components in document["components"].items()
        if kind != "securitySchemes"
        for name in components
    }
    assert defined - {reference for _, reference in references(document)} == set()


def test_every_operation_is_described(document: Document) -> None:
    assert [
        f"{m} {p}" for p, m, operation in _operations(document) if not operation.get("description", "").strip()
    ] == []


def test_every_schema_property_parameter_and_response_is_described(document: Document) -> None:
    composed = "allOf"  # described by its parts
    bare = [
        written(place)
        for place, node in _descriptions(document)
        if composed not in node and not str(node.get("description", "")).strip()
    ]
    assert bare == []


def test_operation_ids_are_unique(document: Document) -> None:
    ids = sorted(operation["operationId"] for _, _, operation in _operations(document))
    assert [a for a, b in pairwise(ids) if a == b] == []


def test_path_parameters_are_those_of_the_path(document: Document) -> None:
    promised = interface(document)
    for path, method, _ in _operations(document):
        here = ("paths", path, method, "parameters")
        declared = {
            place[4].removeprefix("path:") for place in promised if place[:4] == here and place[4].startswith("path:")
        }
        assert declared == set(re.findall(r"{(.+?)}", path)), f"{method} {path}"


def test_every_error_response_has_the_error_body(document: Document) -> None:
    for name, answer in document["components"]["responses"].items():
        assert answer["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Error"}, name
    for path, method, operation in _operations(document):
        for code, answer in operation["responses"].items():
            assert (code.startswith("2")) != ("$ref" in answer), f"{method} {path} {code}"


def test_credentials_are_optional_and_checked_first(document: Document) -> None:
    named = [scheme for requirement in document["security"][:-1] for scheme in requirement]
    assert document["security"][-1] == {}
    assert sorted(named) == sorted(document["components"]["securitySchemes"])
    assert all("security" not in operation for _, _, operation in _operations(document))


def test_the_schemas_of_service_info_are_those_of_version_1_0_0(ours: Document) -> None:
    promised = {
        place[2:]: value
        for place, value in interface(ours).items()
        if place[:3] in {_schema("Service"), _schema("ServiceType")}
    }
    string, object_ = '"string"', '"object"'
    assert promised == {
        ("ServiceType", "type"): object_,
        ("ServiceType", "required"): '["artifact", "group", "version"]',
        ("ServiceType", "properties", "group", "type"): string,
        ("ServiceType", "properties", "artifact", "type"): string,
        ("ServiceType", "properties", "version", "type"): string,
        ("Service", "type"): object_,
        ("Service", "required"): '["id", "name", "organization", "type", "version"]',
        ("Service", "properties", "id", "type"): string,
        ("Service", "properties", "name", "type"): string,
        ("Service", "properties", "type", "$ref"): '"schemas/ServiceType"',
        ("Service", "properties", "description", "type"): string,
        ("Service", "properties", "organization", "type"): object_,
        ("Service", "properties", "organization", "required"): '["name", "url"]',
        ("Service", "properties", "organization", "properties", "name", "type"): string,
        ("Service", "properties", "organization", "properties", "url", "type"): string,
        ("Service", "properties", "organization", "properties", "url", "format"): '"uri"',
        ("Service", "properties", "contactUrl", "type"): string,
        ("Service", "properties", "contactUrl", "format"): '"uri"',
        ("Service", "properties", "documentationUrl", "type"): string,
        ("Service", "properties", "documentationUrl", "format"): '"uri"',
        ("Service", "properties", "createdAt", "type"): string,
        ("Service", "properties", "createdAt", "format"): '"date-time"',
        ("Service", "properties", "updatedAt", "type"): string,
        ("Service", "properties", "updatedAt", "format"): '"date-time"',
        ("Service", "properties", "environment", "type"): string,
        ("Service", "properties", "version", "type"): string,
    }


def test_the_text_is_not_copied(published: Document, ours: Document) -> None:
    assert _runs_of_words(published) & _runs_of_words(ours) == set()


def _schema(name: str) -> Place:
    return ("components", "schemas", name)
