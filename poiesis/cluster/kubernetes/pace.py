"""How fast one process writes to the API server: as fast as that allows.

Writes are spaced to a rate. The server's priority and fairness answers 429 when it has too much to do: the rate is halved, and no write of
this process is sent before the time that the server has asked for. Every accepted write raises the rate again, up to the site's limit.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

LEAST_RATE: Final = 1.0  # a second
RECOVERY: Final = 0.05  # of the limit, gained in each second of accepted writes
BURST_S: Final = 0.5  # of unused time that counts
HALVE_AGAIN_S: Final = 1.0  # refusals of writes that were sent before the last halving say nothing new


class Pace:
    def __init__(self, limit: float, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self.rate = limit
        self._next_at = 0.0
        self._slowed_at = -HALVE_AGAIN_S

    def reserve(self, at_most: float) -> float:
        """Take the next turn, and return the seconds until then; more than `at_most`: it was not taken, since nothing would be written."""
        with self._lock:
            now = self._monotonic()
            turn = max(self._next_at, now - BURST_S)
            wait = max(0.0, turn - now)
            if wait <= at_most:
                self._next_at = turn + 1 / self.rate
            return wait

    def accepted(self) -> None:
        with self._lock:
            self.rate = min(self._limit, self.rate + RECOVERY * self._limit / self.rate)

    def refused(self, wait_s: float) -> None:
        """The server asked to wait that long."""
        with self._lock:
            now = self._monotonic()
            if now - self._slowed_at >= HALVE_AGAIN_S:
                self._slowed_at = now
                self.rate = max(LEAST_RATE, self.rate / 2)
            self._next_at = max(self._next_at, now + wait_s)
