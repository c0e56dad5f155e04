"""How long a create takes while many are posted at once, beside one that is posted while nothing else happens.

    python -m bench creates [--rounds 3] [--creates 1000] [--clients 8] [--command true] [--only up] [--sources DIRECTORY]
    python -m bench creates --url http://HOST:PORT [--node-class sim] [--rounds 3]

Each round starts the service on an empty directory in two ways: `poiesis up`, where the tasks really run, and the API's process over the
same SQLite file, where they only wait. Idle requests are sent one after the other, each after the task before it has ended. Then the
clients post all creates, each over its own connection and as fast as they are answered, while two other connections send what another
user would, one request every 50 ms: creates on one, on the other reads of one task, of a list and of the dashboard's page. A ratio is
the 99th percentile in the burst over the idle median of the same round. Of `poiesis up` it also shows how long an idle task takes from
its creation to its end, and the burst until all of its tasks have ended. Requests are bytes that were made before, so that the clients
take little of the processors. `--sources` names another checkout, whose service is measured in the same rounds.

`--url` measures a service that runs already, such as the chart's on simulated nodes (`bench scale`), whose class `--node-class` names.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from statistics import median
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit

ROOT: Final = Path(__file__).resolve().parent.parent
TASKS: Final = "/ga4gh/tes/v1/tasks"
UNFINISHED: Final = ("QUEUED", "INITIALIZING", "RUNNING")  # in this order: a task goes through them
ENDED: Final = {"COMPLETE", "EXECUTOR_ERROR", "SYSTEM_ERROR"}
PAGE: Final = 50  # tasks, as many as there are before anything is measured
EVERY_S: Final = 0.05
LOOK_S: Final = 0.01
CREATE: Final = "create"
WHOLE: Final = "task"


class Client:
    """One connection that is kept open. `send` returns milliseconds and the body."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def connect(cls, address: Address) -> Client:
        return cls(*await asyncio.open_connection(*address))

    async def send(self, request: bytes) -> tuple[float, bytes]:
        begin = time.perf_counter()
        self._writer.write(request)
        head = await self._reader.readuntil(b"\r\n\r\n")
        lower = head.lower()
        if b"content-length:" in lower:
            body = await self._reader.readexactly(int(lower.split(b"content-length:")[1].split(b"\r\n")[0]))
        else:
            body = b""
            while size := int(await self._reader.readline(), 16):
                body += await self._reader.readexactly(size)
                await self._reader.readline()
            await self._reader.readline()
        milliseconds = (time.perf_counter() - begin) * 1000
        if not head.startswith(b"HTTP/1.1 200"):
            raise SystemExit(f"unexpected answer: {head!r} {body[:500]!r}")
        return milliseconds, body


def request(method: str, path: str, document: Any = None) -> bytes:
    body = b"" if document is None else json.dumps(document).encode()
    headers = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n" if body else ""
    return f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{headers}\r\n".encode() + body


Times = Mapping[str, Sequence[float]]
Address = tuple[str, int]


class Bench:
    def __init__(self, address: Address, command: Sequence[str], *, runs: bool, node_class: str = "") -> None:
        """`runs`: whether tasks run."""
        task: dict[str, Any] = {"name": "burst", "executors": [{"image": "alpine:3.20", "command": list(command)}]}
        if node_class:
            task["resources"] = {"backend_parameters": {"node_class": node_class}}
        self._address, self._runs = address, runs
        self._create = request("POST", TASKS, task)

    async def idle(self, samples: int) -> Times:
        client = await Client.connect(self._address)
        times = defaultdict(list)
        created = [json.loads((await client.send(self._create))[1])["id"] for _ in range(PAGE)]
        await self._ended(client, created)
        for _ in range(samples):
            began = time.perf_counter()
            milliseconds, body = await client.send(self._create)
            times[CREATE].append(milliseconds)
            times[WHOLE].append((await self._ended(client, [json.loads(body)["id"]]) - began) * 1000)
            for name, read in self._reads(created[0]).items():
                times[name].append((await client.send(read))[0])
        return times

    async def _ended(self, client: Client, created: Sequence[str]) -> float:
        """When they had ended, by the performance counter."""
        for task_id in created if self._runs else ():
            while json.loads((await client.send(self._get(task_id)))[1])["state"] not in ENDED:
                await asyncio.sleep(LOOK_S)
        at = time.perf_counter()
        await asyncio.sleep(EVERY_S)  # for their cleanup
        return at

    async def all_ended(self) -> None:
        client = await Client.connect(self._address)
        for state in UNFINISHED if self._runs else ():
            listing = request("GET", f"{TASKS}?page_size=1&state={state}")
            while json.loads((await client.send(listing))[1])["tasks"]:
                await asyncio.sleep(EVERY_S)

    async def burst(self, creates: int, clients: int) -> tuple[Sequence[float], Times]:
        """Of the creates, and of the other user."""
        left = iter(range(creates))
        times: list[float] = []
        others: defaultdict[str, list[float]] = defaultdict(list)
        connections = [await Client.connect(self._address) for _ in range(clients + 2)]

        async def post(client: Client) -> None:
            for _ in left:
                times.append((await client.send(self._create))[0])

        async def create(client: Client) -> None:
            while True:
                others[CREATE].append((await client.send(self._create))[0])
                await asyncio.sleep(EVERY_S)

        async def read(client: Client) -> None:
            task_id = json.loads((await client.send(request("GET", TASKS + "?page_size=1")))[1])["tasks"][0]["id"]
            while True:
                for name, read in self._reads(task_id).items():
                    others[name].append((await client.send(read))[0])
                    await asyncio.sleep(EVERY_S)

        watching = [asyncio.ensure_future(create(connections[0])), asyncio.ensure_future(read(connections[1]))]
        await asyncio.gather(*(post(client) for client in connections[2:]))
        for job in watching:
            job.cancel()
        return times, others

    def _get(self, task_id: str) -> bytes:
        return request("GET", f"{TASKS}/{task_id}")

    def _reads(self, task_id: str) -> Mapping[str, bytes]:
        return {
            "read": self._get(task_id),
            f"list of {PAGE}": request("GET", f"{TASKS}?page_size={PAGE}"),
            f"page of {PAGE}": request("GET", "/ui/tasks"),
        }


@contextmanager
def service(root: Path, command: Sequence[str], directory: str) -> Iterator[Address]:
    """What it prints first holds its address."""
    environ = os.environ | {"PYTHONPATH": str(root)}
    process = subprocess.Popen(
        [*command, directory], cwd=root, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        found = re.search(r"http://127\.0\.0\.1:(\d+)", process.stdout.readline())
        if found is None:
            raise SystemExit("the service did not start")
        yield "127.0.0.1", int(found[1])
    finally:
        process.terminate()
        process.communicate(timeout=60)


def address_of(url: SplitResult) -> Address:
    return url.hostname or "", url.port or 80


def serve(directory: str) -> None:
    """Only the API, over the SQLite file of the directory."""
    from tests.browser.site import Site

    with Site(Path(directory)) as site:
        print(site.url, flush=True)
        sys.stdin.read()


def quantile(values: Sequence[float], q: float) -> float:
    return sorted(values)[min(len(values) - 1, round(q * (len(values) - 1)))]


def show(name: str, idle: Sequence[float], burst: Sequence[float]) -> None:
    base = median(idle)
    row = [base, quantile(idle, 0.99), median(burst), quantile(burst, 0.99), max(burst)]
    cells = " | ".join(f"{value:.1f}" for value in row)
    print(f"| {name} | {cells} | {len(burst)} | {row[3] / base:.1f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--creates", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--idle", type=int, default=40, help="idle creates")
    parser.add_argument("--command", default="true", help="of the tasks")
    parser.add_argument("--only", choices=["up", "api"])
    parser.add_argument("--sources", type=Path, action="append", default=[])
    parser.add_argument("--url", type=urlsplit, help="of a service that runs already")
    parser.add_argument("--node-class", default="", help="of the tasks, with --url")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        return serve(given.serve)
    python = [sys.executable, "-m"]
    commands = {
        "up": [*python, "poiesis", "up", "--port", "0", "--dir"],
        "api": [sys.executable, __file__, "--serve"],
    }
    head = ["ms", "idle p50", "idle p99", "burst p50", "burst p99", "burst max", "requests", "ratio"]
    print(f"load average {os.getloadavg()[0]:.1f}\n| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    ratios, rows = defaultdict(list), []
    kinds = ["url"] if given.url else [kind for kind in commands if given.only in (None, kind)]
    variants = [(root, kind) for kind in kinds for root in (*given.sources, ROOT)]
    for number, (root, kind) in itertools.product(range(1, given.rounds + 1), variants):
        name = f"{root.name} {kind}" if given.sources else kind
        with (
            tempfile.TemporaryDirectory(prefix="poiesis-creates-") as directory,
            service(root, commands[kind], directory) if kind in commands else nullcontext(address_of(given.url)) as at,
        ):
            bench = Bench(at, given.command.split(), runs=kind != "api", node_class=given.node_class)
            idle = asyncio.run(bench.idle(given.idle))
            began = time.perf_counter()
            burst, others = asyncio.run(bench.burst(given.creates, given.clients))
            answered_s = time.perf_counter() - began
            asyncio.run(bench.all_ended())
            ended_s = time.perf_counter() - began
        show(f"{number}: {name}, create", idle[CREATE], burst)
        ratios[name].append(quantile(burst, 0.99) / median(idle[CREATE]))
        for what, times in others.items():
            show(f"{number}: {name}, another user's {what}", idle[what], times)
        if kind != "api":
            rows.append((number, name, median(idle[WHOLE]), quantile(idle[WHOLE], 0.99), answered_s, ended_s))
    for number, name, half, most, answered_s, ended_s in rows:
        idle_task = f"an idle task takes {half:.0f} ms (p99 {most:.0f} ms)"
        print(f"{number}: {name}: {idle_task}; burst answered after {answered_s:.1f} s, ended after {ended_s:.1f} s")
    for name, found in ratios.items():
        print(f"{name}: p99 of a create in the burst over the idle median: {', '.join(f'{r:.1f}' for r in found)}")


if __name__ == "__main__":
    main()
