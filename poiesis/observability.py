"""Logs, metrics and health: what every role tells its operators.

Logs are one JSON object a line on stderr: time, level, event, and the fields that the caller gave as `extra` (task_id among them). Metrics
end in their unit and are served with `/healthz` and `/readyz` by `HealthServer`, which is the poke listener of TExAM too.
"""

from __future__ import annotations

import json
import logging
import re
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from prometheus_client import Counter, Gauge, Histogram, generate_latest

from poiesis.domain.errors import ConfigurationError, Unavailable

_STANDARD: Final = frozenset(logging.LogRecord("", 0, "", 0, "", (), None).__dict__) | {
    "message",
    "asctime",
    "taskName",
}
_CREDENTIALS: Final = re.compile(r"(?<=://)[^/\s\"]+@")
MAX_CONNECTIONS: Final = 256
REQUEST_TIMEOUT_S: Final = 5
MAX_POKE_BYTES: Final = 256 * 1024  # the launcher sends at most half of it

TASKS_CREATED = Counter("poiesis_tasks_created_total", "Tasks accepted by this process.")
TASKS_ENDED = Counter("poiesis_tasks_ended_total", "Tasks that this process saw to their end.", ["state"])
LINK_SECONDS = Histogram("poiesis_link_duration_seconds", "Time a link took.", ["link"])
LINK_FAILURES = Counter("poiesis_link_failures_total", "Links that failed.", ["link"])
POKES = Counter("poiesis_pokes_total", "Wake-ups by containers.", ["result"])
SWEPT = Counter("poiesis_swept_tasks_total", "Tasks that the sweep found objects of which should be gone.")
LEADING = Gauge("poiesis_monitor_is_leader", "1 in the monitor that leads.")


def without_credentials(text: str) -> str:
    """The text with `user:password@` taken out of its URLs."""
    return _CREDENTIALS.sub("", text)


_task_id: ContextVar[str | None] = ContextVar("task_id", default=None)


@contextmanager
def bind_task(task_id: str) -> Iterator[None]:
    """Every log line of this thread gets `task_id` until the block ends."""
    token = _task_id.set(task_id)
    try:
        yield
    finally:
        _task_id.reset(token)


class TaskIdFilter(logging.Filter):
    """Add the bound task id to records that do not name a task themselves."""

    def filter(self, record: logging.LogRecord) -> bool:
        task_id = _task_id.get()
        if task_id is not None and not hasattr(record, "task_id"):
            record.task_id = task_id
        return True


class JsonFormatter(logging.Formatter):
    """One JSON object for each record; never fails, whatever the fields are."""

    def format(self, record: logging.LogRecord) -> str:
        document: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "event": record.getMessage(),
            "logger": record.name,
        }
        for name, value in _fields(record).items():
            document.setdefault(name, value)
        if record.exc_info:
            document["trace"] = self.formatException(record.exc_info)
        try:
            text = json.dumps(document, default=str)
        except Exception:  # keys that are no text, circles, a __str__ that fails
            text = json.dumps({name: _told(value) for name, value in document.items()})
        return without_credentials(text)


class TextFormatter(logging.Formatter):
    """For people at a terminal: time, event, fields."""

    def format(self, record: logging.LogRecord) -> str:
        fields = " ".join(f"{k}={_told(v)}" for k, v in _fields(record).items())
        line = f"{datetime.fromtimestamp(record.created):%H:%M:%S} {record.levelname:7} {record.getMessage()} {fields}".rstrip()
        line = line.replace("\r", "\\r").replace("\n", "\\n")  # what a user named may not look like a line of ours
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return without_credentials(line)


def _fields(record: logging.LogRecord) -> Mapping[str, Any]:
    return {k: v for k, v in record.__dict__.items() if k not in _STANDARD and not k.startswith("_")}


def _told(value: object) -> str:
    try:
        return str(value)
    except Exception:
        return f"<{type(value).__name__}>"


def configure_logging(level: str, form: str) -> None:
    """Raises: ConfigurationError."""
    if level.upper() not in logging.getLevelNamesMapping():
        raise ConfigurationError(f"{level!r} is no log level; give DEBUG, INFO, WARNING or ERROR")
    if form not in ("json", "text"):
        raise ConfigurationError(f"{form!r} is no log format; give json or text")
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(TaskIdFilter())
    handler.setFormatter(TextFormatter() if form == "text" else JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for chatty in ("celery", "kombu", "amqp", "kubernetes", "urllib3", "connexion", "uvicorn.access", "asyncio"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, logging.getLevelName(level.upper())))


class HealthServer:
    """A small HTTP server: `GET /healthz`, `GET /readyz`, `GET /metrics`, and for TExAM `POST /poke/<task id>/<nonce>`.

    A poke wakes its own task's reconcile, and may carry its container's closing record (docs/adr/0004); it can do nothing else. More of
    them than `pokes_per_second` are dropped. Connections are bounded in number, time and content.

    Raises: ConfigurationError when the address cannot be listened on.
    """

    def __init__(
        self,
        address: str,
        ready: Callable[[], None],
        *,
        poke: Callable[[str, str, bytes], None] | None = None,
        pokes_per_second: int = 1000,
    ) -> None:
        host, _, port = address.rpartition(":")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._server = _Server((host.strip("[]") or "0.0.0.0", int(port)), family, ready, poke, pokes_per_second)
        except (OSError, OverflowError, ValueError) as error:
            raise ConfigurationError(f"{address} cannot be listened on: {error}; give HOST:PORT") from None
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.2,), name="health", daemon=True)

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512

    def __init__(
        self,
        address: tuple[str, int],
        family: socket.AddressFamily,
        ready: Callable[[], None],
        poke: Callable[[str, str, bytes], None] | None,
        pokes_per_second: int,
    ) -> None:
        self.address_family = family
        self.ready = ready
        self.poke = poke
        self._slots = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self._rate = _Rate(pokes_per_second)
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._slots.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        logging.getLogger(__name__).debug("connection_failed", exc_info=True)

    def take_poke(self, task_id: str, nonce: str, body: bytes) -> bool:
        if self.poke is None or not self._rate.take():
            POKES.labels("dropped").inc()
            return False
        POKES.labels("taken").inc()
        self.poke(task_id, nonce, body)
        return True


class _Rate:
    """At most `limit` a second, in whole seconds of the wall clock."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._second = 0
        self._count = 0

    def take(self) -> bool:
        second = int(datetime.now(UTC).timestamp())
        with self._lock:
            if second != self._second:
                self._second, self._count = second, 0
            self._count += 1
            return self._count <= self._limit


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = REQUEST_TIMEOUT_S
    _POKE: Final = re.compile(r"/poke/([0-9a-z]{1,64})/([0-9a-f-]{1,64})")

    def do_GET(self) -> None:
        if self.path == "/healthz":
            self._answer(200, b"ok\n")
        elif self.path == "/readyz":
            try:
                self.server.ready()
            except Unavailable as error:
                self._answer(503, f"{error}\n".encode())
            else:
                self._answer(200, b"ready\n")
        elif self.path == "/metrics":
            self._answer(200, generate_latest(), "text/plain; version=0.0.4; charset=utf-8")
        else:
            self._answer(404, b"not found\n")

    def do_POST(self) -> None:
        match = self._POKE.fullmatch(self.path)
        size = self.headers.get("Content-Length", "0")
        if match is None:
            self._answer(404, b"not found\n")
        elif not size.isdecimal() or int(size) > MAX_POKE_BYTES:
            self._answer(413, b"too large\n")
        else:
            body = self.rfile.read(int(size))
            self._answer(202 if self.server.take_poke(match[1], match[2], body) else 429, b"")

    def _answer(self, status: int, body: bytes, kind: str = "text/plain; charset=utf-8") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass
