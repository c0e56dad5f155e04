"""Mutated requests over a real socket: each is answered, none with 500, and what was accepted can be read.

`POIESIS_MUTATIONS` documents and as many queries (500 of each by default; `make mutations` sends 10,000), from `POIESIS_SEED`. A failure
prints the seed and the number of the request, which together make it again.
"""

from __future__ import annotations

import collections
import json
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.integration.api.server_process import ServerProcess, server_process
from tests.mutation.connection import Answer, Connection
from tests.mutation.documents import TASKS, mutated
from tests.mutation.targets import UNKNOWN, VALUES, mutated_id, mutated_query

COUNT: Final = int(os.environ.get("POIESIS_MUTATIONS", "500"))
SEED: Final = os.environ.get("POIESIS_SEED", "poiesis")
BASE: Final = b"/ga4gh/tes/v1"
EXPECTED: Final = frozenset({200, 204, 303, 307, 400, 403, 404, 405, 409, 410, 411, 413, 414, 415, 417, 431, 501})
SLOW_S: Final = 10.0
JSON: Final = (b"Content-Type", b"application/json")
LIST: Final = ("view", "state", "name_prefix", "tag_key", "tag_value", "page_size", "page_token")

pytestmark = pytest.mark.timeout(3600 if COUNT > 1000 else 300)


class Session:
    """Sends requests, checks each answer, and counts them by status.

    `expected`: the statuses that may occur. `own`: headers of every request, which count more than mutated ones.
    """

    def __init__(
        self,
        server: ServerProcess,
        log: Path,
        expected: frozenset[int] = EXPECTED,
        own: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        self.expected = expected
        self.own = own
        self.connection = Connection(server.port)
        self.log = log
        self.statuses: collections.Counter[int] = collections.Counter()
        self.slowest = (0.0, "")

    def ask(
        self, what: str, method: bytes, target: bytes, headers: list[tuple[bytes, bytes]], body: bytes | None = None
    ) -> Answer:
        began = time.monotonic()
        shown = f"{what}, seed {SEED}: {method!r} {target[:300]!r} {headers} {(body or b'')[:2000]!r}"
        try:
            answer = self.connection.ask(method, target, [*headers, *self.own], body)
        except (ConnectionError, TimeoutError) as error:
            raise AssertionError(f"no answer ({error}) to {shown}") from error
        self.slowest = max(self.slowest, (time.monotonic() - began, what))
        self.statuses[answer.status] += 1
        assert answer.status in self.expected, f"{answer.status} {answer.body[:500]!r} for {shown}"
        if answer.status >= 400 and method != b"HEAD":
            if not answer.headers.get("content-type", "").startswith("text/html"):
                document = json.loads(answer.body)
                assert document["status"] == answer.status and document["error"] and document["message"], shown
            assert b"Traceback" not in answer.body, shown
        return answer

    def finish(self, name: str, capsys: pytest.CaptureFixture[str]) -> None:
        log = self.log.read_text(errors="replace")
        has_failed = "Traceback" in log
        assert not has_failed, log[-5000:]
        assert self.slowest[0] < SLOW_S, self.slowest
        with capsys.disabled():
            print(
                f"\n{name}: {sum(self.statuses.values())} requests, {dict(sorted(self.statuses.items()))}, slowest {self.slowest}"
            )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ServerProcess, Path]]:
    directory = tmp_path_factory.mktemp("mutations")
    with server_process(directory, {}) as server:
        yield server, directory / "server.log"


@pytest.fixture
def session(server: tuple[ServerProcess, Path]) -> Iterator[Session]:
    session = Session(*server)
    yield session
    session.connection.close()


def chances(kind: str) -> Iterator[tuple[str, random.Random]]:
    """A source of chance for each request, so that one can be repeated without those before it."""
    for number in range(COUNT):
        yield f"{kind} {number}", random.Random(f"{SEED} {kind} {number}")


def as_chunks(chance: random.Random, body: bytes) -> bytes:
    """In the chunked transfer coding, in up to four pieces."""
    cuts = sorted(chance.randint(0, len(body)) for _ in range(3))
    pieces = [body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True)]
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces if piece) + b"0\r\n\r\n"


def headers_of_a_body(chance: random.Random) -> list[tuple[bytes, bytes]]:
    if chance.random() < 0.9:
        return [JSON]
    kinds = (
        b"application/json; charset=utf-8", b"APPLICATION/JSON", b"application/json;charset=utf-16", b"text/plain",
        b"application/x-www-form-urlencoded",
        b"application/json; boundary=", b"*/*", b"", b";", b"application/problem+json", b"multipart/form-data; boundary=x", b"\xff\xfe",
        b"a" * 5000,
    )  # fmt: skip
    more = chance.choice(
        (
            [],
            [],
            [(b"Content-Encoding", chance.choice((b"gzip", b"identity", b"", b"br, gzip")))],
            [(b"Expect", b"100-continue")],
        )
    )
    return [(b"Content-Type", chance.choice(kinds)), *more]


def test_no_document_makes_the_service_fail(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    for what, chance in chances("document"):
        body = mutated(chance, chance.choice(TASKS))
        headers = headers_of_a_body(chance)
        if chance.random() < 0.05:
            headers, body = [*headers, (b"Transfer-Encoding", b"chunked")], as_chunks(chance, body)
        answer = session.ask(what, b"POST", BASE + b"/tasks", headers, body)
        if answer.status == 200:
            read_back(session, what, json.loads(answer.body)["id"])
    for view in (b"MINIMAL", b"BASIC", b"FULL"):
        page = session.ask("the list of all", b"GET", BASE + b"/tasks?page_size=2047&view=" + view, [])
        is_complete = page.status == 200 and bool(json.loads(page.body)["tasks"])
        assert is_complete, page.body[:500]  # no expression with the body: pytest would show all of it
    session.finish("documents", capsys)


def read_back(session: Session, what: str, task_id: str) -> None:
    answer = session.ask(what, b"GET", b"%s/tasks/%s?view=FULL" % (BASE, task_id.encode()), [])
    document = json.loads(answer.body.decode("utf-8"))  # strict: no lone surrogate
    is_complete = answer.status == 200 and bool(document["executors"]) and None not in document.values()
    assert is_complete, f"{what}: {answer.body[:500]!r}"


def test_no_query_makes_the_service_fail(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    ids, tokens = some_tasks(session)
    for what, chance in chances("query"):
        request = chance.choices(REQUESTS, weights=[6, 2, 1, 1])[0]
        method, target = request(chance, ids, tokens)
        headers = [pair for pair in HEADERS if chance.random() < 0.02]
        session.ask(what, method, target, headers, b"" if method in (b"POST", b"PUT", b"PATCH") else None)
    session.finish("queries", capsys)


def some_tasks(session: Session) -> tuple[list[str], list[str]]:
    ids = [
        json.loads(
            session.ask("a valid task", b"POST", BASE + b"/tasks", [JSON], json.dumps(TASKS[n % 2]).encode()).body
        )["id"]
        for n in range(20)
    ]
    queries = ("page_size=3", "page_size=1&view=FULL", "page_size=2&state=QUEUED", "page_size=1&tag_key=k&tag_value=v")
    pages = [session.ask("a page", b"GET", b"%s/tasks?%s" % (BASE, query.encode()), []) for query in queries]
    return ids, [json.loads(page.body)["next_page_token"] for page in pages]


Request = Callable[[random.Random, list[str], list[str]], tuple[bytes, bytes]]


def a_listing(chance: random.Random, _: list[str], tokens: list[str]) -> tuple[bytes, bytes]:
    return b"GET", BASE + b"/tasks?" + mutated_query(chance, LIST, tokens)


def a_task(chance: random.Random, ids: list[str], _: list[str]) -> tuple[bytes, bytes]:
    return b"GET", b"%s/tasks/%s?%s" % (BASE, mutated_id(chance, ids), mutated_query(chance, ("view",)))


def a_cancel(chance: random.Random, ids: list[str], _: list[str]) -> tuple[bytes, bytes]:
    return b"POST", b"%s/tasks/%s:cancel?%s" % (BASE, mutated_id(chance, ids), mutated_query(chance, ()))


def another_path(chance: random.Random, ids: list[str], _: list[str]) -> tuple[bytes, bytes]:
    method = chance.choice(
        (b"GET", b"HEAD", b"OPTIONS", b"POST", b"PUT", b"DELETE", b"PATCH", b"TRACE", b"get", b"PURGE", b"X" * 300)
    )
    prefix = chance.choice(
        (BASE, b"/v1", b"/v1/", b"//v1", b"/ga4gh", b"", b"/%76%31", b"http://localhost/v1", BASE + b"/../v1")
    )
    path = chance.choice(
        (
            b"/tasks",
            b"/tasks/",
            b"/service-info",
            b"/tasks/service-info",
            b"/ui/",
            b"/openapi.json",
            b"/" + mutated_id(chance, ids),
        )
    )
    return method, prefix + path + chance.choice((b"", b"?", b"?" + mutated_query(chance, LIST)))


REQUESTS: Final[tuple[Request, ...]] = (a_listing, a_task, a_cancel, another_path)
HEADERS: Final = [
    (b"Accept", b"text/html"), (b"Accept", b"application/xml;q=0"), (b"Accept", b"\xff"), (b"If-None-Match", b"*"),
    (b"If-Modified-Since", b"x"),
    (b"Range", b"bytes=5-1"), (b"Authorization", b"Basic !!!"), (b"Authorization", b"Bearer"), (b"Cookie", b"a=b; \xff"),
    (b"X-HTTP-Method-Override", b"DELETE"),
    (b"Accept-Encoding", b"gzip;q=x"), (b"Accept-Language", b"\xe9" * 2000), (b"Origin", b"null"), (b"Referer", b"\x80"),
    (b"X-Forwarded-For", b"a, , ::"),
    (b"Forwarded", b"for=;;="), (b"TE", b"trailers"), (b"Upgrade", b"h2c"), (b"Expect", b"200-maybe"), (b"X-Request-Id",
    b"\xf0" * 1000),
]  # fmt: skip


def test_the_mutator_makes_the_same_requests_from_the_same_seed() -> None:
    def some(seed: str) -> list[Any]:
        chance = random.Random(seed)
        return [(mutated(chance, TASKS[1]), mutated_query(chance, LIST)) for _ in range(50)]

    assert some("a") == some("a") != some("b")
    assert set(UNKNOWN).isdisjoint(LIST) and len(VALUES) > 50
