"""GET /tasks/{id}/wait and POST /tasks:wait."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx
import pytest

from poiesis.api.extensions import wait
from poiesis.domain.naming import new_task_id
from poiesis.domain.states import State
from poiesis.testing.clock import START
from tests.unit.api.service import Site, assert_error

BASE = "/poiesis/v1"
UNKNOWN = new_task_id(START)


def _end(site: Site, task_id: str, state: State = State.SYSTEM_ERROR) -> None:
    site.change(task_id, state=state)
    site.events.append(task_id, state)


def _during(site: Site, method: str, path: str, change: Any, **kwargs: Any) -> tuple[dict[str, Any], float]:
    """The answer to a request during which `change` happens, and how long after it."""

    async def main() -> tuple[dict[str, Any], float]:
        transport = httpx.ASGITransport(app=site.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as client:
            waiting = asyncio.create_task(client.request(method, BASE + path, timeout=30, **kwargs))
            await asyncio.sleep(0.4)
            assert not waiting.done()
            change()
            begin = time.monotonic()
            response = await waiting
            assert response.status_code == 200, response.text
            body: dict[str, Any] = response.json()
            return body, time.monotonic() - begin

    return asyncio.run(main())


class TestOne:
    def test_answers_as_soon_as_the_task_has_ended(self, site: Site) -> None:
        task_id = site.create()
        answer, after_s = _during(site, "GET", f"/tasks/{task_id}/wait?timeout=60", lambda: _end(site, task_id))
        assert answer == {"id": task_id, "state": "SYSTEM_ERROR", "reached": True}
        assert after_s < 5

    def test_a_change_of_another_kind_does_not_end_it(self, site: Site) -> None:
        task_id = site.create()
        site.events.append(task_id, State.INITIALIZING)
        answer = site.client.get(f"{BASE}/tasks/{task_id}/wait?timeout=1").json()
        assert answer == {"id": task_id, "state": "QUEUED", "reached": False}

    def test_a_task_that_has_ended_is_answered_at_once(self, site: Site) -> None:
        task_id = site.create()
        _end(site, task_id)
        assert site.client.get(f"{BASE}/tasks/{task_id}/wait?timeout=60").json()["reached"] is True

    def test_from_answers_when_the_state_is_another_one(self, site: Site) -> None:
        task_id = site.create()
        path = f"/tasks/{task_id}/wait?timeout=60&from=queued"
        answer, _ = _during(site, "GET", path, lambda: _end(site, task_id, State.INITIALIZING))
        assert answer == {"id": task_id, "state": "INITIALIZING", "reached": True}
        assert site.client.get(BASE + path).json()["reached"] is True

    def test_a_lost_event_costs_seconds_only(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(wait, "LOST_EVENT_S", 0.2)
        task_id = site.create()
        answer, _ = _during(
            site, "GET", f"/tasks/{task_id}/wait?timeout=60", lambda: site.change(task_id, state=State.SYSTEM_ERROR)
        )
        assert answer["reached"] is True

    @pytest.mark.parametrize("timeout", ["-1", "61", "x", "1.5"])
    def test_other_time_outs_are_refused(self, site: Site, timeout: str) -> None:
        assert_error(site.client.get(f"{BASE}/tasks/{site.create()}/wait?timeout={timeout}"), 400, "invalid_request")

    def test_an_unknown_task_is_404(self, site: Site) -> None:
        assert_error(site.client.get(f"{BASE}/tasks/x/wait?timeout=9"), 404, "unknown_task")

    def test_the_store_away_is_503(self, site: Site) -> None:
        task_id = site.create()
        site.repository.down = True
        assert_error(site.client.get(f"{BASE}/tasks/{task_id}/wait"), 503)


class TestMany:
    def test_answers_when_the_first_has_ended(self, site: Site) -> None:
        ids = [site.create() for _ in range(3)]
        body = {"ids": [*ids, UNKNOWN], "timeout": 60}
        answer, after_s = _during(site, "POST", "/tasks:wait", lambda: _end(site, ids[1]), json=body)
        assert answer["reached"] is True
        assert [t["state"] for t in answer["tasks"]] == ["QUEUED", "SYSTEM_ERROR", "QUEUED"]
        assert answer["unknown"] == [UNKNOWN]
        assert after_s < 5

    def test_until_all_waits_for_all(self, site: Site) -> None:
        ids = [site.create() for _ in range(2)]
        _end(site, ids[0])
        body = {"ids": ids, "until": "ALL", "timeout": 60}
        answer, _ = _during(site, "POST", "/tasks:wait", lambda: _end(site, ids[1]), json=body)
        assert answer["reached"] is True
        assert {t["state"] for t in answer["tasks"]} == {"SYSTEM_ERROR"}

    def test_only_unknown_tasks_are_404(self, site: Site) -> None:
        assert_error(site.client.post(f"{BASE}/tasks:wait", json={"ids": ["x"]}), 404, "unknown_task")

    @pytest.mark.parametrize(
        "document", [{}, {"ids": []}, {"ids": ["x"], "timeout": 61}, {"ids": ["x"], "until": "SOME"}]
    )
    def test_other_bodies_are_refused(self, site: Site, document: Any) -> None:
        assert_error(site.client.post(f"{BASE}/tasks:wait", json=document), 400, "invalid_request")
