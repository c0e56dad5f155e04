"""Password logins: limited, cached, and without delaying other users."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable

import pytest

from poiesis.api import attempts, logins
from poiesis.api.errors import Refused
from poiesis.api.logins import PER_ADDRESS, PER_USER, REMEMBER_S, LoginGate

ADDRESS = "192.0.2.1"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def _no_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logins, "REFUSAL_DELAY_S", 0.0)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def _wait_s(error: Refused) -> int:
    assert error.status_code == 429
    return int((error.headers or {})["Retry-After"])


class Gate:
    """A `LoginGate` whose hash counts its calls; the valid password is "right"."""

    def __init__(self, clock: Clock) -> None:
        self.gate = LoginGate(clock)
        self.hashed = 0

    async def check(self, password: str, name: str = "ada", address: str = ADDRESS, stored: bytes = b"hash") -> bool:
        def verify() -> bool:
            self.hashed += 1
            return password == "right"

        return await self.gate.check(name, password, stored, address, verify)

    def run(
        self,
        *passwords: str,
        name: Callable[[int], str] = lambda i: "ada",
        address: Callable[[int], str] = lambda i: ADDRESS,
    ) -> list[bool]:
        async def all_() -> list[bool]:
            return [await self.check(p, name(i), address(i)) for i, p in enumerate(passwords)]

        return asyncio.run(all_())


@pytest.fixture
def gate(clock: Clock) -> Gate:
    return Gate(clock)


def test_a_right_password_is_hashed_once_while_it_is_used(gate: Gate, clock: Clock) -> None:
    for _ in range(10):
        assert gate.run("right") == [True]
        clock.now += logins.REMEMBER_S - 1
    assert gate.hashed == 1

    clock.now += 2
    assert gate.run("right") == [True]
    assert gate.hashed == 2


def test_wrong_passwords_are_refused_after_a_few_without_a_hash(gate: Gate, clock: Clock) -> None:
    assert gate.run(*(f"wrong {i}" for i in range(PER_ADDRESS.burst))) == [False] * PER_ADDRESS.burst
    with pytest.raises(Refused) as caught:
        gate.run("another")
    assert gate.hashed == PER_ADDRESS.burst
    assert 0 < _wait_s(caught.value) <= PER_ADDRESS.refill_s

    clock.now += _wait_s(caught.value)
    assert gate.run("right") == [True]


def test_users_from_another_address_can_log_in_during_an_attack(gate: Gate) -> None:
    gate.run(*(f"wrong {i}" for i in range(PER_ADDRESS.burst)), name=lambda i: f"user {i}")

    assert gate.run("right", address=lambda i: "192.0.2.2") == [True]


def test_a_cached_user_is_answered_while_the_address_is_over_its_limit(gate: Gate) -> None:
    gate.run("right")
    with pytest.raises(Refused):
        gate.run(*(f"wrong {i}" for i in range(PER_ADDRESS.burst + 1)))

    assert gate.run("right") == [True]


def test_attempts_from_many_addresses_are_limited_for_each_user(gate: Gate) -> None:
    with pytest.raises(Refused):
        gate.run(*(f"wrong {i}" for i in range(1000)), address=lambda i: f"address {i}")
    assert gate.hashed == PER_USER.burst


def test_right_passwords_do_not_count(gate: Gate) -> None:
    assert gate.run(*["right"] * 100, name=lambda i: f"user {i}") == [True] * 100


def test_many_connections_of_one_user_make_one_attempt(gate: Gate) -> None:
    async def together() -> list[bool]:
        return await asyncio.gather(*(gate.check("right") for _ in range(100)))

    assert asyncio.run(together()) == [True] * 100
    assert gate.hashed == 1


def test_concurrent_attempts_are_bounded(gate: Gate) -> None:
    release = threading.Event()

    async def flood() -> list[bool | BaseException]:
        def verify() -> bool:
            return release.wait(30)

        checks = [gate.gate.check(f"user {i}", "x", b"", f"address {i}", verify) for i in range(100)]
        tasks = [asyncio.ensure_future(check) for check in checks]
        while sum(task.done() for task in tasks) < 100 - logins.MAX_QUEUED:
            await asyncio.sleep(0)
        release.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    found = asyncio.run(flood())
    assert [type(f) for f in found].count(bool) == logins.MAX_QUEUED
    assert [type(f) for f in found].count(Refused) == 100 - logins.MAX_QUEUED


def test_a_refused_attempt_costs_nothing(gate: Gate, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(PER_USER.burst):
        gate.run(f"wrong {i}", address=lambda _, i=i: f"address {i}")  # type: ignore[misc]
    for limit in (0, logins.MAX_QUEUED):  # because of the queue, then of the user's limit
        monkeypatch.setattr(logins, "MAX_QUEUED", limit)
        for i in range(2 * PER_ADDRESS.burst):
            with pytest.raises(Refused):
                gate.run(f"wrong {i}", name=lambda _: "bob" if limit == 0 else "ada")  # noqa: B023

    assert gate.run(*(f"wrong {i}" for i in range(PER_ADDRESS.burst)), name=lambda i: "bob")[-1] is False


def test_a_changed_hash_revokes_cached_passwords(gate: Gate) -> None:
    gate.run("right")
    assert asyncio.run(gate.check("right", stored=b"another hash"))
    assert gate.hashed == 2


def test_the_cache_is_bounded_and_contains_no_password(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logins, "MAX_REMEMBERED", 3)
    monkeypatch.setattr(attempts, "MAX_BUCKETS", 5)
    gate.run(*["right"] * 10, name=lambda i: f"user {i}")
    for i in range(10):
        gate.run("wrong", name=lambda _, i=i: f"user {i}", address=lambda _, i=i: f"address {i}")  # type: ignore[misc]

    assert len(gate.gate._verified) == 3
    assert len(gate.gate._buckets._buckets) == 5
    assert "right" not in repr(gate.gate.__dict__)


def test_the_announced_delay_is_sufficient(gate: Gate, clock: Clock) -> None:
    for _ in range(50):
        try:
            gate.run(f"wrong {clock.now}")
        except Refused as error:
            clock.now += _wait_s(error)
            assert gate.run(f"wrong {clock.now}") == [False]
        clock.now += math.pi / 10


def test_guesses_from_elsewhere_do_not_lock_out_a_user_who_has_logged_in(gate: Gate, clock: Clock) -> None:
    gate.run("right")
    clock.now += REMEMBER_S + 1
    with pytest.raises(Refused):
        gate.run(*(f"wrong {i}" for i in range(1000)), address=lambda i: f"address {i}")

    assert gate.run("right") == [True]
    with pytest.raises(Refused):
        gate.run("wrong", address=lambda i: "another address")
