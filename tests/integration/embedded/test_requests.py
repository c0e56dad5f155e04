"""Invalid requests: a clear response without internals, nothing stored."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.integration.embedded.service import Answer, Document, Service, request, sh

EXECUTOR: Document = {"image": "alpine", "command": ["true"]}
DUPLICATE = [{"path": "/data/x", "content": "1"}, {"path": "/data/x", "content": "2"}]

BAD: list[tuple[str, Any, str]] = [  # name, document, path of the problem
    ("no object", [], "$"),
    ("null", None, "$"),
    ("no executors", {}, "$.executors"),
    ("empty executors", {"executors": []}, "$.executors"),
    ("executors as an object", {"executors": EXECUTOR}, "$.executors"),
    ("no image", {"executors": [{"command": ["true"]}]}, "$.executors[0].image"),
    ("no command", {"executors": [{"image": "a"}]}, "$.executors[0].command"),
    ("command as text", {"executors": [{"image": "a", "command": "true"}]}, "$.executors[0].command"),
    ("empty command", {"executors": [{"image": "a", "command": []}]}, "$.executors[0].command"),
    ("number in a command", {"executors": [{"image": "a", "command": ["x", 1]}]}, "$.executors[0].command[1]"),
    ("NUL in a command", {"executors": [{"image": "a", "command": ["a\0b"]}]}, "$.executors[0].command[0]"),
    ("relative workdir", {"executors": [{**EXECUTOR, "workdir": "w"}]}, "$.executors[0].workdir"),
    ("relative stdout", {"executors": [EXECUTOR, {**EXECUTOR, "stdout": "o"}]}, "$.executors[1].stdout"),
    ("env of numbers", {"executors": [{**EXECUTOR, "env": {"A": 1}}]}, "$.executors[0].env"),
    ("relative input", {"executors": [EXECUTOR], "inputs": [{"path": "in", "content": ""}]}, "$.inputs[0].path"),
    ("input of nothing", {"executors": [EXECUTOR], "inputs": [{"path": "/in"}]}, "$.inputs[0]"),
    (
        "input of a parent",
        {"executors": [EXECUTOR], "inputs": [{"path": "/a/../b", "content": ""}]},
        "$.inputs[0].path",
    ),
    ("unknown scheme", {"executors": [EXECUTOR], "inputs": [{"path": "/a", "url": "gopher://h/x"}]}, "$.inputs[0].url"),
    (
        "unknown type",
        {"executors": [EXECUTOR], "inputs": [{"path": "/a", "content": "", "type": "LINK"}]},
        "$.inputs[0].type",
    ),
    ("two inputs at a path", {"executors": [EXECUTOR], "inputs": DUPLICATE}, "$.inputs[1].path"),
    (
        "an input below a file",
        {"executors": [EXECUTOR], "inputs": [{"path": "/a", "content": ""}, {"path": "/a/b", "content": ""}]},
        "$.inputs[1].path",
    ),
    (
        "content too large",
        {"executors": [EXECUTOR], "inputs": [{"path": "/a", "content": "x" * 1_100_000}]},
        "$.inputs[0].content",
    ),
    ("output without url", {"executors": [EXECUTOR], "outputs": [{"path": "/o"}]}, "$.outputs[0]"),
    (
        "wildcard without prefix",
        {"executors": [EXECUTOR], "outputs": [{"path": "/o/*", "url": "s3://b/o"}]},
        "$.outputs[0].path_prefix",
    ),
    ("relative volume", {"executors": [EXECUTOR], "volumes": ["v"]}, "$.volumes[0]"),
    ("negative memory", {"executors": [EXECUTOR], "resources": {"ram_gb": -1}}, "$.resources.ram_gb"),
    ("cores as text", {"executors": [EXECUTOR], "resources": {"cpu_cores": "many"}}, "$.resources.cpu_cores"),
    (
        "unknown strict parameter",
        {"executors": [EXECUTOR], "resources": {"backend_parameters": {"vm": "x"}, "backend_parameters_strict": True}},
        "$.resources.backend_parameters.vm",
    ),
    (
        "bad parameter",
        {"executors": [EXECUTOR], "resources": {"backend_parameters": {"time_limit": "soon"}}},
        "$.resources.backend_parameters.time_limit",
    ),
    ("tags as a list", {"executors": [EXECUTOR], "tags": ["a"]}, "$.tags"),
]


def assert_problem(answer: Answer, status: int) -> dict[str, Any]:
    """The body of a refusal: JSON for programs, a sentence for users, no internals."""
    assert answer.status == status, answer.text
    document: dict[str, Any] = answer.document
    assert document["status"] == status and document["message"]
    for inner in ("Traceback", ".py", "poiesis.", 'File \\"', "site-packages"):
        assert inner not in answer.text
    return document


@pytest.mark.parametrize(("document", "path"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_a_broken_rule_is_reported_with_its_path_and_nothing_is_stored(
    service: Service, document: Any, path: str
) -> None:
    before = service.count()
    problem = assert_problem(request("POST", f"{service.api}/tasks", json.dumps(document).encode()), 400)
    assert any(p["path"].startswith(path) and p["message"] for p in problem["problems"]), problem
    assert service.count() == before


def test_all_problems_are_reported_together(service: Service) -> None:
    document = {
        "executors": [{"image": "a", "command": []}],
        "volumes": ["v"],
        "inputs": [{"path": "x", "content": ""}],
    }
    problem = assert_problem(request("POST", f"{service.api}/tasks", document), 400)
    assert len({p["path"] for p in problem["problems"]}) == 3


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b'{"a": NaN', b"[" * 5000, b"executors=1"], ids=range(6))
def test_a_body_that_is_not_json_is_refused(service: Service, body: bytes) -> None:
    before = service.count()
    assert_problem(request("POST", f"{service.api}/tasks", body), 400)
    assert service.count() == before


def test_a_wrong_content_type_is_refused(service: Service) -> None:
    before = service.count()
    body = json.dumps({"executors": [EXECUTOR]}).encode()
    for kind in ("text/plain", "application/x-www-form-urlencoded", "application/xml"):
        assert_problem(request("POST", f"{service.api}/tasks", body, Content_Type=kind), 415)
    assert service.count() == before
    assert request("POST", f"{service.api}/tasks", body, Content_Type="application/json; charset=utf-8").status == 200


def test_a_body_of_ten_megabytes_is_refused(service: Service) -> None:
    before = service.count()
    document = {"executors": [EXECUTOR], "description": "x" * (10 * 1024 * 1024)}
    assert_problem(request("POST", f"{service.api}/tasks", document), 413)
    assert service.count() == before


def test_unknown_tasks_and_paths_are_404(service: Service) -> None:
    for task_id in ("nothing", "0pgfli30n425vng88ufe4354qg", "..%2F..%2Fetc", "x" * 300, "%00", "é"):
        assert_problem(request("GET", f"{service.api}/tasks/{task_id}".replace("é", "%C3%A9")), 404)
    assert_problem(request("POST", f"{service.api}/tasks/nothing:cancel"), 404)
    for path in (
        "/v2/tasks",
        "/ga4gh/tes/v2/tasks",
        "/ga4gh/tes/v1/jobs",
        "/tasks",
        "/api",
        "/v1/ga4gh/tes/v1/service-info",
    ):
        assert_problem(request("GET", service.url + path), 404)
    assert request("DELETE", f"{service.api}/tasks").status in (404, 405)


@pytest.mark.parametrize("query", ["view=SOME", "page_size=-1", "page_size=many", "page_token=made-up", "state=DONE"])
def test_a_wrong_query_is_refused(service: Service, query: str) -> None:
    problem = assert_problem(request("GET", f"{service.api}/tasks?{query}"), 400)
    assert query.partition("=")[0] in json.dumps(problem)


def test_a_wrong_view_of_a_task_is_refused(service: Service) -> None:
    task = service.run(sh("true"))
    assert_problem(request("GET", f"{service.api}/tasks/{task['id']}?view=ALL"), 400)
    assert request("GET", f"{service.api}/tasks/{task['id']}?view=full").status == 200


def test_the_same_api_is_served_at_both_prefixes(service: Service) -> None:
    task = service.run(sh("true"))
    for prefix in ("/v1", "/ga4gh/tes/v1"):
        assert request("GET", f"{service.url}{prefix}/tasks/{task['id']}?view=FULL").document == task
        assert request("GET", f"{service.url}{prefix}/service-info").document["type"]["artifact"] == "tes"
