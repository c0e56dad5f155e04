"""Tables, columns and text for terminals and pipes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from poiesis.cli import columns, options
from poiesis.cli.output import Table, as_text
from poiesis.cli.text import one_line, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é\t\n", "plain é\t\n"),
        ("\x1b[31m", "\\u001b[31m"),
        ("\x9b2J\x7f", "\\u009b2J\\u007f"),
        ("a\u202eb\u2066c\u2028d", "a\\u202eb\\u2066c\\u2028d"),
        ("\ud800", "\\ud800"),
        ("\r", "\\u000d"),
    ],
)
def test_what_steers_a_terminal_is_shown_as_an_escape(text: str, shown: str) -> None:
    assert printable(text) == shown
    shown.encode()


def test_a_cell_is_one_line() -> None:
    assert one_line(" a\n\tb\x1b ") == "a b\\u001b"


def test_a_plain_table_is_as_wide_as_its_values() -> None:
    table = Table(("id", "name"), [["1", "n\nm"], ["twelve", ""]])
    assert table.plain() == ["ID      NAME", "1       n m", "twelve"]
    assert Table(table.columns, table.rows, header=False).plain()[0] == "1       n m"
    assert Table(("id",), []).plain() == []


def test_a_table_fits_a_terminal_and_keeps_ids_whole() -> None:
    table = Table(("id", "name", "state", "reason"), [["i" * 26, "n" * 40, "EXECUTOR_ERROR", "数" * 30]])
    text = table.rich(80).plain
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "i" * 26 in text and "EXECUTOR_ERROR" in text and "…" in text
    assert "i" * 26 in table.rich(20).plain
    styles = {str(span.style) for span in table.rich(80).spans}
    assert styles == {"bold", "red"}


@pytest.mark.parametrize("text", ["\x1b[2J", "\u202e", "a\x85b", "\x9b", "é", "'\"", "- x: y"])
def test_yaml_is_safe_and_exact(text: str) -> None:
    import yaml

    written = as_text({"key": text}, "yaml")
    assert yaml.safe_load(written) == {"key": text} and printable(written) == written


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, ""), (0.4, "0s"), (59.9, "59s"), (245, "4m05s"), (11220, "3h07m"), (212400, "2d11h")]
)
def test_spans(seconds: float | None, text: str) -> None:
    assert columns.span(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"), [("", ""), (None, ""), (999, "999 B"), ("1500000", "1.5 MB"), (5e13, "50 TB")]
)
def test_sizes(value: object, text: str) -> None:
    assert columns.size(value) == text


def test_durations_begin_with_the_start() -> None:
    log = {"start_time": "2026-03-02T08:00:10Z", "end_time": "2026-03-02T10:00:20+02:00"}
    assert columns.seconds({"creation_time": "2026-03-02T08:00:00Z", "logs": [log]}) == 10
    now = datetime(2026, 3, 2, 8, 1, tzinfo=UTC)
    assert columns.seconds({"creation_time": "2026-03-02T08:00:00.123456789Z"}, now) == pytest.approx(59.9, abs=0.1)
    assert columns.seconds({}) is None


def test_times_and_sizes_of_options() -> None:
    assert [options.seconds(text) for text in ("90", "1.5", "10m", "2h", "3d")] == [90, 1.5, 600, 7200, 259200]
    assert [options.gigabytes(text) for text in ("4", "0.5", "4G", "512M", "2GiB", "1T")] == [
        4,
        0.5,
        4,
        0.512,
        2.14748,
        1000,
    ]
    assert options.since("2026-03-01") == datetime(2026, 3, 1, tzinfo=UTC)
    assert options.since("2026-03-01T12:00:00+02:00") == datetime(2026, 3, 1, 10, tzinfo=UTC)
    assert datetime.now(UTC) - options.since("2h") - timedelta(hours=2) < timedelta(minutes=1)
