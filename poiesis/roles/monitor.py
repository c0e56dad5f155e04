"""TExAM's monitor: many may run, one leads. It follows the cluster, listens for pokes, resyncs and sweeps.

A poke that reaches one which does not lead wakes reconcile there all the same: any process may call it.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Mapping

from poiesis.bootstrap import Bootstrap
from poiesis.domain.task import TaskId
from poiesis.observability import LEADING, HealthServer

log = logging.getLogger(__name__)


def main(environ: Mapping[str, str]) -> int:
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with Bootstrap.from_environ(environ) as parts:
        monitor = parts.monitor()
        health = HealthServer(
            parts.settings.listen, parts.ready, poke=lambda task_id, nonce: monitor.poke(TaskId(task_id), nonce)
        )
        monitor.listen()
        health.start()
        election = parts.election(on_start=lambda: _lead(monitor), on_stop=lambda: _step_down(stop))
        election.start()
        stop.wait()
        election.close()
        health.close()
        monitor.close()
    return 0
