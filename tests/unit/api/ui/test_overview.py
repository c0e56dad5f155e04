"""The page Overview: what it shows to whom."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace

from poiesis.api.ui.charts import ended_chart, wait, waits_chart
from poiesis.config import ApiSettings
from poiesis.domain.capacity import Capacity
from poiesis.domain.quotas import Amount
from poiesis.domain.states import State
from poiesis.services.overview import Hour, SharedOverviews
from poiesis.testing.clock import START
from tests.unit.api.service import Site

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"
INLINE = r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)|javascript:"


def tile(text: str, name: str) -> str:
    found = re.search(rf'id="tile-{name}".*?<strong>([^<]*)</strong>', text, re.S)
    assert found is not None
    return found[1]


def test_the_overview_counts_what_is_stored(site):
    for state in (State.RUNNING, State.RUNNING, State.INITIALIZING):
        task_id = site.create()
        site.change(task_id, state=state, waiting="NodesBusy: all" if state is State.INITIALIZING else None)
    site.create()
    text = site.client.get("/ui/overview").text
    assert (tile(text, "running"), tile(text, "waiting")) == ("2", "2")
    assert "the nodes that can run its pod are busy" in text and "<code>NodesBusy</code>" in text


def test_the_part_that_is_fetched_again_is_the_same_as_in_the_page(site):
    site.create()
    whole, part = (site.client.get(f"/ui/overview{rest}").text for rest in ("", "/now"))
    assert part.strip().startswith('<div id="overview"') and "<html" not in part
    assert part.strip() in whole


def test_a_page_without_figures_fetches_them_at_once_and_then_at_intervals(site, monkeypatch):
    monkeypatch.setattr(SharedOverviews, "get", lambda *args, **kwargs: None)
    whole, part = (site.client.get(f"/ui/overview{rest}").text for rest in ("", "/now"))
    assert 'hx-trigger="refresh, load"' in whole and 'hx-trigger="refresh, load delay:300ms"' in part


def test_nothing_is_inline_and_names_are_text(site):
    site.events.append("t1", State.SYSTEM_ERROR, reason=f"{HOSTILE}: x", owner=HOSTILE, usage={"waiting_seconds": 3.0})
    site.events.events[0] = replace(site.events.events[0], at=START)
    text = site.client.get("/ui/overview").text
    assert not re.search(INLINE, re.sub(r"&lt;.*?&gt;", "", text)), text
    assert "&lt;script&gt;alert(1)" in text and tile(text, "failed") == "1"


def room(text: str) -> str:
    found = re.search(r'<section class="block" aria-labelledby="room">.*?</section>', text, re.S)
    return " ".join(re.sub(r"<[^>]*>", " ", found[0]).split()) if found else ""


def test_the_room_is_said_of_nodes_of_the_machine_or_not_to_be_known(site):
    assert "Not known: the service may not list nodes" in room(site.client.get("/ui/overview").text)
    nodes = Capacity(START, 5, 4, 2, Amount(220, 16000, 64 * 10**9), Amount(3, 2500, 10**9), Amount(110, 8000, 10**10))
    several = room(Site(capacity=lambda: nodes).client.get("/ui/overview").text)
    assert "2 of 5 nodes accept tasks; 1 is not ready; 2 are cordoned or tainted." in several
    assert "CPU cores 2.5 of 16 8 Memory, GB 1 of 64 10 Pods 3 of 220 110" in several and "GPU" not in several
    machine = replace(nodes, nodes=1, disk_bytes=200 * 10**9, disk_free_bytes=150 * 10**9)
    single = room(Site(capacity=lambda: machine).client.get("/ui/overview").text)
    assert "Room on this machine" in single and "CPU cores, requested by tasks 2.5 of 16" in single
    assert "Disk, GB, used by all files 50 of 200" in single and "nodes" not in single


def test_users_see_only_their_own_figures(tmp_path):
    file = tmp_path / "users.json"
    users = [
        {
            "name": name,
            "token_hash": "sha256$" + hashlib.sha256(name.encode()).hexdigest(),
            "admin": name == "root",
            "groups": ["lab"] if name == "cy" else [],
        }
        for name in ("ada", "bob", "root", "cy")
    ]
    file.write_text(json.dumps(users))
    site = Site(ApiSettings(auth=("bearer",), credentials_file=str(file)))

    def page(name):
        return site.client.get("/ui/overview", headers={"Authorization": f"Bearer {name}"}).text

    for name, state in (("ada", State.RUNNING), ("bob", State.RUNNING), ("bob", State.QUEUED)):
        task_id = site.create(headers={"Authorization": f"Bearer {name}"})
        site.change(task_id, state=state, waiting="BobsReason: x" if state is State.QUEUED else None)
        site.events.append(f"{name}-{state}", State.SYSTEM_ERROR, owner=name, reason=f"{name}Failed: x")
    site.events.events[:] = [replace(event, at=START) for event in site.events.events]
    mine, whole = page("ada"), page("root")
    assert (tile(mine, "running"), tile(mine, "waiting"), tile(mine, "failed")) == ("1", "0", "1")
    assert (tile(whole, "running"), tile(whole, "waiting"), tile(whole, "failed")) == ("2", "1", "3")
    assert not room(mine) and room(whole)
    assert "bob" not in mine.lower() and "BobsReason" in whole and "bobFailed" in whole
    assert "Your tasks," in mine and "All tasks of this service" in whole and "owner=" not in mine + whole
    member = page("cy")
    assert "Your own tasks," in member and "other members of your groups are not counted" in member
    assert 'href="/ui/tasks?state=RUNNING&amp;owner=cy"' in member
    assert site.client.get("/ui/overview", follow_redirects=False).status_code == 303


def test_numbers_are_short_and_waits_as_exact_as_they_are_known():
    assert [wait(seconds) for seconds in (None, 0.2, 59, 90, 5400, 200000)] == [
        "\N{EN DASH}",
        "1 s",
        "59 s",
        "2 min",
        "1.5 h",
        "2.3 d",
    ]


def test_charts_stay_inside_their_frame():
    hours = [
        Hour(
            START.replace(hour=i),
            complete=10**i if i < 7 else 0,
            failed=i,
            median_wait=i * 9.0,
            slow_wait=10.0**i if i < 6 else None,
        )
        for i in range(24)
    ]
    for chart in (ended_chart(hours), waits_chart(hours), ended_chart(hours[:1]), waits_chart([Hour(START)])):
        for rect in chart.rects:
            assert chart.top - 1 <= rect.y and rect.y + rect.height <= chart.bottom + 1
            assert chart.left <= rect.x and rect.x + rect.width <= chart.right
        assert all(chart.top <= y <= chart.bottom and chart.left <= x <= chart.right for x, y, _ in chart.dots)
        assert len({row.at for row in chart.rows}) == len(chart.rows) >= 2
