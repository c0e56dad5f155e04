"""Lanes on a real Redis: one Celery worker with one thread, started after everything was published, so the order is that of the queues."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from celery.signals import task_prerun

from poiesis.domain.states import Role, Stage
from poiesis.domain.task import TaskId
from poiesis.queue.app import make_app
from poiesis.queue.lanes import FROM, Lanes
from poiesis.queue.links import register
from poiesis.queue.publisher import CeleryQueue
from poiesis.queue.worker import ThreadWorker
from poiesis.services.orchestrator import Reason, Reconciled
from tests.unit.domain.samples import SMALL, stored

DEADLINE_S = 100.0


class Recorder:
    """An orchestrator that does nothing."""

    def __init__(self) -> None:
        self.tasks: list[TaskId] = []

    def reconcile(self, task_id: TaskId, *_: object, **__: object) -> Reconciled:
        self.tasks.append(task_id)
        return Reconciled(stored(SMALL), Reason.WAITING)


@pytest.fixture
def queue(redis_url) -> Iterator[CeleryQueue]:
    made = CeleryQueue(make_app(redis_url), Lanes(lambda: 0.0))
    yield made
    made.close()


@pytest.fixture
def order_of(redis_url) -> Callable[[int], list[TaskId]]:
    """The tasks of the next links, in the order in which they run."""

    def run(count: int) -> list[TaskId]:
        recorder = Recorder()
        with worker(redis_url, recorder):
            deadline = time.monotonic() + DEADLINE_S
            turn = threading.Event()
            while len(recorder.tasks) < count:
                assert time.monotonic() < deadline, len(recorder.tasks)
                turn.wait(0.02)
        return recorder.tasks

    return run


@contextmanager
def worker(redis_url: str, orchestrator: Any) -> Iterator[None]:
    app = make_app(redis_url)
    queue = CeleryQueue(app)
    register(app, orchestrator, queue)
    made = ThreadWorker(app, threads=1)
    made.start()
    try:
        yield
    finally:
        made.close(DEADLINE_S)
        queue.close()


def post(queue: CeleryQueue, owner: str | None, count: int) -> list[TaskId]:
    tasks = [TaskId(f"{owner}-{n}") for n in range(count)]
    for task in tasks:
        queue.begin(task, [Stage.LAUNCH], owner=owner)
    return tasks


def test_a_newcomer_is_launched_soon_whatever_another_user_has_posted(queue, order_of):
    many = post(queue, "ada", 300)
    few = post(queue, "bob", 10)
    assert queue.waiting(Stage.LAUNCH) == 310
    order = order_of(310)
    assert order.index(few[0]) <= len(FROM) * 11  # behind ten of the other user's in the first lane
    assert order.index(few[-1]) <= len(FROM) * 20
    assert sorted(order) == sorted(many + few)
    assert queue.waiting(Stage.LAUNCH) == 0


def test_a_heavy_user_is_not_starved_by_many_light_ones(queue, order_of):
    for n in range(20):
        post(queue, f"light{n}", 10)
    heavy = post(queue, "ada", 40)
    assert set(heavy[10:]) < set(
        order_of(240)[:61]
    )  # every second link; its first ten are in the lane of the light ones


def test_without_users_links_run_in_the_order_in_which_they_were_published(queue, order_of):
    tasks = post(queue, None, 150)
    assert order_of(150) == tasks


def test_all_links_of_a_chain_wait_in_the_lane_of_the_first(queue, order_of):
    stages = [Stage.PREPARE, Stage.STAGE_IN, Stage.LAUNCH]
    for n in range(11):
        queue.begin(TaskId(str(n)), stages, owner="ada")
    seen: dict[str, list[str]] = {}

    def note(task: Any, args: Any, **_: object) -> None:
        seen.setdefault(args[0], []).append(task.request.delivery_info["routing_key"])

    task_prerun.connect(note)
    try:
        order_of(33)
    finally:
        task_prerun.disconnect(note)
    assert seen["9"] == ["torc", "tif", "texam"]
    assert seen["10"] == ["torc.10", "tif.10", "texam.10"]


def test_links_of_a_version_without_lanes_run(queue, order_of):
    """They wait in the queues of the first lane."""
    for role in Role:
        stage = {"torc": Stage.FINISH, "tif": Stage.STAGE_IN, "texam": Stage.RUN, "tof": Stage.STAGE_OUT}[role.value]
        queue.publish(TaskId(role.value), stage)
    assert sorted(order_of(4)) == sorted(role.value for role in Role)
