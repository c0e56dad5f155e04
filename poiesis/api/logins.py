"""Limits on password logins: a slow hash must not let one client keep all others waiting.

Each address and each user name has a bucket of attempts that refills slowly; a successful one is given back, and a refused one costs
nothing. One thread hashes, with a short queue. Attempts over the limit get 429 a second later, without a hash or a thread, which slows
down clients that retry at once. Verified passwords are cached, keyed by an HMAC under a key of this process, until they have been unused
for a while.
"""

from __future__ import annotations

import asyncio
import hmac
import math
import secrets
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, NoReturn

from poiesis.api.attempts import MAX_BUCKETS, Attempts, Rate
from poiesis.api.errors import Refused
from poiesis.api.threads import Threads

REFUSAL_DELAY_S: Final = 1.0
REMEMBER_S: Final = 300.0  # since the last use
MAX_REMEMBERED: Final = 1_000
MAX_QUEUED: Final = 16


PER_ADDRESS: Final = Rate(burst=10, refill_s=6.0)
PER_USER: Final = Rate(burst=30, refill_s=2.0)  # more, since other people's attempts count against a user


class LoginGate:
    """Used in the event loop only; `verify` runs in its own thread."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._key = secrets.token_bytes(32)
        self._verified: OrderedDict[bytes, float] = OrderedDict()
        self._buckets = Attempts(clock)
        self._known: OrderedDict[tuple[str, str], None] = OrderedDict()  # users with addresses that they logged in from
        self._thread = Threads(1, "login")
        self._queued = 0
        self._attempts: dict[bytes, asyncio.Future[bool]] = {}

    async def check(self, name: str, password: str, expected: bytes, address: str, verify: Callable[[], bool]) -> bool:
        """Whether the password is right. `expected` is its stored hash: a cached result is dropped when that changes.

        Raises: Refused.
        """
        proof = hmac.digest(self._key, b"\0".join((name.encode(), expected, password.encode())), "sha256")
        if self._is_remembered(proof):
            return True
        attempt = self._attempts.get(proof)
        if attempt is None:  # a client that begins with many connections makes one attempt
            attempt = self._attempts[proof] = asyncio.ensure_future(self._attempt(name, address, verify))
            attempt.add_done_callback(lambda done: self._end(proof, done))
        return await asyncio.shield(attempt)

    async def _attempt(self, name: str, address: str, verify: Callable[[], bool]) -> bool:
        buckets = [("address", address, PER_ADDRESS)]
        if (name, address) not in self._known:  # attempts from elsewhere must not lock out a user
            buckets.append(("user", name, PER_USER))
        for bucket in buckets:
            if wait_s := self._buckets.wait_s(*bucket):
                await self._refuse("too many login attempts", wait_s)
        if self._queued >= MAX_QUEUED:
            await self._refuse("too many concurrent logins", 1)
        for bucket in buckets:
            self._buckets.take(*bucket)
        self._queued += 1
        try:
            is_right = await self._thread.call(verify)
        finally:
            self._queued -= 1
        if is_right:
            for bucket in buckets:
                self._buckets.give_back(*bucket)
            self._known[name, address] = None
            self._known.move_to_end((name, address))
            while len(self._known) > MAX_BUCKETS:
                self._known.popitem(last=False)
        return is_right

    async def _refuse(self, message: str, wait_s: int) -> NoReturn:
        await asyncio.sleep(REFUSAL_DELAY_S)
        raise Refused(429, message, "too_many_logins", {"Retry-After": str(wait_s)})

    def _end(self, proof: bytes, attempt: asyncio.Future[bool]) -> None:
        del self._attempts[proof]
        if not attempt.cancelled() and attempt.exception() is None and attempt.result():
            self._remember(proof)

    def _is_remembered(self, proof: bytes) -> bool:
        expires = self._verified.get(proof, -math.inf)
        if expires <= self._clock():
            return False
        self._remember(proof)
        return True

    def _remember(self, proof: bytes) -> None:
        """Add or prolong the proof; drop the one that was used the longest time ago if there are too many."""
        self._verified[proof] = self._clock() + REMEMBER_S
        self._verified.move_to_end(proof)
        if len(self._verified) > MAX_REMEMBERED:
            self._verified.popitem(last=False)

    def close(self) -> None:
        self._thread.abandon()
