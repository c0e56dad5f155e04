"""The overview over real stores: SQLite and MongoDB give the same figures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from poiesis.domain.naming import new_task_id
from poiesis.domain.states import Stage, State
from poiesis.domain.task import Executor, ExecutorLog, Outcome, Resources, Task, TaskLog, TaskSpec
from poiesis.services.overview import OverviewService
from poiesis.services.usage import UsageService
from poiesis.testing.clock import ManualClock
from poiesis.testing.usage import MemoryUsageStore
from tests.contract.stores import Stores, in_mongo, in_sqlite

SPEC = TaskSpec((Executor("alpine", ("true",)),), resources=Resources(cpu_cores=2))


@pytest.fixture(params=["sqlite", "mongo"])
def stores(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stores]:
    is_mongo = request.param == "mongo"
    made = in_mongo(request.getfixturevalue("mongo_url")) if is_mongo else in_sqlite(tmp_path / "tasks.sqlite")
    yield made
    made.close()


def test_the_overview_follows_tasks_from_their_creation_to_their_end(stores: Stores) -> None:
    clock = ManualClock()
    usage = UsageService(stores.events, MemoryUsageStore(), clock, ())
    service = OverviewService(stores.tasks, usage, None, clock)

    def create(owner: str) -> Task:
        now = clock.advance(timedelta(microseconds=1))
        task = Task(new_task_id(now), SPEC, now, owner=owner).recorded(now)
        stores.tasks.add(task)
        return stores.tasks.get(task.id)

    def save(task: Task, **changes: object) -> Task:
        changed = replace(task, **changes).recorded(clock.now())  # type: ignore[arg-type]
        assert stores.tasks.save(changed, seen=task.version)
        return stores.tasks.get(task.id)

    def figures(owner: str | None) -> tuple[object, ...]:
        while stores.events.relay(100):
            pass
        clock.advance(timedelta(seconds=5))
        found = service.read(owner)
        return found.running, found.waiting, found.failed, found.ended_count, found.total.cpu.idle

    ada, bob = create("ada"), create("bob")
    assert figures(None) == (0, [("", 2)], [], 0, 0.0)
    ada = save(ada, state=State.INITIALIZING, waiting="NoNode: none")
    bob = save(bob, state=State.RUNNING)
    assert figures(None) == (1, [("NoNode", 1)], [], 0, 0.0)
    assert figures("bob") == (1, [], [], 0, 0.0)
    begun = clock.now()
    log = TaskLog((ExecutorLog(1, begun, begun + timedelta(seconds=10)),), metadata={"executor_0_cpu_seconds": "5"})
    outcome = Outcome(State.EXECUTOR_ERROR, "OutOfMemory", "used too much")
    save(bob, state=State.EXECUTOR_ERROR, stage=Stage.DONE, wake_at=None, log=log, outcome=outcome)
    assert figures(None) == (0, [("NoNode", 1)], [("OutOfMemory", 1)], 1, 15.0)
    assert figures("ada") == (0, [("NoNode", 1)], [], 0, 0.0)
    clock.advance(timedelta(hours=2))
    assert usage.roll_up() > 0
    assert figures("bob") == (0, [], [("OutOfMemory", 1)], 1, 15.0)
