"""Tasks as this process has last seen them stored, so that it need not read what it has just saved. Bounded; may be dropped at any time."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Final

from poiesis.domain.task import Task, TaskId

MAX_BYTES: Final = 32 * 1024 * 1024
MAX_ITEMS: Final = 200  # files, arguments, lines and so on of a task: those with more are not kept
ITEM_BYTES: Final = 1024  # of each, besides its texts
BYTES_PER_CHARACTER: Final = 4  # of a Python string at worst


class RecentTasks:
    """Safe to use from any thread."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._tasks: OrderedDict[TaskId, tuple[int, Task]] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, task: Task) -> None:
        self.take(task.id)
        size = _size_bytes(task)
        if size is None:
            return
        with self._lock:
            self._bytes += size - self._tasks.pop(task.id, (0, task))[0]
            self._tasks[task.id] = size, task
            while self._bytes > self._max_bytes:
                self._bytes -= self._tasks.popitem(last=False)[1][0]

    def take(self, task_id: TaskId) -> Task | None:
        with self._lock:
            size, task = self._tasks.pop(task_id, (0, None))
            self._bytes -= size
        return task


def _size_bytes(task: Task) -> int | None:
    """About; None: too large to be kept."""
    spec, log = task.spec, task.log
    items = (task, spec, *spec.executors, *spec.inputs, *spec.outputs, *log.logs, *log.outputs)
    maps = (spec.tags, log.metadata, *(executor.env for executor in spec.executors))
    lists = (log.system_logs, *(executor.command for executor in spec.executors), *maps, *(m.values() for m in maps))
    count = len(items) + sum(map(len, lists)) + len(task.history) + len(task.phases)
    if count > MAX_ITEMS:
        return None
    texts = [value for item in items for value in vars(item).values() if isinstance(value, str)]
    characters = sum(map(len, texts)) + sum(len(text) for texts in lists for text in texts)
    return ITEM_BYTES * count + BYTES_PER_CHARACTER * characters
