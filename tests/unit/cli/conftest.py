"""The command in this process, and a server with prepared responses."""

from __future__ import annotations

import io
import json
import os
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

import pytest

from poiesis.cli.main import main


class Done(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("POIESIS_", "TES_")):
            monkeypatch.delenv(name)


@pytest.fixture
def poiesis(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    """`poiesis ARGUMENTS` with variables and standard input."""

    def run(*arguments: str, stdin: str = "", **variables: str) -> Done:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        try:
            code = main(arguments)
        except SystemExit as end:  # argparse
            code = int(end.code or 0)
        for name in variables:
            monkeypatch.delenv(name)
        written = capsys.readouterr()
        assert "Traceback" not in written.err
        return Done(code, written.out, written.err)

    return run


class Asked(NamedTuple):
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


Answer = tuple[int, Any]
"""A status, and a body: bytes as they are, anything else as JSON."""


class TesServer:
    """`answer` sets its responses; `asked` records the requests."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.answer: Callable[[Asked], Answer] = lambda asked: (404, {})
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                asked = Asked(self.command, self.path, dict(self.headers), body)
                outer.asked.append(asked)
                status, content = outer.answer(asked)
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_POST = do_GET

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"

    def serve(self, answers: dict[str, Answer | list[Answer]], prefix: str = "/ga4gh/tes/v1") -> None:
        """By `METHOD /path`, without prefix and query; of a list one after the other, the last one repeatedly."""
        table = {"GET /service-info": (200, {"name": "x"}), **answers}

        def answer(asked: Asked) -> Answer:
            path = asked.path.partition("?")[0]
            found = table.get(f"{asked.method} {path.removeprefix(prefix)}") if path.startswith(prefix) else None
            if isinstance(found, list):
                return found.pop(0) if len(found) > 1 else found[0]
            return found or (404, {"message": "there is nothing"})

        self.answer = answer


@pytest.fixture
def server() -> Iterator[TesServer]:
    server = TesServer()
    thread = threading.Thread(target=server.http.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.http.shutdown()
    server.http.server_close()
    thread.join()
