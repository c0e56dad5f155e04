"""Celery workers: one role's in its own process, or all roles' in a thread of the embedded service."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable

from celery import Celery
from celery.signals import setup_logging, worker_shutting_down

from poiesis.domain.errors import QueueUnavailable
from poiesis.domain.states import Role
from poiesis.queue.app import queues_of


@setup_logging.connect
def _keep_logging(**_: object) -> None:
    """Celery configures logging itself unless a receiver is connected to this signal; ours is configured already."""


def node_name(name: str) -> str:
    """The name of a worker in Flower and remote control, where it must be unique. Only Celery's command line expands `%h`."""
    return f"{name}@{socket.gethostname()}"


def run_worker(
    app: Celery, roles: Iterable[Role], *, threads: int, name: str, on_shutdown: Callable[[], None] = lambda: None
) -> int:
    """Consume the roles' queues until SIGTERM; running links are finished first, for which Celery waits without a limit. Returns the
    exit code. `on_shutdown` is called when the signal comes."""
    worker_shutting_down.connect(lambda **_: on_shutdown(), weak=False)
    worker = app.Worker(
        pool="threads",
        concurrency=threads,
        queues=queues_of(app, roles),
        hostname=node_name(name),
        without_gossip=True,
        without_mingle=True,
        quiet=True,
    )
    worker.start()
    return int(worker.exitcode or 0)


class ThreadWorker:
    """Runs the links of all roles in threads of this process, for the embedded service and its in-memory transport."""

    def __init__(self, app: Celery, *, threads: int) -> None:
        app.set_default()  # Celery publishes the next link of a chain through the thread's current app
        self._controller = app.WorkController(
            app=app,
            pool_cls="threads",
            concurrency=threads,
            queues=queues_of(app, Role),
            hostname="embedded@localhost",
            without_gossip=True,
            without_mingle=True,
            without_heartbeat=True,
            quiet=True,
        )
        self._thread = threading.Thread(target=self._controller.start, name="celery-worker", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self, timeout_s: float = 10) -> None:
        """Stop taking links and wait for the running ones. Raises: QueueUnavailable if they do not end in time."""
        if not self._thread.is_alive():
            return
        self._controller.stop(exitcode=0)
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            raise QueueUnavailable(f"the worker's links did not end within {timeout_s:g} s")
