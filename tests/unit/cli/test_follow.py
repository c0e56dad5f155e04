"""Waiting with the extension: few requests, for any number of tasks."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from urllib.parse import parse_qs, urlsplit

import pytest

from poiesis.cli import follow
from poiesis.cli.client import TesClient
from poiesis.domain.errors import UnknownTask
from tests.unit.cli.conftest import Answer, Asked, TesServer

Poiesis = Callable[..., object]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "POLL_FROM_S", 0.001)


def followed(server: TesServer, ids: list[str], timeout_s: float | None = 30.0) -> tuple[bool, dict[str, str]]:
    follower = follow.Follower(TesClient(server.url, {}), ids, timeout_s)
    return follower.run(lambda changes: None), follower.states


def test_one_task_is_waited_for_by_long_polls_from_the_known_state(server: TesServer) -> None:
    states = iter(["QUEUED", "RUNNING", "COMPLETE"])
    server.answer = lambda asked: (200, {"id": "a", "state": next(states), "reached": True})
    assert followed(server, ["a"]) == (True, {"a": "COMPLETE"})
    assert [parse_qs(urlsplit(asked.path).query).get("from") for asked in server.asked] == [
        None,
        ["QUEUED"],
        ["RUNNING"],
    ]
    timeouts = [int(parse_qs(urlsplit(asked.path).query)["timeout"][0]) for asked in server.asked]
    assert timeouts[0] == 0 and all(20 < timeout <= 25 for timeout in timeouts[1:])


def test_many_tasks_are_waited_for_by_one_request_at_a_time(server: TesServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "MANY_POLL_S", 0)
    ended: set[str] = set()

    def answer(asked: Asked) -> Answer:
        if asked.method == "GET":  # the last one
            return 200, {"id": asked.path.split("/")[4], "state": "COMPLETE"}
        ids = json.loads(asked.body)["ids"]
        assert len(ids) <= 1000
        tasks = [{"id": i, "state": "COMPLETE" if i in ended else "RUNNING"} for i in ids]
        ended.update(ids[: len(ids) // 2 + 1])
        return 200, {"tasks": tasks, "unknown": [], "reached": True}

    server.answer = answer
    has_ended, states = followed(server, [str(i) for i in range(2500)])
    assert has_ended and set(states.values()) == {"COMPLETE"} and len(states) == 2500
    assert len(server.asked) < 40


def test_an_unknown_task_among_many_ends_the_wait(server: TesServer) -> None:
    server.answer = lambda asked: (200, {"tasks": [{"id": "a", "state": "RUNNING"}], "unknown": ["b"]})
    with pytest.raises(UnknownTask, match="'b'"):
        followed(server, ["a", "b"])


def test_a_timeout_of_less_than_a_second_is_kept_without_a_busy_loop(server: TesServer) -> None:
    server.answer = lambda asked: (200, {"id": "a", "state": "RUNNING", "reached": False})
    assert followed(server, ["a"], 0.3) == (False, {"a": "RUNNING"})
    assert len(server.asked) < 60


def test_too_many_waiting_requests_are_replaced_by_polling(server: TesServer) -> None:
    def answer(asked: Asked) -> Answer:
        if asked.path.startswith("/poiesis/v1"):
            return 429, {"error": "rate_limited", "message": "too many waiting requests"}
        return 200, {"id": "a", "state": "COMPLETE", "name": "x"}

    server.answer = answer
    assert followed(server, ["a"]) == (True, {"a": "COMPLETE"})


def test_the_live_table_says_what_tasks_do_now_and_why_some_failed(server: TesServer) -> None:
    def answer(asked: Asked) -> Answer:
        task_id = asked.path.split("/")[4]
        return 200, {"id": task_id, "why": f"why {task_id}\x1b"}

    server.answer = answer
    client = TesClient(server.url, {})
    follower = follow.Follower(client, ["a", "b", "c"])
    table = follow.LiveTable(client, follower)

    def shown(**states: str) -> list[str]:
        follower.states |= states
        table(states)
        head, rows = table.table()
        return [head.partition("  ")[2], *replace(rows, header=False).plain()]

    assert shown(a="QUEUED", b="RUNNING", c="QUEUED") == [
        "2 QUEUED, 1 RUNNING",
        "a  QUEUED   why a\\u001b",
        "b  RUNNING  why b\\u001b",
        "c  QUEUED   why c\\u001b",
    ]
    asked = len(server.asked)
    assert len(shown()) == 4 and len(server.asked) == asked  # nothing has changed, and it is too early
    assert shown(a="COMPLETE", c="SYSTEM_ERROR")[1:] == [
        "b  RUNNING       why b\\u001b",
        "a  COMPLETE",
        "c  SYSTEM_ERROR  why c\\u001b",
    ]
