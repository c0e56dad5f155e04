"""Workers and the monitor end within the grace period although a reconcile computes forever. Real processes, real signals."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

WORKER = """
from datetime import timedelta
from poiesis.domain.states import Role, Stage
from poiesis.domain.task import TaskId
from poiesis.queue.app import make_app
from poiesis.queue.links import register
from poiesis.queue.publisher import CeleryQueue
from poiesis.queue.worker import run_worker
from poiesis.roles.shutdown import end_within

class Orchestrator:
    def reconcile(self, *_, **__):
        print("ready", flush=True)
        while True:
            pass

app = make_app("memory://")
queue = CeleryQueue(app)
register(app, Orchestrator(), queue)
queue.publish(TaskId("a"), Stage.PREPARE)
grace = timedelta(seconds=0.5)
run_worker(app, [Role.TORC], threads=1, name="torc", on_shutdown=lambda: end_within(grace))
"""

MONITOR = """
import contextlib, sys
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace
from poiesis.domain.policy import Policy
from poiesis.domain.task import TaskId
from poiesis.roles import monitor as role
from poiesis.services.monitor import Monitor
from poiesis.testing.clock import ManualClock
from poiesis.testing.cluster import MemoryCluster
from poiesis.testing.queue import RecordingQueue
from poiesis.testing.repository import MemoryTaskRepository

class Orchestrator:
    def reconcile(self, *_, **__):
        print("ready", flush=True)
        while True:
            pass

class Part:
    def __init__(self, on_start=lambda: None):
        self.start = on_start
    def close(self):
        pass

class Parts:
    settings = SimpleNamespace(shutdown_grace=timedelta(seconds=0.5), listen="127.0.0.1:0")
    def __enter__(self):
        return self
    def __exit__(self, *_):
        pass
    def ready(self):
        pass
    def monitor(self):
        clock = ManualClock()
        cluster = MemoryCluster(clock)
        made = Monitor(Orchestrator(), MemoryTaskRepository(), RecordingQueue(), cluster, clock,
                       threads=1, resync_every=timedelta(seconds=5))
        made.poke(TaskId("a"), "nonce")
        return made
    def poke_listener(self, monitor):
        return Part()
    def election(self, on_start, on_stop):
        return Part({on_start})

role.Bootstrap = SimpleNamespace(from_environ=lambda environ, role: Parts())
sys.exit(role.main({}))
"""


def stop(program: str, number: int | None = signal.SIGTERM) -> tuple[int, str]:
    """Run the program, send it the signal while it reconciles, and return its exit code and stderr."""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            if number is not None:
                process.send_signal(number)
            _, stderr = process.communicate(timeout=60)
        finally:
            process.kill()
    return process.returncode, stderr


@pytest.mark.parametrize("program", [WORKER, MONITOR.replace("{on_start}", "on_start")], ids=["worker", "monitor"])
def test_a_role_that_reconciles_forever_ends_within_the_grace_period(program):
    code, stderr = stop(program)
    assert code == 1
    assert "in reconcile" in stderr  # the dump shows what did not end


def test_a_monitor_that_lost_leadership_ends_within_the_grace_period():
    code, stderr = stop(MONITOR.replace("{on_start}", "lambda: (on_start(), on_stop())"), None)
    assert code == 1
    assert "in reconcile" in stderr
