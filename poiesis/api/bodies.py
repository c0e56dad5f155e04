"""Read request bodies within limits: on the size and speed of each body, and on the total that one process holds.

A document takes up to 25 times its bytes as Python objects, so large bodies wait for their turn: together they are within
`max_buffered_bytes` while they are read and worked on. Small ones do not wait: the number of connections bounds them.
"""

from __future__ import annotations

import asyncio
from typing import Final

from starlette.requests import ClientDisconnect, Request
from starlette.types import Message, Receive, Scope

from poiesis.api.errors import Refused, body_too_large
from poiesis.api.memory import trim_memory
from poiesis.api.requests import REQUEST, RequestRecord
from poiesis.config import ApiSettings

SMALL_BYTES: Final = 64 * 1024  # what uvicorn reads ahead of the application
MIN_BYTES_PER_S: Final = 16 * 1024
TURN_TIMEOUT_S: Final = 30.0
TRIM_DELAY_S: Final = 0.5


class BodyBudget:
    """The bytes of large bodies that a process may hold; further ones wait, first come, first served."""

    def __init__(self, settings: ApiSettings) -> None:
        self.max_body_bytes: Final = settings.max_body_bytes
        self.timeout_s: Final = settings.body_timeout.total_seconds()
        self._free = self._limit = max(settings.max_buffered_bytes, settings.max_body_bytes)
        self._turn = asyncio.Lock()  # first come, first served
        self._freed = asyncio.Event()
        self._trim: asyncio.TimerHandle | None = None

    async def take(self, size: int) -> None:
        """Raises: Refused when the bytes are not free within TURN_TIMEOUT_S."""
        try:
            async with asyncio.timeout(TURN_TIMEOUT_S), self._turn:
                while size > self._free:
                    self._freed.clear()
                    await self._freed.wait()
                self._free -= size
        except TimeoutError:
            raise Refused(503, "too many large requests at once", "server_busy", {"Retry-After": "5"}) from None

    def give_back(self, size: int) -> None:
        self._free += size
        self._freed.set()
        if self._trim is not None:
            self._trim.cancel()
        self._trim = asyncio.get_running_loop().call_later(TRIM_DELAY_S, self._trim_memory)

    def _trim_memory(self) -> None:
        if self._free == self._limit:
            trim_memory()


class BodyReader:
    """The `receive` of one request: raises Refused where the body is too large, too slow, or cut off."""

    def __init__(self, scope: Scope, receive: Receive, budget: BodyBudget) -> None:
        self._receive = receive
        self._budget = budget
        self._record: RequestRecord = scope[REQUEST]
        self._declared = declared_bytes(scope)
        if (self._declared or 0) > budget.max_body_bytes:
            raise body_too_large(budget.max_body_bytes)
        self._seen = 0
        self._taken = 0
        self._deadline: float | None = None

    async def __call__(self) -> Message:
        limit, clock = self._budget.max_body_bytes, asyncio.get_running_loop().time
        if self._deadline is None:
            await self._take(self._declared or 0)
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
        if self._declared is None and self._seen > SMALL_BYTES and not self._taken:
            await self._take(limit)
            self._deadline = clock() + self._budget.timeout_s
        # each byte extends the deadline, but a fast start does not allow a longer stall later
        self._deadline = min(self._deadline + size / MIN_BYTES_PER_S, clock() + self._budget.timeout_s)
        return message

    def close(self) -> None:
        """Return the body's bytes to the budget, once nothing of it is in use."""
        if self._taken:
            self._budget.give_back(self._taken)
            self._taken = 0

    async def _take(self, size: int) -> None:
        if size > SMALL_BYTES and not self._taken:
            await self._budget.take(size)
            self._taken = size


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
