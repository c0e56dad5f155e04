"""POST /tasks/{id}:cancel, an idempotent request."""

from __future__ import annotations

import pytest

from poiesis.domain.states import Stage, State
from poiesis.domain.task import TaskId
from tests.unit.api.service import BASE, Site, assert_error


class TestCancel:
    def test_requests_the_end(self, site: Site) -> None:
        task_id = site.create()
        response = site.post(f"/tasks/{task_id}:cancel")
        assert (response.status_code, response.json()) == (200, {})
        assert site.repository.get(TaskId(task_id)).cancel_requested_at is not None
        assert site.queue.published[-1] == (TaskId(task_id), Stage.FINISH)

    def test_may_be_repeated(self, site: Site) -> None:
        task_id = site.create()
        for _ in range(3):
            assert site.post(f"/tasks/{task_id}:cancel").json() == {}

    def test_of_a_finished_task_changes_nothing(self, site: Site) -> None:
        task_id = site.create()
        before = site.change(task_id, state=State.COMPLETE, stage=Stage.DONE)
        assert site.post(f"/tasks/{task_id}:cancel").status_code == 200
        assert site.repository.get(TaskId(task_id)) == before

    @pytest.mark.parametrize("body", [b"", b"{}", b"null", b"no json"])
    @pytest.mark.parametrize("kind", ["application/json", "text/plain", ""])
    def test_ignores_the_body(self, site: Site, body: bytes, kind: str) -> None:
        task_id = site.create()
        headers = {"Content-Type": kind} if kind else {}
        assert site.client.post(f"{BASE}/tasks/{task_id}:cancel", content=body, headers=headers).status_code == 200

    @pytest.mark.parametrize("task_id", ["x", "0p4qrl296007tvttajbu2hepqs", "a:b"])
    def test_of_an_unknown_task_is_404(self, site: Site, task_id: str) -> None:
        assert_error(site.post(f"/tasks/{task_id}:cancel"), 404)

    def test_by_get_is_404(self, site: Site) -> None:
        assert_error(site.get(f"/tasks/{site.create()}:cancel"), 404, "unknown_task")

    def test_is_503_while_the_store_is_down(self, site: Site) -> None:
        task_id = site.create()
        site.repository.down = True
        assert_error(site.post(f"/tasks/{task_id}:cancel"), 503, "repository_unavailable")
