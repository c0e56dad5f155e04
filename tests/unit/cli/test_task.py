"""`poiesis task …` against a server with prepared responses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
import yaml

from poiesis.cli import follow, listing, logs
from tests.unit.cli.conftest import Answer, Asked, Done, TesServer

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
    monkeypatch.setattr(follow, "POLL_FROM_S", 0.001)
    monkeypatch.setattr(follow, "POLL_TO_S", 0.002)


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
    assert done.code == 100
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
    assert done.code == 102
    assert json.loads(done.out) == {"tasks": [{"id": "a", "state": "COMPLETE"}, {"id": "b", "state": "CANCELED"}]}
    assert poiesis("task", "wait", "a", "--json", "--url", server.url).code == 0


def test_an_outage_while_waiting_is_tolerated_for_a_while(
    poiesis: Poiesis, server: TesServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = (503, {"message": "restarting"})
    server.serve({"GET /tasks/a": [(200, {"state": "RUNNING"}), away, away, (200, {"state": "COMPLETE"})]})
    done = poiesis("task", "wait", "a", "--url", server.url)
    assert done.code == 0 and done.err.count("restarting") == 2
    monkeypatch.setattr(follow, "MAX_OUTAGE_S", 0.01)
    server.serve({"GET /tasks/a": away})
    done = poiesis("task", "wait", "a", "--url", server.url)
    assert done.code == 69 and done.err.splitlines()[-1] == "poiesis: restarting"


def test_waiting_ends_at_its_timeout(poiesis: Poiesis, server: TesServer) -> None:
    server.serve({"GET /tasks/a": (200, {"state": "RUNNING"})})
    done = poiesis("task", "wait", "a", "--timeout", "0.02", "--url", server.url)
    assert done.code == 124 and "0.02 s" in done.err


def test_a_list_sends_its_filters_and_applies_them_itself(poiesis: Poiesis, server: TesServer) -> None:
    """Servers of TES 1.0 ignore filters that they do not know."""
    hit = {**FULL, "state": "RUNNING", "name": "n&1", "tags": {"a": "b=c", "d": "anything"}}
    others = [FULL, {**hit, "id": "t2", "tags": {"d": ""}}, {**hit, "id": "t3", "name": "x"}, {"id": "t4"}]
    server.serve({"GET /tasks": (200, {"tasks": [hit, *others]})})
    filters = ("--state", "running", "--name-prefix", "n&", "--tag", "a=b=c", "--tag", "d")

    done = poiesis("task", "list", *filters, "--url", server.url)

    assert [line.split() for line in done.out.splitlines()] == [
        ["ID", "STATE", "CREATED", "DURATION", "NAME"],
        ["t1", "RUNNING", "2026-03-02", "08:15:30", done.out.split()[-2], "n&1"],
    ]
    assert parse_qsl(urlsplit(server.asked[-1].path).query, keep_blank_values=True) == [
        *(("view", "BASIC"), ("page_size", "50"), ("state", "RUNNING"), ("name_prefix", "n&")),
        *(("tag_key", "a"), ("tag_value", "b=c"), ("tag_key", "d"), ("tag_value", "")),
    ]


def test_several_states_are_asked_for_one_by_one_and_sorted_by_time(poiesis: Poiesis, server: TesServer) -> None:
    def answer(asked: Asked) -> Answer:
        state = dict(parse_qsl(urlsplit(asked.path).query)).get("state", "")
        task = {"id": state, "state": state, "creation_time": f"2026-01-0{len(state)}T00:00:00Z"}
        return (200, {"tasks": [task]}) if "/tasks" in asked.path else (200, {"name": "x"})

    server.answer = answer
    filters = ("--state", "QUEUED,RUNNING", "--state", "COMPLETE", "-o", "name")
    assert poiesis("task", "list", *filters, "--url", server.url).out.split() == ["COMPLETE", "RUNNING", "QUEUED"]


def test_since_reads_no_page_after_the_first_that_is_older(poiesis: Poiesis, server: TesServer) -> None:
    def page(day: int, token: str) -> Answer:
        tasks = [{"id": f"{day}", "creation_time": f"2026-03-{day:02}T00:00:00Z"}]
        return (200, {"tasks": tasks, "next_page_token": token})

    server.serve({"GET /tasks": [page(9, "a"), page(8, "b"), page(2, "c"), (500, {})]})
    listed = poiesis("task", "list", "--since", "2026-03-05", "-o", "name", "--url", server.url)
    assert listed == Done(0, "9\n8\n", "")


def test_a_list_that_never_ends_is_bounded(
    poiesis: Poiesis, server: TesServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "MAX_SCANNED", 5)
    pages = [(200, {"tasks": [{"id": "x"}] * 2, "next_page_token": f"p{i}"}) for i in range(9)]
    server.serve({"GET /tasks": [*pages]})
    done = poiesis("task", "list", "--name", "y", "--url", server.url)
    assert (done.code, done.out) == (0, "") and "stopped after 6 tasks" in done.err
    server.serve({"GET /tasks": (200, {"tasks": [{"id": "x"}], "next_page_token": "same"})})
    assert poiesis("task", "list", "-o", "name", "--url", server.url).out == "x\n"


def test_a_list_follows_pages_up_to_its_limit(poiesis: Poiesis, server: TesServer) -> None:
    pages = [(200, {"tasks": [{"id": f"{i}{j}"} for j in range(2)], "next_page_token": f"p{i}"}) for i in range(3)]
    server.serve({"GET /tasks": [*pages, (200, {"tasks": []})]})
    done = poiesis("task", "list", "--limit", "5", "--json", "--url", server.url)
    assert [t["id"] for t in json.loads(done.out)["tasks"]] == ["00", "01", "10", "11", "20"]
    assert "page_token=p1" in server.asked[-1].path
    server.serve({"GET /tasks": [(200, {"tasks": [{"id": "x"}], "next_page_token": "p"}), (200, {"tasks": []})]})
    assert poiesis("task", "list", "--no-header", "--url", server.url).out.split()[0] == "x"


def test_views_logs_and_cancel(poiesis: Poiesis, server: TesServer) -> None:
    server.serve({"GET /tasks/t1": (200, FULL), "POST /tasks/t1:cancel": (200, {})})
    assert json.loads(poiesis("task", "get", "t1", "--view", "BASIC", "--url", server.url).out) == FULL
    assert server.asked[-1].path.endswith("view=BASIC")
    assert "executor 0: exit code 3" in poiesis("task", "logs", "t1", "--url", server.url).out
    assert json.loads(poiesis("task", "logs", "t1", "--json", "--url", server.url).out) == FULL["logs"]
    assert poiesis("task", "cancel", "t1", "--url", server.url) == Done(0, "t1 is being canceled\n", "")
    assert poiesis("task", "cancel", "t1", "t2", "--json", "--url", server.url).code == 66
    assert logs.render_logs({"id": "x", "state": "QUEUED"}) == ["x QUEUED"]
    assert logs.render_logs({"id": "x", "logs": [{"logs": [{"stdout": None}]}]}) == [
        "x UNKNOWN",
        "  executor 0: no exit code",
    ]
    live = {"live_executor": "1", "live_stdout": "a\nb", "live_stderr": ""}
    assert logs.render_logs(
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


# ── many tasks, formats, and servers without extensions ────────────────────────────────────────────────────────────────────────────


def test_ids_and_documents_come_from_standard_input(poiesis: Poiesis, server: TesServer) -> None:
    server.serve({"POST /tasks": [(200, {"id": i}) for i in "abc"], "POST /tasks/a:cancel": (200, {})})
    url = ("--url", server.url)
    assert (
        poiesis("task", "create", "-", *url, stdin='{"name": "1"}\n[{"name": "2"}, {"name": "3"}]').out == "a\nb\nc\n"
    )
    assert [json.loads(asked.body)["name"] for asked in server.asked if asked.method == "POST"] == ["1", "2", "3"]
    assert poiesis("task", "cancel", "-", *url, stdin="a\n\n a \n").out == "a is being canceled\n"
    nothing = poiesis("task", "cancel", "-", *url, stdin="\n")
    assert (nothing.code, nothing.out) == (0, "") and "nothing to do" in nothing.err


@pytest.mark.parametrize("action", ["get", "wait", "cancel", "logs", "why", "rerun"])
def test_an_empty_id_is_an_error_and_not_success(poiesis: Poiesis, server: TesServer, action: str) -> None:
    for ids in ([""], ["a", " "]):
        done = poiesis("task", action, *ids, "--url", server.url)
        assert (done.code, done.out, server.asked) == (2, "", []) and "empty" in done.err


def test_tasks_without_an_id_are_counted_and_not_named(poiesis: Poiesis, server: TesServer) -> None:
    tasks = [{"state": "RUNNING"}, {"id": "a", "state": "RUNNING"}, {"id": None, "state": "COMPLETE"}]
    server.serve({"GET /tasks": (200, {"tasks": tasks}), "GET /tasks/a": (200, tasks[0])})
    done = poiesis("task", "list", "-o", "name", "--url", server.url)
    assert (done.code, done.out) == (0, "a\n") and "2 of 3 tasks have no id" in done.err
    done = poiesis("task", "get", "a", "-o", "name", "--url", server.url)
    assert done.out == "" and "1 of 1 tasks have no id" in done.err


def test_an_unknown_id_is_shown_as_it_was_typed(poiesis: Poiesis, server: TesServer) -> None:
    server.serve({})
    for action in ("get", "cancel"):
        assert "'a b/c%'" in poiesis("task", action, "a b/c%", "--url", server.url).err


def test_an_unknown_id_among_many_does_not_hide_the_others(poiesis: Poiesis, server: TesServer) -> None:
    server.serve({"GET /tasks/a": (200, {"id": "a"}), "GET /tasks/b": (200, {"id": "b"})})
    done = poiesis("task", "get", "a", "none", "b", "--url", server.url)
    assert done.code == 66 and json.loads(done.out) == {"tasks": [{"id": "a"}, {"id": "b"}]} and "'none'" in done.err


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("name", "t1\n"),
        ("yaml", "id: t1\nname: 'é\u2028\u001b'\n"),
        ("json", '{\n  "id": "t1",\n  "name": "é\\u2028\\u001b"\n}\n'),
        ("table", "ID  STATE    CREATED  DURATION  NAME\nt1  UNKNOWN                     é\n"),
    ],
)
def test_formats_of_a_document(poiesis: Poiesis, server: TesServer, form: str, expected: str) -> None:
    document = {"id": "t1", "name": "é\u2028\x1b"}
    server.serve({"GET /tasks/t1": (200, document)})
    done = poiesis("task", "get", "t1", "-o", form, "--url", server.url)
    assert not set(done.out) & set("\u2028\x1b")
    if form == "yaml":
        assert yaml.safe_load(done.out) == document
    elif form == "table":
        assert done.out.splitlines()[1].startswith("t1  UNKNOWN")
    else:
        assert done.out == expected


def test_an_unknown_column_is_a_usage_error(poiesis: Poiesis, server: TesServer) -> None:
    server.serve({"GET /tasks": (200, {"tasks": [FULL]})})
    done = poiesis("task", "list", "--columns", "id,colour", "--url", server.url)
    assert done.code == 2 and "'colour'" in done.err and "reason" in done.err
    assert poiesis("task", "list", "--columns", "id,exit", "--url", server.url).out == "ID  EXIT\nt1  3\n"


ODD: list[Any] = [
    {},
    {"id": 7, "state": None, "name": None, "logs": None, "executors": None, "tags": None, "resources": None},
    {"id": "x", "logs": [None], "creation_time": "yesterday", "executors": [None], "tags": ["a"], "resources": []},
    {"id": "x", "logs": [{"logs": None, "metadata": None, "outputs": None, "system_logs": None, "start_time": 5}]},
    {"id": "x", "logs": [{"logs": [None, {}], "metadata": {"executor_0_peak_memory_bytes": "much"}, "outputs": [{}]}]},
    # Funnel: nanoseconds and an offset; exit code 0 left out; sizes as strings
    {
        "id": "c8j0",
        "state": "COMPLETE",
        "creation_time": "2026-03-02T08:15:30.123456789-05:00",
        "logs": [
            {
                "logs": [{"start_time": "2026-03-02T08:15:31.123456789-05:00", "stdout": "hi\n"}],
                "metadata": {"hostname": "node"},
                "start_time": "2026-03-02T08:15:31-05:00",
                "end_time": "2026-03-02T08:15:41-05:00",
                "outputs": [{"url": "s3://b/o", "path": "/o", "size_bytes": "3"}],
                "system_logs": ["level='info' msg='Version'"],
            }
        ],
    },
    # TESK: no view, a job's name as id, empty strings for times that are not known
    {
        "id": "task-98605447",
        "name": "",
        "state": "SYSTEM_ERROR",
        "logs": [
            {
                "start_time": "",
                "end_time": "",
                "logs": [{"exit_code": 0, "start_time": ""}],
                "metadata": {"USER_ID": "x"},
            }
        ],
        "creation_time": "2026-03-02T08:15:30.000Z",
    },
]


@pytest.mark.parametrize("task", ODD)
@pytest.mark.parametrize(
    "arguments", ["list -o wide", "list --since 1d", "get t1 -o wide", "logs t1", "why t1", "top", "wait t1"]
)
def test_odd_documents_of_other_servers_are_shown(
    poiesis: Poiesis, server: TesServer, task: Any, arguments: str
) -> None:
    ended = {**task, "state": "SYSTEM_ERROR"} if arguments.startswith("wait") else task
    server.serve({"GET /tasks": (200, {"tasks": [task]}), "GET /tasks/t1": (200, ended)})
    done = poiesis("task", *arguments.split(), "--url", server.url)
    assert done.code == (101 if arguments == "wait t1" else 0), done


def test_the_missing_extension_is_stated_once(poiesis: Poiesis, server: TesServer) -> None:
    states = [(200, {"id": "a", "state": s}) for s in ("QUEUED", "RUNNING", "RUNNING", "COMPLETE")]
    server.serve({"GET /tasks/a": states})
    done = poiesis("task", "wait", "a", "--url", server.url)
    assert done.code == 0 and done.err.count("\n") == 1 and "'wait', an extension of Poiesis: polling" in done.err
    assert sum("/poiesis/v1" in asked.path for asked in server.asked) == 1


@pytest.mark.parametrize("answer", [(404, b"<html>"), (200, b"<html>"), (405, {}), (501, b""), (403, {}), (401, {})])
def test_a_gateway_that_does_not_know_the_extension_does_not_matter(
    poiesis: Poiesis, server: TesServer, answer: Answer
) -> None:
    server.serve({"GET /tasks/a": (200, {"id": "a", "state": "COMPLETE"})})
    plain = server.answer
    server.answer = lambda asked: answer if asked.path.startswith("/poiesis/v1") else plain(asked)
    done = poiesis("task", "wait", "a", "--url", server.url)
    assert done.code == 0 and "polling" in done.err


def test_why_and_rerun_do_without_the_extension(poiesis: Poiesis, server: TesServer) -> None:
    original = {**FULL, "executors": [{"image": "a", "command": ["x"]}], "tags": {"k": "v"}, "resources": {"ram_gb": 1}}
    server.serve({"GET /tasks/t1": (200, original), "POST /tasks": (200, {"id": "t2"})})
    why = poiesis("task", "why", "t1", "--url", server.url)
    assert (why.code, why.out) == (0, "t1 EXECUTOR_ERROR: a note\n") and "why" in why.err
    changes = '{"resources": {"ram_gb": 2, "cpu_cores": null}, "tags": {"k": null}}'
    again = poiesis("task", "rerun", "t1", "--changes", "-", "--url", server.url, stdin=changes)
    assert (again.code, again.out) == (0, "t2\n")
    assert json.loads(server.asked[-1].body) == {
        "name": "n",
        "executors": [{"image": "a", "command": ["x"]}],
        "tags": {"rerun_of": "t1"},
        "resources": {"ram_gb": 2},
    }


def test_many_tasks_are_canceled_by_one_request_where_possible(poiesis: Poiesis, server: TesServer) -> None:
    result = {"canceled": ["a"], "unchanged": ["b"], "unknown": ["c"], "forbidden": [], "failed": []}
    server.answer = lambda asked: (200, result if asked.path == "/poiesis/v1/tasks:cancel" else {})
    done = poiesis("task", "cancel", "a", "b", "c", "--url", server.url)
    assert (done.code, len(server.asked)) == (66, 1)
    assert done.out == "a is being canceled\nb has ended or is being canceled already\n" and "'c'" in done.err


def test_the_cancel_of_a_task_that_has_ended_does_not_claim_to_cancel_it(poiesis: Poiesis, server: TesServer) -> None:
    result = {"canceled": [], "unchanged": ["a"], "unknown": [], "forbidden": [], "failed": []}
    server.answer = lambda asked: (200, result if asked.path == "/poiesis/v1/tasks:cancel" else {})
    done = poiesis("task", "cancel", "a", "--url", server.url)
    assert done == Done(0, "a has ended or is being canceled already\n", "")


def test_top_has_the_formats_of_a_list(poiesis: Poiesis, server: TesServer) -> None:
    tasks = [
        {"id": name, "state": "RUNNING", "creation_time": f"2026-03-0{day}T00:00:00Z"}
        for name, day in (("b", 2), ("a", 1))
    ]
    server.answer = lambda asked: (200, {"name": "x", "tasks": tasks if "state=RUNNING" in asked.path else []})
    url = ("--url", server.url)
    assert [task["id"] for task in json.loads(poiesis("task", "top", "--json", *url).out)["tasks"]] == ["a", "b"]
    assert poiesis("task", "top", "-o", "name", "--limit", "1", *url).out == "a\n"
    for action in (["top"], ["list"], ["why", "a"]):
        done = poiesis("task", *action, "--watch", "-o", "json", *url)
        assert done.code == 2 and "leave out --output" in done.err


def test_an_empty_list_is_said_to_be_empty(poiesis: Poiesis, server: TesServer) -> None:
    server.serve({"GET /tasks": (200, {"tasks": []})})
    assert poiesis("task", "list", "--url", server.url) == Done(0, "", "poiesis: no tasks\n")
    assert poiesis("task", "list", "--tag", "a", "--url", server.url).err == "poiesis: no tasks match\n"
    assert poiesis("task", "list", "-o", "name", "--url", server.url) == Done(0, "", "")


def test_following_a_task_that_failed_before_its_command_says_why(poiesis: Poiesis, server: TesServer) -> None:
    logs = [{"logs": [], "metadata": {"failure_message": "/in/x: no such file"}}]
    server.serve({"GET /tasks/t": (200, {"id": "t", "state": "SYSTEM_ERROR", "logs": logs})})
    done = poiesis("task", "logs", "-f", "t", "--url", server.url)
    assert (done.code, done.out) == (0, "")
    assert done.err.endswith("poiesis: the task t ended as SYSTEM_ERROR: /in/x: no such file\n")


def test_output_of_commands_is_printed_for_pipes(poiesis: Poiesis, server: TesServer) -> None:
    logs = [{"logs": [{"stdout": "one\n"}, {"stdout": "two\x1b\n", "stderr": "err\n"}]}]
    server.serve({"GET /tasks/t": (200, {"id": "t", "state": "COMPLETE", "logs": logs})})
    url = ("--url", server.url)
    assert poiesis("task", "logs", "t", "--stdout", *url) == Done(0, "one\ntwo\\u001b\n", "")
    assert poiesis("task", "logs", "t", "--executor", "1", *url) == Done(0, "two\\u001b\n", "err\n")
    assert poiesis("task", "logs", "t", "--executor", "1", "--stdout", "--raw", *url).out == "two\x1b\n"
    followed = poiesis("task", "logs", "-f", "t", *url)
    assert followed.code == 0 and "one\n" in followed.out and "two" in followed.out  # as many executors as have ended
    for options in (["-f", "--executor", "3"], ["--executor", "3"], ["--executor", "-1", "--raw"]):
        assert poiesis("task", "logs", "t", *options, *url).code == 66


def test_the_history_of_an_explanation_is_a_table(poiesis: Poiesis, server: TesServer) -> None:
    history = [{"at": "2026-03-02T08:15:30Z", "state": "QUEUED"}, {"at": "odd", "state": "RUNNING", "reason": "x\x1b"}]
    found = {"id": "a", "state": "RUNNING", "why": "It runs.", "attempt": 1, "history": history}
    server.answer = lambda asked: (200, found)
    assert poiesis("task", "why", "a", "--url", server.url).out == "a RUNNING: It runs.\n"
    assert poiesis("task", "why", "a", "--history", "--url", server.url).out.splitlines() == [
        "a RUNNING: It runs.",
        "AT                   STATE    REASON",
        "2026-03-02 08:15:30  QUEUED",
        "                     RUNNING  x\\u001b",
    ]


def test_a_task_without_a_state_is_explained(poiesis: Poiesis, server: TesServer) -> None:
    server.serve({"GET /tasks/a": (200, {"id": "a", "state": None, "logs": None})})
    assert poiesis("task", "why", "a", "--url", server.url).out == "a UNKNOWN: the server gives no reason\n"


def test_columns_show_what_was_staged(poiesis: Poiesis, server: TesServer) -> None:
    staged = {"inputs_files": "3", "inputs_bytes": "1200000"}
    server.serve({"GET /tasks": (200, {"tasks": [{"id": "a", "logs": [{"metadata": staged}]}]})})
    listed = poiesis("task", "list", "--columns", "id,inputs,outputs", "--no-header", "--url", server.url)
    assert listed.out == "a  3 files, 1.2 MB\n"


def test_ids_of_created_tasks_are_shown_whatever_happens_next(poiesis: Poiesis, server: TesServer) -> None:
    refused = (400, {"message": "m", "problems": [{"path": "$.x", "message": "is wrong"}]})
    server.serve({"POST /tasks": [(200, {"id": "a"}), refused, (200, {"id": "b"}), (503, {"message": "gone"})]})
    done = poiesis("task", "create", "-", "--url", server.url, stdin="{} {} {} {} {}")
    assert (done.code, done.out) == (69, "a\nb\n")
    assert "$.x: is wrong" in done.err and "gone; if the request arrived, the task exists" in done.err


@pytest.mark.parametrize("name", [".", ".."])
def test_ids_of_standard_input_must_not_name_another_resource(poiesis: Poiesis, server: TesServer, name: str) -> None:
    done = poiesis("task", "get", "-", stdin=f"t\n{name}\n", TES_URL=server.url)
    assert done.code == 2 and f"invalid id '{name}'" in done.err and server.asked == []
