"""Traces of tasks by OpenTelemetry, off unless configured (docs/adr/0018-metrics-and-traces.md).

One trace for each task:

    the client's span, if it sent `traceparent`
      └─ POST /ga4gh/tes/v1/tasks      of the API, in real time
           └─ task                     of the process that saves its end, with the times of the task
                ├─ link torc.prepare … of workers, in real time, and `reconcile` of the monitor
                └─ queued, admitted, scheduled, images, inputs, executor 0 …, outputs, cleanup   with their recorded times

Nothing is passed along beside the task: its span's id is derived from the task's id, and so is the id of the trace unless the request had
one, which the task then carries (`Task.trace`). So every process can add its spans to the right trace at any time, and a lost one leaves
a gap and nothing else.

Of a client's `traceparent` only the ids are used, not the decision to record. The exporter has its own thread and a bounded queue: with a
collector that is away, spans are dropped, and nothing waits. OpenTelemetry is imported by `start` only.
"""

from __future__ import annotations

import hashlib
import logging
import random
import re
import threading
import time
from collections.abc import Iterable, Mapping
from contextvars import ContextVar, Token
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from typing import TYPE_CHECKING, Final, NamedTuple

import poiesis
from poiesis.domain.errors import ConfigurationError
from poiesis.domain.history import Phase
from poiesis.domain.states import State
from poiesis.domain.task import Task

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    from poiesis.otlp import EndedSpan

log = logging.getLogger(__name__)

STANDARD: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
QUEUE: Final = 2048  # spans
BATCH: Final = 512
DELAY_S: Final = 2.0  # how long a span waits for others
TIMEOUT_S: Final = 5.0  # of one export
CLOSE_S: Final = 2.0
FAILED: Final = frozenset({State.EXECUTOR_ERROR, State.SYSTEM_ERROR, State.PREEMPTED})
_TRACEPARENT: Final = re.compile(r"(?!ff)[0-9a-f]{2}-(?P<trace>[0-9a-f]{32})-(?P<span>[0-9a-f]{16})-[0-9a-f]{2}(-.*)?")

Attributes = Mapping[str, str | int | float | bool]


class Kind(IntEnum):
    """As in OTLP."""

    INTERNAL = 1
    SERVER = 2
    CONSUMER = 5


class Parent(NamedTuple):
    """Where a span belongs. `span` 0: it has no parent."""

    trace: int
    span: int = 0

    def __str__(self) -> str:
        return f"00-{self.trace:032x}-{self.span:016x}-01"


@dataclass(slots=True)
class RequestSpan:
    """The span of a request. It is recorded only if a task was created by it, which sets `parent` and `id`: clients ask for their tasks
    thousands of times."""

    traceparent: str | None
    began_ns: int
    parent: Parent | None = None
    id: int = 0


def parse(traceparent: str | None) -> Parent | None:
    """None: missing or not valid (https://www.w3.org/TR/trace-context/)."""
    match = _TRACEPARENT.fullmatch(traceparent or "")
    if match is None:
        return None
    trace, span = int(match["trace"], 16), int(match["span"], 16)
    return Parent(trace, span) if trace and span else None


class _Recorder:
    """All spans are recorded when they have ended, so each is made as a whole, without a tracer."""

    def __init__(self, processor: BatchSpanProcessor, make: type[EndedSpan], ratio: float) -> None:
        self.processor = processor
        self._make = make
        self._bound = round(ratio * 2**64)

    def is_recorded(self, trace: int) -> bool:
        """The same for all spans of a trace, in every process."""
        return trace % 2**64 < self._bound

    def record(
        self,
        name: str,
        parent: Parent,
        began_ns: int,
        ended_ns: int,
        attributes: Attributes,
        *,
        span_id: int = 0,
        kind: Kind = Kind.INTERNAL,
        error: str | None = None,
    ) -> None:
        ended = self._make(*parent, span_id or random_id(64), name, began_ns, ended_ns, attributes, kind, error)
        self.processor.on_end(ended)  # type: ignore[arg-type] # it reads only `context`

    def close(self) -> None:
        """Send what waits, for a bounded time: the exporter tries again and again while its collector is away."""
        closing = threading.Thread(target=self.processor.shutdown, name="tracing-close", daemon=True)
        closing.start()
        closing.join(CLOSE_S)


def random_id(bits: int) -> int:
    return random.getrandbits(bits) or 1


_recorder: _Recorder | None = None
_request: ContextVar[RequestSpan | None] = ContextVar("request_span", default=None)


def start(endpoint: str | None, ratio: float, role: str, environ: Mapping[str, str]) -> None:
    """Begin to record, if a collector is configured: by `endpoint`, or by OpenTelemetry's own variables, which the exporter reads.

    `ratio`: which part of the traces is recorded. Raises: ConfigurationError.
    """
    global _recorder
    is_off = environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    if is_off or not (endpoint or any(environ.get(name) for name in STANDARD)):
        return
    try:
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        from poiesis import otlp
    except ImportError:
        raise ConfigurationError("traces need OpenTelemetry: pip install 'poiesis[tracing]'") from None
    url = None if endpoint is None else endpoint.rstrip("/") + "/v1/traces"
    resource = {"service.name": f"poiesis-{role}", "service.version": poiesis.__version__}
    logging.getLogger("opentelemetry").setLevel(logging.ERROR)  # a warning for each span that is dropped
    exporter = otlp.Exporter(url, TIMEOUT_S, resource)
    processor = BatchSpanProcessor(exporter, QUEUE, DELAY_S * 1000, BATCH)
    _recorder = _Recorder(processor, otlp.EndedSpan, ratio)
    log.info("tracing", extra={"endpoint": url or "OTEL_EXPORTER_OTLP_…"})


def stop() -> None:
    global _recorder
    recorder, _recorder = _recorder, None
    if recorder is not None:
        recorder.close()


def is_on() -> bool:
    return _recorder is not None


# ── requests ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def begin_request(traceparent: str | None) -> tuple[RequestSpan, Token[RequestSpan | None]]:
    """Until `end_request` new tasks belong to this request, also in threads that run in a copy of its context."""
    span = RequestSpan(traceparent, time.time_ns())
    return span, _request.set(span)


def end_request(span: RequestSpan, token: Token[RequestSpan | None], method: str, route: str, status: int) -> None:
    _request.reset(token)
    if _recorder is None or span.parent is None or not _recorder.is_recorded(span.parent.trace):
        return
    attributes: Attributes = {"http.response.status_code": status}
    _recorder.record(
        f"{method} {route}", span.parent, span.began_ns, time.time_ns(), attributes, span_id=span.id, kind=Kind.SERVER
    )  # fmt: skip


def of_new_task() -> str | None:
    """`Task.trace` of a task that is created now. None: its trace begins with it."""
    span = _request.get()
    if _recorder is None or span is None:
        return None
    if span.parent is None:
        span.parent, span.id = parse(span.traceparent) or Parent(random_id(128)), random_id(64)
    return str(Parent(span.parent.trace, span.id))


# ── tasks ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def parent_of(task: Task) -> Parent:
    """Of the span `task`."""
    return parse(task.trace) or Parent(_derived("trace", task, 16))


def span_of(task: Task) -> Parent:
    """What the spans of the task's parts belong to."""
    return Parent(parent_of(task).trace, _derived("span", task, 8))


def link(name: str, task: Task, began_ns: int, reason: str) -> None:
    """A link, or a reconcile of the monitor, that has just ended."""
    if _recorder is not None and _recorder.is_recorded((parent := span_of(task)).trace):
        _recorder.record(name, parent, began_ns, time.time_ns(), {"poiesis.reason": reason}, kind=Kind.CONSUMER)


def phases(task: Task, ended: Iterable[Phase], *, has_ended: bool) -> None:
    """The phases that a save completed, and with `has_ended` the task itself."""
    if _recorder is None or not _recorder.is_recorded((parent := span_of(task)).trace):
        return
    if has_ended:
        end = task.log.end_time or task.created_at
        failure = task.log.metadata.get("failure_reason", task.state.value) if task.state in FAILED else None
        attributes: Attributes = {
            "poiesis.task.id": task.id,
            "poiesis.state": task.state.value,
            "poiesis.attempts": task.attempt,
        }
        _recorder.record(
            "task", parent_of(task), _ns(task.created_at), _ns(end), attributes, span_id=parent.span, error=failure
        )  # fmt: skip
    for phase in ended:
        if phase.end is not None:
            error = (phase.reason or "failed") if phase.outcome == "failed" else None
            _recorder.record(
                phase.name, parent, _ns(phase.start), _ns(phase.end), _attributes(task, phase), error=error
            )


def _attributes(task: Task, phase: Phase) -> Attributes:
    found: dict[str, str | int | float | bool] = {"poiesis.attempt": phase.attempt}
    if phase.name in ("inputs", "outputs"):
        for unit in ("files", "bytes"):
            text = task.log.metadata.get(f"{phase.name}_{unit}", "")
            if text.isdecimal():
                found[f"poiesis.{unit}"] = int(text)
    return found


def _derived(what: str, task: Task, size: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{what} {task.id}".encode()).digest()[:size]) or 1


def _ns(at: datetime) -> int:
    return int(at.timestamp() * 1_000_000) * 1000
