"""The outcomes of the files of one run, written by many threads, bounded; and the report on them."""

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
# in names: they could forge lines of a log, or control a terminal
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class TransferLog:
    def __init__(self, control: Control) -> None:
        self._lock = threading.Lock()
        self._control = control
        self._started = time.monotonic()
        self._files: list[TransferredFile] = []
        self._notes: list[str] = []
        self._omitted_notes = 0
        self._errors: list[tuple[PoiesisError, str]] = []
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
            error = _unexpected(error, with_traceback=self._tracebacks <= MAX_TRACEBACKS)
        text = str(error)
        with self._lock:
            if len(self._errors) < MAX_FILES:
                self._errors.append((error, _CONTROL.sub("?", text if path in text else f"{path}: {text}")))

    def report(self) -> FilerReport:
        # errors that only the stop of the other transfers caused explain nothing; a permanent error decides over a transient one
        errors = [item for item in self._errors if not isinstance(item[0], Cancelled)] or self._errors
        errors.sort(key=lambda item: item[0].retryable)
        message = None
        if errors:
            message = "; ".join(dict.fromkeys(text for _, text in errors[:MAX_ERRORS]))
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
            error_code=errors[0][0].code if errors else None,
            retryable=bool(errors) and all(error.retryable for error, _ in errors),
        )


def _unexpected(error: Exception, *, with_traceback: bool) -> StagingFailed:
    """One line for the user about a bug; the traceback goes to the filer's log, which only operators read."""
    if with_traceback:
        import logging  # only for bugs

        logging.getLogger("poiesis.filer").error("unexpected_error", exc_info=error)
    return StagingFailed(f"internal error of the filer ({type(error).__name__}); the traceback is in its log")
