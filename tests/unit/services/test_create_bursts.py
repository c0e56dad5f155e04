"""A burst of creates is answered before its tasks are admitted, within bounds."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from poiesis.services.create_bursts import CHECK_S, LEAST, LINGER_S, MAX_HOLD_S, SHARE, CreateBursts


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


def create(bursts: CreateBursts, at_once: int) -> None:
    with ExitStack() as stack:
        for _ in range(at_once):
            stack.enter_context(bursts.creating())


def held_s(bursts: CreateBursts, closed: ManualWait) -> float:
    began = closed.now
    bursts.hold(closed)
    return closed.now - began


def test_nothing_is_held_without_a_burst(bursts, closed):
    assert held_s(bursts, closed) == 0
    create(bursts, LEAST - 1)
    assert held_s(bursts, closed) == 0


def test_admission_is_held_until_shortly_after_a_burst(bursts, closed):
    create(bursts, LEAST)
    assert LINGER_S <= held_s(bursts, closed) <= LINGER_S + 2 * CHECK_S
    assert held_s(bursts, closed) == 0


def test_a_burst_goes_on_while_its_creates_wait_for_the_store(bursts, closed):
    with ExitStack() as stack:
        for _ in range(LEAST):
            stack.enter_context(bursts.creating())
        closed.now += 10 * LINGER_S
        assert held_s(bursts, closed) == pytest.approx(MAX_HOLD_S, abs=CHECK_S)


def test_creates_that_fail_count_no_longer(bursts, closed):
    for _ in range(LEAST):
        with pytest.raises(ZeroDivisionError), bursts.creating():
            raise ZeroDivisionError
    assert held_s(bursts, closed) == 0


def test_creates_without_end_hold_for_a_bounded_part_of_the_time(bursts, closed):
    """What a user who posts without pause can cost the tasks of others."""
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
    bursts.hold(closed)
    closed.now += MAX_HOLD_S / SHARE
    closed.meanwhile()
    assert held_s(bursts, closed) == pytest.approx(MAX_HOLD_S, abs=2 * CHECK_S)


def test_a_closed_admitter_is_not_held(bursts, closed):
    create(bursts, LEAST)
    closed.set()
    assert held_s(bursts, closed) == 0
