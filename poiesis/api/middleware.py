"""What stands around Connexion: health, pages, the limit of bodies (`Front`), and who calls (`Authentication`)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from poiesis.api.auth import Authenticator
from poiesis.api.errors import BodyTooLarge, plain, response
from poiesis.api.handlers import USER
from poiesis.domain.errors import PoiesisError

BASE_PATHS: Final = ("/ga4gh/tes/v1", "/v1")
OPEN_OPERATIONS: Final = frozenset({"GetServiceInfo"})
"""Asked by clients before they know whether they need credentials."""


class Front:
    """Sends API paths on with their bodies limited, answers health checks itself, and leaves the rest to the pages."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        pages: ASGIApp,
        ready: Callable[[], None],
        threads: ThreadPoolExecutor,
        max_body_bytes: int,
    ) -> None:
        self._app = app
        self._pages = pages
        self._ready = ready
        self._threads = threads
        self._max_body_bytes = max_body_bytes
        self._prefixes = tuple(base + "/" for base in BASE_PATHS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"]
        if path.startswith(self._prefixes):
            await self._app(scope, self._limited(scope, receive), send)
        elif path in ("/healthz", "/readyz"):
            await (await self._health(scope))(scope, receive, send)
        elif _declared_bytes(scope) > self._max_body_bytes:
            await response(BodyTooLarge(self._max_body_bytes))(scope, receive, send)
        else:
            await self._pages(scope, receive, send)

    async def _health(self, scope: Scope) -> Response:
        if scope["method"] not in ("GET", "HEAD"):
            told = plain(405, "this address does not know this method", {"Allow": "GET, HEAD"})
            return Response(told.body, told.status, dict(told.headers), "application/json")
        if scope["path"] == "/readyz":
            try:
                await asyncio.get_running_loop().run_in_executor(self._threads, self._ready)
            except PoiesisError as error:
                return response(error)
        return Response(json.dumps({"status": "ok"}), media_type="application/json")

    def _limited(self, scope: Scope, receive: Receive) -> Receive:
        """Receives no more than the limit: refuses at once what declares to be larger, and a chunked body on the way."""
        if scope["method"] in ("GET", "HEAD", "OPTIONS"):
            return receive
        limit, declared, seen = self._max_body_bytes, _declared_bytes(scope), 0

        async def limited() -> Message:
            nonlocal seen
            if declared > limit:
                raise BodyTooLarge(limit)
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > limit:
                raise BodyTooLarge(limit)
            return message

        return limited


class Authentication:
    """Finds the user of each operation of the API; stands behind Connexion's routing, so that unknown paths are 404 and never 401."""

    def __init__(self, app: ASGIApp, *, authenticator: Authenticator, threads: ThreadPoolExecutor) -> None:
        self._app = app
        self._authenticator = authenticator
        self._threads = threads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._authenticator.enabled and scope["type"] == "http":
            operation = scope["extensions"]["connexion_routing"]["operation_id"]
            if operation is not None and operation not in OPEN_OPERATIONS:
                scope[USER] = await self._user(scope)
        await self._app(scope, receive, send)

    async def _user(self, scope: Scope) -> Any:
        headers, query = scope["headers"], scope["query_string"]
        slow = any(k == b"authorization" and v[:5].lower() == b"basic" for k, v in headers)
        if not slow:
            return self._authenticator.user(headers, query)
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._authenticator.user, headers, query)


def _declared_bytes(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value) if value.isdigit() else 0
    return 0
