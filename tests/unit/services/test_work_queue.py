"""The work queue. Threads are real; every wait is for a condition, with a deadline."""

import threading
import time
from collections import Counter
from datetime import timedelta

import pytest

from poiesis.domain.errors import ClusterUnavailable
from poiesis.domain.task import TaskId
from poiesis.services import work_queue as module
from poiesis.services.work_queue import MAX_FAILURES, MAX_SETTLES, PATIENCE, WorkQueue, back_off_s

PATIENCE_S = 20.0
A, B = TaskId("a"), TaskId("b")


class Handler:
    """Records every call; blocks calls while `hold` is set, until `go`."""

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
            raise ClusterUnavailable("unavailable")

    def go(self) -> None:
        self.hold = False
        self._go.set()

    def wait(self, count: int) -> None:
        """Wait until there were `count` calls and none is running."""
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


def test_wake_ups_without_a_hint_keep_the_last_one(handler, work):
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


def test_failures_are_retried_a_bounded_number_of_times(handler, work):
    handler.fails = 1000
    work.wake(A)
    handler.wait(MAX_FAILURES + 1)
    handler.fails = 0
    work.wake(B)
    handler.wait(MAX_FAILURES + 2)
    assert Counter(task_id for task_id, _ in handler.calls) == {"a": MAX_FAILURES + 1, "b": 1}


def test_back_off_grows_up_to_a_bound():
    delays = [back_off_s(failures) for failures in range(1, MAX_FAILURES + 20)]
    assert delays == sorted(delays)
    assert (delays[0], delays[-1]) == (0.2, 30)


def test_a_task_that_backs_off_is_retried_while_others_keep_the_queue_busy(handler):
    """One thread, always with something to do."""
    queue = WorkQueue(lambda task_id, hint: busy(task_id), 1)
    seen: list[str] = []
    done = threading.Event()

    def busy(task_id: str) -> None:
        seen.append(task_id)
        if task_id == "a":
            if seen.count("a") == 1:
                raise ClusterUnavailable("unavailable")
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


def test_events_settle_longer_the_more_tasks_are_queued(handler):
    queue = WorkQueue(handler, 1, settle=timedelta(seconds=1))
    began = time.monotonic()
    for i in range(100):
        queue.wake(TaskId(str(i)))
        queue.wake(TaskId(str(i)))
    waits = sorted(at - began for at, _ in queue._heap)
    assert len(waits) == 100
    assert 1 <= waits[0] < 2 and MAX_SETTLES <= waits[-1] < MAX_SETTLES + 1


def test_a_hint_waits_for_nothing(handler):
    queue = WorkQueue(handler, 1, settle=timedelta(hours=1))
    queue.start()
    queue.wake(A)
    queue.wake(A, "hint")
    handler.wait(1)
    queue.close()
    assert handler.calls == [("a", "hint")]


def test_a_patient_wake_up_waits_longer_but_neither_delays_nor_replaces_another(handler):
    queue = WorkQueue(handler, 1, settle=timedelta(seconds=1))
    began = time.monotonic()
    for i in range(100):
        queue.wake(TaskId(str(i)), patient=True)
    assert PATIENCE <= queue._due[TaskId("0")] - began < PATIENCE + 1
    assert queue._due[TaskId("99")] - began >= PATIENCE * MAX_SETTLES
    queue.wake(A)
    queue.wake(TaskId("0"))
    queue.wake(A, patient=True)
    queue.wake(TaskId("0"), patient=True)
    assert all(1 <= queue._due[task_id] - began < 2 for task_id in (A, TaskId("0")))


def test_every_patient_wake_up_is_handled_in_the_end(handler):
    queue = WorkQueue(handler, 2, settle=timedelta(seconds=0.001))
    queue.start()
    for i in range(20):
        queue.wake(TaskId(str(i)), patient=True)
        queue.wake(TaskId(str(i)), "hint" if i % 2 else None)
    handler.wait(20)
    queue.close()
    assert {task_id for task_id, _ in handler.calls} == {str(i) for i in range(20)}
    assert not (queue._hints or queue._patient or queue._due)
