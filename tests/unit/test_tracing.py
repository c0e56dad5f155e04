"""Traces: which ids they have, what is sent to a collector, and that nothing waits for one."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from poiesis import tracing
from poiesis.domain.errors import ConfigurationError
from poiesis.domain.states import State
from poiesis.domain.task import TaskId
from poiesis.queue.links import _run
from poiesis.testing.queue import RecordingQueue
from poiesis.tracing import Parent, parse
from tests.servers import Collector
from tests.unit.api.service import Site
from tests.unit.domain.samples import FILES, ID, World, stored

CLIENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def traced(collector: Collector) -> Iterator[Collector]:
    tracing.start(collector.url, 1.0, "test", {})
    yield collector
    tracing.stop()


@pytest.mark.parametrize(
    "text",
    [
        CLIENT,
        CLIENT[:-2] + "01",
        CLIENT.replace("00-", "cc-", 1),  # a later version, which may have more fields
        CLIENT + "-more",
    ],
)
def test_a_traceparent_is_read(text: str) -> None:
    assert parse(text) == Parent(int(TRACE, 16), int(SPAN, 16))


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "x",
        CLIENT.upper(),
        CLIENT[:-3],
        "ff" + CLIENT[2:],
        CLIENT.replace(TRACE, "0" * 32),
        CLIENT.replace(SPAN, "0" * 16),
        CLIENT + "\n",
        "00-" * 10_000,
    ],
)
def test_a_traceparent_that_is_not_valid_is_ignored(text: str | None) -> None:
    assert parse(text) is None


def test_nothing_is_recorded_and_nothing_imported_unless_configured() -> None:
    program = (
        "import sys; from poiesis import tracing; from poiesis.bootstrap import Bootstrap;"
        "tracing.start(None, 1.0, 'api', {}); print(tracing.is_on(), [m for m in sys.modules if 'opentelemetry' in m])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "False []\n"


def test_without_the_package_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace.export", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'poiesis\[tracing\]'"):
        tracing.start("http://127.0.0.1:1", 1.0, "api", {})


@pytest.mark.parametrize(
    ("environ", "is_on"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:1"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "true"}, False),
    ],
)
def test_the_standard_variables_switch_traces_on_and_off(environ: dict[str, str], is_on: bool) -> None:
    pytest.importorskip("opentelemetry.sdk")
    tracing.start(None, 1.0, "api", environ)
    try:
        assert tracing.is_on() is is_on
    finally:
        tracing.stop()


def run_to_the_end(world: World) -> None:
    queue = RecordingQueue()
    for link in ("torc.prepare", "tif.stage_in", "texam.launch"):
        _run(link, ID, None, world.orchestrator, queue)
    world.clock.advance(timedelta(seconds=3))
    world.cluster.run(ID, "task")
    world.monitor()
    _run("torc.finish", ID, None, world.orchestrator, queue)
    world.to_the_end()


def test_a_task_is_one_trace_of_links_and_phases(traced: Collector) -> None:
    world = World(FILES)
    run_to_the_end(world)
    spans = traced.wait(lambda found: any(span.name == "cleanup" for span in found))
    assert len({span.trace_id for span in spans}) == 1
    root = next(span for span in spans if span.name == "task")
    assert root.parent_id == "" and root.service == "poiesis-test" and not root.failed
    assert root.attributes == {"poiesis.task.id": ID, "poiesis.state": "COMPLETE", "poiesis.attempts": 1}
    parts = [span for span in spans if span is not root]
    assert {span.parent_id for span in parts} == {root.span_id}
    names = {span.name for span in parts}
    assert names >= {
        "link torc.prepare",
        "link tif.stage_in",
        "link texam.launch",
        "link torc.finish",
        "queued",
        "executor 0",
        "cleanup",
    }
    task = world.task
    assert abs(root.start_ns / 1e9 - task.created_at.timestamp()) < 1e-3
    assert task.log.end_time is not None and abs(root.end_ns / 1e9 - task.log.end_time.timestamp()) < 1e-3
    assert len([span for span in parts if span.name == "queued"]) == 1  # the second save of the end adds none


def test_a_failed_task_and_its_failed_phase_are_errors(traced: Collector) -> None:
    world = World(FILES)
    world.launch()
    world.cluster.run(ID, "task", executor_0=world.cluster.record("executor-0", 3))
    world.to_the_end()
    spans = traced.wait(lambda found: any(span.name == "task" for span in found))
    assert {span.name for span in spans if span.failed} >= {"task", "executor 0"}


def test_a_request_that_creates_a_task_is_part_of_the_client_s_trace(traced: Collector) -> None:
    site = Site()
    task_id = TaskId(site.create(headers={"traceparent": CLIENT}))
    task = site.repository.get(task_id)
    (span,) = traced.wait(lambda found: len(found) > 0)
    assert (span.name, span.trace_id, span.parent_id, span.kind) == ("POST /ga4gh/tes/v1/tasks", TRACE, SPAN, 2)
    assert task.trace == f"00-{TRACE}-{span.span_id}-01"  # recorded although the client's flag says no
    assert tracing.parent_of(task) == Parent(int(TRACE, 16), int(span.span_id, 16))
    assert f"{tracing.span_of(task).trace:032x}" == TRACE
    assert span.attributes["http.response.status_code"] == 200


@pytest.mark.parametrize("header", [None, "nonsense", "00-" + "0" * 32 + "-" + SPAN + "-01"])
def test_without_a_usable_traceparent_the_request_begins_a_trace(traced: Collector, header: str | None) -> None:
    site = Site()
    task_id = site.create(headers={} if header is None else {"traceparent": header})
    (span,) = traced.wait(lambda found: len(found) > 0)
    assert span.parent_id == "" and span.trace_id in (site.repository.get(TaskId(task_id)).trace or "")


def test_other_requests_are_not_recorded(traced: Collector) -> None:
    site = Site()
    site.post("/tasks", {"executors": []})  # refused
    site.get("/tasks", headers={"traceparent": CLIENT})
    site.create()
    spans = traced.wait(lambda found: len(found) > 0)
    assert [span.name for span in spans] == ["POST /ga4gh/tes/v1/tasks"]


def test_without_a_collector_a_task_has_no_trace() -> None:
    site = Site()
    assert site.repository.get(TaskId(site.create(headers={"traceparent": CLIENT}))).trace is None


def test_processes_agree_on_the_ids_and_on_what_is_recorded() -> None:
    program = (
        "from poiesis import tracing; from tests.unit.domain.samples import stored; print(tracing.span_of(stored()))"
    )
    ids = {
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60).stdout
        for _ in range(2)
    }
    assert ids == {f"{tracing.span_of(stored())}\n"}
    other = stored(id=TaskId("1" * 26))
    assert (
        tracing.span_of(other) != tracing.span_of(stored())
        and tracing.span_of(other).trace != tracing.parent_of(stored()).trace
    )


def test_a_part_of_the_traces_is_recorded(collector: Collector) -> None:
    tracing.start(collector.url, 0.25, "test", {})
    try:
        recorder: Any = tracing._recorder
        kept = [recorder.is_recorded(tracing.parent_of(stored(id=TaskId(f"{n:026d}"))).trace) for n in range(1000)]
        assert 180 < sum(kept) < 320
    finally:
        tracing.stop()


def hanging_server() -> socket.socket:
    """Accepts connections and never answers."""
    return socket.create_server(("127.0.0.1", 0))


@pytest.mark.parametrize("kind", ["closed", "hanging"])
def test_nothing_waits_for_a_collector_that_is_away(kind: str) -> None:
    pytest.importorskip("opentelemetry.sdk")
    with hanging_server() as server:
        port = server.getsockname()[1] if kind == "hanging" else 9
        tracing.start(f"http://127.0.0.1:{port}", 1.0, "test", {})
        recorder: Any = tracing._recorder
        began = time.monotonic()
        task = replace(stored(), state=State.COMPLETE)
        for _ in range(5 * tracing.QUEUE):
            tracing.link("link", task, time.time_ns(), "waiting")
        spent = time.monotonic() - began
        waiting = len(recorder.processor._batch_processor._queue)
        assert waiting <= tracing.QUEUE
        assert spent < 10  # of 10,240 spans, on a busy machine
        began = time.monotonic()
        tracing.stop()
        assert time.monotonic() - began < tracing.CLOSE_S + 2


def test_a_task_that_is_created_after_a_request_does_not_belong_to_it(traced: Collector) -> None:
    span, token = tracing.begin_request(CLIENT)
    assert parse(tracing.of_new_task()) == Parent(int(TRACE, 16), span.id)
    tracing.end_request(span, token, "POST", "/tasks", 200)
    assert tracing.of_new_task() is None
