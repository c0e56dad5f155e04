"""One real task of the embedded service is one trace with every phase, in a collector and in Jaeger. `make trace-picture` draws it for the
docs."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.integration.embedded.service import Service, eventually, request
from tests.servers import Collector, Jaeger
from tests.servers.otlp import Span
from tests.trace_picture import draw

TRACE, CLIENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PHASES = {"queued", "admitted", "inputs", "executor 0", "executor 1", "outputs", "cleanup"}


def run_task(service: Service, files: Path) -> None:
    source, target = files / "reads.txt", files / "lines.txt"
    source.write_text("a\nb\n" * 1000)
    task: dict[str, Any] = {
        "name": "count lines",
        "inputs": [{"url": f"file://{source}", "path": "/data/reads.txt"}],
        "outputs": [{"url": f"file://{target}", "path": "/data/lines.txt"}],
        "executors": [
            {"image": "alpine", "command": ["sh", "-c", "sleep 1; sort /data/reads.txt > /data/sorted.txt"]},
            {"image": "alpine", "command": ["sh", "-c", "sleep 0.5; wc -l < /data/sorted.txt > /data/lines.txt"]},
        ],
        "volumes": ["/data"],
    }
    url = f"{service.url}/ga4gh/tes/v1/tasks"
    task_id = request("POST", url, task, traceparent=f"00-{TRACE}-{CLIENT}-01").document["id"]
    eventually(lambda: request("GET", f"{url}/{task_id}").document["state"] == "COMPLETE", "end of the task")


def test_a_task_with_all_its_phases_is_one_trace(
    make_service: Callable[..., Service], collector: Collector, tmp_path: Path
) -> None:
    service = make_service(POIESIS_TRACING__ENDPOINT=collector.url).start()
    run_task(service, tmp_path / "files")
    spans = collector.wait(lambda found: {"task", "cleanup"} <= {span.name for span in found})
    assert {span.trace_id for span in spans} == {TRACE}
    by_name = {span.name: span for span in spans}
    create, root = by_name["POST /ga4gh/tes/v1/tasks"], by_name["task"]
    assert create.parent_id == CLIENT and root.parent_id == create.span_id
    parts = [span for span in spans if span not in (create, root)]
    assert {span.parent_id for span in parts} == {root.span_id}
    assert by_name.keys() >= PHASES and any(name.startswith("link ") for name in by_name)
    assert by_name["inputs"].attributes["poiesis.bytes"] == 4000
    assert by_name["executor 0"].end_ns - by_name["executor 0"].start_ns >= 1e9
    assert ordered([by_name[name] for name in ("inputs", "executor 0", "executor 1", "outputs", "cleanup")])
    assert create.end_ns <= root.end_ns and all(span.start_ns >= create.start_ns - 10**9 for span in spans)
    assert service.logged_errors() == []
    if picture := os.environ.get("POIESIS_TRACE_PICTURE"):
        Path(picture).write_text(draw(spans))


def ordered(spans: list[Span]) -> bool:
    return all(a.start_ns <= b.start_ns for a, b in itertools.pairwise(spans))


def test_jaeger_has_the_whole_trace_also_with_the_standard_variable(
    make_service: Callable[..., Service], jaeger: Jaeger, tmp_path: Path
) -> None:
    service = make_service(OTEL_EXPORTER_OTLP_ENDPOINT=jaeger.otlp).start()
    run_task(service, tmp_path / "files")

    def whole() -> list[dict[str, Any]] | None:
        found = jaeger.trace(TRACE)
        return found if {"task", "cleanup"} <= {span["operationName"] for span in found} else None

    spans = eventually(whole, "trace in Jaeger")
    parents = {s["operationName"]: s["references"][0]["spanID"] for s in spans if s["references"]}
    ids = {s["operationName"]: s["spanID"] for s in spans}
    assert {s["serviceName"] for s in spans} == {"poiesis-embedded"}
    assert ids.keys() >= PHASES | {"POST /ga4gh/tes/v1/tasks", "task", "link texam.launch"}
    assert parents["POST /ga4gh/tes/v1/tasks"] == CLIENT and parents["task"] == ids["POST /ga4gh/tes/v1/tasks"]
    assert {parents[name] for name in PHASES} == {ids["task"]}
    uploaded = next(s for s in spans if s["operationName"] == "outputs")
    assert uploaded["duration"] > 0 and {"key": "poiesis.files", "type": "int64", "value": 1} in uploaded["tags"]
