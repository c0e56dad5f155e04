"""Serve the application with uvicorn: `serve` in a separate process, `BackgroundServer` inside another one.

There is no access log: a query may carry an API key. Metrics count requests instead.
"""

from __future__ import annotations

import logging
import socket
import threading
from datetime import timedelta
from functools import partial
from types import TracebackType
from typing import Any, Final, Self

import uvicorn

from poiesis.api.connections import ConnectionGate, LimitedProtocol
from poiesis.config import ApiSettings
from poiesis.domain.errors import ConfigurationError

CLEANUP_S: Final = 5  # seconds of the grace period that remain after requests in progress have had their share
START_S: Final = 30.0
WORKER_START_S: Final = (
    60  # a worker that does not answer for so long is replaced; on a busy machine its imports take longer than 5 s
)

# uvicorn logs a warning for each malformed request, so a client could fill the log
logging.getLogger("uvicorn.error").addFilter(lambda record: record.levelno != logging.WARNING)


def serve(app: Any, settings: ApiSettings, grace: timedelta) -> None:
    """Serve until SIGTERM or SIGINT; requests in progress are answered first.

    `app`: the application, or with several workers the import string `package.module:function` of its factory.
    """
    if settings.workers > 1 and not isinstance(app, str):
        raise ConfigurationError("more than one worker requires an import string for the application")
    uvicorn.run(
        app,
        factory=isinstance(app, str),
        workers=settings.workers,
        timeout_worker_healthcheck=WORKER_START_S,
        **_options(settings, grace),
    )


class BackgroundServer:
    """The application in a thread, for the embedded mode and for tests; a context manager. Port 0 takes a free one."""

    def __init__(self, app: Any, settings: ApiSettings, grace: timedelta = timedelta(seconds=25)) -> None:
        self._server = uvicorn.Server(uvicorn.Config(app, **_options(settings, grace)))
        self._socket = socket.create_server((settings.host, settings.port), backlog=2048, reuse_port=False)
        self._thread = threading.Thread(target=self._run, name="api-server", daemon=True)
        self._ended = threading.Event()
        self._grace_s = grace.total_seconds()
        host, port = self._socket.getsockname()[:2]
        self.port: Final[int] = port
        self.url: Final = f"http://{host}:{port}"

    def start(self) -> Self:
        """Return when requests are answered. Raises: RuntimeError."""
        self._thread.start()
        deadline = threading.Event()
        for _ in range(int(START_S / 0.01)):
            if self._server.started:
                return self
            if self._ended.is_set():
                break
            deadline.wait(0.01)
        raise RuntimeError(f"the API did not start at {self.url}")

    def stop(self) -> None:
        """Answer the requests in progress, then stop."""
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join(self._grace_s)

    def _run(self) -> None:
        try:
            self._server.run(sockets=[self._socket])
        finally:
            self._ended.set()
            self._socket.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _options(settings: ApiSettings, grace: timedelta) -> dict[str, Any]:
    return {
        "host": settings.host,
        "port": settings.port,
        "http": partial(LimitedProtocol, ConnectionGate(settings)),
        "ws": "none",
        "access_log": False,
        "log_config": None,
        "server_header": False,
        "proxy_headers": bool(settings.trusted_proxies),
        "forwarded_allow_ips": list(settings.trusted_proxies),
        "timeout_keep_alive": settings.idle_timeout.total_seconds(),
        "timeout_graceful_shutdown": max(1, int(grace.total_seconds()) - CLEANUP_S),
        "lifespan": "on",
    }
