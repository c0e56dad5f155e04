"""What a task costs the store, from its creation to the end of its clean-up, in operations: no time is measured.

The site is simulated in one thread: events of pods, looks of the monitor and links happen at the moments of a clock that jumps from one to
the next. Everything but the cluster, the store and the clock is real.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Collection
from datetime import timedelta
from itertools import count
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from poiesis.bootstrap import SETTLE
from poiesis.domain.observed import Phase
from poiesis.domain.plan import Plan, PodPlan
from poiesis.domain.states import ROLE_OF, Stage, State
from poiesis.domain.task import Task, TaskId, TaskSpec, Version, View
from poiesis.services import deferred_cleanup, work_queue
from poiesis.services.monitor import Monitor
from poiesis.services.orchestrator import Orchestrator, stages_of
from poiesis.services.tasks import TaskService
from poiesis.testing.clock import ManualClock
from poiesis.testing.cluster import MemoryCluster
from poiesis.testing.queue import RecordingQueue
from poiesis.testing.repository import MemoryTaskRepository
from tests.unit.domain.samples import POLICY, SMALL

LINK_S = 0.005
REMOVED_S = 0.05


class Life(NamedTuple):
    """Seconds from a pod's creation until it is on a node, its containers run, and have ended. `shown`: from then until the cluster shows
    the end, which a poke reports before; None: there are no pokes, and it shows it at once."""

    scheduled: float
    started: float
    ended: float
    shown: float | None


SHORT = Life(0.01, 0.6, 0.65, 0.3)
LONG = Life(0.01, 0.6, 20.0, 0.9)
SIMULATED = Life(0.05, 0.2, 1.2, None)


class CountingRepository(MemoryTaskRepository):
    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def add(self, task: Task) -> None:
        self.counts["insert"] += 1
        super().add(task)

    def get(self, task_id: TaskId, view: View = View.FULL, **options: Any) -> Task:
        self.counts["find"] += 1
        return super().get(task_id, view, **options)

    def save(self, task: Task, *, seen: Version) -> bool:
        self.counts["update"] += 1
        return super().save(task, seen=seen)


class LivingCluster(MemoryCluster):
    """Pods live by themselves, and are seen as in the watch of Kubernetes."""

    def __init__(self, site: Site, life: Life) -> None:
        super().__init__(site.clock)
        self.slow = True
        self._site, self._life = site, life

    def launch(self, task: Task, plan: Plan, pod: PodPlan) -> None:
        super().launch(task, plan, pod)
        life, site = self._life, self._site
        site.at(life.scheduled, lambda: self.schedule(task.id, pod.part))
        site.at(life.started, lambda: self.start(task.id, pod.part))
        site.at(life.ended, lambda: self._end(task, pod))

    def _end(self, task: Task, pod: PodPlan) -> None:
        self.events = 1 if self._life.shown is None else 0
        for name in pod.names:
            self.end(task.id, pod.part, name, self.record(name))
        self.events = 1
        if self._life.shown is not None:
            self._site.monitor.poke(task.id, task.poke_nonce)
            self._site.at(self._life.shown, lambda: self._show(task.id))

    def _show(self, task_id: TaskId) -> None:
        if self.pods(task_id):
            self._notify(task_id)

    def delete_all(self, task_id: TaskId, attempts: int | None, plan: Plan | None = None) -> None:
        super().delete_all(task_id, attempts, plan)
        self._site.at(REMOVED_S, lambda: self.remove(task_id))

    def starting(self) -> Collection[TaskId]:
        return [task_id for task_id in self._tasks if any(p.scheduled and _waits(p) for p in self.pods(task_id))]

    def is_on_its_way(self, task_id: TaskId) -> bool:
        pods = self.pods(task_id)
        return bool(pods) and not any(pod.deleting or pod.ended for pod in pods)


def _waits(pod: Any) -> bool:
    return any(c.phase is Phase.WAITING for c in pod.containers)


class Site:
    def __init__(self, monkeypatch: pytest.MonkeyPatch, life: Life) -> None:
        self.now_s = 0.0
        for module in (work_queue, deferred_cleanup):
            monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now_s))
        self.clock = ManualClock()
        self.repository = CountingRepository()
        self.queue = RecordingQueue()
        self.cluster = LivingCluster(self, life)
        self.orchestrator = Orchestrator(self.repository, self.cluster, self.clock, POLICY)
        self.monitor = Monitor(
            self.orchestrator, self.repository, self.queue, self.cluster, self.clock,
            threads=0, resync_every=timedelta(hours=1), settle=SETTLE,
        )  # fmt: skip
        self.monitor._leads = True
        self.cluster.follow(self.monitor._changed)
        self.tasks = TaskService(self.repository, self.queue, self.clock, POLICY)
        self._later: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = count()

    def at(self, delay_s: float, action: Callable[[], object]) -> None:
        heapq.heappush(self._later, (self.now_s + delay_s, next(self._numbers), action))

    def run(self, spec: TaskSpec, tasks: int, *, a_second: int) -> dict[str, float]:
        """Create so many tasks and go on until nothing is left to happen; what each of them cost."""
        for i in range(tasks):
            self.at(i / a_second, lambda: self.tasks.create(spec))
        while self._step():
            pass
        assert all((t.state, t.stage) == (State.COMPLETE, Stage.DONE) for t in self.repository.snapshot())
        assert all(times == 1 for times in self.cluster.created.values())
        return {name: round(times / tasks, 1) for name, times in self.repository.counts.items()}

    def _step(self) -> bool:
        for task_id, stage in self.queue.published:
            self.at(LINK_S, lambda task_id=task_id, stage=stage: self._link(task_id, stage))  # type: ignore[misc]
        self.queue.published.clear()
        looks, cleanup = self.monitor._work._heap, self.monitor._cleanup
        if looks and (not self._later or looks[0][0] <= self._later[0][0]):
            self._move_to(looks[0][0])
            task_id = looks[0][1]
            if self.monitor._work._due.get(task_id) != looks[0][0]:
                heapq.heappop(looks)
                return True
            taken = self.monitor._work._next()
            assert taken is not None
            self.monitor._reconcile(*taken)
            self.monitor._work._busy.discard(task_id)
        elif self._later:
            at, _, action = heapq.heappop(self._later)
            self._move_to(at)
            action()
        elif cleanup._deferred:
            self._move_to(self.now_s + deferred_cleanup.CHECK_S)
        else:
            return False
        for task_id in cleanup._take():
            self.queue.publish(task_id, Stage.CLEAN)
        return True

    def _move_to(self, now_s: float) -> None:
        self.clock.advance(timedelta(seconds=max(0.0, now_s - self.now_s)))
        self.now_s = max(now_s, self.now_s)

    def _link(self, task_id: TaskId, stage: Stage) -> None:
        due = self.orchestrator.reconcile(task_id, stages_of(ROLE_OF[stage]), tails=True).due
        if due is not None:
            self.queue.publish(task_id, due)


@pytest.mark.parametrize(
    ("life", "tasks", "a_second", "finds", "updates"),
    [
        pytest.param(SHORT, 1, 1, 3, 4, id="claimed, launched, ended, gone; read by two links and one look"),
        pytest.param(LONG, 1, 1, 3, 5, id="the same and running"),
        pytest.param(SHORT, 100, 50, 3, 4, id="a burst"),
        pytest.param(SIMULATED, 100, 50, 3, 4.1, id="a burst on nodes without pokes: before it is one, running too"),
    ],
)
def test_a_task_costs_the_store_few_operations(monkeypatch, life, tasks, a_second, finds, updates):
    site = Site(monkeypatch, life)
    assert site.run(SMALL, tasks, a_second=a_second) == {"insert": 1, "find": finds, "update": updates}
