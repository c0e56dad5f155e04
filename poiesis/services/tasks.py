"""Create, get, list and cancel tasks: the use cases of API, CLI and dashboard.

A task is stored before it is published, so an id that was returned is never lost; resync publishes what was not published.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final

from poiesis import tracing
from poiesis.domain.access import Access
from poiesis.domain.decide.admission import cancel_at_once, check_admissible, claim_of, enqueue, notes_on_size
from poiesis.domain.decide.stages import plan_of
from poiesis.domain.entitlements import check_entitlements
from poiesis.domain.errors import Conflict, Forbidden, QueueUnavailable, RepositoryUnavailable
from poiesis.domain.naming import checked_task_id, is_task_id, new_task_id
from poiesis.domain.plan import first_stages
from poiesis.domain.policy import Policy
from poiesis.domain.states import Stage, State
from poiesis.domain.task import Task, TaskId, TaskLog, TaskSpec, TaskSummary, View
from poiesis.domain.validate import check
from poiesis.metrics import TASKS_CREATED
from poiesis.observability import bind_task
from poiesis.ports.clock import Clock
from poiesis.ports.idempotency import IdempotencyKey, IdempotencyStore, Reservation
from poiesis.ports.queue import Queue
from poiesis.ports.repository import Page, TaskFilter, TaskRepository
from poiesis.services.admission import WaitingReasons
from poiesis.services.task_metrics import count_saved

log = logging.getLogger(__name__)

FIRST_WAKE_UP: Final = timedelta(seconds=20)  # resync publishes again a task that no role has taken by then
MAX_RACES: Final = 20
TAIL_EVERY: Final = timedelta(seconds=2)  # how often readers of one task cause its live output to be read
_MAX_TAILS: Final = 10_000


@dataclass(eq=False)
class TaskService:
    repository: TaskRepository
    queue: Queue
    clock: Clock
    policy: Policy
    idempotency: IdempotencyStore | None = None
    reasons: WaitingReasons | None = None
    """None: tasks do not wait for admission."""
    on_queued: Callable[[], None] = lambda: None
    """Called after a task was stored that waits for admission."""
    creating: Callable[[str], AbstractContextManager[object]] = nullcontext
    """Entered with the name of its user while a task is being created."""
    on_close: Callable[[], None] = lambda: None
    """Called when no more tasks will be created by this process."""
    _tail_requests: dict[TaskId, datetime] = field(default_factory=dict, init=False)

    def create(
        self,
        spec: TaskSpec,
        *,
        owner: str | None = None,
        groups: Sequence[str] = (),
        notes: Sequence[str] = (),
        key: IdempotencyKey | None = None,
    ) -> TaskId:
        """Check, store and publish a task, which its owner and members of `groups` may see. `notes` are the first lines of its system log.

        `key`: requests with the same key of the same owner create one task, and all return its id; a request that was interrupted
        is completed by the next one.
        Raises: InvalidTask (nothing was stored), Conflict if the key was used for another task, RepositoryUnavailable (it may have been
        stored).
        """
        with self.creating(owner or ""):
            return self._create(spec, owner, groups, notes, key)

    def _create(
        self,
        spec: TaskSpec,
        owner: str | None,
        groups: Sequence[str],
        notes: Sequence[str],
        key: IdempotencyKey | None,
    ) -> TaskId:
        spec, found = self.check(spec, owner=owner, groups=groups)
        now = self.clock.now()
        task = Task(
            id=new_task_id(now),
            spec=spec,
            created_at=now,
            stage_since=now,
            wake_at=now + FIRST_WAKE_UP,
            nonce=secrets.token_hex(8),
            owner=owner,
            groups=tuple(groups),
            log=TaskLog(system_logs=(*notes, *found)),
            trace=tracing.of_new_task(),
        )
        plan, rules = plan_of(task, self.policy), self.policy.admission
        if rules.is_enabled:
            task = enqueue(task, claim_of(task, plan, rules, groups), rules)
        if key is not None:  # last, since a task that is refused must not use up its key
            reserved = self._reserve(key, owner, task.id, now)
            if reserved.task_id != task.id and self.repository.states([reserved.task_id]):
                return reserved.task_id
            # either new, or reserved by a request that has not stored its task yet: the same task, so only one is stored
            task = replace(task, id=reserved.task_id, created_at=reserved.at)
        self.repository.add(task.recorded(task.created_at))
        TASKS_CREATED.inc()
        if rules.is_enabled:
            self.on_queued()
            return task.id
        stages = first_stages(plan)
        with bind_task(task.id), self._tolerating_an_unavailable_queue(stages[0]):
            self.queue.begin(task.id, stages, owner=owner)
        return task.id

    def _reserve(self, key: IdempotencyKey, owner: str | None, task_id: TaskId, now: datetime) -> Reservation:
        assert self.idempotency is not None, "bootstrap sets it"
        reserved = self.idempotency.reserve(owner, key, task_id, now)
        if reserved.digest != key.digest:
            raise Conflict(
                f"the idempotency key {key.key[:100]!r} was used for another task, {reserved.task_id}: use a new key for each task"
            )
        return reserved

    def check(
        self, spec: TaskSpec, *, owner: str | None = None, groups: Sequence[str] = ()
    ) -> tuple[TaskSpec, tuple[str, ...]]:
        """The spec that would be stored, and notes: what was dropped from it, and that it is too large. Raises: InvalidTask."""
        spec, dropped = check(spec, self.policy)
        check_entitlements(spec, self.policy, owner, groups)
        check_admissible(spec, self.policy.admission, owner, groups)
        return spec, (*dropped, *notes_on_size(spec, self.policy.admission))

    def states(self, task_ids: Sequence[str], *, access: Access | None = None) -> Mapping[TaskId, State]:
        """The states of the tasks that exist and that `access` allows."""
        return self.repository.states([TaskId(i) for i in task_ids if is_task_id(i)], access=access)

    def get(self, task_id: str, view: View, *, access: Access | None = None) -> Task | TaskSummary:
        """Reading a running task in FULL also requests its live output. Raises: UnknownTask, also where `access` does not allow it."""
        if view is View.MINIMAL:
            return self.repository.summary(checked_task_id(task_id), access=access)
        task = self.repository.get(checked_task_id(task_id), view, access=access)
        if view is View.FULL and task.state is State.RUNNING:
            self._request_tail(task)
        return task if self.reasons is None else self.reasons.show(task)

    def list(self, where: TaskFilter, *, limit: int, after: TaskId | None, view: View) -> Page:
        page = self.repository.list(where, limit=limit, after=after, view=view)
        if self.reasons is None or view is View.MINIMAL:
            return page
        shown = (t if isinstance(t, TaskSummary) else self.reasons.show(t, place=False) for t in page.tasks)
        return replace(page, tasks=tuple(shown))

    def cancel(self, task_id: str, *, access: Access | None = None) -> bool:
        """Request cancellation. False: nothing has changed, since the task has ended or is being canceled.

        Raises: UnknownTask, Forbidden for a member of the task's groups if the site does not allow it, RepositoryUnavailable.
        """
        for _ in range(MAX_RACES):
            task = self.repository.get(checked_task_id(task_id), access=access)
            self._check_may_cancel(task, access)
            if task.state.is_terminal or task.cancel_requested_at is not None:
                return False
            now = self.clock.now()
            canceled = cancel_at_once(task, now)
            if canceled is not None:
                if self.repository.save(canceled.recorded(now), seen=task.version):
                    count_saved(task, canceled)
                    return True
                continue
            wanted = replace(task, cancel_requested_at=now, state=State.CANCELING, wake_at=now + FIRST_WAKE_UP)
            if self.repository.save(wanted.recorded(now), seen=task.version):
                self._publish(task, Stage.FINISH)
                return True
        raise RepositoryUnavailable(f"cannot cancel task {task_id} because it is changing too often: try again")

    def _check_may_cancel(self, task: Task, access: Access | None) -> None:
        if access is not None and not access.owns(task.owner) and not self.policy.group_may_cancel:
            raise Forbidden(
                f"task {task.id} belongs to another member of your group: only its owner or an administrator may cancel it"
            )

    def _publish(self, task: Task, stage: Stage) -> None:
        with bind_task(task.id), self._tolerating_an_unavailable_queue(stage):
            self.queue.publish(task.id, stage, owner=task.owner)

    @contextmanager
    def _tolerating_an_unavailable_queue(self, stage: Stage) -> Iterator[None]:
        try:
            yield
        except QueueUnavailable as error:  # resync publishes
            log.warning("publish_failed", extra={"stage": stage.value, "error": str(error)})

    def _request_tail(self, task: Task) -> None:
        now = self.clock.now()
        asked = self._tail_requests.get(task.id)
        if asked is not None and now - asked < TAIL_EVERY:
            return
        if len(self._tail_requests) >= _MAX_TAILS:
            self._tail_requests.clear()
        self._tail_requests[task.id] = now
        self._publish(task, Stage.RUN)
