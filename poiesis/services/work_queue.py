"""An in-memory queue of tasks to reconcile: what is lost with it, resync finds again."""

from __future__ import annotations

import heapq
import logging
import math
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Final

from poiesis.domain.task import TaskId
from poiesis.metrics import WORK_QUEUE
from poiesis.observability import bind_task

log = logging.getLogger(__name__)

MAX_FAILURES: Final = 8
FIRST_BACK_OFF_S: Final = 0.2
MAX_BACK_OFF_S: Final = 30.0
MAX_KEYS: Final = 100_000
TASKS_PER_SETTLE: Final = 10
MAX_SETTLES: Final = 4
PATIENCE: Final = 3


def back_off_s(failures: int) -> float:
    return min(FIRST_BACK_OFF_S * (1 << failures - 1), MAX_BACK_OFF_S)


class WorkQueue:
    """Runs `handle(task_id, hint)` in a few threads, never twice at once for one task.

    Wake-ups merge: a task is queued once, and a task that is being handled is handled again afterwards. The newest hint that is not None
    wins. A handler that raises is retried with back-off at most MAX_FAILURES times, after which resync takes over. At most MAX_KEYS tasks
    are queued; more are dropped (resync finds them). A wake-up without a hint waits for `settle`, so that the events of one pod, which
    come in bursts, are handled together and cost one read of the store; a patient one, which can wait for what comes next, for
    PATIENCE times as long. The more tasks are queued, the longer they wait, up to MAX_SETTLES times that; patient ones delay no others.
    """

    def __init__(
        self, handle: Callable[[TaskId, str | None], None], threads: int, *, settle: timedelta = timedelta(0)
    ) -> None:
        self._handle = handle
        self._settle_s = settle.total_seconds()
        self._lock = threading.Condition()
        # queued tasks, also those that are being handled and were woken since
        self._hints: dict[TaskId, str | None] = {}
        self._due: dict[TaskId, float] = {}  # when to handle them, by the monotonic clock
        self._heap: list[tuple[float, TaskId]] = []  # of `_due`, and of what it was before a hint moved a task forward
        self._patient: set[TaskId] = set()  # queued by patient wake-ups only
        self._busy: set[TaskId] = set()
        self._failures: dict[TaskId, int] = {}  # in a row
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"reconcile-{i}", daemon=True) for i in range(threads)
        ]

    def start(self) -> None:
        WORK_QUEUE.set_function(lambda: len(self._hints))
        for thread in self._threads:
            thread.start()

    def wake(self, task_id: TaskId, hint: str | None = None, *, patient: bool = False) -> None:
        with self._lock:
            if self._closed or (task_id not in self._hints and len(self._hints) >= MAX_KEYS):
                return
            queued = task_id in self._hints and not (task_id in self._patient and not patient)
            self._hints[task_id] = hint or self._hints.get(task_id)
            if task_id in self._busy or task_id in self._failures or (queued and hint is None):
                return
            if patient:
                self._patient.add(task_id)
            else:
                self._patient.discard(task_id)
            self._schedule(task_id, 0 if hint is not None else self._delay_s(patient))

    def close(self, timeout: timedelta = timedelta(seconds=10)) -> None:
        with self._lock:
            self._closed = True
            self._lock.notify_all()
        deadline = time.monotonic() + timeout.total_seconds()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(0.0, deadline - time.monotonic()))

    def _work(self) -> None:
        while (taken := self._next()) is not None:
            task_id, hint = taken
            failed = False
            with bind_task(task_id):
                try:
                    self._handle(task_id, hint)
                except Exception as error:
                    failed = True
                    log.warning("wake_failed", extra={"error": f"{type(error).__name__}: {error}"})
            with self._lock:
                self._busy.discard(task_id)
                failures = self._failures.pop(task_id, 0) + 1
                if failed and failures <= MAX_FAILURES:
                    self._failures[task_id] = failures
                    self._hints[task_id] = self._hints.get(task_id) or hint
                    self._schedule(task_id, back_off_s(failures))
                elif task_id in self._hints:
                    self._schedule(task_id, 0)

    def _next(self) -> tuple[TaskId, str | None] | None:
        """Wait for a task that is due, which is busy from then on, and return it with its hint. None: the queue is closed."""
        with self._lock:
            while not self._closed:
                now = time.monotonic()
                if not self._heap or self._heap[0][0] > now:
                    self._lock.wait(self._heap[0][0] - now if self._heap else None)
                    continue
                due, task_id = heapq.heappop(self._heap)
                if self._due.get(task_id) == due:
                    del self._due[task_id]
                    self._busy.add(task_id)
                    self._lock.notify()  # another thread waits for the next one from now on
                    self._patient.discard(task_id)
                    return task_id, self._hints.pop(task_id, None)
            return None

    def _delay_s(self, patient: bool) -> float:
        ahead = len(self._hints) if patient else len(self._hints) - len(self._patient)
        settles = min(1 + ahead // TASKS_PER_SETTLE, MAX_SETTLES)
        return settles * self._settle_s * (PATIENCE if patient else 1)

    def _schedule(self, task_id: TaskId, delay_s: float) -> None:
        due = time.monotonic() + delay_s
        if due < self._due.get(task_id, math.inf):
            self._due[task_id] = due
            heapq.heappush(self._heap, (due, task_id))
            self._lock.notify()
