"""TExAM's monitor: several may run, one leads. It follows the cluster, listens for pokes, resyncs and sweeps.

A poke that reaches one which does not lead wakes reconcile there all the same: any process may call it.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Mapping

from poiesis.bootstrap import Bootstrap
from poiesis.observability import LEADING
from poiesis.roles.health import HealthServer

log = logging.getLogger(__name__)


def main(environ: Mapping[str, str]) -> int:
    """Until SIGTERM, or until this monitor no longer leads after it did: then exit 1, to begin anew with nothing remembered."""
    stop, leads, deposed = threading.Event(), threading.Event(), threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())

    def depose() -> None:
        deposed.set()
        stop.set()

    with Bootstrap.from_environ(environ) as parts:
        monitor = parts.monitor()
        health = HealthServer(parts.settings.listen, parts.ready)
        pokes = parts.poke_listener(monitor)
        monitor.listen()
        health.start()
        pokes.start()
        election = parts.election(leads.set, depose)
        election.start()
        while not stop.wait(0.1):
            if leads.is_set() and not LEADING._value.get():
                log.info("leading")
                LEADING.set(1)
                monitor.start()
        ended_by_request = not deposed.is_set()
        election.close()
        pokes.close()
        health.close()
        monitor.close()
    return 0 if ended_by_request else 1
