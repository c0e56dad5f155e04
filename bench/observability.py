"""What metrics and traces cost a create, side by side in one process.

    python -m bench observability [--rounds 300] [--creates 20]
    python -m bench observability --server [--rounds 300]

The whole application over a SQLite file is called in process, without HTTP, so that the parts below are a larger share than in a server.
Short batches of creates alternate between three variants: without metrics (each is replaced by one that does nothing), with metrics, and
with metrics and traces. Compared is the CPU time of this process with all its threads; of each variant the fastest tenth of the batches,
which other load has disturbed least. What metrics cost is below that noise, so their calls of one create are also
measured alone. The export of spans to a collector in another process is measured apart, every 500 spans as in a busy
service, and added.

With `--server` a process with the whole application gets creates over HTTP from four connections, in turns of a second with and without
traces (a signal switches them, and exports what waits): the mean difference of the CPU time a create between adjacent turns.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from statistics import fmean, median, quantiles, stdev
from typing import Any

from prometheus_client import Counter, Gauge, Histogram

from bench.api import REQUESTS, ROOT, TASK, Connection, cpu_s, running
from poiesis import tracing
from poiesis.bootstrap import Bootstrap
from poiesis.config import ApiSettings, Settings
from poiesis.filer.settings import FilerSettings

COLLECTOR = """
import sys
from tests.servers.otlp import Collector

bodies = []

class LateCollector(Collector):  # decodes at the end, so that it does not take the processor from what is measured
    def _take(self, body):
        bodies.append(body)

collector = LateCollector()
print(collector.url, flush=True)
sys.stdin.read()
for body in bodies:
    Collector._take(collector, body)
print(len(collector.spans), flush=True)
"""
TURN_S = 1.0
WARM = 5  # creates before each batch, not counted: changing the variant has emptied the processor's caches
EXPORTED = 500  # spans; fewer than tracing.BATCH, which would export earlier
TRACEPARENT = (b"traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")


class Nothing:
    """A metric that does nothing."""

    def labels(self, *_: object, **__: object) -> Nothing:
        return self

    def inc(self, *_: object) -> None:
        pass

    observe = set = inc

    def time(self) -> Any:
        return nullcontext()


@contextmanager
def without_metrics() -> Iterator[None]:
    swapped = [
        (module, name, value)
        for module in list(sys.modules.values())
        if getattr(module, "__name__", "").startswith("poiesis")
        for name, value in list(vars(module).items())
        if isinstance(value, Counter | Gauge | Histogram)
    ]
    for module, name, _ in swapped:
        setattr(module, name, Nothing())
    yield
    for module, name, value in swapped:
        setattr(module, name, value)


async def create(app: Any, body: bytes) -> None:
    headers = [
        (b"host", b"localhost"),
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        TRACEPARENT,
    ]
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": "/ga4gh/tes/v1/tasks", "raw_path": b"/ga4gh/tes/v1/tasks", "query_string": b"", "root_path": "",
        "headers": headers, "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80),
    }  # fmt: skip
    parts = [{"type": "http.request", "body": body, "more_body": False}]
    status = 0

    async def receive() -> dict[str, Any]:
        return parts.pop() if parts else {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        nonlocal status
        status = message.get("status", status)

    await app(scope, receive, send)
    assert status == 200, status


def measure(app: Any, loop: asyncio.AbstractEventLoop, creates: int) -> float:
    body = json.dumps(TASK).encode()

    async def batch() -> None:
        for _ in range(creates):
            await create(app, body)

    began = time.process_time()
    loop.run_until_complete(batch())
    return (time.process_time() - began) / creates


def metrics_of_a_create(times: int = 20_000) -> float:
    """The calls that one create makes, alone."""
    from poiesis import metrics

    began = time.process_time()
    for _ in range(times):
        metrics.TASKS_CREATED.inc(0)
        metrics.HTTP_REQUESTS.labels("POST", "/ga4gh/tes/v1/tasks", "200").inc(0)
        metrics.HTTP_SECONDS.labels("POST", "/ga4gh/tes/v1/tasks").observe(0.002)
        metrics.STORE_SECONDS.labels("write").observe(0.002)
    return (time.process_time() - began) / times


def served(port: int) -> None:
    """Serve until this process is ended, with traces from the first signal until the second, and so on."""
    import uvicorn

    from poiesis.api.app import create_app
    from poiesis.api.memory import freeze_started_objects

    def switch(*_: object) -> None:
        if tracing._recorder is not None:
            recorder.processor.force_flush()
        tracing._recorder = recorder if tracing._recorder is None else None

    settings = Settings(directory=os.environ["BENCH_DIRECTORY"], runtime="process", api=ApiSettings())
    with Bootstrap(settings, FilerSettings()) as parts:
        tracing.start(os.environ["BENCH_COLLECTOR"], 1.0, "bench", {})
        recorder, tracing._recorder = tracing._recorder, None
        assert recorder is not None
        app = create_app(parts.api_services())
        freeze_started_objects()
        signal.signal(signal.SIGUSR1, switch)
        uvicorn.run(app, port=port, access_log=False, log_level="error")
        recorder.close()


def compare_over_http(collector: str, rounds: int, port: int) -> None:
    request = REQUESTS["create usual"].replace(b"Host:", b"traceparent: %b\r\nHost:" % TRACEPARENT[1], 1)
    times: dict[str, list[float]] = {"without traces": [], "with traces": []}
    with tempfile.TemporaryDirectory() as directory:
        environ = os.environ | {"BENCH_DIRECTORY": directory, "PYTHONPATH": str(ROOT), "BENCH_COLLECTOR": collector}
        with running(
            "server", [sys.executable, "-m", "bench.observability", "--serve", str(port)], environ, port
        ) as pid:
            asyncio.run(created(port, request))
            for number in range(2 * rounds):
                is_traced = number % 4 in (1, 2)  # in turns of either order: the store grows
                began = cpu_s(pid)
                if is_traced:
                    os.kill(pid, signal.SIGUSR1)
                creates = asyncio.run(created(port, request))
                if is_traced:
                    os.kill(pid, signal.SIGUSR1)
                time.sleep(0.3)  # the last export
                times["with traces" if is_traced else "without traces"].append((cpu_s(pid) - began) / creates)
    base = 1e6 * median(times["without traces"])
    more = [1e6 * (b - a) for a, b in zip(*times.values(), strict=True)]
    error = stdev(more) / rounds**0.5
    print(
        f"  {base:.0f} µs of CPU a create without traces; with them {fmean(more):+.0f} µs, standard error {error:.0f}:",
        end=" ",
    )
    print(f"{100 * fmean(more) / base:+.1f} %")


async def created(port: int, request: bytes) -> int:
    loop, seen = asyncio.get_running_loop(), defaultdict[str, int](int)
    connections = [await loop.create_connection(lambda: Connection(request, seen), "127.0.0.1", port) for _ in range(4)]
    await asyncio.sleep(TURN_S)
    for transport, _ in connections:
        transport.abort()
    assert not seen["failures"]
    return seen["answers"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--creates", type=int, default=20)
    parser.add_argument("--server", action="store_true")
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        served(arguments.serve)
        return
    if arguments.server:
        with subprocess.Popen(
            [sys.executable, "-c", COLLECTOR], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as collector:
            assert collector.stdout is not None
            compare_over_http(collector.stdout.readline().strip(), arguments.rounds, 18_900)
            output, _ = collector.communicate("")
            print(f"  {output.strip()} spans arrived")
        return
    with (
        tempfile.TemporaryDirectory() as directory,
        subprocess.Popen(
            [sys.executable, "-c", COLLECTOR], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as collector,
        Bootstrap(Settings(directory=directory, runtime="process", api=ApiSettings()), FilerSettings()) as parts,
    ):
        assert collector.stdout is not None
        from poiesis.api.app import create_app
        from poiesis.api.memory import freeze_started_objects

        tracing.DELAY_S = 3600.0  # type: ignore[misc] # only `flush` exports
        tracing.start(collector.stdout.readline().strip(), 1.0, "bench", {})
        recorder, app, loop = tracing._recorder, create_app(parts.api_services()), asyncio.new_event_loop()
        assert recorder is not None
        measure(app, loop, 10 * arguments.creates)  # the first ones compile and connect
        recorder.processor.force_flush()
        freeze_started_objects()  # as the API does
        times: dict[str, list[float]] = {"neither": [], "metrics": [], "metrics and traces": []}
        exports: list[float] = []
        for number in range(arguments.rounds):
            order = list(times)[number % 3 :] + list(times)[: number % 3]
            for variant in order:
                tracing._recorder = recorder if variant == "metrics and traces" else None
                with without_metrics() if variant == "neither" else nullcontext():
                    measure(app, loop, WARM)
                    times[variant].append(measure(app, loop, arguments.creates))
            if (number + 1) % (EXPORTED // (WARM + arguments.creates)) == 0:
                began = time.process_time()
                recorder.processor.force_flush()
                exports.append((time.process_time() - began) / EXPORTED)
        output, _ = collector.communicate("")
        print(f"{arguments.rounds * arguments.creates} creates of each; {output.strip()} spans arrived")
        costs = {variant: 1e6 * quantiles(found, n=10)[0] for variant, found in times.items()}
        costs["metrics and traces"] += (export := 1e6 * median(exports))
        for variant, cost in costs.items():
            print(f"  {variant:20} {cost:8.1f} µs of CPU a create")
        alone = 1e6 * metrics_of_a_create()
        print(f"  metrics, alone       {alone:8.1f} µs, {100 * alone / costs['neither']:.2f} %")
        print(f"  of which export      {export:8.1f} µs")
        for variant, base in (("metrics", "neither"), ("metrics and traces", "metrics")):
            print(f"  {variant} against {base}: {100 * (costs[variant] / costs[base] - 1):+.2f} %")
        loop.close()


if __name__ == "__main__":
    main()
