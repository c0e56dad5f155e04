"""Admission: shares over time, a newcomer behind a long queue, the cost of a long queue, and creates in a burst.

    python -m bench admission shares
    python -m bench admission newcomer [--queued 5000]
    python -m bench admission queue [--queued 1000000]
    python -m bench admission create --url http://HOST:PORT [--tasks 1000] [--clients 8]

`shares` simulates three users with weights 1, 2 and 5, whose queues never end, on 80 slots; the second one arrives after ten minutes.
`newcomer` and `queue` run the real admitter on an SQLite file, tasks end by a timer. `create` posts tasks to a service.
"""

from __future__ import annotations

import argparse
import heapq
import http.client
import json
import random
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from urllib.parse import urlsplit

from poiesis.domain.fair_share import Candidate, Ledger, Pool, Queue, QueueKey, decide
from poiesis.domain.naming import new_task_id
from poiesis.domain.policy import Policy
from poiesis.domain.quotas import AdmissionRules, Amount, Claim, Quota
from poiesis.domain.states import Stage, State
from poiesis.domain.task import Executor, Task, TaskId, TaskSpec
from poiesis.repository.documents import encode_within_bounds
from poiesis.repository.sqlite import tasks as sqlite_tasks
from poiesis.repository.sqlite.admission import SqliteAdmissionStore
from poiesis.repository.sqlite.database import SqliteDatabase
from poiesis.repository.sqlite.tasks import SqliteTaskRepository
from poiesis.services.admission import Admitter
from poiesis.testing.queue import RecordingQueue

START = datetime(2026, 1, 1, tzinfo=UTC)
SLOTS = 20
GENERATION_S = 1.0


class RealClock:
    def now(self) -> datetime:
        return datetime.now(UTC)


def shares() -> None:
    weights = {"ann": 1, "bob": 2, "cleo": 5}
    users = {user: Quota(weight=weight) for user, weight in weights.items()}
    ledger = Ledger(AdmissionRules(site=Quota(max_tasks=80), users=users))
    running: list[tuple[datetime, TaskId]] = []
    chance = random.Random(1)
    print("| minute | " + " | ".join(f"{user} ({weight})" for user, weight in weights.items()) + " |")
    print("|---" * 4 + "|")
    count, spent = 0, Counter[str]()
    for second in range(5, 5401, 5):
        now = START + timedelta(seconds=second)
        while running and running[0][0] <= now:
            ledger.release(heapq.heappop(running)[1], now)
        queues = []
        for user in weights:
            if user == "bob" and second < 600:
                continue
            claim = Claim(user, Amount(tasks=1, millicores=1000), "default")
            heads = [Candidate(TaskId(f"{count + n:026d}"), 1, claim, now) for n in range(80)]
            count += 80
            queues.append(Queue(QueueKey(user, "default"), heads))
        for candidate in decide(ledger, queues, now, limit=80):
            heapq.heappush(running, (now + timedelta(seconds=chance.uniform(20, 100)), candidate.id))
        spent.update({user: ledger.sum(Pool("user", user)).tasks for user in weights})
        if second % 60 == 0 and second // 60 in (1, 5, 10, 11, 12, 15, 20, 30, 45, 60, 90):
            total = sum(spent.values())
            print(f"| {second // 60} | " + " | ".join(f"{spent[user] / total:.3f}" for user in weights) + " |")
        if second % 60 == 0:
            spent.clear()
    ideal = [weight / sum(weights.values()) for weight in weights.values()]
    print("| by weight | " + " | ".join(f"{part:.3f}" for part in ideal) + " |")


def a_task(user: str, number: int) -> Task:
    now = START + timedelta(microseconds=number)
    claim = Claim(user, Amount(tasks=1, millicores=1000), "default")
    spec = TaskSpec((Executor("alpine", ("true",)),))
    return Task(new_task_id(now), spec, now, stage=Stage.ADMIT, stage_since=now, owner=user, claim=claim)


def fill(database: SqliteDatabase, user: str, count: int) -> None:
    """As many rows as `SqliteTaskRepository.add` would write, in one transaction."""
    template = a_task(user, 0)
    head, core, bulk, _, readers = encode_within_bounds(template, sqlite_tasks._encode)
    columns = ("_id", "state", "wake_at", "due_stage", "owner", "name", "tags", "readers", "queued", "held")

    def renamed(text: object, task_id: str) -> object:
        return text.replace(str(template.id), task_id) if isinstance(text, str) else text

    with database.writing() as db:
        for number in range(count):
            task_id = str(new_task_id(START + timedelta(microseconds=number)))
            values = [renamed(head[column], task_id) for column in columns]
            names = "id, state, wake_at, due_stage, owner, name, tags, readers, queued, held, version"
            db.execute(f"INSERT INTO tasks ({names}) VALUES ({', '.join('?' * 10)}, 1)", values)
            db.execute("INSERT INTO documents VALUES (?, ?, ?)", (task_id, renamed(core, task_id), bulk))
            db.executemany("INSERT INTO readers VALUES (?, ?, 'QUEUED')", [(token, task_id) for token in readers])


class Site:
    """An admitter on an SQLite file with `queued` tasks of one user, and a cluster whose tasks take GENERATION_S."""

    def __init__(self, directory: str, queued: int, quota: Quota) -> None:
        database = SqliteDatabase(Path(directory) / "tasks.sqlite")
        begin = time.monotonic()
        fill(database, "greedy", queued)
        print(f"{queued} tasks queued in {time.monotonic() - begin:.0f} s")
        self.tasks, self.store = SqliteTaskRepository(database), SqliteAdmissionStore(database)
        policy = Policy(admission=AdmissionRules(site=quota))
        self.admitter = Admitter(self.tasks, self.store, RecordingQueue(), RealClock(), policy)
        self.ends: dict[TaskId, float] = {}

    def step(self) -> dict[TaskId, str]:
        """End what is due and do a round; return the users of what is in flight."""
        held = {task_id: claim.user for task_id, claim in self.store.held(None, limit=SLOTS + 1)}
        assert len(held) <= SLOTS
        for task_id in held:
            if time.monotonic() >= self.ends.setdefault(task_id, time.monotonic() + GENERATION_S):
                task = self.tasks.get(task_id)
                ended = replace(task, state=State.COMPLETE, stage=Stage.DONE, wake_at=None)
                assert self.tasks.save(ended, seen=task.version)
                self.admitter.ended(task_id)
        self.admitter.run_once()
        return held


def newcomer(queued: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        site = Site(directory, queued, Quota(max_tasks=SLOTS))
        begin = time.monotonic()
        while time.monotonic() - begin < 5 * GENERATION_S:
            site.step()
        mine = [a_task("newcomer", 10**7 + n) for n in range(10)]
        for task in mine:
            site.tasks.add(task)
        posted, started = time.monotonic(), dict[TaskId, float]()
        while len(started) < len(mine) and time.monotonic() - posted < 60:
            for task_id, user in site.step().items():
                if user == "newcomer":
                    started.setdefault(task_id, time.monotonic() - posted)
        times = sorted(started.values())
        print(
            f"generation {GENERATION_S:g} s; the newcomer's tasks started after "
            + ", ".join(f"{t:.2f}" for t in times)
            + " s"
        )


def queue(queued: int) -> None:
    for quota in (Quota(max_tasks=SLOTS), Quota(max_cpu_cores=SLOTS)):
        measure(queued, quota)


def measure(queued: int, quota: Quota) -> None:
    print(f"all that the site has is {SLOTS} {'tasks' if quota.max_tasks else 'cores'}")
    with tempfile.TemporaryDirectory() as directory:
        site = Site(directory, queued, quota)
        began = time.process_time()
        site.admitter.run_once()
        print(f"first round, {SLOTS} admitted: {1000 * (time.process_time() - began):.1f} ms of CPU")
        rounds = 200
        began = time.process_time()
        for _ in range(rounds):
            assert site.admitter.run_once() == 0
        print(f"round while nothing can be admitted: {1e6 * (time.process_time() - began) / rounds:.0f} µs of CPU")
        begin, began, ended = time.monotonic(), time.process_time(), 0
        while time.monotonic() - begin < 10:
            for task_id, _ in site.store.held(None, limit=SLOTS):
                task = site.tasks.get(task_id)
                ended += site.tasks.save(
                    replace(task, state=State.COMPLETE, stage=Stage.DONE, wake_at=None), seen=task.version
                )
                site.admitter.ended(task_id)
            site.admitter.run_once()
        seconds, cpu = time.monotonic() - begin, time.process_time() - began
        print(
            f"{ended / seconds:.0f} tasks a second ended and admitted; {1000 * cpu / ended:.2f} ms of CPU each, both together"
        )


def create(url: str, tasks: int, clients: int) -> None:
    body = json.dumps({"executors": [{"image": "alpine", "command": ["true"]}]})

    def post(connection: http.client.HTTPConnection) -> float:
        begin = time.monotonic()
        connection.request("POST", "/ga4gh/tes/v1/tasks", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        text = response.read()
        assert response.status == 200, text
        return time.monotonic() - begin

    def several(count: int, into: list[float]) -> None:
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
        into.extend(post(connection) for _ in islice(iter(int, 1), count))
        connection.close()

    idle: list[float] = []
    for _ in range(30):
        several(2, idle)
        time.sleep(0.3)
    burst: list[float] = []
    threads = [threading.Thread(target=several, args=(tasks // clients, burst)) for _ in range(clients)]
    begin = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    median, p99 = statistics.median(idle), statistics.quantiles(burst, n=100)[98]
    print(
        f"idle median {1000 * median:.1f} ms; {tasks} creates by {clients} clients in {time.monotonic() - begin:.1f} s:"
    )
    print(
        f"median {1000 * statistics.median(burst):.1f} ms, p99 {1000 * p99:.1f} ms, {p99 / median:.1f} times the idle median"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["shares", "newcomer", "queue", "create"])
    parser.add_argument("--queued", type=int, default=5000)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=8)
    given = parser.parse_args()
    run: dict[str, Callable[[], None]] = {
        "shares": shares,
        "newcomer": lambda: newcomer(given.queued),
        "queue": lambda: queue(given.queued),
        "create": lambda: create(given.url, given.tasks, given.clients),
    }
    run[given.what]()


if __name__ == "__main__":
    main()
