"""Cleanup of ended tasks, deferred while pods are being started.

During a burst of tasks the nodes are busy starting pods. Deleting the pods and volumes of the first tasks meanwhile slows the start of
the others, and no client waits for it: so cleanup is published when no pod is starting, or after MAX_DELAY.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from datetime import timedelta
from typing import Final, NamedTuple

from poiesis.domain.errors import QueueUnavailable
from poiesis.domain.task import TaskId

log = logging.getLogger(__name__)

MAX_DELAY: Final = timedelta(seconds=30)
CHECK_S: Final = 0.1
MAX_DEFERRED: Final = 100_000  # more are published at once


class _Deferred(NamedTuple):
    since_s: float
    """By the monotonic clock."""
    owner: str | None


class DeferredCleanup:
    """`publish` enqueues the cleanup of a task of an owner; `starting` returns the tasks whose pods are being started now."""

    def __init__(
        self,
        publish: Callable[[TaskId, str | None], None],
        starting: Callable[[], Collection[TaskId]],
        *,
        max_delay: timedelta = MAX_DELAY,
    ) -> None:
        self._publish = publish
        self._starting = starting
        self._max_delay_s = max_delay.total_seconds()
        self._deferred: OrderedDict[TaskId, _Deferred] = OrderedDict()
        self._lock = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="deferred-cleanup", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def add(self, task_id: TaskId, owner: str | None = None) -> None:
        """Publish now or later. Raises: QueueUnavailable, only if it is published now."""
        with self._lock:
            if self._closed or task_id in self._deferred:
                return
            is_deferred = len(self._deferred) < MAX_DEFERRED and self._others_start({task_id})
            if is_deferred:
                self._deferred[task_id] = _Deferred(time.monotonic(), owner)
                self._lock.notify()
        if not is_deferred:
            self._publish(task_id, owner)

    def defers(self, task_id: TaskId) -> bool:
        """Whether the task has ended and its cleanup is deferred: the events of its pod can be ignored."""
        with self._lock:
            return task_id in self._deferred

    def close(self) -> None:
        """Drop what is deferred: resync publishes it when its `wake_at` has come."""
        with self._lock:
            self._closed = True
            self._lock.notify()
        if self._thread.is_alive():
            self._thread.join(5)

    def _others_start(self, ended: Collection[TaskId]) -> bool:
        """Pods of ended tasks do not count: a pod whose end was reported by a poke may still be shown as starting."""
        return any(task_id not in ended for task_id in self._starting())

    def _work(self) -> None:
        while True:
            with self._lock:
                while not self._closed and not self._deferred:
                    self._lock.wait()
                if self._closed:
                    return
                ready = self._take()
                if not ready:
                    self._lock.wait(CHECK_S)
            for task_id, deferred in ready.items():
                try:
                    self._publish(task_id, deferred.owner)
                except QueueUnavailable as error:  # resync publishes
                    log.warning("publish_failed", extra={"task_id": task_id, "error": str(error)})

    def _take(self) -> dict[TaskId, _Deferred]:
        if not self._others_start(self._deferred):
            ready = dict(self._deferred)
        else:
            oldest = time.monotonic() - self._max_delay_s
            ready = {task_id: deferred for task_id, deferred in self._deferred.items() if deferred.since_s <= oldest}
        for task_id in ready:
            del self._deferred[task_id]
        return ready
