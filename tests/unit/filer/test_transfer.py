"""The pool of threads, and retries."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from datetime import timedelta

import pytest

from poiesis.domain.errors import NotFound, StorageUnavailable
from poiesis.filer.transfer import Cancelled, Changed, Control, Exhausted, Job, Pool
from tests.unit.filer.tasks import quick


def control(waits: list[float], **changes: object) -> Control:
    return Control(quick(**changes), sleep=waits.append)


def failing(times: int, error: Exception, done: list[int]):
    def call() -> str:
        done.append(1)
        if len(done) <= times:
            raise error
        return "ok"

    return call


def test_a_transient_error_is_retried_with_back_off() -> None:
    waits: list[float] = []
    made = control(waits, attempts=6, retry_delay=timedelta(seconds=1), max_retry_delay=timedelta(seconds=4))
    assert made.repeat(failing(5, StorageUnavailable("x"), [])) == "ok"
    for wait, top in zip(waits, [1, 2, 4, 4, 4], strict=True):
        assert top / 2 <= wait <= top


def test_attempts_are_limited() -> None:
    done: list[int] = []
    with pytest.raises(Exhausted, match="after 3 attempts"):
        control([]).repeat(failing(9, StorageUnavailable("x"), done))
    assert len(done) == 3


def test_a_permanent_error_is_not_retried() -> None:
    for error in (NotFound("x"), Exhausted("x"), Cancelled("x")):
        done: list[int] = []
        with pytest.raises(type(error)):
            control([]).repeat(failing(9, error, done))
        assert len(done) == 1
    with pytest.raises(Changed):
        control([]).repeat(failing(9, Changed("x"), []), final=(Changed,))


def test_progress_restarts_the_count_of_attempts_but_not_endlessly() -> None:
    reached = 0
    done = 0

    def call() -> None:
        nonlocal reached, done
        done += 1
        reached += 1
        raise StorageUnavailable("x")

    with pytest.raises(Exhausted):
        control([], max_resumes=10).repeat(call, lambda: reached)
    assert 10 < done < 20


def test_cancellation_ends_a_wait() -> None:
    stopped = threading.Event()
    made = Control(quick(retry_delay=timedelta(seconds=60), max_retry_delay=timedelta(seconds=60)), stopped.is_set)
    threading.Timer(0.1, stopped.set).start()
    before = time.monotonic()
    with pytest.raises(Cancelled):
        made.repeat(failing(9, StorageUnavailable("x"), []))
    assert time.monotonic() - before < 10


def test_every_job_runs_once_and_no_more_at_a_time_than_threads() -> None:
    pool, lock = Pool(4), threading.Lock()
    ran: list[int] = []
    now = most = 0

    def job(i: int) -> Job:
        def run() -> None:
            nonlocal now, most
            with lock:
                now += 1
                most = max(most, now)
            time.sleep(0.001)
            with lock:
                now -= 1
                ran.append(i)

        return run

    pool.run(job(i) for i in range(200))
    assert sorted(ran) == list(range(200))
    assert 1 < most <= 4


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_nested_parts_finish_with_any_number_of_threads(threads: int) -> None:
    pool, lock = Pool(threads), threading.Lock()
    done: list[tuple[int, int]] = []

    def part(i: int, k: int) -> None:
        with lock:
            done.append((i, k))

    def job(i: int) -> Job:
        return lambda: pool.together(lambda i=i, k=k: part(i, k) for k in range(10))  # type: ignore[misc]

    pool.run([job(i) for i in range(10)])
    assert sorted(done) == [(i, k) for i in range(10) for k in range(10)]


def test_idle_threads_take_parts_of_the_only_job() -> None:
    pool = Pool(4)
    names: set[str] = set()
    met = threading.Barrier(4, timeout=10)

    def part() -> None:
        met.wait()
        names.add(threading.current_thread().name)

    pool.run([lambda: pool.together([part] * 4)])
    assert len(names) == 4


def test_the_first_error_of_parts_is_raised_after_all_have_ended() -> None:
    pool, ended = Pool(3), []

    def slow() -> None:
        time.sleep(0.05)
        ended.append(1)

    def bad() -> None:
        raise NotFound("part")

    seen: list[str] = []

    def job() -> None:
        try:
            pool.together([slow, bad, *[slow] * 50])
        except NotFound as error:
            seen.append(str(error))

    pool.run([job])
    assert seen == ["part"]
    assert len(ended) < 50


def test_parts_get_threads_while_the_next_job_is_awaited() -> None:
    pool, lock = Pool(4), threading.Lock()
    ran_by: set[int] = set()
    both = threading.Event()

    counted: list[int] = []

    def part() -> None:
        with lock:
            ran_by.add(threading.get_ident())
            if len(ran_by) > 2:
                both.set()
        if both.wait(0.2):
            counted.append(pool.running)

    def jobs() -> Iterator[Job]:
        yield lambda: pool.together([part] * 12)
        assert both.wait(10), "no other thread helped"

    pool.run(jobs())
    assert len(ran_by) > 2
    assert 3 <= max(counted) <= 4  # those with parts, and the one that draws


def test_a_limit_holds_until_it_is_lifted() -> None:
    pool, lock = Pool(8), threading.Lock()
    now = 0
    most: dict[str, int] = {}
    phase = "all"

    def job() -> None:
        nonlocal now
        mine = phase
        with lock:
            now += 1
            most[mine] = max(most.get(mine, 0), now)
        time.sleep(0.002)
        with lock:
            now -= 1

    def jobs() -> Iterator[Job]:
        nonlocal phase
        for phase, threads in (("all", 8), ("few", 2), ("again", 8)):  # noqa: B007
            pool.limit(threads)
            while pool.running > 1:  # itself
                time.sleep(0.001)
            yield from [job] * 100

    pool.run(jobs())
    assert most["few"] <= 3 < most["all"] <= 8  # the one that draws may exceed it, once
    assert 3 < most["again"] <= 8


def test_an_error_of_the_sequence_of_jobs_is_raised_at_the_end() -> None:
    ran: list[int] = []

    def jobs() -> Iterator[Job]:
        yield lambda: ran.append(1)
        raise NotFound("listing")

    with pytest.raises(NotFound, match="listing"):
        Pool(2).run(jobs())
    assert ran == [1]


def test_threads_are_only_started_for_work() -> None:
    seen: set[int] = set()

    def job() -> None:
        seen.add(threading.active_count())

    before = threading.active_count()
    Pool(64).run([job])
    assert max(seen) <= before + 2  # the one that works, and the one that waits for more


def test_parts_get_threads_although_there_is_one_job() -> None:
    pool, together = Pool(8), threading.Barrier(4, timeout=10)
    Pool.run(pool, [lambda: pool.together([together.wait] * 4, most=4)])
    assert not together.broken
