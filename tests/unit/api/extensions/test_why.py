"""GET /tasks/{id}/why; the sentences are tested in tests/unit/domain/test_why.py."""

from __future__ import annotations

from poiesis.domain.states import Stage, State
from poiesis.domain.task import TaskLog
from poiesis.testing.clock import START
from tests.unit.api.service import Site, assert_error


def test_a_task_that_waits(site: Site) -> None:
    task_id = site.create()
    site.change(task_id, waiting="QuotaExceeded: pods: 10 of 10 used", waiting_since=START)
    answer = site.client.get(f"/poiesis/v1/tasks/{task_id}/why").json()
    assert answer["state"] == "QUEUED"
    assert answer["why"] == "The task waits because the quota of the cluster is used up: pods: 10 of 10 used."
    assert answer["waiting_since"].startswith("20")


def test_a_task_that_failed(site: Site) -> None:
    task_id = site.create()
    log = TaskLog(metadata={"failure_reason": "NotFound", "failure_message": "s3://b/k does not exist"})
    site.change(task_id, state=State.SYSTEM_ERROR, stage=Stage.DONE, attempt=2, log=log)
    answer = site.client.get(f"/poiesis/v1/tasks/{task_id}/why").json()
    assert answer["why"] == "The task failed after 2 attempts because a file does not exist: s3://b/k does not exist."
    assert answer["attempt"] == 2
    assert "waiting_since" not in answer


def test_an_unknown_task_is_404(site: Site) -> None:
    assert_error(site.client.get("/poiesis/v1/tasks/x/why"), 404, "unknown_task")
