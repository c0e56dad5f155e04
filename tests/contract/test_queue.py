"""The Queue port: publishes or fails promptly, from any thread, and keeps what it has accepted."""

import threading
import time
from collections.abc import Iterator

import pytest

from poiesis.domain.errors import QueueUnavailable
from poiesis.domain.states import Role, Stage
from poiesis.domain.task import TaskId
from poiesis.ports.queue import Queue
from poiesis.queue.app import make_app
from poiesis.queue.publisher import CeleryQueue
from poiesis.testing.queue import RecordingQueue

PROMPTLY_S = 15.0  # of a broker that does not exist


@pytest.fixture(params=["recording", "memory", "redis"])
def queue(request) -> Iterator[Queue]:
    made: Queue
    if request.param == "recording":
        made = RecordingQueue()
    elif request.param == "memory":
        made = CeleryQueue(make_app("memory://"))
    else:
        made = CeleryQueue(make_app(request.getfixturevalue("redis_url")))
    yield made
    made.close()


@pytest.fixture(params=["recording", "redis"])
def unavailable(request, free_port) -> Iterator[Queue]:
    made: Queue
    if request.param == "recording":
        made = RecordingQueue()
        made.down = True
    else:
        made = CeleryQueue(make_app(f"redis://127.0.0.1:{free_port}/0"))
    yield made
    made.close()


@pytest.mark.parametrize("stage", Stage)
def test_the_link_of_any_stage_is_accepted(queue, stage):
    queue.publish(TaskId("a"), stage)


def test_the_chain_of_a_new_task_is_accepted(queue):
    queue.begin(TaskId("a"), (Stage.PREPARE, Stage.STAGE_IN, Stage.LAUNCH))


def test_a_responsive_queue_is_ready(queue):
    queue.ready()


def test_links_are_counted_until_a_worker_takes_them(queue):
    before = {stage: queue.waiting(stage) for stage in (Stage.STAGE_IN, Stage.STAGE_OUT)}
    if isinstance(queue, RecordingQueue):
        queue.backlog = {Role.TIF: 2}
    else:
        for task_id in ("a", "b"):
            queue.publish(TaskId(task_id), Stage.STAGE_IN)
    assert queue.waiting(Stage.STAGE_IN) - before[Stage.STAGE_IN] == 2
    assert queue.waiting(Stage.STAGE_OUT) == before[Stage.STAGE_OUT]


def test_many_threads_publish_at_once(queue):
    errors: list[BaseException] = []

    def publish() -> None:
        try:
            for i in range(10):
                queue.publish(TaskId(str(i)), Stage.PREPARE)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=publish) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert errors == []


def test_an_unavailable_broker_fails_promptly(unavailable):
    began = time.monotonic()
    with pytest.raises(QueueUnavailable):
        unavailable.publish(TaskId("a"), Stage.PREPARE)
    for _ in range(5):  # calls right after a failure fail immediately
        with pytest.raises(QueueUnavailable):
            unavailable.publish(TaskId("a"), Stage.PREPARE)
    with pytest.raises(QueueUnavailable):
        unavailable.ready()
    with pytest.raises(QueueUnavailable):
        unavailable.waiting(Stage.PREPARE)
    assert time.monotonic() - began < PROMPTLY_S
