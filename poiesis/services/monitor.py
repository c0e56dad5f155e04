"""What wakes `reconcile`: changes in the cluster, pokes, and the clock.

`WorkQueue` keeps at most one call for each task under way, merges wake-ups that come meanwhile, and lets failures back off. `Monitor`
feeds it from the cluster's events and pokes, publishes what another role has to do, and runs two loops: resync publishes tasks whose
time has come, the sweep removes what belongs to no task. Everything it knows can be lost: resync finds it again.
"""

from __future__ import annotations

import heapq
import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final

from poiesis.domain.errors import PoiesisError, QueueUnavailable, Unavailable, UnknownTask
from poiesis.domain.naming import new_task_id
from poiesis.domain.observed import Record
from poiesis.domain.policy import Policy
from poiesis.domain.records import MAX_RECORD_BYTES, parse_record
from poiesis.domain.states import Stage
from poiesis.domain.task import Executor, Task, TaskId, TaskSpec, View
from poiesis.observability import SWEPT
from poiesis.ports import Clock, Cluster, ClusterEvents, Queue, TaskFilter, TaskRepository
from poiesis.services.orchestrator import Orchestrator

log = logging.getLogger(__name__)

MONITORED: Final = frozenset({Stage.RUN})  # stages whose effects the monitor applies itself
RESYNC_BATCH: Final = 500
RESYNC_ALL: Final = 100_000
REPUBLISH: Final = timedelta(seconds=15)  # a published link has this long to be taken before it is published again
FORGET_EVERY: Final = timedelta(minutes=10)
FORGET_BATCH: Final = 200
SWEEP_EVERY: Final = timedelta(minutes=5)
MAX_FAILURES: Final = 8
FIRST_BACK_OFF_S: Final = 0.2
MAX_KEYS: Final = 100_000
MAX_HEARD_BYTES: Final = 32 * 1024 * 1024  # of records that came with pokes and wait for reconcile
REPUBLISH_LATER: Final = timedelta(minutes=5)  # the longest time between two publications of the same link
MAX_PUBLISHED: Final = 100_000


class WorkQueue:
    """Runs `handle(task_id, hint)` in a few threads, never twice at once for one task.

    `wake` merges: a task that waits already waits once; one being handled is handled again afterwards. The newest hint that is not None
    wins. A handler that raises is repeated with back-off, at most MAX_FAILURES times; then resync is what is left. At most MAX_KEYS tasks
    wait; more are dropped (resync finds them). A wake-up without a hint waits for `settle`, in which others join it: a pod's events come in
    flocks, and each would cost a look at the store.
    """

    def __init__(
        self, handle: Callable[[TaskId, str | None], None], threads: int, *, settle: timedelta = timedelta(0)
    ) -> None:
        self._handle = handle
        self._settle_s = settle.total_seconds()
        self._lock = threading.Condition()
        self._ready: deque[TaskId] = deque()
        self._hints: dict[TaskId, str | None] = {}  # waiting tasks
        self._busy: set[TaskId] = set()
        self._failures: dict[TaskId, int] = {}
        self._later: list[tuple[float, TaskId]] = []  # a heap of those backing off: due on the monotonic clock
        self._backing_off: set[TaskId] = set()
        self._settling: set[TaskId] = set()  # in the heap too, unless a hint brought them forward
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"reconcile-{i}", daemon=True) for i in range(threads)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def wake(self, task_id: TaskId, hint: str | None = None) -> None:
        with self._lock:
            if self._closed or (task_id not in self._hints and len(self._hints) >= MAX_KEYS):
                return
            waits = task_id in self._hints and task_id not in self._settling
            self._hints[task_id] = hint or self._hints.get(task_id)
            if waits or task_id in self._busy:
                return
            if hint is not None or not self._settle_s:
                self._settling.discard(task_id)
                self._ready.append(task_id)
            elif task_id not in self._settling:
                self._settling.add(task_id)
                heapq.heappush(self._later, (time.monotonic() + self._settle_s, task_id))
            self._lock.notify()

    def close(self, timeout: timedelta = timedelta(seconds=10)) -> None:
        with self._lock:
            self._closed = True
            self._lock.notify_all()
        deadline = time.monotonic() + timeout.total_seconds()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(0.0, deadline - time.monotonic()))

    def _work(self) -> None:
        while True:
            with self._lock:
                self._bring_back()
                while not self._closed and not self._ready:
                    self._lock.wait(self._until_next())
                    self._bring_back()
                if self._closed:
                    return
                task_id = self._ready.popleft()
                hint = self._hints.pop(task_id, None)
                self._busy.add(task_id)
            failed = False
            try:
                self._handle(task_id, hint)
            except Exception as error:
                failed = True
                log.warning("wake_failed", extra={"task_id": task_id, "error": f"{type(error).__name__}: {error}"})
            with self._lock:
                self._busy.discard(task_id)
                if failed:
                    self._back_off(task_id, hint)
                else:
                    self._failures.pop(task_id, None)
                if task_id in self._hints and task_id not in self._backing_off:
                    self._ready.append(task_id)
                self._lock.notify()  # something is ready, or the time until the next has changed

    def _back_off(self, task_id: TaskId, hint: str | None) -> None:
        count = self._failures.get(task_id, 0) + 1
        if count > MAX_FAILURES:
            self._failures.pop(task_id, None)
            return
        self._failures[task_id] = count
        self._backing_off.add(task_id)
        heapq.heappush(self._later, (time.monotonic() + min(FIRST_BACK_OFF_S * 2 ** (count - 1), 30.0), task_id))
        self._hints[task_id] = self._hints.get(task_id) or hint

    def _until_next(self) -> float | None:
        return max(0.0, self._later[0][0] - time.monotonic()) if self._later else None

    def _bring_back(self) -> None:
        now = time.monotonic()
        while self._later and self._later[0][0] <= now:
            _, task_id = heapq.heappop(self._later)
            if task_id in self._backing_off or task_id in self._settling:
                self._backing_off.discard(task_id)
                self._settling.discard(task_id)
                self._ready.append(task_id)
                self._lock.notify()


class Monitor:
    def __init__(
        self,
        orchestrator: Orchestrator,
        repository: TaskRepository,
        queue: Queue,
        cluster: Cluster,
        events: ClusterEvents,
        clock: Clock,
        policy: Policy,
        *,
        threads: int,
        resync: timedelta,
        retention: timedelta | None = None,
        settle: timedelta = timedelta(0),
    ) -> None:
        self._orchestrator = orchestrator
        self._repository = repository
        self._queue = queue
        self._cluster = cluster
        self._events = events
        self._clock = clock
        self._policy = policy
        self._resync = resync
        self._retention = retention
        self._work = WorkQueue(self._reconcile, threads, settle=settle)
        # records that came with pokes, with their size, until reconcile takes them
        self._heard: dict[tuple[TaskId, str], list[tuple[int, Record]]] = {}
        self._heard_bytes = 0
        self._published: OrderedDict[tuple[TaskId, Stage], int] = (
            OrderedDict()
        )  # how often resync published it without a change
        self._heard_lock = threading.Lock()
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def listen(self) -> None:
        """Begin to handle wake-ups: enough for one that does not lead, whom pokes may reach too."""
        self._work.start()

    def start(self) -> None:
        """Lead: follow the cluster, resync, sweep."""
        for target, every in ((self.resync, self._resync), (self.sweep, SWEEP_EVERY), (self.forget, FORGET_EVERY)):
            thread = threading.Thread(target=self._repeat, args=(target, every), name=target.__name__, daemon=True)
            thread.start()
            self._threads.append(thread)
        self._events.follow(self._work.wake)

    def poke(self, task_id: TaskId, nonce: str, body: bytes = b"") -> None:
        """A container says that it ended, and how if `body` is its record. It may lie, about its own task alone."""
        record = parse_record(body, MAX_RECORD_BYTES) if body else None
        if record is not None:
            with self._heard_lock:
                self._heard_bytes += len(body)
                if self._heard_bytes > MAX_HEARD_BYTES:
                    self._heard.clear()  # they are in the containers' logs too
                    self._heard_bytes = len(body)
                self._heard.setdefault((task_id, nonce), []).append((len(body), record))
        self._work.wake(task_id, nonce)

    def close(self) -> None:
        self._stop.set()
        self._work.close()
        for thread in self._threads:
            thread.join(5)

    def resync(self) -> int:
        """Publish every task whose time has come; answers how many. One published is looked at again after REPUBLISH at the earliest."""
        now = self._clock.now()
        due = self._repository.due(now, limit=RESYNC_BATCH)
        queue_is_away = False
        for task_id, stage in due:
            pause = REPUBLISH
            if stage in MONITORED:
                self._work.wake(task_id)
            elif queue_is_away:  # one try in a round: each may take seconds
                continue
            else:
                pause = self._until_republished(task_id, stage)
                try:
                    self._queue.publish(task_id, stage)
                except QueueUnavailable as error:
                    log.warning("publish_failed", extra={"task_id": task_id, "error": str(error)})
                    queue_is_away = True
                    continue
            self._repository.postpone(task_id, until=now + pause)
        return len(due)

    def _until_republished(self, task_id: TaskId, stage: Stage) -> timedelta:
        """Doubles each time: while a role is down its queue must not fill with the same links over and over."""
        count = self._published.pop((task_id, stage), 0)
        self._published[task_id, stage] = min(count + 1, 10)
        if len(self._published) > MAX_PUBLISHED:
            self._published.popitem(last=False)
        return min(REPUBLISH * (1 << count), REPUBLISH_LATER)

    def resume(self) -> int:
        """After a start with an empty queue: publish all that is not done, whenever it is due."""
        due = self._repository.due(datetime.max.replace(tzinfo=UTC), limit=RESYNC_ALL)
        for task_id, stage in due:
            if stage in MONITORED:
                self._work.wake(task_id)
            else:
                self._queue.publish(task_id, stage)
        return len(due)

    def sweep(self) -> int:
        """Remove what belongs to a task that is done or that the store has never heard of; answers how many tasks it found."""
        found = 0
        knows_tasks = self._repository.count(TaskFilter()) > 0  # else this may be the wrong database
        for task_id in list(self._events.task_ids()):
            try:
                task = self._repository.get(task_id, View.BASIC)
                if task.stage is Stage.DONE:
                    found += 1
                    self._queue.publish(task_id, Stage.DONE)
            except UnknownTask:
                found += 1
                if knows_tasks:
                    self._remove_unknown(task_id)
        SWEPT.inc(found)
        if found:
            log.warning("sweep_found", extra={"tasks": found})
        return found

    def forget(self) -> int:
        """Delete done tasks older than the retention from the store; answers how many. Ids sort by time, so no other index is needed."""
        if self._retention is None:
            return 0
        after: TaskId | None = new_task_id(self._clock.now() - self._retention, bytes)
        forgotten = 0
        while after is not None and not self._stop.is_set():
            page = self._repository.list(TaskFilter(), limit=FORGET_BATCH, after=after, view=View.MINIMAL)
            forgotten += sum(self._repository.delete(task.id) for task in page.tasks)
            after = page.next_after
        return forgotten

    def _remove_unknown(self, task_id: TaskId) -> None:
        """Objects whose task the store does not have. A task is stored before anything is made for it, so nothing of it is to come."""
        nobody = TaskSpec(executors=(Executor("none", ("none",)),))
        log.warning("sweep_unknown_task", extra={"task_id": task_id})
        self._cluster.delete_all(
            Task(id=task_id, spec=nobody, created_at=self._clock.now(), attempt=self._policy.max_attempts)
        )

    def _reconcile(self, task_id: TaskId, hint: str | None) -> None:
        try:
            heard = self._take_heard(task_id, hint) if hint is not None else ()
            reconciled = self._orchestrator.reconcile(task_id, MONITORED, poked=hint, heard=heard)
        except UnknownTask:
            return
        except PoiesisError:
            raise
        except Exception as error:
            log.exception("reconcile_bug", extra={"task_id": task_id})
            self._orchestrator.give_up(task_id, error)
            return
        if reconciled.due is not None and self._is_ours_to_publish(reconciled.task):
            self._queue.publish(task_id, reconciled.due)

    def _take_heard(self, task_id: TaskId, nonce: str) -> tuple[Record, ...]:
        with self._heard_lock:
            taken = self._heard.pop((task_id, nonce), [])
            self._heard_bytes = max(0, self._heard_bytes - sum(size for size, _ in taken))
        return tuple(record for _, record in taken)

    def _is_ours_to_publish(self, task: Task) -> bool:
        """Whether the links that were published with the task cannot be under way any more: it has been launched once."""
        return task.due_stage not in (Stage.PREPARE, Stage.STAGE_IN, Stage.LAUNCH) or task.state.value != "QUEUED"

    def _repeat(self, work: Callable[[], int], every: timedelta) -> None:
        while not self._stop.wait(every.total_seconds()):
            try:
                work()
            except Unavailable as error:
                log.warning("loop_failed", extra={"loop": work.__name__, "error": str(error)})
            except Exception:
                log.exception("loop_bug", extra={"loop": work.__name__})
