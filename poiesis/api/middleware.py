"""The middleware around Connexion: `Gateway` in front of everything, and `Authentication` behind its routing."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from poiesis.api.auth import Authenticator
from poiesis.api.bodies import BodyBudget, BodyReader, declared_bytes
from poiesis.api.connections import CONNECTION, network_key
from poiesis.api.errors import BrokenOff, Refused, plain, respond
from poiesis.api.limits import RateLimiter, user_counter
from poiesis.api.requests import HEALTH_PATHS, REQUEST, RequestRecord
from poiesis.api.same_origin import SAFE_METHODS, RequestGuard, came_from_browser
from poiesis.api.threads import Threads
from poiesis.api.users import USER, User
from poiesis.config import ApiSettings
from poiesis.domain.keys import Right

BASE_PATHS: Final = ("/ga4gh/tes/v1", "/v1")
READING_OPERATIONS: Final = frozenset({"GetStates", "ValidateTask", "WaitForTasks"})
"""These change nothing, although they are POST."""
EXTENSIONS_PATH: Final = "/poiesis/v1"
OPEN_OPERATIONS: Final = frozenset({"GetServiceInfo", "GetCapabilities"})
"""Clients call these before they know whether they need credentials."""
REAUTHENTICATE: Final = "poiesis.reauthenticate"
"""Key of the ASGI scope: determines the user of the request again, for one that lasts. Raises: Refused."""
LEAVES: Final = "poiesis.leaves"
"""Key of the ASGI scope: the answer redirects to a configured OpenID provider, so its address stays as it is."""
BrowserUser = Callable[[Scope], Awaitable[User | None]]
"""The user of a session in a browser's cookie; None: there is none. Raises: Refused, Unavailable."""
JSON: Final = b"application/json"
MERGE_PATCH: Final = b"application/merge-patch+json"
SECURITY_HEADERS: Final = {
    "x-content-type-options": "nosniff",
    "content-security-policy": "frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
}


class Gateway:
    """Refuses requests of foreign web pages, answers health checks, passes API paths on with limited bodies, and the rest to the pages.

    Whatever fails further in is answered as JSON, and no redirect leaves the service. `operations`: all paths of the specifications.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        pages: ASGIApp,
        ready: Callable[[], None],
        threads: Threads,
        settings: ApiSettings,
        operations: Mapping[str, Any],
        limiter: RateLimiter | None,
    ) -> None:
        self._app = app
        self._limiter = limiter
        self._pages = pages
        self._ready = ready
        self._threads = threads
        self._guard = RequestGuard(settings)
        self._budget = BodyBudget(settings)
        self._prefixes = tuple(base + "/" for base in (*BASE_PATHS, EXTENSIONS_PATH))
        self._methods = [
            (re.compile(re.sub(r"{\w+}", "[^/]+", path)), _allowed(item))
            for path, item in sorted(operations.items(), reverse=True)  # `/tasks/{id}:cancel` before `/tasks/{id}`
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = replaced = False
        send = _with_security_headers(send)

        async def checked_send(message: Message) -> None:
            nonlocal started, replaced
            if message["type"] == "http.response.start":
                started = True
                if LEAVES not in scope:
                    _make_redirect_relative(message)
                headers = Headers(raw=message["headers"])
                if (
                    message["status"] >= 400
                    and headers.get("content-type") != JSON.decode()
                    and not _is_page_of_dashboard(headers)
                ):
                    replaced = True  # text of a library: of Flask, or the one that serves Swagger UI's files
                    kept = {"Allow": headers["allow"]} if "allow" in headers else None
                    await plain(message["status"], headers=kept)(scope, receive, send)
            if not replaced:
                await send(message)

        try:
            await self._route(scope, receive, checked_send)
        except Exception as error:
            if started:
                _break_off(scope, error)
                return
            if (
                isinstance(error, HTTPException) and error.status_code == 405
            ):  # the router knows the methods of one route only
                error.headers = {
                    "Allow": next((m for pattern, m in self._methods if pattern.fullmatch(scope["path"])), "")
                }
            answer = respond(error)
            scope[REQUEST].error = answer.code
            await answer(scope, receive, send)

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if path in HEALTH_PATHS:  # requested by kubelets and load balancers under any name; they reveal nothing
            await (await self._health(scope))(scope, receive, send)
            return
        is_api = path.startswith(self._prefixes)
        self._guard.check(scope, is_page=not is_api)
        if is_api:
            _normalize_content_type(scope)
        elif self._limiter is not None:
            await self._limiter.admit_address(client_network(scope))
        app = self._app if is_api else self._pages
        if scope["method"] in SAFE_METHODS:
            await app(scope, receive, send)
            return
        body = BodyReader(scope, receive, self._budget, client_network(scope))
        try:
            await app(scope, body, send)
        finally:
            body.close()

    async def _health(self, scope: Scope) -> Response:
        """Raises: Unavailable."""
        if scope["method"] not in ("GET", "HEAD"):
            return plain(405, headers={"Allow": "GET, HEAD"})
        if scope["path"] == "/readyz":
            await self._threads.call(self._ready)
        return Response(json.dumps({"status": "ok"}), media_type="application/json")


class Authentication:
    """Determines the user of each operation of the API. Runs behind Connexion's routing, so that unknown paths are 404 and never 401."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        authenticator: Authenticator,
        limiter: RateLimiter | None = None,
        browser_user: BrowserUser | None = None,
    ) -> None:
        self._app = app
        self._browser_user = browser_user
        self._authenticator = authenticator
        self._limiter = limiter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record: RequestRecord = scope[REQUEST]
        record.operation = scope["extensions"]["connexion_routing"]["operation_id"]
        record.task = scope.get("path_params", {}).get("id")
        if record.operation in OPEN_OPERATIONS and self._limiter is not None:
            await self._limiter.admit_address(client_network(scope))
        if record.operation is None or record.operation in OPEN_OPERATIONS:
            await self._app(scope, receive, send)
            return
        record.user = scope[USER] = await self._user(scope)
        reads = scope["method"] in SAFE_METHODS or record.operation in READING_OPERATIONS
        needed: Right = "read" if reads else "write"
        if needed not in record.user.scopes:
            raise Refused(403, f"these credentials lack the scope {needed}", "insufficient_scope")
        await self._limited(record.user, scope, receive, send)

    async def _user(self, scope: Scope) -> User:
        """Raises: Refused."""
        address = client_network(scope)
        scope[REAUTHENTICATE] = partial(self._identify, scope, address)
        try:
            return await scope[REAUTHENTICATE]()  # type: ignore[no-any-return]
        except Refused as error:
            if error.status_code == 401 and self._limiter is not None:
                await self._limiter.admit_address(address)
            raise

    async def _identify(self, scope: Scope, address: str) -> User:
        """Raises: Refused, Unavailable."""
        headers = scope["headers"]
        if self._browser_user is not None and not any(n in (b"authorization", b"x-api-key") for n, _ in headers):
            user = await self._browser_user(scope)
            if user is not None:
                return user
        return await self._authenticator.user(headers, scope["query_string"], address)

    async def _limited(self, user: User, scope: Scope, receive: Receive, send: Send) -> None:
        if self._limiter is None:
            await self._app(scope, receive, send)
            return
        counter, declared = user_counter(user.name, client_network(scope)), declared_bytes(scope)
        await self._limiter.admit_user(counter, declared or 0)
        try:
            await self._app(scope, receive, send)
        finally:
            if declared is None and (arrived := scope[REQUEST].body_bytes):
                await self._limiter.charge_user(counter, arrived)


def _break_off(scope: Scope, error: Exception) -> None:
    """End a response that has begun. Raises: `error` itself where there is no connection to close."""
    if CONNECTION not in scope:
        raise error
    if not isinstance(error, BrokenOff):
        respond(error)  # which logs it
    scope[CONNECTION].break_off()


def _is_page_of_dashboard(headers: Headers) -> bool:
    """Whether an error is a page of the dashboard, which marks its own, for a person."""
    return "text/html" in headers.get("content-type", "") and "x-frame-options" in headers


def client_network(scope: Scope) -> str:
    """The address that a request came from, or its network (`network_key`)."""
    return network_key(scope["client"][0]) if scope.get("client") else ""


class Cors(CORSMiddleware):
    """Starlette's, whose responses to preflights have no text, or are JSON where it refuses."""

    def preflight_response(self, request_headers: Headers) -> Response:
        found = super().preflight_response(request_headers)
        if found.status_code >= 400:
            return plain(403, "this origin, method or header is not allowed: see POIESIS_API__CORS_ORIGINS")
        return Response(None, 204, {name: v for name, v in found.headers.items() if not name.startswith("content-")})


def _normalize_content_type(scope: Scope) -> None:
    """Write JSON's media type as Connexion compares it, without parameters: for JSON, none has a meaning (RFC 8259).

    A merge patch is JSON: which operations take one is known to their handlers.

    Raises: Refused for a browser that left it out: a page can do so without asking the service first.
    """
    values = [v for n, v in scope["headers"] if n == b"content-type"]
    if len(values) > 1 or (not values and declared_bytes(scope) != 0 and came_from_browser(scope)):
        raise Refused(415, "missing or repeated Content-Type: send the task with Content-Type: application/json")
    known = (JSON, MERGE_PATCH) if scope["path"].startswith(EXTENSIONS_PATH) else (JSON,)
    if values and values[0].partition(b";")[0].strip().lower() in known:
        scope["headers"] = [(n, JSON if n == b"content-type" else v) for n, v in scope["headers"]]


def _allowed(item: Mapping[str, Any]) -> str:
    """The header Allow of a 405 for a path of the spec."""
    methods = [method.upper() for method in ("get", "post", "put", "patch", "delete") if method in item]
    return ", ".join([*methods, "HEAD"] if "GET" in methods else methods)


def _with_security_headers(send: Send) -> Send:
    async def extended_send(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(raw=list(message["headers"]))
            for name, value in SECURITY_HEADERS.items():
                headers.setdefault(name, value)
            if headers.get("content-type") == JSON.decode():
                headers["cache-control"] = "no-store"
            message["headers"] = headers.raw
        await send(message)

    return extended_send


def _make_redirect_relative(message: Message) -> None:
    """Redirects of the libraries repeat the name in `Host`, which the client controls, and a path such as `//evil.example`."""
    if not 300 <= message["status"] < 400:
        return
    headers = MutableHeaders(raw=list(message["headers"]))
    parts = urlsplit(headers.get("location", ""))
    if parts.netloc:
        path = "/" + parts.path.replace("\\", "/").lstrip("/")
        headers["location"] = path + (f"?{parts.query}" if parts.query else "")
        message["headers"] = headers.raw
