"""Reads container logs in a few threads of its own, so that a node which does not answer delays only the tasks of its own pods.

The reads of one node queue up behind each other. After a failure the whole queue of that node pauses, longer with every further failure,
and is then tried with a single read. A read that has failed for its patience is given up; if its node has answered nothing for that long,
after a moment.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from poiesis.cluster.kubernetes.errors import ApiError, is_transient

log = logging.getLogger(__name__)

THREADS: Final = 8
THREADS_PER_NODE: Final = 2
MAX_READS: Final = 20_000
FIRST_PAUSE_S: Final = 0.25
LONGEST_PAUSE_S: Final = 5.0
LEAST_PATIENCE_S: Final = 2.0
# reasons of failures of the API server, not of a node
AWAY: Final = frozenset({"NewConnectionError", "ConnectTimeoutError", "ProtocolError"})

Key = tuple[str, bool]  # uid of the pod, and whether it has not ended yet


@dataclass(eq=False)
class LogRead:
    """`read` raises ApiError; if that stays transient for `patience_s`, `give_up` is called instead. Either is followed by `finished`."""

    key: Key
    node: str
    read: Callable[[], None]
    give_up: Callable[[], None]
    finished: Callable[[], None]
    patience_s: float
    submitted_at: float = 0.0
    done: threading.Event = field(default_factory=threading.Event)


@dataclass(eq=False)
class _Node:
    waiting: deque[LogRead] = field(default_factory=deque)
    reading: int = 0
    failures: int = 0
    failing_since: float = 0.0
    paused_until: float = 0.0

    def may_read(self, now: float) -> bool:
        return self.reading < (1 if self.failures else THREADS_PER_NODE) and self.paused_until <= now

    def deadline(self, read: LogRead) -> float:
        end = read.submitted_at + read.patience_s
        if not self.failures:
            return end
        return min(end, max(self.failing_since + read.patience_s, read.submitted_at + LEAST_PATIENCE_S))


class LogReader:
    def __init__(self, *, threads: int = THREADS, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._lock = threading.Condition()
        self._reads: dict[Key, LogRead] = {}
        self._nodes: dict[str, _Node] = {}  # with reads, or failing
        self._closed = False
        self._threads = [threading.Thread(target=self._work, name=f"logs-{i}", daemon=True) for i in range(threads)]

    def submit(self, read: LogRead) -> LogRead | None:
        """Queue the read, or return the one with the same key. None: there are too many."""
        with self._lock:
            if read.key in self._reads:
                return self._reads[read.key]
            if len(self._reads) >= MAX_READS or self._closed:
                return None
            if not self._threads[0].is_alive():
                for thread in self._threads:
                    thread.start()
            read.submitted_at = self._monotonic()
            self._reads[read.key] = read
            self._nodes.setdefault(read.node, _Node()).waiting.append(read)
            self._lock.notify()
            return read

    def is_failing(self, node: str) -> bool:
        """Whether reads of this node are paused after a failure."""
        with self._lock:
            return node in self._nodes and self._nodes[node].paused_until > self._monotonic()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._lock.notify_all()

    def _work(self) -> None:
        while (taken := self._next()) is not None:
            read, node, is_late = taken
            error: ApiError | None = None
            try:
                if is_late:
                    log.info("log_given_up", extra={"node": read.node, "pod_uid": read.key[0]})
                    read.give_up()
                else:
                    read.read()
            except ApiError as caught:
                error = caught
            except Exception:
                log.exception("log_read_bug", extra={"node": read.node})
            if self._settle(read, node, error, is_late=is_late):
                self._finish(read)

    def _next(self) -> tuple[LogRead, _Node, bool] | None:
        """Wait for a read that may start, or whose patience is over (True). None: closed."""
        with self._lock:
            while not self._closed:
                now = self._monotonic()
                soonest = float("inf")
                for node in self._nodes.values():
                    if not node.waiting:
                        continue
                    is_late = node.failures > 0 and node.deadline(node.waiting[0]) <= now
                    if is_late or node.may_read(now):
                        node.reading += not is_late
                        self._lock.notify()  # another thread waits for the next one from now on
                        return node.waiting.popleft(), node, is_late
                    if node.failures:  # else the end of a read of this node wakes a thread
                        soonest = min(soonest, max(node.paused_until, now + 0.01), node.deadline(node.waiting[0]))
                self._lock.wait(None if soonest == float("inf") else max(0.0, soonest - now))
            return None

    def _settle(self, read: LogRead, node: _Node, error: ApiError | None, *, is_late: bool) -> bool:
        """Whether the read is over."""
        with self._lock:
            now = self._monotonic()
            if not is_late:
                node.reading -= 1
            over = is_late or error is None or not is_transient(error)
            if error is not None and not over:
                if error.status == 0 and error.reason in AWAY:  # ends no read's patience
                    node.failing_since = now
                    for each in (read, *node.waiting):
                        each.submitted_at = now
                elif not node.failures:
                    node.failing_since = now
                node.failures += 1
                node.paused_until = now + min(FIRST_PAUSE_S * 2 ** min(node.failures - 1, 10), LONGEST_PAUSE_S)
                node.waiting.appendleft(read)
            elif not is_late:
                node.failures, node.paused_until = 0, 0.0
            if not node.waiting and not node.reading and (not node.failures or len(self._nodes) > MAX_READS):
                self._nodes.pop(read.node, None)
            self._lock.notify()
        if error is not None and over:
            read.give_up()
        return over

    def _finish(self, read: LogRead) -> None:
        with self._lock:
            self._reads.pop(read.key, None)
        read.done.set()
        try:
            read.finished()
        except Exception:
            log.exception("log_read_bug", extra={"node": read.node})
