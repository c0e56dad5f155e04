"""Any request is answered with a success or an `Error`, never 500, and a refused task is not stored."""

from __future__ import annotations

import copy
import json
from functools import cache
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from tests.unit.api.service import BASE, Site, assert_error
from tests.unit.api.test_create_task import FULL

KEYS = sorted(
    {*FULL, *FULL["inputs"][0], *FULL["outputs"][1], *FULL["resources"], *FULL["executors"][0], "id", "x", ""}
)
TEXTS = st.one_of(
    st.text(max_size=8), st.sampled_from(["/data/x", "s3://b/k", "FILE", "file:///srv/data/x", "/", "\ud800"])
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.sampled_from(KEYS) | TEXTS, below, max_size=4),
    max_leaves=12,
)


@cache
def _site() -> Site:
    return Site()


def _post(document: Any) -> None:
    site = _site()
    before = site.stored()
    response = site.post("/tasks", json.dumps(document))
    if response.status_code == 200:
        task_id = response.json()["id"]
        for view in ("MINIMAL", "BASIC", "FULL"):  # checked against the spec by the response validation
            assert site.get(f"/tasks/{task_id}?view={view}").status_code == 200
    else:
        assert_error(response, 400)
        assert site.stored() == before


@given(VALUES)
@example({"executors": [{"image": "i", "command": ["c"]}], "resources": {"ram_gb": 1e308}})
@example({"executors": [{"image": "i", "command": ["c"]}], "resources": {"cpu_cores": -0.0}})
@example({"executors": [{"image": "i", "command": ["c"]}], "tags": {"\ud800": "x"}})
@example({"executors": [{"image": "i", "command": ["c"]}], "inputs": [{"path": "/d/x", "content": "\ud800"}]})
def test_any_json_is_answered(document: Any) -> None:
    _post(document)


@given(st.data())
def test_any_change_of_a_good_task_is_answered(data: st.DataObject) -> None:
    document: Any = copy.deepcopy(FULL)
    for _ in range(data.draw(st.integers(1, 3))):
        place: Any = document
        while True:
            keys = sorted(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = data.draw(st.sampled_from(keys))
            if isinstance(place[key], dict | list) and data.draw(st.booleans()):
                place = place[key]
                continue
            place[key] = data.draw(VALUES)
            break
    _post(document)


@given(st.binary(max_size=60))
def test_any_bytes_are_answered(body: bytes) -> None:
    response = _site().client.post(f"{BASE}/tasks", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 400


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["view", "state", "name_prefix", "tag_key", "tag_value", "page_size", "page_token", "x"]),
            st.one_of(st.text(max_size=12), st.sampled_from(["FULL", "RUNNING", "5", "0", "", ","])),
        ),
        max_size=5,
    )
)
def test_any_query_is_answered(pairs: list[tuple[str, str]]) -> None:
    pairs = [(name, value.encode("utf-8", "replace").decode()) for name, value in pairs]
    response = _site().client.get(f"{BASE}/tasks", params=pairs)
    assert response.status_code in (200, 400), response.text
    if response.status_code == 400:
        assert_error(response, 400, "invalid_request")


@given(st.binary(max_size=40))
def test_any_raw_query_is_answered(query: bytes) -> None:
    from poiesis.api.query import read_query
    from poiesis.domain.errors import InvalidRequest

    try:
        read_query(query, {"view", "state", "page_size", "page_token", "tag_key", "tag_value", "name_prefix"})
    except InvalidRequest as error:
        assert error.problems


@given(st.text(max_size=30))
def test_any_id_is_answered(task_id: str) -> None:
    from urllib.parse import quote

    for path in ("", ":cancel"):
        response = _site().get(f"/tasks/{quote(task_id.encode('utf-8', 'replace'), safe='')}{path}")
        assert response.status_code in (200, 404), response.text
