"""Jaeger, all in one process with its store in memory, built by `make monitoring`. The Go module has no files of its user interface, so
what it has received is read through its API."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import urllib3

from tests.servers.process import HOST, missing, running

PROGRAM = Path(__file__).resolve().parents[2] / ".cache" / "monitoring" / "jaeger"


@dataclass(frozen=True)
class Jaeger:
    """`otlp` is the endpoint for exporters."""

    otlp: str
    query: str

    def trace(self, trace_id: str) -> list[dict[str, Any]]:
        """The spans, with `serviceName` beside what Jaeger has in a span."""
        answer = urllib3.request("GET", f"{self.query}/api/traces/{trace_id}", timeout=10, retries=False)
        if answer.status == 404:
            return []
        (found,) = json.loads(answer.data)["data"]
        return [
            {**span, "serviceName": found["processes"][span["processID"]]["serviceName"]} for span in found["spans"]
        ]


@pytest.fixture(scope="session")
def jaeger() -> Iterator[Jaeger]:
    if not PROGRAM.exists():
        missing("no Jaeger: run `make monitoring` (needs go)")

    def command(directory: Path, ports: list[int]) -> list[str]:
        names = (
            "collector.otlp.http", "query.http-server", "admin.http", "collector.otlp.grpc", "query.grpc-server",
            "collector.grpc-server", "collector.http-server",
        )  # fmt: skip
        listen = [f"--{name}.host-port={HOST}:{port}" for name, port in zip(names, ports, strict=True)]
        return [str(PROGRAM), "--collector.otlp.enabled=true", "--memory.max-traces=1000", *listen]

    def ready(ports: list[int]) -> Jaeger:
        made = Jaeger(f"http://{HOST}:{ports[0]}", f"http://{HOST}:{ports[1]}")
        assert urllib3.request("GET", f"http://{HOST}:{ports[2]}/", timeout=5, retries=False).status == 200
        assert urllib3.request("GET", f"{made.query}/api/services", timeout=5, retries=False).status == 200
        return made

    with running("jaeger", 7, command, ready) as started:
        yield started
