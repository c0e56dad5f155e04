"""Limits on requests and body bytes a second, for each user, or each address where the user is not known.

They are counted by the generic cell rate algorithm: for each counter one time up to which its budget is spent. A request is admitted
while that time is not further ahead than the burst allows; a body may spend more than is left, so that one larger than the burst is not
refused forever, and the next one waits for it.

The replicas of the API share the counters in Redis: one script, so one round trip, and atomic, for all requests that wait together; one
for each would cost as much CPU as a short list of tasks. Redis gets milliseconds to answer. If it does not, each process counts by itself
with the same limits, and tries Redis again a second later with one request: a limit that is enforced for each replica is better than none,
and than a service that stops with its broker.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from poiesis.api.errors import Refused
from poiesis.config import RateLimits
from poiesis.metrics import LIMITED

log = logging.getLogger(__name__)

MAX_COUNTERS: Final = 10_000  # of one process
MAX_BATCH: Final = 200
RETRY_S: Final = 1.0  # after Redis did not answer
KEY: Final = "poiesis:limit:"


# For each key five arguments: request_ahead_us, request_us, body_ahead_us, body_us, and 1 to refuse or 0 to charge in any case. Times are
# whole microseconds: Lua would write 1.7e15 with 14 digits.
_SCRIPT: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local waits = {}
for k, key in ipairs(KEYS) do
  local at = 5 * (k - 1)
  local spent = redis.call('HMGET', key, 'r', 'b')
  local wait = 0
  for i = 1, 2 do
    spent[i] = math.max(tonumber(spent[i] or 0), now)
    if tonumber(ARGV[at + 2 * i]) > 0 then wait = math.max(wait, spent[i] - now - ARGV[at + 2 * i - 1]) end
  end
  if wait == 0 or ARGV[at + 5] == '0' then
    wait = 0
    for i = 1, 2 do spent[i] = spent[i] + math.ceil(ARGV[at + 2 * i]) end
    redis.call('HSET', key, 'r', string.format('%.0f', spent[1]), 'b', string.format('%.0f', spent[2]))
    redis.call('PEXPIRE', key, math.ceil((math.max(spent[1], spent[2]) - now) / 1000) + 1)
  end
  waits[k] = math.ceil(wait)
end
return waits
"""


@dataclass(frozen=True)
class Cost:
    """What one request spends, and how far ahead its counter may be, in microseconds of the budgets."""

    request_us: float
    request_ahead_us: float
    body_us: float
    body_ahead_us: float


class _Question(NamedTuple):
    key: str
    cost: Cost
    is_refusing: bool
    answer: asyncio.Future[float | None]
    """None: Redis did not answer."""


def user_counter(name: str | None, address: str) -> str:
    """The name of a user's counter; without authentication the address is the user."""
    return f"u:{name}" if name is not None else f"n:{address}"


class RateLimiter:
    """Used in the event loop only. `redis_uri` None: this process is the only one."""

    def __init__(
        self, settings: RateLimits, redis_uri: str | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._spent: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._redis = None if redis_uri is None else _connect(redis_uri, settings.redis_timeout_ms / 1000)
        self._script = None if self._redis is None else self._redis.register_script(_SCRIPT)
        self._is_away, self._retry_at = False, 0.0
        self._asked: list[_Question] = []
        self._asking: asyncio.Task[None] | None = None

    async def admit_user(self, counter: str, body_bytes: int) -> None:
        """`counter`: from `user_counter`. `body_bytes`: 0 where it is not declared; `charge_user` adds it. Raises: Refused."""
        await self._admit(counter, self._user_cost(body_bytes))

    async def admit_address(self, address: str) -> None:
        """Admit a request without a user. Raises: Refused."""
        limits = self._settings
        await self._admit(
            f"a:{address}",
            _cost(limits.address_requests_per_s, limits.address_request_burst, limits, body_bytes=0),
        )

    async def charge_user(self, counter: str, body_bytes: int) -> None:
        """Add a body whose size was not declared, after it arrived."""
        cost = self._user_cost(body_bytes)
        await self._spend(counter, Cost(0, 0, cost.body_us, cost.body_ahead_us), is_refusing=False)

    async def close(self) -> None:
        if self._asking is not None:
            await self._asking
        if self._redis is not None:
            await self._redis.aclose()

    def _user_cost(self, body_bytes: int) -> Cost:
        limits = self._settings
        return _cost(limits.requests_per_s, limits.request_burst, limits, body_bytes)

    async def _admit(self, key: str, cost: Cost) -> None:
        wait_us = await self._spend(key, cost, is_refusing=True)
        if wait_us > 0:
            LIMITED.labels("address" if key.startswith("a:") else "user").inc()
            wait_s = max(1, math.ceil(wait_us / 1e6))
            message = f"too many requests, or too many bytes in their bodies: try again in {wait_s} s"
            raise Refused(429, message, "rate_limited", {"Retry-After": str(wait_s)})

    async def _spend(self, key: str, cost: Cost, *, is_refusing: bool) -> float:
        """How long to wait, in microseconds; 0: spent."""
        if self._script is not None and self._may_ask():
            answer: asyncio.Future[float | None] = asyncio.get_running_loop().create_future()
            self._asked.append(_Question(key, cost, is_refusing, answer))
            if self._asking is None:
                self._asking = asyncio.create_task(self._ask())
            wait_us = await answer
            if wait_us is not None:
                return wait_us
        return self._spend_here(key, cost, is_refusing)

    async def _ask(self) -> None:
        """Send what was asked while the last answer was under way, all in one round trip; None for what gets no answer."""
        batch: list[_Question] = []
        try:
            while self._asked:
                batch, self._asked = self._asked[:MAX_BATCH], self._asked[MAX_BATCH:]
                for question, wait_us in zip(batch, await self._waits(batch), strict=True):
                    if not question.answer.done():  # its request may have been cancelled
                        question.answer.set_result(wait_us)
        finally:
            self._asking = None
            unanswered, self._asked = [*batch, *self._asked], []
            for question in unanswered:
                if not question.answer.done():
                    question.answer.set_result(None)

    async def _waits(self, batch: Sequence[_Question]) -> Sequence[float | None]:
        assert self._script is not None
        arguments: list[float] = []
        for _, cost, is_refusing, _ in batch:
            arguments += [cost.request_ahead_us, cost.request_us, cost.body_ahead_us, cost.body_us, int(is_refusing)]
        try:
            async with asyncio.timeout(self._settings.redis_timeout_ms / 1000):
                waits: Sequence[float] = await self._script(keys=[_name(q.key) for q in batch], args=arguments)
        except Exception as error:  # uvloop raises RuntimeError for a connection that was reset, for example
            self._went_away(error)
            return [None] * len(batch)
        self._came_back()
        return waits

    def _spend_here(self, key: str, cost: Cost, is_refusing: bool) -> float:
        now = self._clock() * 1e6
        request, body = (max(spent, now) for spent in self._spent.get(key, (0.0, 0.0)))
        waits = [request - now - cost.request_ahead_us] if cost.request_us else []
        waits += [body - now - cost.body_ahead_us] if cost.body_us else []
        if is_refusing and (wait := max(waits, default=0.0)) > 0:
            return wait
        self._spent[key] = (request + cost.request_us, body + cost.body_us)
        self._spent.move_to_end(key)
        if len(self._spent) > MAX_COUNTERS:
            self._spent.popitem(last=False)
        return 0

    def _may_ask(self) -> bool:
        """While Redis is away, one request a second tries it."""
        if not self._is_away:
            return True
        now = self._clock()
        if now < self._retry_at:
            return False
        self._retry_at = now + RETRY_S
        return True

    def _went_away(self, error: Exception) -> None:
        if not self._is_away:
            log.warning("rate_limits_not_shared", extra={"error": type(error).__name__})
        self._is_away, self._retry_at = True, self._clock() + RETRY_S

    def _came_back(self) -> None:
        if self._is_away:
            log.info("rate_limits_shared")
        self._is_away = False


def _cost(per_s: float, burst: int, limits: RateLimits, body_bytes: int) -> Cost:
    body_us = 1e6 / limits.body_bytes_per_s
    return Cost(1e6 / per_s, (burst - 1) * 1e6 / per_s, body_bytes * body_us, limits.body_burst_bytes * body_us)


def _name(key: str) -> str:
    return KEY + hashlib.sha256(key.encode(errors="replace")).hexdigest()[:32]


def _connect(uri: str, timeout_s: float) -> Redis | None:
    """None for a URI that only Celery understands (sentinel://)."""
    try:
        return Redis.from_url(
            uri,
            single_connection_client=True,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
        )
    except ValueError:
        log.warning("rate_limits_not_shared", extra={"error": "the URI of the broker is not one of Redis"})
        return None
