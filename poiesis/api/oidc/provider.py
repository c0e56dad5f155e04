"""Requests to one provider: discovery, keys, introspection and UserInfo. Used in the event loop only.

Keys are read again after FRESH_S, and on an unknown `kid` at most every MIN_REFRESH_S, however many tokens have one. While the provider
does not answer, known keys count for MAX_STALE_S. All requests have one deadline and few at a time, bodies are bounded, and no redirect is
followed: a token must not reach another host.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Mapping
from typing import Any, Final

import httpx
from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, JWKRegistry, OKPKey, RSAKey

from poiesis.api.oidc.jwt import Claims, TokenRefused, parse_json
from poiesis.api.oidc.settings import Issuer, is_secure
from poiesis.domain.errors import Unavailable

log = logging.getLogger(__name__)
logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs every request

FRESH_S: Final = 300.0
MAX_STALE_S: Final = 24 * 3600.0
MIN_REFRESH_S: Final = 10.0
STALE_WAIT_S: Final = 1.0  # how long a request waits for new keys where old ones would do
DEADLINE_S: Final = 5.0  # of a request, including its turn
REVOKE_S: Final = 2.0  # that a logout may wait for
MAX_REQUESTS: Final = 8  # at once, to one provider
MAX_BODY_BYTES: Final = 256 * 1024
MAX_KEYS: Final = 100
MAX_CANDIDATES: Final = 4  # keys that are tried for a token without `kid`
MIN_RSA_DIGITS: Final = 342  # of the modulus in base64: 2048 bits
MAX_RSA_DIGITS: Final = 1366  # 8192 bits: checking a signature takes longer with each

_KEY_TYPES: Final = {"RS": "RSA", "PS": "RSA", "ES": "EC", "Ed": "OKP"}
_CURVES: Final = {"ES256": "P-256", "ES384": "P-384", "ES512": "P-521", "EdDSA": "Ed25519", "Ed25519": "Ed25519"}
PublicKey = RSAKey | ECKey | OKPKey


class ProviderUnavailable(Unavailable):
    def __init__(self, issuer: Issuer) -> None:
        super().__init__(f"the identity provider {issuer.name!r} does not respond")


class Provider:
    """Raises on construction: ValueError for unusable files of the issuer."""

    def __init__(self, issuer: Issuer, clock: Callable[[], float]) -> None:
        self.issuer = issuer
        self._clock = clock
        self._tls = issuer.tls()
        self._auth = httpx.BasicAuth(issuer.client_id or "", issuer.secret() or "")
        self._browser_secret = issuer.browser_client_secret() if issuer.browser_client else None
        self._http: httpx.AsyncClient | None = None
        self._turns = asyncio.Semaphore(MAX_REQUESTS)
        self._endpoints: dict[str, str] = {}
        self._keys: list[tuple[Claims, PublicKey]] = []
        self._fresh_until = self._usable_until = self._next_refresh = -math.inf
        self._failed = False
        self._refreshing: asyncio.Task[None] | None = None

    async def verify(self, token: bytes, header: Mapping[str, Any]) -> None:
        """Check the signature of a JWT. Raises: TokenRefused, ProviderUnavailable."""
        algorithm, kid = header.get("alg"), header.get("kid")
        if not isinstance(algorithm, str) or algorithm not in self.issuer.algorithms:
            raise TokenRefused("the token's signature algorithm is not allowed")
        if self._clock() >= self._fresh_until:
            await self._refresh()
        keys = self._candidates(algorithm, kid)
        if not keys:
            await self._refresh()
            keys = self._candidates(algorithm, kid)
        if not keys:
            if self._failed:  # the provider may have this key
                raise ProviderUnavailable(self.issuer)
            raise TokenRefused("the token's key is not one of the issuer's")
        registry = jws.JWSRegistry(algorithms=[algorithm], strict_check_header=False)
        registry.max_header_length = 8 * 1024  # some carry certificates, which are ignored
        for key in keys:
            try:
                jws.deserialize_compact(token, key, registry=registry)
                return
            except (JoseError, ValueError):
                continue
        raise TokenRefused("the token's signature is invalid")

    async def introspect(self, token: bytes) -> Claims | None:
        """What the provider says about a token; None: it is not active. Raises: ProviderUnavailable."""
        form = {"token": token.decode("ascii"), "token_type_hint": "access_token"}
        url = await self.endpoint("introspection_endpoint")
        found = await self._fetch("POST", url, data=form, auth=self._auth)
        return found if found.get("active") is True else None

    async def userinfo(self, token: bytes, subject: str) -> Claims | None:
        """The user's claims; None: the provider does not accept the token. Raises: ProviderUnavailable."""
        url = await self.endpoint("userinfo_endpoint")
        try:
            found = await self._fetch("GET", url, headers={"Authorization": f"Bearer {token.decode('ascii')}"})
        except _Rejected:
            return None
        return found if found.get("sub") == subject else None  # OpenID Connect Core 1.0, section 5.3.2

    async def token(self, form: Mapping[str, str]) -> Claims:
        """The answer of the token endpoint to the client for browsers. Raises: TokenRefused for a refused grant; ProviderUnavailable."""
        url = await self.endpoint("token_endpoint")
        return await self._fetch("POST", url, **self._browser_form(form), refuses_by_400=True)

    async def revoke(self, token: str) -> bool:
        """Whether the provider has ended a refresh token (RFC 7009). It is asked once, for REVOKE_S, and may have no way to."""
        form = self._browser_form({"token": token, "token_type_hint": "refresh_token"})
        try:
            async with asyncio.timeout(REVOKE_S):
                await self._discover()
                if "revocation_endpoint" not in self._endpoints:
                    return False
                await self._fetch("POST", self._endpoints["revocation_endpoint"], **form, has_answer=False)
                return True
        except TimeoutError:
            self._unavailable(f"no revocation within {REVOKE_S:.0f} s")
        except ProviderUnavailable:  # is logged
            pass
        return False

    def _browser_form(self, form: Mapping[str, str]) -> dict[str, Any]:
        """A form of the client for browsers, with its credentials."""
        client, secret = self.issuer.browser_client or "", self._browser_secret
        if secret is None:
            return {"data": {**form, "client_id": client}}
        return {"data": dict(form), "auth": httpx.BasicAuth(client, secret)}

    async def close(self) -> None:
        if self._refreshing is not None:
            self._refreshing.cancel()
        if self._http is not None:
            await self._http.aclose()

    # ---- keys

    def _candidates(self, algorithm: str, kid: object) -> list[PublicKey]:
        if self._clock() >= self._usable_until:
            return []
        return [
            key
            for jwk, key in self._keys
            if jwk["kty"] == _KEY_TYPES[algorithm[:2]]
            and _same(jwk.get("alg", algorithm), algorithm)
            and jwk.get("crv") == _CURVES.get(algorithm)
            and (kid is None or jwk.get("kid") == kid)
        ][:MAX_CANDIDATES]

    async def _refresh(self) -> None:
        """Read the keys again unless that was tried a moment ago; requests that need them share one attempt."""
        if self._refreshing is None:
            if self._clock() < self._next_refresh:
                return
            self._next_refresh = self._clock() + MIN_REFRESH_S
            self._refreshing = asyncio.create_task(self._read_keys())
        has_keys = self._clock() < self._usable_until
        await asyncio.wait({self._refreshing}, timeout=STALE_WAIT_S if has_keys else None)

    async def _read_keys(self) -> None:
        try:
            self._endpoints = {}
            found = await self._fetch("GET", await self.endpoint("jwks_uri"))
            keys = [(jwk, key) for jwk in _items(found.get("keys")) if (key := usable_key(jwk)) is not None]
            if not keys:
                raise ProviderUnavailable(self.issuer)
            self._keys = keys
            self._fresh_until = self._clock() + FRESH_S
            self._usable_until = self._clock() + MAX_STALE_S
            self._failed = False
        except Unavailable:
            self._failed = True
        finally:
            self._refreshing = None

    # ---- requests

    async def endpoint(self, name: str) -> str:
        """The address of that name in the discovery document. Raises: ProviderUnavailable."""
        await self._discover()
        if name not in self._endpoints:
            raise self._unavailable(f"its discovery document has no usable {name}")
        return self._endpoints[name]

    async def _discover(self) -> None:
        """Read the addresses of the provider's endpoints, once. Raises: ProviderUnavailable."""
        if not self._endpoints:
            base = self.issuer.url.removesuffix("/")
            found = await self._fetch("GET", f"{base}/.well-known/openid-configuration")
            if found.get("issuer") != self.issuer.url:
                raise self._unavailable("its discovery document is of another issuer")
            self._endpoints = {key: url for key, url in found.items() if isinstance(url, str) and is_secure(url)}

    async def _fetch(
        self, method: str, url: str, *, refuses_by_400: bool = False, has_answer: bool = True, **options: Any
    ) -> Claims:
        """The JSON object at an address of the provider. `has_answer`: whether there is one.

        Raises: ProviderUnavailable; _Rejected for 401 and 403; TokenRefused for 400.
        """
        if self._http is None:
            limits = httpx.Limits(max_connections=MAX_REQUESTS, max_keepalive_connections=2)
            self._http = httpx.AsyncClient(verify=self._tls, timeout=DEADLINE_S, limits=limits, follow_redirects=False)
        headers = {"Accept": "application/json", "Accept-Encoding": "identity", **options.pop("headers", {})}
        try:
            async with (
                asyncio.timeout(DEADLINE_S),
                self._turns,
                self._http.stream(method, url, headers=headers, **options) as response,
            ):
                body = bytearray()
                async for part in response.aiter_raw():
                    body += part
                    if len(body) > MAX_BODY_BYTES:
                        raise self._unavailable("its response is too large")
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            raise self._unavailable(type(error).__name__) from None
        if response.status_code in (401, 403):
            log.warning("provider_rejected", extra={"issuer": self.issuer.name, "status": response.status_code})
            raise _Rejected(self.issuer)
        if response.status_code == 400 and refuses_by_400:
            raise TokenRefused("the provider refuses the code or the refresh token")
        if response.status_code != 200:
            raise self._unavailable(f"status {response.status_code}")
        if not has_answer:
            return {}
        try:
            found = parse_json(bytes(body))
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise self._unavailable("its response is not a JSON object")
        return found

    def _unavailable(self, reason: str) -> ProviderUnavailable:
        log.warning("provider_unavailable", extra={"issuer": self.issuer.name, "reason": reason})
        return ProviderUnavailable(self.issuer)


class _Rejected(ProviderUnavailable):
    """The provider does not accept the credentials of a request: a client's for introspection, or a user's for UserInfo."""


def _same(one: object, other: str) -> bool:
    """Whether two names are of the same algorithm: RFC 9864 renamed EdDSA with this curve."""
    return one == other or {one, other} == {"EdDSA", "Ed25519"} if isinstance(one, str) else False


def _items(value: Any) -> list[Claims]:
    return [item for item in value if isinstance(item, dict)][:MAX_KEYS] if isinstance(value, list) else []


def usable_key(jwk: Claims) -> PublicKey | None:
    """A public key for signatures; None for others, and for those that are too short to be safe or too long to be fast."""
    if jwk.get("use", "sig") != "sig" or jwk.get("kty") not in ("RSA", "EC", "OKP"):
        return None
    if jwk["kty"] == "RSA" and not MIN_RSA_DIGITS <= len(str(jwk.get("n", ""))) <= MAX_RSA_DIGITS:
        return None
    if len(str(jwk.get("e", ""))) > 8:
        return None
    public: Any = {name: jwk[name] for name in ("kty", "n", "e", "crv", "x", "y", "kid") if name in jwk}
    try:
        key = JWKRegistry.import_key(public)
        key.get_op_key("verify")
    except (JoseError, ValueError, TypeError):
        return None
    return key if isinstance(key, RSAKey | ECKey | OKPKey) else None
