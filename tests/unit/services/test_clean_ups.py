"""Clean-ups that yield to starts. Threads are real; every wait is for a condition, with a deadline."""

import threading
from datetime import timedelta

import pytest

from poiesis.domain.errors import QueueUnavailable
from poiesis.domain.task import TaskId
from poiesis.services.clean_ups import CleanUps

PATIENCE_S = 20.0
A, B, C = TaskId("a"), TaskId("b"), TaskId("c")


class Desk:
    def __init__(self, patience: timedelta = timedelta(hours=1)) -> None:
        self.published: list[str] = []
        self.starting: list[TaskId] = []
        self.error: Exception | None = None
        self._changed = threading.Condition()
        self.clean_ups = CleanUps(self.publish, lambda: list(self.starting), patience=patience)

    def publish(self, task_id: TaskId) -> None:
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
    made.clean_ups.start()
    yield made
    made.clean_ups.close()


def test_nothing_is_held_while_nothing_starts(desk):
    desk.clean_ups.add(A)
    assert desk.published == ["a"]


def test_the_pod_of_the_ended_task_itself_holds_nothing(desk):
    desk.starting = [A]
    desk.clean_ups.add(A)
    assert desk.published == ["a"]


def test_what_is_held_goes_in_order_when_only_ended_tasks_are_shown_as_starting(desk):
    desk.starting = [C]
    desk.clean_ups.add(A)
    desk.clean_ups.add(B)
    desk.clean_ups.add(A)
    assert desk.published == []
    desk.starting = [A, B]
    desk.wait(["a", "b"])


def test_patience_ends_though_others_start_for_ever():
    desk = Desk(patience=timedelta(milliseconds=20))
    desk.starting = [B]
    desk.clean_ups.start()
    desk.clean_ups.add(A)
    desk.wait(["a"])
    desk.clean_ups.close()


def test_a_broker_that_is_away_stops_nothing(desk):
    desk.starting, desk.error = [C], QueueUnavailable("away")
    desk.clean_ups.add(A)
    desk.clean_ups.add(B)
    desk.starting = []
    desk.wait(["a", "b"])
    desk.error = None
    desk.clean_ups.add(C)
    desk.wait(["a", "b", "c"])


def test_a_broker_that_is_away_is_told_who_publishes_now(desk):
    desk.error = QueueUnavailable("away")
    with pytest.raises(QueueUnavailable):
        desk.clean_ups.add(A)


def test_after_close_nothing_is_published():
    desk = Desk()
    desk.clean_ups.start()
    desk.clean_ups.close()
    desk.clean_ups.add(A)
    assert desk.published == []
