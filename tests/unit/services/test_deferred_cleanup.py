"""Cleanup deferred while pods start. Threads are real; every wait is for a condition, with a deadline."""

import threading
from datetime import timedelta

import pytest

from poiesis.domain.errors import QueueUnavailable
from poiesis.domain.task import TaskId
from poiesis.services.deferred_cleanup import DeferredCleanup

PATIENCE_S = 20.0
A, B, C = TaskId("a"), TaskId("b"), TaskId("c")


class Desk:
    def __init__(self, max_delay: timedelta = timedelta(hours=1)) -> None:
        self.published: list[str] = []
        self.starting: list[TaskId] = []
        self.error: Exception | None = None
        self._changed = threading.Condition()
        self.deferred_cleanup = DeferredCleanup(self.publish, lambda: list(self.starting), max_delay=max_delay)

    def publish(self, task_id: TaskId, owner: str | None) -> None:
        with self._changed:
            self.published.append(task_id)
            self._changed.notify_all()
        if self.error is not None:
            raise self.error

    def wait(self, expected: list[str]) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.published == expected, PATIENCE_S), self.published


@pytest.fixture
def desk():
    made = Desk()
    made.deferred_cleanup.start()
    yield made
    made.deferred_cleanup.close()


def test_nothing_is_deferred_while_no_pod_starts(desk):
    desk.deferred_cleanup.add(A)
    assert desk.published == ["a"]


def test_the_pod_of_the_ended_task_itself_defers_nothing(desk):
    desk.starting = [A]
    desk.deferred_cleanup.add(A)
    assert desk.published == ["a"]


def test_deferred_cleanup_is_published_in_order_when_only_ended_tasks_start(desk):
    desk.starting = [C]
    desk.deferred_cleanup.add(A)
    desk.deferred_cleanup.add(B)
    desk.deferred_cleanup.add(A)
    assert desk.published == []
    desk.starting = [A, B]
    desk.wait(["a", "b"])


def test_cleanup_is_deferred_for_a_limited_time():
    desk = Desk(max_delay=timedelta(milliseconds=20))
    desk.starting = [B]
    desk.deferred_cleanup.start()
    desk.deferred_cleanup.add(A)
    desk.wait(["a"])
    desk.deferred_cleanup.close()


def test_an_unavailable_broker_does_not_stop_cleanup(desk):
    desk.starting, desk.error = [C], QueueUnavailable("unavailable")
    desk.deferred_cleanup.add(A)
    desk.deferred_cleanup.add(B)
    desk.starting = []
    desk.wait(["a", "b"])
    desk.error = None
    desk.deferred_cleanup.add(C)
    desk.wait(["a", "b", "c"])


def test_an_unavailable_broker_is_reported_to_the_caller(desk):
    desk.error = QueueUnavailable("unavailable")
    with pytest.raises(QueueUnavailable):
        desk.deferred_cleanup.add(A)


def test_after_close_nothing_is_published():
    desk = Desk()
    desk.deferred_cleanup.start()
    desk.deferred_cleanup.close()
    desk.deferred_cleanup.add(A)
    assert desk.published == []
