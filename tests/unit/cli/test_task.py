"""`poiesis task …` against a server with prepared responses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import pytest

from poiesis.cli import task
from tests.unit.cli.conftest import Done, TesServer

Poiesis = Callable[..., Done]
FULL = {
    "id": "t1",
    "state": "EXECUTOR_ERROR",
    "name": "n",
    "creation_time": "2026-03-02T08:15:30.250000+00:00",
    "logs": [
        {
            "system_logs": ["a note"],
            "logs": [{"exit_code": 3, "stdout": "one\ntwo\n", "stderr": ""}],
            "outputs": [{"path": "/o", "url": "s3://b/o", "size_bytes": "7"}],
        }
    ],
}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task, "POLL_FROM_S", 0.001)
    monkeypatch.setattr(task, "POLL_TO_S", 0.002)


def test_a_task_is_sent_unchanged(poiesis: Poiesis, server: TesServer, tmp_path: Path) -> None:
    server.serve({"POST /tasks": (200, {"id": "t1"})})
    document = {"executors": [{"image": "a", "command": ["é"]}], "unknown": None}
    path = tmp_path / "task.json"
    path.write_text(json.dumps(document))
    assert poiesis("task", "create", str(path), "--url", server.url) == Done(0, "t1\n", "")
    assert poiesis("task", "create", "-", "--json", stdin=json.dumps(document), TES_URL=server.url) == Done(
        0, '{"id": "t1"}\n', ""
    )
    sent = [a for a in server.asked if a.method == "POST"]
    assert [json.loads(a.body) for a in sent] == [document, document]
    assert {a.headers["Content-Type"] for a in sent} == {"application/json"}


@pytest.mark.parametrize(("content", "code"), [(None, 2), (b"{", 1), (b"\xff\xfe", 1), (b"", 1)])
def test_an_unreadable_file_is_named(poiesis: Poiesis, tmp_path: Path, content: bytes | None, code: int) -> None:
    path = tmp_path / "task.json"
    if content is not None:
        path.write_bytes(content)
    done = poiesis("task", "create", str(path), "--url", "http://127.0.0.1:1")
    assert done.code == code and done.out == "" and str(path) in done.err


def test_waiting_shows_each_change_once_and_the_logs_of_failed_tasks(poiesis: Poiesis, server: TesServer) -> None:
    states = [(200, {"id": "t1", "state": s}) for s in ("QUEUED", "QUEUED", "RUNNING", "RUNNING", "EXECUTOR_ERROR")]
    server.serve({"GET /tasks/t1": [*states, (200, FULL)]})
    done = poiesis("task", "wait", "t1", "--url", server.url)
    assert done.code == 1
    assert [line.split()[-1] for line in done.out.splitlines()[:3]] == ["QUEUED", "RUNNING", "EXECUTOR_ERROR"]
    assert done.out.splitlines()[3:] == [
        "t1 EXECUTOR_ERROR",
        "  | a note",
        "  executor 0: exit code 3",
        "    stdout: one",
        "    stdout: two",
        "  output /o -> s3://b/o (7 bytes)",
    ]


def test_waiting_for_several_tasks_needs_all_to_be_complete(poiesis: Poiesis, server: TesServer) -> None:
    server.serve({f"GET /tasks/{i}": (200, {"id": i, "state": s}) for i, s in (("a", "COMPLETE"), ("b", "CANCELED"))})
    done = poiesis("task", "wait", "a", "b", "--json", "--url", server.url)
    assert done.code == 1
    assert json.loads(done.out) == {"tasks": [{"id": "a", "state": "COMPLETE"}, {"id": "b", "state": "CANCELED"}]}
    assert poiesis("task", "wait", "a", "--json", "--url", server.url).code == 0


def test_an_outage_while_waiting_is_tolerated_for_a_while(
    poiesis: Poiesis, server: TesServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = (503, {"message": "restarting"})
    server.serve({"GET /tasks/a": [(200, {"state": "RUNNING"}), away, away, (200, {"state": "COMPLETE"})]})
    done = poiesis("task", "wait", "a", "--url", server.url)
    assert done.code == 0 and done.err.count("restarting") == 2
    monkeypatch.setattr(task, "MAX_OUTAGE_S", 0.01)
    server.serve({"GET /tasks/a": away})
    done = poiesis("task", "wait", "a", "--url", server.url)
    assert done.code == 69 and done.err.splitlines()[-1] == "poiesis: restarting"


def test_waiting_ends_at_its_timeout(poiesis: Poiesis, server: TesServer) -> None:
    server.serve({"GET /tasks/a": (200, {"state": "RUNNING"})})
    done = poiesis("task", "wait", "a", "--timeout", "0.02", "--url", server.url)
    assert done.code == 1 and "0.02 s" in done.err


def test_a_list_sends_its_filters(poiesis: Poiesis, server: TesServer) -> None:
    server.serve({"GET /tasks": (200, {"tasks": [FULL]})})
    done = poiesis(
        *(
            "task",
            "list",
            "--state",
            "RUNNING",
            "--name-prefix",
            "n&",
            "--tag",
            "a=b=c",
            "--tag",
            "d",
            "--url",
            server.url,
        )
    )
    assert done.out == "t1                           EXECUTOR_ERROR  2026-03-02 08:15:30  n\n"
    assert parse_qsl(urlsplit(server.asked[-1].path).query, keep_blank_values=True) == [
        *(("view", "BASIC"), ("page_size", "50"), ("state", "RUNNING"), ("name_prefix", "n&")),
        *(("tag_key", "a"), ("tag_value", "b=c"), ("tag_key", "d"), ("tag_value", "")),
    ]


def test_a_list_follows_pages_up_to_its_limit(poiesis: Poiesis, server: TesServer) -> None:
    pages = [(200, {"tasks": [{"id": f"{i}{j}"} for j in range(2)], "next_page_token": f"p{i}"}) for i in range(3)]
    server.serve({"GET /tasks": [*pages, (200, {"tasks": []})]})
    done = poiesis("task", "list", "--limit", "5", "--json", "--url", server.url)
    assert [t["id"] for t in json.loads(done.out)["tasks"]] == ["00", "01", "10", "11", "20"]
    assert "page_token=p1" in server.asked[-1].path
    server.serve({"GET /tasks": [(200, {"tasks": [{"id": "x"}], "next_page_token": "p"}), (200, {"tasks": []})]})
    assert poiesis("task", "list", "--url", server.url).out.split()[0] == "x"


def test_views_logs_and_cancel(poiesis: Poiesis, server: TesServer) -> None:
    server.serve({"GET /tasks/t1": (200, FULL), "POST /tasks/t1:cancel": (200, {})})
    assert json.loads(poiesis("task", "get", "t1", "--view", "BASIC", "--url", server.url).out) == FULL
    assert server.asked[-1].path.endswith("view=BASIC")
    assert "executor 0: exit code 3" in poiesis("task", "logs", "t1", "--url", server.url).out
    assert json.loads(poiesis("task", "logs", "t1", "--json", "--url", server.url).out) == FULL["logs"]
    assert poiesis("task", "cancel", "t1", "--url", server.url) == Done(0, "t1 is being canceled\n", "")
    assert poiesis("task", "cancel", "t1", "t2", "--json", "--url", server.url).code == 66
    assert task.render_logs({"id": "x", "state": "QUEUED"}) == ["x QUEUED"]
    live = {"live_executor": "1", "live_stdout": "a\nb", "live_stderr": ""}
    assert task.render_logs(
        {"id": "x", "state": "RUNNING", "logs": [{"logs": [{"exit_code": 0}], "metadata": live}]}
    ) == [
        "x RUNNING",
        "  executor 0: exit code 0",
        "  executor 1: has not ended",
        "    stdout: a",
        "    stdout: b",
    ]


@pytest.mark.parametrize("arguments", [["task", "list"], ["task", "list", "--json"]])
def test_control_characters_of_a_task_do_not_reach_the_terminal(
    poiesis: Poiesis, server: TesServer, arguments: list[str]
) -> None:
    server.serve({"GET /tasks": (200, {"tasks": [{"id": "t1", "name": "\x1b]0;owned\x07\x9b2J"}]})})

    printed = poiesis(*arguments, "--url", server.url).out

    assert "\\u001b]0;owned\\u0007\\u009b2J" in printed
    assert not set(printed) & set("\x1b\x07\x9b")
