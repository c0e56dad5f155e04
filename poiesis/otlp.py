"""Ended spans to a collector by OTLP over HTTP. Imported only where traces are on (`poiesis.tracing`).

The exporter of OpenTelemetry sends, tries again and reads its variables; the messages are made here from `opentelemetry-proto`. Its own
encoder takes ten times as long, and shares the interpreter with requests (docs/adr/0018-metrics-and-traces.md).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, SpanFlags, Status
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, TraceFlags

import poiesis

log = logging.getLogger(__name__)

_SAMPLED = SpanContext(1, 1, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))
_NO_PARENT = SpanFlags.SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK
_PARENT = _NO_PARENT | SpanFlags.SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK


class EndedSpan(NamedTuple):
    """What is kept of a span until it is exported. Times in nanoseconds since 1970."""

    trace: int
    parent: int  # 0: none
    id: int
    name: str
    began_ns: int
    ended_ns: int
    attributes: Mapping[str, str | int | float | bool]
    kind: int
    error: str | None

    @property
    def context(self) -> SpanContext:
        """The batch processor only looks whether it is sampled."""
        return _SAMPLED

    def write(self, span: Span) -> None:
        """Raises: ValueError for what OTLP has no place for: text that is not Unicode, integers of more than 64 bits."""
        span.trace_id, span.span_id = self.trace.to_bytes(16, "big"), self.id.to_bytes(8, "big")
        span.flags = _PARENT if self.parent else _NO_PARENT
        if self.parent:
            span.parent_span_id = self.parent.to_bytes(8, "big")
        span.name, span.kind = self.name, Span.SpanKind.ValueType(self.kind)
        span.start_time_unix_nano, span.end_time_unix_nano = min(self.began_ns, self.ended_ns), self.ended_ns
        for key, value in self.attributes.items():
            attribute = span.attributes.add()
            attribute.key = key
            if isinstance(value, bool):
                attribute.value.bool_value = value
            elif isinstance(value, int):
                attribute.value.int_value = value
            elif isinstance(value, float):
                attribute.value.double_value = value
            else:
                attribute.value.string_value = value
        if self.error is not None:
            span.status.code, span.status.message = Status.STATUS_CODE_ERROR, self.error


class Exporter(OTLPSpanExporter):
    def __init__(self, url: str | None, timeout_s: float, resource: Mapping[str, str]) -> None:
        """`url` None: from OpenTelemetry's variables."""
        super().__init__(url, timeout=timeout_s)
        scope = InstrumentationScope("poiesis", poiesis.__version__)
        empty = ReadableSpan("", _SAMPLED, resource=Resource.create(dict(resource)), instrumentation_scope=scope)
        self._envelope = encode_spans([empty])
        self._envelope.resource_spans[0].scope_spans[0].ClearField("spans")

    def export(self, spans: Sequence[EndedSpan]) -> SpanExportResult:  # type: ignore[override]
        request = ExportTraceServiceRequest()
        request.CopyFrom(self._envelope)
        messages = request.resource_spans[0].scope_spans[0].spans
        for span in spans:
            try:
                span.write(messages.add())
            except ValueError as error:  # of one task: the spans of others go on
                del messages[-1]
                log.warning("span_not_written", extra={"error": str(error)[:200]})
        sent = self._client.export(request.SerializeToString())  # what `export` does with its own messages
        return SpanExportResult.SUCCESS if sent.success else SpanExportResult.FAILURE
