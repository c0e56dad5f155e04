"""POST /tasks:states and /tasks:cancel."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from httpx import Response

from poiesis.api import credentials
from poiesis.api.users import User
from poiesis.config import ApiSettings
from poiesis.domain.naming import new_task_id
from poiesis.domain.states import Stage, State
from poiesis.testing.clock import START
from tests.unit.api.service import HELLO, Site, assert_error, paths

BASE = "/poiesis/v1"
UNKNOWN = new_task_id(START)


def _post(site: Site, path: str, document: Any) -> Response:
    response: Response = site.client.post(BASE + path, json=document)
    return response


class TestStates:
    def test_are_those_of_the_tasks_in_the_order_of_the_ids(self, site: Site) -> None:
        first, second = site.create(), site.create()
        site.change(first, state=State.INITIALIZING)
        answer = _post(site, "/tasks:states", {"ids": [second, "x", first, UNKNOWN, first]}).json()
        assert answer == {
            "tasks": [{"id": second, "state": "QUEUED"}, {"id": first, "state": "INITIALIZING"}],
            "unknown": ["x", UNKNOWN],
        }

    @pytest.mark.parametrize(
        "document", [[], {}, {"ids": "x"}, {"ids": []}, {"ids": [1]}, {"ids": ["x"] * 1001}, {"ids": [None]}]
    )
    def test_other_bodies_are_refused(self, site: Site, document: Any) -> None:
        assert_error(_post(site, "/tasks:states", document), 400, "invalid_request")

    def test_every_problem_has_its_path(self, site: Site) -> None:
        assert paths(_post(site, "/tasks:states", {"ids": ["x", 1, None]})) == ["$.ids[1]", "$.ids[2]"]


class TestCancelByIds:
    def test_reports_what_was_done_with_each(self, site: Site) -> None:
        running, ended, canceling = site.create(), site.create(), site.create()
        site.change(ended, state=State.SYSTEM_ERROR, stage=Stage.DONE)
        site.post(f"/tasks/{canceling}:cancel")
        answer = _post(site, "/tasks:cancel", {"ids": [running, ended, canceling, UNKNOWN]}).json()
        assert answer == {
            "canceled": [running],
            "unchanged": [ended, canceling],
            "forbidden": [],
            "unknown": [UNKNOWN],
            "failed": [],
        }
        assert site.get(f"/tasks/{running}").json()["state"] == "CANCELING"

    def test_a_dry_run_only_counts(self, site: Site) -> None:
        running, ended = site.create(), site.create()
        site.change(ended, state=State.SYSTEM_ERROR, stage=Stage.DONE)
        answer = _post(site, "/tasks:cancel", {"ids": [running, ended], "dry_run": True}).json()
        assert answer == {"would_cancel": 1, "ids": [running]}
        assert site.get(f"/tasks/{running}").json()["state"] == "QUEUED"

    def test_the_store_away_is_503_before_anything_was_canceled(self, site: Site) -> None:
        task_id = site.create()
        site.repository.down = True
        assert_error(_post(site, "/tasks:cancel", {"ids": [task_id]}), 503)


class TestCancelByFilter:
    def test_in_pages_until_all_are_canceled(self, site: Site) -> None:
        ids = [site.create({**HELLO, "tags": {"run": "7"}}) for _ in range(5)]
        other = site.create({**HELLO, "tags": {"run": "8"}})
        request: dict[str, Any] = {"filter": {"tags": {"run": "7"}}, "limit": 2}
        assert _post(site, "/tasks:cancel", {**request, "dry_run": True}).json() == {
            "would_cancel": 5,
            "ids": ids[:-3:-1],
        }
        canceled = []
        while True:
            answer = _post(site, "/tasks:cancel", request).json()
            canceled += answer["canceled"]
            if "next_page_token" not in answer:
                break
            request["page_token"] = answer["next_page_token"]
        assert canceled == ids[::-1]
        assert site.get(f"/tasks/{other}").json()["state"] == "QUEUED"

    def test_by_name_and_state(self, site: Site) -> None:
        a, b = site.create({**HELLO, "name": "run-a"}), site.create({**HELLO, "name": "run-b"})
        site.change(b, state=State.INITIALIZING)
        answer = _post(site, "/tasks:cancel", {"filter": {"name_prefix": "run-", "state": "INITIALIZING"}}).json()
        assert answer["canceled"] == [b]
        assert site.get(f"/tasks/{a}").json()["state"] == "QUEUED"

    @pytest.mark.parametrize(
        "document",
        [{}, {"ids": ["x"], "filter": {}}, {"filter": {"owner": "x"}}, {"filter": {"state": "COMPLETE"}}, {"filter": {"tags": {"a": 1}}},
         {"filter": {}, "limit": 0}, {"filter": {}, "limit": 501}, {"filter": {}, "page_token": "x"}],
    )  # fmt: skip
    def test_other_requests_are_refused(self, site: Site, document: Any) -> None:
        assert_error(_post(site, "/tasks:cancel", document), 400)


class TestUsers:
    """Ada and Bob share a group; an admin sees all."""

    @pytest.fixture
    def site(self, tmp_path_factory: pytest.TempPathFactory) -> Site:
        file = tmp_path_factory.mktemp("auth") / "users.json"
        users = [("ada", False), ("bob", False), ("eve", False), ("root", True)]
        entries = [
            {
                "name": n,
                "token_hash": credentials.hash_secret(n, "bearer"),
                "admin": a,
                "groups": [] if n == "eve" else ["lab"],
            }
            for n, a in users
        ]
        import json

        file.write_text(json.dumps(entries))
        return Site(api=ApiSettings(auth=("bearer",), credentials_file=str(file)))

    def _as(self, site: Site, user: str, path: str, document: Any) -> dict[str, Any]:
        response = site.client.post(BASE + path, json=document, headers={"Authorization": f"Bearer {user}"})
        assert response.status_code == 200, response.text
        body: dict[str, Any] = response.json()
        return body

    def _create(self, site: Site, user: str) -> str:
        return site.create(headers={"Authorization": f"Bearer {user}"})

    def test_tasks_of_others_are_unknown(self, site: Site) -> None:
        task_id = self._create(site, "ada")
        assert self._as(site, "eve", "/tasks:states", {"ids": [task_id]})["unknown"] == [task_id]
        assert self._as(site, "eve", "/tasks:cancel", {"ids": [task_id]})["unknown"] == [task_id]
        assert self._as(site, "bob", "/tasks:states", {"ids": [task_id]})["unknown"] == []

    def test_members_of_the_group_may_see_and_not_cancel(self, site: Site) -> None:
        task_id = self._create(site, "ada")
        assert self._as(site, "bob", "/tasks:cancel", {"ids": [task_id]})["forbidden"] == [task_id]

    def test_a_filter_is_for_own_tasks_unless_everyone_is_asked_for(self, site: Site) -> None:
        mine, other = self._create(site, "root"), self._create(site, "ada")
        assert self._as(site, "root", "/tasks:cancel", {"filter": {}})["canceled"] == [mine]
        assert self._as(site, "eve", "/tasks:cancel", {"filter": {"everyone": True}})["canceled"] == []
        assert self._as(site, "root", "/tasks:cancel", {"filter": {"everyone": True}})["canceled"] == [other]

    def test_page_tokens_of_another_user_are_refused(self, site: Site) -> None:
        for _ in range(2):
            self._create(site, "ada")
        token = self._as(site, "ada", "/tasks:cancel", {"filter": {}, "limit": 1})["next_page_token"]
        response = site.client.post(
            f"{BASE}/tasks:cancel",
            json={"filter": {}, "limit": 1, "page_token": token},
            headers={"Authorization": "Bearer bob"},
        )
        assert_error(response, 400, "invalid_request")


def test_a_user_without_name_sees_all() -> None:
    assert replace(User(None)).access is None
