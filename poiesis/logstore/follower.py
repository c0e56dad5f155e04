"""Moves the output that launchers keep (`--keep-output`, launcher/README.md) to the log store, while the commands run.

It reads the control directory, where user code can write too: names are fixed, links are not followed, only regular files count, and sizes
are bounded, so a command can spoil only its own log. Memory is constant. A chunk is written again while it is small, at most once per
`interval`, and bounds grow with the log: a log of any size has few hundred chunks, and what is written again is a sixty-fourth of it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import stat
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from poiesis.config import LogSettings
from poiesis.domain.errors import PoiesisError
from poiesis.domain.observed import executor_name
from poiesis.domain.task import TaskId
from poiesis.ports.logs import MAX_CHUNK_BYTES, STREAMS, LogRef, LogStore

log = logging.getLogger(__name__)

SEGMENT_BYTES: Final = 8 * 1024 * 1024  # launcher/keep.c
EAGER_BYTES: Final = 1024 * 1024  # so much is stored without waiting for the interval
MIN_CHUNK_BYTES: Final = 256 * 1024
FRACTION: Final = 64  # a chunk is large enough at this part of the log
TICK_S: Final = 0.05  # while output arrives
MAX_TICK_S: Final = 0.4
DEAD_EVERY_S: Final = 0.5  # how often a launcher without a record is checked
MAX_RECORD_BYTES: Final = 2 * 1024 * 1024  # a longer one is not parsed
MAX_WRITES: Final = 16  # of one stream, before the others and deadlines are looked at
MAX_BACKOFF_S: Final = 15.0
REFUSALS: Final = 4  # after so many failures in a row that a retry does not help
_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

assert SEGMENT_BYTES == MAX_CHUNK_BYTES  # a chunk never spans two segments


class Follower:
    """Follows `executors` (indices) of one attempt by the files in `control`. `resumes`: an earlier process may have stored a part."""

    def __init__(
        self,
        store: LogStore,
        control: str,
        task_id: TaskId,
        attempt: int,
        executors: Sequence[int],
        settings: LogSettings,
        *,
        resumes: bool = False,
    ) -> None:
        """Raises: OSError without a control directory."""
        self._settings = settings
        self._control = os.open(control, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._executors = [
            _Executor(self._control, store, task_id, attempt, index, settings, resumes=resumes) for index in executors
        ]

    def run(self, stopping: Callable[[], bool], wait: Callable[[float], object], grace_s: float) -> str | None:
        """Return when everything is stored, or `grace_s` after `stopping()`, or a while after the last executor has ended: then with
        what prevented it. `wait` sleeps."""
        deadline, failures, retry_at, tick = float("inf"), 0, 0.0, TICK_S
        problem: str | None = None
        try:
            while True:
                now = time.monotonic()
                if stopping():
                    deadline = min(deadline, now + grace_s)
                have_ended = all([executor.has_ended(now) for executor in self._executors])
                if have_ended:
                    deadline = min(deadline, now + self._settings.finish.total_seconds())
                moved = False
                if now >= retry_at:
                    try:
                        moved = any([executor.step() for executor in self._executors])
                        problem, failures = None, 0
                    except PoiesisError as error:
                        problem, failures = str(error), failures + 1
                        retry_at = now + min(0.5 * 2**failures, MAX_BACKOFF_S)
                        log.warning("logs_not_stored", extra={"error": problem, "failures": failures})
                        if not error.retryable and failures >= REFUSALS:
                            return problem
                if all(executor.is_stored for executor in self._executors):
                    return None
                if now >= deadline:
                    return problem or ("the executors had not ended in time" if not have_ended else "not in time")
                tick = TICK_S if moved else min(tick * 1.3, MAX_TICK_S)
                wait(tick)
        finally:
            self.close()

    def close(self) -> None:
        for executor in self._executors:
            executor.close()
        with suppress(OSError):
            os.close(self._control)


class _Executor:
    """The two streams of one executor, and whether it has ended."""

    def __init__(
        self,
        control: int,
        store: LogStore,
        task_id: TaskId,
        attempt: int,
        index: int,
        settings: LogSettings,
        *,
        resumes: bool,
    ) -> None:
        self._control, self._name = control, executor_name(index)
        self._streams = [
            _StreamCopy(control, store, LogRef(task_id, attempt, index, stream), settings, resumes=resumes)
            for stream in STREAMS
        ]
        self._ended = False
        self._ran = True
        self._written: dict[str, int | None] = {}
        """Bytes that the command has written in all, by its record; empty without one."""
        self._dead_at = 0.0
        self.is_stored = False

    def has_ended(self, now: float) -> bool:
        if not self._ended:
            record = _read(self._control, f"{self._name}.json", MAX_RECORD_BYTES)
            if record is not None:
                self._ended = True
                self._read_record(record)
            elif now >= self._dead_at:
                self._dead_at = now + DEAD_EVERY_S
                # the record may have been written between the two checks
                self._ended = self._is_dead() and not _exists(self._control, f"{self._name}.json")
        return self._ended

    def step(self) -> bool:
        """Store what is due; whether there was anything. After the end everything is due, and then the marks."""
        if self.is_stored:
            return False
        ended = self._ended
        moved = any([stream.step(flush=ended) for stream in self._streams])
        if ended and not any(stream.has_more for stream in self._streams):
            for stream in self._streams:
                if self._ran:
                    stream.end(self._written.get(stream.ref.stream))
            self.is_stored = True
        return moved

    def close(self) -> None:
        for stream in self._streams:
            stream.close()

    def _read_record(self, record: bytes) -> None:
        with suppress(ValueError, RecursionError):
            document = json.loads(record)
            if isinstance(document, dict):
                self._ran = document.get("started") is not None
                counts = {stream: document.get(f"{stream}_bytes") for stream in STREAMS}
                self._written = {stream: count if type(count) is int else None for stream, count in counts.items()}

    def _is_dead(self) -> bool:
        """Whether the launcher holds its lock no more."""
        with suppress(OSError):
            descriptor = os.open(f"{self._name}.up", _FLAGS, dir_fd=self._control)
            try:
                if stat.S_ISREG(os.fstat(descriptor).st_mode):
                    fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
                    return True
            finally:
                os.close(descriptor)
        return False


class _StreamCopy:
    """`_stored`: how much is in the store. `_chunk`: offset of the chunk that still grows; never in an earlier segment than `_stored`."""

    def __init__(self, control: int, store: LogStore, ref: LogRef, settings: LogSettings, *, resumes: bool) -> None:
        self.ref = ref
        self._control, self._store = control, store
        self._max_bytes = settings.max_bytes
        self._interval_s = settings.interval.total_seconds()
        self._prefix = f"{executor_name(ref.executor)}.{ref.stream}."
        self._resumes = resumes
        self._stored = self._chunk = 0
        self._descriptor = -1
        self._next_at = 0.0
        self._is_spoiled = False  # by user code: nothing more is read

    def step(self, *, flush: bool) -> bool:
        if self._resumes:
            self._resume()
        moved = False
        for _ in range(MAX_WRITES):
            end = self._available()
            if end <= self._stored:
                break
            start = self._stored - self._stored % SEGMENT_BYTES
            is_due = flush or end - self._stored >= EAGER_BYTES or end == start + SEGMENT_BYTES
            if not is_due and time.monotonic() < self._next_at:
                break
            self._store.write(self.ref, self._chunk, self._descriptor, self._chunk - start, end - self._chunk)
            self._stored, moved = end, True
            self._next_at = time.monotonic() + self._interval_s
            if end - self._chunk >= min(max(end // FRACTION, MIN_CHUNK_BYTES), MAX_CHUNK_BYTES):
                self._chunk = end
            if end == start + SEGMENT_BYTES:
                self._leave_segment()
        return moved

    @property
    def has_more(self) -> bool:
        return self._available() > self._stored

    def end(self, written: int | None) -> None:
        """`written`: what the command has written in all; None: unknown, because its launcher was killed or user code forged its record."""
        self._store.end(self.ref, truncated=written is None or written > self._stored)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _resume(self) -> None:
        """Continue with a new chunk after what an earlier process has stored."""
        self._stored = self._chunk = self._store.log(self.ref).size_bytes
        self._resumes = False
        if self._stored >= SEGMENT_BYTES:
            self._remove(self._stored // SEGMENT_BYTES - 1)

    def _available(self) -> int:
        """Up to where bytes can be stored now, within the current segment."""
        start = self._stored - self._stored % SEGMENT_BYTES
        if self._is_spoiled or (self._descriptor < 0 and not self._open(start // SEGMENT_BYTES)):
            return 0
        size = min(os.fstat(self._descriptor).st_size, SEGMENT_BYTES)
        self._is_spoiled = start + size < self._stored
        return min(start + size, self._max_bytes)

    def _open(self, number: int) -> bool:
        try:
            self._descriptor = os.open(f"{self._prefix}{number}", _FLAGS, dir_fd=self._control)
        except OSError as error:
            self._is_spoiled = error.errno != errno.ENOENT
            return False
        if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
            self._is_spoiled = True
            self.close()
        return self._descriptor >= 0

    def _leave_segment(self) -> None:
        self.close()
        self._chunk = self._stored
        self._remove(self._stored // SEGMENT_BYTES - 1)

    def _remove(self, number: int) -> None:
        with suppress(OSError):
            os.unlink(f"{self._prefix}{number}", dir_fd=self._control)


def _exists(control: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=control, follow_symlinks=False)
    except OSError:
        return False
    return True


def _read(control: int, name: str, limit: int) -> bytes | None:
    """The start of a regular file; None for anything else."""
    try:
        descriptor = os.open(name, _FLAGS, dir_fd=control)
    except OSError:
        return None
    try:
        return os.read(descriptor, limit) if stat.S_ISREG(os.fstat(descriptor).st_mode) else None
    except OSError:
        return None
    finally:
        os.close(descriptor)
