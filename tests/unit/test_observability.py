"""Logs never fail and never show a password."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymongo import MongoClient

from poiesis.domain.errors import ConfigurationError
from poiesis.observability import (
    CHATTY,
    JsonFormatter,
    TextFormatter,
    bind_task,
    configure_logging,
    without_credentials,
)


def record(message: str = "event", *arguments: object, **fields: Any) -> logging.LogRecord:
    made = logging.LogRecord("poiesis.x", logging.INFO, "x.py", 1, message, arguments, None)
    made.__dict__.update(fields)
    return made


def test_a_record_is_one_json_object_with_its_fields() -> None:
    entry = json.loads(JsonFormatter().format(record("task_saved", task_id="t", seconds=0.5, none=None)))
    time = entry.pop("time")
    assert entry == {
        "level": "INFO",
        "event": "task_saved",
        "logger": "poiesis.x",
        "task_id": "t",
        "seconds": 0.5,
        "none": None,
    }
    assert time.endswith("+00:00") and len(time) == 29


def test_a_field_cannot_overwrite_another() -> None:
    entry = json.loads(JsonFormatter().format(record("real", event="forged", level="DEBUG", logger="x", time="never")))
    assert (entry["event"], entry["level"], entry["logger"]) == ("real", "INFO", "poiesis.x") and entry[
        "time"
    ] != "never"


class Broken:
    def __str__(self) -> str:
        raise RuntimeError("no")


CIRCLE: list[Any] = []
CIRCLE.append(CIRCLE)


@pytest.mark.parametrize("value", [Broken(), CIRCLE, {("a", 1): 2}, {1: {b"x"}}, "\ud800", b"\xff", object(), "a\nb\r"])
def test_any_field_is_one_line(value: object) -> None:
    line = JsonFormatter().format(record(field=value, other="kept"))
    assert json.loads(line)["other"] == "kept" and len(line.splitlines()) == 1
    line = TextFormatter().format(record(field=value, other="kept"))
    assert "other=kept" in line and len(line.split("\n")) == 1


def test_a_trace_goes_with_its_record() -> None:
    made = record()
    try:
        raise ValueError("at redis://u:secret@h")
    except ValueError as error:
        made.exc_info = (ValueError, error, error.__traceback__)
    entry = json.loads(JsonFormatter().format(made))
    assert "ValueError" in entry["trace"] and "secret" not in entry["trace"]
    made.exc_text = None
    text = TextFormatter().format(made)
    assert "Traceback" in text and "secret" not in text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("mongodb://u:p@h/x", "mongodb://h/x"),
        ("redis://:p@h:1/0 and http://a@b", "redis://h:1/0 and http://b"),
        ("http://u:p@ss@h/", "http://h/"),
        ("https://h/a@b c@d", "https://h/a@b c@d"),
        ('{"a": "http://h", "b": "x@y"}', '{"a": "http://h", "b": "x@y"}'),
        ("nothing", "nothing"),
    ],
)
def test_credentials_are_removed_from_urls(text: str, shown: str) -> None:
    assert without_credentials(text) == shown
    assert without_credentials(shown) == shown


@given(st.text(alphabet="ab:@%!", min_size=1, max_size=12))
def test_no_password_is_kept_whatever_it_contains(password: str) -> None:
    assert without_credentials(f"x redis://user:{password}@host:1/0 y") == "x redis://host:1/0 y"


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in CHATTY}
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.NOTSET)
    yield root
    root.handlers[:], root.level = handlers, level
    for name in CHATTY:
        logging.getLogger(name).setLevel(levels[name])


def test_requests_to_a_provider_and_commands_to_the_store_are_not_logged(
    root: logging.Logger, capsys: pytest.CaptureFixture[str], mongo_url: str
) -> None:
    configure_logging("debug", "json")
    with httpx.Client(transport=httpx.MockTransport(lambda request: httpx.Response(200))) as client:
        client.get("https://id.example.org/userinfo?code=s3cret")
    with MongoClient[dict[str, str]](mongo_url) as store:
        store["chatty"]["tasks"].insert_one({"command": "s3cret"})
    assert "s3cret" not in capsys.readouterr().err


@pytest.mark.parametrize("form", ["json", "text"])
def test_logs_go_to_stderr(root: logging.Logger, capsys: pytest.CaptureFixture[str], form: str) -> None:
    configure_logging("info", form)
    logging.getLogger("poiesis.test").info("said", extra={"task_id": "t"})
    logging.getLogger("kombu").info("chatter")
    written = capsys.readouterr()
    assert written.out == "" and written.err.count("\n") == 1 and ("{" in written.err) is (form == "json")


@pytest.mark.parametrize(("level", "form"), [("LOUD", "json"), ("", "json"), ("INFO", "xml")])
def test_an_unknown_level_or_form_is_refused(root: logging.Logger, level: str, form: str) -> None:
    with pytest.raises(ConfigurationError):
        configure_logging(level, form)


def test_log_lines_get_the_bound_task_id_unless_they_have_their_own(
    root: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging("info", "json")
    logger = logging.getLogger("poiesis.test")
    with bind_task("outer"):
        with bind_task("inner"):
            logger.info("bound")
        logger.info("explicit", extra={"task_id": "other"})
        logger.info("restored")
    logger.info("unbound")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line.get("task_id") for line in lines] == ["inner", "other", "outer", None]
