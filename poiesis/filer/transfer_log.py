"""What happened to the files of one run, written by many threads, bounded; and the report made of it."""

from __future__ import annotations

import re
import threading
import time
from typing import Final

from poiesis.domain.errors import PoiesisError, StagingFailed
from poiesis.domain.report import FilerReport, TransferredFile
from poiesis.filer.transfer import Cancelled, Control
from poiesis.filer.urls import without_secrets
from poiesis.ports.filer import Sent

MAX_FILES: Final = 10_000  # more would not fit in a report
MAX_NOTES: Final = 99  # and one that counts the others
MAX_ERRORS: Final = 5  # in the message, which says how many more there are
MAX_TRACEBACKS: Final = 3
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")  # in names: they would forge lines of a log, or steer a terminal


class TransferLog:
    def __init__(self, control: Control) -> None:
        self._lock = threading.Lock()
        self._control = control
        self._started = time.monotonic()
        self._files: list[TransferredFile] = []
        self._notes: list[str] = []
        self._omitted_notes = 0
        self._errors: list[PoiesisError] = []
        self._tracebacks = 0
        self._total_files = self._total_bytes = 0

    @property
    def has_errors(self) -> bool:
        return bool(self._errors)

    def moved(self, path: str, sent: Sent) -> None:
        with self._lock:
            self._total_files += 1
            self._total_bytes += sent.size_bytes
            if len(self._files) < MAX_FILES:
                self._files.append(TransferredFile(without_secrets(sent.url), path, sent.size_bytes, sent.checksum))
        self._control.finished()

    def note(self, text: str) -> None:
        with self._lock:
            if len(self._notes) < MAX_NOTES:
                self._notes.append(_CONTROL.sub("?", text))
            else:
                self._omitted_notes += 1

    def failed(self, error: Exception, path: str) -> None:
        """Record an error of the file at `path`, of whatever kind: a bug must not lose the files of the others."""
        if not isinstance(error, PoiesisError):
            self._tracebacks += 1
            error = unexpected(error, with_traceback=self._tracebacks <= MAX_TRACEBACKS)
        if path not in str(error):
            error = _with_path(error, path)
        with self._lock:
            if len(self._errors) < MAX_FILES:
                self._errors.append(error)

    def report(self) -> FilerReport:
        # errors that only the stop of the other transfers caused explain nothing; a permanent error decides over a transient one
        errors = [e for e in self._errors if not isinstance(e, Cancelled)] or self._errors
        errors.sort(key=lambda e: e.retryable)
        message = None
        if errors:
            message = "; ".join(dict.fromkeys(_CONTROL.sub("?", str(e)) for e in errors[:MAX_ERRORS]))
            if len(errors) > MAX_ERRORS:
                message += f"; and {len(errors) - MAX_ERRORS} more"
        notes = [*self._notes, f"… and {self._omitted_notes} more notes"] if self._omitted_notes else self._notes
        files = tuple(sorted(self._files, key=lambda f: f.path))
        return FilerReport(
            files=files,
            omitted=self._total_files - len(files),
            total_files=self._total_files,
            total_bytes=self._total_bytes,
            seconds=time.monotonic() - self._started,
            notes=tuple(notes),
            error=message,
            error_code=errors[0].code if errors else None,
            retryable=bool(errors) and all(e.retryable for e in errors),
        )


def unexpected(error: Exception, *, with_traceback: bool = True) -> StagingFailed:
    """One line for the user about a bug; the traceback goes to the filer's log, which only operators read."""
    if with_traceback:
        import logging  # only for bugs

        logging.getLogger("poiesis.filer").error("unexpected_error", exc_info=error)
    return StagingFailed(f"internal error of the filer ({type(error).__name__}); the traceback is in its log")


def _with_path(error: PoiesisError, path: str) -> PoiesisError:
    """The same kind of error, with the path in its message."""
    copy = type(error).__new__(type(error))
    copy.__dict__.update(error.__dict__)
    copy.args = (f"{path}: {error}" if path else str(error),)
    copy.__cause__ = error.__cause__
    return copy
