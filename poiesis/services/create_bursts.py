"""Answer a burst of creates before its tasks are admitted (one machine) or their links are published (docs/adr/0023).

Tasks that start while creates queue make each of those wait for the same processors, on one machine also for the same interpreter's lock.
Only the tasks of the user who posts the burst wait, for a bounded time.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Final

LEAST: Final = 4  # creates of one user at the same time
LINGER_S: Final = 0.1  # a burst has ended when there were fewer for this long
EVERY_S: Final = 0.25  # other users' tasks are admitted
MAX_HOLD_S: Final = 5.0
SHARE: Final = 0.1  # of the time, once MAX_HOLD_S are used up
CHECK_S: Final = 0.02


class CreateBursts:
    """`creating` is for any number of threads, `hold` for one. Bursts without an end hold their tasks for at most MAX_HOLD_S, and for SHARE
    of the time after that."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._creating: Counter[str] = Counter()
        self._ends_at: dict[str, float] = {}  # of the last burst of a user, unless it goes on
        self._allowance_s = MAX_HOLD_S
        self._held_at = monotonic()  # until when the allowance was counted

    @contextmanager
    def creating(self, user: str) -> Iterator[None]:
        """Around the creation of a task."""
        self._count(user, 1)
        try:
            yield
        finally:
            self._count(user, -1)

    def hold(self, closed: threading.Event) -> Collection[str]:
        """Return at once where there is no burst, else at its end or after EVERY_S, with the users whose tasks still have to wait. `closed`
        ends the wait."""
        began = now = self._monotonic()
        self._allowance_s = min(MAX_HOLD_S, self._allowance_s + SHARE * (now - self._held_at))
        end = began + min(EVERY_S, self._allowance_s)
        while (users := self._users(now)) and now < end and not closed.wait(CHECK_S):
            now = self._monotonic()
        self._allowance_s -= now - began
        self._held_at = now
        return users if self._allowance_s > 0 else ()

    def _count(self, user: str, change: int) -> None:
        with self._lock:
            if max(self._creating[user], self._creating[user] + change) >= LEAST:
                self._ends_at[user] = self._monotonic() + LINGER_S
            self._creating[user] += change
            if not self._creating[user]:
                del self._creating[user]

    def _users(self, now: float) -> Collection[str]:
        """Those with a burst that goes on."""
        with self._lock:
            self._ends_at = {
                user: at for user, at in self._ends_at.items() if now < at or self._creating[user] >= LEAST
            }
            return tuple(self._ends_at)
