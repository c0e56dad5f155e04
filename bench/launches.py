"""How long a newcomer's tasks wait for their launch behind those of another user, without quotas, and what a link costs. A real Redis and a
real Celery worker in a process of its own; a launch is a pause. `python -m bench launches newcomer|cost [--plain]`; needs the development
environment. `--plain`: without lanes, all links wait in one queue of the role."""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis

from poiesis.domain.states import Role, Stage
from poiesis.domain.task import TaskId
from poiesis.queue.app import make_app
from poiesis.queue.links import register
from poiesis.queue.publisher import CeleryQueue
from poiesis.queue.worker import run_worker
from poiesis.services.orchestrator import Reason, Reconciled
from tests.servers.process import running
from tests.servers.redis import command, ping
from tests.unit.domain.samples import SMALL, stored

DONE = "bench:done"


class Launcher:
    """An orchestrator that only pauses, and notes when each task was launched."""

    def __init__(self, redis_url: str, pause_s: float) -> None:
        self._redis = redis.Redis.from_url(redis_url)
        self._pause_s = pause_s
        self._task = stored(SMALL)

    def reconcile(self, task_id: TaskId, *_: object, **__: object) -> Reconciled:
        time.sleep(self._pause_s)
        self._redis.rpush(DONE, f"{task_id} {time.time()}")
        return Reconciled(self._task, Reason.WAITING)


def work(redis_url: str, threads: int, pause_s: float) -> None:
    app = make_app(redis_url)
    launcher: Any = Launcher(redis_url, pause_s)
    register(app, launcher, CeleryQueue(app))
    run_worker(app, [Role.TEXAM], threads=threads, name="texam")
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(used.ru_utime + used.ru_stime, flush=True)


@contextmanager
def worker(redis_url: str, threads: int, pause_s: float) -> Iterator[subprocess.Popen[str]]:
    options = ["worker", "--url", redis_url, "--threads", str(threads), "--pause-s", str(pause_s)]
    with subprocess.Popen(
        [sys.executable, "-m", "bench", "launches", *options], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.terminate()


def post(queue: CeleryQueue, owner: str, count: int, *, plain: bool) -> None:
    for n in range(count):
        queue.begin(TaskId(f"{owner}-{n}"), [Stage.LAUNCH], owner=None if plain else owner)


def launched(client: Any, count: int) -> dict[str, float]:
    while client.llen(DONE) < count:
        time.sleep(0.1)
    pairs = (line.decode().split() for line in client.lrange(DONE, 0, -1))
    return {task: float(at) for task, at in pairs}


def newcomer(url: str, tasks: int, threads: int, pause_s: float, *, plain: bool) -> None:
    """`tasks` of one user; when a tenth of them has been launched, ten of another."""
    queue, client = CeleryQueue(make_app(url)), redis.Redis.from_url(url)
    post(queue, "ada", tasks, plain=plain)
    with worker(url, threads, pause_s):
        launched(client, tasks // 10)
        began = time.time()
        post(queue, "bob", 10, plain=plain)
        at = launched(client, tasks + 10)
    bob = sorted(at[f"bob-{n}"] - began for n in range(10))
    ada = sorted(at[f"ada-{n}"] for n in range(tasks))
    rate = (tasks - 1) / (ada[-1] - ada[0])
    print(f"newcomer: first {bob[0]:.2f} s, last {bob[-1]:.2f} s; the other's {tasks} tasks: {rate:.1f} a second")


def cost(url: str, links: int, *, plain: bool) -> None:
    """CPU of the worker for links that do nothing, and of the publisher; of Redis, too."""
    queue, client = CeleryQueue(make_app(url)), redis.Redis.from_url(url)
    post(queue, "warm", 20, plain=plain)
    redis_before, began = _redis_cpu(client), time.process_time()
    post(queue, "ada", links, plain=plain)
    published = time.process_time() - began
    with worker(url, 4, 0) as process:
        launched(client, links + 20)
        process.terminate()
        worked = float(process.communicate()[0].split()[-1])
    served = _redis_cpu(client) - redis_before
    print(
        f"CPU of a link: publisher {published / links * 1e6:.0f} µs, worker (with its start) {worked / links * 1e6:.0f} µs, "
        f"Redis {served / links * 1e6:.0f} µs"
    )


def _redis_cpu(client: Any) -> float:
    used = client.info("cpu")
    return float(used["used_cpu_user"]) + float(used["used_cpu_sys"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("newcomer", "cost", "worker"))
    parser.add_argument("--tasks", type=int, default=5000)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument(
        "--pause-s", type=float, default=0.16, help="of a launch: 0.16 in four threads are 25 launches a second"
    )
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--url", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.what == "worker":
        work(given.url, given.threads, given.pause_s)
        return
    with running("redis", 1, command, ping) as url:
        if given.what == "cost":
            cost(url, given.tasks, plain=given.plain)
        else:
            newcomer(url, given.tasks, given.threads, given.pause_s, plain=given.plain)


if __name__ == "__main__":
    main()
