"""POST /tasks/{id}:rerun."""

from __future__ import annotations

import json
from typing import Any

import pytest
from httpx import Response

from tests.unit.api.service import HELLO, Site, assert_error, paths
from tests.unit.api.test_create_task import FULL


def _rerun(site: Site, task_id: str, patch: Any = None, kind: str = "application/merge-patch+json") -> Response:
    path = f"/poiesis/v1/tasks/{task_id}:rerun"
    if patch is None:
        response: Response = site.client.post(path)
    else:
        response = site.client.post(path, content=json.dumps(patch), headers={"Content-Type": kind})
    return response


def test_without_changes_it_is_a_copy_linked_to_its_original(site: Site) -> None:
    original = site.create({**FULL, "resources": {"cpu_cores": 1.5}})
    answer = _rerun(site, original)
    assert answer.status_code == 200, answer.text
    task_id = answer.json()["id"]
    assert answer.json() == {"id": task_id, "rerun_of": original}
    old, new = (site.get(f"/tasks/{i}?view=FULL").json() for i in (original, task_id))
    assert new["tags"] == {**old["tags"], "rerun_of": original}
    for key in ("name", "description", "inputs", "outputs", "executors", "volumes", "resources"):
        assert new[key] == old[key], key
    found = site.get(f"/tasks?tag_key=rerun_of&tag_value={original}").json()["tasks"]
    assert [task["id"] for task in found] == [task_id]


@pytest.mark.parametrize(
    "kind", ["application/json", "application/merge-patch+json", "application/merge-patch+json; charset=utf-8"]
)
def test_changes_are_merged(site: Site, kind: str) -> None:
    original = site.create({**HELLO, "resources": {"cpu_cores": 2, "ram_gb": 4}, "tags": {"a": "1", "b": "2"}})
    patch = {"resources": {"ram_gb": 8, "cpu_cores": None}, "tags": {"a": None}, "name": "again"}
    task_id = _rerun(site, original, patch, kind).json()["id"]
    task = site.get(f"/tasks/{task_id}?view=FULL").json()
    assert task["resources"] == {"ram_gb": 8}
    assert task["tags"] == {"b": "2", "rerun_of": original}
    assert task["name"] == "again"


@pytest.mark.parametrize(
    ("patch", "problem"),
    [({"executors": None}, "$.executors"), ({"executors": [{"image": 1, "command": ["x"]}]}, "$.executors[0].image"),
     ({"tags": []}, "$.tags"),
     ({"inputs": [{"path": "x", "url": "s3://b/k"}]}, "$.inputs[0].path")],
)  # fmt: skip
def test_the_result_is_checked_like_any_task(site: Site, patch: Any, problem: str) -> None:
    original = site.create()
    response = _rerun(site, original, patch)
    assert_error(response, 400, "invalid_task")
    assert problem in paths(response)
    assert site.stored() == 1


@pytest.mark.parametrize("patch", [[], "x", 1])
def test_the_changes_are_an_object(site: Site, patch: Any) -> None:
    assert_error(_rerun(site, site.create(), patch), 400, "invalid_request")


@pytest.mark.parametrize(
    ("patch", "place", "name"),
    [({"resource": {"ram_gb": 8}}, "$", "resource"), ({"resources": {"ram": 8}}, "$.resources", "ram"),
     ({"executors": [{"image": "a", "command": ["b"]}, {"image": "a", "command": ["b"], "cmd": None}]}, "$.executors[1]", "cmd")],
)  # fmt: skip
def test_an_unknown_field_is_refused_by_its_name(site: Site, patch: Any, place: str, name: str) -> None:
    response = _rerun(site, site.create(), patch)
    assert_error(response, 400, "invalid_task")
    assert response.json()["message"].startswith(f"{place}: unknown field {name!r}: must be one of: ")
    assert site.stored() == 1


def test_read_only_fields_and_keys_of_maps_are_not_unknown(site: Site) -> None:
    original = site.create({**HELLO, "executors": [{**HELLO["executors"][0], "env": {"A": "1"}}]})
    shown = site.get(f"/tasks/{original}?view=FULL").json()
    assert _rerun(site, original, {**shown, "tags": {"x": "1"}}).status_code == 200


def test_deep_changes_are_refused(site: Site) -> None:
    deep = '{"a":' * 20_000 + "1" + "}" * 20_000
    response = site.client.post(
        f"/poiesis/v1/tasks/{site.create()}:rerun", content=deep, headers={"Content-Type": "application/json"}
    )
    assert_error(response, 400)


def test_an_unknown_task_is_404(site: Site) -> None:
    assert_error(_rerun(site, "x"), 404, "unknown_task")
