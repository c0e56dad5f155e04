"""Mutated requests to every operation of the extensions, which are read from their OpenAPI document, as `test_mutations` does for TES."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from poiesis.api.credentials import hash_secret
from poiesis.domain.states import State
from poiesis.domain.task import ExecutorLog, TaskId, TaskLog
from poiesis.repository.sqlite.database import SqliteDatabase
from poiesis.repository.sqlite.tasks import SqliteTaskRepository
from tests.integration.api.server_process import ServerProcess, server_process
from tests.integration.api.test_mutations import (
    COUNT,
    EXPECTED,
    HEADERS,
    JSON,
    Session,
    as_chunks,
    chances,
    headers_of_a_body,
    some_tasks,
)
from tests.mutation.documents import TASKS, mutated
from tests.mutation.operations import Operation, operations
from tests.mutation.targets import IDS, VALUES, mutated_id, mutated_query

BASE: Final = "/poiesis/v1"
DOCUMENT: Final[dict[str, Any]] = yaml.safe_load((Path(__file__).parents[3] / "specs/poiesis.openapi.yaml").read_text())
OPERATIONS: Final = tuple(operations(DOCUMENT))
WITH_BODY: Final = tuple(operation for operation in OPERATIONS if operation.body is not None)
TOKEN: Final = "a token of an administrator"
BODIES: Final[dict[str, tuple[Any, ...]]] = {
    "/tasks:validate": TASKS,
    "/tasks:wait": ({"ids": ["x", "0" * 26], "until": "ANY", "timeout": 0},),
    "/tasks:cancel": (
        {"filter": {"name_prefix": "n", "tags": {"k": "v"}, "everyone": False}, "dry_run": False, "limit": 5},
        {"ids": ["x", "0" * 26], "dry_run": True},
    ),
    "/tasks/{id}:rerun": ({"name": "n", "resources": {"ram_gb": 2, "cpu_cores": None}, "tags": {"a": None, "b": "c"}},),
}
"""More valid bodies than the document has as examples."""
KEYS: Final = (b'"k1"', b"k1", b'"', b"", b"a b", b"\xff", b"x" * 300, b'"a\\"b"', b"k1, k2")
PARTS: Final[dict[str, tuple[bytes, ...]]] = {
    "executor": (b"0", b"0", b"1", b"00", b"-1", b"999999999", b"9" * 40, b"\xd9\xa3"),
    "stream": (b"stdout", b"stderr", b"STDOUT", b"both", b"0"),
}
"""Of a path, other than ids."""
KEPT: Final = 3

pytestmark = pytest.mark.timeout(3600 if COUNT > 1000 else 300)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ServerProcess, Path]]:
    """With a user who may do everything, so that no operation is refused before it has read the request."""
    directory = tmp_path_factory.mktemp("mutations")
    users = directory / "users.json"
    users.write_text(json.dumps([{"name": "ada", "token_hash": hash_secret(TOKEN, "bearer"), "admin": True}]))
    settings = {"auth": "bearer,api_key", "credentials_file": users}
    with server_process(directory, settings) as server:
        yield server, directory / "server.log"


@pytest.fixture
def session(server: tuple[ServerProcess, Path]) -> Iterator[Session]:
    statuses = EXPECTED | {201, 202, 206, 416, 422, 429}
    session = Session(*server, statuses, ((b"Authorization", b"Bearer " + TOKEN.encode()),))
    yield session
    session.connection.close()


def finish_a_task(log: Path, task_id: str) -> None:
    """As the roles would: it has output, and a reason for its end."""
    database = SqliteDatabase(log.parent / "tasks.sqlite")
    repository = SqliteTaskRepository(database)
    task = repository.get(TaskId(task_id))
    at = datetime.now(UTC)
    logs = TaskLog((ExecutorLog(1, at, at, "one\ntwo\n", "failed \x1b[31m\n"),), start_time=at, end_time=at)
    assert repository.save(replace(task, state=State.EXECUTOR_ERROR, log=logs), seen=task.version)
    database.close()


def usable_ids(session: Session) -> tuple[list[str], list[str]]:
    """Ids, and page tokens. The last KEPT ids are those of a finished task, a webhook and a key, which requests do not delete."""
    ids, tokens = some_tasks(session)
    finish_a_task(session.log, ids[-1])
    webhook = next(each.body for each in WITH_BODY if each.path == "/webhooks")
    for path, body in (("/webhooks", webhook), ("/keys", {"name": "n"})):
        answer = session.ask("a valid body", b"POST", (BASE + path).encode(), [JSON], json.dumps(body).encode())
        ids += ids_in(answer.body)
    return ids, tokens


def target(chance: random.Random, operation: Operation, ids: list[str], query: bytes) -> bytes:
    usable = ids[:-KEPT] if operation.method == "DELETE" else ids

    def part(match: re.Match[str]) -> str:
        values = PARTS.get(match[1], [name.encode() for name in usable[-KEPT:]])
        found = chance.choice(values) if chance.random() < 0.5 else mutated_id(chance, usable)
        return found.decode("latin-1")

    path = re.sub(r"\{(\w+)\}", part, BASE + operation.path)
    return path.encode("latin-1") + (b"?" + query if query else b"")


def body_of(chance: random.Random, operation: Operation, ids: list[str]) -> Any:
    """A valid one, which often has the ids of tasks that exist, and waits for nothing."""
    body = chance.choice((operation.body, *BODIES.get(operation.path, ())))
    if isinstance(body, dict) and "ids" in body and chance.random() < 0.5:
        body = {**body, "ids": ids[-KEPT - 1 : -KEPT + 1]}
    return {**body, "timeout": 0} if isinstance(body, dict) and "timeout" in body else body


def headers_of(chance: random.Random, operation: Operation) -> list[tuple[bytes, bytes]]:
    values = (*VALUES, *IDS, *KEYS)
    own = [(name.encode(), chance.choice(values).translate(None, b"\r\n\0")) for name in operation.headers]
    return [pair for pair in own if chance.random() < 0.7] + [pair for pair in HEADERS if chance.random() < 0.02]


def remove(session: Session, operation: Operation, created: list[str]) -> None:
    """Delete what was created where that is possible, so that no limit is reached."""
    path = operation.path + "/{id}"
    if any((other.method, other.path) == ("DELETE", path) for other in OPERATIONS) and operation.method == "POST":
        for name in created:
            session.ask("delete", b"DELETE", f"{BASE}{operation.path}/{name}".encode(), [])


def ids_in(body: bytes) -> list[str]:
    try:
        found = json.loads(body)
    except ValueError:
        return []
    return [found["id"]] if isinstance(found, dict) and isinstance(found.get("id"), str) else []


def test_no_query_makes_an_extension_fail(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    ids, tokens = usable_ids(session)
    for what, chance in chances("extension query"):
        operation = chance.choice(OPERATIONS)
        sent = json.dumps(body_of(chance, operation, ids)).encode() if operation.body is not None else None
        query = mutated_query(chance, operation.query, tokens)
        if "timeout" in operation.query:  # of a repeated parameter the last one counts: nothing waits for long
            query += b"&timeout=" + chance.choice((b"0", b"0", b"-1", b"61", b"1e9", b"%00"))
        headers = headers_of(chance, operation) + ([JSON] if sent is not None else [])
        answer = session.ask(what, operation.method.encode(), target(chance, operation, ids, query), headers, sent)
        created = ids_in(answer.body)
        ids = [*created[:1], *ids] if len(ids) < 40 else ids
        remove(session, operation, created)
    session.finish("queries of extensions", capsys)


def test_no_document_makes_an_extension_fail(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    ids, _ = usable_ids(session)
    for what, chance in chances("extension document"):
        operation = chance.choice(WITH_BODY)
        body = mutated(chance, body_of(chance, operation, ids))
        if (
            operation.path == "/tasks:wait" and b'"timeout":' not in body
        ):  # lost by a mutation: by default it waits for 30 s
            body = body.replace(b"{", b'{"timeout":0,', 1)
        headers = headers_of_a_body(chance) + headers_of(chance, operation)
        if chance.random() < 0.05:
            headers, body = [*headers, (b"Transfer-Encoding", b"chunked")], as_chunks(chance, body)
        answer = session.ask(what, operation.method.encode(), target(chance, operation, ids, b""), headers, body)
        created = ids_in(answer.body)
        remove(session, operation, created)
    session.finish("documents of extensions", capsys)
