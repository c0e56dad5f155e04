"""Clean-ups of ended tasks, held back while pods are being started.

A burst of tasks keeps the nodes busy from its first pod to its last one. Removing the first ones' pods and volumes meanwhile takes time
from starting the others, and nobody waits for it: so removal comes when nothing starts, or when its patience is over.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from datetime import timedelta
from typing import Final

from poiesis.domain.errors import QueueUnavailable
from poiesis.domain.task import TaskId

log = logging.getLogger(__name__)

PATIENCE: Final = timedelta(seconds=30)
LOOK_S: Final = 0.1
MAX_HELD: Final = 100_000  # one more is published at once


class DeferredCleanup:
    """`publish` hands a task to the role that cleans up; `starting` tells which tasks' pods are being started now."""

    def __init__(
        self,
        publish: Callable[[TaskId], None],
        starting: Callable[[], Collection[TaskId]],
        *,
        patience: timedelta = PATIENCE,
    ) -> None:
        self._publish = publish
        self._starting = starting
        self._patience_s = patience.total_seconds()
        self._held: OrderedDict[TaskId, float] = OrderedDict()  # since when, on the monotonic clock
        self._lock = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="clean-ups", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def add(self, task_id: TaskId) -> None:
        """Publish now or soon. Raises: QueueUnavailable, only when it is now."""
        with self._lock:
            if self._closed or task_id in self._held:
                return
            holds = len(self._held) < MAX_HELD and self._others_start({task_id})
            if holds:
                self._held[task_id] = time.monotonic()
                self._lock.notify()
        if not holds:
            self._publish(task_id)

    def holds(self, task_id: TaskId) -> bool:
        """Whether the task has ended and waits here: its pod's events tell nothing new."""
        with self._lock:
            return task_id in self._held

    def close(self) -> None:
        """What is held is forgotten: the store knows when it has to be looked at."""
        with self._lock:
            self._closed = True
            self._lock.notify()
        if self._thread.is_alive():
            self._thread.join(5)

    def _others_start(self, ended: Collection[TaskId]) -> bool:
        """A pod whose end came by a poke may still be shown as starting: those of ended tasks do not count."""
        return any(task_id not in ended for task_id in self._starting())

    def _work(self) -> None:
        while True:
            with self._lock:
                while not self._closed and not self._held:
                    self._lock.wait()
                if self._closed:
                    return
                ready = self._take()
                if not ready:
                    self._lock.wait(LOOK_S)
            for task_id in ready:
                try:
                    self._publish(task_id)
                except QueueUnavailable as error:  # resync publishes
                    log.warning("publish_failed", extra={"task_id": task_id, "error": str(error)})

    def _take(self) -> list[TaskId]:
        if not self._others_start(self._held):
            ready = list(self._held)
        else:
            oldest = time.monotonic() - self._patience_s
            ready = [task_id for task_id, since in self._held.items() if since <= oldest]
        for task_id in ready:
            del self._held[task_id]
        return ready
