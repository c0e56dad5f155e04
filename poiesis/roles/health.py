"""`GET /healthz`, `GET /readyz` and `GET /metrics` of a role."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from poiesis.domain.errors import Unavailable
from poiesis.http_listener import Bounds, HttpListener, Request, Response
from poiesis.metrics import CONTENT_TYPE, exposition

READY_FOR_S: Final = 1.0  # that long a result of `ready` is repeated: many requests must not become many for the store


class HealthServer(HttpListener):
    """`ready` raises Unavailable while the role cannot work. /healthz needs no thread, so that nothing can delay it. `metrics`: the
    directory in which workers share theirs; None: the metrics of this process."""

    def __init__(
        self, address: str, ready: Callable[[], None], bounds: Bounds | None = None, *, metrics: Path | None = None
    ) -> None:
        super().__init__(address, self._respond, bounds, name="health")
        self._metrics = metrics
        self._ready = ready
        self._ready_lock = threading.Lock()
        self._last: tuple[float, Response] | None = None

    def _respond(self, request: Request) -> Response | Callable[[], Response]:
        if request.method != "GET":
            return Response(405, b"method not allowed\n")
        if request.path == "/healthz":
            return Response(200, b"ok\n")
        if request.path == "/readyz":
            return self._readiness
        if request.path == "/metrics":
            return lambda: Response(200, exposition(self._metrics), CONTENT_TYPE)
        return Response(404, b"not found\n")

    def _readiness(self) -> Response:
        with self._ready_lock:
            if self._last is None or time.monotonic() - self._last[0] > READY_FOR_S:
                try:
                    self._ready()
                    response = Response(200, b"ready\n")
                except Unavailable as error:
                    response = Response(503, f"{error}\n".encode())
                self._last = (time.monotonic(), response)
            return self._last[1]
