"""Celery over a real Redis: workers in separate processes that are killed, and a Redis that stops and starts again."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import redis

from poiesis.domain.errors import QueueUnavailable
from poiesis.domain.states import Stage
from poiesis.queue.app import make_app
from poiesis.queue.publisher import CeleryQueue
from poiesis.repository.sqlite.database import SqliteDatabase
from poiesis.repository.sqlite.tasks import SqliteTaskRepository
from tests.servers import redis as server
from tests.unit.domain.samples import FILES, ID, stored

ROOT = Path(__file__).parents[2]
DEADLINE_S = 100.0


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    turn = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE_S} s"
        turn.wait(0.02)


class Worker:
    def __init__(self, redis_url: str, directory: Path, *, hold: bool = False) -> None:
        self.marker = directory / "marker"
        command = [sys.executable, "-m", "tests.integration.queue_worker", redis_url, str(directory / "tasks.db")]
        self.process = subprocess.Popen([*command, str(self.marker), "hold" if hold else "go"], cwd=ROOT)

    def stop(self, how: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(how)
        return self.process.wait(30)


@pytest.fixture
def workers(tmp_path) -> Iterator[Callable[..., Worker]]:
    running: list[Worker] = []

    def start(redis_url: str, *, hold: bool = False) -> Worker:
        running.append(Worker(redis_url, tmp_path, hold=hold))
        return running[-1]

    yield start
    for worker in running:
        worker.stop(signal.SIGKILL)


@pytest.fixture
def repository(tmp_path) -> Iterator[SqliteTaskRepository]:
    made = SqliteTaskRepository(SqliteDatabase(tmp_path / "tasks.db"))
    made.add(stored(FILES, wake_at=datetime.now(UTC) - timedelta(seconds=1)))
    yield made
    made.close()


@contextmanager
def redis_on(port: int, directory: Path) -> Iterator[None]:
    program = server._program()
    if program is None:
        pytest.skip("no redis-server")
    command = [program, "--bind", "127.0.0.1", "--port", str(port), "--dir", str(directory), "--save", ""]
    with (directory / "redis.log").open("ab") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            with redis.Redis(port=port) as client:
                until(lambda: _responds(client))
            yield
        finally:
            process.kill()


def _responds(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False


def test_links_run_in_a_worker_process_that_exits_cleanly_on_sigterm(redis_url, repository, workers):
    worker = workers(redis_url)
    queue = CeleryQueue(make_app(redis_url))
    queue.publish(ID, Stage.PREPARE)
    until(lambda: repository.get(ID).part == "task")
    assert worker.stop() == 0
    queue.close()


def test_workers_send_events_of_links_only_after_flower_asked_for_them(redis_url, repository, workers):
    workers(redis_url)
    app = make_app(redis_url)
    queue = CeleryQueue(app)
    seen: list[str] = []
    with app.connection() as connection:
        receiver = app.events.Receiver(connection, handlers={"*": lambda event: seen.append(event["type"])})
        thread = threading.Thread(target=lambda: receiver.capture(wakeup=False))
        thread.start()
        try:
            until(lambda: "worker-heartbeat" in seen)
            queue.publish(ID, Stage.PREPARE)
            until(lambda: repository.get(ID).part == "task")
            until(lambda: app.control.broadcast("enable_events", reply=True, timeout=1))
            queue.publish(ID, Stage.PREPARE)
            until(lambda: "task-received" in seen and "task-succeeded" in seen)
        finally:
            receiver.should_stop = True
            thread.join(DEADLINE_S)
    assert seen.count("task-received") == 1
    queue.close()


def test_a_worker_killed_in_the_middle_of_a_link_loses_nothing(redis_url, repository, workers):
    first = workers(redis_url, hold=True)
    queue = CeleryQueue(make_app(redis_url))
    queue.publish(ID, Stage.PREPARE)
    until(first.marker.exists)
    first.stop(signal.SIGKILL)
    assert repository.get(ID).stage is Stage.PREPARE
    workers(redis_url)
    for task_id, stage in repository.due(datetime.now(UTC), limit=10):  # as resync does
        queue.publish(task_id, stage)
    until(lambda: repository.get(ID).part == "task")
    queue.close()


def test_publishers_and_workers_recover_after_redis_was_restarted(free_port, tmp_path, repository, workers):
    url = f"redis://127.0.0.1:{free_port}/0"
    queue = CeleryQueue(make_app(url))
    with redis_on(free_port, tmp_path):
        workers(url)
        queue.publish(ID, Stage.PREPARE)
        until(lambda: repository.get(ID).part == "task")
        with redis.Redis(
            port=free_port
        ) as client:  # a worker that loses Redis during an acknowledgement exits and is restarted
            until(lambda: client.hlen("unacked") == 0)
    began = time.monotonic()
    with pytest.raises(QueueUnavailable):
        queue.publish(ID, Stage.RUN)
    assert time.monotonic() - began < 15
    task = repository.get(ID)
    again = stored(FILES, stage=Stage.PREPARE, version=task.version, wake_at=datetime.now(UTC))
    assert repository.save(again, seen=task.version)
    with redis_on(free_port, tmp_path):
        with pytest.raises(QueueUnavailable, match="recent call"):
            queue.publish(ID, Stage.PREPARE)
        queue.ready()  # or two seconds later
        queue.publish(ID, Stage.PREPARE)
        until(lambda: repository.get(ID).part == "task")
    queue.close()
