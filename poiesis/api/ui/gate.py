"""In front of the pages, in the event loop: who visits, with which CSRF token, static files, and the bodies of requests.

A page runs in one of few threads, so nothing that waits for a client or a provider may happen there; logins are `entrance`'s.
"""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any, Final
from urllib.parse import quote
from weakref import WeakValueDictionary

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from poiesis.api.auth import Authenticator
from poiesis.api.bodies import declared_bytes, read_form
from poiesis.api.errors import Refused, plain
from poiesis.api.limits import RateLimiter, user_counter
from poiesis.api.middleware import client_network
from poiesis.api.requests import REQUEST
from poiesis.api.same_origin import SAFE_METHODS
from poiesis.api.ui import assets
from poiesis.api.ui.cookies import SESSION, Cookies
from poiesis.api.ui.entrance import Entrance
from poiesis.api.ui.session import Sessions
from poiesis.api.ui.site import MAX_FORM_BYTES
from poiesis.api.ui.visit import LOGIN_PAGE, ROOT, VISIT, Visit, form_secret, is_dashboard, next_path
from poiesis.api.users import User
from poiesis.domain.errors import PoiesisError

AT_ONCE: Final = 2
"""Pages of one user in one process, fewer than there are threads for all: some take seconds, such as canceling very many tasks."""
CREDENTIALS: Final = (b"authorization", b"x-api-key")


class Gate:
    """`pages`: the Flask application."""

    def __init__(
        self,
        pages: ASGIApp,
        *,
        authenticator: Authenticator,
        sessions: Sessions,
        entrance: Entrance,
        limiter: RateLimiter | None,
    ) -> None:
        self._pages = pages
        self._authenticator = authenticator
        self._sessions = sessions
        self._entrance = entrance
        self._limiter = limiter
        self._files = assets.assets()
        self._turns: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        """Semaphores of the users with pages in progress."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = "/" + scope["path"].lstrip("/")  # Flask routes //ui as /ui
        if not is_dashboard(path):
            await self._pages(scope, receive, send)
            return
        if path.startswith(assets.PREFIX):
            await (self._files.response(path) or plain(404))(scope, receive, send)
            return
        cookies = self._sessions.cookies(scope)
        answer = await self._entrance.handle(scope, receive, cookies)
        if answer is not None:
            await answer(scope, receive, send)
            return
        visit, body = Visit(None, ""), b""
        scope[VISIT] = visit
        try:
            visit.user, visit.has_session = await self._user(scope, cookies)
        except (Refused, PoiesisError) as error:
            visit.error = error
        if visit.user is not None:
            scope[REQUEST].user = visit.user
            body = await self._body(visit, scope, receive)
        elif visit.error is None and path != LOGIN_PAGE:
            await _to_login(scope, had_session=bool(cookies.get(SESSION)))(scope, receive, send)
            return
        visit.csrf, added = form_secret(cookies, has_session=visit.has_session)
        async with self._turn(visit.user):
            await self._pages(scope, _replay(body), _with_headers(send, added))

    async def _user(self, scope: Scope, cookies: Cookies) -> tuple[User | None, bool]:
        """The user, and whether by a session. Raises: Refused, PoiesisError."""
        if not any(name in CREDENTIALS for name, _ in scope["headers"]):
            if cookies.get(SESSION) and (user := await self._sessions.visitor(scope)) is not None:
                return user, True
            if self._authenticator.is_required:
                return None, False
        return await self._authenticator.user(scope["headers"], b"", client_network(scope)), False

    def _turn(self, user: User | None) -> AbstractAsyncContextManager[None]:
        """Waits while the user has AT_ONCE pages under way."""
        if user is None or user.name is None:
            return nullcontext()
        return self._turns.setdefault(user.name, asyncio.Semaphore(AT_ONCE))

    async def _body(self, visit: Visit, scope: Scope, receive: Receive) -> bytes:
        """The body of a user's request, within the limits on requests and bodies; a refusal is left in `visit`.

        It is read before a thread is taken, which a slow client must not hold, and not before the user is known.
        """
        assert visit.user is not None
        counter, declared = user_counter(visit.user.name, client_network(scope)), declared_bytes(scope)
        try:
            if self._limiter is not None:
                await self._limiter.admit_user(counter, declared or 0)
            if scope["method"] in SAFE_METHODS:
                return b""
            body = await read_form(scope, receive, MAX_FORM_BYTES)
            if self._limiter is not None and declared is None:
                await self._limiter.charge_user(counter, len(body))
        except Refused as error:
            visit.error = error
            return b""
        return body


def _to_login(scope: Scope, *, had_session: bool) -> Response:
    """The login page, which leads back here. A part of a page asked for by htmx becomes a whole page, unless it may hold what was typed."""
    here = scope["path"] + ("?" + scope["query_string"].decode("latin-1") if scope["query_string"] else "")
    query = ["error=ended"] if had_session else []
    if scope["method"] in SAFE_METHODS and here != ROOT:
        query.append("next=" + quote(next_path(here), safe="/"))
    target = LOGIN_PAGE + ("?" + "&".join(query) if query else "")
    if any(name == b"hx-request" for name, _ in scope["headers"]):
        if scope["method"] not in SAFE_METHODS:
            return Response(None, 401, {"Cache-Control": "no-store"})
        return Response(None, 204, {"HX-Redirect": target, "Cache-Control": "no-store"})
    return Response(None, 303, {"Location": target, "Cache-Control": "no-store"})


def _replay(body: bytes) -> Receive:
    message: Message = {"type": "http.request", "body": body, "more_body": False}

    async def receive() -> Message:
        return message

    return receive


def _with_headers(send: Send, added: list[tuple[bytes, bytes]]) -> Send:
    async def extended(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers: list[Any] = [*message["headers"], *added]
            message["headers"] = headers
        await send(message)

    return extended
