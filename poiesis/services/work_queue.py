"""An in-memory queue of tasks to reconcile: what is lost with it, resync finds again."""

from __future__ import annotations

import heapq
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import timedelta
from typing import Final

from poiesis.domain.task import TaskId
from poiesis.observability import bind_task

log = logging.getLogger(__name__)

MAX_FAILURES: Final = 8
FIRST_BACK_OFF_S: Final = 0.2
MAX_KEYS: Final = 100_000
TASKS_PER_SETTLE: Final = 10
MAX_SETTLES: Final = 4


class WorkQueue:
    """Runs `handle(task_id, hint)` in a few threads, never twice at once for one task.

    Wake-ups merge: a task is queued once, and a task that is being handled is handled again afterwards. The newest hint that is not None
    wins. A handler that raises is retried with back-off at most MAX_FAILURES times, after which resync takes over. At most MAX_KEYS tasks
    are queued; more are dropped (resync finds them). A wake-up without a hint waits for `settle`, so that the events of one pod, which
    come in bursts, are handled together and cost one read of the store. The more tasks are queued, the longer it waits, up to MAX_SETTLES
    times `settle`.
    """

    def __init__(
        self, handle: Callable[[TaskId, str | None], None], threads: int, *, settle: timedelta = timedelta(0)
    ) -> None:
        self._handle = handle
        self._settle_s = settle.total_seconds()
        self._lock = threading.Condition()
        self._ready: deque[TaskId] = deque()
        self._hints: dict[TaskId, str | None] = {}  # queued tasks
        self._busy: set[TaskId] = set()
        self._failures: dict[TaskId, int] = {}
        self._later: list[tuple[float, TaskId]] = []  # a heap: when due, by the monotonic clock
        self._backing_off: set[TaskId] = set()
        self._settling: set[TaskId] = set()  # in the heap too, unless a hint moved them forward
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"reconcile-{i}", daemon=True) for i in range(threads)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def wake(self, task_id: TaskId, hint: str | None = None) -> None:
        with self._lock:
            if self._closed or (task_id not in self._hints and len(self._hints) >= MAX_KEYS):
                return
            waits = task_id in self._hints and task_id not in self._settling
            self._hints[task_id] = hint or self._hints.get(task_id)
            if waits or task_id in self._busy:
                return
            if hint is not None or not self._settle_s:
                self._settling.discard(task_id)
                self._ready.append(task_id)
            elif task_id not in self._settling:
                self._settling.add(task_id)
                settles = min(1 + len(self._hints) // TASKS_PER_SETTLE, MAX_SETTLES)
                heapq.heappush(self._later, (time.monotonic() + settles * self._settle_s, task_id))
            self._lock.notify()

    def close(self, timeout: timedelta = timedelta(seconds=10)) -> None:
        with self._lock:
            self._closed = True
            self._lock.notify_all()
        deadline = time.monotonic() + timeout.total_seconds()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(0.0, deadline - time.monotonic()))

    def _work(self) -> None:
        while True:
            with self._lock:
                self._move_due()
                while not self._closed and not self._ready:
                    self._lock.wait(self._until_next())
                    self._move_due()
                if self._closed:
                    return
                task_id = self._ready.popleft()
                hint = self._hints.pop(task_id, None)
                self._busy.add(task_id)
            failed = False
            with bind_task(task_id):
                try:
                    self._handle(task_id, hint)
                except Exception as error:
                    failed = True
                    log.warning("wake_failed", extra={"error": f"{type(error).__name__}: {error}"})
            with self._lock:
                self._busy.discard(task_id)
                if failed:
                    self._back_off(task_id, hint)
                else:
                    self._failures.pop(task_id, None)
                if task_id in self._hints and task_id not in self._backing_off:
                    self._ready.append(task_id)
                self._lock.notify()  # a task is ready, or the time until the next one has changed

    def _back_off(self, task_id: TaskId, hint: str | None) -> None:
        count = self._failures.get(task_id, 0) + 1
        if count > MAX_FAILURES:
            self._failures.pop(task_id, None)
            return
        self._failures[task_id] = count
        self._backing_off.add(task_id)
        heapq.heappush(self._later, (time.monotonic() + min(FIRST_BACK_OFF_S * 2 ** (count - 1), 30.0), task_id))
        self._hints[task_id] = self._hints.get(task_id) or hint

    def _until_next(self) -> float | None:
        return max(0.0, self._later[0][0] - time.monotonic()) if self._later else None

    def _move_due(self) -> None:
        now = time.monotonic()
        while self._later and self._later[0][0] <= now:
            _, task_id = heapq.heappop(self._later)
            if task_id in self._backing_off or task_id in self._settling:
                self._backing_off.discard(task_id)
                self._settling.discard(task_id)
                self._ready.append(task_id)
                self._lock.notify()
