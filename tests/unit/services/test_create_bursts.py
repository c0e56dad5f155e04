"""A burst of creates is answered before its tasks are admitted, within bounds."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from poiesis.services.create_bursts import CHECK_S, EVERY_S, LEAST, LINGER_S, MAX_HOLD_S, SHARE, CreateBursts


class ManualWait(threading.Event):
    """An event whose waits move a clock, while `meanwhile` happens."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.meanwhile: Callable[[], None] = lambda: None

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        if not self.is_set():
            self.now += timeout
            self.meanwhile()
        return self.is_set()


@pytest.fixture
def closed() -> ManualWait:
    return ManualWait()


@pytest.fixture
def bursts(closed) -> CreateBursts:
    return CreateBursts(lambda: closed.now)


def create(bursts: CreateBursts, at_once: int, user: str = "ann") -> None:
    with ExitStack() as stack:
        for _ in range(at_once):
            stack.enter_context(bursts.creating(user))


def held_s(bursts: CreateBursts, closed: ManualWait) -> float:
    """For how long tasks wait from now on if a round takes no time, 60 s at most."""
    began = closed.now
    while bursts.hold(closed) and closed.now < began + 60:
        pass
    return closed.now - began


def test_nothing_is_held_without_a_burst(bursts, closed):
    assert held_s(bursts, closed) == 0
    create(bursts, LEAST - 1)
    assert held_s(bursts, closed) == 0


def test_creates_of_different_users_do_not_count_together(bursts, closed):
    with ExitStack() as stack:
        for number in range(LEAST):
            stack.enter_context(bursts.creating(f"user {number}"))
    assert held_s(bursts, closed) == 0


def test_tasks_wait_until_shortly_after_their_burst(bursts, closed):
    create(bursts, LEAST)
    assert LINGER_S <= held_s(bursts, closed) <= LINGER_S + 2 * CHECK_S
    assert held_s(bursts, closed) == 0


def test_tasks_of_other_users_are_admitted_meanwhile(bursts, closed):
    closed.meanwhile = lambda: create(bursts, LEAST)
    closed.meanwhile()
    began = closed.now
    with bursts.creating("bob"):
        assert list(bursts.hold(closed)) == ["ann"]
    assert closed.now - began == pytest.approx(EVERY_S, abs=CHECK_S)


def test_a_burst_goes_on_while_its_creates_wait_for_the_store(bursts, closed):
    with ExitStack() as stack:
        for _ in range(LEAST):
            stack.enter_context(bursts.creating("ann"))
        closed.now += 10 * LINGER_S
        assert held_s(bursts, closed) == pytest.approx(MAX_HOLD_S, abs=CHECK_S)


def test_creates_that_fail_count_no_longer(bursts, closed):
    for _ in range(LEAST):
        with pytest.raises(ZeroDivisionError), bursts.creating("ann"):
            raise ZeroDivisionError
    assert held_s(bursts, closed) == 0


def test_creates_without_end_hold_for_a_bounded_part_of_the_time(bursts, closed):
    closed.meanwhile = lambda: create(bursts, LEAST)
    closed.meanwhile()
    assert held_s(bursts, closed) == pytest.approx(MAX_HOLD_S, abs=CHECK_S)
    held, began = 0.0, closed.now
    while closed.now < began + 100:
        held += held_s(bursts, closed)
        closed.now += LINGER_S / 2  # a round of admission
        closed.meanwhile()
    assert 50 * SHARE <= held <= 100 * SHARE + CHECK_S


def test_a_burst_long_after_another_is_held_as_long(bursts, closed):
    closed.meanwhile = lambda: create(bursts, LEAST)
    closed.meanwhile()
    held_s(bursts, closed)
    closed.now += MAX_HOLD_S / SHARE
    closed.meanwhile()
    assert held_s(bursts, closed) == pytest.approx(MAX_HOLD_S, abs=2 * CHECK_S)


def test_a_closed_admitter_does_not_wait(bursts, closed):
    create(bursts, LEAST)
    closed.set()
    began = closed.now
    bursts.hold(closed)
    assert closed.now == began


def test_nothing_is_kept_of_users_without_a_burst(bursts, closed):
    for number in range(100):
        create(bursts, LEAST, f"user {number}")
        closed.now += 2 * LINGER_S
        bursts.hold(closed)
    assert not bursts._creating and not bursts._ends_at
