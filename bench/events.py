"""Streams of events: memory and CPU of one API process with many idle ones, and whether every event comes once and in order.

    python bench/events.py [--streams 1000] [--tasks 200] [--seconds 20] [--mongo URI] [--everything] [--no-kill]

A server process serves the API over a store (SQLite in a temporary directory, or a new MongoDB database). This process opens one stream
for each of `--streams` tasks that do not change (`--everything`: streams of all tasks, which get every event), and one observer of all
tasks; then it takes `--tasks` tasks from QUEUED to COMPLETE, evenly over `--seconds`. In the second half the server is killed with SIGKILL
and started again, and the observer continues with its last id. Prints JSON; exit code 1 if an event was missing, repeated or out of order.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any, cast

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from poiesis.domain.naming import new_task_id  # noqa: E402
from poiesis.domain.states import Stage, State  # noqa: E402
from poiesis.domain.task import Executor, Task, TaskId, TaskSpec  # noqa: E402

MOVES = (State.INITIALIZING, State.RUNNING, State.COMPLETE)
SPEC = TaskSpec(executors=(Executor("alpine", ("true",)),))


class Store:
    """Tasks and events over SQLite or MongoDB, as both processes open them."""

    def __init__(self, directory: str, mongo: str | None) -> None:
        if mongo is None:
            from poiesis.repository.sqlite.database import SqliteDatabase
            from poiesis.repository.sqlite.events import SqliteEventLog
            from poiesis.repository.sqlite.idempotency import SqliteIdempotencyStore
            from poiesis.repository.sqlite.tasks import SqliteTaskRepository

            database: Any = SqliteDatabase(Path(directory) / "tasks.sqlite", busy_timeout=timedelta(seconds=30))
            self.tasks: Any = SqliteTaskRepository(database)
            self.events: Any = SqliteEventLog(database)
            self.idempotency: Any = SqliteIdempotencyStore(database)
        else:
            from poiesis.repository.mongo.connection import MongoDatabase
            from poiesis.repository.mongo.events import MongoEventLog
            from poiesis.repository.mongo.idempotency import MongoIdempotencyStore
            from poiesis.repository.mongo.tasks import MongoTaskRepository

            uri, _, name = mongo.rpartition("/")
            database = MongoDatabase(uri, name, timeout=timedelta(seconds=30), connect_timeout=timedelta(seconds=30))
            self.tasks = MongoTaskRepository(database)
            self.events = MongoEventLog(database, self.tasks)
            self.idempotency = MongoIdempotencyStore(database)
        self.database = database

    def add(self) -> TaskId:
        now = datetime.now(UTC)
        task = Task(id=new_task_id(now), spec=SPEC, created_at=now, wake_at=now + timedelta(days=1), owner="ada")
        self.tasks.add(task.recorded(now))
        return task.id

    def move(self, task_id: TaskId, to: State) -> None:
        task = self.tasks.get(task_id)
        stage = Stage.DONE if to.is_terminal else Stage.RUN
        assert self.tasks.save(replace(task, state=to, stage=stage).recorded(datetime.now(UTC)), seen=task.version)

    def relay(self) -> None:
        while self.events.relay(500):
            pass


def serve(directory: str, mongo: str | None, port: int) -> None:
    """The server process."""
    from poiesis.api import Services, create_app
    from poiesis.api.server import serve as run
    from poiesis.bootstrap import SystemClock
    from poiesis.config import ApiSettings, ServiceSettings
    from poiesis.domain.policy import Policy
    from poiesis.services.tasks import TaskService
    from poiesis.testing.queue import RecordingQueue

    store = Store(directory, mongo)
    settings = ApiSettings(port=port, max_streams=20_000, max_streams_per_user=20_000)
    tasks = TaskService(store.tasks, RecordingQueue(), SystemClock(), Policy(), store.idempotency)
    services = Services(
        tasks,
        Policy(),
        settings,
        ServiceSettings(),
        "",
        lambda: None,
        store.events,
        usage=cast(Any, None),
        logs=cast(Any, None),
        webhooks=cast(Any, None),
        sessions=cast(Any, None),
    )
    run(create_app(services), settings, timedelta(seconds=10))


@dataclass
class Server:
    process: subprocess.Popen[bytes]
    port: int

    def rss_mb(self) -> float:
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGESIZE") / 1e6

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@contextmanager
def served(directory: str, mongo: str | None, port: int) -> Iterator[Server]:
    command = [sys.executable, __file__, "--serve", directory, str(port), *([mongo] if mongo else [])]
    server = Server(subprocess.Popen(command, cwd=ROOT), port)
    try:
        deadline = time.monotonic() + 120
        while True:
            with suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5).close()
                break
            if server.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the server did not start")
            time.sleep(0.1)
        yield server
    finally:
        server.kill()


async def stream(port: int, query: str, on_event: Any = None, last_id: str | None = None) -> str | None:
    """Read a stream until it ends or the connection is lost. Return the last id."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    try:
        given = f"Last-Event-ID: {last_id}\r\n" if last_id is not None else ""
        writer.write(f"GET /poiesis/v1/events?{query} HTTP/1.1\r\nHost: localhost\r\n{given}\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        if b" 200 " not in head.splitlines()[0]:
            raise RuntimeError(head.decode())
        fields: dict[str, str] = {}
        while line := await reader.readline():
            name, _, value = line.decode().strip().partition(": ")
            if name in ("id", "event", "data"):
                fields[name] = value
            elif "id" in fields and not name:
                last_id = fields["id"]
                if on_event is not None and fields.get("event") == "change":
                    on_event(int(fields["id"]), json.loads(fields["data"]))
                fields = {}
    except (ConnectionError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()
    return last_id


@dataclass
class Observed:
    seqs: list[int] = field(default_factory=list)
    states: dict[str, list[str]] = field(default_factory=dict)
    delays: list[float] = field(default_factory=list)

    def __call__(self, seq: int, data: dict[str, Any]) -> None:
        self.seqs.append(seq)
        self.states.setdefault(data["id"], []).append(data["state"])
        self.delays.append(time.time() - datetime.fromisoformat(data["at"]).timestamp())


async def observe(port: int, begin: int, observed: Observed) -> None:
    """Follow all events after `begin`, across restarts of the server."""
    last: str | None = str(begin)
    while True:
        with suppress(OSError):
            last = await stream(port, "", observed, last)
        await asyncio.sleep(0.1)


def change(store: Store, ids: list[TaskId], seconds: float) -> None:
    """Take the tasks through MOVES, one save at a time, evenly spread; and relay."""
    begin, saves = time.monotonic(), [(task_id, to) for to in MOVES for task_id in ids]
    for i, (task_id, to) in enumerate(saves):
        time.sleep(max(0.0, begin + seconds * i / len(saves) - time.monotonic()))
        store.move(task_id, to)
        store.relay()


async def measure(arguments: argparse.Namespace, directory: str) -> dict[str, Any]:
    store = Store(directory, arguments.mongo)
    idle = [store.add() for _ in range(arguments.streams)]
    busy = [store.add() for _ in range(arguments.tasks)]
    store.relay()
    begin = store.events.last_seq()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    observed, tasks = Observed(), list[asyncio.Task[Any]]()
    figures: dict[str, Any] = {"streams": arguments.streams, "tasks": arguments.tasks}

    async def follow(server: Server) -> None:
        before = server.rss_mb()
        queries = ["" if arguments.everything else f"task={task_id}" for task_id in idle]
        for i in range(0, len(queries), 50):  # not all at once, as clients do not
            tasks.extend(asyncio.create_task(stream(port, query)) for query in queries[i : i + 50])
            await asyncio.sleep(0.05)
        await asyncio.sleep(arguments.settle)
        idle_cpu, at = server.cpu_s(), time.monotonic()
        await asyncio.sleep(5)
        figures["idle_cpu_percent"] = round(100 * (server.cpu_s() - idle_cpu) / (time.monotonic() - at), 1)
        figures["rss_mb_before"], figures["rss_mb"] = round(before, 1), round(server.rss_mb(), 1)
        if arguments.streams:
            figures["kb_a_stream"] = round((server.rss_mb() - before) * 1000 / arguments.streams, 1)

    loop = asyncio.get_running_loop()
    with served(directory, arguments.mongo, port) as server:
        await follow(server)
        observer = asyncio.create_task(observe(port, begin, observed))
        await asyncio.sleep(1)
        cpu, at = server.cpu_s(), time.monotonic()
        half = len(busy) // 2
        await loop.run_in_executor(None, change, store, busy[:half], arguments.seconds / 2)
        figures["changing_cpu_percent"] = round(100 * (server.cpu_s() - cpu) / (time.monotonic() - at), 1)
        figures["rss_mb_after"] = round(server.rss_mb(), 1)
        figures["delay_ms_p50"] = round(1000 * median(observed.delays))
        figures["delay_ms_p99"] = round(1000 * sorted(observed.delays)[int(len(observed.delays) * 0.99)])
        if not arguments.no_kill:
            changing = threading.Thread(target=change, args=(store, busy[half:], arguments.seconds / 2))
            changing.start()
            await asyncio.sleep(arguments.seconds / 4)
            server.kill()
            await asyncio.sleep(1)
        else:
            await loop.run_in_executor(None, change, store, busy[half:], arguments.seconds / 2)
            await until(lambda: bool(observed.seqs) and observed.seqs[-1] == store.events.last_seq(), 60)
            changing = None
    if changing is not None:
        with served(directory, arguments.mongo, port):
            await loop.run_in_executor(None, changing.join)
            await until(lambda: bool(observed.seqs) and observed.seqs[-1] == store.events.last_seq(), 30)
    observer.cancel()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, observer, return_exceptions=True)
    figures["events"] = len(observed.seqs)
    figures["once_and_in_order"] = observed.seqs == list(
        range(begin + 1, store.events.last_seq() + 1)
    ) and observed.states == {task_id: [s.value for s in MOVES] for task_id in busy}
    store.database.close()
    return figures


async def until(condition: Any, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline:
        await asyncio.sleep(0.1)


def main() -> int:
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2], sys.argv[4] if len(sys.argv) > 4 else None, int(sys.argv[3]))
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--settle", type=float, default=5)
    parser.add_argument("--mongo")
    parser.add_argument("--everything", action="store_true")
    parser.add_argument("--no-kill", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        figures = asyncio.run(measure(arguments, directory))
    print(json.dumps(figures, indent=1))
    return 0 if figures["once_and_in_order"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
