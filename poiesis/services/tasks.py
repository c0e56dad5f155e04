"""Create, get, list and cancel tasks: what API, CLI and dashboard do.

A task is stored before it is published, so an answered id is never lost; what was not published, resync publishes.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from poiesis.domain.decide import plan_of
from poiesis.domain.entitlements import check_entitlements
from poiesis.domain.errors import QueueUnavailable, RepositoryUnavailable, UnknownTask
from poiesis.domain.naming import is_task_id, new_task_id
from poiesis.domain.policy import Policy
from poiesis.domain.states import Stage, State
from poiesis.domain.task import Task, TaskId, TaskLog, TaskSpec, TaskSummary, View
from poiesis.domain.validate import check
from poiesis.observability import TASKS_CREATED
from poiesis.ports.clock import Clock
from poiesis.ports.queue import Queue
from poiesis.ports.repository import Page, TaskFilter, TaskRepository

log = logging.getLogger(__name__)

FIRST_LOOK: Final = timedelta(seconds=20)  # resync publishes a task again that nobody took by then
MAX_RACES: Final = 20
TAIL_EVERY: Final = timedelta(seconds=2)  # how often a reader makes the live tail of one task be read anew
_MAX_TAILS_REMEMBERED: Final = 10_000


def _first_stage(task: Task, policy: Policy) -> Stage:
    """The first stage that has something to do for the task: links that would only pass it on are not sent."""
    the_plan = plan_of(task, policy)
    if the_plan.volume_bytes is not None:
        return Stage.PREPARE
    return Stage.STAGE_IN if the_plan.has_filers else Stage.LAUNCH


def _checked(task_id: str) -> TaskId:
    """Raises: UnknownTask for an id that this service cannot have made, which need not be looked up."""
    if not is_task_id(task_id):
        raise UnknownTask(task_id[:100])
    return TaskId(task_id)


class TaskService:
    def __init__(self, repository: TaskRepository, queue: Queue, clock: Clock, policy: Policy) -> None:
        self._repository = repository
        self._queue = queue
        self._clock = clock
        self._policy = policy
        self._tails_asked: dict[TaskId, datetime] = {}

    def create(
        self, spec: TaskSpec, *, owner: str | None = None, groups: Sequence[str] = (), notes: Sequence[str] = ()
    ) -> TaskId:
        """Check, store, publish. `notes` begin the task's system log.

        Raises: InvalidTask (nothing stored), RepositoryUnavailable (unknown whether stored).
        """
        spec, dropped = check(spec, self._policy)
        check_entitlements(spec, self._policy, owner, groups)
        now = self._clock.now()
        task_id = new_task_id(now)
        task = Task(
            id=task_id,
            spec=spec,
            created_at=now,
            stage_since=now,
            wake_at=now + FIRST_LOOK,
            nonce=secrets.token_hex(8),
            owner=owner,
            log=TaskLog(system_logs=(*notes, *dropped)),
        )
        self._repository.add(task)
        TASKS_CREATED.inc()
        self._publish(task_id, _first_stage(task, self._policy))
        return task_id

    def get(self, task_id: str, view: View, *, owner: str | None = None) -> Task | TaskSummary:
        """Raises: UnknownTask, also for a task of another owner. A running task in FULL has its live tail read soon after."""
        if view is View.MINIMAL:
            return self._repository.summary(_checked(task_id), owner=owner)
        task = self._repository.get(_checked(task_id), view, owner=owner)
        if view is View.FULL and task.state is State.RUNNING:
            self._ask_for_tail(task.id)
        return task

    def list(
        self, where: TaskFilter, *, limit: int, after: TaskId | None, view: View, owner: str | None = None
    ) -> Page:
        return self._repository.list(
            where if owner is None else replace(where, owner=owner), limit=limit, after=after, view=view
        )

    def cancel(self, task_id: str, *, owner: str | None = None) -> None:
        """Ask for the end of a task. Repeating changes nothing; a finished task keeps its outcome.

        Raises: UnknownTask, RepositoryUnavailable.
        """
        for _ in range(MAX_RACES):
            task = self._repository.get(_checked(task_id), owner=owner)
            if task.state.is_terminal or task.cancel_requested_at is not None:
                return
            now = self._clock.now()
            wanted = replace(
                task,
                cancel_requested_at=now,
                state=State.CANCELING if task.state is not State.QUEUED else task.state,
                wake_at=now + FIRST_LOOK,
            )
            if self._repository.save(wanted, seen=task.version):
                self._publish(task.id, Stage.FINISH)
                return
        raise RepositoryUnavailable(f"task {task_id} changes too fast to be canceled; try again")

    def _publish(self, task_id: TaskId, stage: Stage) -> None:
        try:
            self._queue.publish(task_id, stage)
        except QueueUnavailable as error:
            log.warning("publish_failed", extra={"task_id": task_id, "stage": stage.value, "error": str(error)})

    def _ask_for_tail(self, task_id: TaskId) -> None:
        now = self._clock.now()
        asked = self._tails_asked.get(task_id)
        if asked is not None and now - asked < TAIL_EVERY:
            return
        if len(self._tails_asked) >= _MAX_TAILS_REMEMBERED:
            self._tails_asked.clear()
        self._tails_asked[task_id] = now
        self._publish(task_id, Stage.RUN)
