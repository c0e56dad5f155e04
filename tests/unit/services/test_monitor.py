"""The monitor. Threads are real; every wait is for a condition, with a deadline."""

import threading
import time
import tracemalloc
from datetime import timedelta

import pytest

from poiesis.domain.decide.stages import CLEAN_AGAIN, SOON
from poiesis.domain.errors import QueueUnavailable
from poiesis.domain.states import Role, Stage, State
from poiesis.domain.task import TaskId, TaskLog
from poiesis.ports.repository import TaskFilter
from poiesis.services import monitor as monitor_module
from poiesis.services import work_queue
from poiesis.services.deferred_cleanup import DeferredCleanup
from poiesis.services.monitor import MAX_PASSED_OVER, REPUBLISH, RESYNC, Monitor
from poiesis.testing.cluster import MemoryCluster
from poiesis.testing.queue import RecordingQueue
from tests.unit.domain.samples import FILES, ID, SMALL, World, stored

PATIENCE_S = 60.0


class Scene:
    def __init__(self, task_spec=SMALL) -> None:
        self.world = World(task_spec)
        self.queue = RecordingQueue()
        self.monitor = Monitor(
            self.world.orchestrator, self.world.repository, self.queue, self.world.cluster,
            self.world.clock, threads=2, resync_every=timedelta(milliseconds=20),
        )  # fmt: skip
        self.monitor._leads = True

    def start(self) -> None:
        self.monitor.listen()
        self.monitor.start()

    def until(self, condition) -> None:
        deadline = time.monotonic() + PATIENCE_S
        turn = threading.Event()
        while not condition():
            assert time.monotonic() < deadline, vars(self.world.repository)
            turn.wait(0.005)


@pytest.fixture
def scene():
    scene = Scene()
    yield scene
    scene.monitor.close()


def test_resync_publishes_overdue_tasks_and_checks_them_again_later(scene):
    world = scene.world
    assert scene.monitor.resync() == 0
    world.clock.advance(SOON)
    assert scene.monitor.resync() == 1
    assert scene.queue.published == [(ID, Stage.PREPARE)]
    assert scene.monitor.resync() == 0
    world.clock.advance(REPUBLISH)
    assert scene.monitor.resync() == 1


def test_resync_does_not_publish_links_that_are_probably_queued_but_not_forever(scene):
    world = scene.world
    scene.queue.backlog = {Role.TORC: 3}
    world.clock.advance(SOON)
    for _ in range(MAX_PASSED_OVER):
        assert scene.monitor.resync() == 1
        assert scene.monitor.resync() == 0, "it is checked again later"
        world.clock.advance(REPUBLISH)
    assert scene.queue.published == []
    assert scene.monitor.resync() == 1
    assert scene.queue.published == [(ID, Stage.PREPARE)]


def test_a_lost_link_is_published_at_once_if_its_queue_is_empty(scene):
    scene.queue.backlog = {Role.TEXAM: 3}
    scene.world.clock.advance(SOON)
    scene.monitor.resync()
    assert scene.queue.published == [(ID, Stage.PREPARE)]


def test_a_link_that_was_lost_after_its_queue_was_busy_is_published_again_soon(scene):
    world = scene.world
    for _ in range(MAX_PASSED_OVER):  # the queue holds it, and then its worker is killed
        scene.queue.backlog = {Role.TORC: 3}
        world.clock.advance(REPUBLISH)
        scene.monitor.resync()
    assert scene.queue.published == []
    scene.queue.backlog = {}
    for count in range(1, 4):
        world.clock.advance(REPUBLISH)
        scene.monitor.resync()
        assert len(scene.queue.published) == count


def test_a_link_that_is_lost_again_and_again_is_published_less_and_less(scene):
    published = []
    for _ in range(100):
        scene.world.clock.advance(REPUBLISH)
        scene.monitor.resync()
        published.append(len(scene.queue.published))
    assert published[:4] == [1, 2, 3, 4]
    assert published[-1] < 15, "doubled up to MAX_REPUBLISH"


def test_resync_without_a_queue_loses_nothing_and_still_wakes_running_tasks(scene):
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


def test_links_that_cannot_be_published_do_not_keep_running_tasks_from_their_turn(scene, monkeypatch):
    world = scene.world
    monkeypatch.setattr(monitor_module, "RESYNC_BATCH", 3)
    woken: list[str] = []
    scene.monitor._work.wake = lambda task_id, hint=None: woken.append(task_id)
    for number in range(5):
        world.repository.add(stored(id=TaskId(str(number) * 26), stage=Stage.FINISH, wake_at=world.now))
    run = TaskId("9" * 26)
    world.repository.add(stored(id=run, stage=Stage.RUN, wake_at=world.now + timedelta(seconds=1)))
    scene.queue.down = True
    world.clock.advance(timedelta(seconds=5))
    for _ in range(2):
        scene.monitor.resync()
    assert woken == [run]
    scene.queue.down = False
    world.clock.advance(REPUBLISH)
    for _ in range(3):
        scene.monitor.resync()
    assert sum(stage is Stage.FINISH for _, stage in scene.queue.published) == 5


def test_the_sweep_deletes_objects_of_unknown_tasks_and_wakes_done_ones(scene):
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


def test_an_event_ends_a_running_task_and_its_cleanup_is_published(scene):
    world = scene.world
    world.launch()
    scene.start()
    world.cluster.events = 2
    world.cluster.run(ID, "task")
    scene.until(lambda: world.task.state is State.COMPLETE)
    scene.until(lambda: (ID, Stage.CLEAN) in scene.queue.published)


@pytest.mark.parametrize("deferred", [False, True])
def test_the_links_of_a_task_are_published_for_its_owner(scene, deferred):
    world = scene.world
    world.change(owner="ada")
    if deferred:
        starting = ended_while_another_starts(scene)
        scene.monitor.listen()
        starting.clear()
    else:
        world.launch()
        world.cluster.run(ID, "task")
        scene.monitor._reconcile(ID, None)
    scene.until(lambda: scene.queue.published == [(ID, Stage.CLEAN)])
    assert scene.queue.owners == ["ada"]


def test_links_of_resync_do_not_wait_with_those_of_their_owners(scene):
    """It may publish thousands for one user, and does not read for whom."""
    scene.world.change(owner="ada")
    scene.world.clock.advance(SOON)
    assert scene.monitor.resync() == 1
    assert scene.queue.owners == [RESYNC]


def test_a_due_link_is_published_once_however_many_events_come(scene):
    world = scene.world
    world.launch()
    world.cluster.run(ID, "task")
    for _ in range(5):
        scene.monitor._reconcile(ID, None)
    assert scene.queue.published == [(ID, Stage.CLEAN)]
    world.clock.advance(REPUBLISH)
    scene.monitor._reconcile(ID, None)
    assert scene.queue.published == [(ID, Stage.CLEAN)] * 2


def ended_while_another_starts(scene):
    """The tasks with pods that start, for which the clean-up of the ended one is deferred."""
    starting = [TaskId("7" * 26)]
    scene.monitor._cleanup = DeferredCleanup(
        lambda task_id, owner: scene.queue.publish(task_id, Stage.CLEAN, owner=owner), lambda: starting
    )
    scene.world.launch()
    scene.world.cluster.run(ID, "task")
    scene.monitor._reconcile(ID, None)
    return starting


def test_events_of_an_ended_task_with_deferred_cleanup_are_ignored(scene):
    world, starting = scene.world, ended_while_another_starts(scene)
    world.cluster.calls.clear()
    scene.monitor._reconcile(ID, None)
    assert (world.cluster.calls, scene.queue.published) == ([], [])
    scene.monitor.listen()
    starting.clear()
    scene.until(lambda: scene.queue.published == [(ID, Stage.CLEAN)])


def test_resync_does_not_publish_a_cleanup_that_is_deferred(scene):
    world, starting = scene.world, ended_while_another_starts(scene)
    world.clock.advance(CLEAN_AGAIN)
    assert scene.monitor.resync() == 1
    assert scene.queue.published == []
    starting.clear()
    assert list(scene.monitor._cleanup._take()) == [ID]
    world.clock.advance(REPUBLISH)
    assert scene.monitor.resync() == 1
    assert scene.queue.published == [(ID, Stage.CLEAN)], "a lost publication"


def test_a_failed_publication_is_retried_by_the_next_event(scene):
    world = scene.world
    world.launch()
    world.cluster.run(ID, "task")
    scene.queue.down = True
    with pytest.raises(QueueUnavailable):
        scene.monitor._reconcile(ID, None)
    scene.queue.down = False
    scene.monitor._reconcile(ID, None)
    assert scene.queue.published == [(ID, Stage.CLEAN)]


def test_resync_ends_a_running_task_without_any_event(scene):
    world = scene.world
    world.launch()
    world.cluster.events = 0
    scene.start()
    world.cluster.run(ID, "task")
    world.clock.advance(timedelta(seconds=60))
    scene.until(lambda: world.task.state is State.COMPLETE)


def test_a_poke_wakes_its_task_and_one_for_an_unknown_task_is_harmless(scene):
    world = scene.world
    world.launch()
    world.cluster.events = 0
    world.cluster.run(ID, "task")
    scene.start()
    scene.monitor.poke(TaskId("8" * 26), "x")
    scene.monitor.poke(ID, "nonce-1-1")
    scene.until(lambda: world.task.state is State.COMPLETE)


@pytest.mark.parametrize(
    "body",
    [
        b'{"name": "a", "ok": true}',
        b'{"name": "a", "ok": true, "stdout": "' + "\U0001f9ec".encode() + b"x" * 500 + b'"}',
    ],
)
def test_pending_pokes_are_bounded_in_real_bytes(scene, monkeypatch, body):
    """Of unknown tasks, while nothing consumes them."""
    limit = 500_000
    monkeypatch.setattr(monitor_module, "MAX_RECORDS_BYTES", limit)
    monkeypatch.setattr(work_queue, "MAX_KEYS", 1000)
    tracemalloc.start()
    try:
        for i in range(5000):
            scene.monitor.poke(TaskId(f"{i:026d}"), "0f", body)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < limit + 1_000_000


def test_a_bug_while_reconciling_ends_the_task(scene):
    world = scene.world
    world.launch()
    scene.start()
    world.cluster.fail("observe", ZeroDivisionError())
    world.cluster.start(ID, "task")
    scene.until(lambda: world.task.outcome is not None and world.task.outcome.reason == "InternalError")


def test_the_loops_survive_an_unavailable_store(scene, caplog):
    world = scene.world
    world.repository.down = True
    scene.start()
    scene.monitor.poke(ID, "nonce-1-1")
    world.clock.advance(timedelta(seconds=60))
    scene.until(lambda: {"loop_failed", "wake_failed"} <= {record.message for record in caplog.records})
    world.repository.down = False
    scene.until(lambda: (ID, Stage.PREPARE) in scene.queue.published)


def test_events_during_the_creation_of_a_pod_publish_no_second_chain():
    scene = Scene(FILES)
    scene.monitor._reconcile(ID, None)
    assert scene.queue.published == []
    scene.world.link(Role.TORC)
    scene.monitor._reconcile(ID, None)
    assert scene.queue.published == []


def test_the_fake_cluster_repeats_events_as_configured():
    cluster = MemoryCluster(World().clock)
    events: list[str] = []
    cluster.follow(events.append)
    for times in (0, 1, 2):
        cluster.events = times
        cluster.delete_all(ID, 1)
    assert len(events) == 3


# retention


def test_a_task_is_kept_for_the_retention_from_its_end(scene):
    world, week = scene.world, timedelta(days=7)
    scene.monitor.retention = week
    world.clock.advance(timedelta(days=8))
    world.change(state=State.COMPLETE, stage=Stage.DONE, log=TaskLog(end_time=world.now))
    assert scene.monitor.purge_expired() == 0, "it was created long ago and ended just now"
    world.clock.advance(week + timedelta(seconds=1))
    assert scene.monitor.purge_expired() == 1


def test_tasks_that_go_on_keep_none_from_being_purged(scene, monkeypatch):
    world = scene.world
    scene.monitor.retention = timedelta(days=7)
    monkeypatch.setattr(monitor_module, "PURGE_PAUSE_S", 0)
    for number in range(100):
        end = world.now if number % 2 else world.now + timedelta(days=9)
        log = TaskLog(end_time=end)
        world.repository.add(stored(id=TaskId(f"{number:026}"), stage=Stage.DONE, state=State.COMPLETE, log=log))
    world.clock.advance(timedelta(days=8))
    assert scene.monitor.purge_expired() == 50
    assert scene.monitor.purge_expired() == 0
    assert world.repository.count(TaskFilter()) == 51, "the task that has not ended too"
