"""The overview over 10^6 tasks on SQLite: the time of a first page, and what open browsers cost.

    python -m bench overview [--tasks 1000000] [--starts 5] [--pages 50] [--browsers 10] [--seconds 30] [--directory DIR]

All tasks were created in the last 24 hours; 50,000 wait, 1,000 run, the others have ended, evenly over the day. The file has what the
overview reads, tasks and events, and is kept in the directory. Shown are, for an administrator, the first page of new processes and the
median of pages after their figures have become old, in milliseconds of wall clock and of the server's CPU time; then the part of a core
that the server uses while each of the browsers fetches the figures every 5 seconds.
"""

from __future__ import annotations

import argparse
import http.client
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Final

from poiesis.domain.states import State
from poiesis.domain.task import TaskId
from poiesis.ports.events import Event
from poiesis.repository.documents import encode_event, format_time
from poiesis.repository.sqlite.database import SqliteDatabase

USERS: Final = 100
WAITING: Final = 50_000
RUNNING: Final = 1_000
EVERY_S: Final = 5.0
USAGE: Final = {
    "waiting_seconds": 12.5, "running_seconds": 340.0, "cpu_seconds": 250.0, "cpu_core_seconds_requested": 680.0,
    "cpu_core_seconds_idle": 430.0, "ram_gb_seconds_requested": 1360.0, "ram_gb_seconds_idle": 700.0, "peak_memory_bytes": 1.5e9,
}  # fmt: skip


def fill(path: Path, count: int) -> None:
    database = SqliteDatabase(path)
    begin = datetime.now(UTC) - timedelta(hours=24)
    step = timedelta(hours=24) / count

    def row(i: int) -> tuple[str, str, str]:
        state = (
            "QUEUED"
            if i < WAITING
            else "RUNNING"
            if i < WAITING + RUNNING
            else "COMPLETE"
            if i % 10
            else "EXECUTOR_ERROR"
        )
        return f"{i:026d}", state, f"user{i % USERS}"

    def tasks() -> object:
        for i in range(count):
            task_id, state, owner = row(i)
            unfinished = (
                f"{state}/{'NodesBusy' if state == 'QUEUED' else ''}/{owner}" if i < WAITING + RUNNING else None
            )
            yield task_id, 1, state, None, owner, f"task {i}", "[]", "[]", unfinished

    def events() -> object:
        for i in range(count):
            task_id, state, owner = row(i)
            at, has_ended = begin + i * step, i >= WAITING + RUNNING
            reason = "OutOfMemory: used 4 GB" if state == "EXECUTOR_ERROR" else None
            event = Event(0, TaskId(task_id), 4, State(state), at, reason, owner, usage=USAGE if has_ended else {})
            yield task_id, format_time(at), format_time(at) if has_ended else None, encode_event(event)

    with database.writing(is_large=True) as db:
        db.executemany(
            "INSERT INTO tasks (id, version, state, due_stage, owner, name, tags, readers, unfinished) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            tasks(),  # type: ignore[arg-type]
        )
        db.executemany("INSERT INTO events (task, at, ended_at, body) VALUES (?, ?, ?, ?)", events())  # type: ignore[arg-type]
    database.close()


def serve(directory: str, pipe: Connection) -> None:
    from poiesis.api.app import create_app
    from poiesis.api.server import BackgroundServer
    from poiesis.bootstrap import Bootstrap
    from poiesis.config import ApiSettings, Settings
    from poiesis.filer.settings import FilerSettings

    settings = Settings(directory=directory, api=ApiSettings(port=0, audit="off"))
    with Bootstrap(settings, FilerSettings()) as parts:
        if pipe.recv() == "roll up":
            while parts.usage.roll_up():
                pass
            pipe.send("done")
            return
        with BackgroundServer(create_app(parts.api_services()), settings.api, timedelta(seconds=6)) as server:
            pipe.send(server.url)
            pipe.recv()


@dataclass
class Server:
    url: str
    process: multiprocessing.process.BaseProcess
    pipe: Connection

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def get(self, path: str) -> bytes:
        connection = http.client.HTTPConnection(self.url.removeprefix("http://"), timeout=60)
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read()
        connection.close()
        if response.status != 200:
            raise SystemExit(f"unexpected answer {response.status}: {body[:500]!r}")
        return body

    def stop(self) -> None:
        self.pipe.send("stop")
        self.process.join()


def start(directory: str, order: str) -> Server:
    from bench.overview import serve  # of the module, which the process imports

    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(directory, theirs))
    process.start()
    ours.send(order)
    return Server(ours.recv(), process, ours)


def timed(call: Callable[[], bytes]) -> tuple[float, bytes]:
    begin = time.perf_counter()
    body = call()
    return (time.perf_counter() - begin) * 1000, body


def first_page(server: Server, after_s: float) -> None:
    time.sleep(after_s)
    cpu = server.cpu_s()
    first, body = timed(lambda: server.get("/ui/overview"))
    shown = "shown" if b"tile-running" in body else "fetched by the page"
    print(
        f"first page of a new process: {first:.0f} ms, {(server.cpu_s() - cpu) * 1000:.0f} ms of CPU, figures {shown}"
    )
    begin = time.perf_counter()
    while b"tile-running" not in server.get("/ui/overview/now"):
        time.sleep(0.2)
    print(f"figures are there after {time.perf_counter() - begin:.1f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=1_000_000)
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--after", type=float, default=3, help="seconds from the start of a process to its first page")
    parser.add_argument("--browsers", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--pages", type=int, default=50)
    parser.add_argument("--directory")
    asked = parser.parse_args()
    directory = asked.directory or tempfile.mkdtemp(prefix="poiesis-overview-")
    path = Path(directory) / "tasks.sqlite"
    if not path.exists():
        Path(directory).mkdir(exist_ok=True)
        fill(path, asked.tasks)
    rolled = start(directory, "roll up")
    rolled.process.join()
    for left in reversed(range(asked.starts)):
        server = start(directory, "serve")
        first_page(server, asked.after)
        if left:
            server.stop()
    pages, cpu = [], server.cpu_s()
    for _ in range(asked.pages):
        pages.append(timed(lambda: server.get("/ui/overview"))[0])
        time.sleep(3.1)
    print(f"page, figures older than 3 s: median {median(pages):.0f} ms, largest {max(pages):.0f} ms,"
          f" {(server.cpu_s() - cpu) * 1000 / asked.pages:.0f} ms of CPU")  # fmt: skip
    cpu, begin = server.cpu_s(), time.perf_counter()
    fetched = 0
    while (elapsed := time.perf_counter() - begin) < asked.seconds:
        for _ in range(max(0, int(elapsed / EVERY_S * asked.browsers) - fetched)):
            server.get("/ui/overview/now")
            fetched += 1
        time.sleep(0.05)
    used = (server.cpu_s() - cpu) / (time.perf_counter() - begin)
    print(f"{asked.browsers} browsers, {fetched} fetches in {asked.seconds:.0f} s: {used * 100:.1f} % of a core")
    server.stop()


if __name__ == "__main__":
    main()
