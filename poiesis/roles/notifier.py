"""The notifier: appends events to their log, sends webhooks, and purges what is old. It needs no Kubernetes; any number may run."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from poiesis.bootstrap import Bootstrap
from poiesis.roles.health import HealthServer
from poiesis.roles.shutdown import stop_on_signal, wait_for


def main(environ: Mapping[str, str]) -> int:
    stop = threading.Event()
    with Bootstrap.from_environ(environ, "notifier") as parts:
        stop_on_signal(stop, parts.settings.shutdown_grace)
        notifier = parts.notifier()
        with HealthServer(parts.settings.listen, parts.repository.ready):
            notifier.start()
            wait_for(stop)
            notifier.close()
    return 0
