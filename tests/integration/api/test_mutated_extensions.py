"""Mutated requests to every operation of the extensions, which are read from their OpenAPI document, as `test_mutations` does for TES."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.integration.api.server_process import ServerProcess
from tests.integration.api.test_mutations import (
    COUNT,
    EXPECTED,
    HEADERS,
    JSON,
    Session,
    as_chunks,
    chances,
    headers_of_a_body,
    server,
    some_tasks,
)
from tests.mutation.documents import mutated
from tests.mutation.operations import Operation, operations
from tests.mutation.targets import IDS, VALUES, mutated_id, mutated_query

__all__ = ["server"]  # a fixture

BASE: Final = "/poiesis/v1"
DOCUMENT: Final[dict[str, Any]] = yaml.safe_load((Path(__file__).parents[3] / "specs/poiesis.openapi.yaml").read_text())
OPERATIONS: Final = tuple(operations(DOCUMENT))
WITH_BODY: Final = tuple(operation for operation in OPERATIONS if operation.body is not None)

pytestmark = pytest.mark.timeout(3600 if COUNT > 1000 else 300)


@pytest.fixture
def session(server: tuple[ServerProcess, Path]) -> Iterator[Session]:
    session = Session(*server, EXPECTED | {201, 202, 206, 409, 410, 416, 422, 429})
    yield session
    session.connection.close()


def target(chance: random.Random, operation: Operation, ids: list[str], query: bytes) -> bytes:
    path = re.sub(r"\{\w+\}", lambda _: mutated_id(chance, ids).decode("latin-1"), BASE + operation.path)
    return path.encode("latin-1") + (b"?" + query if query else b"")


def headers_of(chance: random.Random, operation: Operation) -> list[tuple[bytes, bytes]]:
    own = [(name.encode(), chance.choice((*VALUES, *IDS)).translate(None, b"\r\n\0")) for name in operation.headers]
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
    ids, tokens = some_tasks(session)
    for what, chance in chances("extension query"):
        operation = chance.choice(OPERATIONS)
        sent = json.dumps(operation.body).encode() if operation.body is not None else None
        query = mutated_query(chance, operation.query, tokens)
        if "timeout" in operation.query:  # of a repeated parameter the last one counts: nothing waits for long
            query += b"&timeout=" + chance.choice((b"0", b"0", b"-1", b"61", b"1e9", b"%00"))
        headers = headers_of(chance, operation) + ([JSON] if sent is not None else [])
        answer = session.ask(what, operation.method.encode(), target(chance, operation, ids, query), headers, sent)
        created = ids_in(answer.body)
        ids = [*ids, *created][-40:]
        remove(session, operation, created)
    session.finish("queries of extensions", capsys)


@pytest.mark.skipif(not WITH_BODY, reason="no operation of the extensions has a body")
def test_no_document_makes_an_extension_fail(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    ids, _ = some_tasks(session)
    for what, chance in chances("extension document"):
        operation = chance.choice(WITH_BODY)
        body = mutated(chance, operation.body)
        headers = headers_of_a_body(chance) + headers_of(chance, operation)
        if chance.random() < 0.05:
            headers, body = [*headers, (b"Transfer-Encoding", b"chunked")], as_chunks(chance, body)
        answer = session.ask(what, operation.method.encode(), target(chance, operation, ids, b""), headers, body)
        created = ids_in(answer.body)
        ids = [*ids, *created][-40:]
        remove(session, operation, created)
    session.finish("documents of extensions", capsys)
