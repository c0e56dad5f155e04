"""All views: only keys of the spec, no nulls, and a validation that detects violations."""

from __future__ import annotations

from typing import Any

import pytest

from poiesis.api.app import load_specification
from poiesis.api.views import NO_STATE, Views, usable_storage
from poiesis.config import ApiSettings
from poiesis.domain.policy import Policy
from poiesis.domain.states import State
from poiesis.domain.task import View
from tests.unit.api.service import Site, assert_error
from tests.unit.api.test_create_task import FULL

SPEC = load_specification()["components"]["schemas"]


def _known(value: Any, schema: dict[str, Any], path: str = "$") -> None:
    """Every key of `value` is in the schema, and nothing is null."""
    if "$ref" in schema:
        return _known(value, SPEC[schema["$ref"].rsplit("/", 1)[1]], path)
    assert value is not None, path
    if isinstance(value, dict) and "properties" in schema:
        for key, item in value.items():
            assert key in schema["properties"], f"{path}.{key}"
            _known(item, schema["properties"][key], f"{path}.{key}")
    elif isinstance(value, list):
        for i, item in enumerate(value):
            _known(item, schema["items"], f"{path}[{i}]")
    return None


@pytest.mark.parametrize("view", list(View))
def test_documents_have_only_keys_of_the_spec_and_no_nulls(site: Site, view: View) -> None:
    for document in (FULL, {"executors": FULL["executors"]}):
        task_id = site.create(document)
        _known(site.get(f"/tasks/{task_id}?view={view}").json(), SPEC["tesTask"])


@pytest.mark.parametrize("broken", [{"state": "DONE"}, {"executors": [{}]}, {"logs": {}}, {"creation_time": 5}])
def test_the_validation_of_answers_notices_what_is_wrong(
    site: Site, monkeypatch: pytest.MonkeyPatch, broken: dict[str, Any]
) -> None:
    task_id = site.create()
    original = Views.task
    monkeypatch.setattr(Views, "task", lambda *args: original(*args) | broken)
    assert_error(site.get(f"/tasks/{task_id}?view=FULL"), 500)


def test_executors_may_be_missing_only_in_minimal(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    task_id = site.create()
    monkeypatch.setattr(Views, "task", lambda *_: {"id": task_id, "state": "QUEUED", "name": "x"})
    assert_error(site.get(f"/tasks/{task_id}"), 500)


def test_every_stored_state_is_found_by_the_state_it_is_shown_as() -> None:
    for safe in (True, False):
        for initializing in (True, False):
            views = Views(ApiSettings(client_safe_states=safe, queued_as_initializing=initializing))
            found = [state for shown in State for state in views.stored_states(shown) - NO_STATE]
            assert sorted(found) == sorted(set(State) - NO_STATE)
            assert views.stored_states(None) == frozenset()


def test_storage_is_made_from_the_usable_schemes() -> None:
    policy = Policy(
        url_schemes_in=frozenset({"ftp"}), url_schemes_out=frozenset({"s3", "file"}), file_roots=("/a", "/b")
    )
    assert usable_storage(policy) == ["ftp://", "s3://", "file:///a", "file:///b"]
    assert usable_storage(Policy(url_schemes_in=frozenset(), url_schemes_out=frozenset())) == []
