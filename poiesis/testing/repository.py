"""An in-memory `TaskRepository` with the same contract, except that it is not durable. Its changes are events (`testing.events`)."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime

from poiesis.domain.access import Access
from poiesis.domain.decide.admission import waiting_word
from poiesis.domain.errors import PoiesisError, RepositoryUnavailable, UnknownTask
from poiesis.domain.states import Stage, State, path
from poiesis.domain.task import Task, TaskId, TaskSummary, Version, View
from poiesis.ports.events import Event, event_of
from poiesis.ports.repository import COUNT_LIMIT, Page, TaskFilter


class MemoryTaskRepository:
    """Tasks and events in dicts behind a lock.

    `down`: set it to make every call raise RepositoryUnavailable until it is unset, like an unavailable store.
    """

    def __init__(self) -> None:
        self.down = False
        self._tasks: dict[TaskId, Task] = {}
        self.events: dict[int, Event] = {}
        self.last_seq = 0
        self._lock = threading.Lock()
        self._closed = False

    def add(self, task: Task) -> None:
        with self.available():
            stored = self._tasks.get(task.id)
            if stored is None:
                self._tasks[task.id] = replace(task, version=Version(1))
                self._append_event(self._tasks[task.id])
            elif (stored.spec, stored.created_at, stored.owner) != (task.spec, task.created_at, task.owner):
                raise PoiesisError(f"the id {task.id!r} belongs to another task")

    def get(self, task_id: TaskId, view: View = View.FULL, *, access: Access | None = None) -> Task:
        with self.available():
            return _shown(self._known(task_id, access), view)

    def summary(self, task_id: TaskId, *, access: Access | None = None) -> TaskSummary:
        with self.available():
            return TaskSummary(task_id, self._known(task_id, access).state)

    def states(self, task_ids: Collection[TaskId], *, access: Access | None = None) -> Mapping[TaskId, State]:
        with self.available():
            found = [t for t in map(self._tasks.get, task_ids) if t is not None]
            return {t.id: t.state for t in found if access is None or access.allows(t.owner, t.groups)}

    def save(self, task: Task, *, seen: Version) -> bool:
        with self.available():
            stored = self._known(task.id)
            if stored.version != seen:
                return False
            path(stored.state, task.state)
            self._tasks[task.id] = replace(task, version=Version(seen + 1))
            self._append_event(self._tasks[task.id])
            return True

    def list(self, where: TaskFilter, *, limit: int, after: TaskId | None, view: View) -> Page:
        with self.available():
            matching = [t for t in self._tasks.values() if _matches(t, where)]
        found = sorted(matching, key=lambda task: task.id, reverse=not where.oldest_first)
        if after is not None:
            found = [t for t in found if (t.id > after if where.oldest_first else t.id < after)]
        tasks = tuple(
            TaskSummary(task.id, task.state) if view is View.MINIMAL else _shown(task, view) for task in found[:limit]
        )
        return Page(tasks, next_after=tasks[-1].id if len(found) > limit else None)

    def due(self, now: datetime, *, limit: int) -> Sequence[tuple[TaskId, Stage]]:
        with self.available():
            waiting = [
                (task.wake_at, task.id, task.due_stage)
                for task in self._tasks.values()
                if task.stage is not Stage.DONE and task.wake_at is not None and task.wake_at <= now
            ]
        return [(task_id, stage) for _, task_id, stage in sorted(waiting)[:limit]]

    def postpone(self, task_ids: Collection[TaskId], *, until: datetime) -> None:
        with self.available():
            for task_id in task_ids:
                task = self._tasks.get(task_id)
                if task and task.stage is not Stage.DONE and task.wake_at is not None and task.wake_at < until:
                    self._tasks[task_id] = replace(task, wake_at=until)

    def count(self, where: TaskFilter, *, limit: int = COUNT_LIMIT) -> int:
        with self.available():
            return min(limit, sum(_matches(task, where) for task in self._tasks.values()))

    def count_unfinished(
        self, *, owner: str | None = None, limit: int = COUNT_LIMIT
    ) -> Mapping[tuple[State, str], int]:
        with self.available():
            mine = [task for task in self._tasks.values() if owner in (None, task.owner)]
        counts = Counter((task.state, waiting_word(task)) for task in mine if not task.state.is_terminal)
        return {group: min(limit, count) for group, count in counts.items()}

    def purge(self, before: datetime, *, limit: int) -> int:
        with self.available():
            done = [(t.log.end_time or t.created_at, t.id) for t in self._tasks.values() if t.stage is Stage.DONE]
            expired = sorted(each for each in done if each[0] < before)[:limit]
            for _, task_id in expired:
                del self._tasks[task_id]
            return len(expired)

    def snapshot(self) -> tuple[Task, ...]:
        with self.available():
            return tuple(self._tasks.values())

    def ready(self) -> None:
        with self.available():
            return

    def close(self) -> None:
        self._closed = True

    def _append_event(self, task: Task) -> None:
        change = task.history[-1] if task.history else None
        if change is not None and change.n == task.version:
            self.last_seq += 1
            self.events[self.last_seq] = event_of(task, change, self.last_seq)

    def _known(self, task_id: TaskId, access: Access | None = None) -> Task:
        task = self._tasks.get(task_id)
        if task is None or not (access is None or access.allows(task.owner, task.groups)):
            raise UnknownTask(task_id)
        return task

    @contextmanager
    def available(self) -> Iterator[None]:
        if self.down or self._closed:
            raise RepositoryUnavailable("the task store is " + ("closed" if self._closed else "down"))
        with self._lock:
            yield


def _matches(task: Task, where: TaskFilter) -> bool:
    return (
        (task.spec.name or "").startswith(where.name_prefix)
        and (not where.states or task.state in where.states)
        and (where.owner is None or task.owner == where.owner)
        and (where.access is None or where.access.allows(task.owner, task.groups))
        and (where.created_from is None or task.created_at >= where.created_from)
        and (where.created_to is None or task.created_at < where.created_to)
        and all(key in task.spec.tags and (not value or task.spec.tags[key] == value) for key, value in where.tags)
    )


def _shown(task: Task, view: View) -> Task:
    if view is View.FULL:
        return task
    inputs = tuple(replace(item, content=None) for item in task.spec.inputs)
    logs = tuple(replace(item, stdout="", stderr="") for item in task.log.logs)
    log = replace(task.log, logs=logs, system_logs=())
    return replace(task, spec=replace(task.spec, inputs=inputs), log=log)
