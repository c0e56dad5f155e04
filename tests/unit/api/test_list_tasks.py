"""GET /tasks: filters, pages, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from poiesis.domain.states import State
from tests.unit.api.service import HELLO, Site, assert_error


def _ids(site: Site, query: str = "") -> list[str]:
    response = site.get(f"/tasks{query}")
    assert response.status_code == 200, response.text
    return [task["id"] for task in response.json()["tasks"]]


def _create(site: Site, **changes: Any) -> str:
    return site.create(HELLO | changes)


class TestAListing:
    def test_of_nothing_is_an_empty_list(self, site: Site) -> None:
        assert site.get("/tasks").json() == {"tasks": []}

    def test_is_newest_first_and_minimal(self, site: Site) -> None:
        ids = [site.create() for _ in range(3)]
        assert site.get("/tasks").json() == {"tasks": [{"id": i, "state": "QUEUED"} for i in reversed(ids)]}

    def test_has_tasks_of_every_state(self, site: Site) -> None:
        states = [state for state in State if state not in (State.UNKNOWN, State.PAUSED, State.PREEMPTED)]
        ids = [site.create() for _ in states]
        for task_id, state in zip(ids, states, strict=True):
            site.change(task_id, state=state)
        listed = site.get("/tasks").json()["tasks"]
        assert listed == [{"id": i, "state": s} for i, s in zip(ids[::-1], states[::-1], strict=True)]

    @pytest.mark.parametrize("view", ["BASIC", "full"])
    def test_shows_tasks_as_get_does(self, site: Site, view: str) -> None:
        task_id = site.create()
        assert site.get(f"/tasks?view={view}").json()["tasks"] == [site.get(f"/tasks/{task_id}?view={view}").json()]

    def test_is_503_while_the_store_is_down(self, site: Site) -> None:
        site.repository.down = True
        assert_error(site.get("/tasks"), 503, "repository_unavailable")


class TestFilters:
    def test_name_prefix_is_anchored_and_literal(self, site: Site) -> None:
        first, second = _create(site, name="align.1"), _create(site, name="realign.1")
        assert _ids(site, "?name_prefix=align") == [first]
        assert _ids(site, "?name_prefix=ALIGN") == []
        assert _ids(site, "?name_prefix=align%251") == []
        assert _ids(site, "?name_prefix=") == [second, first]

    def test_state(self, site: Site) -> None:
        waiting, running = site.create(), site.create()
        site.change(running, state=State.RUNNING)
        assert _ids(site, "?state=RUNNING") == [running]
        assert _ids(site, "?state=queued") == [waiting]
        assert _ids(site, "?state=UNKNOWN") == _ids(site, "?state=") == _ids(site) == [running, waiting]
        assert _ids(site, "?state=PAUSED") == []

    @pytest.mark.parametrize(
        ("query", "found"),
        [
            ("tag_key=lab", "ab"),
            ("tag_key=lab&tag_value=x", "a"),
            ("tag_key=lab&tag_value=", "ab"),
            ("tag_key=lab&tag_value=x&tag_key=run", "a"),
            ("tag_key=lab&tag_key=run&tag_value=&tag_value=7", "a"),
            ("tag_value=x&tag_key=lab", "a"),
            ("tag_key=lab&tag_key=lab&tag_value=x&tag_value=y", ""),
            ("tag_key=none", ""),
            ("tag_key=list&tag_value=1%2C2", "c"),
            ("tag_key=list&tag_value=1,2", "c"),
            ("tag_key=a,b", "c"),
            ("tag_key=", "abc"),
        ],
    )
    def test_tags_are_paired_by_position_and_not_split_at_commas(self, site: Site, query: str, found: str) -> None:
        named = {
            _create(site, tags={"lab": "x", "run": "7"}): "a",
            _create(site, tags={"lab": "y"}): "b",
            _create(site, tags={"list": "1,2", "a,b": ""}): "c",
        }
        assert "".join(sorted(named[i] for i in _ids(site, "?" + query))) == found

    def test_are_combined(self, site: Site) -> None:
        both = _create(site, name="n", tags={"a": "b"})
        _create(site, name="n")
        _create(site, tags={"a": "b"})
        assert _ids(site, "?name_prefix=n&tag_key=a&state=QUEUED") == [both]


class TestPages:
    def test_lose_and_repeat_nothing_while_tasks_arrive(self, site: Site) -> None:
        ids = [site.create() for _ in range(7)]
        seen, token = [], ""
        while True:
            page = site.get(f"/tasks?page_size=3&page_token={token}").json()
            seen += [task["id"] for task in page["tasks"]]
            site.create()
            if "next_page_token" not in page:
                break
            token = page["next_page_token"]
        assert seen == ids[::-1]

    def test_have_exactly_the_requested_size(self, site: Site) -> None:
        for _ in range(4):
            site.create()
        assert len(_ids(site, "?page_size=3")) == 3
        page = site.get("/tasks?page_size=4").json()
        assert len(page["tasks"]) == 4
        assert "next_page_token" not in page

    def test_have_256_tasks_by_default_and_never_more_than_2047(
        self, site: Site, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked = []
        original = site.repository.list

        def listed(where: Any, *, limit: int, after: Any, view: Any) -> Any:
            asked.append(limit)
            return original(where, limit=limit, after=after, view=view)

        monkeypatch.setattr(site.repository, "list", listed)
        for query in ("", "?page_size=", "?page_size=2047", "?page_size=2048", "?page_size=999999999999"):
            _ids(site, query)
        assert asked == [256, 256, 2047, 2047, 2047]

    @pytest.mark.parametrize("size", ["0", "-1", "x", "1.5", "1e3", "NaN", "9" * 5000])
    def test_of_an_invalid_size_are_refused(self, site: Site, size: str) -> None:
        body = assert_error(site.get(f"/tasks?page_size={size}"), 400, "invalid_request")
        assert body["problems"][0]["path"] == "page_size"

    @pytest.mark.parametrize("token", ["x", "0p4qrl296007tvttajbu2hepqs", "MQ", "%00", "é", "a" * 10_000, "AAAA===="])
    def test_with_an_invalid_token_are_refused(self, site: Site, token: str) -> None:
        body = assert_error(site.get(f"/tasks?page_token={token}"), 400, "invalid_request")
        assert body["problems"][0]["path"] == "page_token"

    def test_with_a_token_of_other_filters_are_refused(self, site: Site) -> None:
        for _ in range(2):
            site.create()
        token = site.get("/tasks?page_size=1&name_prefix=h").json()["next_page_token"]
        assert len(_ids(site, f"?name_prefix=h&page_token={token}")) == 1
        assert len(_ids(site, f"?name_prefix=h&page_token={token}&page_size=5&view=FULL")) == 1
        assert_error(site.get(f"/tasks?name_prefix=x&page_token={token}"), 400, "invalid_request")
        assert_error(site.get(f"/tasks?page_token={token}"), 400, "invalid_request")

    def test_token_is_safe_in_a_url(self, site: Site) -> None:
        for _ in range(2):
            site.create()
        assert site.get("/tasks?page_size=1").json()["next_page_token"].replace("-", "").replace("_", "").isalnum()


class TestAnInvalidQuery:
    @pytest.mark.parametrize(
        ("query", "parameter"),
        [
            ("view=LARGE", "view"),
            ("state=DONE", "state"),
            ("tag_value=x", "tag_value"),
            ("tag_key=a&tag_value=x&tag_value=y", "tag_value"),
            ("tag_key=&tag_value=x", "tag_key"),
            ("&".join(["tag_key=a"] * 101), "tag_key"),
            ("&".join(["x=a"] * 2000), "query"),
        ],
    )
    def test_is_refused_by_name(self, site: Site, query: str, parameter: str) -> None:
        body = assert_error(site.get(f"/tasks?{query}"), 400, "invalid_request")
        assert body["problems"][0]["path"] == parameter

    def test_with_unknown_parameters_is_answered(self, site: Site) -> None:
        assert site.get("/tasks?project=x&pretty").status_code == 200
