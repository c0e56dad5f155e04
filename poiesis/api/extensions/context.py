"""What the handlers of all operations share: the services, and the ways to call them and to read a request."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

from starlette.responses import Response
from starlette.types import Scope

from poiesis.api.event_feed import EventFeed
from poiesis.api.services import Services
from poiesis.api.streams import StreamLimits
from poiesis.api.threads import Threads
from poiesis.api.validation import TaskReader
from poiesis.api.views import Views

P = ParamSpec("P")
T = TypeVar("T")
Document = Mapping[str, Any]
Handler = Callable[[Scope], Awaitable[Document | Response]]
"""One operation. A document is answered as JSON with 200; a response is sent as it is, which may be a stream."""


@dataclass(frozen=True)
class Context:
    """`tasks`: reads task documents. `feed`: live events. `limits`: of requests that wait."""

    services: Services
    views: Views
    threads: Threads
    tasks: TaskReader
    feed: EventFeed
    limits: StreamLimits

    async def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a service, which blocks on its store, in the pool of threads."""
        return await self.threads.call(function, *args, **kwargs)


def header(scope: Scope, name: str) -> str | None:
    """The last header with this name (lower case), or None."""
    values = [v for n, v in scope["headers"] if n == name.encode()]
    return values[-1].decode("latin-1").strip() if values else None
