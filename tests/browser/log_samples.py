"""Logs in a site's store, written as the roles do."""

from __future__ import annotations

import tempfile
from pathlib import Path

from poiesis.config import LogSettings
from poiesis.domain.task import TaskId
from poiesis.ports.logs import MAX_CHUNK_BYTES, LogRef, LogStore, Stream


def settings_of(directory: Path) -> LogSettings:
    (directory / "logs").mkdir(exist_ok=True)
    return LogSettings(url=f"file://{directory}/logs")


class Written:
    """One log that grows."""

    def __init__(
        self, store: LogStore, task_id: TaskId, stream: Stream = "stdout", executor: int = 0, attempt: int = 1
    ) -> None:
        self._store = store
        self._ref = LogRef(task_id, attempt, executor, stream)
        self.size = 0
        self._last = b""  # the chunk that may still grow

    def add(self, text: bytes) -> None:
        """In chunks of the largest size."""
        for begin in range(0, len(text), MAX_CHUNK_BYTES):
            piece = self._last + text[begin : begin + MAX_CHUNK_BYTES]
            offset = self.size - len(self._last)
            for part in (piece[:MAX_CHUNK_BYTES], piece[MAX_CHUNK_BYTES:]):
                self._write(offset, part)
                offset += len(part)
            self.size = offset
            self._last = piece[self.size // MAX_CHUNK_BYTES * MAX_CHUNK_BYTES - self.size + len(piece) :]

    def _write(self, offset: int, part: bytes) -> None:
        if part:
            with tempfile.TemporaryFile() as file:
                file.write(part)
                file.flush()
                self._store.write(self._ref, offset, file.fileno(), 0, len(part))

    def end(self) -> None:
        self._store.end(self._ref, truncated=False)
