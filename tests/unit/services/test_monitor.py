"""The work queue and what feeds it. Threads are real; every wait is for a condition, with a deadline."""

import threading
import time
from collections import Counter
from datetime import timedelta

import pytest

from poiesis.domain.errors import ClusterUnavailable
from poiesis.domain.states import Role, Stage, State
from poiesis.domain.task import TaskId
from poiesis.services import monitor as module
from poiesis.services.monitor import MAX_FAILURES, REPUBLISH, Monitor, WorkQueue
from poiesis.testing.cluster import MemoryCluster
from poiesis.testing.queue import RecordingQueue
from tests.unit.domain.samples import FILES, ID, SMALL, World, stored

PATIENCE_S = 20.0
A, B = TaskId("a"), TaskId("b")


class Handler:
    """Notes every call; holds those for which `hold` is set until `go`."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str | None]] = []
        self.fails = 0
        self.hold = False
        self.busy: Counter[str] = Counter()
        self.most = 0
        self._go = threading.Event()
        self._changed = threading.Condition()

    def __call__(self, task_id: TaskId, hint: str | None) -> None:
        with self._changed:
            self.calls.append((task_id, hint))
            self.busy[task_id] += 1
            self.most = max(self.most, self.busy[task_id])
            fails, self.fails = self.fails > 0, max(0, self.fails - 1)
            self._changed.notify_all()
        if self.hold:
            assert self._go.wait(PATIENCE_S)
        with self._changed:
            self.busy[task_id] -= 1
            self._changed.notify_all()
        if fails:
            raise ClusterUnavailable("away")

    def go(self) -> None:
        self.hold = False
        self._go.set()

    def wait(self, count: int) -> None:
        """Until there were `count` calls and none is under way."""
        with self._changed:
            assert self._changed.wait_for(
                lambda: len(self.calls) >= count and (self.hold or not +self.busy), PATIENCE_S
            ), self.calls


@pytest.fixture
def handler(monkeypatch) -> Handler:
    monkeypatch.setattr(module, "FIRST_BACK_OFF_S", 0.001)
    return Handler()


@pytest.fixture
def work(handler):
    queue = WorkQueue(handler, 4)
    queue.start()
    yield queue
    handler.go()
    queue.close()


def test_a_task_is_never_handled_twice_at_once_and_wake_ups_merge(handler, work):
    handler.hold = True
    work.wake(A)
    handler.wait(1)
    for _ in range(10):
        work.wake(A)
    work.wake(B)
    handler.wait(2)
    handler.go()
    handler.wait(3)
    work.close()
    assert (handler.calls, handler.most) == ([("a", None), ("b", None), ("a", None)], 1)


def test_a_hint_is_kept_by_wake_ups_that_have_none(handler, work):
    handler.hold = True
    work.wake(A)
    handler.wait(1)
    for hint in (None, "first", None, "second", None):
        work.wake(A, hint)
    handler.go()
    handler.wait(2)
    assert handler.calls[1] == ("a", "second")


def test_a_hint_is_kept_when_its_handling_failed(handler, work):
    handler.fails = 1
    work.wake(A, "hint")
    handler.wait(2)
    assert handler.calls == [("a", "hint"), ("a", "hint")]


def test_failures_are_repeated_a_bounded_number_of_times(handler, work):
    handler.fails = 1000
    work.wake(A)
    handler.wait(MAX_FAILURES + 1)
    handler.fails = 0
    work.wake(B)
    handler.wait(MAX_FAILURES + 2)
    assert Counter(task_id for task_id, _ in handler.calls) == {"a": MAX_FAILURES + 1, "b": 1}


def test_back_off_grows_up_to_a_bound(handler):
    queue = WorkQueue(handler, 1)
    delays = []
    for _ in range(MAX_FAILURES):
        queue._back_off(A, None)
        delays.append(queue._later[-1][0] - time.monotonic() if len(queue._later) == 1 else 0)
        queue._later.clear()
    assert delays == sorted(delays)
    assert delays[-1] <= 30


def test_a_task_that_backs_off_comes_back_though_others_keep_the_queue_busy(handler):
    """One thread, always with something to do."""
    queue = WorkQueue(lambda task_id, hint: busy(task_id), 1)
    seen: list[str] = []
    done = threading.Event()

    def busy(task_id: str) -> None:
        seen.append(task_id)
        if task_id == "a":
            if seen.count("a") == 1:
                raise ClusterUnavailable("away")
            done.set()
        elif not done.is_set():
            queue.wake(B)

    queue.start()
    queue.wake(A)
    queue.wake(B)
    assert done.wait(PATIENCE_S)
    queue.close()


def test_the_queue_is_bounded(handler, monkeypatch):
    monkeypatch.setattr(module, "MAX_KEYS", 3)
    queue = WorkQueue(handler, 1)
    for i in range(10):
        queue.wake(TaskId(str(i)))
    queue.start()
    handler.wait(3)
    queue.close()
    assert [task_id for task_id, _ in handler.calls] == ["0", "1", "2"]


def test_after_close_nothing_is_handled(handler, work):
    work.close()
    work.wake(A)
    assert handler.calls == []


class Scene:
    def __init__(self, task_spec=SMALL) -> None:
        self.world = World(task_spec)
        self.queue = RecordingQueue()
        self.monitor = Monitor(
            self.world.orchestrator, self.world.repository, self.queue, self.world.cluster, self.world.cluster,
            self.world.clock, self.world.policy, threads=2, resync=timedelta(milliseconds=20),
        )  # fmt: skip

    def start(self) -> None:
        self.monitor.listen()
        self.monitor.start()

    def until(self, condition) -> None:
        deadline = time.monotonic() + PATIENCE_S
        turn = threading.Event()
        while not condition():
            assert time.monotonic() < deadline, self.world.task
            turn.wait(0.005)


@pytest.fixture
def scene():
    scene = Scene()
    yield scene
    scene.monitor.close()


def test_resync_publishes_what_is_due_and_looks_again_later(scene):
    world = scene.world
    assert scene.monitor.resync() == 0
    world.clock.advance(timedelta(seconds=10))
    assert scene.monitor.resync() == 1
    assert scene.queue.published == [(ID, Stage.PREPARE)]
    assert scene.monitor.resync() == 0
    world.clock.advance(REPUBLISH)
    assert scene.monitor.resync() == 1


def test_resync_with_the_queue_away_loses_nothing_and_still_wakes_what_it_follows_itself(scene):
    world = scene.world
    woken: list[str] = []
    scene.monitor._work.wake = lambda task_id, hint=None: woken.append(task_id)
    run = TaskId("1" * 26)
    for task_id, stage in ((run, Stage.RUN), (TaskId("2" * 26), Stage.FINISH)):
        world.repository.add(stored(id=task_id, stage=stage, wake_at=world.now + timedelta(seconds=11)))
    scene.queue.down = True
    world.clock.advance(timedelta(seconds=20))
    scene.monitor.resync()
    assert woken == [run]
    scene.queue.down = False
    scene.monitor.resync()
    assert sorted(stage for _, stage in scene.queue.published) == [Stage.FINISH, Stage.PREPARE]


def test_the_sweep_removes_what_is_unknown_and_wakes_what_is_done(scene):
    world = scene.world
    stray = stored(id=TaskId("9" * 26))
    world.cluster.create_documents(stray, None)
    world.cluster.create_documents(world.task, None)
    assert scene.monitor.sweep() == 1
    assert world.cluster.is_empty(stray.id)
    assert not world.cluster.is_empty(ID)
    world.change(stage=Stage.DONE, state=State.SYSTEM_ERROR, wake_at=None)
    assert scene.monitor.sweep() == 1
    assert scene.queue.published == [(ID, Stage.DONE)]
    world.link(Role.TORC)
    assert scene.monitor.sweep() == 0


def test_an_event_moves_a_running_task_on_and_its_end_is_published(scene):
    world = scene.world
    world.launch()
    scene.start()
    world.cluster.events = 2
    world.cluster.run(ID, "task")
    scene.until(lambda: world.task.state is State.COMPLETE)
    scene.until(lambda: (ID, Stage.CLEAN) in scene.queue.published)


def test_without_any_event_resync_moves_a_running_task_on(scene):
    world = scene.world
    world.launch()
    world.cluster.events = 0
    scene.start()
    world.cluster.run(ID, "task")
    world.clock.advance(timedelta(seconds=60))
    scene.until(lambda: world.task.state is State.COMPLETE)


def test_a_poke_wakes_and_a_poke_for_nobody_does_no_harm(scene):
    world = scene.world
    world.launch()
    world.cluster.events = 0
    world.cluster.run(ID, "task")
    scene.start()
    scene.monitor.poke(TaskId("8" * 26), "x")
    scene.monitor.poke(ID, "nonce")
    scene.until(lambda: world.task.state is State.COMPLETE)


def test_a_bug_while_reconciling_ends_the_task(scene):
    world = scene.world
    world.launch()
    scene.start()
    world.cluster.fail("observe", ZeroDivisionError())
    world.cluster.start(ID, "task")
    scene.until(lambda: world.task.outcome is not None and world.task.outcome.reason == "InternalError")


def test_the_loops_survive_a_store_that_is_away(scene, caplog):
    world = scene.world
    world.repository.down = True
    scene.start()
    scene.monitor.poke(ID, "nonce")
    world.clock.advance(timedelta(seconds=60))
    scene.until(lambda: {"loop_failed", "wake_failed"} <= {record.message for record in caplog.records})
    world.repository.down = False
    scene.until(lambda: (ID, Stage.PREPARE) in scene.queue.published)


def test_events_of_a_pod_being_made_publish_no_second_chain():
    scene = Scene(FILES)
    scene.monitor._reconcile(ID, None)
    assert scene.queue.published == []
    scene.world.link(Role.TORC)
    scene.monitor._reconcile(ID, None)
    assert scene.queue.published == []


def test_events_are_told_as_often_as_the_test_wants():
    cluster = MemoryCluster(World().clock)
    told: list[str] = []
    cluster.follow(told.append)
    for times in (0, 1, 2):
        cluster.events = times
        cluster.delete_all(stored())
    assert len(told) == 3
