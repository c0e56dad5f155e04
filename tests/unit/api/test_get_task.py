"""GET /tasks/{id}: each view exactly, and states as a site shows them."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from poiesis.config import ApiSettings
from poiesis.domain.states import Stage, State
from poiesis.domain.task import ExecutorLog, OutputFileLog, TaskId, TaskLog
from tests.unit.api.service import HELLO, Site, assert_error

AT = datetime(2026, 3, 2, 8, 15, 30, 250000, tzinfo=UTC)
LOG = TaskLog(
    logs=(
        ExecutorLog(0, AT, AT + timedelta(seconds=1), "out", "err"),
        ExecutorLog(3, AT.astimezone(timezone(timedelta(hours=2))), None, "", "no"),
    ),
    outputs=(OutputFileLog("s3://b/out", "/data/out", 2**60),),
    metadata={"failure_reason": "ExecutorFailed"},
    start_time=AT,
    end_time=AT + timedelta(seconds=2),
    system_logs=("Something was repeated.",),
)
DOCUMENT: dict[str, Any] = {
    "name": "all",
    "description": "of it",
    "inputs": [{"content": "text", "path": "/data/in"}, {"url": "s3://b/d/", "path": "/data/d", "type": "DIRECTORY"}],
    "outputs": [{"url": "s3://b/out", "path": "/data/out"}],
    "resources": {"cpu_cores": 0.5, "ram_gb": 1.25, "backend_parameters": {"gpu": "1"}, "zones": ["z"]},
    "executors": [
        {"image": "a", "command": ["x"], "env": {"A": "b"}, "stdout": "/data/out"},
        {"image": "b", "command": ["y"], "ignore_error": True},
    ],
    "volumes": ["/vol"],
    "tags": {"k": "v"},
}
BASIC: dict[str, Any] = {
    "state": "EXECUTOR_ERROR",
    "name": "all",
    "description": "of it",
    "inputs": [
        {"path": "/data/in", "type": "FILE"},
        {"url": "s3://b/d/", "path": "/data/d", "type": "DIRECTORY"},
    ],
    "outputs": [{"url": "s3://b/out", "path": "/data/out", "type": "FILE"}],
    "resources": {"cpu_cores": 1, "ram_gb": 1.25, "backend_parameters": {"gpu": "1"}, "zones": ["z"]},
    "executors": DOCUMENT["executors"],
    "volumes": ["/vol"],
    "tags": {"k": "v"},
    "logs": [
        {
            "logs": [
                {
                    "exit_code": 0,
                    "start_time": "2026-03-02T08:15:30.250000+00:00",
                    "end_time": "2026-03-02T08:15:31.250000+00:00",
                },
                {"exit_code": 3, "start_time": "2026-03-02T08:15:30.250000+00:00"},
            ],
            "outputs": [{"url": "s3://b/out", "path": "/data/out", "size_bytes": str(2**60)}],
            "metadata": {"failure_reason": "ExecutorFailed"},
            "start_time": "2026-03-02T08:15:30.250000+00:00",
            "end_time": "2026-03-02T08:15:32.250000+00:00",
        }
    ],
    "creation_time": "2026-01-31T12:00:00.000000+00:00",
}


def _full(basic: dict[str, Any]) -> dict[str, Any]:
    log = basic["logs"][0]
    executors = [
        log["logs"][0] | {"stdout": "out", "stderr": "err"},
        log["logs"][1] | {"stdout": "", "stderr": "no"},
    ]
    return basic | {
        "inputs": [basic["inputs"][0] | {"content": "text"}, basic["inputs"][1]],
        "logs": [log | {"logs": executors, "system_logs": ["Something was repeated."]}],
    }


@pytest.fixture
def ended(site: Site) -> str:
    task_id = site.create(DOCUMENT)
    site.change(task_id, state=State.EXECUTOR_ERROR, log=LOG, stage=Stage.DONE)
    return task_id


class TestViews:
    def test_minimal_is_only_id_and_state_and_the_default(self, site: Site, ended: str) -> None:
        for query in ("", "?view=", "?view=MINIMAL", "?view=minimal", "?view=FULL&view=MINIMAL", "?other=1"):
            assert site.get(f"/tasks/{ended}{query}").json() == {"id": ended, "state": "EXECUTOR_ERROR"}

    def test_basic_is_everything_but_contents_and_long_logs(self, site: Site, ended: str) -> None:
        assert site.get(f"/tasks/{ended}?view=basic").json() == {"id": ended} | BASIC

    def test_full_is_everything(self, site: Site, ended: str) -> None:
        assert site.get(f"/tasks/{ended}?view=Full").json() == {"id": ended} | _full(BASIC)

    def test_a_new_task_has_every_list_that_clients_read(self, site: Site) -> None:
        task_id = site.create()
        document = site.get(f"/tasks/{task_id}?view=FULL").json()
        assert (document["inputs"], document["outputs"], document["tags"]) == ([], [], {})
        assert document["logs"] == [{"logs": [], "outputs": [], "metadata": {}, "system_logs": []}]

    def test_an_unknown_view_is_refused(self, site: Site, ended: str) -> None:
        body = assert_error(site.get(f"/tasks/{ended}?view=ALL"), 400, "invalid_request")
        assert body["problems"] == [{"path": "view", "message": "must be one of: MINIMAL, BASIC, FULL"}]

    def test_a_dropped_backend_parameter_is_in_the_system_log(self, site: Site) -> None:
        task_id = site.create(HELLO | {"resources": {"backend_parameters": {"colour": "red"}}})
        assert "'colour'" in site.get(f"/tasks/{task_id}?view=FULL").json()["logs"][0]["system_logs"][0]


class TestARunningTask:
    @pytest.fixture
    def running(self, site: Site) -> str:
        task_id = site.create(DOCUMENT)
        logs = (ExecutorLog(0, AT, AT, "one", ""), ExecutorLog(None, AT, None, "so far", "warning"))
        site.change(task_id, state=State.INITIALIZING)
        site.change(
            task_id, state=State.RUNNING, stage=Stage.RUN, log=replace(LOG, logs=logs, end_time=None, metadata={})
        )
        return task_id

    def test_has_only_log_entries_of_ended_executors(self, site: Site, running: str) -> None:
        for view in ("BASIC", "FULL"):
            log = site.get(f"/tasks/{running}?view={view}").json()["logs"][0]
            assert [entry["exit_code"] for entry in log["logs"]] == [0]

    def test_shows_its_live_tail_in_the_metadata_of_full(self, site: Site, running: str) -> None:
        log = site.get(f"/tasks/{running}?view=FULL").json()["logs"][0]
        assert log["metadata"] == {"live_executor": "1", "live_stdout": "so far", "live_stderr": "warning"}
        assert site.get(f"/tasks/{running}?view=BASIC").json()["logs"][0]["metadata"] == {}

    def test_is_refreshed_when_full_is_read(self, site: Site, running: str) -> None:
        site.queue.published.clear()
        site.get(f"/tasks/{running}?view=FULL")
        assert site.queue.published == [(TaskId(running), Stage.RUN)]


class TestStates:
    def test_a_running_task_is_canceling_as_soon_as_it_is_canceled(self, site: Site) -> None:
        task_id = site.create()
        site.change(task_id, state=State.INITIALIZING)
        site.change(task_id, state=State.RUNNING)

        assert site.post(f"/tasks/{task_id}:cancel").status_code == 200

        assert site.get(f"/tasks/{task_id}").json()["state"] == "CANCELING"
        assert [t["id"] for t in site.get("/tasks?state=CANCELING").json()["tasks"]] == [task_id]

    def test_preempted_is_shown_where_configured(self) -> None:
        site = Site(api=ApiSettings(preempted_as_system_error=False))
        task_id = site.create()
        site.change(task_id, state=State.INITIALIZING)
        site.change(task_id, state=State.PREEMPTED, stage=Stage.DONE)

        assert site.get(f"/tasks/{task_id}").json()["state"] == "PREEMPTED"

    @pytest.mark.parametrize(
        ("client_safe", "as_initializing", "shown"),
        [
            (True, False, {State.CANCELING: "RUNNING", State.PREEMPTED: "SYSTEM_ERROR", State.QUEUED: "QUEUED"}),
            (False, False, {State.CANCELING: "CANCELING", State.PREEMPTED: "SYSTEM_ERROR", State.QUEUED: "QUEUED"}),
            (True, True, {State.QUEUED: "INITIALIZING", State.RUNNING: "RUNNING"}),
        ],
    )
    def test_are_shown_as_configured(self, client_safe: bool, as_initializing: bool, shown: dict[State, str]) -> None:
        site = Site(api=ApiSettings(client_safe_states=client_safe, queued_as_initializing=as_initializing))
        ways = {
            State.CANCELING: [State.CANCELING],
            State.PREEMPTED: [State.INITIALIZING, State.PREEMPTED],
            State.RUNNING: [State.RUNNING],
        }
        for state, expected in shown.items():
            task_id = site.create()
            for step in ways.get(state, []):
                site.change(task_id, state=step)
            for view in ("MINIMAL", "BASIC", "FULL"):
                assert site.get(f"/tasks/{task_id}?view={view}").json()["state"] == expected
            found = site.get(f"/tasks?state={expected}").json()["tasks"]
            assert task_id in [task["id"] for task in found]
            if expected != state:
                assert site.get(f"/tasks?state={state}").json() == {"tasks": []}


class TestAnUnknownTask:
    @pytest.mark.parametrize(
        "task_id",
        [
            "x",
            "0p4qrl296007tvttajbu2hepqs",
            "0p4qrl296007tvttajbu2hepqs:cancel",
            "%00",
            "%F0%9F%98%80",
            "..%2e",
            "a" * 5000,
        ],
    )
    def test_is_404(self, site: Site, task_id: str) -> None:
        assert_error(site.get(f"/tasks/{task_id}?view=FULL"), 404, "unknown_task")

    def test_is_503_while_the_store_is_down(self, site: Site) -> None:
        task_id = site.create()
        site.repository.down = True
        assert_error(site.get(f"/tasks/{task_id}"), 503, "repository_unavailable")
