"""Sessions of browsers: a random token in a cookie, and what the store keeps under its digest.

With every request the credential of the login is looked at again, as the API does: a user who leaves the credentials file, a revoked key, a
changed password, an expired token of a provider all end the session, and groups and rights are those of now. Tokens of a provider are
stored encrypted with a key that only the cookie has, and are renewed by one process at a time, since providers take a refresh token once.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import secrets
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec
from starlette.types import Scope

from poiesis.api.attempts import Rate
from poiesis.api.auth import Authenticator, Login
from poiesis.api.errors import Refused
from poiesis.api.middleware import client_network
from poiesis.api.threads import Threads
from poiesis.api.ui.cookies import SESSION, Cookies
from poiesis.api.users import User
from poiesis.config import ApiSettings
from poiesis.domain.errors import Unavailable
from poiesis.domain.sessions import Session
from poiesis.ports.clock import Clock
from poiesis.ports.sessions import SessionRepository

if TYPE_CHECKING:
    from joserfc.jwk import OctKey

    from poiesis.api.oidc.code_flow import Tokens
    from poiesis.api.oidc.provider import Provider

log = logging.getLogger(__name__)

THREADS: Final = 4
MAX_PER_USER: Final = 50
UNKNOWN_SESSIONS: Final = Rate(burst=100, refill_s=0.5)
"""Cookies of one address that belong to no session."""
RENEW_AHEAD_S: Final = 15.0
RENEW_S: Final = 15.0
"""How long a process may take to renew tokens: longer than a provider's deadline."""
POLL_S: Final = 0.25
_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]{43}")


class Sessions:
    """Used in the event loop only."""

    def __init__(
        self, repository: SessionRepository, authenticator: Authenticator, settings: ApiSettings, clock: Clock
    ) -> None:
        self._repository = repository
        self._authenticator = authenticator
        self._settings = settings.dashboard
        self._clock = clock
        self._threads = Threads(THREADS, "sessions")
        self._call = self._threads.call
        self._renewing: dict[str, asyncio.Task[Session | None]] = {}

    def cookies(self, scope: Scope) -> Cookies:
        url = self._settings.url
        is_secure = scope.get("scheme") == "https" if url is None else url.startswith("https:")
        return Cookies(scope, is_secure=is_secure)

    @property
    def lifetime(self) -> timedelta:
        return self._settings.session_lifetime

    async def begin(self, login: Login, tokens: Tokens | None = None, *, previous: str = "") -> str:
        """A new session, always with a new token, which is returned. `previous`: the token of the one that it replaces.

        Raises: RepositoryUnavailable.
        """
        token, now = secrets.token_urlsafe(32), self._clock.now()
        assert login.user.name is not None
        session = Session(
            digest=_digest(token),
            user=login.user.name,
            method=login.method,
            credential=login.credential,
            created_at=now,
            expires_at=now + self.lifetime,
            sealed="" if tokens is None else _seal(token, tokens),
        )
        await self._call(self._repository.remove_expired, now)
        await self._call(self._repository.add, session, keep=MAX_PER_USER)
        await self.end(previous)
        return token

    async def end(self, token: str) -> None:
        """Raises: RepositoryUnavailable."""
        if _TOKEN.fullmatch(token):
            await self._call(self._repository.remove, _digest(token))

    async def log_out(self, token: str) -> None:
        """End the session, then its refresh token at the provider, if that responds soon. Raises: RepositoryUnavailable."""
        session = await self._call(self._repository.find, _digest(token)) if _TOKEN.fullmatch(token) else None
        await self.end(token)
        if session is None or session.method != "oidc":
            return
        provider, tokens = self._provider(session.credential), _unseal(token, session)
        if provider is not None and tokens.refresh is not None:
            await provider.revoke(tokens.refresh)

    async def visitor(self, scope: Scope) -> User | None:
        """The user of the session in a request's cookie; None: there is none, or it has ended. Raises: Refused, Unavailable."""
        token = self.cookies(scope).get(SESSION)
        return await self.user(token, client_network(scope)) if token else None

    async def api_visitor(self, scope: Scope) -> User | None:
        """Return the user for a request to the API, where a session may only read, from pages of the service: it checks no CSRF token."""
        sites = [value for name, value in scope["headers"] if name == b"sec-fetch-site"]
        is_own = not sites or sites in ([b"same-origin"], [b"none"])
        return await self.visitor(scope) if is_own and scope["method"] in ("GET", "HEAD") else None

    async def user(self, token: str, address: str) -> User | None:
        """Raises: Refused, Unavailable."""
        session = await self._find(token, address)
        if session is None:
            return None
        if session.method == "oidc":
            user = await self._provider_user(token, session, address)
        else:
            user = await self._authenticator.still_user(session, address)
        if user is None:
            await self._call(self._repository.remove, session.digest)
        return user

    def close(self) -> None:
        self._threads.abandon()

    async def _find(self, token: str, address: str) -> Session | None:
        if not _TOKEN.fullmatch(token):
            return None
        find = partial(self._call, self._repository.find, _digest(token))
        session = await self._authenticator.attempts.look_up("session", address, UNKNOWN_SESSIONS, find)
        return session if session is not None and session.expires_at > self._clock.now() else None

    # ---- sessions of a provider

    async def _provider_user(self, token: str, session: Session, address: str) -> User | None:
        """The user of the provider's access token, renewed where it is about to expire. Raises: Unavailable."""
        provider = self._provider(session.credential)
        if provider is None:
            return None
        tokens = _unseal(token, session)
        if tokens.refresh is not None and tokens.expires_at - RENEW_AHEAD_S <= self._clock.now().timestamp():
            renewed = await self._renewed(provider, token, session)
            if renewed is None:
                return None
            tokens = _unseal(token, renewed)
        try:
            login = await self._authenticator.token_login(tokens.access.encode(), session.credential, address)
        except Refused as refusal:
            if refusal.status_code in (401, 403):
                return None
            raise
        return login.user if login.user.name == session.user else None

    def _provider(self, name: str) -> Provider | None:
        verifier = self._authenticator.verifier
        return verifier.browser_providers().get(name) if verifier else None

    async def _renewed(self, provider: Provider, token: str, session: Session) -> Session | None:
        """Requests of one process share one attempt."""
        task = self._renewing.get(session.digest)
        if task is None:
            task = self._renewing[session.digest] = asyncio.create_task(self._renew(provider, token, session))
            task.add_done_callback(lambda _: self._renewing.pop(session.digest, None))
        return await asyncio.shield(task)

    async def _renew(self, provider: Provider, token: str, session: Session) -> Session | None:
        """The session with new tokens; None where the provider refuses. Raises: Unavailable."""
        from poiesis.api.oidc import code_flow
        from poiesis.api.oidc.jwt import TokenRefused

        claimed = await self._claim(session)
        if claimed.sealed != session.sealed:  # another process has renewed them
            return claimed
        try:
            tokens = await code_flow.refresh(provider, _unseal(token, claimed))
        except TokenRefused as refusal:
            log.info("session_ended", extra={"issuer": provider.issuer.name, "reason": str(refusal)})
            return None
        except Unavailable:
            await self._call(self._repository.save, replace(claimed, busy_until=None))
            raise
        renewed = replace(claimed, sealed=_seal(token, tokens), busy_until=None)
        await self._call(self._repository.save, renewed)
        return renewed

    async def _claim(self, session: Session) -> Session:
        """The session with the right to renew its tokens, or as another process has left it. Raises: Unavailable."""
        deadline = asyncio.get_running_loop().time() + RENEW_S
        found: Session | None = session
        while found is not None and asyncio.get_running_loop().time() < deadline:
            now = self._clock.now()
            if found.sealed != session.sealed:
                return found
            if found.busy_until is None or found.busy_until <= now:
                claimed = replace(found, busy_until=now + timedelta(seconds=RENEW_S))
                if await self._call(self._repository.save, claimed):
                    return replace(claimed, version=claimed.version + 1)
            await asyncio.sleep(POLL_S)
            found = await self._call(self._repository.find, session.digest)
        raise Unavailable("the login is being renewed, or has ended: try again")


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _seal(token: str, tokens: Tokens) -> str:
    """Encrypted with a key made from the session's token, which the store does not have."""
    from joserfc import jwe

    document = {"access": tokens.access, "refresh": tokens.refresh, "expires_at": tokens.expires_at}
    header = {"alg": "dir", "enc": "A256GCM"}
    return jwe.encrypt_compact(header, msgspec.json.encode(document), _sealing_key(token))


def _unseal(token: str, session: Session) -> Tokens:
    from joserfc import jwe

    from poiesis.api.oidc.code_flow import Tokens

    opened = jwe.decrypt_compact(session.sealed, _sealing_key(token)).plaintext
    return msgspec.json.decode(opened or b"", type=Tokens)


def _sealing_key(token: str) -> OctKey:
    from joserfc.jwk import OctKey

    return OctKey.import_key(hashlib.sha256(b"poiesis session tokens\0" + token.encode()).digest())
