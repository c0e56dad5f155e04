"""Answer a burst of creates before its tasks are admitted, where one process does both (docs/adr/0023).

Tasks that start while creates queue make each of those wait for the same processors and the same interpreter's lock.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

LEAST: Final = 4  # creates at the same time
LINGER_S: Final = 0.1  # a burst has ended when so few were stored at once for this long
MAX_HOLD_S: Final = 5.0
SHARE: Final = 0.1  # of the time, once MAX_HOLD_S are used up
CHECK_S: Final = 0.02


class CreateBursts:
    """`creating` is for any number of threads, `hold` for one. A burst without an end holds admission for at most MAX_HOLD_S, and for
    SHARE of the time after that, so nobody who posts without pause keeps the tasks of others from starting."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._creating = 0
        self._ends_at = monotonic()  # of the last burst, unless it goes on
        self._allowance_s = MAX_HOLD_S
        self._held_at = monotonic()  # until when `hold` has used of its allowance

    @contextmanager
    def creating(self) -> Iterator[None]:
        """Around the storing of a task."""
        with self._lock:
            self._creating += 1
            self._note()
        try:
            yield
        finally:
            with self._lock:
                self._note()
                self._creating -= 1

    def hold(self, closed: threading.Event) -> None:
        """Return when no burst goes on, when it has been held for long enough, or when `closed` is set."""
        began = now = self._monotonic()
        self._allowance_s = min(MAX_HOLD_S, self._allowance_s + SHARE * (now - self._held_at))
        while self._goes_on(now) and now < began + self._allowance_s and not closed.wait(CHECK_S):
            now = self._monotonic()
        self._allowance_s -= now - began
        self._held_at = now

    def _goes_on(self, now: float) -> bool:
        return self._creating >= LEAST or now < self._ends_at

    def _note(self) -> None:
        if self._creating >= LEAST:
            self._ends_at = self._monotonic() + LINGER_S
