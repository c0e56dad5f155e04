"""Links of new tasks, published behind the answers to the requests that created them (docs/adr/0023).

A create is answered once its task is stored; publishing takes a quarter of its processor time. The links of a user who posts a burst wait
until it has been answered, within the bounds of `CreateBursts`, because all roles that act on them want the same processors. What a
process that dies has not published, resync publishes.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import Final, NamedTuple

from poiesis.domain.errors import QueueUnavailable
from poiesis.domain.states import Stage
from poiesis.domain.task import TaskId
from poiesis.observability import bind_task
from poiesis.ports.queue import Queue

log = logging.getLogger(__name__)

MAX_DEFERRED: Final = 10_000  # further ones are published at once, by the request
CLOSE_S: Final = 3.0


class _Begin(NamedTuple):
    task_id: TaskId
    stages: Sequence[Stage]
    owner: str | None


class DeferredBegin:
    """A `Queue` that passes everything on, `begin` from its own thread. `hold` is that of `CreateBursts`: users whose links still have to
    wait."""

    def __init__(self, queue: Queue, hold: Callable[[threading.Event], Collection[str]]) -> None:
        self._queue = queue
        self._hold = hold
        self._deferred: deque[_Begin] = deque()
        self._added = threading.Event()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="deferred-begin", daemon=True)
        self.publish, self.waiting, self.ready = queue.publish, queue.waiting, queue.ready

    def start(self) -> None:
        self._thread.start()

    def begin(self, task_id: TaskId, stages: Sequence[Stage], *, owner: str | None = None) -> None:
        """Raises: QueueUnavailable, only if it is published now."""
        if self._closed.is_set() or len(self._deferred) >= MAX_DEFERRED:
            self._queue.begin(task_id, stages, owner=owner)
            return
        self._deferred.append(_Begin(task_id, stages, owner))
        self._added.set()

    def close(self) -> None:
        """Publish what is left, for a few seconds. The queue stays open."""
        self._closed.set()
        self._added.set()
        self._thread.join(CLOSE_S + 1)

    def _work(self) -> None:
        while not self._closed.is_set():
            self._added.wait()
            self._added.clear()
            while self._deferred and not self._closed.is_set():
                self._publish_except(self._hold(self._closed))
        deadline = time.monotonic() + CLOSE_S
        while self._deferred and time.monotonic() < deadline:
            self._begin(self._deferred.popleft())

    def _publish_except(self, users: Collection[str]) -> None:
        """Those that wait come last, in their order."""
        for _ in range(len(self._deferred)):
            if self._closed.is_set():
                return
            deferred = self._deferred.popleft()
            if (deferred.owner or "") in users:
                self._deferred.append(deferred)
            else:
                self._begin(deferred)

    def _begin(self, deferred: _Begin) -> None:
        with bind_task(deferred.task_id):
            try:
                self._queue.begin(deferred.task_id, deferred.stages, owner=deferred.owner)
            except QueueUnavailable as error:  # resync publishes
                log.warning("publish_failed", extra={"stage": deferred.stages[0].value, "error": str(error)})
            except Exception:
                log.exception("publish_bug")
