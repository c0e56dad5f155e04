"""Requests that wait: streams of events, long polls. How many there may be, and how they end.

They are bounded in all and for each user (without authentication: each address), apart from other connections. A stream ends when its
client leaves or does not read for a minute (`connections`), and when the server stops.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from typing import Final

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from poiesis.api.connections import CONNECTION, network_key
from poiesis.api.errors import Refused
from poiesis.api.middleware import REAUTHENTICATE
from poiesis.api.users import USER, User
from poiesis.config import ApiSettings

RETRY_AFTER_S: Final = 30
AUTHENTICATE_EVERY_S: Final = 15.0
"""With the time until the next check comes round, no stream outlives its rights by more than half a minute."""


class Hold:
    """One request that waits. `has_left`: its client has left, or the server is to stop; then `wake` was called."""

    def __init__(self) -> None:
        self.has_left = False
        self.wake: Callable[[], None] = lambda: None

    def leave(self) -> None:
        self.has_left = True
        self.wake()


class StreamLimits:
    """The limits of one process. Used in the event loop only."""

    def __init__(self, settings: ApiSettings) -> None:
        self._max = settings.max_streams
        self._max_per_user = settings.max_streams_per_user
        self._per_user: Counter[str] = Counter()

    @contextmanager
    def hold(self, scope: Scope) -> Iterator[Hold]:
        """Count a request while it waits. Raises: Refused."""
        name = scope[USER].name
        user = f"user {name}" if name is not None else f"address {network_key((scope.get('client') or ('',))[0])}"
        if self._per_user.total() >= self._max:
            raise _too_many(f"at most {self._max} on this server")
        if self._per_user[user] >= self._max_per_user:
            raise _too_many(f"at most {self._max_per_user} for one user")
        hold = Hold()
        connection = scope.get(CONNECTION)
        if connection is not None:
            connection.hold(hold.leave)
        self._per_user[user] += 1
        try:
            yield hold
        finally:
            self._per_user[user] -= 1
            if not self._per_user[user]:
                del self._per_user[user]


class RightsCheck:
    """Who the user of a request that lasts is by now: asked every AUTHENTICATE_EVERY_S."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self._user: User = scope[USER]
        self._clock = asyncio.get_running_loop().time
        self._asked_at = self._clock()

    async def user(self) -> User:
        """The user with the rights of now. Raises: Refused, Unavailable."""
        if self._clock() - self._asked_at >= AUTHENTICATE_EVERY_S:
            self._asked_at = self._clock()
            self._user = await self._scope[REAUTHENTICATE]()
        return self._user

    async def are_the_same(self) -> bool:
        """Whether the credentials still give the rights with which the request began. Raises: Unavailable."""
        try:
            return bool(await self.user() == self._scope[USER])
        except Refused:
            return False


class StreamedResponse(Response):
    """Chunks, sent while the request is within the limits. Errors before the first chunk become an ordinary error response; later ones
    break the connection off, so that a client does not take a part for the whole. The first chunk may be empty."""

    def __init__(
        self,
        limits: StreamLimits,
        chunks: Callable[[Hold], AsyncIterator[bytes]],
        headers: Mapping[str, str],
        status: int = 200,
    ) -> None:
        self.status_code, self.background = status, None
        self.raw_headers = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        self._limits, self._chunks = limits, chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._limits.hold(scope) as hold:
            async with aclosing(self._chunks(hold)) as chunks:  # type: ignore[type-var]
                first = await anext(chunks, b"")
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                if scope["method"] != "HEAD":
                    if first:
                        await send({"type": "http.response.body", "body": first, "more_body": True})
                    del first
                    async for chunk in chunks:
                        await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})


def _too_many(limit: str) -> Refused:
    headers = {"Retry-After": str(RETRY_AFTER_S)}
    return Refused(
        429, f"too many waiting requests: {limit}; wait for several tasks with one", "too_many_streams", headers
    )
