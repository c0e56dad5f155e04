"""Logging in and out: by password, by API key or token, by an OpenID provider. Each ends with a redirect, whose address has the result.

No part of it renders anything or runs in a thread of the pages: checking a password is slow on purpose, and a provider may be.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qs, quote, urlencode

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope

from poiesis.api.auth import Authenticator, Login
from poiesis.api.bodies import read_form
from poiesis.api.errors import Refused
from poiesis.api.middleware import LEAVES, client_network
from poiesis.api.requests import REQUEST
from poiesis.api.ui.cookies import FORM, LOGIN, SESSION, Cookies
from poiesis.api.ui.session import Sessions
from poiesis.api.ui.visit import LOGIN_PAGE, ROOT, csrf_token, is_csrf_token, next_path
from poiesis.config import ApiSettings
from poiesis.domain.errors import PoiesisError

if TYPE_CHECKING:
    from poiesis.api.oidc.code_flow import Tokens
    from poiesis.api.oidc.provider import Provider

log = logging.getLogger(__name__)

PROVIDERS: Final = f"{LOGIN_PAGE}/oidc/"
LOGOUT: Final = f"{ROOT}/logout"
MAX_FORM_BYTES: Final = 16 * 1024
PENDING_S: Final = 600
MESSAGES: Final = {
    "credentials": "The name or the password is not right.",
    "key": "This key is not valid, or it has expired.",
    "too_many": "There were too many attempts to log in. Wait a minute, then try again.",
    "form": "The login page was out of date. Try again.",
    "pending": "The login took too long, or another one was started in between. Try again.",
    "denied": "The provider did not log you in.",
    "refused": "The provider logged you in, but gives you no access to this service. Its operators can help.",
    "unavailable": "The provider, or the store of this service, does not respond right now. Try again in a moment.",
    "ended": "Your session has ended. Log in again to go on.",
    "out": "You have logged out.",
}
"""What the login page says, by the parameter `error`."""


@dataclass(frozen=True)
class Pending:
    """A login by a provider that the browser is at: in a cookie, which no other site can set."""

    issuer: str
    state: str
    nonce: str
    verifier: str = field(repr=False)
    next: str


class Failed(Exception):
    """`code`: of MESSAGES."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class Entrance:
    """Used in the event loop only."""

    def __init__(self, settings: ApiSettings, authenticator: Authenticator, sessions: Sessions) -> None:
        self._settings = settings
        self._authenticator = authenticator
        self._sessions = sessions

    async def handle(self, scope: Scope, receive: Receive, cookies: Cookies) -> Response | None:
        """The answer to a request that logs in or out; None for any other."""
        path, method = scope["path"], scope["method"]
        step: Callable[[Scope, dict[str, str], Cookies], Awaitable[Response]]
        if (method, path) == ("POST", LOGIN_PAGE):
            step = self._log_in
        elif (method, path) == ("POST", LOGOUT):
            step = self._log_out
        elif method == "GET" and path.startswith(PROVIDERS):
            step = self._at_provider
        else:
            return None
        scope[REQUEST].operation = "LogOut" if path == LOGOUT else "LogIn"
        form = await _form(scope, receive)
        target = next_path(form.get("next", ""))
        try:
            return await step(scope, form, cookies)
        except (Failed, Refused, PoiesisError) as error:
            return _failed(scope, error, target)

    async def _log_in(self, scope: Scope, form: dict[str, str], cookies: Cookies) -> Response:
        secret = cookies.get(FORM)
        if not secret or not is_csrf_token(form.get("csrf_token", ""), csrf_token(secret)):
            raise Failed("form")
        address = client_network(scope)
        if "key" in form:
            login = await self._authenticator.key_login(form["key"].strip().encode(), address)
            failure = "key"
        else:
            name = form.get("name", "").strip()
            login = await self._authenticator.password_login(name, form.get("password", ""), address)
            failure = "credentials"
        if login is None:
            raise Failed(failure)
        return await self._welcome(scope, login, None, cookies, next_path(form.get("next", "")))

    async def _log_out(self, scope: Scope, form: dict[str, str], cookies: Cookies) -> Response:
        token = cookies.get(SESSION)
        if not token or not is_csrf_token(form.get("csrf_token", ""), csrf_token(token)):
            raise Failed("form")
        await self._sessions.log_out(token)
        answer = _to_page("out", ROOT)
        answer.raw_headers.append(cookies.set_header(SESSION, "", max_age_s=0))
        return answer

    async def _at_provider(self, scope: Scope, query: dict[str, str], cookies: Cookies) -> Response:
        """`/ui/login/oidc/NAME` sends the browser to the provider, `…/callback` takes it back."""
        name, _, rest = scope["path"].removeprefix(PROVIDERS).partition("/")
        verifier = self._authenticator.verifier
        provider = verifier.browser_providers().get(name) if verifier else None
        if provider is None or rest not in ("", "callback"):
            raise Failed("denied")
        if rest == "":
            return await self._leave(scope, provider, query, cookies)
        return await self._come_back(scope, provider, query, cookies)

    async def _leave(self, scope: Scope, provider: Provider, query: dict[str, str], cookies: Cookies) -> Response:
        from poiesis.api.oidc import code_flow

        started = await code_flow.start(provider, self._redirect_uri(scope, provider))
        pending = Pending(
            provider.issuer.name, started.state, started.nonce, started.verifier, next_path(query.get("next", ""))
        )
        answer = _redirect(started.url)
        text = base64.urlsafe_b64encode(msgspec.json.encode(pending)).decode()
        answer.raw_headers.append(cookies.set_header(LOGIN, text, max_age_s=PENDING_S))
        scope[LEAVES] = True
        return answer

    async def _come_back(self, scope: Scope, provider: Provider, query: dict[str, str], cookies: Cookies) -> Response:
        scope[REQUEST].is_login = True
        pending = _pending(cookies)
        if (
            pending is None
            or pending.issuer != provider.issuer.name
            or not is_csrf_token(query.get("state", ""), pending.state)
            or query.get("iss", provider.issuer.url) != provider.issuer.url
        ):
            raise Failed("pending")
        forget = cookies.set_header(LOGIN, "", max_age_s=0)
        if "error" in query or not query.get("code"):
            return _to_page("denied", pending.next, forget)
        try:
            login, tokens = await self._exchanged(scope, provider, query["code"], pending)
        except (Failed, Refused, PoiesisError) as error:
            return _failed(scope, error, pending.next, forget)
        answer = await self._welcome(scope, login, tokens, cookies, pending.next)
        answer.raw_headers.append(forget)
        return answer

    async def _exchanged(self, scope: Scope, provider: Provider, code: str, pending: Pending) -> tuple[Login, Tokens]:
        """Raises: Failed, Refused, Unavailable."""
        from poiesis.api.oidc import code_flow
        from poiesis.api.oidc.jwt import TokenRefused

        redirect_uri = self._redirect_uri(scope, provider)
        try:
            tokens = await code_flow.finish(provider, code, redirect_uri, pending.nonce, pending.verifier)
            name = provider.issuer.name
            login = await self._authenticator.token_login(tokens.access.encode(), name, client_network(scope))
        except TokenRefused as refusal:
            log.warning("login_refused", extra={"issuer": provider.issuer.name, "reason": str(refusal)})
            raise Failed("refused") from None
        except Refused as refusal:
            log.warning("login_refused", extra={"issuer": provider.issuer.name, "reason": refusal.detail})
            raise
        return login, tokens

    async def _welcome(
        self, scope: Scope, login: Login, tokens: Tokens | None, cookies: Cookies, target: str
    ) -> Response:
        """A new session, whose token the browser did not have before, and none of the old ones."""
        scope[REQUEST].user = login.user
        token = await self._sessions.begin(login, tokens, previous=cookies.get(SESSION))
        answer = _redirect(target)
        lifetime_s = int(self._sessions.lifetime.total_seconds())
        answer.raw_headers.append(cookies.set_header(SESSION, token, max_age_s=lifetime_s))
        answer.raw_headers.append(cookies.set_header(FORM, "", max_age_s=0))
        return answer

    def _redirect_uri(self, scope: Scope, provider: Provider) -> str:
        """The address that is registered at the provider. A wrong `Host` is refused there."""
        base = self._settings.dashboard.url
        if base is None:
            host = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"host"), "localhost")
            base = f"{scope.get('scheme', 'http')}://{host}"
        return f"{base}{PROVIDERS}{provider.issuer.name}/callback"


def _pending(cookies: Cookies) -> Pending | None:
    try:
        found = msgspec.json.decode(base64.urlsafe_b64decode(cookies.get(LOGIN)), type=Pending)
        return replace(found, next=next_path(found.next))
    except (ValueError, msgspec.MsgspecError):
        return None


async def _form(scope: Scope, receive: Receive) -> dict[str, str]:
    """The fields of a form, or of the query for a GET. Raises: Refused."""
    is_form = scope["method"] == "POST"
    body = await read_form(scope, receive, MAX_FORM_BYTES) if is_form else scope["query_string"]
    try:
        fields = parse_qs(body.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=20)
    except ValueError:
        raise Refused(400, "the form has too many fields") from None
    return {name: values[-1] for name, values in fields.items()}


def _failed(scope: Scope, error: Exception, target: str, *cookies: tuple[bytes, bytes]) -> Response:
    """The login page with the reason, which is also recorded for the audit. `error`: Failed, Refused or PoiesisError."""
    if isinstance(error, Failed):
        code = error.code
    elif isinstance(error, Refused):
        code = "too_many" if error.status_code == 429 else "refused"
    else:
        log.warning("login_unavailable", extra={"error": str(error)})
        code = "unavailable"
    scope[REQUEST].error = f"login_{code}"
    return _to_page(code, target, *cookies)


def _to_page(code: str, target: str, *cookies: tuple[bytes, bytes]) -> Response:
    query = urlencode({"error": code} if target == ROOT else {"error": code, "next": target}, quote_via=quote, safe="/")
    answer = _redirect(f"{LOGIN_PAGE}?{query}")
    answer.raw_headers.extend(cookies)
    return answer


def _redirect(target: str) -> Response:
    return Response(None, 303, {"Location": target, "Cache-Control": "no-store", "Referrer-Policy": "no-referrer"})
