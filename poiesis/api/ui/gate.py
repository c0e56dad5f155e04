"""In front of the pages, in the event loop: who visits, with which CSRF token, static files, and bodies that have arrived as a whole.

A page runs in one of few threads, so nothing that waits for a client or a provider may happen there.
"""

from __future__ import annotations

import hmac
import secrets
from typing import Any, Final
from urllib.parse import quote

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from poiesis.api.auth import Authenticator
from poiesis.api.errors import Refused, plain
from poiesis.api.limits import RateLimiter, user_counter
from poiesis.api.middleware import client_network
from poiesis.api.requests import REQUEST
from poiesis.api.same_origin import SAFE_METHODS
from poiesis.api.ui import assets
from poiesis.api.ui.cookies import FORM, SESSION, Cookies
from poiesis.api.ui.visit import VISIT, Visit
from poiesis.api.users import User
from poiesis.config import ApiSettings
from poiesis.domain.errors import PoiesisError

ROOT: Final = "/ui"
OPEN_PAGES: Final = frozenset({f"{ROOT}/login"})
MAX_NEXT: Final = 2_000  # characters of an address to go on to after a login


class Gate:
    """`pages`: the Flask application."""

    def __init__(
        self, pages: ASGIApp, *, settings: ApiSettings, authenticator: Authenticator, limiter: RateLimiter | None
    ) -> None:
        self._pages = pages
        self._settings = settings
        self._authenticator = authenticator
        self._limiter = limiter
        self._files = assets.assets()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if not is_dashboard(path):
            await self._pages(scope, receive, send)
            return
        if path.startswith(assets.PREFIX):
            await (self._files.response(path) or plain(404))(scope, receive, send)
            return
        cookies = Cookies(scope, is_secure=self._is_secure(scope))
        added: list[tuple[bytes, bytes]] = []
        visit = scope[VISIT] = Visit(None, "")
        try:
            visit.user = await self._user(scope, cookies)
        except (Refused, PoiesisError) as error:
            visit.error = error
        visit.csrf = self._csrf(cookies, added)
        if visit.user is not None:
            scope[REQUEST].user = visit.user
            await self._limit(visit, scope)
        elif is_unauthenticated(visit.error) and path not in OPEN_PAGES:
            await _to_login(scope)(scope, receive, send)
            return
        await self._pages(scope, await _whole(scope, receive), _with_headers(send, added))

    async def _user(self, scope: Scope, cookies: Cookies) -> User | None:
        """Raises: Refused, PoiesisError."""
        address = client_network(scope)
        return await self._authenticator.user(scope["headers"], b"", address)

    async def _limit(self, visit: Visit, scope: Scope) -> None:
        if self._limiter is None or visit.user is None:
            return
        try:
            await self._limiter.admit_user(user_counter(visit.user.name, client_network(scope)), 0)
        except Refused as error:
            visit.error = error

    def _csrf(self, cookies: Cookies, added: list[tuple[bytes, bytes]]) -> str:
        secret = cookies.get(SESSION) or cookies.get(FORM)
        if not secret:
            secret = secrets.token_urlsafe(32)
            added.append(cookies.set_header(FORM, secret))
        return csrf_token(secret)

    def _is_secure(self, scope: Scope) -> bool:
        url = self._settings.dashboard.url
        return scope.get("scheme") == "https" if url is None else url.startswith("https:")


def is_dashboard(path: str) -> bool:
    return path == ROOT or path.startswith(ROOT + "/")


def is_unauthenticated(error: Exception | None) -> bool:
    return isinstance(error, Refused) and error.status_code == 401


def csrf_token(secret: str) -> str:
    """The token for forms: it is bound to a cookie, and does not reveal it."""
    return hmac.digest(secret.encode(), b"poiesis csrf", "sha256").hex()


def next_path(text: str) -> str:
    """An address to go on to: a path of the dashboard, or its root for anything else."""
    is_usable = (
        len(text) <= MAX_NEXT and text.isprintable() and "\\" not in text and is_dashboard(text.partition("?")[0])
    )
    return text if is_usable and "/../" not in text and "#" not in text else ROOT


def _to_login(scope: Scope) -> Response:
    """The login page, which leads back here. A part of a page asked for by htmx becomes a whole page."""
    here = scope["path"] + ("?" + scope["query_string"].decode("latin-1") if scope["query_string"] else "")
    target = f"{ROOT}/login"
    if scope["method"] in SAFE_METHODS and here != ROOT:
        target += "?next=" + quote(next_path(here), safe="/")
    if any(name == b"hx-request" for name, _ in scope["headers"]):
        return Response(None, 204, {"HX-Redirect": f"{ROOT}/login", "Cache-Control": "no-store"})
    return Response(None, 303, {"Location": target, "Cache-Control": "no-store"})


async def _whole(scope: Scope, receive: Receive) -> Receive:
    """The body, read before a thread is taken: a slow client must not hold one. Its size has a limit by the `Gateway`."""
    if scope["method"] in SAFE_METHODS:
        return receive
    parts: list[bytes] = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            break
    body: Message = {"type": "http.request", "body": b"".join(parts), "more_body": False}

    async def replay() -> Message:
        return body

    return replay


def _with_headers(send: Send, added: list[tuple[bytes, bytes]]) -> Send:
    async def extended(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers: list[Any] = [*message["headers"], *added]
            message["headers"] = headers
        await send(message)

    return extended
