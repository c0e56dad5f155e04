"""Attempts to authenticate that cost the service something: buckets that refill slowly, for each address or name.

An attempt takes one, and gives it back when it was right.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from poiesis.api.errors import Refused
from poiesis.domain.errors import PoiesisError

T = TypeVar("T")

MAX_BUCKETS: Final = 10_000
MAX_NAME: Final = 100  # characters of a name that a bucket keeps


@dataclass(frozen=True)
class Rate:
    """`burst` attempts at once, then one every `refill_s` seconds."""

    burst: int
    refill_s: float


class Attempts:
    """Used in the event loop only."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._buckets: OrderedDict[tuple[str, str], tuple[float, float]] = OrderedDict()

    def wait_s(self, kind: str, name: str, rate: Rate) -> int:
        """Seconds until an attempt is left; 0: now."""
        left = self._left((kind, name[:MAX_NAME]), rate)
        return 0 if left >= 1 else math.ceil((1 - left) * rate.refill_s)

    def take(self, kind: str, name: str, rate: Rate) -> None:
        """Raises: Refused when none is left."""
        if wait_s := self.wait_s(kind, name, rate):
            raise Refused(429, "too many attempts to authenticate", "too_many_attempts", {"Retry-After": str(wait_s)})
        self._add((kind, name[:MAX_NAME]), rate, -1)

    def give_back(self, kind: str, name: str, rate: Rate) -> None:
        self._add((kind, name[:MAX_NAME]), rate, 1)

    async def look_up(self, kind: str, name: str, rate: Rate, find: Callable[[], Awaitable[T | None]]) -> T | None:
        """What `find` returns; only None costs an attempt. Raises: Refused when none is left."""
        self.take(kind, name, rate)
        try:
            found = await find()
        except PoiesisError:
            self.give_back(kind, name, rate)
            raise
        if found is not None:
            self.give_back(kind, name, rate)
        return found

    def _left(self, key: tuple[str, str], rate: Rate) -> float:
        left, at = self._buckets.get(key, (float(rate.burst), 0.0))
        return min(rate.burst, left + (self._clock() - at) / rate.refill_s)

    def _add(self, key: tuple[str, str], rate: Rate, attempts: int) -> None:
        left = self._left(key, rate) + attempts
        self._buckets.pop(key, None)
        if left < rate.burst:
            self._buckets[key] = (left, self._clock())
            if len(self._buckets) > MAX_BUCKETS:
                self._buckets.popitem(last=False)
