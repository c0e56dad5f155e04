"""`reconcile(task_id)`: load, observe, decide, apply, save. The only place where a stored task is moved on and a pod is launched.

Any process may call it at any time, however often. What keeps that safe: objects in the cluster have names made from task and
attempt, so doing a thing twice is doing it once; the task is saved by compare-and-set, so of two who decided the same only one
goes on, and the other reads again and decides again.

Creating a pod is the one thing that must not be repeated late: after the pod has run and gone, its name is free again. So a launch is
claimed first (`Task.launching_at`, by compare-and-set), and made at once or not at all; another process may claim it anew only when a
call that began in time must long be over.

A role applies effects of its own stages alone (`acts_for`): its service account can do no more. Steps without effects are
taken by whoever meets them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from poiesis.domain.decide import (
    CreateDocuments,
    CreateVolume,
    Decision,
    DeleteAll,
    DeletePods,
    Effect,
    Launch,
    decide,
    decide_after,
    needs_observation,
    plan_of,
)
from poiesis.domain.errors import ClusterRefused, PoiesisError, Unavailable, UnknownTask
from poiesis.domain.observed import Record
from poiesis.domain.plan import Plan
from poiesis.domain.policy import Policy
from poiesis.domain.states import ROLE_OF, Role, Stage, State
from poiesis.domain.task import Outcome, Task, TaskId, Version
from poiesis.observability import TASKS_ENDED
from poiesis.ports.clock import Clock
from poiesis.ports.cluster import AcceptsRecords, Cluster
from poiesis.ports.repository import TaskRepository

log = logging.getLogger(__name__)

CLAIM: Final = timedelta(
    seconds=90
)  # longer than a call to the cluster lasts with all its retries, begun within CLAIM_FRESH
CLAIM_FRESH: Final = timedelta(seconds=5)
MAX_STEPS: Final = 50  # of one call; a task needs fewer than one for each stage and executor pod


def stages_of(role: Role) -> frozenset[Stage]:
    return frozenset(stage for stage, owner in ROLE_OF.items() if owner is role)


@dataclass(frozen=True)
class Reconciled:
    """Where a call left the task. `due`: the stage whose role has to act now; None: it waits for the cluster or its time, or is done."""

    task: Task
    due: Stage | None


class Orchestrator:
    """`alone_since`: from when on nobody but this process works on the store, so that older claims are dead; None: there are others."""

    def __init__(
        self,
        repository: TaskRepository,
        cluster: Cluster,
        clock: Clock,
        policy: Policy,
        *,
        alone_since: datetime | None = None,
    ) -> None:
        self._alone_since = alone_since
        self._repository = repository
        self._cluster = cluster
        self._clock = clock
        self._policy = policy

    def reconcile(
        self,
        task_id: TaskId,
        acts_for: Iterable[Stage],
        *,
        poked: str | None = None,
        heard: Sequence[Record] = (),
        tails: bool = False,
    ) -> Reconciled:
        """Move the task as far as it goes now.

        `poked`: the nonce that came with a poke, and `heard` the records that it brought; a wrong one is ignored.
        `tails`: read running executors' output too.
        Raises: UnknownTask, RepositoryUnavailable. The cluster being away is no error: the task waits and resync comes back.
        """
        mine = frozenset(acts_for)
        stored = desired = self._repository.get(task_id)
        for _ in range(MAX_STEPS):
            stage = desired.due_stage
            try:
                decision = self._decide(stored, desired, mine, poked=poked, heard=heard, tails=tails)
            except Unavailable as error:
                log.warning("observe_failed", extra={"task_id": task_id, "stage": stage.value, "error": str(error)})
                return Reconciled(stored, None)
            if decision.effects and stage not in mine:
                stored, lost = self._settle(stored, desired, mine)
                if not lost:
                    return Reconciled(stored, stage)
                desired = stored
                continue
            if decision.effects:
                if any(isinstance(effect, Launch) for effect in decision.effects):
                    if self._is_claimed(stored):
                        return Reconciled(stored, None)
                    begin = time.monotonic()
                    claimed = replace(desired, launching_at=self._clock.now())
                    stored, lost = self._save(claimed, stored)
                    if lost or time.monotonic() - begin > CLAIM_FRESH.total_seconds():
                        desired = stored
                        continue
                    desired = stored
                if stage.is_ending:  # what is known has to be safe before what it came from goes
                    stored, lost = self._settle(stored, desired, mine)
                    if lost:
                        desired = stored
                        continue
                decision = self._apply(desired, decision)
                if decision.task.launching_at is not None or desired.launching_at is not None:
                    decision = replace(decision, task=replace(decision.task, launching_at=None))
                before = stored
                stored, lost = self._save(decision.task, stored)
                if lost:
                    self._undo(before, decision, stored)
                desired = stored
                if lost:
                    continue
            else:
                desired = decision.task
            if not decision.again:
                stored, lost = self._settle(stored, desired, mine)
                if not lost:
                    return Reconciled(stored, None)
                desired = stored
        log.error("reconcile_did_not_settle", extra={"task_id": task_id, "stage": desired.stage.value})
        return Reconciled(stored, None)

    def _is_claimed(self, task: Task) -> bool:
        """Whether another process is just launching: it saves when it has; if it died, resync comes back when the claim has run out."""
        if task.launching_at is None or (self._alone_since is not None and task.launching_at < self._alone_since):
            return False
        return self._clock.now() - task.launching_at < CLAIM

    def give_up(self, task_id: TaskId, error: BaseException) -> None:
        """A bug met while reconciling: end the task as SYSTEM_ERROR instead of meeting it for ever."""
        try:
            task = self._repository.get(task_id)
        except UnknownTask:
            return
        repeats = task.outcome is not None and task.outcome.retry and task.cancel_requested_at is None
        if task.state.is_terminal or (task.due_stage.is_ending and not repeats):
            return
        message = f"{type(error).__name__} in stage {task.stage.value}; the service's log has the trace"
        now = self._clock.now()
        ended = replace(
            task,
            stage=Stage.FINISH,
            stage_since=now,
            wake_at=now,
            part=None,
            outcome=Outcome(State.SYSTEM_ERROR, "InternalError", message),
        )
        self._repository.save(ended, seen=task.version)

    def _decide(
        self,
        stored: Task,
        task: Task,
        mine: frozenset[Stage],
        *,
        poked: str | None,
        heard: Sequence[Record],
        tails: bool,
    ) -> Decision:
        """Raises: Unavailable when the cluster had to be observed and could not."""
        was_poked = poked is not None and poked == task.poke_nonce
        if was_poked and heard and isinstance(self._cluster, AcceptsRecords):
            self._cluster.accept_records(task, heard)
        observed = None
        now = self._clock.now()
        if needs_observation(task) and not self._is_all_there(stored, task, mine, now):
            observed = self._cluster.observe(task, poked=was_poked and not heard, tails=tails)
        return decide(task, observed, now, self._policy)

    def _is_all_there(self, stored: Task, task: Task, mine: frozenset[Stage], now: datetime) -> bool:
        """Whether a task is at its end for the first time, so that everything can be removed without a look. Whether it has gone, those
        see that follow the cluster, or whoever comes when the time for it is over."""
        if task.due_stage is not Stage.CLEAN:
            return False
        is_first = task.wake_at is not None and now < task.wake_at and not self._policy.keep
        return task is not stored or (is_first and Stage.CLEAN in mine)

    def _apply(self, task: Task, decision: Decision) -> Decision:
        """Do what was decided. Where the cluster does not take it, the decision becomes to wait, or to give up."""
        try:
            for effect in decision.effects:
                self._do(effect, task)
        except (Unavailable, ClusterRefused) as error:
            extra = {
                "task_id": task.id,
                "stage": task.stage.value,
                "effect": type(effect).__name__,
                "error": str(error),
            }
            log.warning("effect_failed", extra=extra)
            if task.due_stage.is_ending:  # tried again for ever, by resync
                return Decision(task)
            after = decide_after(task, error, self._clock.now(), self._policy)
            return Decision(after, decision.effects, again=after.due_stage is Stage.FINISH)
        return decision

    def _do(self, effect: Effect, task: Task) -> None:
        match effect:
            case CreateVolume():
                self._cluster.create_volume(task, plan_of(task, self._policy))
            case CreateDocuments():
                self._cluster.create_documents(task, plan_of(task, self._policy))
            case Launch(part):
                plan = plan_of(task, self._policy)
                pod = plan.pod(part)
                if pod is None:
                    raise ClusterRefused(f"the plan has no pod {part!r}")
                self._cluster.launch(task, plan, pod)
            case DeletePods():
                self._cluster.delete_pods(task.id, task.attempt, self._plan_if_valid(task))
            case DeleteAll():
                self._cluster.delete_all(task.id, task.attempt, self._plan_if_valid(task))

    def _plan_if_valid(self, task: Task) -> Plan | None:
        """None for a task that cannot be planned, which must be deleted nevertheless."""
        try:
            return plan_of(task, self._policy)
        except ValueError:
            return None

    def _settle(self, stored: Task, desired: Task, mine: frozenset[Stage]) -> tuple[Task, bool]:
        """Save steps taken without effects, where this process is the one to: its own stage, or one that it alone has observed."""
        if stored.due_stage in mine or needs_observation(stored):
            return self._save(desired, stored)
        return stored, False

    def _save(self, desired: Task, stored: Task) -> tuple[Task, bool]:
        """The task as stored now, and whether somebody else was first."""
        if replace(desired, version=stored.version) == stored:
            return stored, False
        if not self._repository.save(desired, seen=stored.version):
            return self._repository.get(stored.id), True
        if desired.state.is_terminal and not stored.state.is_terminal:
            TASKS_ENDED.labels(desired.state.value).inc()
        extra = {
            "task_id": desired.id,
            "state": desired.state.value,
            "stage": desired.stage.value,
            "attempt": desired.attempt,
        }
        log.info("task_saved", extra=extra)
        return replace(desired, version=Version(stored.version + 1)), False

    def _undo(self, before: Task, decision: Decision, now_stored: Task) -> None:
        """After a lost race: what was made for a task that meanwhile came to its end must not stay."""
        made = any(isinstance(e, Launch | CreateVolume | CreateDocuments) for e in decision.effects)
        if made and now_stored.due_stage.is_ending:
            try:
                self._cluster.delete_all(before.id, before.attempt, self._plan_if_valid(before))
            except PoiesisError as error:  # the sweep finds it
                log.warning("undo_failed", extra={"task_id": before.id, "error": str(error)})
