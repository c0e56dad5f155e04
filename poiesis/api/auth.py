"""Authentication: which user a request is from, by any of the methods that the settings enable.

    basic      passwords of the credentials file; they hash slowly, so attempts are limited (`logins`)
    bearer     tokens of the credentials file
    oidc       access tokens of OpenID providers (`oidc`)
    api_key    keys of the credentials file and of the store; also as bearer tokens

Users see their own tasks and those of their groups, admins all tasks. Secrets never appear in a log, an error or a repr.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from poiesis.api.attempts import Attempts
from poiesis.api.credentials import Credentials, CredentialsFile, scrypt
from poiesis.api.errors import Refused
from poiesis.api.key_lookup import KeyLookup
from poiesis.api.logins import LoginGate
from poiesis.api.query import parse_pairs
from poiesis.api.users import ANONYMOUS, Method, User
from poiesis.config import ApiSettings
from poiesis.domain.errors import ConfigurationError, InvalidRequest
from poiesis.domain.hosts import is_loopback
from poiesis.domain.sessions import Session, SessionMethod
from poiesis.services.keys import KeyService, is_key

if TYPE_CHECKING:
    from poiesis.api.oidc.verifier import Verifier

METHODS: Final[tuple[Method, ...]] = ("basic", "bearer", "oidc", "api_key")
_CHALLENGE: Final[Mapping[Method, str]] = {
    "basic": 'Basic realm="poiesis", charset="UTF-8"',
    "bearer": 'Bearer realm="poiesis"',
    "oidc": 'Bearer realm="poiesis"',
    "api_key": 'ApiKey realm="poiesis"',
}


@dataclass(frozen=True)
class Login:
    """A user who has logged in, with the method and the credential that the session checks again with each request (`Session`)."""

    user: User
    method: SessionMethod
    credential: str


class Authenticator:
    """Used in the event loop only. Raises on construction: ConfigurationError for invalid settings or an invalid credentials file."""

    def __init__(
        self, settings: ApiSettings, keys: KeyService | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        check_methods(settings)
        self._methods = frozenset(settings.auth)
        self._challenges = {m: _CHALLENGE[m] for m in METHODS if m in settings.auth}
        self._logins = LoginGate(clock)
        self._file = CredentialsFile(Path(settings.credentials_file), clock) if settings.credentials_file else None
        self.attempts = Attempts(clock)
        self._keys = KeyLookup(keys, self.attempts) if keys is not None and "api_key" in self._methods else None
        self.verifier: Verifier | None = None
        """None: there are no providers."""
        if "oidc" in self._methods:
            from poiesis.api.oidc.settings import read_issuers
            from poiesis.api.oidc.verifier import Verifier

            self.verifier = Verifier(read_issuers(settings.oidc_issuers), self.attempts, clock=clock)

    async def user(self, headers: Sequence[tuple[bytes, bytes]], query: bytes, address: str) -> User:
        """Return the user of a request that came from `address`. Raises: Refused, Unavailable."""
        if not self._methods:
            return ANONYMOUS
        credentials = self._content()
        given = {k.lower(): v for k, v in headers if k.lower() in (b"authorization", b"x-api-key")}
        scheme, _, value = given.get(b"authorization", b"").decode("latin-1").strip().partition(" ")
        value = value.strip()
        user: User | None = None
        problem: str | None = None
        if scheme.lower() == "basic" and "basic" in self._methods:
            user = await self._basic(value, credentials, address)
        elif scheme.lower() == "bearer":
            token = value.encode("latin-1")
            if "api_key" in self._methods:
                user = await self._key(token, credentials, address)
            is_ours = self._keys is not None and is_key(token)  # never sent to a provider
            if user is None and not is_ours:
                user, problem = await self._bearer(token, credentials, address)
        if user is None and "api_key" in self._methods:
            user = await self._key(given.get(b"x-api-key") or _query_key(query), credentials, address)
        if user is None:
            raise self._unauthenticated(problem, is_given=bool(given) or b"api_key=" in query)
        return user

    async def _key(self, key: bytes, credentials: Credentials, address: str) -> User | None:
        """Return the user of an API key of the credentials file or the store."""
        user = _found(key, credentials.keys, "api_key") if key else None
        if user is None and self._keys is not None and is_key(key):
            user = await self._keys.user(key, credentials, address)
        return user

    # ---- logins in a browser, whose session counts while the credential does

    async def password_login(self, name: str, password: str, address: str) -> Login | None:
        """Raises: Refused."""
        if "basic" not in self._methods:
            return None
        credentials = self._content()
        user = await self._password(name, password, credentials, address)
        return None if user is None else Login(user, "basic", _fingerprint(credentials, name))

    async def key_login(self, secret: bytes, address: str) -> Login | None:
        """Log in by an API key, or by a token of the credentials file. Raises: Refused, Unavailable."""
        digest = hashlib.sha256(secret).hexdigest()
        methods: tuple[SessionMethod, ...] = ("api_key", "bearer")
        for method in methods:
            user = await self._by_digest(method, digest, address)
            if user is not None:
                return Login(user, method, digest)
        return None

    async def token_login(self, token: bytes, issuer: str, address: str) -> Login:
        """Log in by an access token of a provider. Raises: Refused, Unavailable."""
        user, problem = await self._bearer(token, Credentials(), address)
        if user is None:
            raise self._unauthenticated(problem, is_given=True)
        return Login(user, "oidc", issuer)

    async def still_user(self, session: Session, address: str) -> User | None:
        """The user of a session with their rights of now; None where its credential no longer counts. Not for sessions of providers.

        Raises: Refused, Unavailable.
        """
        user: User | None = None
        if session.method == "basic" and "basic" in self._methods:
            credentials = self._content()
            if hmac.compare_digest(_fingerprint(credentials, session.user), session.credential):
                found = credentials.passwords.get(session.user)
                user = replace(found[0], method="basic") if found else None
        elif session.method in ("api_key", "bearer"):
            user = await self._by_digest(session.method, session.credential, address)
        return user if user is not None and user.name == session.user else None

    async def _by_digest(self, method: Method, digest: str, address: str) -> User | None:
        if method not in self._methods:
            return None
        credentials = self._content()
        found = (credentials.keys if method == "api_key" else credentials.tokens).get(bytes.fromhex(digest))
        if found is not None:
            return replace(found, method=method)
        if method == "api_key" and self._keys is not None:
            return await self._keys.user_of_digest(digest, credentials, address)
        return None

    def _content(self) -> Credentials:
        return self._file.content() if self._file else Credentials()

    @property
    def is_required(self) -> bool:
        """Whether a request needs credentials at all."""
        return bool(self._methods)

    async def close(self) -> None:
        self._logins.close()
        if self.verifier is not None:
            await self.verifier.close()
        if self._keys is not None:
            self._keys.close()

    async def _basic(self, value: str, credentials: Credentials, address: str) -> User | None:
        try:
            name, separator, password = base64.b64decode(value, validate=True).decode().partition(":")
        except ValueError:
            return None
        return await self._password(name, password, credentials, address) if separator else None

    async def _password(self, name: str, password: str, credentials: Credentials, address: str) -> User | None:
        """Raises: Refused."""
        # an unknown name takes as long as a known one
        user, salt, expected = credentials.passwords.get(name, (None, b"no such user", b""))
        is_right = await self._logins.check(
            name, password, expected, address, lambda: hmac.compare_digest(scrypt(password, salt), expected)
        )
        return replace(user, method="basic") if user and is_right else None

    async def _bearer(self, token: bytes, credentials: Credentials, address: str) -> tuple[User | None, str | None]:
        """A user, or why the token is refused. Raises: Refused for a valid token without the required scopes."""
        user = _found(token, credentials.tokens, "bearer") if "bearer" in self._methods else None
        if user is not None or self.verifier is None or not token:
            return user, None
        from poiesis.api.oidc.jwt import InsufficientScope, TokenRefused

        try:
            user = await self.verifier.user(token, address)
            if self._keys is not None:
                self._keys.note_rights(user)
            return user, None
        except InsufficientScope as refusal:
            challenge = f'Bearer realm="poiesis", error="insufficient_scope", scope="{" ".join(refusal.scopes)}"'
            raise Refused(403, str(refusal), "insufficient_scope", {"WWW-Authenticate": challenge}) from None
        except TokenRefused as refusal:
            return None, str(refusal)

    def _unauthenticated(self, problem: str | None, *, is_given: bool) -> Refused:
        """`problem`: of a token that was checked (RFC 6750, section 3)."""
        challenges = dict(self._challenges)
        message = "invalid credentials" if is_given else "missing credentials"
        if problem is not None:
            message = f"invalid credentials: {problem}"
            challenges["oidc"] += f', error="invalid_token", error_description="{problem}"'
            challenges.pop("bearer", None)
        header = ", ".join(dict.fromkeys(challenges.values()))
        return Refused(401, message, "unauthenticated", {"WWW-Authenticate": header})


def check_methods(settings: ApiSettings) -> None:
    """Raises: ConfigurationError for methods that are unknown or lack what they need, and for an open API that was not asked for."""
    wrong = [m for m in settings.auth if m not in METHODS]
    if wrong:
        raise ConfigurationError(f"invalid authentication method {wrong[0]!r}: use any of {', '.join(METHODS)}")
    if settings.credentials_file is None and {"basic", "bearer"} & set(settings.auth):
        raise ConfigurationError("missing credentials file for authentication: set POIESIS_API__CREDENTIALS_FILE")
    if "oidc" in settings.auth and not settings.oidc_issuers:
        raise ConfigurationError("missing issuers for the authentication method oidc: set POIESIS_API__OIDC_ISSUERS")
    if not settings.auth and not settings.allow_anonymous and not is_loopback(settings.host):
        raise ConfigurationError(
            f"no authentication on {settings.host}, which other machines can reach: set POIESIS_API__AUTH, or"
            " POIESIS_API__ALLOW_ANONYMOUS=true to give everyone who can connect all rights"
        )


def _fingerprint(credentials: Credentials, name: str) -> str:
    """Return a digest of a user's password. It changes with the password, which ends the user's sessions."""
    _, salt, expected = credentials.passwords.get(name, (None, b"", b""))
    return hashlib.sha256(salt + b"\0" + expected).hexdigest()


def _found(secret: bytes, users: Mapping[bytes, User], method: Method) -> User | None:
    """A look-up by the digest reveals nothing about the secret."""
    user = users.get(hashlib.sha256(secret).digest())
    return replace(user, method=method) if user else None


def _query_key(query: bytes) -> bytes:
    if b"api_key=" not in query:
        return b""
    try:
        pairs = parse_pairs(query)
    except InvalidRequest:
        return b""
    return next((value.encode() for name, value in pairs if name == "api_key" and value), b"")
