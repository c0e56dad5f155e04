"""`reconcile(task_id)`: load, decide, claim, apply, commit. The only place where a pod is launched, and where an
admitted task moves on unless it is canceled.

Any process may call it at any time, however often. What makes that safe: objects in the cluster have names made from task and
attempt, so creating one twice has the effect of creating it once; the task is saved by compare-and-set, so if two processes make the
same decision only one continues, and the other reads and decides again.

Creating a pod is the only effect that must not be repeated late: after the pod has run and was deleted, its name is free again. So a
launch is claimed first (`Task.launching_at`, by compare-and-set), and made immediately or not at all; another process may claim it again
only when every call that began in time must have ended (docs/adr/0001).

A role applies only effects of its own stages (`acts_for`), which is all that its service account permits. Any role may take steps
without effects.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from poiesis.domain.decide.stages import Decision, Effect, decide, decide_after, needs_observation, plan_of
from poiesis.domain.errors import ClusterRefused, ClusterUnavailable, PoiesisError, Unavailable, UnknownTask
from poiesis.domain.observed import Record
from poiesis.domain.plan import Plan
from poiesis.domain.policy import Policy
from poiesis.domain.states import ROLE_OF, Role, Stage, State
from poiesis.domain.task import Outcome, Task, TaskId, Version
from poiesis.metrics import RECONCILE_CONFLICTS, RECONCILE_SECONDS
from poiesis.observability import bind_task
from poiesis.ports.clock import Clock
from poiesis.ports.cluster import LAUNCH_WITHIN, AcceptsRecords, Cluster
from poiesis.ports.repository import TaskRepository
from poiesis.services.task_metrics import count_saved

log = logging.getLogger(__name__)

CLAIM_FRESH: Final = timedelta(seconds=5)  # how long saving a claim may take
LAUNCH_AFTER: Final = timedelta(seconds=20)  # how long what is created before the pod may take
CLAIM: Final = CLAIM_FRESH + LAUNCH_AFTER + LAUNCH_WITHIN + timedelta(seconds=5)  # then no call of it is under way
MAX_STEPS: Final = 50  # of one call; a task needs fewer than one for each stage and executor pod


def stages_of(role: Role) -> frozenset[Stage]:
    return frozenset(stage for stage, owner in ROLE_OF.items() if owner is role)


class Reason(StrEnum):
    """Why a call of `reconcile` returned."""

    OTHER_ROLE = "other_role"  # the stage that is due belongs to another role
    WAITING = "waiting"  # for the cluster, or for `wake_at`; or nothing is left to do
    CLUSTER_UNAVAILABLE = "cluster_unavailable"  # the cluster could not be observed
    CLAIMED = "claimed"  # another process is launching the pod
    UNSETTLED = "unsettled"  # MAX_STEPS were not enough: a bug, or very many writers


@dataclass(frozen=True)
class Reconciled:
    """How a call left the task, and why it returned. `due`: the stage that another role has to act on now, with OTHER_ROLE only."""

    task: Task
    reason: Reason
    due: Stage | None = None


@dataclass
class _Run:
    """One call of `reconcile`. `stored`: the task as last read or saved. `desired`: where steps without effects have taken it since."""

    stored: Task
    desired: Task
    policy: Policy
    own_stages: frozenset[Stage]
    poked: str | None
    records: Sequence[Record]
    tails: bool
    _plan: Plan | None = field(default=None, init=False)
    _planned_for: tuple[str | None, int] | None = field(default=None, init=False)

    def plan(self) -> Plan:
        """Made once; again only if the task was given another layout or upload meanwhile. Raises: ValueError."""
        wanted = (self.desired.layout, self.desired.uploads)
        if self._plan is None or self._planned_for != wanted:
            self._plan = plan_of(self.desired, self.policy)
            self._planned_for = (self._plan.layout.value, self.desired.uploads)
        return self._plan

    def plan_if_valid(self) -> Plan | None:
        """None for a task that cannot be planned, which must be deleted nevertheless."""
        try:
            return self.plan()
        except ValueError:
            return None


@dataclass(eq=False)
class Orchestrator:
    """`exclusive_since`: since when this process is the only writer of the store, so that older claims are void; None: it is not."""

    repository: TaskRepository
    cluster: Cluster
    clock: Clock
    policy: Policy
    _: KW_ONLY
    exclusive_since: datetime | None = None

    def reconcile(
        self,
        task_id: TaskId,
        acts_for: Iterable[Stage],
        *,
        poked: str | None = None,
        records: Sequence[Record] = (),
        tails: bool = False,
        known: Task | None = None,
    ) -> Reconciled:
        """Move the task as far as possible now.

        `poked`: the nonce of a poke, and `records` what came with it; they are ignored if the nonce is not the task's. `tails`:
        also read the output of running executors. `known`: the task as it once was stored, to begin with instead of reading it; not for
        a role that deletes. If nothing is saved, which would prove that it is current, the task is read and decided about again.
        Raises: UnknownTask, RepositoryUnavailable. An unavailable cluster is not an error: the task waits, and resync repeats the call.
        """
        began = time.perf_counter()
        with bind_task(task_id):
            task = known or self.repository.get(task_id)
            begun = _Run(task, task, self.policy, frozenset(acts_for), poked, records, tails)
            reconciled = self._run(begun)
            if reconciled.task is known and reconciled.reason is not Reason.CLUSTER_UNAVAILABLE:
                task = self.repository.get(task_id)
                reconciled = self._run(replace(begun, stored=task, desired=task))
        RECONCILE_SECONDS.labels(reconciled.reason.value).observe(time.perf_counter() - began)
        return reconciled

    def give_up(self, task_id: TaskId, error: BaseException) -> None:
        """Reconciling met a bug: end the task as SYSTEM_ERROR instead of meeting the bug again."""
        try:
            task = self.repository.get(task_id)
        except UnknownTask:
            return
        retries = task.outcome is not None and task.outcome.retry and task.cancel_requested_at is None
        if task.state.is_terminal or (task.due_stage.is_ending and not retries):
            return
        message = f"unexpected {type(error).__name__} in stage {task.stage.value}: see the service's log"
        now = self.clock.now()
        ended = replace(
            task,
            stage=Stage.FINISH,
            stage_since=now,
            wake_at=now,
            part=None,
            outcome=Outcome(State.SYSTEM_ERROR, "InternalError", message),
        )
        self.repository.save(ended.recorded(now), seen=task.version)

    def _run(self, run: _Run) -> Reconciled:
        for _ in range(MAX_STEPS):
            reconciled = self._step(run)
            if reconciled is not None:
                return reconciled
        log.error("reconcile_did_not_settle", extra={"stage": run.desired.stage.value})
        return Reconciled(run.stored, Reason.UNSETTLED)

    def _step(self, run: _Run) -> Reconciled | None:
        """Decide once and act on it. None: decide again, about what was done or about what another process has saved."""
        stage = run.desired.due_stage
        try:
            decision = self._decide(run)
        except Unavailable as error:
            log.warning("observe_failed", extra={"stage": stage.value, "error": str(error)})
            return Reconciled(run.stored, Reason.CLUSTER_UNAVAILABLE)
        if not decision.effects:
            run.desired = decision.task
            settled = not decision.again and self._settle(run)
            return Reconciled(run.stored, Reason.WAITING) if settled else None
        if stage not in run.own_stages:
            backs_off = self._backs_off(run.desired)
            if not self._settle(run):
                return None
            if backs_off:
                return Reconciled(run.stored, Reason.WAITING)
            return Reconciled(run.stored, Reason.OTHER_ROLE, due=stage)
        if Effect.LAUNCH in decision.effects:
            if self._is_claimed(run.stored):
                return Reconciled(run.stored, Reason.CLAIMED)
            if not self._claim(run):
                return None
        if stage.is_ending and not self._settle(run):  # the result must be saved before its source is deleted
            return None
        decision = self._apply(run, decision)
        if not self._commit(run, decision) or decision.again:
            return None
        return Reconciled(run.stored, Reason.WAITING)

    # ── decide ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _decide(self, run: _Run) -> Decision:
        """Raises: Unavailable when the cluster has to be observed and does not answer."""
        task, now = run.desired, self.clock.now()
        was_poked = run.poked is not None and run.poked == task.poke_nonce
        if was_poked and run.records and isinstance(self.cluster, AcceptsRecords):
            self.cluster.accept_records(task, run.records)
        observed = None
        if needs_observation(task) and not self._ends_now(run, now):
            poked = was_poked and self._are_records_missing(run)
            observed = self.cluster.observe(task, plan=run.plan_if_valid(), poked=poked, tails=run.tails)
        plan = None if task.due_stage.is_ending or task.state.is_terminal else run.plan()
        return decide(task, observed, now, self.policy, plan)

    def _are_records_missing(self, run: _Run) -> bool:
        """Of a poke: whether it came without a record, or from the last container without those of all the others, for which there was no
        room: then they are in the logs."""
        received = {record.name for record in run.records}
        plan = run.plan_if_valid()
        pod = plan.pod(run.desired.part) if plan is not None else None
        return not received or (pod is not None and pod.names[-1] in received and not received.issuperset(pod.names))

    def _ends_now(self, run: _Run, now: datetime) -> bool:
        """Whether the task has only now come to its end, so that everything can be deleted without observing it first. Whether it is gone
        is seen by the process that watches the cluster, or by the next call after `wake_at`."""
        task = run.desired
        if task.due_stage is not Stage.CLEAN:
            return False
        if run.stored.due_stage is not Stage.CLEAN:
            return True
        is_early = task.wake_at is not None and now < task.wake_at
        return is_early and not self.policy.keep and Stage.CLEAN in run.own_stages

    def _backs_off(self, task: Task) -> bool:
        """Whether the cluster did not accept the task's objects, and they are to be created again only at `wake_at`."""
        if task.due_stage.is_ending or task.part is not None or task.waiting is None:
            return False
        return task.wake_at is not None and self.clock.now() < task.wake_at

    # ── claim ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _is_claimed(self, task: Task) -> bool:
        """Whether another process is launching: it saves when it has finished; if it died, resync returns after the claim has expired."""
        if task.launching_at is None:
            return False
        if self.exclusive_since is not None and task.launching_at < self.exclusive_since:
            return False
        return self.clock.now() - task.launching_at < CLAIM

    def _claim(self, run: _Run) -> bool:
        """Whether this process may launch now. A claim that took too long to save is left to expire."""
        begin = time.monotonic()
        saved = self._save(run, replace(run.desired, launching_at=self.clock.now()))
        return saved and time.monotonic() - begin <= CLAIM_FRESH.total_seconds()

    # ── apply ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _apply(self, run: _Run, decision: Decision) -> Decision:
        """Apply the effects. If the cluster does not accept one, the decision becomes to wait, or to give up."""
        task, begin = run.desired, time.monotonic()
        for effect in decision.effects:
            try:
                if effect is Effect.LAUNCH and time.monotonic() - begin > LAUNCH_AFTER.total_seconds():
                    raise ClusterUnavailable("the documents took too long to create")
                self._apply_one(effect, run, decision.task.part)
            except (Unavailable, ClusterRefused) as error:
                extra = {"stage": task.stage.value, "effect": effect.value, "error": str(error)}
                log.warning("effect_failed", extra=extra)
                if task.due_stage.is_ending:  # resync repeats it until it succeeds
                    return Decision(task)
                after = decide_after(task, error, self.clock.now(), self.policy)
                return Decision(after, decision.effects, again=after.due_stage is Stage.FINISH)
        return decision

    def _apply_one(self, effect: Effect, run: _Run, part: str | None) -> None:
        task = run.desired
        match effect:
            case Effect.CREATE_VOLUME:
                self.cluster.create_volume(task, run.plan())
            case Effect.CREATE_DOCUMENTS:
                self.cluster.create_documents(task, run.plan())
            case Effect.LAUNCH:
                pod = run.plan().pod(part)
                if pod is None:
                    raise ClusterRefused(f"the plan has no pod {part!r}")
                self.cluster.launch(task, run.plan(), pod)
            case Effect.DELETE_PODS:
                self.cluster.delete_pods(task.id, task.attempt, run.plan_if_valid())
            case Effect.DELETE_ALL:
                self.cluster.delete_all(task.id, task.attempt, run.plan_if_valid())

    # ── commit ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _commit(self, run: _Run, decision: Decision) -> bool:
        """Save what was decided after its effects. After a lost race, what was created for a task that has ended meanwhile is deleted."""
        created = any(e not in (Effect.DELETE_PODS, Effect.DELETE_ALL) for e in decision.effects)
        before, plan = run.stored, run.plan_if_valid() if created else None
        if self._save(run, replace(decision.task, launching_at=None)):
            return True
        if created and run.stored.due_stage.is_ending:
            try:
                self.cluster.delete_all(before.id, before.attempt, plan)
            except PoiesisError as error:  # the sweep finds it
                log.warning("undo_failed", extra={"error": str(error)})
        return False

    def _settle(self, run: _Run) -> bool:
        """Save steps without effects, if that is up to this process: in its own stage, or where it has observed the cluster."""
        if run.stored.due_stage in run.own_stages or needs_observation(run.stored):
            return self._save(run, run.desired)
        return True

    def _save(self, run: _Run, task: Task) -> bool:
        """Save by compare-and-set. False: another process was first, and `run` continues with what that process has saved."""
        stored = run.stored
        # what was decided before the last save does not have the history of that save
        task = replace(task, version=stored.version, history=stored.history, changes=stored.changes)
        if task == stored:
            run.desired = stored
            return True
        task = task.recorded(self.clock.now())
        if not self.repository.save(task, seen=stored.version):
            RECONCILE_CONFLICTS.inc()
            run.stored = run.desired = self.repository.get(stored.id)
            return False
        count_saved(stored, task)
        extra = {"state": task.state.value, "stage": task.stage.value, "attempt": task.attempt}
        log.info("task_saved", extra=extra)
        run.stored = run.desired = replace(task, version=Version(stored.version + 1))
        return True
