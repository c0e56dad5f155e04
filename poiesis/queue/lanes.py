"""Which of its role's queues a link waits in, so that a user's first tasks do not wait for all links of another user (docs/adr/0022).

Each role has a queue for every lane, and its workers take links from all of them in turn. A user's links go to the first lane while there
are few of them, and to later ones the more there were of them lately; so each lane has a part of the workers, whatever waits in the others.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from poiesis.domain.states import Role, Stage

FROM: Final = (0, 10, 100, 1000)  # lanes, by a user's recent links for one stage
HALF_LIFE_S: Final = 60.0  # after which half of them still count
MAX_COUNTS: Final = 10_000


def queue_name(role: Role, lane: int) -> str:
    return f"{role.value}.{FROM[lane]}" if lane else role.value


class Lanes:
    """Counts in this process only: with several, each counts those that it publishes. Safe to use from any thread."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._counts: OrderedDict[tuple[str, Stage], tuple[float, float]] = OrderedDict()  # and when they were counted

    def take(self, owner: str | None, stage: Stage) -> int:
        """The lane of the next link of this user for `stage`, which counts from now on. Without users there is one lane."""
        if owner is None:
            return 0
        now = self._monotonic()
        with self._lock:
            count, at = self._counts.pop((owner, stage), (0.0, now))
            count *= 0.5 ** ((now - at) / HALF_LIFE_S)
            self._counts[owner, stage] = (count + 1, now)
            if len(self._counts) > MAX_COUNTS:
                self._counts.popitem(last=False)
        return sum(count >= least for least in FROM[1:])
