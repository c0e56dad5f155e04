"""TExAM's monitor: several may run, one of them leads. It watches the cluster, listens for pokes, resyncs and sweeps.

A poke that reaches a monitor that does not lead wakes `reconcile` there: any process may call it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping

from poiesis.bootstrap import Bootstrap
from poiesis.metrics import LEADING
from poiesis.roles.health import HealthServer
from poiesis.roles.shutdown import end_within, stop_on_signal
from poiesis.services.monitor import Monitor

log = logging.getLogger(__name__)


def main(environ: Mapping[str, str]) -> int:
    """Run until SIGTERM, or until this monitor loses leadership: then exit with 1, to restart without any state in memory."""
    stop, elected, deposed = threading.Event(), threading.Event(), threading.Event()

    def depose() -> None:
        deposed.set()
        stop.set()

    with Bootstrap.from_environ(environ, "monitor") as parts:
        stop_on_signal(stop, parts.settings.shutdown_grace)
        monitor = parts.monitor()
        health = HealthServer(parts.settings.listen, parts.ready)
        pokes = parts.poke_listener(monitor)
        monitor.listen()
        health.start()
        pokes.start()
        election = parts.election(elected.set, depose)
        election.start()
        leads = False
        while not stop.wait(0.1):
            if elected.is_set() and not leads:
                leads = True
                lead(monitor)
        lost_leadership = deposed.is_set()  # closing the election deposes too
        if lost_leadership:
            end_within(parts.settings.shutdown_grace)
        election.close()
        pokes.close()
        health.close()
        monitor.close()
    return 1 if lost_leadership else 0


def lead(monitor: Monitor) -> None:
    log.info("leading")
    LEADING.set(1)
    monitor.start()
