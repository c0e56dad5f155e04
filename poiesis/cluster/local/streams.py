"""Current ends of the output of running commands, in memory and bounded.

A launcher writes to two FIFOs and never waits for a reader (`--log-stall 0`): without one, their 64 KiB fill up and the rest is dropped, so
that a restart of this process does not block a command and no output can fill a disk. One thread reads all of them, each a few times a
second; of a command that prints faster, parts are missing here. The launcher's record is complete.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import threading
from pathlib import Path
from typing import Final

PAUSE: Final = 0.05  # seconds between two reads of FIFOs that had data
PIECE: Final = 64 * 1024


class Tail:
    """The last `limit` bytes of what was added. `fd`: of the FIFO."""

    def __init__(self, limit: int, fd: int = -1) -> None:
        self.fd = fd
        self._limit = limit
        self._data = b""

    def add(self, data: bytes) -> None:
        self._data = (self._data + data)[-self._limit :] if self._limit else b""

    def text(self) -> str:
        return self._data.decode(errors="replace").lstrip("\ufffd")  # begins with a whole character


class TailReader:
    """Reads FIFOs in one thread, each until `stop`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tails: dict[Path, Tail] = {}
        self._selector = selectors.DefaultSelector()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._thread: threading.Thread | None = None
        self._closed = False

    def follow(self, path: Path, limit: int) -> None:
        with self._lock:
            if path in self._tails or self._closed:
                return
            try:
                fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
            except OSError:
                return
            self._tails[path] = Tail(limit, fd)
            self._selector.register(fd, selectors.EVENT_READ, path)
            if self._thread is None:
                self._thread = threading.Thread(target=self._read, name="tails", daemon=True)
                self._thread.start()

    def text(self, path: Path) -> str:
        with self._lock:
            tail = self._tails.get(path)
            if tail is None:
                return ""
            self._take(tail)
            return tail.text()

    def stop(self, path: Path) -> None:
        with self._lock:
            tail = self._tails.pop(path, None)
            if tail is not None:
                with contextlib.suppress(KeyError):
                    self._selector.unregister(tail.fd)
                os.close(tail.fd)

    def close(self) -> None:
        for path in list(self._tails):
            self.stop(path)
        with self._lock:
            self._closed = True
            os.eventfd_write(self._wake, 1)
            thread = self._thread
        if thread is not None:
            thread.join(5)
        self._selector.close()
        os.close(self._wake)

    def _read(self) -> None:
        pause = threading.Event()
        while not self._closed:
            ready = self._selector.select()
            with self._lock:
                for key, _ in ready:
                    tail = self._tails.get(key.data)
                    if tail is None or tail.fd != key.fd:
                        continue
                    if not self._take(tail):  # without a writer it stays readable forever
                        self._selector.unregister(key.fd)
            pause.wait(PAUSE)

    def _take(self, tail: Tail) -> bool:
        """False when no process has it open for writing."""
        try:
            data = os.read(tail.fd, PIECE)
        except BlockingIOError:
            return True
        except OSError:
            return False
        tail.add(data)
        return bool(data)
