"""Moves many small files with one thread (ADR 6).

One thread per connection suits large files. For small ones, the interpreter's lock changes hands some fifteen times per file, which costs
more than the file itself. Here one thread multiplexes all connections with epoll.

A filer takes part by implementing `SmallFiles`. The mover handles only the common case: one complete response, as expected. After
anything else the file is returned as a job for the regular threads, which have the retries and the error messages.
"""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from poiesis.domain.errors import PoiesisError
from poiesis.filer.http_connection import ConnectionPool, HttpConnection, HttpConnectionError, closes
from poiesis.filer.transfer import POLL, Control, Job
from poiesis.ports.filer import RemoteFile, Sent

MAX_QUEUED: Final = 512  # files submitted and not started
# submitting continues below this, so that the threads wake each other once in that many files
REFILL_BELOW: Final = 256
MAX_RETURNED: Final = 64  # and a tenth of the files: beyond both, the mover gives up
SLOW_S: Final = 0.001  # mean time to read or write a file beyond which threads are better, since they wait in parallel
CONNECT_POLL_S: Final = 0.01  # until a connection may be available


class Exchange(Protocol):
    """One small file as a request and its response. Any exception of its methods returns the file to the regular threads."""

    pool: ConnectionPool

    def request(self) -> bytes:
        """Head and body, as bytes."""

    def handle_response(self, status: int, headers: Mapping[str, str], body: memoryview) -> Sent:
        """Handle the response; `body` is complete, and valid until this returns."""


class SmallFiles(Protocol):
    """None: the file has to be moved by the regular threads. Both raise the family of `domain.errors`."""

    def get_exchange(self, file: RemoteFile, target: Path) -> Exchange | None: ...

    def put_exchange(self, opened: Callable[[], AbstractContextManager[int]], size: int, url: str) -> Exchange | None:
        """`opened`: yields a descriptor of the local file."""


@dataclass(slots=True)
class _File:
    exchange: Exchange
    moved: Callable[[Sent], None]
    fallback: Job
    is_retry: bool = False


@dataclass(slots=True)
class _Transfer:
    """A connection with a request in flight. Its buffer holds `end` bytes; once the head is parsed, the body is `start` to `need`."""

    connection: HttpConnection
    file: _File
    since: float = 0.0
    out: memoryview = field(default_factory=lambda: memoryview(b""))
    is_sending: bool = False
    end: int = 0
    start: int = 0
    need: int | None = None
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)


class SmallFileMover:
    """Accepts files until `finish`. `width`: the number of connections it may use at the moment."""

    def __init__(self, control: Control, width: Callable[[], int]) -> None:
        """Raises: RuntimeError, OSError when the system has no more threads or descriptors."""
        self._control, self._width = control, width
        self._stall_s = control.settings.stall_timeout.total_seconds()
        self._queue: deque[_File] = deque()
        self._active: dict[int, _Transfer] = {}
        self._returned: deque[Job] = deque()
        self._done = self._failures = 0
        self._lock = threading.Lock()
        self._room = threading.Event()
        self._is_waiting = self._is_ending = self._is_closed = False
        self._can_connect, self._is_growing = True, False
        self.gave_up = False
        """Whether it stopped accepting files before it had moved all of them."""
        self._mean_s = 0.0
        self._would_block: tuple[type[OSError], ...] = (BlockingIOError,)
        self._thread = threading.Thread(target=self._run, name="filer-small", daemon=True)
        with ExitStack() as undone:
            self._poll = undone.enter_context(select.epoll())
            self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            undone.callback(os.close, self._wake)
            self._poll.register(self._wake, select.EPOLLIN)
            self._thread.start()
            undone.pop_all()

    def submit(self, exchange: Exchange, moved: Callable[[Sent], None], fallback: Job) -> bool:
        """Queue a file, waiting for room; False if it is not accepted. The mover's thread calls `moved` after a success; otherwise
        `fallback` is one of `returned_jobs`."""
        while len(self._queue) >= MAX_QUEUED:
            self._room.clear()
            if len(self._queue) > REFILL_BELOW:
                self._room.wait(POLL)
            if self._is_closed or self._control.is_stopped:
                return False
        with self._lock:
            if self._is_closed:
                return False
            self._queue.append(_File(exchange, moved, fallback))
            if self._is_waiting:
                self._is_waiting = False
                os.eventfd_write(self._wake, 1)
        return True

    def returned_jobs(self) -> Iterator[Job]:
        """The jobs of files that could not be moved, since the last call."""
        while True:
            try:
                job = self._returned.popleft()
            except IndexError:
                return
            yield job

    @property
    def is_idle(self) -> bool:
        return not self._queue and not self._active

    def finish(self) -> None:
        """Block until all files have been moved or returned."""
        with self._lock:
            self._is_ending = True
            if not self._is_closed:
                os.eventfd_write(self._wake, 1)
        self._thread.join()

    def _run(self) -> None:
        try:
            self._fill_connections()
            while self._continues():
                self._wait()
                self._fill_connections()
        except (OSError, ValueError, PoiesisError):
            pass  # of connecting; the fallback jobs report it
        finally:
            with self._lock:
                self._is_closed, self.gave_up = True, bool(self._queue or self._active)
                self._poll.close()
                os.close(self._wake)
            for transfer in self._active.values():
                transfer.file.exchange.pool.discard(transfer.connection)
            for file in [*(transfer.file for transfer in self._active.values()), *self._queue]:
                self._return(file)
            self._room.set()

    def _continues(self) -> bool:
        if self._control.is_stopped or self._failures > max(MAX_RETURNED, self._done // 10) or self._mean_s > SLOW_S:
            return False
        with self._lock:
            self._is_waiting = not self._queue
            return bool(self._queue or self._active or not self._is_ending)

    def _fill_connections(self) -> None:
        """Start queued files on connections, at most one of them new, because connecting blocks. Raises: what connecting raises."""
        self._is_growing = False
        while self._queue and len(self._active) < self._width():
            try:
                connection = self._queue[0].exchange.pool.acquire(connect=self._can_connect)
            except Exception:
                if not self._active:
                    raise
                self._can_connect = False  # continue with the open ones
                return
            if connection is None:
                if not self._active:
                    self._can_connect = True
                return
            is_new = not connection.is_used
            transfer = _Transfer(connection, self._dequeue())
            self._active[connection.socket.fileno()] = transfer
            if not isinstance(connection.socket, socket.socket):
                raise HttpConnectionError("the connection cannot be polled")  # TLS within TLS
            if not connection.is_plain:
                from ssl import SSLWantReadError, SSLWantWriteError  # loaded by now

                self._would_block = (BlockingIOError, SSLWantReadError, SSLWantWriteError)
            connection.socket.setblocking(False)
            self._poll.register(connection.socket, select.EPOLLIN)
            self._start(transfer)
            if is_new:
                self._is_growing = True
                return

    def _dequeue(self) -> _File:
        file = self._queue.popleft()
        if len(self._queue) <= REFILL_BELOW and not self._room.is_set():
            self._room.set()
        return file

    def _start(self, transfer: _Transfer) -> None:
        """Send the request of the file."""
        transfer.since, transfer.end, transfer.need = time.monotonic(), 0, None
        try:
            transfer.out = memoryview(transfer.file.exchange.request())
            self._note_time(transfer.since)
        except Exception:
            self._return(transfer.file)
            self._release(transfer)
            return
        self._send(transfer)

    def _send(self, transfer: _Transfer) -> None:
        try:
            sent = transfer.connection.socket.send(transfer.out)
            transfer.since = time.monotonic()
        except self._would_block:
            sent = 0
        except OSError:
            self._connection_lost(transfer)
            return
        transfer.out = transfer.out[sent:]
        if bool(transfer.out) is not transfer.is_sending:
            transfer.is_sending = bool(transfer.out)
            self._poll.modify(transfer.connection.socket, select.EPOLLIN | (select.EPOLLOUT if transfer.out else 0))

    def _wait(self) -> None:
        patience = POLL if self._active or not self._queue else CONNECT_POLL_S
        events = self._poll.poll(0 if self._is_growing else patience)
        silent = time.monotonic() - self._stall_s  # before the files are handled, which may take time
        for descriptor, event in events:
            transfer = self._active.get(descriptor)
            if transfer is None:
                with suppress(BlockingIOError):
                    os.eventfd_read(self._wake)
            elif event & ~select.EPOLLOUT:
                self._read(transfer)
            else:
                self._send(transfer)
        for transfer in [b for b in self._active.values() if b.since < silent]:
            self._return(transfer.file)
            self._discard(transfer)

    def _read(self, transfer: _Transfer) -> None:
        """Receive once. That suffices for TLS too: it returns a record, and a response ends with one."""
        try:
            count = transfer.connection.socket.recv_into(transfer.connection.view[transfer.end :])
            if count == 0:
                raise HttpConnectionError("the connection ended early")
            transfer.end += count
            transfer.since = time.monotonic()
            is_whole = self._is_whole(transfer)
        except self._would_block:
            return
        except (OSError, ValueError):
            self._connection_lost(transfer)
            return
        if is_whole:
            self._answered(transfer)

    def _is_whole(self, transfer: _Transfer) -> bool:
        """Raises: HttpConnectionError."""
        if transfer.need is None:
            head = transfer.connection.head(0, transfer.end)
            if head is None:
                return False
            transfer.start, transfer.status, transfer.headers = head
            length = transfer.headers.get("content-length", "")
            if not length.isdecimal() or "transfer-encoding" in transfer.headers:
                raise HttpConnectionError("a response of unknown length")
            transfer.need = transfer.start + int(length)
        return transfer.end >= transfer.need

    def _answered(self, transfer: _Transfer) -> None:
        try:
            if transfer.out or transfer.end != transfer.need:
                raise HttpConnectionError("a response that does not belong to the request")
            sent = transfer.file.exchange.handle_response(
                transfer.status, transfer.headers, transfer.connection.view[transfer.start : transfer.need]
            )
            self._note_time(transfer.since)
        except Exception:
            self._return(transfer.file)
            self._discard(transfer)
            return
        transfer.file.moved(sent)
        self._done += 1
        transfer.connection.is_used = True
        if closes(transfer.headers):
            self._discard(transfer)
        elif self._queue and self._queue[0].exchange.pool is transfer.file.exchange.pool:
            transfer.file = self._dequeue()
            self._start(transfer)
        else:
            self._release(transfer)

    def _note_time(self, since: float) -> None:
        """Update the mean time spent on files; a single outlier counts little."""
        self._mean_s += (min(time.monotonic() - since, 10 * SLOW_S) - self._mean_s) / 200

    def _connection_lost(self, transfer: _Transfer) -> None:
        """An idle connection may have been closed before it got the request, so the file is tried once more on another."""
        if transfer.connection.is_used and transfer.end == 0 and not transfer.file.is_retry:
            transfer.file.is_retry = True
            self._queue.appendleft(transfer.file)
        else:
            self._return(transfer.file)
        self._discard(transfer)

    def _return(self, file: _File) -> None:
        self._returned.append(file.fallback)
        self._failures += 1

    def _discard(self, transfer: _Transfer) -> None:
        self._unregister(transfer)
        transfer.file.exchange.pool.discard(transfer.connection)

    def _release(self, transfer: _Transfer) -> None:
        self._unregister(transfer)
        transfer.connection.wait()
        transfer.file.exchange.pool.release(transfer.connection)

    def _unregister(self, transfer: _Transfer) -> None:
        self._poll.unregister(transfer.connection.socket)
        del self._active[transfer.connection.socket.fileno()]
