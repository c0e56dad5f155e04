"""From a bearer token to a `User`.

A JWT is checked here, with the keys of the issuer that it names; other tokens by introspection. Where that or UserInfo takes a request to
the provider, the result is kept for a moment, also a refusal, and the attempts of each address are limited: inventing tokens must not keep
the provider busy for everybody else.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from poiesis.api.attempts import Attempts, Rate
from poiesis.api.oidc import jwt
from poiesis.api.oidc.claims import check_claims, expiry, user_of
from poiesis.api.oidc.jwt import Claims, TokenRefused
from poiesis.api.oidc.provider import Provider
from poiesis.api.oidc.settings import SETTING, Issuer
from poiesis.api.users import User
from poiesis.domain.errors import ConfigurationError

MAX_REMEMBERED: Final = 10_000
MAX_REMEMBERED_BYTES: Final = 16 * 1024 * 1024
UNKNOWN_TOKENS: Final = Rate(burst=100, refill_s=0.5)
"""Tokens of one address that a provider does not know."""


@dataclass(frozen=True)
class _Result:
    """A user, or why a token is refused. `until`: seconds since the epoch."""

    user: User | None
    refusal: TokenRefused | None
    until: float

    @property
    def size_bytes(self) -> int:
        return 500 + sum(len(group) for group in self.user.groups) * 4 if self.user else 500


class Verifier:
    """Used in the event loop only. `now`: seconds since the epoch. Raises on construction: ConfigurationError."""

    def __init__(
        self,
        issuers: Sequence[Issuer],
        attempts: Attempts,
        *,
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        try:
            self._providers = {issuer.url: Provider(issuer, clock) for issuer in issuers}
        except ValueError as error:
            raise ConfigurationError(f"invalid {SETTING}: {error}") from None
        self._opaque = next((p for p in self._providers.values() if p.issuer.introspection == "opaque"), None)
        self._attempts = attempts
        self._now = now
        self._results: OrderedDict[bytes, _Result] = OrderedDict()
        self._results_bytes = 0
        self._running: dict[bytes, asyncio.Task[_Result]] = {}

    async def user(self, token: bytes, address: str) -> User:
        """The user of a token that came from `address`. Raises: TokenRefused, Refused, Unavailable."""
        if len(token) > jwt.MAX_TOKEN_BYTES:
            raise TokenRefused(f"the token is larger than {jwt.MAX_TOKEN_BYTES} bytes")
        if not jwt.is_jwt(token):
            if self._opaque is None or not jwt.is_token(token):
                raise TokenRefused("the token is malformed")
            return await self._remembered(self._opaque, token, None, address)
        parsed = jwt.parse(token)
        issuer = parsed.claims.get("iss")
        provider = self._providers.get(issuer) if isinstance(issuer, str) else None
        if provider is None:
            raise TokenRefused("the token is of an issuer that is not configured here")
        await provider.verify(token, parsed.header)
        check_claims(parsed.claims, provider.issuer, self._now(), must_expire=True)
        if provider.issuer.userinfo or provider.issuer.introspection == "always":
            return await self._remembered(provider, token, parsed.claims, address)
        return self._user(parsed.claims, provider.issuer)

    def browser_providers(self) -> dict[str, Provider]:
        """Those with a client for logins in a browser, by name."""
        return {p.issuer.name: p for p in self._providers.values() if p.issuer.browser_client}

    async def close(self) -> None:
        for provider in self._providers.values():
            await provider.close()

    async def _remembered(self, provider: Provider, token: bytes, claims: Claims | None, address: str) -> User:
        """The result of asking the provider, once for all requests with this token."""
        digest = hashlib.sha256(token).digest()
        result = self._results.get(digest)
        if result is None or result.until <= self._now():
            task = self._running.get(digest)
            if task is None:
                self._attempts.take("token", address, UNKNOWN_TOKENS)
                task = self._running[digest] = asyncio.create_task(self._ask(provider, token, claims))
                task.add_done_callback(lambda done: self._end(digest, address, done))
            result = await asyncio.shield(task)
        if result.user is None:
            assert result.refusal is not None
            raise result.refusal.with_traceback(None)
        return result.user

    async def _ask(self, provider: Provider, token: bytes, claims: Claims | None) -> _Result:
        issuer, until = provider.issuer, self._now() + provider.issuer.cache_s
        try:
            if claims is None or issuer.introspection == "always":
                claims = await self._introspected(provider, token, claims)
            if issuer.userinfo:
                more = await provider.userinfo(token, claims["sub"])
                if more is None:
                    raise TokenRefused("the provider's UserInfo does not accept the token")
                claims = {**claims, **more}
            return _Result(self._user(claims, issuer), None, min(until, expiry(claims)))
        except TokenRefused as refusal:
            return _Result(None, refusal.with_traceback(None), until)

    async def _introspected(self, provider: Provider, token: bytes, claims: Claims | None) -> Claims:
        found = await provider.introspect(token)
        if found is None:
            raise TokenRefused("the provider does not know the token, or it is no longer valid")
        if claims is None:
            check_claims(found, provider.issuer, self._now(), must_expire=False)
            return found
        if found.get("sub", claims["sub"]) != claims["sub"]:
            raise TokenRefused("the provider knows the token for another user")
        return {**found, **claims}

    def _user(self, claims: Claims, issuer: Issuer) -> User:
        others = [p.issuer.name for p in self._providers.values() if p.issuer is not issuer]
        return user_of(claims, issuer, others)

    def _end(self, digest: bytes, address: str, task: asyncio.Task[_Result]) -> None:
        del self._running[digest]
        if task.cancelled():
            return
        if task.exception() is not None:  # the provider did not answer: that is not the client's fault
            self._attempts.give_back("token", address, UNKNOWN_TOKENS)
            return
        result = task.result()
        if result.user is not None:
            self._attempts.give_back("token", address, UNKNOWN_TOKENS)
        if (old := self._results.pop(digest, None)) is not None:
            self._results_bytes -= old.size_bytes
        self._results[digest] = result
        self._results_bytes += result.size_bytes
        while len(self._results) > MAX_REMEMBERED or self._results_bytes > MAX_REMEMBERED_BYTES:
            self._results_bytes -= self._results.popitem(last=False)[1].size_bytes
