"""What a body of the extensions may contain, whatever the operation."""

from __future__ import annotations

from typing import Any

import pytest
from connexion.json_schema import Draft4RequestValidator, resolve_refs

from poiesis.api.app import load_specification
from tests.unit.api.service import Site, assert_error


@pytest.mark.parametrize("body", [b'{"ids": ["\\ud800"]}', b'{"ids": ["a\xed\xa0\x80"]}', b'{"ids": [], "\\udc00": 1}'])
@pytest.mark.parametrize("path", ["/tasks:states", "/tasks:cancel", "/tasks:validate", "/tasks:wait"])
def test_text_that_is_not_unicode_is_refused(site: Site, path: str, body: bytes) -> None:
    response = site.client.post(f"/poiesis/v1{path}", content=body, headers={"Content-Type": "application/json"})
    assert_error(response, 400)


@pytest.mark.parametrize(
    ("path", "document", "problem"),
    [
        ("states", {"ids": []}, "$.ids: invalid length 0: must have at least 1 elements"),
        ("states", {"ids": ["x" * 26] * 1001}, "$.ids: invalid length 1001: must have at most 1000 elements"),
        ("wait", {"ids": ["x"], "timeout": -1}, "$.timeout: invalid number -1: must be at least 0"),
        ("wait", {"ids": ["x"], "timeout": 61}, "$.timeout: invalid number 61: must be at most 60"),
        ("cancel", {"filter": {"tags": {str(i): "x" for i in range(101)}}}, "$.filter.tags: invalid length: must have"),
        ("cancel", {"filter": {"x": 1}}, "$.filter: unknown field 'x': must be one of: "),
        ("cancel", {"filter": {}, "dryrun": True}, "$: unknown field 'dryrun': must be one of: ids, filter, dry_run"),
        ("wait", {"ids": ["x"], "untl": "ALL"}, "$: unknown field 'untl': must be one of: ids, until, timeout"),
        ("states", {"ids": ["x"], "view": "FULL"}, "$: unknown field 'view': must be one of: ids"),
    ],
)
def test_a_problem_is_stated_in_our_words_and_without_the_whole_value(
    site: Site, path: str, document: object, problem: str
) -> None:
    response = site.client.post(f"/poiesis/v1/tasks:{path}", json=document)
    assert_error(response, 400)
    assert response.json()["message"].startswith(problem)
    assert len(response.content) < 500


def test_every_body_of_the_extensions_has_known_fields_only() -> None:
    """Except those of a task, which ValidateTask and RerunTask check by themselves."""
    found = {
        operation["operationId"]: operation["requestBody"]["content"]["application/json"]["schema"]
        for item in resolve_refs(load_specification("poiesis.openapi.yaml"))["paths"].values()
        for operation in item.values()
        if "requestBody" in operation
    }
    open_ones = {name for name, schema in found.items() if schema.get("additionalProperties") is not False}
    assert len(found) > 6 and open_ones == {"ValidateTask", "RerunTask"}


def test_a_list_that_is_too_long_is_refused_without_its_elements(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[object] = []
    original = Draft4RequestValidator.VALIDATORS["items"]

    def items(validator: Any, items: Any, instance: Any, schema: Any) -> Any:
        checked.append(instance)
        return original(validator, items, instance, schema)

    monkeypatch.setitem(Draft4RequestValidator.VALIDATORS, "items", items)
    response = site.client.post("/poiesis/v1/webhooks/x/dead-letters:replay", json={"sequences": [1] * 490_000})
    assert_error(response, 400)
    assert "at most 1000" in response.json()["message"] and not checked
    site.client.post("/poiesis/v1/webhooks/x/dead-letters:replay", json={"sequences": ["x"]})
    assert checked == [["x"]]
