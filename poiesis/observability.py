"""Logs: the formats, and the ids that every line gets.

Logs are one JSON object per line on stderr: time, level, event, and the fields that the caller passed as `extra` (task_id among them).
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Final

from poiesis.domain.errors import ConfigurationError

_STANDARD: Final = {*logging.LogRecord("", 0, "", 0, "", (), None).__dict__, "message", "asctime", "taskName"}
CHATTY: Final = (
    "celery",
    "kombu",
    "amqp",
    "kubernetes",
    "urllib3",
    "connexion",
    "uvicorn.access",
    "asyncio",
    "httpx",  # the URL of each request, with its query
    "httpcore",  # the headers of each response
    "pymongo",  # each command with its documents
    "paramiko",
)
"""Libraries of which only warnings are logged, at every level."""
_CREDENTIALS: Final = re.compile(r"(?<=://)[^/\s\"]+@")


def without_credentials(text: str) -> str:
    """Return the text with `user:password@` removed from its URLs."""
    return _CREDENTIALS.sub("", text)


_task_id: ContextVar[str | None] = ContextVar("task_id", default=None)
_request_id: ContextVar[str | None] = ContextVar("request_id", default=None)


@contextmanager
def bind_task(task_id: str) -> Iterator[None]:
    """Every log line of this thread gets `task_id` until the block ends."""
    token = _task_id.set(task_id)
    try:
        yield
    finally:
        _task_id.reset(token)


@contextmanager
def bind_request(request_id: str) -> Iterator[None]:
    """Every log line of this context, and of threads that run in a copy of it, gets `request_id` until the block ends."""
    token = _request_id.set(request_id)
    try:
        yield
    finally:
        _request_id.reset(token)


def current_request_id() -> str | None:
    return _request_id.get()


class BoundIdsFilter(logging.Filter):
    """Add the bound ids of task and request to records that do not name them themselves."""

    def filter(self, record: logging.LogRecord) -> bool:
        for name, bound in (("task_id", _task_id), ("request_id", _request_id)):
            value = bound.get()
            if value is not None and not hasattr(record, name):
                setattr(record, name, value)
        return True


class JsonFormatter(logging.Formatter):
    """One JSON object per record; never raises, whatever the fields are."""

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
        except Exception:  # keys that are not text, reference cycles, a __str__ that raises
            text = json.dumps({name: _as_text(value) for name, value in document.items()})
        return without_credentials(text)


class TextFormatter(logging.Formatter):
    """For a terminal: time, event, fields."""

    def format(self, record: logging.LogRecord) -> str:
        fields = " ".join(f"{k}={_as_text(v)}" for k, v in _fields(record).items())
        line = f"{datetime.fromtimestamp(record.created):%H:%M:%S} {record.levelname:7} {record.getMessage()} {fields}".rstrip()
        # text from users must not look like a separate log line
        line = line.replace("\r", "\\r").replace("\n", "\\n")
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return without_credentials(line)


def _fields(record: logging.LogRecord) -> Mapping[str, Any]:
    return {k: v for k, v in record.__dict__.items() if k not in _STANDARD and not k.startswith("_")}


def _as_text(value: object) -> str:
    try:
        return str(value)
    except Exception:
        return f"<{type(value).__name__}>"


def configure_logging(level: str, form: str) -> None:
    """Raises: ConfigurationError."""
    if level.upper() not in logging.getLevelNamesMapping():
        raise ConfigurationError(f"invalid log level {level!r}: use DEBUG, INFO, WARNING or ERROR")
    if form not in ("json", "text"):
        raise ConfigurationError(f"invalid log format {form!r}: use json or text")
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(BoundIdsFilter())
    handler.setFormatter(TextFormatter() if form == "text" else JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for chatty in CHATTY:
        logging.getLogger(chatty).setLevel(max(logging.WARNING, logging.getLevelName(level.upper())))
