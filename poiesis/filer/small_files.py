"""Many small files by one thread.

A thread for each connection is good for large files. With small ones, threads hand the interpreter's lock to one another some fifteen times
a file, which costs more than the file. Here one thread has all connections: it sends a request on each, and reads where something came.

It knows the usual case alone: one answer, whole, as expected. A file for which anything else happens is given back, to be moved in
the ordinary way, which knows how to try again and what to say.
"""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Final

from poiesis.domain.errors import PoiesisError
from poiesis.filer.http_connection import HttpConnection, HttpConnectionError, closes
from poiesis.filer.small_file_protocol import Exchange
from poiesis.filer.transfer import POLL, Control, Job
from poiesis.ports.filer import Sent

MAX_WAITING: Final = 512  # files taken and not begun
FEW_WAITING: Final = 256  # from which on there is room again: both sides wake each other once in that many files
MAX_GIVEN_BACK: Final = 64  # and a tenth of the files: then something is wrong, and the ordinary way finds out what
SLOW_S: Final = 0.001  # to read or write a file, in the mean of the last hundred: then threads are better, which wait beside each other
SOON: Final = 0.01  # seconds; until there may be a connection


@dataclass(slots=True)
class _File:
    exchange: Exchange
    moved: Callable[[Sent], None]
    otherwise: Job
    is_again: bool = False


@dataclass(slots=True)
class _Busy:
    """A connection at work. In its buffer, `end` bytes came; the body is from `start` to `need`, once the head is there."""

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
    """Takes files until `finish`. `width`: how many connections it may have at work at the moment."""

    def __init__(self, control: Control, width: Callable[[], int]) -> None:
        """Raises: RuntimeError, OSError when there are no more threads or descriptors to be had."""
        self._control, self._width = control, width
        self._stall_s = control.settings.stall_timeout.total_seconds()
        self._queue: deque[_File] = deque()
        self._busy: dict[int, _Busy] = {}
        self._given_back: deque[Job] = deque()
        self._done = self._not_done = 0
        self._lock = threading.Lock()
        self._room = threading.Event()
        self._is_hungry = self._is_ending = self._is_closed = False
        self._can_connect, self._is_growing = True, False
        self.gave_up = False
        """Whether it takes no more files, and did not do all of those that it took."""
        self._pace_s = 0.0
        self._not_yet: tuple[type[OSError], ...] = (BlockingIOError,)
        self._thread = threading.Thread(target=self._run, name="filer-small", daemon=True)
        with ExitStack() as undone:
            self._poll = undone.enter_context(select.epoll())
            self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            undone.callback(os.close, self._wake)
            self._poll.register(self._wake, select.EPOLLIN)
            self._thread.start()
            undone.pop_all()

    def take(self, exchange: Exchange, moved: Callable[[Sent], None], otherwise: Job) -> bool:
        """Whether it takes a file, which waits until there is room. `moved` is called by its thread when all went well; else `otherwise` is
        one of the jobs of `given_back`."""
        while len(self._queue) >= MAX_WAITING:
            self._room.clear()
            if len(self._queue) > FEW_WAITING:
                self._room.wait(POLL)
            if self._is_closed or self._control.is_stopped:
                return False
        with self._lock:
            if self._is_closed:
                return False
            self._queue.append(_File(exchange, moved, otherwise))
            if self._is_hungry:
                self._is_hungry = False
                os.eventfd_write(self._wake, 1)
        return True

    def given_back(self) -> Iterator[Job]:
        """The jobs of files that were given back since the last call."""
        while True:
            try:
                job = self._given_back.popleft()
            except IndexError:
                return
            yield job

    @property
    def is_idle(self) -> bool:
        return not self._queue and not self._busy

    def finish(self) -> None:
        """Returns when all files have been moved or given back."""
        with self._lock:
            self._is_ending = True
            if not self._is_closed:
                os.eventfd_write(self._wake, 1)
        self._thread.join()

    def _run(self) -> None:
        try:
            self._begin()
            while self._goes_on():
                self._wait()
                self._begin()
        except (OSError, ValueError, HttpConnectionError, PoiesisError):
            pass  # of connecting; the ordinary way says it
        finally:
            with self._lock:
                self._is_closed, self.gave_up = True, bool(self._queue or self._busy)
                self._poll.close()
                os.close(self._wake)
            for busy in self._busy.values():
                busy.file.exchange.pool.drop(busy.connection)
            for file in [*(busy.file for busy in self._busy.values()), *self._queue]:
                self._give_back(file)
            self._room.set()

    def _goes_on(self) -> bool:
        if self._control.is_stopped or self._not_done > max(MAX_GIVEN_BACK, self._done // 10) or self._pace_s > SLOW_S:
            return False
        with self._lock:
            self._is_hungry = not self._queue
            return bool(self._queue or self._busy or not self._is_ending)

    def _begin(self) -> None:
        """Put waiting files on connections, of which one at most is new: to connect is to wait. Raises: what connecting raises."""
        self._is_growing = False
        while self._queue and len(self._busy) < self._width():
            try:
                connection = self._queue[0].exchange.pool.spare(connect=self._can_connect)
            except Exception:
                if not self._busy:
                    raise
                self._can_connect = False  # those that there are go on
                return
            if connection is None:
                if not self._busy:
                    self._can_connect = True
                return
            is_new = not connection.is_used
            busy = _Busy(connection, self._next())
            self._busy[connection.socket.fileno()] = busy
            if not isinstance(connection.socket, socket.socket):
                raise HttpConnectionError("nothing that can be waited for")  # TLS within TLS
            if not connection.is_plain:
                from ssl import SSLWantReadError, SSLWantWriteError  # is there by now

                self._not_yet = (BlockingIOError, SSLWantReadError, SSLWantWriteError)
            connection.socket.setblocking(False)
            self._poll.register(connection.socket, select.EPOLLIN)
            self._start(busy)
            if is_new:
                self._is_growing = True
                return

    def _next(self) -> _File:
        file = self._queue.popleft()
        if len(self._queue) <= FEW_WAITING and not self._room.is_set():
            self._room.set()
        return file

    def _start(self, busy: _Busy) -> None:
        """Send the request of the file."""
        busy.since, busy.end, busy.need = time.monotonic(), 0, None
        try:
            busy.out = memoryview(busy.file.exchange.request())
            self._pace(busy.since)
        except Exception:
            self._give_back(busy.file)
            self._leave(busy)
            return
        self._send(busy)

    def _send(self, busy: _Busy) -> None:
        try:
            sent = busy.connection.socket.send(busy.out)
            busy.since = time.monotonic()
        except self._not_yet:
            sent = 0
        except OSError:
            self._lose(busy)
            return
        busy.out = busy.out[sent:]
        if bool(busy.out) is not busy.is_sending:
            busy.is_sending = bool(busy.out)
            self._poll.modify(busy.connection.socket, select.EPOLLIN | (select.EPOLLOUT if busy.out else 0))

    def _wait(self) -> None:
        patience = POLL if self._busy or not self._queue else SOON
        events = self._poll.poll(0 if self._is_growing else patience)
        silent = time.monotonic() - self._stall_s  # before the files, which may take their time
        for descriptor, event in events:
            busy = self._busy.get(descriptor)
            if busy is None:
                with suppress(BlockingIOError):
                    os.eventfd_read(self._wake)
            elif event & ~select.EPOLLOUT:
                self._read(busy)
            else:
                self._send(busy)
        for busy in [b for b in self._busy.values() if b.since < silent]:
            self._give_back(busy.file)
            self._drop(busy)

    def _read(self, busy: _Busy) -> None:
        """What has come. One call is enough with TLS, too: it brings a record, and an answer ends with one."""
        try:
            count = busy.connection.socket.recv_into(busy.connection.view[busy.end :])
            if count == 0:
                raise HttpConnectionError("the connection ended early")
            busy.end += count
            busy.since = time.monotonic()
            is_whole = self._is_whole(busy)
        except self._not_yet:
            return
        except (OSError, ValueError, HttpConnectionError):
            self._lose(busy)
            return
        if is_whole:
            self._answered(busy)

    def _is_whole(self, busy: _Busy) -> bool:
        """Raises: HttpConnectionError."""
        if busy.need is None:
            head = busy.connection.head(0, busy.end)
            if head is None:
                return False
            busy.start, busy.status, busy.headers = head
            length = busy.headers.get("content-length", "")
            if not length.isdecimal() or "transfer-encoding" in busy.headers:
                raise HttpConnectionError("an answer of unknown length")
            busy.need = busy.start + int(length)
        return busy.end >= busy.need

    def _answered(self, busy: _Busy) -> None:
        try:
            if busy.out or busy.end != busy.need:
                raise HttpConnectionError("an answer that is none to the request")
            sent = busy.file.exchange.answered(busy.status, busy.headers, busy.connection.view[busy.start : busy.need])
            self._pace(busy.since)
        except Exception:
            self._give_back(busy.file)
            self._drop(busy)
            return
        busy.file.moved(sent)
        self._done += 1
        busy.connection.is_used = True
        if closes(busy.headers):
            self._drop(busy)
        elif self._queue and self._queue[0].exchange.pool is busy.file.exchange.pool:
            busy.file = self._next()
            self._start(busy)
        else:
            self._leave(busy)

    def _pace(self, since: float) -> None:
        """Note how long the files' part took; one that takes long says little."""
        self._pace_s += (min(time.monotonic() - since, 10 * SLOW_S) - self._pace_s) / 200

    def _lose(self, busy: _Busy) -> None:
        """The connection is no good. One that was kept may have been closed before it had the request, so the file gets another."""
        if busy.connection.is_used and busy.end == 0 and not busy.file.is_again:
            busy.file.is_again = True
            self._queue.appendleft(busy.file)
        else:
            self._give_back(busy.file)
        self._drop(busy)

    def _give_back(self, file: _File) -> None:
        self._given_back.append(file.otherwise)
        self._not_done += 1

    def _drop(self, busy: _Busy) -> None:
        self._forget(busy)
        busy.file.exchange.pool.drop(busy.connection)

    def _leave(self, busy: _Busy) -> None:
        self._forget(busy)
        busy.connection.wait()
        busy.file.exchange.pool.give_back(busy.connection)

    def _forget(self, busy: _Busy) -> None:
        self._poll.unregister(busy.connection.socket)
        del self._busy[busy.connection.socket.fileno()]
