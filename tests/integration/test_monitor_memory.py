"""The whole monitor over a stream of five thousand tasks' events: watch, cache, work queue, reconcile. Its memory must stay flat."""

import gc
import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from kubernetes.client import Configuration

from poiesis.bootstrap import SystemClock
from poiesis.cluster.kubernetes.adapter import KubernetesCluster
from poiesis.cluster.kubernetes.client import Client
from poiesis.cluster.kubernetes.settings import KubernetesSettings
from poiesis.domain.naming import new_task_id, object_name
from poiesis.domain.policy import Policy
from poiesis.domain.states import Stage, State
from poiesis.domain.task import Executor, Task, TaskId, TaskSpec
from poiesis.services.monitor import Monitor
from poiesis.services.orchestrator import Orchestrator
from poiesis.testing.queue import RecordingQueue
from poiesis.testing.repository import MemoryTaskRepository
from tests.unit.cluster.kubernetes.conftest import Answer, ApiServer, Request, pod_json

TASKS = 5_000
WARM = 100
TOGETHER = 50
GROWTH_BYTES = 8 * 1024 * 1024  # for 4,900 tasks: names of deleted objects and the last publications, both bounded
DEADLINE_S = 60.0
STDOUT = "x" * 1_500


class Forgetful(MemoryTaskRepository):
    """Discards finished tasks, so that only the memory of the monitor is measured."""

    def save(self, task, *, seen):
        saved = super().save(task, seen=seen)
        if saved and task.stage is Stage.DONE:
            with self.available():
                self._tasks.pop(task.id, None)
            self.events.clear()
        return saved


def resident_bytes() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def until(condition, what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, what
        pause.wait(0.002)


def record_of() -> str:
    now = "2026-01-02T03:04:05.000000Z"
    return json.dumps(
        {"v": 1, "name": "executor-0", "ok": True, "exit_code": 0, "signal": None, "reason": None, "message": None,
         "oom_killed": False, "started": now, "ended": now, "peak_memory_bytes": 1, "cpu_seconds": 0.1,
         "stdout": STDOUT, "stderr": "", "stdout_bytes": len(STDOUT), "stderr_bytes": 0, "truncated": False}
    )  # fmt: skip


WAITING = {"executor-0": {"waiting": {"reason": "ContainerCreating"}}}
RUNNING = {"executor-0": {"running": {"startedAt": "2026-01-02T03:04:05Z"}}}
ENDED = {
    "executor-0": {
        "terminated": {
            "exitCode": 0,
            "startedAt": "2026-01-02T03:04:05Z",
            "finishedAt": "2026-01-02T03:04:05Z",
            "message": record_of(),
        }
    }
}


def test_memory_is_flat_from_a_hundred_to_five_thousand_tasks(caplog):
    caplog.set_level(logging.WARNING, "poiesis")  # pytest keeps every record that is logged
    repository = Forgetful()
    sizes: list[int] = []
    ended: list[int] = [0]
    problems: list[AssertionError] = []
    over = threading.Event()

    def batch(version: int) -> Iterator[bytes]:
        now = datetime.now(UTC)
        ids = [new_task_id(now) for _ in range(TOGETHER)]
        for task_id in ids:
            made = Task(id=task_id, spec=TaskSpec((Executor("busybox", ("true",)),)), created_at=now, stage=Stage.RUN)
            repository.add(replace(made, part="task", nonce="nonce", wake_at=now + timedelta(hours=1)))

        def event(what: str, task_id: TaskId, states: dict, phase: str) -> bytes:
            nonlocal version
            version += 1
            pod = pod_json(
                object_name(task_id, 1, "task"), task_id=task_id, version=version, containers=states, phase=phase,
                metadata={"creationTimestamp": now.isoformat(timespec="seconds")},
            )  # fmt: skip
            return json.dumps({"type": what, "object": pod}).encode() + b"\n"

        for what, states, phase in (
            ("ADDED", WAITING, "Pending"),
            ("MODIFIED", RUNNING, "Running"),
            ("MODIFIED", ENDED, "Succeeded"),
        ):
            for task_id in ids:
                yield event(what, task_id, states, phase)
        until(lambda: all(is_complete(i) for i in ids), "the tasks do not end")
        for task_id in ids:
            yield event("DELETED", task_id, ENDED, "Succeeded")
        until(lambda: len(repository._tasks) == len(cluster._cache) == 0, "the tasks are not done")
        ended[0] += len(ids)

    def silence() -> Iterator[bytes]:
        over.wait(2 * DEADLINE_S)
        yield from ()

    def is_complete(task_id: TaskId) -> bool:
        return repository.get(task_id).state is State.COMPLETE

    def stream() -> Iterator[bytes]:
        try:
            until(
                lambda: cluster._watches[1].is_fresh(), "volumes are not followed"
            )  # otherwise a list, which is empty
            for first in range(0, TASKS, TOGETHER):
                if first in (WARM, TASKS - TOGETHER):
                    sizes.append(resident_bytes())
                yield from batch(10 + first * 4)
        except AssertionError as error:
            problems.append(error)
        over.set()

    def answer(request: Request) -> Answer:
        if "watch" not in request.query:
            return Answer({"metadata": {"resourceVersion": "1"}, "items": []})
        if request.path.endswith("/pods") and not over.is_set():  # once: a watch that ended is restarted
            return Answer(lines=stream())  # type: ignore[arg-type]
        return Answer(lines=silence())  # type: ignore[arg-type]

    server = ApiServer()
    server.answer = answer
    settings = KubernetesSettings(
        namespace="tasks", delivery="init", image="poiesis", resolv_conf="", writes_per_second=10_000
    )
    client = Client(settings, Configuration(host=server.url, retries=0))
    cluster = KubernetesCluster(settings, Policy(), client=client)
    clock = SystemClock()
    monitor = Monitor(
        Orchestrator(repository, cluster, clock, Policy()), repository, RecordingQueue(), cluster, clock,
        threads=4, resync_every=timedelta(hours=1),
    )  # fmt: skip
    monitor.listen()
    monitor.start()
    try:
        assert over.wait(1.5 * DEADLINE_S), f"the stream does not end: {ended[0]} tasks are done, {problems}"
    finally:
        over.set()
        monitor.close()
        cluster.close()
        server.close()
    assert not problems and ended[0] == TASKS, problems
    assert len(cluster._cache) == 0
    assert sizes[1] - sizes[0] < GROWTH_BYTES, f"{(sizes[1] - sizes[0]) / 1e6:.1f} MB more"
