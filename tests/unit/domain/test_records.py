"""Parsing records and reports, including hostile ones."""

import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poiesis.domain.records import MAX_RECORD_BYTES, RECORD_MARKER, find_records, parse_record, parse_report, parse_time
from poiesis.domain.report import MAX_REPORT_BYTES, MAX_TEXT, FilerReport, TransferredFile, format_report

LINE = {
    "v": 1, "name": "executor-0", "ok": False, "exit_code": 137, "signal": 9, "reason": None, "message": None,
    "oom_killed": True, "started": "2026-01-02T03:04:05.678901Z", "ended": "2026-01-02T03:04:06Z",
    "peak_memory_bytes": 5, "cpu_seconds": 0.25, "stdout": "abc", "stderr": "é", "truncated": False,
}  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(10**300, 10**320) | st.floats() | st.text(max_size=5)
    | st.sampled_from(["\ud800", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "2026-01-01"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


def test_a_launchers_record_is_read():
    record = parse_record(json.dumps(LINE), 100)
    assert record is not None
    assert (record.name, record.ok, record.exit_code, record.oom_killed) == ("executor-0", False, 137, True)
    assert record.started_at == datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
    assert (record.peak_memory_bytes, record.cpu_seconds, record.stdout, record.stderr) == (5, 0.25, "abc", "é")


@given(st.dictionaries(st.sampled_from(sorted(LINE)), VALUES))
def test_a_record_of_any_values_is_rejected_or_within_its_bounds(fields):
    record = parse_record(json.dumps({**LINE, **fields}), 10)
    if record is None:
        return
    json.dumps(record.stdout + record.stderr + (record.message or "") + record.name).encode()
    for text in (record.stdout, record.stderr, record.message or "", record.reason or "", record.name):
        text.encode()
    assert len(record.stdout) <= 10 and len(record.name) <= 64
    assert record.cpu_seconds is None or 0 <= record.cpu_seconds <= 2**53
    assert record.started_at is None or record.started_at.utcoffset() is not None


@given(st.text() | st.binary(), st.integers(-1, 5))
def test_text_that_is_not_a_record_is_rejected(text, limit):
    assert parse_record(text, limit) is None
    assert parse_report(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000, "{" * 100_000, '{"name":' * 50_000, "null", "[]", "1" * 5000, '{"name": "x"}', b"\xff\xfe",
        '{"name": "x", "ok": 1}', '{"name": 1, "ok": true}', '{"name":"x","ok":true,"exit_code":' + "9" * 5000 + "}",
        " " * (MAX_RECORD_BYTES + 1),
    ],
    ids=range(12),
)  # fmt: skip
def test_hostile_text_is_rejected(text):
    assert parse_record(text, 10) is None


def test_a_tail_keeps_its_end():
    record = parse_record(json.dumps({**LINE, "stdout": "0123456789"}), 4)
    assert record is not None and record.stdout == "6789"
    none = parse_record(json.dumps(LINE), 0)
    assert none is not None and none.stdout == ""


def line(**fields: object) -> str:
    return f"{RECORD_MARKER} {json.dumps({**LINE, **fields})}"


def test_the_last_record_of_a_name_in_a_log_counts():
    log = "\n".join(["output", line(exit_code=1), line(exit_code=2), line(name="tof", exit_code=3), "end"])
    assert {n: r.exit_code for n, r in find_records(log, ["executor-0", "tof", "tif"], 10).items()} == {
        "executor-0": 2,
        "tof": 3,
    }
    assert find_records("", ["tif"], 10) == {}


def test_a_record_after_an_unfinished_line_is_found():
    for before in ("unfinished ", f"{RECORD_MARKER} ", f"{RECORD_MARKER} {{", f"{RECORD_MARKER} {{}}"):
        assert find_records(before + line(), ["executor-0"], 10)["executor-0"].exit_code == 137


def test_a_record_whose_tail_contains_another_is_parsed_as_itself():
    assert find_records(line(stdout=line(exit_code=0)), ["executor-0"], 1000)["executor-0"].exit_code == 137


def test_a_line_of_nothing_but_markers_costs_little():
    assert find_records(f"{RECORD_MARKER} {{" * 100_000, ["executor-0"], 10) == {}


FILES = st.builds(
    TransferredFile,
    url=st.text(max_size=30),
    path=st.text(max_size=30),
    size_bytes=st.integers(0, 2**63 - 1),
    checksum=st.none() | st.text(max_size=20),
)
REPORTS = st.builds(
    FilerReport,
    files=st.lists(FILES, max_size=5).map(tuple),
    omitted=st.integers(0, 1000),
    total_files=st.integers(0, 1000),
    total_bytes=st.integers(0, 2**60),
    seconds=st.integers(0, 1000).map(float),
    notes=st.lists(st.text(max_size=20), max_size=3).map(tuple),
    error=st.none() | st.text(max_size=30),
    error_code=st.none() | st.sampled_from(["not_found", "access_denied"]),
    retryable=st.booleans(),
)


@given(REPORTS)
def test_a_report_survives_formatting_and_parsing(report):
    assert parse_report(format_report(report)) == report


@pytest.mark.parametrize(
    "report",
    [
        FilerReport(files=tuple(TransferredFile(f"s3://b/{i}", "/x" * 100, i) for i in range(20_000))),
        FilerReport(notes=("\u4e00" * MAX_TEXT,) * 200, error="\u4e00" * 10_000, error_code="x" * 10_000),
    ],
    ids=["files", "notes"],
)
def test_a_report_stays_within_its_bound_and_can_be_read(report):
    text = format_report(report)
    assert len(text.encode()) <= MAX_REPORT_BYTES
    read = parse_report(text)
    assert read is not None
    assert len(read.files) + read.omitted == len(report.files)
    assert "\n" not in text


@given(st.fixed_dictionaries({"files": VALUES}, optional=dict.fromkeys(
    ["omitted", "total_files", "total_bytes", "seconds", "notes", "error", "error_code", "retryable"], VALUES)))  # fmt: skip
def test_a_report_of_any_values_is_rejected_or_within_its_bounds(fields):
    report = parse_report(json.dumps(fields))
    assert report is None or (report.omitted >= 0 and report.seconds >= 0)


@given(VALUES)
def test_any_time_is_utc_or_none(value):
    moment = parse_time(value)
    assert moment is None or moment.tzinfo is UTC


@pytest.mark.parametrize(
    "text", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "2026-01-01T00:00:00", "x" * 50]
)
def test_a_time_without_a_utc_equivalent_is_rejected(text):
    assert parse_time(text) is None


@pytest.mark.parametrize("value", [10**320, -1, True, "1", float("inf"), float("nan")])
def test_an_invalid_number_is_left_out(value):
    record = parse_record(json.dumps({**LINE, "cpu_seconds": value}), 10)
    assert record is not None and record.cpu_seconds is None
