"""The audit: one JSON object per line, to a stream of its own (docs/operators.md has the fields).

A thread writes, so a slow disk or reader never holds up a request. What waits for it is bounded in bytes; lines beyond that, and lines
that cannot be written because a disk is full, are lost, counted in `poiesis_audit_lost_total`, and reported in the log at most once a
minute. The API keeps serving: an attacker who fills a disk must not be able to stop it.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from poiesis.domain.errors import ConfigurationError
from poiesis.metrics import AUDIT_LOST

log = logging.getLogger(__name__)

MAX_TEXT: Final = 256  # characters of one field
MAX_WAITING_BYTES: Final = 4 * 1024 * 1024
MAX_WRITE_BYTES: Final = 4096  # PIPE_BUF: so much is written to a pipe at once, also beside other processes
REPORT_EVERY_S: Final = 60.0
CLOSE_S: Final = 2.0
STREAMS: Final[Mapping[str, int]] = {"stdout": 1, "stderr": 2}


class AuditLog:
    """`target`: stdout, stderr, or the path of a file, which is opened again after it was moved away (logrotate).

    Raises on construction: ConfigurationError, where the file cannot be opened.
    """

    def __init__(self, target: str) -> None:
        self._path = None if target in STREAMS else target
        try:
            self._descriptor = STREAMS[target] if self._path is None else _open(self._path)
        except OSError as error:
            raise ConfigurationError(
                f"cannot write the audit to {target}: {error.strerror}; see POIESIS_API__AUDIT"
            ) from None
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._lost = 0
        self._report_at = 0.0
        self._is_torn = False  # the last line that was written has no end
        self._closing = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def write(self, entry: Mapping[str, str | int | None]) -> None:
        """Add one line. Never blocks and never raises; fields that are None are left out."""
        line = _line(entry)
        with self._changed:
            if self._waiting_bytes + len(line) > MAX_WAITING_BYTES:
                self._count_lost(1, "the reader or the disk is too slow")
                return
            self._waiting.append(line)
            self._waiting_bytes += len(line)
            if self._thread is None:  # in the process that serves, which may be a fork
                self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
                self._thread.start()
            self._changed.notify()

    def close(self) -> None:
        """Write what waits, for a bounded time."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(CLOSE_S)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting:
                    if self._closing:
                        return
                    self._changed.wait()
                lines = self._next_lines()
            try:
                self._write_out(b"".join(lines))
            except OSError as error:
                with self._changed:
                    self._count_lost(len(lines), error.strerror or str(error))

    def _next_lines(self) -> list[bytes]:
        lines = [self._waiting.popleft()]
        size = len(lines[0])
        while self._waiting and size + len(self._waiting[0]) <= MAX_WRITE_BYTES:
            lines.append(self._waiting.popleft())
            size += len(lines[-1])
        self._waiting_bytes -= size
        return lines

    def _write_out(self, data: bytes) -> None:
        """Raises: OSError."""
        if self._path is not None and not _is_same_file(self._path, self._descriptor):
            replaced, self._descriptor = self._descriptor, _open(self._path)
            os.close(replaced)
            self._is_torn = False
        rest = memoryview(b"\n" + data if self._is_torn else data)
        while rest:
            written = os.write(self._descriptor, rest)
            self._is_torn = written < len(rest)
            rest = rest[written:]

    def _count_lost(self, lines: int, reason: str) -> None:
        AUDIT_LOST.inc(lines)
        self._lost += lines
        now = time.monotonic()
        if now >= self._report_at:
            self._report_at = now + REPORT_EVERY_S
            log.error("audit_lost", extra={"lines": self._lost, "reason": reason})
            self._lost = 0


def _line(entry: Mapping[str, str | int | None]) -> bytes:
    fields: dict[str, str | int] = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": "audit"}
    for name, value in entry.items():
        if isinstance(value, str) and len(value) > MAX_TEXT:
            value = value[: MAX_TEXT - 1] + "…"
        if value is not None:
            fields[name] = value
    return json.dumps(fields).encode() + b"\n"


def _open(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _is_same_file(path: str, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
