"""GET /tasks/{id}/why; the sentences are tested in tests/unit/domain/test_why.py."""

from __future__ import annotations

from datetime import timedelta

from poiesis.domain.history import Phase
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


def test_the_timeline_has_the_phases_of_every_attempt(site: Site) -> None:
    task_id = site.create()
    lost = Phase("cleanup", 1, START + timedelta(seconds=9), START + timedelta(seconds=11), "ok", "NodeLost")
    site.change(task_id, attempt=2, phases=(lost,))
    queued, cleanup, again = site.client.get(f"/poiesis/v1/tasks/{task_id}/why").json()["timeline"]
    assert (queued["name"], queued["attempt"], queued["outcome"]) == ("queued", 1, "failed")
    assert (cleanup["name"], cleanup["reason"], cleanup["end"]) == (
        "cleanup",
        "NodeLost",
        "2026-01-31T12:00:11.000000+00:00",
    )
    assert again == {"name": "queued", "attempt": 2, "start": "2026-01-31T12:00:11.000000+00:00"}


def test_an_unknown_task_is_404(site: Site) -> None:
    assert_error(site.client.get("/poiesis/v1/tasks/x/why"), 404, "unknown_task")
