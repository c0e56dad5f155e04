"""Admit queued tasks: one elected process decides, and no quota is passed whatever is killed, even with two of them (docs/adr/0014).

A round is written before it is carried out: the note `admission` has the ids of the tasks of the last round, and is replaced by
compare-and-set. The process that writes the next round has seen this one: it first admits what is still missing of it, then reads what is
in flight, then decides. So each round is decided about all tasks that earlier rounds have admitted, and of two admitters one loses the
write and reads everything again. A task is admitted by compare-and-set on its version, in the attempt that the round names, and at most
once.

While this process has written the last round, no other admits, so what it holds in memory is what is in flight, or more: tasks that have
ended are reported by the monitor, and found by a look at the store's index every few seconds.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final, NamedTuple

from poiesis.domain.decide.admission import admit, is_held, is_queued, refuse
from poiesis.domain.decide.stages import plan_of
from poiesis.domain.errors import PoiesisError, QueueUnavailable, UnknownTask
from poiesis.domain.fair_share import SITE, Account, Blocked, Candidate, Ledger, Pool, QueueKey, decide, ordinal, why
from poiesis.domain.plan import first_stages
from poiesis.domain.policy import Policy
from poiesis.domain.quotas import Amount, Caps
from poiesis.domain.states import Stage
from poiesis.domain.task import Task, TaskId
from poiesis.metrics import (
    ADMISSION_FULL,
    ADMISSION_HELD,
    ADMISSION_LIMIT,
    ADMISSION_ROUND,
    ADMISSION_WAIT,
    ADMISSIONS,
    known_class,
)
from poiesis.observability import bind_task
from poiesis.ports.admission import AdmissionStore
from poiesis.ports.clock import Clock
from poiesis.ports.queue import Queue as LinkQueue
from poiesis.ports.repository import TaskRepository
from poiesis.services.waiting_queues import WaitingQueues

log = logging.getLogger(__name__)

ROUND: Final = "admission"
REPORT: Final = "admission_report"
BATCH: Final = 64  # tasks of a round
HELD_PAGE: Final = 1000
POLL_S: Final = 0.2
APART_S: Final = 0.1
IDLE_SHARE: Final = 4  # rounds begin this many times as far apart as a decision takes of a processor
IDLE_POLL_S: Final = 5.0  # without quotas, only tasks of another configuration can be queued
DECIDE: Final = timedelta(seconds=1)  # how often it is decided although nothing has changed but the time
LOOK: Final = timedelta(seconds=5)  # how often the store is asked which tasks are in flight
REPORT_EVERY: Final = timedelta(seconds=1)
MAX_USERS: Final = 10_000  # whose past usage is remembered
MAX_POOLS: Final = 10_000  # in the report
MAX_PLACE: Final = 1000
MAX_SHOWN: Final = 50  # pools
MAX_RACES: Final = 20
MAX_HINTS: Final = 100_000


@dataclass(eq=False)
class Admitter:
    """`wake` and `ended` may be called from any thread, the rest by one at a time. Rounds begin at least `apart_s` seconds one after the
    other: tasks that end meanwhile share one."""

    repository: TaskRepository
    store: AdmissionStore
    queue: LinkQueue
    clock: Clock
    policy: Policy
    _: KW_ONLY
    poll_s: float = POLL_S
    apart_s: float = APART_S
    look_every: timedelta = LOOK
    hold: Callable[[threading.Event], Collection[str]] = lambda closed: ()
    """Called before each round but the first; may return later, but soon after the event is set. The round admits no tasks of the users
    that it returns."""

    def __post_init__(self) -> None:
        self._ledger: Ledger | None = None  # None: to be read
        self._version = 0
        self._pending: list[tuple[str, int]] = []
        self._queues = WaitingQueues(self.store)
        self._waited: Collection[str] = ()
        self._has_room = True  # for all that is known, something has ended since the last decision
        self._nothing_fits = False  # of what is in memory
        self._decision_s = 0.0
        self._decided_at = self._looked_at = self._reported_at = datetime.min.replace(tzinfo=self.clock.now().tzinfo)
        self._reported = ""
        self._ended: set[TaskId] = set()
        self._hints = threading.Lock()
        self._woken = threading.Event()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="admission", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        self._woken.set()

    def ended(self, task_id: TaskId) -> None:
        """The task's state is final. Without quotas it makes room for none that waits, and each round reads the store."""
        if not self.policy.admission.is_enabled:
            return
        with self._hints:
            if len(self._ended) < MAX_HINTS:
                self._ended.add(task_id)
        self._woken.set()

    def close(self) -> None:
        self._closed.set()
        self._woken.set()
        if self._thread.is_alive():
            self._thread.join(10)

    def _work(self) -> None:
        pause = self.poll_s if self.policy.admission.is_enabled else IDLE_POLL_S
        waiting: Collection[str] = ()
        while not self._closed.is_set():
            begin = time.monotonic()
            try:
                admitted = self.run_once(waiting)
            except PoiesisError as error:
                log.warning("admission_failed", extra={"error": str(error)})
                admitted = 0
                time.sleep(min(pause, 1.0))
            except Exception:
                log.exception("admission_bug")
                self._ledger = None
                admitted = 0
                time.sleep(1.0)
            if admitted < BATCH:
                self._woken.wait(pause)
                apart_s = max(self.apart_s, IDLE_SHARE * self._decision_s)
                self._closed.wait(max(begin + apart_s - time.monotonic(), 0))
            waiting = self.hold(self._closed)
            self._woken.clear()

    def run_once(self, waiting: Collection[str] = ()) -> int:
        """Do one round; return how many tasks it admitted, none of them of a user in `waiting`.

        Raises: RepositoryUnavailable; the next call continues.
        """
        with ADMISSION_ROUND.time():
            return self._round(self.clock.now(), waiting)

    def _round(self, now: datetime, waiting: Collection[str]) -> int:
        ledger = self._ledger or self._load(now)
        self._carry_out(ledger, now)
        self._release_ended(ledger, now)
        admitted = [] if ledger.is_full() else self._decide(ledger, now, waiting)
        if admitted:
            if not self._write_round(ledger, admitted):
                return 0
            self._carry_out(ledger, now)
        self._report(ledger, now)
        return len(admitted)

    def _decide(self, ledger: Ledger, now: datetime, waiting: Collection[str]) -> list[Candidate]:
        """Nothing is decided again as long as nothing has changed."""
        begin = time.thread_time()
        check = partial(self._check, ledger, now)
        self._queues.read(check)
        while not self._queues.is_complete:  # after a start: tasks that have waited long must be seen
            self._queues.read(check)
        if self._nothing_fits:
            self._queues.look_further(check)
        is_due = abs(now - self._decided_at) >= DECIDE
        if not (is_due or self._has_room or self._queues.has_changed or waiting != self._waited):
            return []
        queues = [queue for queue in self._queues.queues() if queue.key.user not in waiting]
        others = [queue for queue in self._queues.queues() if queue.key.user in waiting]
        firsts = [q.heads[0].id for q in others if q.heads]
        blocked = {task_id: ledger.blocked[task_id] for task_id in firsts if task_id in ledger.blocked}
        admitted = decide(ledger, queues, now, limit=BATCH)
        ledger.blocked |= blocked  # their turn is not over
        self._nothing_fits = len(admitted) < BATCH
        self._has_room = self._queues.has_changed = not self._nothing_fits
        self._waited, self._decided_at = waiting, now
        self._decision_s = time.thread_time() - begin
        return admitted

    # ── rounds ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _load(self, now: datetime) -> Ledger:
        """Read the last round, complete it, and only then read what is in flight."""
        note = self.store.read_note(ROUND)
        last = json.loads(note.text) if note.text else {"pending": [], "used": {}, "blocked": {}}
        ledger = Ledger(self.policy.admission)
        ledger.accounts = {user: Account(Amount(), tuple(used), now) for user, used in last["used"].items()}
        waits = {TaskId(i): datetime.fromisoformat(since) for i, since in last["blocked"].items()}
        ledger.blocked = {task_id: Blocked(since, since) for task_id, since in waits.items()}
        self._version, self._pending = note.version, [(i, attempt) for i, attempt in last["pending"]]
        self._queues, self._has_room = WaitingQueues(self.store), True
        self._carry_out(ledger, now)
        self._look(ledger, now)
        self._ledger = ledger
        log.info("admission_loaded", extra={"in_flight": len(ledger.held), "round": note.version})
        return ledger

    def _write_round(self, ledger: Ledger, admitted: Sequence[Candidate]) -> bool:
        """False: another admitter has written one, and everything has to be read again."""
        pending = [(str(c.id), c.attempt) for c in admitted]
        ledger.forget_idle(self.clock.now())
        used = {user: account.used for user, account in list(ledger.accounts.items())[:MAX_USERS]}
        waits = ((task_id, blocked.shared_since) for task_id, blocked in ledger.blocked.items())
        blocked = {task_id: since.isoformat() for task_id, since in waits if since is not None}
        text = json.dumps({"pending": pending, "used": used, "blocked": blocked})
        self._ledger = None  # also if it is not known whether the note was written
        if not self.store.write_note(ROUND, text, seen=self._version):
            log.warning("admission_round_lost", extra={"round": self._version})
            return False
        self._ledger, self._version, self._pending = ledger, self._version + 1, pending
        return True

    def _carry_out(self, ledger: Ledger, now: datetime) -> None:
        """Admit what is left of the last round. Raises: RepositoryUnavailable; then the rest is admitted by the next call."""
        if not self._pending:
            return
        for task_id, attempt in self._pending:
            task = self._admit(TaskId(task_id), attempt)
            if task is None or not is_held(task):  # canceled meanwhile
                self._release(ledger, TaskId(task_id), now)
        self._pending = []

    def _admit(self, task_id: TaskId, attempt: int) -> Task | None:
        """Return the task as it is afterwards, by whichever process."""
        with bind_task(task_id):
            for _ in range(MAX_RACES):
                try:
                    task = self.repository.get(task_id)
                except UnknownTask:
                    return None
                if not is_queued(task) or task.attempt != attempt:
                    return task
                now = self.clock.now()
                admitted = admit(task, now).recorded(now)
                if self.repository.save(admitted, seen=task.version):
                    self._count(admitted, "admitted", now - (task.stage_since or task.created_at))
                    self._publish(admitted)
                    return admitted
        raise PoiesisError(f"task {task_id} is changing too often")

    def _count(self, task: Task, decision: str, waited: timedelta | None = None) -> None:
        service_class = known_class(task.claim.service_class if task.claim else "", self.policy.admission.class_names)
        ADMISSIONS.labels(service_class, decision).inc()
        if waited is not None:
            ADMISSION_WAIT.labels(service_class).observe(max(0.0, waited.total_seconds()))

    def _publish(self, task: Task) -> None:
        try:
            if task.stage is Stage.PREPARE and task.attempt == 1:
                self.queue.begin(task.id, first_stages(plan_of(task, self.policy)), owner=task.owner)
            else:
                self.queue.publish(task.id, task.stage, owner=task.owner)
        except QueueUnavailable as error:  # resync publishes
            log.warning("publish_failed", extra={"stage": task.stage.value, "error": str(error)})

    # ── what is in flight ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _release_ended(self, ledger: Ledger, now: datetime) -> None:
        with self._hints:
            ended, self._ended = self._ended, set()
        for task_id in ended:
            self._release(ledger, task_id, now)
        if abs(now - self._looked_at) >= self.look_every:  # also if the clock was set back
            self._look(ledger, now)

    def _look(self, ledger: Ledger, now: datetime) -> None:
        found: set[TaskId] = set()
        after: TaskId | None = None
        while True:
            page = self.store.held(after, limit=HELD_PAGE)
            for task_id, claim in page:
                found.add(task_id)
                ledger.hold(task_id, claim, now)
            if len(page) < HELD_PAGE:
                break
            after = page[-1][0]
        for task_id in ledger.held.keys() - found:
            self._release(ledger, task_id, now)
        self._looked_at = now

    def _release(self, ledger: Ledger, task_id: TaskId, now: datetime) -> None:
        self._has_room |= ledger.release(task_id, now)

    def _check(self, ledger: Ledger, now: datetime, candidate: Candidate) -> Candidate | None:
        """End a task that has become larger than a quota."""
        rules = self.policy.admission
        self._release(ledger, candidate.id, now)  # it was in flight, and waits again for more
        claim = replace(candidate.claim, amount=rules.clamped(candidate.claim.amount))
        problem = ledger.never_fits(claim)
        if problem is None:
            return replace(candidate, claim=claim)
        task = self.repository.get(candidate.id)
        refused = refuse(task, problem, now).recorded(now)
        if is_queued(task) and self.repository.save(refused, seen=task.version):
            self._count(refused, "refused")
            self._publish(refused)
        return None

    # ── report ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _report(self, ledger: Ledger, now: datetime) -> None:
        """Publish what is held, for `WaitingReasons`. Nothing depends on it, so the last writer wins."""
        if abs(now - self._reported_at) < REPORT_EVERY or not self.policy.admission.is_enabled:
            return
        self._reported_at = now
        self._measure(ledger)
        text = json.dumps([(pool, amount) for pool, amount in list(ledger.sums.items())[:MAX_POOLS]])
        if text != self._reported:
            self.store.write_note(REPORT, text, seen=self.store.read_note(REPORT).version)
            self._reported = text

    def _measure(self, ledger: Ledger) -> None:
        held = ledger.sums.get(SITE, Amount())
        for resource, value, limit in zip(Amount._fields, held, self.policy.admission.site.caps, strict=True):
            ADMISSION_HELD.labels(resource).set(value)
            if limit is not None:
                ADMISSION_LIMIT.labels(resource).set(limit)
        ADMISSION_FULL.set(ledger.is_full())


class PoolUse(NamedTuple):
    """What tasks in flight hold of a quota. `share`: of the site, the largest part of any of its caps; None: the site has no cap.
    `weight` None: it has none of its own."""

    pool: Pool
    held: Amount
    caps: Caps
    share: float | None
    weight: float | None


class WaitingReasons:
    """Why a queued task waits, and its place in its queue: computed for each reader from the admitter's report, never written."""

    def __init__(self, store: AdmissionStore, clock: Clock, policy: Policy) -> None:
        self._store = store
        self._clock = clock
        self._policy = policy
        self._ledger: tuple[datetime, Ledger] | None = None

    def show(self, task: Task, *, place: bool = True) -> Task:
        """The task with its reason, if it waits for admission. Raises: RepositoryUnavailable."""
        if task.claim is None or not is_queued(task):
            return task
        text = why(self._current(), task.claim)
        if place:
            queue = QueueKey(task.claim.user, task.claim.service_class)
            before = self._store.place(queue, task.id, most=MAX_PLACE)
            where = f"{ordinal(before + 1)}" if before < MAX_PLACE else f"after more than {MAX_PLACE - 1} others"
            text = f"{where} in your queue; {text}"
        text = f"Queued: {text}"
        metadata: dict[str, Any] = {**task.log.metadata, "waiting_reason": text}
        since = task.stage_since or task.created_at
        return replace(task, waiting=text, waiting_since=since, log=replace(task.log, metadata=metadata))

    def pools(self, user: str | None, groups: Sequence[str]) -> list[PoolUse]:
        """The quotas of a user and of `groups`; user None: all that hold something, and the site's. Raises: RepositoryUnavailable."""
        ledger, rules = self._current(), self._policy.admission
        if user is None:
            order = {"site": 0, "class": 1, "group": 2, "user": 3}
            held = {pool for pool, amount in ledger.sums.items() if amount != Amount()} - {SITE}
            found = [SITE, *sorted(held, key=lambda p: (order[p.kind], -ledger.sum(p).tasks, p.name))]
        else:
            found = [Pool("user", user), *(Pool("group", group) for group in rules.groups_with_caps(groups))]
        shown = []
        for pool in found[:MAX_SHOWN]:
            sums = ledger.sum(pool)
            parts = [held / max(cap, 1) for held, cap in zip(sums, rules.site.caps, strict=True) if cap is not None]
            weight = rules.weight(pool.name, groups if user else ()) if pool.kind == "user" else None
            shown.append(PoolUse(pool, sums, ledger.caps(pool), max(parts, default=None), weight))
        return shown

    def held(self) -> Amount:
        """By all tasks in flight together. Raises: RepositoryUnavailable."""
        return self._current().sum(SITE)

    def _current(self) -> Ledger:
        now = self._clock.now()
        if self._ledger is None or now - self._ledger[0] >= REPORT_EVERY:
            text = self._store.read_note(REPORT).text
            sums = {Pool(*pool): Amount(*amount) for pool, amount in (json.loads(text) if text else ())}
            self._ledger = now, Ledger(self._policy.admission, sums)
        return self._ledger[1]
