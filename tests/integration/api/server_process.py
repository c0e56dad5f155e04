"""The API in a separate process, over a SQLite store, for tests that attack and measure it from outside."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import requests

from tests.servers.process import free_ports

ROOT = Path(__file__).parents[3]
READY_S = 60


class ServerProcess:
    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process = process
        self.port = port
        self.url = f"http://127.0.0.1:{port}"

    def rss(self) -> int:
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGESIZE")

    def open_connections(self) -> int:
        """The connections that the server has not closed."""
        return established(self.port)

    def connect(self, timeout_s: float = 20) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=timeout_s)

    def exchange(self, *parts: bytes, timeout_s: float = 20) -> bytes:
        """Send the parts on a new connection; return what is received until the server closes it or `timeout_s` has passed."""
        with self.connect(timeout_s) as connection:
            received = b""
            try:
                for part in parts:
                    connection.sendall(part)
                while chunk := connection.recv(65536):
                    received += chunk
            except (TimeoutError, ConnectionError):
                pass
            return received


def established(port: int) -> int:
    """The connections to a port of this machine that its server has not closed."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(1 for row in rows if row[1].endswith(f":{port:04X}") and row[3] == "01")


@contextmanager
def server_process(directory: Path, settings: Mapping[str, object], *, grace_s: float = 20) -> Iterator[ServerProcess]:
    """Run the API until the end of the block. `settings`: fields of `ApiSettings`."""
    port = free_ports(1)[0]
    environ = {k: v for k, v in os.environ.items() if not k.startswith("POIESIS_")}
    environ |= {f"POIESIS_API__{name.upper()}": str(value) for name, value in settings.items()}
    environ |= {"POIESIS_API__PORT": str(port), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.integration.api.server_process", str(directory), str(grace_s)]
    with open(directory / "server.log", "wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environ, stdout=log, stderr=log)
    try:
        server = ServerProcess(process, port)
        _await_ready(server, directory / "server.log")
        yield server
    finally:
        process.kill()
        process.wait()


def _await_ready(server: ServerProcess, log: Path) -> None:
    deadline = time.monotonic() + READY_S
    while True:
        try:
            if requests.get(f"{server.url}/healthz", timeout=5).status_code == 200:
                return
        except requests.RequestException:
            pass
        if server.process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(log.read_text())
        time.sleep(0.05)


GUESSES = """
import asyncio, base64, collections, itertools, json, sys
statuses = collections.Counter()

async def guess(number, port):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for i in itertools.count():
        name = "ada" if number % 2 else f"user-{number}"
        value = base64.b64encode(f"{name}:wrong {number} {i}".encode()).decode()
        writer.write(f"GET /v1/tasks HTTP/1.1\\r\\nHost: localhost\\r\\nAuthorization: Basic {value}\\r\\n\\r\\n".encode())
        head = await reader.readuntil(b"\\r\\n\\r\\n")
        length = next(int(line.split()[1]) for line in head.lower().splitlines() if line.startswith(b"content-length"))
        await reader.readexactly(length)
        statuses[head.split()[1].decode()] += 1

async def main(connections, port):
    guesses = [asyncio.create_task(guess(number, port)) for number in range(connections)]
    while statuses["429"] < connections:
        await asyncio.sleep(0.1)
    print("guessing", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    for task in guesses:
        task.cancel()

asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
print(json.dumps(statuses))
"""


@contextmanager
def guessing(server: ServerProcess, connections: int) -> Iterator[dict[str, int]]:
    """A process that guesses passwords on this many connections; yields the statuses of its responses, complete after the block."""
    command = [sys.executable, "-c", GUESSES, str(connections), str(server.port)]
    statuses: dict[str, int] = {}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "guessing\n"
            yield statuses
            statuses.update(json.loads(process.communicate(timeout=60)[0]))
        finally:
            process.kill()


def main() -> None:
    from poiesis.api import Services, create_app
    from poiesis.api.server import serve
    from poiesis.bootstrap import SystemClock
    from poiesis.config import ApiSettings, ServiceSettings, read
    from poiesis.domain.policy import Policy
    from poiesis.repository.sqlite.database import SqliteDatabase
    from poiesis.repository.sqlite.events import SqliteEventLog
    from poiesis.repository.sqlite.idempotency import SqliteIdempotencyStore
    from poiesis.repository.sqlite.keys import SqliteKeyRepository
    from poiesis.repository.sqlite.sessions import SqliteSessionRepository
    from poiesis.repository.sqlite.tasks import SqliteTaskRepository
    from poiesis.repository.sqlite.usage import SqliteUsageStore
    from poiesis.repository.sqlite.webhooks import SqliteWebhookStore
    from poiesis.roles.shutdown import end_within_after_signal
    from poiesis.services.keys import KeyService
    from poiesis.services.logs import LogService
    from poiesis.services.tasks import TaskService
    from poiesis.services.usage import UsageService
    from poiesis.services.webhooks import WebhookService
    from poiesis.testing.queue import RecordingQueue

    class Tasks(TaskService):
        def create(self, spec: Any, **kwargs: Any) -> Any:
            while spec.name == "compute forever":
                pass
            return super().create(spec, **kwargs)

    directory, grace = Path(sys.argv[1]), timedelta(seconds=float(sys.argv[2]))
    settings = read(ApiSettings, os.environ, "POIESIS_API__")
    policy, database = Policy(), SqliteDatabase(directory / "tasks.sqlite")
    repository, webhooks = SqliteTaskRepository(database), WebhookService(SqliteWebhookStore(database), SystemClock())
    tasks = Tasks(repository, RecordingQueue(), SystemClock(), policy, SqliteIdempotencyStore(database))
    events, logs = SqliteEventLog(database), LogService(repository, SystemClock())
    usage = UsageService(events, SqliteUsageStore(database), SystemClock(), ())
    services = Services(
        tasks,
        policy,
        settings,
        ServiceSettings(),
        "",
        lambda: None,
        events,
        usage=usage,
        webhooks=webhooks,
        logs=logs,
        keys=KeyService(SqliteKeyRepository(database), SystemClock()),
        sessions=SqliteSessionRepository(database),
    )
    serve(create_app(services, on_start=partial(end_within_after_signal, grace)), settings, grace)


if __name__ == "__main__":
    main()
