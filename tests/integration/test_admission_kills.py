"""Two admitters at once, processes on a real store, killed at random moments: no cap is passed, no task is admitted twice or forgotten."""

import random
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from poiesis.domain.naming import new_task_id
from poiesis.domain.quotas import Amount, Claim
from poiesis.domain.states import Stage, State
from poiesis.domain.task import Executor, Task, TaskId, TaskSpec
from poiesis.ports.repository import TaskFilter
from tests.integration.admitter_process import open_stores

PROGRAM = Path(__file__).with_name("admitter_process.py")
TASKS = 60
MAX_TASKS, MAX_CORES, MAX_OF_USER = 6, 8, 4
SEED = random.SystemRandom().randrange(2**32)
DEADLINE_S = 240


class Admitters:
    """Two processes; `kill` kills one that has been running for a random time."""

    def __init__(self, where: str, directory: Path, chance: random.Random) -> None:
        self._where, self._directory, self._chance = where, directory, chance
        self.kills = 0
        self._processes = [self._start(number) for number in range(2)]
        self._kill_at: list[float | None] = [None, None]

    def kill_some(self) -> None:
        now = time.monotonic()
        for number, process in enumerate(self._processes):
            kill_at = self._kill_at[number]
            if kill_at is None and self._ready(number).exists():
                self._kill_at[number] = now + self._chance.uniform(0, 1.5)
            elif kill_at is not None and now >= kill_at:
                process.kill()
                assert process.wait() == -9, "it ended by itself"
                self.kills += 1
                self._kill_at[number] = None
                self._processes[number] = self._start(number)

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()

    def _start(self, number: int) -> subprocess.Popen[bytes]:
        ready = self._ready(number)
        ready.unlink(missing_ok=True)
        arguments = [self._where, str(ready), str(MAX_TASKS), str(MAX_CORES), str(MAX_OF_USER)]
        return subprocess.Popen([sys.executable, str(PROGRAM), *arguments])

    def _ready(self, number: int) -> Path:
        return self._directory / f"ready-{number}"


@pytest.fixture(params=["sqlite", "mongo"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:{tmp_path / 'tasks.sqlite'}"
    url: str = request.getfixturevalue("mongo_url")
    return url


@pytest.mark.timeout(2 * DEADLINE_S)
def test_killed_admitters_pass_no_cap_and_admit_every_task_once(where: str, tmp_path: Path) -> None:
    chance = random.Random(SEED)
    print(f"seed {SEED}")
    repository, store = open_stores(where)
    ids = []
    for number in range(TASKS):
        now = datetime.now(UTC)
        user = "abc"[number % 3]
        claim = Claim(user, Amount(tasks=1, millicores=1000 * chance.randint(0, 4)), "default")
        spec = TaskSpec((Executor("alpine", ("true",)),))
        task = Task(new_task_id(now), spec, now, stage=Stage.ADMIT, stage_since=now, owner=user, claim=claim)
        repository.add(task)
        ids.append(task.id)
    most, ends = Amount(), dict[TaskId, float]()
    admitters = Admitters(where, tmp_path, chance)
    deadline = time.monotonic() + DEADLINE_S
    try:
        while store.queued(None, limit=1) or store.held(None, limit=1):
            assert time.monotonic() < deadline, "tasks are left"
            held = store.held(None, limit=1000)
            total = Amount()
            for _, claim in held:
                total = total.plus(claim.amount)
            assert total.tasks <= MAX_TASKS and total.millicores <= 1000 * MAX_CORES, f"seed {SEED}: {total}"
            assert max(Counter(claim.user for _, claim in held).values(), default=0) <= MAX_OF_USER, f"seed {SEED}"
            most = Amount(*map(max, most, total))
            for task_id, _ in held:
                end = ends.setdefault(task_id, time.monotonic() + chance.uniform(0, 0.5))
                if time.monotonic() >= end:
                    task = repository.get(task_id)
                    ended = replace(task, state=State.COMPLETE, stage=Stage.DONE, wake_at=None)
                    assert repository.save(ended, seen=task.version)
            admitters.kill_some()
            time.sleep(0.005)
    finally:
        admitters.close()
    versions = Counter(repository.get(task_id).version for task_id in ids)
    assert versions == {3: TASKS}  # stored, admitted once, ended
    assert repository.count(TaskFilter(states=frozenset({State.COMPLETE}))) == TASKS
    assert admitters.kills and most.tasks >= MAX_OF_USER
    print(f"{admitters.kills} kills, at most {most} in flight")
    repository.close()
