"""Running Celery workers: one role's in a process of its own, or all roles' in a thread of the embedded service."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterable

from celery import Celery
from celery.signals import setup_logging

from poiesis.domain.errors import QueueUnavailable
from poiesis.domain.states import Role


@setup_logging.connect
def _keep_logging(**_: object) -> None:
    """Celery sets up logging by itself unless somebody answers this signal: ours is set up already."""


def node_name(name: str) -> str:
    """Of a worker, as Flower and remote control know it: two of one name are taken for one. `%h` is for Celery's command line alone."""
    return f"{name}@{socket.gethostname()}"


def run_worker(app: Celery, roles: Iterable[Role], *, threads: int, name: str) -> int:
    """Consume the roles' queues until SIGTERM; links under way are finished first. Returns the exit code."""
    worker = app.Worker(
        pool="threads",
        concurrency=threads,
        queues=[role.value for role in roles],
        hostname=node_name(name),
        without_gossip=True,
        without_mingle=True,
        quiet=True,
    )
    worker.start()
    return int(worker.exitcode or 0)


class ThreadWorker:
    """All roles' links in threads of this process, for the embedded service and its in-memory transport."""

    def __init__(self, app: Celery, *, threads: int, roles: Iterable[Role] = tuple(Role)) -> None:
        app.set_default()  # the links that follow a link are published through the thread's current app
        self._controller = app.WorkController(
            app=app,
            pool_cls="threads",
            concurrency=threads,
            queues=[role.value for role in roles],
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
        """Stop taking links and wait for those under way. Raises: QueueUnavailable when they do not end in time."""
        if not self._thread.is_alive():
            return
        self._controller.stop(exitcode=0)
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            raise QueueUnavailable("the worker's links did not end in time")
