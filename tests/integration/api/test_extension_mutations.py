"""Mutated documents and queries to /poiesis/v1, by the mutators and the checks of `test_mutations`: each is answered, none with 500."""

from __future__ import annotations

import json
import random
from typing import Any, Final

import pytest

from tests.integration.api.test_mutations import (
    COUNT,
    HEADERS,
    JSON,
    Session,
    as_chunks,
    chances,
    headers_of_a_body,
    server,
    session,
)
from tests.mutation.documents import TASKS, mutated
from tests.mutation.targets import mutated_id, mutated_query

__all__ = ["server", "session"]  # fixtures
BASE: Final = b"/poiesis/v1"
pytestmark = pytest.mark.timeout(3600 if COUNT > 1000 else 300)

WAIT: Final[dict[str, Any]] = {"ids": ["x", "0" * 26], "until": "ANY", "timeout": 0}
CANCEL: Final[dict[str, Any]] = {
    "filter": {"name_prefix": "n", "tags": {"k": "v"}, "everyone": False},
    "dry_run": False,
    "limit": 5,
}
IDS: Final[dict[str, Any]] = {"ids": ["x", "0" * 26], "dry_run": True}
PATCH: Final[dict[str, Any]] = {
    "name": "n",
    "resources": {"ram_gb": 2, "cpu_cores": None},
    "tags": {"a": None, "b": "c"},
}
KEYS: Final = (b'"k1"', b"k1", b'"', b"", b"a b", b"\xff", b"x" * 300, b'"a\\"b"', b"k1, k2")


def _request(chance: random.Random, ids: list[str]) -> tuple[bytes, bytes]:
    path, document = chance.choice(
        [(b"/tasks:validate", chance.choice(TASKS)), (b"/tasks:validate", chance.choice(TASKS)), (b"/tasks:wait", WAIT),
         (b"/tasks:states", {"ids": [*ids[:3], "x"]}), (b"/tasks:cancel", CANCEL), (b"/tasks:cancel", IDS),
         (b"/tasks/%s:rerun" % mutated_id(chance, ids), PATCH), (b"/tasks/%s:rerun" % ids[0].encode(), PATCH)]
    )  # fmt: skip
    return path, mutated(chance, document)


def test_no_document_makes_the_extensions_fail(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    ids = _tasks(session)
    for what, chance in chances("extension document"):
        path, body = _request(chance, ids)
        headers = headers_of_a_body(chance)
        if chance.random() < 0.1:
            headers = [*headers, (b"Idempotency-Key", chance.choice(KEYS))]
        if chance.random() < 0.05:
            headers, body = [*headers, (b"Transfer-Encoding", b"chunked")], as_chunks(chance, body)
        session.ask(what, b"POST", BASE + path, headers, body)
    session.finish("extension documents", capsys)


def test_no_query_makes_the_extensions_fail(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    ids = _tasks(session)
    for what, chance in chances("extension query"):
        method, path, names, last = chance.choice(
            [(b"GET", b"/tasks/%s/wait" % mutated_id(chance, ids), ("timeout", "from"), b"&timeout=0"),
             (b"GET", b"/tasks/%s/why" % mutated_id(chance, ids), (), b""),
             (b"HEAD", b"/events", ("task", "tag", "snapshot", "last_event_id"), b""),
             (b"GET", b"/usage", ("from", "to", "by"), b""),
             (b"GET", b"/capabilities", (), b"")]
        )  # fmt: skip
        headers = [pair for pair in HEADERS if chance.random() < 0.02]
        if chance.random() < 0.2:
            headers = [
                *headers,
                (b"Last-Event-ID", chance.choice((b"0", b"1", b"x", b"-1", b"9" * 18, b"9" * 40, b"", b"\xff"))),
            ]
        session.ask(what, method, BASE + path + b"?" + mutated_query(chance, names) + last, headers)
    session.finish("extension queries", capsys)


def _tasks(session: Session) -> list[str]:
    body = json.dumps(TASKS[0]).encode()
    answers = [session.ask("a valid task", b"POST", b"/v1/tasks", [JSON], body) for _ in range(5)]
    return [json.loads(answer.body)["id"] for answer in answers]
