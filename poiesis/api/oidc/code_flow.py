"""Logins in a browser at one provider: the authorization code flow with PKCE, state and nonce (RFC 6749, RFC 7636, RFC 9207).

The tokens come from the provider itself over TLS; the access token is then checked as that of any request. Used in the event loop only.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlencode

from poiesis.api.oidc import jwt
from poiesis.api.oidc.claims import check_id_token
from poiesis.api.oidc.jwt import Claims, TokenRefused
from poiesis.api.oidc.provider import Provider

DEFAULT_LIFETIME_S: Final = 300.0  # of a token, where the provider does not report it


@dataclass(frozen=True)
class Started:
    """What the browser keeps until it comes back, and `url`, where it goes."""

    url: str
    state: str
    nonce: str
    verifier: str = field(repr=False)


@dataclass(frozen=True)
class Tokens:
    """`expires_at`: seconds since the epoch."""

    access: str = field(repr=False)
    refresh: str | None = field(repr=False)
    expires_at: float


async def start(provider: Provider, redirect_uri: str) -> Started:
    """Raises: ProviderUnavailable."""
    issuer = provider.issuer
    endpoint = await provider.endpoint("authorization_endpoint")
    state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
    challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
    scopes = dict.fromkeys((*issuer.browser_scope.split(), *issuer.scopes))
    query = {
        "response_type": "code",
        "client_id": issuer.browser_client or "",
        "redirect_uri": redirect_uri,
        "scope": " ".join(scopes),
        "state": state,
        "nonce": nonce,
        "code_challenge": challenge,
        "code_challenge_method": "S256",
    }
    if "offline_access" in scopes:  # OpenID Connect Core 1.0, section 11
        query["prompt"] = "consent"
    return Started(f"{endpoint}?{urlencode(query)}", state, nonce, verifier)


async def finish(
    provider: Provider, code: str, redirect_uri: str, nonce: str, verifier: str, now: Callable[[], float] = time.time
) -> Tokens:
    """Raises: TokenRefused, ProviderUnavailable."""
    form = {
        "grant_type": "authorization_code",
        "code": code,
        "redirect_uri": redirect_uri,
        "code_verifier": verifier,
    }
    answer = await provider.token(form)
    identity = answer.get("id_token")
    if not isinstance(identity, str) or not identity.isascii():
        raise TokenRefused("the provider sent no ID token")
    parsed = jwt.parse_id_token(identity.encode())
    await provider.verify(identity.encode(), parsed.header)
    check_id_token(parsed.claims, provider.issuer, nonce, now())
    return _tokens(answer, None, now())


async def refresh(provider: Provider, tokens: Tokens, now: Callable[[], float] = time.time) -> Tokens:
    """Raises: TokenRefused, ProviderUnavailable."""
    if tokens.refresh is None:
        raise TokenRefused("the provider issued no refresh token")
    answer = await provider.token({"grant_type": "refresh_token", "refresh_token": tokens.refresh})
    return _tokens(answer, tokens.refresh, now())


def _tokens(answer: Claims, refresh_token: str | None, now: float) -> Tokens:
    """Raises: TokenRefused."""
    access, renewed, lifetime = answer.get("access_token"), answer.get("refresh_token"), answer.get("expires_in")
    if not isinstance(access, str) or not access.isascii() or str(answer.get("token_type", "")).lower() != "bearer":
        raise TokenRefused("the provider sent no usable access token")
    if isinstance(lifetime, bool) or not isinstance(lifetime, int | float) or not 0 < lifetime < 1e9:
        lifetime = DEFAULT_LIFETIME_S
    return Tokens(access, renewed if isinstance(renewed, str) else refresh_token, now + lifetime)
