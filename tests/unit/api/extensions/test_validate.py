"""POST /tasks:validate: a dry run of CreateTask."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from httpx import Response

from poiesis.api.extensions.validate import requested, site_defaults
from poiesis.api.services import SiteDefaults
from poiesis.domain.plan import plan
from poiesis.domain.policy import Policy
from poiesis.domain.task import Executor, Resources, TaskSpec
from tests.unit.api.service import HELLO, POLICY, Site, assert_error

HELLO_SPEC = TaskSpec(executors=(Executor("i", ("c",)),))
INPUT = {"path": "/data/in", "url": "s3://b/k"}
OUTPUT = {"path": "/data/out", "url": "s3://b/o"}


def _validate(site: Site, document: Any) -> dict[str, Any]:
    response: Response = site.client.post("/poiesis/v1/tasks:validate", json=document)
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


def test_a_task_without_files(site: Site) -> None:
    answer = _validate(site, HELLO)
    assert answer["valid"] is True
    container = {"name": "executor-0", "executor": 0, "image": "alpine:3.20", "waits_for": []}
    assert answer["plan"] == {
        "layout": "single",
        "pods": [{"name": "task", "init_containers": [], "containers": [container]}],
        "mounts": [],
        "scratch": [],
        "resources": {},
    }
    assert answer["defaults"] == {}
    assert site.stored() == 0


def test_unknown_fields_are_reported(site: Site) -> None:
    answer = _validate(site, {**HELLO, "resorces": {"ram_gb": 1}, "resources": {"disk": 1}})
    assert [note.partition(":")[0] for note in answer["notes"]] == ["$", "$.resources"]
    assert answer["notes"][1].startswith("$.resources: ignored the unknown field 'disk': must be one of: cpu_cores")


def test_a_task_with_files_and_a_gpu_has_three_pods_and_a_volume(site: Site) -> None:
    resources = {"backend_parameters": {"gpu": "1"}}
    answer = _validate(site, {**HELLO, "inputs": [INPUT], "outputs": [OUTPUT], "resources": resources})
    assert answer["plan"]["layout"] == "staged"
    assert [pod["name"] for pod in answer["plan"]["pods"]] == ["tif", "executor-0", "tof"]
    assert answer["plan"]["volume_bytes"] == 10 * 10**9
    assert answer["plan"]["mounts"] == ["/data"]
    assert answer["defaults"] == {"disk_gb": "10 GB, since the task does not request a size"}


def test_what_the_site_adds() -> None:
    spec = TaskSpec(executors=(), resources=Resources(ram_gb=2, backend_parameters={"gpu": "2"}))
    site = SiteDefaults(cpu_cores=0.5, ram_gb=1, queue="batch")
    assert requested(spec, site) == {"resources": {"cpu_cores": 0.5, "ram_gb": 2, "gpu": 2}, "queue": "batch"}
    assert site_defaults(spec, plan(HELLO_SPEC, POLICY), POLICY, site) == {
        "cpu_cores": "0.5, since the task does not request any",
        "queue": "batch, the queue of tasks that do not name one",
    }


@pytest.mark.parametrize(
    ("asked", "seconds", "default"),
    [(None, 3600, "1:00:00, since the task does not set a limit"), ("2h", 7200, "2:00:00, the maximum of the site"), ("5m", 300, None)],
)  # fmt: skip
def test_time_limits_of_the_site(asked: str | None, seconds: int, default: str | None) -> None:
    policy = Policy(default_time_limit=timedelta(hours=1), max_time_limit=timedelta(hours=2))
    resources = {"backend_parameters": {"time_limit": asked} if asked else {}}
    answer = _validate(Site(policy=policy), {**HELLO, "resources": resources})
    assert answer["plan"]["time_limit_seconds"] == seconds
    assert answer["defaults"].get("time_limit") == default


def test_what_would_be_dropped_is_noted(site: Site) -> None:
    answer = _validate(site, {**HELLO, "resources": {"backend_parameters": {"x": "y"}}})
    assert answer["valid"] is True
    assert any("x" in note for note in answer["notes"])


@pytest.mark.parametrize(
    ("document", "problem_paths"),
    [
        ({}, ["$.executors"]),
        ({"executors": [{"image": 1}]}, ["$.executors[0].command", "$.executors[0].image"]),
        ({**HELLO, "inputs": [{"path": "x", "url": "gopher://x"}]}, ["$.inputs[0].path", "$.inputs[0].url"]),
        ({**HELLO, "resources": {"backend_parameters": {"gpu": "many"}}}, ["$.resources.backend_parameters.gpu"]),
        ([], ["$"]),
        ("x", ["$"]),
    ],
)
def test_every_problem_is_listed_with_its_path(site: Site, document: Any, problem_paths: list[str]) -> None:
    answer = _validate(site, document)
    assert answer["valid"] is False
    assert sorted(p["path"] for p in answer["problems"]) == problem_paths
    assert "plan" not in answer


def test_finds_what_create_finds(site: Site) -> None:
    document = {**HELLO, "inputs": [{"path": "/data/x", "url": "file:///etc/passwd"}, {"path": "/data/x"}]}
    created = site.post("/tasks", document)
    assert created.status_code == 400
    assert _validate(site, document)["problems"] == created.json()["problems"]


def test_a_body_that_is_not_json_is_400(site: Site) -> None:
    response = site.client.post(
        "/poiesis/v1/tasks:validate", content=b"{", headers={"Content-Type": "application/json"}
    )
    assert_error(response, 400, "not_json")


def test_the_policy_is_that_of_the_site() -> None:
    assert _validate(Site(policy=POLICY), {**HELLO, "resources": {"backend_parameters": {"gpu": "1"}}})["notes"] == []
