"""What stands around Connexion: `Gateway` in front of everything, and `Authentication` behind its routing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from poiesis.api.auth import Authenticator
from poiesis.api.bodies import BodyBudget, BodyReader, declared_bytes
from poiesis.api.errors import BodyTooLarge, UnsupportedMediaType, plain, response
from poiesis.api.handlers import USER
from poiesis.api.media_types import parse_media_type
from poiesis.api.same_origin import RequestGuard, came_from_browser
from poiesis.config import ApiSettings
from poiesis.domain.errors import PoiesisError

BASE_PATHS: Final = ("/ga4gh/tes/v1", "/v1")
HEALTH_PATHS: Final = ("/healthz", "/readyz")
OPEN_OPERATIONS: Final = frozenset({"GetServiceInfo"})
"""Clients call these before they know whether they need credentials."""
JSON: Final = b"application/json"


class Gateway:
    """Refuses requests of foreign web pages, answers health checks, passes API paths on with limited bodies, and the rest to the pages.

    Whatever fails further in is answered as JSON, and no redirect leaves the service.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        pages: ASGIApp,
        ready: Callable[[], None],
        threads: ThreadPoolExecutor,
        settings: ApiSettings,
    ) -> None:
        self._app = app
        self._pages = pages
        self._ready = ready
        self._threads = threads
        self._guard = RequestGuard(settings)
        self._budget = BodyBudget(settings)
        self._prefixes = tuple(base + "/" for base in BASE_PATHS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = replaced = False

        async def checked_send(message: Message) -> None:
            nonlocal started, replaced
            if message["type"] == "http.response.start":
                started = True
                _make_redirect_relative(message)
                if message["status"] >= 400 and Headers(raw=message["headers"]).get("content-type") != JSON.decode():
                    replaced = True  # text of a library, such as the one that serves Swagger UI's files
                    await plain(message["status"], "the request could not be answered").response()(scope, receive, send)
            if not replaced:
                await send(message)

        try:
            await self._route(scope, receive, checked_send)
        except Exception as error:
            if started:
                raise
            await response(error)(scope, receive, send)

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if path in HEALTH_PATHS:  # asked by kubelets and load balancers under any name; they reveal nothing
            await (await self._health(scope))(scope, receive, send)
            return
        is_api = path.startswith(self._prefixes)
        self._guard.check(scope, is_page=not is_api)
        if is_api:
            _normalize_content_type(scope)
            await self._with_body(self._app, scope, receive, send)
        elif (declared_bytes(scope) or 0) > self._budget.max_body_bytes:
            raise BodyTooLarge(self._budget.max_body_bytes)
        else:
            await self._with_body(self._pages, scope, receive, send)

    async def _with_body(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await app(scope, receive, send)
            return
        body = BodyReader(scope, receive, self._budget)
        try:
            await app(scope, body, send)
        finally:
            body.close()

    async def _health(self, scope: Scope) -> Response:
        if scope["method"] not in ("GET", "HEAD"):
            return plain(405, "unsupported method", {"Allow": "GET, HEAD"}).response()
        if scope["path"] == "/readyz":
            try:
                await asyncio.get_running_loop().run_in_executor(self._threads, self._ready)
            except PoiesisError as error:
                return response(error)
        return Response(json.dumps({"status": "ok"}), media_type="application/json")


class Authentication:
    """Finds the user of each operation of the API. Stands behind Connexion's routing, so that unknown paths are 404 and never 401."""

    def __init__(self, app: ASGIApp, *, authenticator: Authenticator) -> None:
        self._app = app
        self._authenticator = authenticator

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._authenticator.enabled and scope["type"] == "http":
            operation = scope["extensions"]["connexion_routing"]["operation_id"]
            if operation is not None and operation not in OPEN_OPERATIONS:
                address = scope["client"][0] if scope.get("client") else ""
                scope[USER] = await self._authenticator.user(scope["headers"], scope["query_string"], address)
        await self._app(scope, receive, send)


class Cors(CORSMiddleware):
    """Starlette's, with JSON for refused preflights."""

    def preflight_response(self, request_headers: Headers) -> Response:
        found = super().preflight_response(request_headers)
        if found.status_code >= 400:
            return plain(403, "this origin, method or header is not allowed: see POIESIS_API__CORS_ORIGINS").response()
        names = ("vary", *(name for name in found.headers if name.startswith("access-control-")))
        return Response(status_code=204, headers={name: found.headers[name] for name in names if name in found.headers})


def _normalize_content_type(scope: Scope) -> None:
    """Write JSON's media type as Connexion compares it, and give it to programs that left it out.

    Raises: UnsupportedMediaType for a browser that left it out: a page can do so without asking the service first.
    """
    values = [v for n, v in scope["headers"] if n == b"content-type"]
    if values:
        found = parse_media_type(values[0].decode("latin-1")) if len(values) == 1 else None
        if found is not None and found.essence == JSON.decode():
            scope["headers"] = [(n, JSON if n == b"content-type" else v) for n, v in scope["headers"]]
        elif found is None:
            raise UnsupportedMediaType("invalid Content-Type: send the task with Content-Type: application/json")
    elif declared_bytes(scope) != 0 and came_from_browser(scope):
        raise UnsupportedMediaType("missing Content-Type: send the task with Content-Type: application/json")


def _make_redirect_relative(message: Message) -> None:
    """Redirects of the libraries repeat the name in `Host`, which is the client's own word, and a path such as `//evil.example`."""
    if not 300 <= message["status"] < 400:
        return
    headers = MutableHeaders(raw=list(message["headers"]))
    parts = urlsplit(headers.get("location", ""))
    if parts.netloc:
        path = "/" + parts.path.replace("\\", "/").lstrip("/")
        headers["location"] = path + (f"?{parts.query}" if parts.query else "")
        message["headers"] = headers.raw
