"""Many tasks with one request: their states, and their cancellation. Each call is bounded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

from poiesis.domain.access import Access
from poiesis.domain.errors import Forbidden, RepositoryUnavailable, UnknownTask
from poiesis.domain.task import TaskId, View
from poiesis.ports.repository import TaskFilter
from poiesis.services.tasks import TaskService

MAX_TIME: Final = timedelta(seconds=20)
"""Of one request, well within the time-outs of clients and proxies, however slow the store is."""


@dataclass
class Canceled:
    """What a bulk cancel did, by id. `failed`: with the reason, worth another try. `next_after`: where to go on, None at the end."""

    canceled: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    forbidden: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    next_after: TaskId | None = None


def cancel_each(tasks: TaskService, ids: Iterable[str], *, access: Access | None) -> Canceled:
    """Cancel what can be canceled. Raises: RepositoryUnavailable, if nothing was canceled yet."""
    done, end = Canceled(), tasks.clock.now() + MAX_TIME
    for task_id in ids:
        if tasks.clock.now() >= end:
            done.failed[task_id] = "there was no time left for it: try again"
            continue
        try:
            (done.canceled if tasks.cancel(task_id, access=access) else done.unchanged).append(task_id)
        except UnknownTask:
            done.unknown.append(task_id)
        except Forbidden:
            done.forbidden.append(task_id)
        except RepositoryUnavailable as error:
            if not done.canceled:
                raise
            done.failed[task_id] = str(error)
    return done


def cancel_matching(tasks: TaskService, where: TaskFilter, *, limit: int, after: TaskId | None) -> Canceled:
    """Cancel one page of the tasks that match. Repeating it is safe."""
    page = tasks.list(where, limit=limit, after=after, view=View.MINIMAL)
    done = cancel_each(tasks, [task.id for task in page.tasks], access=where.access)
    done.next_after = page.next_after
    return done


def matching(tasks: TaskService, where: TaskFilter, *, limit: int) -> tuple[int, Sequence[TaskId]]:
    """How many tasks match, counted up to the repository's limit, and the first of them."""
    page = tasks.list(where, limit=limit, after=None, view=View.MINIMAL)
    return tasks.repository.count(where), [task.id for task in page.tasks]
