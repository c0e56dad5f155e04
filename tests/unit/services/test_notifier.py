"""Jobs that repeat: at once while there is more, later when there is not, and after a failure."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest

from poiesis.domain.errors import RepositoryUnavailable
from poiesis.services.notifier import Job, Notifier

HOUR = timedelta(hours=1)


def run(job: Job, until: threading.Event) -> None:
    notifier = Notifier([job])
    notifier.start()
    try:
        assert until.wait(10)
    finally:
        notifier.close()


def test_a_job_runs_again_at_once_while_there_is_more() -> None:
    left, done = [3, 2, 1, 0], threading.Event()

    def work() -> int:
        count = left.pop(0)
        if count == 0:
            done.set()
        return count

    run(Job("work", work, HOUR), done)
    assert left == []


@pytest.mark.parametrize("error", [RepositoryUnavailable("away"), ZeroDivisionError()])
def test_a_job_that_failed_runs_again(error: Exception) -> None:
    results: list[Exception | int] = [error, error, 0]
    done = threading.Event()

    def work() -> int:
        result = results.pop(0)
        if isinstance(result, Exception):
            raise result
        done.set()
        return result

    run(Job("work", work, timedelta(milliseconds=1)), done)
    assert results == []


def test_a_job_that_waits_does_not_delay_the_others_nor_the_end() -> None:
    blocked, done = threading.Event(), threading.Event()

    def wait() -> int:
        return int(not blocked.wait(10))

    def finish() -> int:
        done.set()
        return 0

    notifier = Notifier([Job("blocked", wait, HOUR), Job("other", finish, HOUR)])
    notifier.start()
    assert done.wait(5)
    blocked.set()
    notifier.close()


def test_a_notifier_that_never_started_can_be_closed() -> None:
    Notifier([Job("work", lambda: 0, HOUR)]).close()
