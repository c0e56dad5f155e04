"""Unusual but plausible HTTP: each case is a row of the table "Unusual requests" in docs/compliance.md, by its name."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Final

import pytest

from poiesis.api.server import BackgroundServer
from tests.mutation.connection import Connection
from tests.unit.api.service import HELLO, Site

V1: Final = b"/ga4gh/tes/v1"
JSON: Final = (b"Content-Type", b"application/json")
TASK: Final = json.dumps(HELLO).encode()
CHUNKED: Final = (b"Transfer-Encoding", b"chunked")


@dataclass(frozen=True)
class Case:
    """A request and the answer: its status, and members of its document (`tasks`: how many) or headers."""

    status: int
    target: bytes = b"/tasks"
    method: bytes = b"GET"
    headers: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes | None = None
    document: dict[str, Any] | None = None
    answered: dict[str, str] | None = None


def post(status: int, body: bytes, *headers: tuple[bytes, bytes], **expected: Any) -> Case:
    return Case(status, method=b"POST", headers=headers or (JSON,), body=body, **expected)


def query(status: int, text: bytes, **expected: Any) -> Case:
    return Case(status, b"/tasks?" + text, **expected)


def in_chunks(body: bytes) -> bytes:
    return b"%x;name=value\r\n%s\r\n0\r\nTrailer: x\r\n\r\n" % (len(body), body)


CASES: Final[dict[str, Case]] = {
    # ---- parameters
    "page_size beyond int32": query(200, b"page_size=2147483648", document={"tasks": 3}),
    "page_size beyond int64": query(400, b"page_size=99999999999999999999", document={"error": "invalid_request"}),
    "page_size 2048": query(200, b"page_size=2048", document={"tasks": 3}),
    "page_size 0": query(400, b"page_size=0", document={"error": "invalid_request"}),
    "page_size negative": query(400, b"page_size=-1", document={"error": "invalid_request"}),
    "page_size empty": query(200, b"page_size=", document={"tasks": 3}),
    "page_size not a number": query(400, b"page_size=ten", document={"error": "invalid_request"}),
    "page_size with a fraction": query(400, b"page_size=1.5", document={"error": "invalid_request"}),
    "page_size repeated": query(200, b"page_size=1&page_size=2", document={"tasks": 2}),
    "view unknown": query(400, b"view=SOME", document={"error": "invalid_request"}),
    "view in another case": query(200, b"view=basic", document={"tasks": 3}),
    "view empty": query(200, b"view=", document={"tasks": 3}),
    "view repeated": query(200, b"view=SOME&view=FULL", document={"tasks": 3}),
    "state unknown word": query(400, b"state=STOPPED", document={"error": "invalid_request"}),
    "state UNKNOWN": query(200, b"state=UNKNOWN", document={"tasks": 3}),
    "tag_value without tag_key": query(400, b"tag_value=v", document={"error": "invalid_request"}),
    "tag_key with a comma": query(200, b"tag_key=a,b", document={"tasks": 0}),
    "page_token not issued": query(400, b"page_token=x", document={"error": "invalid_request"}),
    "page_token empty": query(200, b"page_token=", document={"tasks": 3}),
    "unknown parameter": query(200, b"verbose=1&page_size=1", document={"tasks": 1}),
    "a parameter in another case": query(200, b"PAGE_SIZE=1", document={"tasks": 3}),
    "more than 1,000 parameters": query(400, b"&".join([b"a=b"] * 1001), document={"error": "invalid_request"}),
    "percent encoding cut off": query(200, b"name_prefix=%zz", document={"tasks": 0}),
    "percent encoding not UTF-8": query(200, b"name_prefix=%ff", document={"tasks": 0}),
    "plus sign in a query": query(200, b"name_prefix=a+b", document={"tasks": 0}),
    # ---- paths and methods
    "trailing slash": Case(307, b"/tasks/", answered={"location": "/ga4gh/tes/v1/tasks"}),
    "HEAD": Case(200, method=b"HEAD", answered={"content-type": "application/json"}),
    "HEAD of an unknown task": Case(404, b"/tasks/nothing", b"HEAD"),
    "OPTIONS": Case(405, method=b"OPTIONS", answered={"allow": "GET, POST, HEAD"}),
    "DELETE": Case(405, method=b"DELETE", answered={"allow": "GET, POST, HEAD"}),
    "method unknown to HTTP": Case(501, method=b"FROB", document={"error": "not_implemented"}),
    "method in lower case": Case(501, method=b"get", document={"error": "not_implemented"}),
    # ---- headers
    "Accept that excludes JSON": Case(200, headers=((b"Accept", b"text/html;q=1, */*;q=0"),)),
    "Accept-Encoding": Case(200, headers=((b"Accept-Encoding", b"gzip, br"),)),
    "Accept-Charset": Case(200, headers=((b"Accept-Charset", b"iso-8859-1"),)),
    "If-None-Match": Case(200, headers=((b"If-None-Match", b"*"),), document={"tasks": 3}),
    "If-Modified-Since": Case(200, headers=((b"If-Modified-Since", b"Sun, 29 Nov 2026 10:00:00 GMT"),)),
    "Range": Case(200, headers=((b"Range", b"bytes=0-9"),), document={"tasks": 3}),
    "X-HTTP-Method-Override": Case(200, headers=((b"X-HTTP-Method-Override", b"DELETE"),), document={"tasks": 3}),
    # ---- bodies
    "charset utf-8": post(200, TASK, (b"Content-Type", b'application/json; charset="UTF-8"')),
    "charset latin-1": post(200, TASK, (b"Content-Type", b"application/json; charset=iso-8859-1")),
    "no Content-Type": post(200, TASK, (b"X-Nothing", b"1")),
    "Content-Type text/plain": post(415, TASK, (b"Content-Type", b"text/plain"), document={"error": "unsupported_media_type"}),
    "Content-Type of another JSON": post(415, TASK, (b"Content-Type", b"application/problem+json")),
    "byte order mark": post(200, b"\xef\xbb\xbf" + TASK),
    "UTF-16": post(200, TASK.decode().encode("utf-16")),
    "not UTF-8": post(400, b'{"name": "\xff"}', document={"error": "not_json"}),
    "chunked": post(200, in_chunks(TASK), JSON, CHUNKED),
    "chunked and a length": post(400, in_chunks(TASK), JSON, CHUNKED, (b"Content-Length", b"5"), document={"error": "bad_request"}),
    "Expect: 100-continue": post(200, TASK, JSON, (b"Expect", b"100-continue")),
    "Expect anything else": post(200, TASK, JSON, (b"Expect", b"200-ok")),
    "Content-Encoding gzip": post(415, gzip.compress(TASK), JSON, (b"Content-Encoding", b"gzip")),
    "empty body": post(400, b"", document={"error": "not_json"}),
    "two documents": post(400, TASK + TASK, document={"error": "not_json"}),
    "duplicate keys": post(200, TASK[:-1] + b', "name": "last"}'),
    "lone surrogate": post(400, TASK[:-1] + rb', "description": "\ud800"}', document={"error": "invalid_task"}),
    "NaN": post(400, TASK[:-1] + b', "resources": {"ram_gb": NaN}}', document={"error": "not_json"}),
    "number beyond any type": post(400, TASK[:-1] + b', "resources": {"ram_gb": 1e999}}', document={"error": "invalid_task"}),
    "nested 100,000 deep": post(400, b"[" * 100_000, document={"error": "not_json"}),
    "null for everything unset": post(200, TASK[:-1] + b', "inputs": null, "tags": {"a": null}, "id": null}'),
    "body of GET": Case(200, method=b"GET", headers=(JSON,), body=b"{"),
    "body of cancel": Case(404, b"/tasks/nothing:cancel", b"POST", (JSON,), b"{"),
}  # fmt: skip


@pytest.fixture(scope="module")
def connections() -> Iterator[dict[bool, Connection]]:
    """To a service with three tasks that nothing is posted to, and to another one. By whether it is for posting."""
    with ExitStack() as stack:
        found = {}
        for is_for_posting in (False, True):
            site = Site(validate_responses=False)
            for _ in range(3):
                site.create()
            server = stack.enter_context(BackgroundServer(site.app, replace(site.api, port=0)))
            found[is_for_posting] = stack.enter_context(Connection(server.port))
        yield found


@pytest.mark.parametrize("name", CASES)
def test_an_unusual_request_is_answered(connections: dict[bool, Connection], name: str) -> None:
    case = CASES[name]
    connection = connections[case.method == b"POST"]
    answer = connection.ask(case.method, V1 + case.target, list(case.headers), case.body)
    connection.close()
    assert answer.status == case.status, answer
    if case.document is not None:
        document = json.loads(answer.body)
        shown = {key: len(value) if isinstance(value, list) else value for key, value in document.items()}
        assert shown.items() >= case.document.items(), shown
    for header, value in (case.answered or {}).items():
        assert answer.headers[header] == value
