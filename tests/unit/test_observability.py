"""Logs that never fail and never tell a password; health, metrics and pokes over a real socket."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import urllib3
from hypothesis import given
from hypothesis import strategies as st

from poiesis.domain.errors import ConfigurationError, RepositoryUnavailable
from poiesis.observability import (
    MAX_POKE_BYTES,
    HealthServer,
    JsonFormatter,
    TextFormatter,
    bind_task,
    configure_logging,
    without_credentials,
)

HTTP = urllib3.PoolManager(timeout=urllib3.Timeout(10), retries=False)


def record(message: str = "event", *arguments: object, **fields: Any) -> logging.LogRecord:
    made = logging.LogRecord("poiesis.x", logging.INFO, "x.py", 1, message, arguments, None)
    made.__dict__.update(fields)
    return made


def test_a_record_is_one_json_object_with_its_fields() -> None:
    told = json.loads(JsonFormatter().format(record("task_saved", task_id="t", seconds=0.5, none=None)))
    time = told.pop("time")
    assert told == {
        "level": "INFO",
        "event": "task_saved",
        "logger": "poiesis.x",
        "task_id": "t",
        "seconds": 0.5,
        "none": None,
    }
    assert time.endswith("+00:00") and len(time) == 29


def test_a_field_cannot_pretend_to_be_another() -> None:
    told = json.loads(JsonFormatter().format(record("real", event="forged", level="DEBUG", logger="x", time="never")))
    assert (told["event"], told["level"], told["logger"]) == ("real", "INFO", "poiesis.x") and told["time"] != "never"


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
    told = json.loads(JsonFormatter().format(made))
    assert "ValueError" in told["trace"] and "secret" not in told["trace"]
    made.exc_text = None
    text = TextFormatter().format(made)
    assert "Traceback" in text and "secret" not in text


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("mongodb://u:p@h/x", "mongodb://h/x"),
        ("redis://:p@h:1/0 and http://a@b", "redis://h:1/0 and http://b"),
        ("http://u:p@ss@h/", "http://h/"),
        ("https://h/a@b c@d", "https://h/a@b c@d"),
        ('{"a": "http://h", "b": "x@y"}', '{"a": "http://h", "b": "x@y"}'),
        ("nothing", "nothing"),
    ],
)
def test_credentials_are_cut_out_of_urls(text: str, told: str) -> None:
    assert without_credentials(text) == told
    assert without_credentials(told) == told


@given(st.text(alphabet="ab:@%!", min_size=1, max_size=12))
def test_no_password_stays_whatever_is_in_it(password: str) -> None:
    assert without_credentials(f"x redis://user:{password}@host:1/0 y") == "x redis://host:1/0 y"


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield root
    root.handlers[:], root.level = handlers, level
    for name in ("celery", "kombu", "amqp", "kubernetes", "urllib3", "connexion", "uvicorn.access", "asyncio"):
        logging.getLogger(name).setLevel(logging.NOTSET)


@pytest.mark.parametrize("form", ["json", "text"])
def test_logs_go_to_stderr(root: logging.Logger, capsys: pytest.CaptureFixture[str], form: str) -> None:
    configure_logging("info", form)
    logging.getLogger("poiesis.test").info("said", extra={"task_id": "t"})
    logging.getLogger("kombu").info("chatter")
    told = capsys.readouterr()
    assert told.out == "" and told.err.count("\n") == 1 and ("{" in told.err) is (form == "json")


@pytest.mark.parametrize(("level", "form"), [("LOUD", "json"), ("", "json"), ("INFO", "xml")])
def test_a_level_or_form_that_is_none_is_refused(root: logging.Logger, level: str, form: str) -> None:
    with pytest.raises(ConfigurationError):
        configure_logging(level, form)


class Site:
    def __init__(self, **options: Any) -> None:
        self.error: Exception | None = None
        self.pokes: list[tuple[str, str, bytes]] = []
        poke = (
            (lambda task_id, nonce, body: self.pokes.append((task_id, nonce, body)))
            if options.pop("pokes", True)
            else None
        )
        self.server = HealthServer("127.0.0.1:0", self.ready, poke=poke, **options)
        self.url = f"http://127.0.0.1:{self.server.port}"
        self.server.start()

    def ready(self) -> None:
        if self.error is not None:
            raise self.error

    def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, str]:
        answer = HTTP.request(method, self.url + path, body=body)
        return answer.status, answer.data.decode()


@pytest.fixture
def make_site() -> Iterator[Callable[..., Site]]:
    sites: list[Site] = []

    def make(**options: Any) -> Site:
        sites.append(Site(**options))
        return sites[-1]

    yield make
    for site in sites:
        site.server.close()
    HTTP.clear()


def test_health_and_readiness(make_site: Callable[..., Site]) -> None:
    site = make_site()
    assert site.ask("GET", "/healthz") == (200, "ok\n") and site.ask("GET", "/readyz") == (200, "ready\n")
    site.error = RepositoryUnavailable("the store is away")
    assert site.ask("GET", "/readyz") == (503, "the store is away\n")
    assert site.ask("GET", "/healthz")[0] == 200
    assert site.ask("GET", "/else")[0] == 404


def test_metrics_end_in_their_unit(make_site: Callable[..., Site]) -> None:
    status, text = make_site().ask("GET", "/metrics")
    ours = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE poiesis_")}
    assert status == 200 and len(ours) >= 6
    assert all(name.endswith(("_total", "_seconds", "_created", "_is_leader")) for name in ours), ours


def test_a_poke_wakes_its_task_and_nothing_else_is_taken(make_site: Callable[..., Site]) -> None:
    site = make_site()
    assert site.ask("POST", "/poke/abc123/0f", b'{"name": "x"}')[0] == 202
    assert site.ask("POST", "/poke/abc123/0f-1-1")[0] == 202
    assert site.pokes == [("abc123", "0f", b'{"name": "x"}'), ("abc123", "0f-1-1", b"")]
    for path in ("/poke/", "/poke/ABC/0f", "/poke/a/zz", "/poke/a/0f/x", f"/poke/{'a' * 65}/0f", "/poke/..%2f/0f", "/"):
        assert site.ask("POST", path)[0] == 404, path
    assert len(site.pokes) == 2


def test_pokes_are_bounded_in_number_and_size(make_site: Callable[..., Site]) -> None:
    site = make_site(pokes_per_second=3)
    answers = [site.ask("POST", "/poke/a/0f")[0] for _ in range(40)]
    assert (
        set(answers) == {202, 429} and len(site.pokes) == answers.count(202) <= 3 * 11
    )  # ten seconds on the slowest machine
    site = make_site()
    with contextlib.suppress(urllib3.exceptions.HTTPError):  # refused before it was all sent
        assert site.ask("POST", "/poke/a/0f", b"x" * (MAX_POKE_BYTES + 1))[0] != 202
    assert site.pokes == []


def test_who_takes_no_pokes_says_so(make_site: Callable[..., Site]) -> None:
    assert make_site(pokes=False).ask("POST", "/poke/a/0f")[0] in (404, 429)


def test_a_connection_that_says_nonsense_does_no_harm(make_site: Callable[..., Site]) -> None:
    site = make_site()
    for said in (b"", b"\0\xff\n\n", b"GET\r\n\r\n", b"POST /poke/a/0f HTTP/1.1\r\nContent-Length: -5\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", site.server.port), timeout=10) as connection:
            connection.sendall(said)
            connection.shutdown(socket.SHUT_WR)
            connection.recv(100)
    assert site.ask("GET", "/healthz")[0] == 200


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
