"""The changes of tasks, as they happen, for any number of readers in one process.

One task of the event loop polls the log while there are readers, in a thread of its own, and keeps the latest events in a window that all
readers share. A reader is woken only by events of its topics: a task, a reader token (`poiesis.domain.access`), or everything. It holds no
events but a position in the window, so a slow reader costs no memory; once the window has moved past its position it gets `FellBehind`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from sys import getsizeof
from typing import Final

from poiesis.api.threads import Threads
from poiesis.domain.access import reader_tokens
from poiesis.domain.errors import Unavailable
from poiesis.ports.events import Event, EventLog

log = logging.getLogger(__name__)

POLL_S: Final = 0.2
MAX_POLL_S: Final = 5.0  # while the store does not answer
PAGE: Final = 500
WINDOW: Final = 10_000
WINDOW_BYTES: Final = 32 * 1024 * 1024
"""That the events of the window may take in memory; 10,000 events with few tags take less."""
EVERYTHING: Final = "*"


def task_topic(task_id: str) -> str:
    return f"t:{task_id}"


class FellBehind(Exception):
    """Events were lost for a reader that did not keep up."""


class Reader:
    """It has seen all events of its topics up to `position`. Used in the event loop only."""

    def __init__(self, feed: EventFeed, topics: Iterable[str]) -> None:
        self._feed = feed
        self.topics: Final = frozenset(topics)
        self.position = feed.position
        self._wanted = False
        self._wake = asyncio.Event()

    async def wait(self, timeout_s: float) -> list[Event]:
        """The next events of its topics, in order; empty after the time-out. Raises: FellBehind."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._wake.wait()
        except TimeoutError:
            pass
        self._wake.clear()
        found = self._feed.window_after(self.position, self.topics) if self._wanted else []
        self._wanted = False
        self.position = max(self.position, self._feed.position)
        return found

    def offer(self, seq: int) -> None:
        """Called by the feed: this event concerns the reader."""
        if not self._wanted:
            self._wanted, self.position = True, seq - 1
        self._wake.set()

    def wake(self) -> None:
        """Let `wait` return at once."""
        self._wake.set()


class EventFeed:
    def __init__(
        self, events: EventLog, *, poll_s: float = POLL_S, window: int = WINDOW, window_bytes: int = WINDOW_BYTES
    ) -> None:
        self._log = events
        self._poll_s = poll_s
        self._thread = Threads(1, "events")
        self._window: deque[tuple[Event, frozenset[str]]] = deque()
        self._most, self._most_bytes, self._bytes = window, window_bytes, 0
        self._readers: dict[str, set[Reader]] = {}
        self._count = 0
        self._poller: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()
        self.position = 0

    @asynccontextmanager
    async def reader(self, topics: Iterable[str]) -> AsyncIterator[Reader]:
        """A reader of all events after now. Raises: Unavailable."""
        self._count += 1  # keeps the poller
        try:
            async with self._starting:
                if self._poller is None or self._poller.done():
                    self._window.clear()
                    self._bytes = 0
                    self.position = await self._thread.call(self._log.last_seq)
                    self._poller = asyncio.create_task(self._poll())
            reader = Reader(self, topics)
            for topic in reader.topics:
                self._readers.setdefault(topic, set()).add(reader)
            try:
                yield reader
            finally:
                self._remove(reader)
        finally:
            self._count -= 1

    def _remove(self, reader: Reader) -> None:
        for topic in reader.topics:
            readers = self._readers[topic]
            readers.discard(reader)
            if not readers:
                del self._readers[topic]

    def window_after(self, position: int, topics: frozenset[str]) -> list[Event]:
        """Raises: FellBehind if the window does not reach back that far."""
        if self._window and self._window[0][0].seq > position + 1:
            raise FellBehind
        newer = []
        for event, of in reversed(self._window):
            if event.seq <= position:
                break
            if not topics.isdisjoint(of):
                newer.append(event)
        return newer[::-1]

    def close(self) -> None:
        if self._poller is not None:
            self._poller.cancel()
        self._thread.abandon()

    async def _poll(self) -> None:
        pause_s = self._poll_s
        while self._count:
            try:
                events = await self._thread.call(self._log.after, self.position, limit=PAGE)
                self._publish(events)
                pause_s = self._poll_s
                if len(events) == PAGE:
                    continue
            except Unavailable as error:
                if pause_s == self._poll_s:
                    log.warning("events_unavailable", extra={"error": str(error)})
                pause_s = min(pause_s * 2, MAX_POLL_S)
            except Exception:  # without the poller all streams would wait forever
                log.exception("events_failed")
                pause_s = MAX_POLL_S
            await asyncio.sleep(pause_s)

    def _publish(self, events: Iterable[Event]) -> None:
        for event in events:
            topics = topics_of(event)
            self._window.append((event, topics))
            self._bytes += _size_bytes(event)
            while len(self._window) > self._most or (self._bytes > self._most_bytes and len(self._window) > 1):
                self._bytes -= _size_bytes(self._window.popleft()[0])
            self.position = event.seq
            for topic in topics:
                for reader in self._readers.get(topic, ()):
                    reader.offer(event.seq)


def _size_bytes(event: Event) -> int:
    """About what it takes in memory, with its topics."""
    texts = sum(getsizeof(key) + getsizeof(value) + 32 for key, value in event.tags.items())
    return 1024 + texts + 2 * sum(getsizeof(group) + 32 for group in event.groups)


def topics_of(event: Event) -> frozenset[str]:
    return frozenset((EVERYTHING, task_topic(event.task_id), *reader_tokens(event.owner, event.groups)))
