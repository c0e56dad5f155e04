"""What wakes `reconcile`: changes in the cluster, pokes, and the clock.

`Monitor` feeds a `WorkQueue` from the cluster's events and pokes, publishes links that other roles have to run, and has three loops:
resync publishes overdue tasks, the sweep deletes objects without a task, and expired tasks are purged from the store. Everything it keeps
in memory may be lost: resync finds it again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, TypeVar

from poiesis import tracing
from poiesis.domain.errors import PoiesisError, QueueUnavailable, Unavailable, UnknownTask
from poiesis.domain.observed import Record
from poiesis.domain.records import parse_poke
from poiesis.domain.states import ROLE_OF, Role, Stage, State
from poiesis.domain.task import Task, TaskId, Version, View
from poiesis.metrics import LEAKED, LEAKS_FOUND, LEAKS_REMOVED, LOOP_FAILURES, LOOP_SUCCESS
from poiesis.ports.clock import Clock
from poiesis.ports.cluster import FollowedCluster, ReportsStarting
from poiesis.ports.queue import Queue
from poiesis.ports.repository import TaskFilter, TaskRepository
from poiesis.services.admission import Admitter
from poiesis.services.capacity import REPORT_EVERY, CapacityReport
from poiesis.services.deferred_cleanup import DeferredCleanup
from poiesis.services.logs import LogRetention
from poiesis.services.orchestrator import Orchestrator
from poiesis.services.recent_tasks import RecentTasks
from poiesis.services.work_queue import WorkQueue

log = logging.getLogger(__name__)

Key = TypeVar("Key")
Value = TypeVar("Value")

MONITORED: Final = frozenset({Stage.RUN})  # stages whose effects the monitor applies itself
RESYNC: Final = "resync"  # as the owner of links: whose they are is not read, and thousands must not delay a newcomer's
RESYNC_BATCH: Final = 500
RESYNC_ALL: Final = 100_000
REPUBLISH: Final = timedelta(seconds=15)  # a published link has this long to run before it is published again
PURGE_EVERY: Final = timedelta(minutes=10)
PURGE_BATCH: Final = 20
PURGE_PAUSE_S: Final = 0.1  # between batches (docs/performance.md)
SWEEP_EVERY: Final = timedelta(minutes=5)
MAX_RECORDS_BYTES: Final = 32 * 1024 * 1024  # of records that came with pokes and wait for reconcile, in memory
RECORD_BYTES: Final = 2048  # of a parsed record and its keys, besides its texts
BYTES_PER_CHARACTER: Final = 4  # of a Python string at worst
MAX_REPUBLISH: Final = timedelta(minutes=5)  # the longest time between two publications of the same link
LOST_LINKS: Final = 3  # publications before that time begins to double
MAX_PUBLISHED: Final = 100_000
MAX_PASSED_OVER: Final = 8  # times an overdue link is not published because its queue most likely holds it


@dataclass(eq=False)
class Monitor:
    orchestrator: Orchestrator
    repository: TaskRepository
    queue: Queue
    cluster: FollowedCluster
    clock: Clock
    _: KW_ONLY
    threads: int
    resync_every: timedelta
    retention: timedelta | None = None
    log_retention: LogRetention | None = None
    settle: timedelta = timedelta(0)
    admitter: Admitter | None = None
    capacity: CapacityReport | None = None

    def __post_init__(self) -> None:
        self._work = WorkQueue(self._reconcile, self.threads, settle=self.settle)
        # records that came with pokes, with their size, until reconcile takes them
        self._records: dict[tuple[TaskId, str], list[tuple[int, tuple[Record, ...]]]] = {}
        self._records_bytes = 0
        self._records_lock = threading.Lock()
        self._recent = RecentTasks()
        # how often resync has published a link without any change of its task
        self._published: OrderedDict[tuple[TaskId, Stage], int] = OrderedDict()
        self._passed_over: OrderedDict[tuple[TaskId, Stage], int] = OrderedDict()
        # the last publication of each task: the events of its pod find the same stage due repeatedly
        self._last: OrderedDict[TaskId, tuple[Version, Stage, datetime]] = OrderedDict()
        self._last_lock = threading.Lock()
        self._starts = self.cluster if isinstance(self.cluster, ReportsStarting) else None
        starting = self._starts.starting if self._starts is not None else tuple
        self._cleanup = DeferredCleanup(
            lambda task_id, owner: self.queue.publish(task_id, Stage.CLEAN, owner=owner), starting
        )
        self._leads = False
        self._stop = threading.Event()
        self._loops: list[threading.Thread] = []

    def listen(self) -> None:
        """Start handling wake-ups; a monitor that does not lead needs only this, since pokes may reach it too."""
        self._work.start()
        self._cleanup.start()

    def start(self) -> None:
        """Start to lead: watch the cluster, resync, sweep, purge."""
        self._leads = True
        loops = [(self.resync, self.resync_every), (self.sweep, SWEEP_EVERY), (self.purge_expired, PURGE_EVERY)]
        loops += [(self.log_retention.purge, PURGE_EVERY)] if self.log_retention is not None else []
        loops += [(self.capacity.report_capacity, REPORT_EVERY)] if self.capacity is not None else []
        for target, every in loops:
            thread = threading.Thread(target=self._repeat, args=(target, every), name=target.__name__, daemon=True)
            thread.start()
            self._loops.append(thread)
        if self.admitter is not None:
            self.admitter.start()
        self.cluster.follow(self._changed)

    def poke(self, task_id: TaskId, nonce: str, body: bytes = b"") -> None:
        """A container reports its end; `body` may be its record and those of its pod's other containers. User code can forge them, but only
        for its own task."""
        records = parse_poke(body)
        if records:
            size = RECORD_BYTES * len(records) + BYTES_PER_CHARACTER * len(body)
            with self._records_lock:
                self._records_bytes += size
                if self._records_bytes > MAX_RECORDS_BYTES:
                    self._records.clear()  # the containers' logs have these records too
                    self._records_bytes = size
                self._records.setdefault((task_id, nonce), []).append((size, records))
        self._work.wake(task_id, nonce)

    def close(self) -> None:
        self._stop.set()
        if self.admitter is not None:
            self.admitter.close()
        self._work.close()
        self._cleanup.close()
        for thread in self._loops:
            thread.join(5)

    def resync(self) -> int:
        """Publish every overdue task and return how many there were; each is considered again after REPUBLISH at the earliest."""
        now = self.clock.now()
        due = self.repository.due(now, limit=RESYNC_BATCH)
        postponed: defaultdict[timedelta, list[TaskId]] = defaultdict(list)
        backlog: dict[Role, int] = {}
        queue_is_away = False
        left_out: list[TaskId] = []
        for task_id, stage in due:
            pause = REPUBLISH
            if stage in MONITORED:
                self._work.wake(task_id)
            elif self._cleanup.defers(task_id):
                pass  # it is published when its time comes
            elif queue_is_away:  # one try per round: each may take seconds
                left_out.append(task_id)
                continue
            else:
                try:
                    if ROLE_OF[stage] not in backlog:
                        backlog[ROLE_OF[stage]] = self.queue.waiting(stage)
                    pause = self._publish_again(task_id, stage, backlog[ROLE_OF[stage]])
                except QueueUnavailable as error:
                    log.warning("publish_failed", extra={"task_id": task_id, "error": str(error)})
                    queue_is_away = True
                    left_out.append(task_id)
                    continue
            postponed[pause].append(task_id)
        if len(due) == RESYNC_BATCH:  # else they would keep those behind them from their turn, running tasks among them
            postponed[REPUBLISH] += left_out
        for pause, task_ids in postponed.items():
            self.repository.postpone(task_ids, until=now + pause)
        return len(due)

    def _publish_again(self, task_id: TaskId, stage: Stage, backlog: int) -> timedelta:
        """Publish an overdue link, unless its role's queue is not empty and most likely holds it. Return the time until the next check.

        That time doubles after some publications, so that neither the queue of a role that is slow fills with copies of the same links, nor
        a link that ends its worker does so all the time. A few may be lost with workers that something else ends.
        """
        key = (task_id, stage)
        passed_over, count = self._passed_over.pop(key, 0), self._published.get(key, 0)
        if backlog and passed_over < MAX_PASSED_OVER:
            _remember(self._passed_over, key, passed_over + 1)
            return REPUBLISH
        _remember(self._published, key, count + 1)
        self.queue.publish(task_id, stage, owner=RESYNC)
        return min(REPUBLISH * (1 << min(max(count - LOST_LINKS, 0), 10)), MAX_REPUBLISH)

    def resume(self) -> int:
        """After a start with an empty queue: publish every task that is not done, whether due or not."""
        due = self.repository.due(datetime.max.replace(tzinfo=UTC), limit=RESYNC_ALL)
        for task_id, stage in due:
            if stage in MONITORED:
                self._work.wake(task_id)
            else:
                self.queue.publish(task_id, stage)
        return len(due)

    def sweep(self) -> int:
        """Delete the objects of tasks that are done or unknown to the store, and return the number of such tasks."""
        found = 0
        has_tasks = self.repository.count(TaskFilter(), limit=1) > 0  # an empty store may be the wrong database
        for task_id in list(self.cluster.task_ids()):
            try:
                task = self.repository.get(task_id, View.BASIC)
                if task.stage is Stage.DONE:
                    found += 1
                    LEAKS_FOUND.labels("done").inc()
                    self.queue.publish(task_id, Stage.DONE, owner=task.owner)
                    LEAKS_REMOVED.labels("done").inc()
            except UnknownTask:
                found += 1
                LEAKS_FOUND.labels("unknown").inc()
                if has_tasks:  # a task is stored before its objects are created, so no more follow
                    log.warning("sweep_unknown_task", extra={"task_id": task_id})
                    self.cluster.delete_all(task_id, None)
                    LEAKS_REMOVED.labels("unknown").inc()
        LEAKED.set(found)
        if found:
            log.warning("sweep_found", extra={"tasks": found})
        return found

    def purge_expired(self) -> int:
        """Delete done tasks that ended longer ago than the retention from the store and return how many.

        Their logs are deleted by `services.logs`, their events by the notifier.
        """
        if self.retention is None:
            return 0
        before = self.clock.now() - self.retention
        purged = 0
        while not self._stop.is_set() and (found := self.repository.purge(before, limit=PURGE_BATCH)):
            purged += found
            self._stop.wait(PURGE_PAUSE_S)  # for writers of new tasks
        return purged

    def _changed(self, task_id: TaskId) -> None:
        """What a starting or running pod shows can wait: if it ends soon, its whole life costs one look at it and one save."""
        self._work.wake(task_id, patient=self._starts is not None and self._starts.is_on_its_way(task_id))

    def _reconcile(self, task_id: TaskId, hint: str | None) -> None:
        records = self._take_records(task_id, hint) if hint is not None else ()
        if self._cleanup.defers(task_id):
            return
        began_ns = time.time_ns()
        try:
            known = self._recent.take(task_id)
            reconciled = self.orchestrator.reconcile(task_id, MONITORED, poked=hint, records=records, known=known)
        except UnknownTask:
            return
        except PoiesisError:
            raise
        except Exception as error:
            log.exception("reconcile_bug")
            self.orchestrator.give_up(task_id, error)
            return
        if reconciled.task.stage is not Stage.DONE:
            self._recent.put(reconciled.task)
        if reconciled.due is not None:  # most events of a pod change nothing
            tracing.link("reconcile", reconciled.task, began_ns, reconciled.reason.value)
        if self.admitter is not None and self._leads and reconciled.task.state.is_terminal:
            self.admitter.ended(task_id)
        if reconciled.due is not None and not self._is_in_its_first_chain(reconciled.task):
            self._publish(reconciled.task, reconciled.due)

    def _publish(self, task: Task, stage: Stage) -> None:
        """Publish once for each version of the task: until the link has run, the pod's events find the same stage due.

        The cleanup is left to the monitor that leads, which knows what else is starting: the events of the pod lead it to this task too.
        """
        if stage is Stage.CLEAN and not self._leads:
            return
        now = self.clock.now()
        with self._last_lock:
            version, last_stage, at = self._last.get(task.id, (None, None, now))
            if (version, last_stage) == (task.version, stage) and now - at < REPUBLISH:
                return
            _remember(self._last, task.id, (task.version, stage, now))
        try:
            if stage is Stage.CLEAN:
                self._cleanup.add(task.id, task.owner)
            else:
                self.queue.publish(task.id, stage, owner=task.owner)
        except QueueUnavailable:
            with self._last_lock:
                self._last.pop(task.id, None)
            raise

    def _take_records(self, task_id: TaskId, nonce: str) -> tuple[Record, ...]:
        with self._records_lock:
            taken = self._records.pop((task_id, nonce), [])
            self._records_bytes = max(0, self._records_bytes - sum(size for size, _ in taken))
        return tuple(record for _, records in taken for record in records)

    def _is_in_its_first_chain(self, task: Task) -> bool:
        """Whether the chain that was published at creation may still be running: no pod of the task has been scheduled."""
        return task.state is State.QUEUED and task.due_stage in (Stage.PREPARE, Stage.STAGE_IN, Stage.LAUNCH)

    def _repeat(self, work: Callable[[], int], every: timedelta) -> None:
        while not self._stop.wait(every.total_seconds()):
            try:
                work()
                LOOP_SUCCESS.labels(work.__name__).set_to_current_time()
                continue
            except Unavailable as error:
                log.warning("loop_failed", extra={"loop": work.__name__, "error": str(error)})
            except Exception:
                log.exception("loop_bug", extra={"loop": work.__name__})
            LOOP_FAILURES.labels(work.__name__).inc()


def _remember(recent: OrderedDict[Key, Value], key: Key, value: Value) -> None:
    recent[key] = value
    recent.move_to_end(key)
    if len(recent) > MAX_PUBLISHED:
        recent.popitem(last=False)
