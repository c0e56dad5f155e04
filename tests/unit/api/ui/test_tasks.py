"""The list of tasks, its filters, groups, and many tasks at once."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import timedelta
from html import unescape
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
from httpx import Response

from poiesis.api.audit import AuditLog
from poiesis.api.credentials import hash_secret
from poiesis.api.ui import bulk, tasks
from poiesis.config import ApiSettings
from poiesis.domain.policy import Policy
from poiesis.domain.states import Stage, State
from tests.unit.api.service import HELLO, Site

USERS: list[dict[str, Any]] = [
    {"name": "ada", "groups": ["lab"]},
    {"name": "bob", "groups": ["lab"]},
    {"name": "eve"},
    {"name": "root", "admin": True},
]


@pytest.fixture
def shared(tmp_path: Any) -> Site:
    """With users, whose keys are their names."""
    file = tmp_path / "users.json"
    file.write_text(json.dumps([{**u, "api_key_hash": hash_secret(str(u["name"]), "api_key")} for u in USERS]))
    return Site(ApiSettings(auth=("api_key",), credentials_file=str(file)))


def create(site: Site, name: str = "hello", user: str | None = None, **document: Any) -> str:
    return site.create({**HELLO, "name": name, **document}, headers={} if user is None else {"X-API-Key": user})


def get(site: Site, path: str, user: str | None = None) -> Response:
    response: Response = site.client.get(path, headers={} if user is None else {"X-API-Key": user})
    return response


def listed(site: Site, query: str = "", user: str | None = None) -> list[str]:
    page = get(site, f"/ui/tasks{query}", user)
    assert page.status_code == 200, page.text
    return re.findall(r'id="task-(\w+)"', page.text)


def submit(site: Site, page: Response, user: str | None = None, **changes: str) -> Response:
    """Send the last form of a page that is posted."""
    assert page.status_code == 200, page.text
    form = re.findall(r'<form method="post" action="([^"]+)">(.*?)</form>', page.text, re.S)[-1]
    fields = [(n, unescape(v)) for n, v in re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)"', form[1])]
    data: dict[str, list[str]] = {}
    for name, value in fields:
        data.setdefault(name, []).append(value)
    data |= {name: [value] for name, value in changes.items()}
    headers = {} if user is None else {"X-API-Key": user}
    response: Response = site.client.post(form[0], data=data, headers=headers)
    return response


def state(site: Site, task_id: str) -> State:
    return site.repository.get(task_id).state  # type: ignore[arg-type]


@pytest.mark.parametrize("path", ["", "?group=k\u202e", "/bulk?do=cancel&all=1"])
def test_no_name_looks_like_another_one(site: Site, path: str) -> None:
    """By an override of the direction of text, or by characters that browsers do not show."""
    create(site, "gnp.\u202eexe", tags={"k\u202e": "v\u2066"})
    text = get(site, f"/ui/tasks{path}").text
    shown = re.sub(r'(href|value)="[^"]*"', "", text)
    assert "\u202e" not in shown and "\u2066" not in shown and "⟨U+20" in shown


class TestFilters:
    def test_by_state_name_tag_and_time(self, site: Site) -> None:
        first = create(site, "align 1", tags={"project": "x", "sample": "s=1"})
        second = create(site, "align 2", tags={"project": "y"})
        third = create(site, "call")
        site.change(second, state=State.INITIALIZING)
        assert listed(site) == [third, second, first]
        assert listed(site, "?state=QUEUED") == [third, first]
        assert listed(site, "?state=QUEUED&state=INITIALIZING&name=align") == [second, first]
        assert listed(site, "?tag=project") == [second, first]
        assert listed(site, "?tag=project=x") == listed(site, "?tag=sample=s%3D1") == [first]
        assert listed(site, "?state=COMPLETE") == []
        assert listed(site, "?from=2026-01-31T12:00&to=2026-01-31T12:00") == [third, second, first]
        assert listed(site, "?from=2026-02-01") == listed(site, "?to=2026-01-31T11:59") == []

    @pytest.mark.parametrize(
        "query", ["state=NO", "from=yesterday", "to=2026-13-01", "to=9999-12-31T23:59", "order=up", "page=x"]
    )
    def test_what_is_not_valid_is_named(self, site: Site, query: str) -> None:
        page = get(site, f"/ui/tasks?{query}")
        assert page.status_code == 400 and query.partition("=")[0] in page.text
        assert page.text.count("must be") + page.text.count("invalid page token") == 1, "the problem is shown once"

    def test_pages_keep_the_filters_and_lose_nothing(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tasks, "PAGE_SIZE", 2)
        made = [create(site, "a & b") for _ in range(5)]
        for query, expected in (("name=a+%26", made[::-1]), ("name=a+%26&order=oldest", made)):
            address, found = f"/ui/tasks?{query}", []
            while address:
                page = get(site, address)
                found += re.findall(r'id="task-(\w+)"', page.text)
                following = re.search(r'href="([^"]+)" rel="next"', page.text)
                address = f"/ui/tasks{unescape(following[1])}" if following else ""
            assert found == expected

    def test_oldest_waiting_and_longest_running_first(self, site: Site) -> None:
        waiting = [create(site) for _ in range(2)]
        late, early = create(site), create(site)
        for task_id in (early, late):
            task = site.change(task_id, state=State.INITIALIZING)
            task = replace(task, state=State.RUNNING, stage=Stage.RUN).recorded(
                site.clock.advance(timedelta(minutes=1))
            )
            assert site.repository.save(task, seen=task.version)
        assert listed(site, "?state=QUEUED&state=INITIALIZING&order=oldest") == waiting
        assert listed(site, "?order=longest") == [early, late]
        assert "1 min" in get(site, "/ui/tasks?order=longest").text

    def test_the_reason_for_waiting_or_failing_is_shown(self, site: Site) -> None:
        site.change(create(site), waiting="Unschedulable: needs <b>8</b> GPUs")
        assert "needs &lt;b&gt;8&lt;/b&gt; GPUs" in get(site, "/ui/tasks").text

    def test_groups_of_a_tag_have_counts(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        for value in ("x", "x", "y", ""):
            create(site, tags={"project": value})
        create(site)
        page = get(site, "/ui/tasks?group=project").text
        assert re.findall(r'<td class="number">(.*?)</td>', page) == ["2", "1", "1"]
        assert "All tasks with this tag." in page and "tag=project%3Dx" in page
        monkeypatch.setattr(tasks, "SAMPLE", 2)
        monkeypatch.setattr(tasks, "COUNTED", 1)
        page = get(site, "/ui/tasks?group=project").text
        assert "newest 2 tasks" in page and re.findall(r'<td class="number">(.*?)</td>', page) == ["1+", "1+"]

    def test_what_is_not_the_users_is_not_listed_grouped_or_counted(self, shared: Site) -> None:
        mine = create(shared, user="ada", tags={"project": "x"})
        other = create(shared, user="eve", tags={"project": "secret"})
        assert listed(shared, user="bob") == [mine]
        assert listed(shared, "?owner=eve", user="bob") == [mine]
        assert "secret" not in get(shared, "/ui/tasks?group=project", "bob").text
        assert listed(shared, "?owner=eve", user="root") == [other]
        page = get(shared, "/ui/tasks", "bob").text  # of a group, whose members see whose a task is, as on its page
        assert '<td class="owner-cell"><bdi>ada</bdi></td>' in page and 'type="search" name="owner"' not in page
        assert "Owner" not in get(shared, "/ui/tasks", "eve").text

    def test_members_of_a_group_may_list_only_their_own(self, shared: Site) -> None:
        mine, other = create(shared, user="bob"), create(shared, user="ada")
        assert listed(shared, user="bob") == [other, mine]
        assert listed(shared, "?owner=bob", user="bob") == [mine]
        assert "Only mine" in get(shared, "/ui/tasks", "bob").text
        assert "Only mine" not in get(shared, "/ui/tasks", "eve").text


class TestBulk:
    def test_chosen_tasks_are_canceled_after_a_page_with_their_count(self, site: Site) -> None:
        chosen, ended, kept = create(site), create(site), create(site)
        site.change(ended, state=State.CANCELED, stage=Stage.DONE, wake_at=None)
        page = get(site, f"/ui/tasks/bulk?do=cancel&id={chosen}&id={ended}&id=nonsense")
        assert "Cancel 1 task?" in page.text and "1 of the chosen tasks has ended already" in page.text
        assert state(site, chosen) is State.QUEUED
        done = submit(site, page)
        assert "1 task is being canceled" in done.text and "1 had ended already" in done.text
        assert (state(site, chosen), state(site, kept)) == (State.CANCELING, State.QUEUED)

    def test_all_that_match_are_canceled_but_none_that_came_later(
        self, site: Site, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(bulk, "STEP", 2)
        made = [create(site, "align") for _ in range(5)]
        other = create(site, "call")
        site.change(made[2], state=State.CANCELED, stage=Stage.DONE, wake_at=None)
        page = get(site, "/ui/tasks/bulk?do=cancel&all=1&name=align")
        assert "Cancel 4 tasks?" in page.text and "2 at a time" in page.text
        site.clock.advance(timedelta(seconds=1))
        late = create(site, "align")
        done = submit(site, page)
        assert "2 tasks are being canceled" in done.text and "Go on with the next" in done.text
        done = submit(site, done)
        while "Go on with the next" in done.text:
            done = submit(site, done)
        assert "4 tasks are being canceled" in done.text
        assert {state(site, i) for i in made} == {State.CANCELING, State.CANCELED}
        assert (state(site, other), state(site, late)) == (State.QUEUED, State.QUEUED)

    def test_a_slow_step_stops_and_offers_to_go_on(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        for _ in range(9):
            create(site)
        seconds = count(step=2)  # of each task
        monkeypatch.setattr(bulk, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
        done = submit(site, get(site, "/ui/tasks/bulk?do=cancel&all=1"))
        assert "3 tasks are being canceled" in done.text and "Go on with the next" in done.text
        done = submit(site, submit(site, done))
        assert "9 tasks are being canceled" in done.text and "Go on with the next" not in done.text

    def test_a_filter_for_ended_tasks_cancels_nothing(self, site: Site) -> None:
        create(site)
        assert "nothing to do" in get(site, "/ui/tasks/bulk?do=cancel&all=1&state=COMPLETE").text

    def test_tasks_run_again_once_however_often_the_form_is_sent(self, site: Site) -> None:
        made = [create(site, "align", tags={"k": "v"}) for _ in range(2)]
        page = get(site, "/ui/tasks/bulk?do=rerun&all=1&name=align")
        assert "Run 2 tasks again?" in page.text
        site.clock.advance(timedelta(seconds=1))
        assert "2 new tasks" in submit(site, page).text
        submit(site, page)
        assert site.stored() == 4
        new = [site.repository.get(i) for i in listed(site)[:2]]  # type: ignore[arg-type]
        assert {t.spec.tags["rerun_of"] for t in new} == set(made) and {t.spec.tags["k"] for t in new} == {"v"}

    def test_each_task_has_a_line_of_the_audit(self, tmp_path: Any) -> None:
        audit = AuditLog(str(tmp_path / "audit"))
        site = Site(audit=audit)
        made = [create(site, "align") for _ in range(2)]
        submit(site, get(site, "/ui/tasks/bulk?do=cancel&all=1&name=align"))
        site.clock.advance(timedelta(seconds=1))
        submit(site, get(site, f"/ui/tasks/bulk?do=rerun&id={made[0]}"))
        new = listed(site)[0]
        submit(site, get(site, f"/ui/tasks/{new}/cancel"))
        audit.close()
        lines = [json.loads(line) for line in (tmp_path / "audit").read_text().splitlines()][2:]
        assert [line.get("task") for line in lines] == [None, made[1], made[0], None, new, new]
        assert len({line["request_id"] for line in lines}) == 3

    def test_tasks_of_others_are_neither_shown_nor_changed(self, shared: Site) -> None:
        foreign, grouped, own = create(shared, "f", "eve"), create(shared, "g", "bob"), create(shared, "o", "ada")
        page = get(shared, f"/ui/tasks/bulk?do=cancel&id={foreign}&id={own}", "ada")
        assert "Cancel 1 task?" in page.text and foreign in page.text and ">f<" not in page.text
        submit(shared, page, "ada")
        assert [state(shared, i) for i in (foreign, own)] == [State.QUEUED, State.CANCELING]
        page = get(shared, "/ui/tasks/bulk?do=rerun&all=1", "ada")
        assert "Run 1 task again?" in page.text
        page = get(shared, f"/ui/tasks/bulk?do=cancel&id={grouped}", "ada")
        done = submit(shared, page, "ada")
        assert "1 failed" in done.text and "only its owner" in done.text
        page = get(shared, f"/ui/tasks/bulk?do=rerun&id={foreign}", "ada")
        assert "nothing to do" in page.text
        assert "Cancel 2 tasks?" in get(shared, "/ui/tasks/bulk?do=cancel&all=1", "root").text

    @pytest.mark.parametrize("query", ["", "do=delete", "do=cancel&until=x", "do=cancel&until=2026-01-01"])
    def test_what_is_not_valid_is_refused(self, site: Site, query: str) -> None:
        assert get(site, f"/ui/tasks/bulk?{query}").status_code == 400

    def test_a_time_to_come_reaches_no_later_tasks(self, site: Site) -> None:
        create(site)
        page = get(site, "/ui/tasks/bulk?do=cancel&all=1&until=2099-01-01T00:00:00%2B00:00")
        assert 'name="until" value="2026-01-31' in page.text

    def test_a_time_before_all_others_reaches_none(self, site: Site) -> None:
        create(site)
        page = get(site, "/ui/tasks/bulk?do=cancel&all=1&until=0001-01-01T00:00:00%2B14:00")
        assert page.status_code == 400 and "until" in page.text

    def test_a_store_that_goes_away_is_not_asked_for_each_task(
        self, site: Site, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        chosen = [create(site) for _ in range(5)]
        page = get(site, "/ui/tasks/bulk?do=cancel&" + "&".join(f"id={i}" for i in chosen))
        cancel, asked = site.tasks.cancel, []

        def once(task_id: str, **options: Any) -> bool:
            asked.append(task_id)
            site.repository.down = len(asked) > 1
            return cancel(task_id, **options)

        monkeypatch.setattr(site.tasks, "cancel", once)
        page = submit(site, page)
        assert "1 task is being canceled" in page.text and "4 failed" in page.text
        assert asked == chosen[:2]

    def test_too_many_boxes_are_refused(self, site: Site) -> None:
        ids = "&".join(f"id={i:026d}" for i in range(bulk.MAX_IDS + 1))
        assert get(site, f"/ui/tasks/bulk?do=cancel&{ids}").status_code == 400

    def test_a_form_without_its_token_changes_nothing(self, site: Site) -> None:
        task_id = create(site)
        page = get(site, f"/ui/tasks/bulk?do=cancel&id={task_id}")
        assert submit(site, page, csrf_token="0" * 64).status_code == 403
        assert state(site, task_id) is State.QUEUED

    def test_a_member_may_cancel_where_the_site_allows_it(self, shared: Site) -> None:
        site = Site(shared.api, policy=Policy(group_may_cancel=True))
        grouped = create(site, "g", "bob")
        assert (
            "1 task is being canceled"
            in submit(site, get(site, f"/ui/tasks/bulk?do=cancel&id={grouped}", "ada"), "ada").text
        )
