"""Hourly sums of usage, and what is asked of them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from poiesis.domain.errors import RepositoryUnavailable
from poiesis.domain.states import State
from poiesis.domain.task import TaskId
from poiesis.ports.events import Event
from poiesis.ports.usage import HOUR, Kind, Use
from poiesis.services import usage as module
from poiesis.services.usage import OTHER, UsageService, hour_of
from poiesis.testing.clock import ManualClock
from poiesis.testing.usage import MemoryUsageStore

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


class Log:
    def __init__(self) -> None:
        self.events: list[Event] = []
        self.reads = 0
        self.backlog = 0
        self.missing = NOON

    def end(self, at: datetime, owner: str | None = "ada", **more: Any) -> None:
        usage = more.pop("usage", {"cpu_seconds": 2.0, "peak_memory_bytes": 5.0})
        seq = len(self.events) + 1
        state = more.pop("state", State.COMPLETE)
        self.events.append(Event(seq, TaskId(f"t{seq}"), 5, state, at, owner=owner, usage=usage, **more))

    def first_seq(self) -> int:
        return 1

    def last_seq(self) -> int:
        return len(self.events)

    def after(self, seq: int, *, limit: int, access: Any = None, task_id: Any = None) -> list[Event]:
        return self.events[seq : seq + limit]

    def ended_between(self, begin: datetime, end: datetime) -> Iterator[Event]:
        self.reads += 1
        return iter(sorted((e for e in self.events if begin <= e.at < end), key=lambda e: e.at))

    def relay(self, limit: int) -> int:
        relayed, self.backlog = min(self.backlog, limit), max(0, self.backlog - limit)
        return relayed

    def missing_since(self) -> datetime | None:
        return self.missing if self.backlog else None

    def purge(self, before: datetime, *, limit: int) -> int:
        return 0


class World:
    def __init__(self) -> None:
        self.log = Log()
        self.store = MemoryUsageStore()
        self.clock = ManualClock(NOON)
        self.service = UsageService(self.log, self.store, self.clock, ("project",))

    def at(self, moment: datetime) -> None:
        self.clock.advance(moment - self.clock.now())


@pytest.fixture
def world() -> World:
    return World()


def test_hours_that_are_over_are_stored_once_and_nothing_is_lost_at_their_borders(world: World) -> None:
    for minutes in (0, 59, 60, 61, 119):
        world.log.end(NOON + minutes * MINUTE)
    world.at(NOON + 2 * HOUR + 4 * MINUTE)
    assert world.service.roll_up() == 1  # the second one is not settled
    world.at(NOON + 2 * HOUR + 5 * MINUTE)
    assert world.service.roll_up() == 1
    assert world.service.roll_up() == 0
    assert [use.figures["tasks"] for use in world.store.between(Kind.USER, NOON, NOON + 9 * HOUR)] == [2.0, 3.0]


def test_nothing_is_summed_before_the_log_has_all_saves(world: World) -> None:
    world.log.end(NOON)
    world.at(NOON + 2 * HOUR)
    world.log.backlog = 700
    assert world.service.roll_up() == 500
    assert world.store.rolled_until() is None
    assert [world.service.roll_up() for _ in range(2)] == [1, 0]


def test_saves_that_never_stop_keep_no_hour_that_is_over_from_being_summed(world: World) -> None:
    world.log.end(NOON)
    world.at(NOON + 2 * HOUR)
    world.log.backlog, world.log.missing = 10**6, world.clock.now() - MINUTE
    assert [world.service.roll_up() for _ in range(2)] == [1, 0], "or the job repeats without a pause"
    assert world.store.rolled_until() == NOON + HOUR


def test_doing_it_again_after_a_crash_changes_nothing(world: World) -> None:
    world.log.end(NOON, groups=("lab",), tags={"project": "x"})
    world.at(NOON + 3 * HOUR)
    world.service.roll_up()
    before = [list(world.store.between(kind, NOON, NOON + 9 * HOUR)) for kind in Kind]
    world.store.replace(NOON, [])  # half done
    again = UsageService(world.log, world.store, world.clock, ("project",))
    world.store._hours = {}
    again.roll_up()
    assert [list(world.store.between(kind, NOON, NOON + 9 * HOUR)) for kind in Kind] == before


def test_a_failure_of_the_store_is_made_up_for(world: World) -> None:
    class Failing(MemoryUsageStore):
        failures = 1

        def replace(self, *args: Any) -> None:
            if self.failures:
                self.failures -= 1
                raise RepositoryUnavailable("down")
            super().replace(*args)

    world.log.end(NOON)
    world.at(NOON + 2 * HOUR)
    world.service.store = Failing()
    with pytest.raises(RepositoryUnavailable):
        world.service.roll_up()
    assert world.service.roll_up() == 1


def test_sums_are_by_user_group_and_configured_tag(world: World) -> None:
    world.log.end(NOON, "ada", groups=("lab", "all"), tags={"project": "x", "run": "1"})
    world.log.end(NOON + MINUTE, "bob", groups=("lab",), usage={"cpu_seconds": 1.0, "peak_memory_bytes": 9.0})
    world.log.end(NOON + MINUTE, None)
    world.at(NOON + 2 * HOUR)
    for _ in range(2):  # from the events, and then from the stored sums

        def by(kind: Kind, **more: Any) -> Any:
            return world.service.usage(kind, NOON, NOON + HOUR, **more).uses

        ada = {"tasks": 1.0, "cpu_seconds": 2.0, "peak_memory_bytes": 5.0}
        assert by(Kind.USER) == {
            "ada": ada,
            "bob": {"tasks": 1.0, "cpu_seconds": 1.0, "peak_memory_bytes": 9.0},
            "": ada,
        }
        assert by(Kind.USER, owner="ada") == {"ada": ada}
        assert by(Kind.GROUP, names=["lab"]) == {"lab": {"tasks": 2.0, "cpu_seconds": 3.0, "peak_memory_bytes": 9.0}}
        assert by(Kind.TAG) == {"project=x": ada}
        assert by(Kind.TAG, owner="bob") == {}
        world.service.roll_up()


def test_the_open_hour_is_read_from_the_events_and_kept_for_a_while(world: World) -> None:
    world.log.end(NOON)
    world.at(NOON + 30 * MINUTE)
    found = world.service.usage(Kind.USER, NOON, NOON + 9 * HOUR)
    assert found.uses["ada"]["tasks"] == 1.0
    assert found.until == NOON + 30 * MINUTE
    world.service.usage(Kind.TAG, NOON, NOON + 9 * HOUR)
    assert world.log.reads == 1
    world.log.end(NOON + 31 * MINUTE, usage={})
    world.clock.advance(MINUTE)
    found = world.service.usage(Kind.USER, NOON, NOON + 9 * HOUR)
    assert (found.until, found.uses["ada"]["tasks"], world.log.reads) == (NOON + 31 * MINUTE, 2.0, 1)


def test_following_the_log_gives_the_same_as_reading_it_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EVENTS_AT_ONCE", 3)
    dice = random.Random(5)
    for step in range(60):
        for _ in range(dice.randrange(8)):
            world.log.end(world.clock.now() - dice.randrange(60) * timedelta(seconds=1), dice.choice(["ada", "bob"]))
        if dice.random() < 0.2:
            world.service.roll_up()
        if dice.random() < 0.6:
            world.clock.advance(dice.randrange(1, 30) * MINUTE)
        end = hour_of(world.clock.now()) + HOUR
        fresh = UsageService(world.log, world.store, world.clock, ("project",))
        for owner in (None, "ada"):
            asked = (end - 24 * HOUR, end)
            world.clock.advance(module.OPEN_FOR)
            assert world.service.by_hour(*asked, owner=owner) == fresh.by_hour(*asked, owner=owner), step
    assert world.log.reads > 60


def test_an_event_that_comes_while_the_open_hour_is_read_counts_once(world: World) -> None:
    read = world.log.ended_between

    def slow(begin: datetime, end: datetime) -> Iterator[Event]:
        world.log.end(NOON)
        return read(begin, end)

    world.log.end(NOON)
    world.log.ended_between = slow  # type: ignore[method-assign]
    world.service.by_hour(NOON, NOON + HOUR)
    world.clock.advance(module.OPEN_FOR)
    assert world.service.by_hour(NOON, NOON + HOUR).hours[NOON]["tasks"] == 2.0


def test_after_many_events_only_ends_are_read(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BEHIND", 3)
    for _ in range(2):
        for _ in range(4):
            world.log.end(NOON)
        world.clock.advance(MINUTE)
        world.service.by_hour(NOON, NOON + HOUR)
    assert world.log.reads == 2
    assert world.service.by_hour(NOON, NOON + HOUR).hours[NOON]["tasks"] == 8.0


def test_hours_count_ends_failures_and_waits(world: World) -> None:
    world.log.end(NOON, usage={"waiting_seconds": 1.0})
    world.log.end(NOON, usage={"waiting_seconds": 1.1}, state=State.EXECUTOR_ERROR, reason="OutOfMemory: too much")
    world.log.end(NOON, usage={"waiting_seconds": 1e9}, state=State.SYSTEM_ERROR, reason="<b>: odd")
    world.log.end(NOON, usage={}, state=State.CANCELED, reason="Canceled: by request")
    for _ in range(2):  # from the events, and then from the stored sums
        found = world.service.by_hour(NOON - HOUR, NOON + 9 * HOUR, owner="ada")
        counts = {name: value for name, value in found.hours[NOON].items() if ":" in name}
        assert counts == {
            **{f"ended:{state}": 1.0 for state in ("COMPLETE", "EXECUTOR_ERROR", "SYSTEM_ERROR", "CANCELED")},
            **{"failed:OutOfMemory": 1.0, "failed:Other": 1.0},
            **{"waited:1": 1.0, "waited:5": 1.0, "waited:more": 1.0},
        }
        assert found.names["ada"]["tasks"] == 4.0
        assert not any(":" in name for name in world.service.usage(Kind.USER, NOON, NOON + HOUR).uses["ada"])
        world.at(NOON + 2 * HOUR)
        world.service.roll_up()


def test_stored_hours_are_read_once(world: World) -> None:
    world.log.end(NOON)
    world.at(NOON + 2 * HOUR)
    world.service.roll_up()
    reads: list[object] = []
    between = world.store.between

    def counted(*arguments: Any, **named: Any) -> Any:
        reads.append(arguments)
        return between(*arguments, **named)

    world.store.between = counted  # type: ignore[method-assign]
    for _ in range(5):
        assert world.service.by_hour(NOON, NOON + 9 * HOUR).hours[NOON]["tasks"] == 1.0
    assert len(reads) == 1
    world.at(NOON + 3 * HOUR + 6 * MINUTE)
    world.service.roll_up()
    world.service.by_hour(NOON, NOON + 9 * HOUR)
    assert len(reads) == 2


def test_a_period_that_is_not_summed_yet_says_until_when_it_is_complete(world: World) -> None:
    world.log.end(NOON)
    world.at(NOON + 2 * HOUR)
    world.service.roll_up()
    world.at(NOON + 100 * HOUR)
    found = world.service.usage(Kind.USER, NOON, NOON + 200 * HOUR)
    assert found.until == NOON + 25 * HOUR
    assert found.uses["ada"]["tasks"] == 1.0
    for _ in range(4):
        found = world.service.usage(Kind.USER, NOON, NOON + 200 * HOUR)
    assert found.until == NOON + 100 * HOUR


def test_many_hours_are_made_up_for_in_steps(world: World) -> None:
    world.log.end(NOON)
    world.at(NOON + 100 * HOUR)
    steps = []
    while done := world.service.roll_up():
        steps.append(done)
    assert steps == [24, 24, 24, 24, 3]


def test_a_user_with_many_values_of_a_tag_costs_a_bounded_number_of_sums(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_VALUES", 3)
    for i in range(10):
        world.log.end(NOON, tags={"project": str(i)})
    world.at(NOON + 2 * HOUR)
    world.service.roll_up()
    found = world.service.usage(Kind.TAG, NOON, NOON + HOUR).uses
    assert {name: figures["tasks"] for name, figures in found.items()} == {
        "project=0": 1.0,
        "project=1": 1.0,
        "project=2": 1.0,
        f"project={OTHER}": 7.0,
    }


def test_many_values_of_a_tag_over_a_period_are_a_bounded_number_of_sums(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_NAMES", 3)
    for i in range(10):
        world.log.end(NOON + i * HOUR, tags={"project": str(i)}, owner=f"u{i}")
    world.log.end(NOON + 9 * HOUR, tags={"project": "0"})
    world.at(NOON + 9 * HOUR)
    world.service.roll_up()
    world.at(NOON + 10 * HOUR)
    found = world.service.usage(Kind.TAG, NOON, NOON + 10 * HOUR).uses
    assert {name: figures["tasks"] for name, figures in found.items()} == {
        "project=0": 2.0,
        "project=1": 1.0,
        "project=2": 1.0,
        f"project={OTHER}": 7.0,
    }
    assert len(world.service.usage(Kind.USER, NOON, NOON + 10 * HOUR).uses) == 11, "users are all there"


def test_the_stored_sums_of_a_long_period_are_not_kept_in_memory(world: World) -> None:
    living = 0
    most = 0

    class Counted(Use):
        def __del__(self) -> None:
            nonlocal living
            living -= 1

    def between(kind: Kind, begin: datetime, end: datetime, **_: Any) -> Iterator[Use]:
        nonlocal living, most
        for hour in range(1_000):
            living += 1
            most = max(most, living)
            yield Counted(begin + hour * HOUR, kind, "ada", "ada", {"tasks": 1.0})

    world.log.end(NOON - 2_000 * HOUR)
    world.store.between = between  # type: ignore[method-assign]
    world.store.replace(NOON - HOUR, [])
    found = world.service.usage(Kind.USER, NOON - 1_000 * HOUR, NOON)
    assert found.uses["ada"]["tasks"] == 1_000.0
    assert most < 10


def test_an_empty_log_has_no_usage(world: World) -> None:
    assert world.service.roll_up() == 0
    assert world.service.usage(Kind.USER, NOON - HOUR, NOON).uses == {}
