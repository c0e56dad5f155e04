"""What metrics and traces cost a create, side by side in one process.

    python -m bench observability [--rounds 25] [--creates 400]

The whole application over a SQLite file is called in process, without HTTP, so that the parts below are a larger share than in a server.
Batches of creates alternate between three variants, so that a busy machine slows all of them equally: without metrics (each is replaced by
one that does nothing), with metrics, and with metrics and traces, which go to a collector in another process. What is compared is the CPU
time of this process, with all its threads and the export of all spans of a batch, and the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from statistics import median
from typing import Any

from prometheus_client import Counter, Gauge, Histogram

from bench.api import TASK
from poiesis import tracing
from poiesis.bootstrap import Bootstrap
from poiesis.config import ApiSettings, Settings
from poiesis.filer.settings import FilerSettings

COLLECTOR = """
import sys
from tests.servers.otlp import Collector
collector = Collector()
print(collector.url, flush=True)
sys.stdin.read()
print(len(collector.spans), flush=True)
"""
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
    if tracing._recorder is not None:
        tracing._recorder.processor.force_flush()
    return (time.process_time() - began) / creates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--creates", type=int, default=400)
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as directory,
        subprocess.Popen(
            [sys.executable, "-c", COLLECTOR], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as collector,
        Bootstrap(Settings(directory=directory, runtime="process", api=ApiSettings()), FilerSettings()) as parts,
    ):
        assert collector.stdout is not None
        from poiesis.api.app import create_app

        tracing.start(collector.stdout.readline().strip(), 1.0, "bench", {})
        recorder, app, loop = tracing._recorder, create_app(parts.api_services()), asyncio.new_event_loop()
        measure(app, loop, arguments.creates)  # the first ones compile and connect
        times: dict[str, list[float]] = {"neither": [], "metrics": [], "metrics and traces": []}
        for number in range(arguments.rounds):
            order = list(times)[number % 3 :] + list(times)[: number % 3]
            for variant in order:
                tracing._recorder = recorder if variant == "metrics and traces" else None
                with without_metrics() if variant == "neither" else nullcontext():
                    times[variant].append(measure(app, loop, arguments.creates))
        tracing._recorder = recorder
        tracing.stop()
        output, _ = collector.communicate("")
        print(f"{arguments.rounds * arguments.creates} creates each; {output.strip()} spans arrived")
        for variant, found in times.items():
            print(f"  {variant:20} {1e6 * median(found):8.1f} µs of CPU a create")
        for variant, base in (("metrics", "neither"), ("metrics and traces", "metrics")):
            ratio = median(a / b for a, b in zip(times[variant], times[base], strict=True))
            print(f"  {variant} against {base}: {100 * (ratio - 1):+.2f} %")
        loop.close()


if __name__ == "__main__":
    main()
