"""Read request bodies within limits: on the size and speed of each body, and on the total that one process holds.

A document takes up to 25 times its bytes as Python objects, so large bodies wait for their turn: together they are within
`max_buffered_bytes` while they are read and worked on. Small ones do not wait: the number of connections bounds them.

No user slows another. The bodies of one user announce at most half of the bytes, and wait for each other beyond that; and a body that has
not arrived after `RESERVED_S` keeps of its bytes only those that have.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from typing import Final

from starlette.requests import ClientDisconnect, Request
from starlette.types import Message, Receive, Scope

from poiesis.api.errors import Refused, body_too_large
from poiesis.api.limits import user_counter
from poiesis.api.memory import trim_memory
from poiesis.api.requests import REQUEST, RequestRecord
from poiesis.config import ApiSettings

SMALL_BYTES: Final = 64 * 1024  # what uvicorn reads ahead of the application
MIN_BYTES_PER_S: Final = 16 * 1024
TURN_TIMEOUT_S: Final = 30.0
RESERVED_S: Final = 2.0
TRIM_DELAY_S: Final = 0.5


@dataclass(eq=False)
class _Turn:
    owner: str
    announced: int
    size: int
    granted: asyncio.Future[None]


class BodyBudget:
    """The bytes of large bodies that a process may hold; further ones wait, first come, first served among the users within their share."""

    def __init__(self, settings: ApiSettings) -> None:
        self.max_body_bytes: Final = settings.max_body_bytes
        self.timeout_s: Final = settings.body_timeout.total_seconds()
        self._free = self._limit = max(settings.max_buffered_bytes, 2 * settings.max_body_bytes)
        self._announced: Counter[str] = Counter()  # by owner
        self._waiting: list[_Turn] = []
        self._trim: asyncio.TimerHandle | None = None

    async def take(self, owner: str, announced: int, size: int) -> None:
        """Take `size` bytes. `announced`: what is added to the share of `owner`; 0 for more of a body that has announced all.

        Raises: Refused when they are not free within TURN_TIMEOUT_S.
        """
        turn = _Turn(owner, announced, size, asyncio.get_running_loop().create_future())
        self._waiting.append(turn)
        self._grant()
        try:
            async with asyncio.timeout(TURN_TIMEOUT_S):
                await turn.granted
        except (TimeoutError, asyncio.CancelledError) as error:
            if turn in self._waiting:
                self._waiting.remove(turn)
                self._grant()
            else:  # in the same moment
                self.give_back(owner, announced, size)
            if isinstance(error, asyncio.CancelledError):
                raise
            raise Refused(503, "too many large requests at once", "server_busy", {"Retry-After": "5"}) from None

    def give_back(self, owner: str, announced: int, size: int) -> None:
        self._free += size
        self._announced[owner] -= announced
        if not self._announced[owner]:
            del self._announced[owner]
        self._grant()
        if self._trim is not None:
            self._trim.cancel()
        self._trim = asyncio.get_running_loop().call_later(TRIM_DELAY_S, self._trim_memory)

    def _grant(self) -> None:
        beyond_share = set()
        # bodies that go on come first: one that has not begun may be waiting for what they hold
        for turn in sorted(self._waiting, key=lambda turn: turn.announced > 0):
            if turn.announced and (
                turn.owner in beyond_share or self._announced[turn.owner] + turn.announced > self._limit // 2
            ):
                beyond_share.add(turn.owner)
            elif turn.granted.done():  # cancelled
                continue
            elif turn.size > self._free:
                return
            else:
                self._waiting.remove(turn)
                self._free -= turn.size
                self._announced[turn.owner] += turn.announced
                turn.granted.set_result(None)

    def _trim_memory(self) -> None:
        if self._free == self._limit:
            trim_memory()


class BodyReader:
    """The `receive` of one request: raises Refused where the body is too large, too slow, or cut off.

    `address`: of the client, which is the user where the user is not known.
    """

    def __init__(self, scope: Scope, receive: Receive, budget: BodyBudget, address: str) -> None:
        self._receive = receive
        self._budget = budget
        self._record: RequestRecord = scope[REQUEST]
        self._address = address
        self._owner = ""  # until something is announced
        self._declared = declared_bytes(scope)
        if (self._declared or 0) > budget.max_body_bytes:
            raise body_too_large(budget.max_body_bytes)
        self._seen = 0
        self._announced = self._taken = 0
        self._reserved: asyncio.TimerHandle | None = None
        self._deadline: float | None = None

    async def __call__(self) -> Message:
        limit, clock = self._budget.max_body_bytes, asyncio.get_running_loop().time
        if self._deadline is None:
            await self._announce(self._declared or 0)
            self._deadline = clock() + self._budget.timeout_s
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            raise Refused(408, "the body did not arrive in time") from None
        if message["type"] == "http.disconnect":
            raise Refused(400, "the client closed the connection before its request was complete")
        size = len(message.get("body", b""))
        self._seen += size
        self._record.body_bytes = self._seen
        if self._seen > limit:
            raise body_too_large(limit)
        waits_from = clock()
        if self._declared is None and self._seen > SMALL_BYTES and not self._announced:
            await self._announce(limit)
        elif self._announced and self._seen > self._taken:
            await self._budget.take(self._owner, 0, self._seen - self._taken)
            self._taken = self._seen
        self._deadline += clock() - waits_from
        # each byte extends the deadline, but a fast start does not allow a longer stall later
        self._deadline = min(self._deadline + size / MIN_BYTES_PER_S, clock() + self._budget.timeout_s)
        if not message.get("more_body", False):
            self._keep_what_arrived()
        return message

    def close(self) -> None:
        """Return the body's bytes to the budget, once nothing of it is in use."""
        if self._reserved is not None:
            self._reserved.cancel()
        if self._announced:
            self._budget.give_back(self._owner, self._announced, self._taken)
            self._announced = self._taken = 0

    async def _announce(self, size: int) -> None:
        if size > SMALL_BYTES and not self._announced:
            user = self._record.user
            self._owner = user_counter(None if user is None else user.name, self._address)
            await self._budget.take(self._owner, size, size)
            self._announced = self._taken = size
            self._reserved = asyncio.get_running_loop().call_later(RESERVED_S, self._keep_what_arrived)

    def _keep_what_arrived(self) -> None:
        if self._taken > self._seen:
            self._budget.give_back(self._owner, 0, self._taken - self._seen)
            self._taken = self._seen


async def read_form(scope: Scope, receive: Receive, limit: int) -> bytes:
    """A body of at most `limit` bytes. Raises: Refused, without reading anything of a body that declares more."""
    refused = Refused(413, f"the form is larger than {limit:,} bytes", "body_too_large")
    if (declared_bytes(scope) or 0) > limit:
        raise refused
    body = bytearray()
    try:
        async for part in Request(scope, receive).stream():
            body += part
            if len(body) > limit:
                raise refused
    except ClientDisconnect:
        raise Refused(400, "the client left before its form was complete") from None
    return bytes(body)


def declared_bytes(scope: Scope) -> int | None:
    """Content-Length; None for a chunked body. The parser has refused values that are not numbers."""
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value)
        if name == b"transfer-encoding":
            return None
    return 0
