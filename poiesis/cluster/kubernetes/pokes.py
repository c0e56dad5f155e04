"""Pokes: `POST /poke/<task id>/<nonce>`, sent by the launcher when a container has ended.

The listener is the only port of the service that task pods may reach. A poke wakes the reconcile of its own task and may carry the
container's closing record (docs/adr/0004); it can do nothing else. Pokes beyond a rate, per address and in total, and of tasks without a
pod are dropped: a lost poke costs a second.
"""

from __future__ import annotations

import logging
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

from poiesis.domain.task import Task, TaskId
from poiesis.http_listener import Bounds, HttpListener, Request, Response
from poiesis.metrics import POKES

log = logging.getLogger(__name__)

MAX_POKE_BYTES: Final = 128 * 1024  # POKE_BODY_MAX of the launcher
BOUNDS: Final = Bounds(body_bytes=MAX_POKE_BYTES)
POKES_PER_SECOND: Final = 1000
POKES_PER_ADDRESS: Final = 200  # a second; a node of 110 pods may show them all under its own address
RESOLVED_FOR_S: Final = 30.0  # after which an address is resolved again
FIRST_RESOLVE_S: Final = 0.3  # how long a launch waits for the first one
_PATH: Final = re.compile(r"/poke/([0-9a-z]{1,64})/([0-9a-f-]{1,64})")


def poke_path(task: Task) -> str:
    return f"/poke/{task.id}/{task.poke_nonce}"


class PokeAddress:
    """The address for launchers, `host:port`, resolved here so that containers need no DNS query to poke. A thread resolves it: a lost
    datagram costs five seconds, which no task has to wait for."""

    def __init__(self, address: str | None, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._address = address
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._resolved = address
        self._resolved_until = 0.0
        self._thread: threading.Thread | None = None

    def resolved(self) -> str | None:
        """With the IP address as last resolved; unresolved if that has not succeeded yet."""
        if self._address is None:
            return None
        with self._lock:
            if self._monotonic() >= self._resolved_until and (self._thread is None or not self._thread.is_alive()):
                self._thread = threading.Thread(
                    target=self._resolve, args=(self._address,), name="poke-address", daemon=True
                )
                self._thread.start()
            thread = self._thread
        if self._resolved == self._address and thread is not None:
            thread.join(FIRST_RESOLVE_S)
        return self._resolved

    def _resolve(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        try:
            found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
            ip = str(found[4][0])
            self._resolved = f"[{ip}]:{port}" if found[0] is socket.AF_INET6 else f"{ip}:{port}"
        except (OSError, ValueError) as error:
            log.info("poke_address_unresolved", extra={"address": address, "error": str(error)})
        self._resolved_until = self._monotonic() + RESOLVED_FOR_S


class PokeListener(HttpListener):
    """`poke(task id, nonce, record)`. `may_exist`: whether a task can have a pod, as far as this process knows."""

    def __init__(
        self,
        address: str,
        poke: Callable[[TaskId, str, bytes], None],
        may_exist: Callable[[TaskId], bool],
        bounds: Bounds = BOUNDS,
        *,
        per_second: int = POKES_PER_SECOND,
        per_address: int = POKES_PER_ADDRESS,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(address, self._respond, bounds, name="pokes")
        self._poke = poke
        self._may_exist = may_exist
        self._per_second = per_second
        self._per_address = per_address
        self._monotonic = monotonic
        self._second = 0
        self._counts: Counter[str] = Counter()  # of this second, by address

    def _respond(self, request: Request) -> Response:
        match = _PATH.fullmatch(request.path)
        if match is None or request.method != "POST":
            return Response(404, b"not found\n")
        if not self._is_within_rate(request.address):
            POKES.labels("dropped").inc()
            return Response(429)
        task_id = TaskId(match[1])
        if not self._may_exist(task_id):
            POKES.labels("unknown").inc()
            return Response(404)
        POKES.labels("taken").inc()
        self._poke(task_id, match[2], request.body)
        return Response(202)

    def _is_within_rate(self, address: str) -> bool:
        second = int(self._monotonic())
        if second != self._second:
            self._second = second
            self._counts.clear()
        if self._counts.total() >= self._per_second or self._counts[address] >= self._per_address:
            return False
        self._counts[address] += 1
        return True
