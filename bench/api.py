"""The cost of a request: stock FlaskApp and AsyncApp of Connexion, and the application of Poiesis.

    python bench/api.py [--seconds 3] [--rounds 3] [--connections 16] [--funnel PROGRAM]

Each variant runs in one uvicorn worker, over a store that does nothing except for `Poiesis, SQLite`, which also runs with two workers;
Funnel, if its program is given, runs with BoltDB and without a compute backend. A generator in a separate process
keeps a fixed number of connections busy. Variants alternate within a round, so that a busy machine slows all of them equally, and the
CPU time of the server process is reported beside the rate: it hardly depends on other load. Everything ends after rounds x variants x
requests x seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

BASE = "/ga4gh/tes/v1"
TASK_ID = "0p4qrl296007tvttajbu2hepqs"
TASK = {
    "name": "count lines",
    "inputs": [{"url": "s3://bucket/reads.fastq", "path": "/data/reads.fastq"}],
    "outputs": [{"url": "s3://bucket/count.txt", "path": "/data/count.txt", "type": "FILE"}],
    "resources": {"cpu_cores": 1, "ram_gb": 2.0},
    "executors": [{"image": "alpine:3.20", "command": ["wc", "-l", "/data/reads.fastq"], "stdout": "/data/count.txt"}],
}
SMALL = {"name": "hello", "executors": [{"image": "alpine:3.20", "command": ["echo", "hi"]}]}


def _request(method: str, path: str, document: Any = None) -> bytes:
    body = b"" if document is None else json.dumps(document).encode()
    headers = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n" if body else ""
    return f"{method} {BASE}{path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n".encode() + body


REQUESTS = {
    "service-info": _request("GET", "/service-info"),
    "create small": _request("POST", "/tasks", SMALL),
    "create usual": _request("POST", "/tasks", TASK),
    "get MINIMAL": _request("GET", f"/tasks/{TASK_ID}"),
    "get FULL": _request("GET", f"/tasks/{TASK_ID}?view=FULL"),
    "list 256 MINIMAL": _request("GET", "/tasks"),
    "list 256 FULL": _request("GET", "/tasks?view=FULL"),
}


# Servers


def _poiesis(*, stores: bool = False, **settings: Any) -> Any:
    """`stores`: over a SQLite file, where a create is one synced transaction."""
    from poiesis.api import Services, create_app
    from poiesis.config import ApiSettings, ServiceSettings
    from poiesis.domain.policy import Policy
    from poiesis.domain.task import Executor, Input, Output, Task, TaskId, TaskSpec, TaskSummary, View
    from poiesis.ports.repository import Page
    from poiesis.services.tasks import TaskService

    task = Task(
        id=TaskId(TASK_ID),
        spec=TaskSpec(
            name="count lines",
            inputs=(Input(url="s3://bucket/reads.fastq", path="/data/reads.fastq"),),
            outputs=(Output(url="s3://bucket/count.txt", path="/data/count.txt"),),
            executors=(Executor(image="alpine:3.20", command=("wc", "-l", "/data/reads.fastq")),),
        ),
        created_at=datetime.now(UTC),
    )
    summary = TaskSummary(task.id, task.state)
    page, short_page = Page((task,) * 256, task.id), Page((summary,) * 256, task.id)

    class Nothing:
        """Repository, queue and clock in one: every call returns immediately."""

        def add(self, task: Any) -> None: ...
        def begin(self, *_: Any, **__: Any) -> None: ...
        def publish(self, *_: Any, **__: Any) -> None: ...
        def ready(self) -> None: ...

        def get(self, *_: Any, **__: Any) -> Task:
            return task

        def summary(self, *_: Any, **__: Any) -> TaskSummary:
            return summary

        def list(self, *_: Any, view: View, **__: Any) -> Page:
            return short_page if view is View.MINIMAL else page

        def now(self) -> datetime:
            return datetime.now(UTC)

    nothing: Any = Nothing()
    repository = _sqlite() if stores else nothing
    policy = Policy()
    service = TaskService(repository, nothing, nothing, policy)
    return create_app(
        Services(
            service,
            policy,
            ApiSettings(),
            ServiceSettings(),
            "Tasks run nowhere.",
            nothing.ready,
            nothing,
            usage=nothing,
            logs=nothing,
            webhooks=nothing,
            sessions=nothing,
        ),
        **settings,
    )


def _sqlite() -> Any:
    from poiesis.repository.sqlite.database import SqliteDatabase
    from poiesis.repository.sqlite.tasks import SqliteTaskRepository

    return SqliteTaskRepository(SqliteDatabase(Path(os.environ["BENCH_DIRECTORY"]) / "tasks.sqlite"))


def sqlite_app() -> Any:
    return _poiesis(stores=True)


def _stock(kind: str, handlers: str) -> Any:
    """Stock Connexion, with handlers that return ready documents."""
    import connexion
    from connexion.resolver import Resolver

    from poiesis.api.app import load_specification

    minimal = {"id": TASK_ID, "state": "QUEUED"}
    full = minimal | TASK
    info = {"id": "x", "name": "x", "version": "1"}

    def list_tasks(view: str = "MINIMAL") -> Any:
        return {"tasks": [minimal if view == "MINIMAL" else full] * 256}

    def get_task(id: str, view: str = "MINIMAL") -> Any:
        return minimal if view == "MINIMAL" else full

    def create_task(body: Any) -> Any:
        return {"id": TASK_ID}

    functions: dict[str, Callable[..., Any]] = {
        "GetServiceInfo": lambda: info,
        "ListTasks": list_tasks,
        "CreateTask": create_task,
        "GetTask": get_task,
        "CancelTask": lambda id: {},
    }
    if handlers == "async":

        async def alist(view: str = "MINIMAL") -> Any:
            return list_tasks(view)

        async def aget(id: str, view: str = "MINIMAL") -> Any:
            return get_task(id, view)

        async def acreate(body: Any) -> Any:
            return create_task(body)

        async def ainfo() -> Any:
            return info

        functions |= {"GetServiceInfo": ainfo, "ListTasks": alist, "CreateTask": acreate, "GetTask": aget}
    cls = connexion.FlaskApp if kind == "flask" else connexion.AsyncApp
    app = cls(__name__, resolver=Resolver(lambda name: functions[name]))
    specification = load_specification()
    specification.pop("security")  # the other variants do not authenticate either
    app.add_api(specification, base_path=BASE)
    return app


VARIANTS: dict[str, Callable[[], Any]] = {
    "FlaskApp": lambda: _stock("flask", "sync"),
    "AsyncApp, sync handlers": lambda: _stock("async", "sync"),
    "AsyncApp, async handlers": lambda: _stock("async", "async"),
    "Poiesis": _poiesis,
    "Poiesis, SQLite": lambda: _poiesis(stores=True),
    "Poiesis, answers validated": lambda: _poiesis(validate_responses=True),
}


TWO_WORKERS = "Poiesis, SQLite, two workers"
FUNNEL = "Funnel, BoltDB"


def serve(variant: str, port: int) -> None:
    import warnings

    warnings.simplefilter("ignore")
    import uvicorn

    if variant == TWO_WORKERS:
        uvicorn.run("bench.api:sqlite_app", factory=True, workers=2, port=port, access_log=False, log_level="error")
    else:
        uvicorn.run(VARIANTS[variant](), port=port, access_log=False, log_level="error")


def _funnel(program: str, port: int, directory: Path) -> list[str]:
    config = {
        "Database": "boltdb",
        "BoltDB": {"Path": str(directory / "funnel.db")},
        "EventWriters": ["boltdb"],
        "Compute": "noop",
        "Logger": {"Level": "error"},
        "Server": {"HostName": "127.0.0.1", "HTTPPort": str(port), "RPCPort": str(port + 500)},
    }
    path = directory / "config.json"  # JSON is YAML
    path.write_text(json.dumps(config))
    return [program, "server", "run", "--config", str(path)]


@contextmanager
def server(variant: str, port: int, funnel: str) -> Iterator[int]:
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        command = [sys.executable, __file__, "--serve", variant, "--port", str(port)]
        if variant == FUNNEL:
            command = _funnel(funnel, port, Path(directory))
        environ = os.environ | {"BENCH_DIRECTORY": directory, "PYTHONPATH": str(ROOT)}
        with running(variant, command, environ, port) as pid:
            yield pid


@contextmanager
def running(variant: str, command: list[str], environ: dict[str, str], port: int) -> Iterator[int]:
    process = subprocess.Popen(command, env=environ, cwd=environ["BENCH_DIRECTORY"])
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}{BASE}/service-info", timeout=1).read()
                break
            except OSError:
                time.sleep(0.1)
        else:
            raise RuntimeError(f"{variant} does not respond")
        yield process.pid
    finally:
        process.terminate()
        process.wait(10)


def cpu_s(pid: int) -> float:
    """Of the process and its children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") + sum(cpu_s(int(child)) for child in children)


# Load


class Connection(asyncio.Protocol):
    """Sends a request, reads its response, sends the next one."""

    def __init__(self, request: bytes, seen: dict[str, int]) -> None:
        self._request, self._seen, self._buffer = request, seen, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head = self._buffer.find(b"\r\n\r\n")
        if head < 0:
            return
        headers = self._buffer[:head].lower()
        start = headers.index(b"content-length:") + 15
        end = head + 4 + int(headers[start : headers.find(b"\r", start) if b"\r" in headers[start:] else None])
        if len(self._buffer) < end:
            return
        self._seen["answers" if headers.startswith(b"http/1.1 200") else "failures"] += 1
        self._buffer = self._buffer[end:]
        self._transport.write(self._request)


async def load(port: int, request: bytes, seconds: float, connections: int, pid: int) -> tuple[float, float]:
    """Responses per second, and CPU microseconds of the server for each."""
    loop = asyncio.get_running_loop()
    seen: dict[str, int] = defaultdict(int)
    open_ = [
        await loop.create_connection(lambda: Connection(request, seen), "127.0.0.1", port) for _ in range(connections)
    ]
    await asyncio.sleep(seconds / 4)
    answers, cpu, began = seen["answers"], cpu_s(pid), time.perf_counter()
    await asyncio.sleep(seconds)
    answers, cpu, took = seen["answers"] - answers, cpu_s(pid) - cpu, time.perf_counter() - began
    for transport, _ in open_:
        transport.abort()
    if seen["failures"]:
        raise RuntimeError(f"{seen['failures']} answers were no success")
    return answers / took, cpu / max(answers, 1) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--only", help="variants whose name holds this")
    parser.add_argument("--requests", default="", help="requests whose name begins with this")
    parser.add_argument("--funnel", default="", help="the program of Funnel")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=18_900)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve, args.port)
        return
    import uvloop

    rates: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    requests = {name: request for name, request in REQUESTS.items() if name.startswith(args.requests)}
    every = [*VARIANTS, TWO_WORKERS, *([FUNNEL] if args.funnel else [])]
    variants = [v for v in every if not args.only or args.only in v]
    for _ in range(args.rounds):
        for i, variant in enumerate(variants):
            with server(variant, args.port + i, args.funnel) as pid:
                for name, request in requests.items():
                    loaded = load(args.port + i, request, args.seconds, args.connections, pid)
                    rates[variant, name].append(uvloop.run(loaded))
    print(f"| requests a second (CPU µs a request), median of {args.rounds} | " + " | ".join(variants) + " |")
    print("|---|" + "---|" * len(variants))
    for name in requests:
        cells = (rates[variant, name] for variant in variants)
        shown = (f"{median(r for r, _ in c):,.0f} ({median(u for _, u in c):,.0f})" for c in cells)
        print(f"| {name} | " + " | ".join(shown) + " |")


if __name__ == "__main__":
    main()
