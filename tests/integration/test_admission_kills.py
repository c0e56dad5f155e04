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
TASKS = 120
MAX_TASKS, MAX_CORES, MAX_OF_USER = 6, 8, 4
SEED = random.SystemRandom().randrange(2**32)
DEADLINE_S = 240


def start(where: str) -> subprocess.Popen[bytes]:
    arguments = [where, str(MAX_TASKS), str(MAX_CORES), str(MAX_OF_USER)]
    return subprocess.Popen([sys.executable, str(PROGRAM), *arguments], stdout=subprocess.DEVNULL)


@pytest.fixture(params=["sqlite", "mongo"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:{tmp_path / 'tasks.sqlite'}"
    url: str = request.getfixturevalue("mongo_url")
    return url


@pytest.mark.timeout(2 * DEADLINE_S)
def test_killed_admitters_pass_no_cap_and_admit_every_task_once(where: str) -> None:
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
    kills, most, ends = 0, Amount(), dict[TaskId, float]()
    admitters = [start(where), start(where)]
    deadline = time.monotonic() + DEADLINE_S
    next_kill = time.monotonic() + 1.0
    try:
        while store.queues(None, limit=1) or store.held(None, limit=1):
            assert time.monotonic() < deadline, "tasks are left"
            held = store.held(None, limit=1000)
            total = Amount()
            for _, claim in held:
                total = total.plus(claim.amount)
            assert total.tasks <= MAX_TASKS and total.millicores <= 1000 * MAX_CORES, f"seed {SEED}: {total}"
            assert max(Counter(claim.user for _, claim in held).values(), default=0) <= MAX_OF_USER, f"seed {SEED}"
            most = Amount(*map(max, most, total))
            for task_id, _ in held:
                end = ends.setdefault(task_id, time.monotonic() + chance.uniform(0, 0.6))
                if time.monotonic() >= end:
                    task = repository.get(task_id)
                    ended = replace(task, state=State.COMPLETE, stage=Stage.DONE, wake_at=None)
                    assert repository.save(ended, seen=task.version)
            if time.monotonic() >= next_kill:
                index = chance.randrange(2)
                admitters[index].kill()
                admitters[index].wait()
                assert admitters[index].returncode == -9, "it ended by itself"
                admitters[index] = start(where)
                kills += 1
                next_kill = time.monotonic() + chance.uniform(0.3, 2.0)
    finally:
        for admitter in admitters:
            admitter.kill()
            admitter.wait()
    versions = Counter(repository.get(task_id).version for task_id in ids)
    assert versions == {3: TASKS}  # stored, admitted once, ended
    assert repository.count(TaskFilter(states=frozenset({State.COMPLETE}))) == TASKS
    assert kills >= 3 and most.tasks >= MAX_TASKS - 1
    print(f"{kills} kills, at most {most} in flight")
    repository.close()
