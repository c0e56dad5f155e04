"""What the overview shows of all tasks, and of one user's."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

import pytest

from poiesis.domain.capacity import Capacity
from poiesis.domain.errors import RepositoryUnavailable
from poiesis.domain.fair_share import Pool
from poiesis.domain.naming import new_task_id
from poiesis.domain.policy import Policy
from poiesis.domain.quotas import AdmissionRules, Amount, Claim, Quota
from poiesis.domain.states import Stage, State
from poiesis.domain.task import Executor, ExecutorLog, Outcome, Resources, Task, TaskLog, TaskSpec
from poiesis.ports.usage import HOUR
from poiesis.services import overview as module
from poiesis.services.admission import Admitter, WaitingReasons
from poiesis.services.overview import Overview, OverviewService, SharedOverviews, quantile
from poiesis.services.usage import WAIT_BOUNDS, UsageService
from poiesis.testing.admission import MemoryAdmissionStore
from poiesis.testing.clock import ManualClock
from poiesis.testing.events import MemoryEventLog
from poiesis.testing.queue import RecordingQueue
from poiesis.testing.repository import MemoryTaskRepository
from poiesis.testing.usage import MemoryUsageStore

SECOND = timedelta(seconds=1)
POLICY = Policy(
    admission=AdmissionRules(
        site=Quota(max_tasks=4, max_cpu_cores=8), groups={"lab": Quota(max_tasks=3)}, users={"ada": Quota(weight=2)}
    )
)


class World:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.repository = MemoryTaskRepository()
        self.usage = UsageService(MemoryEventLog(self.repository), MemoryUsageStore(), self.clock, ())
        self.admission = MemoryAdmissionStore(self.repository)
        reasons = WaitingReasons(self.admission, self.clock, POLICY)
        self.room: Capacity | None = None
        self.service = OverviewService(self.repository, self.usage, reasons, self.clock, lambda: self.room)

    def add(self, owner: str | None = "ada", **changes: Any) -> Task:
        now = self.clock.now()
        spec = TaskSpec((Executor("alpine", ("true",)),), resources=Resources(cpu_cores=2, ram_gb=4))
        task = Task(new_task_id(now), spec, now, owner=owner, **changes).recorded(now)
        self.repository.add(task)
        return task

    def end(
        self,
        owner: str | None = "ada",
        state: State = State.COMPLETE,
        reason: str | None = None,
        groups: tuple[str, ...] = (),
    ) -> None:
        now = self.clock.now()
        logs = (ExecutorLog(0, now - 2 * SECOND, now),)
        used = {"executor_0_cpu_seconds": "1", "executor_0_peak_memory_bytes": "1000000000"}
        log = TaskLog(logs=logs, metadata=used)
        outcome = None if reason is None else Outcome(state, reason, "<script>")
        self.add(owner, state=state, stage=Stage.DONE, log=log, outcome=outcome, groups=groups)


@pytest.fixture
def world() -> World:
    return World()


def test_an_empty_service_has_an_overview(world: World) -> None:
    found = world.service.read(None)
    assert (found.running, found.waiting_count, found.ended_count, found.failed_count) == (0, 0, 0, 0)
    assert len(found.hours) == 24 and found.median_wait is None
    assert found.total.cpu.used_part == 1.0


def test_users_see_only_their_own_figures(world: World) -> None:
    busy = "NodesBusy: 0/3"
    world.add(state=State.INITIALIZING, waiting=busy)
    world.add("bob", state=State.INITIALIZING, waiting=busy)
    world.add("bob", state=State.RUNNING)
    world.end("bob", State.EXECUTOR_ERROR, "OutOfMemory")
    world.end()
    mine, whole = world.service.read("ada"), world.service.read(None)
    assert (mine.running, mine.waiting, mine.failed, mine.ended_count) == (0, [("NodesBusy", 1)], [], 1)
    assert [user.name for user in mine.users] == ["ada"]
    assert (whole.running, whole.waiting, whole.failed) == (1, [("NodesBusy", 2)], [("OutOfMemory", 1)])
    assert {user.name for user in whole.users} == {"ada", "bob"}
    assert (whole.ended_count, whole.failed_count) == (2, 1)


def test_the_last_hours_are_in_order_whether_they_were_stored_or_not(world: World) -> None:
    for ended in range(30):
        for _ in range(ended):
            world.end()
        world.clock.advance(HOUR)
        if ended % 7 == 0:
            while world.usage.roll_up():
                pass
    found = world.service.read("ada")
    assert [hour.begin for hour in found.hours] == sorted(hour.begin for hour in found.hours)
    assert found.until == world.clock.now() or found.until < world.clock.now()
    while world.usage.roll_up():
        pass
    found = world.service.read("ada")
    assert [hour.complete for hour in found.hours] == [*range(7, 30), 0]
    assert found.total.tasks == sum(range(7, 30))


def test_waste_is_what_was_asked_for_and_not_used(world: World) -> None:
    world.end("bob")
    world.end()
    world.end()
    found = world.service.read(None)
    assert [user.name for user in found.users] == ["ada", "bob"]
    assert found.total.cpu == module.Waste(12.0, 9.0) and found.total.cpu.used_part == 0.25
    assert found.total.memory == module.Waste(24.0, 18.0)


@pytest.mark.parametrize("stored", [False, True])
def test_groups_have_the_sums_of_all_their_members_and_users_see_only_theirs(world: World, stored: bool) -> None:
    world.end("ada", groups=("lab",))
    world.end("bob", groups=("lab", "clinic"))
    world.end("eve")
    if stored:
        world.clock.advance(2 * HOUR)
        assert world.usage.roll_up() > 0
    whole = world.service.read(None)
    assert [(group.name, group.tasks, group.cpu.requested) for group in whole.groups] == [
        ("lab", 2, 8.0),
        ("clinic", 1, 4.0),
    ]
    assert whole.total.tasks == 3
    assert [(group.name, group.tasks) for group in world.service.read("ada", ("lab", "other")).groups] == [("lab", 2)]
    assert not world.service.read("eve").groups


def test_the_room_is_for_those_who_see_all(world: World) -> None:
    assert world.service.read(None).capacity is None
    world.room = Capacity(world.clock.now(), 1, 1, 1, Amount(), Amount(), Amount())
    assert world.service.read(None).capacity == world.room
    assert world.service.read("ada", ("lab",)).capacity is None


def test_quotas_are_those_of_the_user_and_their_groups(world: World) -> None:
    for owner, groups in (("ada", ("lab",)), ("bob", ("lab",)), ("eve", ())):
        claim = Claim(owner, Amount(1, 2000), "default", groups)
        world.add(owner, stage=Stage.ADMIT, wake_at=None, claim=claim)
    admitter = Admitter(world.repository, world.admission, RecordingQueue(), world.clock, POLICY)
    assert admitter.run_once() == 3
    world.clock.advance(SECOND)
    mine = world.service.read("ada", ("lab", "other")).pools
    assert [(use.pool, use.held.tasks, use.caps[0]) for use in mine] == [
        (Pool("user", "ada"), 1, None),
        (Pool("group", "lab"), 2, 3),
    ]
    assert (mine[0].share, mine[0].weight) == (0.25, 2)
    whole = world.service.read(None).pools
    assert [use.pool.name for use in whole] == ["", "default", "lab", "ada", "bob", "eve"]
    assert whole[0].share == 0.75


@pytest.mark.parametrize(
    ("counts", "part", "expected"),
    [
        ([0] * 10, 0.5, None),
        ([4] + [0] * 9, 0.5, 0.5),
        ([0, 4] + [0] * 8, 0.5, 3.0),
        ([1, 0, 0, 1] + [0] * 6, 1.0, 60.0),
        ([0] * 9 + [1], 0.5, float(WAIT_BOUNDS[-1])),
    ],
)
def test_a_quantile_is_about_where_it_is(counts: list[int], part: float, expected: float | None) -> None:
    assert quantile(counts, part) == expected


# shared by browsers


class Reader:
    def __init__(self, world: World) -> None:
        self.world, self.calls, self.may_end = world, 0, threading.Event()
        self.may_end.set()
        self.fails = False

    def __call__(self, owner: str | None, groups: Any) -> Overview:
        self.calls += 1
        assert self.may_end.wait(10)
        if self.fails:
            raise RepositoryUnavailable("down")
        return self.world.service.read(owner, groups)


def test_browsers_with_the_same_access_share_one_overview(world: World) -> None:
    reader = Reader(world)
    shared = SharedOverviews(reader, world.clock)
    first = shared.get("ada", ("b", "a"), wait_s=10)
    assert first is not None and shared.get("ada", ("a", "b"), wait_s=10) is first
    shared.get("bob", (), wait_s=10)
    shared.get(None, (), wait_s=10)
    assert reader.calls == 3
    world.clock.advance(module.KEPT_FOR)
    assert shared.get("ada", ("a", "b"), wait_s=10) is not first
    assert reader.calls == 4


def test_a_slow_store_delays_no_page(world: World) -> None:
    reader = Reader(world)
    shared = SharedOverviews(reader, world.clock)
    reader.may_end.clear()
    assert [shared.get("ada", (), wait_s=0.01) for _ in range(5)] == [None] * 5
    reader.may_end.set()
    first = shared.get("ada", (), wait_s=10)
    assert first is not None and reader.calls == 1
    world.clock.advance(module.KEPT_FOR)
    reader.may_end.clear()
    assert shared.get("ada", (), wait_s=0.01) is first
    reader.may_end.set()


def test_a_failure_is_reported_and_not_kept(world: World) -> None:
    reader = Reader(world)
    shared = SharedOverviews(reader, world.clock)
    reader.fails = True
    with pytest.raises(RepositoryUnavailable):
        shared.get(None, (), wait_s=10)
    reader.fails = False
    assert shared.get(None, (), wait_s=10) is not None


def test_overviews_of_many_users_are_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_KEPT", 5)
    shared = SharedOverviews(world.service.read, world.clock)
    for i in range(20):
        shared.get(f"user{i}", (), wait_s=10)
    assert len(shared._kept) == 5
