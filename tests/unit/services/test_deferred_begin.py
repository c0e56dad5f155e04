"""Links of new tasks are published behind the answers, those of a burst once it has been answered, and none is lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator

import pytest

from poiesis.domain.states import Stage
from poiesis.domain.task import TaskId
from poiesis.services import deferred_begin
from poiesis.services.deferred_begin import DeferredBegin
from poiesis.testing.queue import RecordingQueue

STAGES = (Stage.PREPARE, Stage.LAUNCH)


class Hold:
    """Returns `users` at once, until the last call of a burst."""

    def __init__(self) -> None:
        self.users: Collection[str] = ()
        self.calls = 0

    def __call__(self, closed: threading.Event) -> Collection[str]:
        self.calls += 1
        closed.wait(0.001)
        return self.users


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.fixture
def hold() -> Hold:
    return Hold()


@pytest.fixture
def queue() -> RecordingQueue:
    return RecordingQueue()


@pytest.fixture
def deferred(queue: RecordingQueue, hold: Hold) -> Iterator[DeferredBegin]:
    deferred = DeferredBegin(queue, hold)
    deferred.start()
    yield deferred
    deferred.close()
    assert not deferred._thread.is_alive()


def ids(queue: RecordingQueue) -> list[str]:
    return [task_id for task_id, _ in queue.published]


def test_a_link_is_published_by_another_thread(deferred: DeferredBegin, queue: RecordingQueue) -> None:
    deferred.begin(TaskId("1"), STAGES, owner="ann")
    until(lambda: queue.published)
    assert queue.published == [(TaskId("1"), STAGES[0])] and queue.owners == ["ann"]


def test_links_of_a_burst_wait_in_their_order_and_those_of_others_do_not(
    deferred: DeferredBegin, queue: RecordingQueue, hold: Hold
) -> None:
    hold.users = {"ann"}
    for number in range(50):
        deferred.begin(TaskId(f"ann{number:02}"), STAGES, owner="ann")
    deferred.begin(TaskId("bob"), STAGES, owner="bob")
    until(lambda: queue.published)
    calls = hold.calls
    until(lambda: hold.calls > calls + 2)
    assert ids(queue) == ["bob"]
    hold.users = ()
    until(lambda: len(queue.published) == 51)
    assert ids(queue)[1:] == sorted(ids(queue)[1:])


def test_without_users_the_links_of_a_burst_wait_too(
    deferred: DeferredBegin, queue: RecordingQueue, hold: Hold
) -> None:
    hold.users = {""}
    deferred.begin(TaskId("1"), STAGES)
    until(lambda: hold.calls > 2)
    assert not queue.published
    hold.users = ()
    until(lambda: queue.published)


def test_what_is_left_is_published_at_the_end(queue: RecordingQueue, hold: Hold) -> None:
    hold.users = {"ann"}
    deferred = DeferredBegin(queue, hold)
    deferred.start()
    for number in range(20):
        deferred.begin(TaskId(f"{number:02}"), STAGES, owner="ann")
    deferred.close()
    assert len(queue.published) == 20
    deferred.begin(TaskId("late"), STAGES)
    assert ids(queue)[-1] == "late"


def test_a_queue_that_is_away_ends_neither_the_thread_nor_the_requests(
    deferred: DeferredBegin, queue: RecordingQueue, caplog: pytest.LogCaptureFixture
) -> None:
    queue.down = True
    deferred.begin(TaskId("1"), STAGES)
    until(lambda: "publish_failed" in caplog.messages)
    queue.down = False
    deferred.begin(TaskId("2"), STAGES)
    until(lambda: queue.published)
    assert ids(queue) == ["2"]


def test_more_than_fit_are_published_at_once(queue: RecordingQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deferred_begin, "MAX_DEFERRED", 3)

    def hold(closed: threading.Event) -> Collection[str]:
        closed.wait(10)
        return ()

    deferred = DeferredBegin(queue, hold)
    deferred.start()
    for number in range(5):
        deferred.begin(TaskId(str(number)), STAGES, owner="ann")
    assert ids(queue) == ["3", "4"]
    deferred.close()
    assert ids(queue) == ["3", "4", "0", "1", "2"]


def test_other_calls_are_passed_on(deferred: DeferredBegin, queue: RecordingQueue) -> None:
    deferred.publish(TaskId("1"), Stage.RUN, owner="ann")
    assert queue.published == [(TaskId("1"), Stage.RUN)]
    assert deferred.waiting(Stage.RUN) == queue.waiting(Stage.RUN)
    deferred.ready()
