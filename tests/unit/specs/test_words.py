"""Sentences of TES 1.1 that no other test holds; docs/compliance.md has all of them."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from poiesis.domain.policy import Policy
from poiesis.domain.states import Stage, State
from poiesis.domain.task import ExecutorLog, OutputFileLog, TaskLog
from tests.unit.api.service import HELLO, Site, assert_error, paths

RFC_3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")
AT = datetime(2026, 3, 2, 8, 15, tzinfo=UTC)


@pytest.fixture
def site() -> Site:
    return Site()


def shown(site: Site, document: dict[str, Any]) -> dict[str, Any]:
    """A task as FULL shows it, after it was created."""
    return dict(site.get(f"/tasks/{site.create(document)}?view=FULL").json())


@pytest.mark.parametrize(
    ("query", "tags", "matches"),
    [
        ("tag_key=foo&tag_value=bar", {"foo": "bar"}, True),
        ("tag_key=foo&tag_value=bar", {"foo": "bat"}, False),
        ("tag_key=foo&tag_value=", {"foo": ""}, True),
        ("tag_key=foo&tag_value=bar&tag_key=baz&tag_value=bat", {"foo": "bar", "baz": "bat"}, True),
        ("tag_key=foo&tag_value=bar", {"foo": "bar", "baz": "bat"}, True),
        ("tag_key=foo&tag_value=bar&tag_key=baz&tag_value=bat", {"foo": "bar"}, False),
        ("tag_key=foo", {"foo": "bar"}, True),
        ("tag_key=foo", {}, False),
    ],
)
def test_the_table_of_tag_filters(site: Site, query: str, tags: dict[str, str], matches: bool) -> None:
    """Spec: ListTasks, tag_key: every row of its table."""
    task_id = site.create(HELLO | {"tags": tags})
    found = [task["id"] for task in site.get(f"/tasks?{query}").json()["tasks"]]
    assert found == ([task_id] if matches else [])


def test_content_of_128_kib_is_accepted() -> None:
    site = Site(policy=Policy())
    content = "x" * (128 * 1024)
    document = HELLO | {"inputs": [{"path": "/data/in", "content": content}]}
    assert shown(site, document)["inputs"][0]["content"] == content


def test_content_makes_the_url_unimportant(site: Site) -> None:
    unusable = {"path": "/data/in", "url": "nothing://at-all", "content": "text"}
    assert shown(site, HELLO | {"inputs": [unusable]})["inputs"][0]["content"] == "text"
    refused = site.post("/tasks", HELLO | {"inputs": [unusable | {"content": None}]})
    assert_error(refused, 400, "invalid_task")
    assert paths(refused) == ["$.inputs[0].url"]


def test_empty_content_leaves_the_url_in_force(site: Site) -> None:
    """Clients that write every field, with its default, send empty content."""
    fetched = {"path": "/data/in", "url": "s3://b/k", "content": ""}
    shown_input = shown(site, HELLO | {"inputs": [fetched]})["inputs"][0]
    assert (shown_input["url"], "content" in shown_input) == ("s3://b/k", False)
    refused = site.post("/tasks", HELLO | {"inputs": [fetched | {"url": "nothing://at-all"}]})
    assert paths(refused) == ["$.inputs[0].url"]
    for empty in ({"path": "/data/in", "content": ""}, {"path": "/data/in", "content": "", "url": ""}):
        assert shown(site, HELLO | {"inputs": [empty]})["inputs"][0]["content"] == ""


def test_the_type_of_a_file_is_always_shown(site: Site) -> None:
    document = HELLO | {
        "inputs": [{"path": "/a", "content": "x"}, {"path": "/b", "url": "s3://b/k/", "type": "DIRECTORY"}],
        "outputs": [{"path": "/c", "url": "s3://b/o"}],
    }
    task = shown(site, document)
    assert [file["type"] for file in task["inputs"] + task["outputs"]] == ["FILE", "DIRECTORY", "FILE"]


def test_a_prefix_without_wildcards_is_ignored(site: Site) -> None:
    for prefix in ("/elsewhere", "relative", "/"):
        output = {"path": "/data/out", "url": "s3://b/o", "path_prefix": prefix}
        response = site.post("/tasks", HELLO | {"outputs": [output]})
        assert response.status_code == 200, f"{prefix}: {response.text}"


@pytest.fixture
def finished(site: Site) -> dict[str, Any]:
    task_id = site.create()
    log = TaskLog(
        logs=(ExecutorLog(0, AT, AT + timedelta(seconds=1), "out", "err"),),
        outputs=(OutputFileLog("s3://b/o", "/data/o", 2**40),),
        start_time=AT,
        end_time=AT + timedelta(seconds=2),
    )
    site.change(task_id, state=State.COMPLETE, stage=Stage.DONE, log=log)
    return dict(site.get(f"/tasks/{task_id}?view=FULL").json())


def test_times_are_rfc_3339_with_an_offset(finished: dict[str, Any]) -> None:
    log = finished["logs"][0]
    times = [
        finished["creation_time"],
        *(part[name] for part in (log, log["logs"][0]) for name in ("start_time", "end_time")),
    ]
    assert all(RFC_3339.fullmatch(time) and datetime.fromisoformat(time).tzinfo for time in times), times


def test_sizes_are_strings(finished: dict[str, Any]) -> None:
    assert finished["logs"][0]["outputs"][0]["size_bytes"] == str(2**40)
