"""Interleavings: links of all roles, the monitor and a cancel request pause between any two calls of store and cluster, are killed there,
or continue after the others; meanwhile the cluster makes progress, fails and removes pods. Hypothesis picks the order.

Each actor is a thread that waits at a gate before and after each call until the test releases it: only one runs at a time, so that an
order that fails can be reproduced.
"""

import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from poiesis.domain import states
from poiesis.domain.errors import PoiesisError
from poiesis.domain.observed import Phase, Pod
from poiesis.domain.policy import Policy
from poiesis.domain.report import FilerReport
from poiesis.domain.states import Role, Stage, State
from poiesis.domain.task import Task, TaskSpec, Version
from poiesis.services.orchestrator import Orchestrator, stages_of
from poiesis.services.tasks import TaskService
from poiesis.testing.cluster import MemoryCluster
from poiesis.testing.queue import RecordingQueue
from poiesis.testing.repository import MemoryTaskRepository
from tests.unit.domain.samples import FILES, GPUS, ID, POLICY, SMALL, THREE, World, spec, with_parameters

PATIENCE_S = 30
MEMORY = spec(resources=with_parameters(memory_retries="1"))


class Killed(BaseException):
    """Raised at a gate to kill the process; nothing may catch it."""


class Actor:
    """One process."""

    def __init__(self, work: Callable[[], object]) -> None:
        self._work = work
        self._turn, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._doomed = False
        self.ended = False
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def go_on(self) -> None:
        """To the next gate."""
        if not self.ended:
            self._turn.release()
            assert self._back.acquire(timeout=PATIENCE_S)
        if self.error is not None:
            raise self.error

    def kill(self) -> None:
        self._doomed = True
        while not self.ended:
            self.go_on()

    def to_the_end(self) -> None:
        while not self.ended:
            self.go_on()

    def gate(self) -> None:
        self._back.release()
        self._turn.acquire()
        if self._doomed:
            raise Killed

    def _run(self) -> None:
        _here.actor = self
        self._turn.acquire()
        try:
            if not self._doomed:
                self._work()
        except (Killed, PoiesisError):
            pass
        except BaseException as error:
            self.error = error
        self.ended = True
        self._back.release()


_here = threading.local()


class Gated:
    """A port whose calls by an actor pass a gate before and after."""

    def __init__(self, port: object) -> None:
        self._port = port

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._port, name)

        def call(*args: Any, **options: Any) -> Any:
            actor = getattr(_here, "actor", None)
            if actor is None:
                return method(*args, **options)
            actor.gate()
            answer = method(*args, **options)
            actor.gate()
            return answer

        return call


class CheckedRepository(MemoryTaskRepository):
    """Checks every save. `earlier` has the task as it was before each."""

    def __init__(self) -> None:
        super().__init__()
        self.earlier: list[Task] = []

    def save(self, task: Task, *, seen: Version) -> bool:
        before = self.get(task.id)
        saved = super().save(task, seen=seen)
        if saved:
            self.earlier.append(before)
            assert not before.state.is_terminal or task.state is before.state, "a terminal state changed"
            states.path(before.state, task.state)
            assert (task.wake_at is None) == (task.stage is Stage.DONE), "a task without a wake-up"
            assert task.stage is not Stage.DONE or task.state.is_terminal
            assert before.stage is not Stage.DONE or task == before
            assert task.attempt in (before.attempt, before.attempt + 1)
            repeated = (task.attempt, task.uploads) != (before.attempt, before.uploads)
            assert not repeated or (task.attempt, task.uploads) in (
                (before.attempt, before.uploads + 1),
                (before.attempt + 1, 1),
            )
            assert task.uploads <= POLICY.max_attempts
            assert before.cancel_requested_at in (None, task.cancel_requested_at), "a cancel request was lost"
            assert all(entry.exit_code is not None for entry in task.log.logs) or not task.state.is_terminal
            assert len(task.log.logs) <= len(task.spec.executors)
        return saved


class Play:
    """The test bed. `stalls`: a process may pause for longer than a pod lives."""

    def __init__(self, task_spec: TaskSpec, policy: Policy, *, stalls: bool) -> None:
        repository = self.repository = CheckedRepository()
        self.world = World(task_spec, policy, repository=repository)
        self.cluster: MemoryCluster = self.world.cluster
        self.cluster.slow = True
        self.stalls = stalls
        gated_store: Any = Gated(repository)
        gated_cluster: Any = Gated(self.cluster)
        self.orchestrator = Orchestrator(gated_store, gated_cluster, self.world.clock, policy)
        self.tasks = TaskService(gated_store, RecordingQueue(), self.world.clock, policy)
        self.actors: list[Actor] = []

    def play(self, step: str, which: int) -> None:
        self.actors = [a for a in self.actors if not a.ended]
        match step:
            case "link":
                role = list(Role)[which % 4]
                self.actors.append(Actor(lambda: self.orchestrator.reconcile(ID, stages_of(role), tails=which > 3)))
            case "monitor":
                known = self.known(which)
                self.actors.append(
                    Actor(lambda: self.orchestrator.reconcile(ID, {Stage.RUN}, poked="nonce-1-1", known=known))
                )
            case "cancel":
                self.actors.append(Actor(lambda: self.tasks.cancel(ID)))
            case "kill" if self.actors:
                self.actors[which % len(self.actors)].kill()
            case "go_on" if self.actors:
                self.actors[which % len(self.actors)].go_on()
            case "go_far" if self.actors:
                self.actors[which % len(self.actors)].to_the_end()
            case "pod":
                if pods := self.cluster.pods(ID):
                    self.move(pods[which % len(pods)], which)
            case "outage":
                self.cluster.down = which % 3 == 0
            case "later":
                self.world.clock.advance(timedelta(seconds=(1, 3, 6, 11)[which % 4]))
            case "bad" if pods := self.cluster.pods(ID):
                self.spoil(pods[which % len(pods)], which)

    def known(self, which: int) -> Task | None:
        """What a monitor remembers: nothing, the task as it is, or as it was up to six saves ago."""
        return [None, self.world.task, *self.repository.earlier[::-1]][: which + 1][-1]

    def move(self, pod: Pod, which: int = 0) -> None:
        """The next step of a pod without faults."""
        if pod.deleting:
            self.without_stalls()
            self.cluster.remove(ID)
        elif pod.ended:
            return
        elif not pod.scheduled:
            self.cluster.schedule(ID, pod.part)
        elif any(c.phase is Phase.WAITING for c in pod.containers):
            self.cluster.start(ID, pod.part)
        else:
            running = next(c for c in pod.containers if c.phase is Phase.RUNNING)
            self.cluster.end(ID, pod.part, running.name, self.cluster.record(running.name))

    def spoil(self, pod: Pod, which: int) -> None:
        if pod.deleting:
            return
        running = [c for c in pod.containers if c.phase is Phase.RUNNING]
        match which:
            case 0:
                self.cluster.lose(ID, pod.part, "Evicted")
            case 1:
                self.without_stalls()
                self.cluster.vanish(ID, pod.part)
            case 2:
                self.cluster.hold(ID, pod.part, "Unschedulable: 0/3 nodes")
            case 3 if running:
                record = self.cluster.record(running[0].name, 1)
                self.cluster.end(ID, pod.part, running[0].name, record)
            case 4 if running:
                self.cluster.end(ID, pod.part, running[0].name, reason="OOMKilled", exit_code=137)
            case 5 if running:
                self.cluster.end(ID, pod.part, running[0].name, reason="Error")
            case 6:
                self.cluster.report(ID, "tif", FilerReport(error="busy", retryable=True), pod.attempt)
                self.cluster.stick(ID, pod.part, pod.containers[0].name, "ErrImagePull", "not found")
            case 7 if running:
                record = self.cluster.record(running[0].name, 143, reason="Terminated")
                self.cluster.end(ID, pod.part, running[0].name, record)

    def without_stalls(self) -> None:
        if not self.stalls:
            for actor in self.actors:
                actor.to_the_end()

    def rest(self) -> None:
        """No more faults: paused actors continue, the cluster makes progress, resync and sweep run."""
        self.cluster.down = False
        for actor in self.actors:
            actor.to_the_end()
        world = self.world
        for _ in range(200):
            for task_id, _stage in world.repository.due(world.now, limit=10):
                for role in Role:
                    world.orchestrator.reconcile(task_id, stages_of(role))
            for pod in self.cluster.pods(ID):
                with suppress(StopIteration):
                    self.move(pod)
            if world.task.stage is Stage.DONE:
                for _task_id in self.cluster.task_ids():  # the sweep
                    world.link(Role.TORC)
                if self.cluster.is_empty(ID):
                    return
            world.clock.advance(timedelta(seconds=20))
        raise AssertionError(f"the task does not end: {world.task}")


_LIKELY = {
    "link": 3,
    "monitor": 2,
    "cancel": 1,
    "kill": 1,
    "go_on": 5,
    "go_far": 4,
    "pod": 5,
    "outage": 1,
    "later": 2,
    "bad": 2,
}
STEPS = st.lists(
    st.tuples(st.sampled_from([step for step, times in _LIKELY.items() for _ in range(times)]), st.integers(0, 7)),
    min_size=10,
    max_size=120,
)
SPECS = st.sampled_from([SMALL, FILES, THREE, GPUS, MEMORY])
POLICIES = st.sampled_from(
    [
        POLICY,
        Policy(**{**vars(POLICY), "layout": "staged", "retry_started": False}),
        Policy(**{**vars(POLICY), "keep": timedelta(minutes=1), "show_preempted": True}),
    ]
)


def play(task_spec: TaskSpec, policy: Policy, steps: list[tuple[str, int]], *, stalls: bool) -> Play:
    game = Play(task_spec, policy, stalls=stalls)
    try:
        for step, which in steps:
            game.play(step, which)
        game.rest()
    finally:
        for actor in game.actors:
            with suppress(Exception):
                actor.kill()
    return game


SETTINGS = settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


@SETTINGS
@given(SPECS, POLICIES, STEPS)
def test_every_task_ends_once_and_leaves_nothing_wherever_processes_are_killed(task_spec, policy, steps):
    game = play(task_spec, policy, steps, stalls=False)
    assert game.world.task.state.is_terminal
    created = {key: times for key, times in game.cluster.created.items() if times > 1}
    assert not created, "an executor's pod was created twice in one attempt"


@SETTINGS
@given(SPECS, POLICIES, STEPS)
def test_a_link_that_paused_for_the_whole_life_of_a_pod_leaves_nothing(task_spec, policy, steps):
    game = play(task_spec, policy, steps, stalls=True)
    assert game.world.task.state.is_terminal


@SETTINGS
@given(SPECS, STEPS)
def test_a_task_canceled_before_anything_happened_never_runs(task_spec, steps):
    game = Play(task_spec, POLICY, stalls=True)
    game.world.cancel()
    try:
        for step, which in steps:
            game.play(step, which)
        game.rest()
    finally:
        for actor in game.actors:
            with suppress(Exception):
                actor.kill()
    assert game.world.task.state is State.CANCELED
    assert not game.cluster.created


@pytest.mark.parametrize("task_spec", [SMALL, FILES, THREE, GPUS], ids=["small", "files", "three", "gpus"])
def test_a_kill_at_any_single_gate_is_harmless(task_spec):
    """Exhaustive: the n-th gate of the whole life of a task, for every n."""
    for fatal in range(1, 1000):
        game = Play(task_spec, POLICY, stalls=False)
        gates = _run_with_a_kill(game, fatal)
        game.rest()
        task = game.world.task
        assert task.state is State.COMPLETE
        assert task.attempt == 1
        assert len(task.log.logs) == len(task_spec.executors)
        assert all(times == 1 for times in game.cluster.created.values())
        if gates < fatal:
            return
    raise AssertionError("the task does not end")


class Fatal:
    """A gate that kills the n-th caller."""

    def __init__(self, fatal: int) -> None:
        self.passed = 0
        self._fatal = fatal

    def gate(self) -> None:
        self.passed += 1
        if self.passed == self._fatal:
            raise Killed


def _run_with_a_kill(play: Play, fatal: int) -> int:
    """Run a task without faults, except that the process at gate number `fatal` is killed; return the number of gates passed."""
    _here.actor = gate = Fatal(fatal)
    roles = [stages_of(role) for role in Role]
    for _ in range(60):
        for stages in (*roles, frozenset({Stage.RUN})):
            with suppress(Killed):
                play.orchestrator.reconcile(ID, stages)
        for pod in play.cluster.pods(ID):
            play.move(pod)
        play.world.clock.advance(timedelta(seconds=1))
        if play.world.task.stage is Stage.DONE:
            break
    _here.actor = None
    return gate.passed
