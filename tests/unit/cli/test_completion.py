"""Ids of tasks offered to a shell. Real shells: tests/integration/cli/test_terminal.py."""

from __future__ import annotations

import argparse
from urllib.parse import parse_qs, urlsplit

from poiesis.cli import completion
from tests.unit.cli.conftest import TesServer


def ids(server: TesServer, prefix: str, action: str) -> dict[str, str]:
    return completion._task_ids(prefix, argparse.Namespace(url=server.url, profile=None, action=action))


def test_ids_come_from_one_page_without_what_a_shell_or_terminal_could_obey(server: TesServer) -> None:
    unsafe = ["t$(id)", "t 1", "t\x1b[2J", "t" * 201, "", None]
    tasks = [
        {"id": "t1", "state": "RUNNING", "name": "a\x1b]0;x\x07b"},
        {"id": "t2", "state": "COMPLETE"},
        {"id": "u1"},
    ]
    more = [{"id": each, "state": "RUNNING"} for each in unsafe]
    server.serve({"GET /tasks": (200, {"tasks": [*tasks, *more], "next_page_token": "further"})})

    assert ids(server, "t", "get") == {"t1": "RUNNING a 0 x b", "t2": "COMPLETE"}
    assert ids(server, "t", "cancel") == {"t1": "RUNNING a 0 x b"}
    pages = [
        parse_qs(urlsplit(asked.path).query) for asked in server.asked if asked.path.split("?")[0].endswith("/tasks")
    ]
    assert pages == [{"view": ["BASIC"], "page_size": ["100"]}] * 2
