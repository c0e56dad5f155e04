"""Exported spans are those that OpenTelemetry's own encoder would have made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

pytest.importorskip("opentelemetry.proto", reason="no OpenTelemetry: pip install 'poiesis[tracing]'")

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

import poiesis
from poiesis.otlp import EndedSpan, Exporter
from poiesis.tracing import Kind
from tests.servers.otlp import Collector

RESOURCE = {"service.name": "poiesis-test", "service.version": "1"}
ATTRIBUTES: Mapping[str, str | int | float | bool] = {"text": "é", "whole": -5, "part": 0.5, "yes": True, "no": False}
EXAMPLES = [
    EndedSpan(1, 0, 1, "no parent", 0, 1, {}, Kind.INTERNAL, None),
    EndedSpan(2**128 - 1, 2**64 - 1, 2**63, "POST /tasks", 17 * 10**17, 17 * 10**17 + 1, ATTRIBUTES, Kind.SERVER, None),
    EndedSpan(5, 6, 7, "ends before it begins", 10, 9, {"n": 2**62}, Kind.CONSUMER, "OutputMissing: /data/é"),
    EndedSpan(5, 6, 7, "failed without words", 1, 2, {}, Kind.INTERNAL, ""),
]  # fmt: skip


def by_the_library(span: EndedSpan) -> ReadableSpan:
    return ReadableSpan(
        span.name,
        SpanContext(span.trace, span.id, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED)),
        SpanContext(span.trace, span.parent, is_remote=True) if span.parent else None,
        Resource.create(dict(RESOURCE)),
        span.attributes,
        kind=SpanKind[Kind(span.kind).name],
        status=Status(StatusCode.UNSET if span.error is None else StatusCode.ERROR, span.error),
        start_time=min(span.began_ns, span.ended_ns),
        end_time=span.ended_ns,
        instrumentation_scope=InstrumentationScope("poiesis", poiesis.__version__),
    )


def normalized(request: ExportTraceServiceRequest) -> ExportTraceServiceRequest:
    """The library writes an empty status, which means the same as none."""
    for span in request.resource_spans[0].scope_spans[0].spans:
        if not span.status.code:
            span.ClearField("status")
    return request


def test_the_messages_are_those_of_the_library(monkeypatch: pytest.MonkeyPatch, collector: Collector) -> None:
    bodies: list[bytes] = []

    def keep_and_send(body: bytes) -> object:
        bodies.append(body)
        return send(body)

    exporter = Exporter(collector.url + "/v1/traces", 5, RESOURCE)
    send = exporter._client.export
    monkeypatch.setattr(exporter._client, "export", keep_and_send)
    for spans in (EXAMPLES, EXAMPLES[:1]):  # twice: nothing of a batch stays in the next one
        assert exporter.export(spans) is SpanExportResult.SUCCESS
        expected = normalized(encode_spans([by_the_library(span) for span in spans]))
        assert ExportTraceServiceRequest.FromString(bodies.pop()) == expected
    assert [span.name for span in collector.spans] == [span.name for span in (*EXAMPLES, EXAMPLES[0])]


@pytest.mark.parametrize(
    "change", [{"name": "\udc80"}, {"error": "\udc80"}, {"attributes": {"n": 2**70}}, {"attributes": {"t": "\udc80"}}]
)
def test_a_span_that_cannot_be_written_does_not_take_others_with_it(
    collector: Collector, caplog: pytest.LogCaptureFixture, change: Mapping[str, Any]
) -> None:
    exporter = Exporter(collector.url + "/v1/traces", 5, RESOURCE)
    broken = EXAMPLES[1]._replace(**change)
    assert exporter.export([EXAMPLES[0], broken, EXAMPLES[2]]) is SpanExportResult.SUCCESS
    assert [span.name for span in collector.spans] == [EXAMPLES[0].name, EXAMPLES[2].name]
    assert [record.getMessage() for record in caplog.records] == ["span_not_written"]


def test_a_collector_that_is_away_is_a_failure() -> None:
    exporter = Exporter("http://127.0.0.1:1/v1/traces", 0.2, RESOURCE)
    assert exporter.export(EXAMPLES) is SpanExportResult.FAILURE
