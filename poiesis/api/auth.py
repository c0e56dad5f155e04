"""Authentication: basic, bearer, API key, or none, as the settings allow.

The credentials file is a JSON list; each entry has a name and one or more hashes made by `hash_secret`:

    [{"name": "ada", "password_hash": "scrypt$…", "token_hash": "sha256$…", "api_key_hash": "sha256$…", "admin": true}]

It is read again when it changes; an invalid file leaves the previous content in force. People choose passwords, so those are hashed
slowly (scrypt) and their attempts are limited (`logins`); tokens and keys are random, so one SHA-256 is enough for them. Users see and
cancel only their own tasks, admins all tasks. Secrets never appear in a log, an error or a repr.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import logging
import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import parse_qsl

from poiesis.api.errors import NotAuthenticated
from poiesis.api.logins import LoginGate
from poiesis.config import ApiSettings
from poiesis.domain.errors import ConfigurationError

log = logging.getLogger(__name__)

Method = Literal["basic", "bearer", "api_key"]
METHODS: Final[tuple[Method, ...]] = ("basic", "bearer", "api_key")
_HASH_FIELD: Final[Mapping[Method, str]] = {
    "basic": "password_hash",
    "bearer": "token_hash",
    "api_key": "api_key_hash",
}
_CHALLENGE: Final[Mapping[Method, str]] = {
    "basic": 'Basic realm="poiesis", charset="UTF-8"',
    "bearer": 'Bearer realm="poiesis"',
    "api_key": 'ApiKey realm="poiesis"',
}
_SCRYPT: Final = {"n": 2**14, "r": 8, "p": 1}  # 16 MB and about 50 ms: what RFC 7914 suggests for interactive logins
_CHECK_FILE_S: Final = 1.0  # seconds between looks at the file's time stamp


@dataclass(frozen=True)
class User:
    name: str
    admin: bool = False
    groups: tuple[str, ...] = ()


def hash_secret(secret: str, method: Method) -> str:
    """Return the hash for the credentials file, under `password_hash`, `token_hash` or `api_key_hash`."""
    if method != "basic":
        return "sha256$" + hashlib.sha256(secret.encode()).hexdigest()
    salt = secrets.token_bytes(16)
    return f"scrypt${base64.b64encode(salt).decode()}${base64.b64encode(_scrypt(secret, salt)).decode()}"


@dataclass(frozen=True)
class _Credentials:
    """`passwords` by user name: salt and hash. `tokens` and `keys` by SHA-256."""

    users: Mapping[str, User] = field(default_factory=dict)
    passwords: Mapping[str, tuple[bytes, bytes]] = field(default_factory=dict, repr=False)
    tokens: Mapping[bytes, User] = field(default_factory=dict, repr=False)
    keys: Mapping[bytes, User] = field(default_factory=dict, repr=False)


class Authenticator:
    """Used in the event loop only. Raises on construction: ConfigurationError for invalid settings or an invalid credentials file."""

    def __init__(self, settings: ApiSettings, *, clock: Callable[[], float] = time.monotonic) -> None:
        wrong = [m for m in settings.auth if m not in METHODS]
        if wrong:
            raise ConfigurationError(f"invalid authentication method {wrong[0]!r}: use any of {', '.join(METHODS)}")
        self.enabled: Final = bool(settings.auth)
        self._methods = frozenset(settings.auth)
        self._challenge = ", ".join(_CHALLENGE[m] for m in METHODS if m in settings.auth)
        self._clock = clock
        self._logins = LoginGate(clock)
        self._file: Path | None = None
        if self.enabled:
            if settings.credentials_file is None:
                raise ConfigurationError(
                    "missing credentials file for authentication: set POIESIS_API__CREDENTIALS_FILE"
                )
            self._file = Path(settings.credentials_file)
            self._stamp = _stamp(self._file)
            self._credentials = read_credentials(self._file)
            self._check_file_at = clock() + _CHECK_FILE_S

    async def user(self, headers: Sequence[tuple[bytes, bytes]], query: bytes, address: str) -> User | None:
        """Return the user of a request that came from `address`; None without authentication.

        Raises: NotAuthenticated, TooManyLogins.
        """
        if not self.enabled:
            return None
        credentials = self._current()
        given = {k.lower(): v for k, v in headers if k.lower() in (b"authorization", b"x-api-key")}
        scheme, _, value = given.get(b"authorization", b"").decode("latin-1").strip().partition(" ")
        value = value.strip()
        user: User | None = None
        if scheme.lower() == "basic" and "basic" in self._methods:
            user = await self._basic(value, credentials, address)
        elif scheme.lower() == "bearer" and "bearer" in self._methods:
            user = _by_digest(value.encode("latin-1"), credentials.tokens)
        if user is None and "api_key" in self._methods:
            key = given.get(b"x-api-key") or _query_key(query)
            user = _by_digest(key, credentials.keys) if key else None
        if user is None:
            problem = "invalid credentials" if given or b"api_key=" in query else "missing credentials"
            raise NotAuthenticated(problem, self._challenge)
        return user

    def close(self) -> None:
        self._logins.close()

    async def _basic(self, value: str, credentials: _Credentials, address: str) -> User | None:
        try:
            name, separator, password = base64.b64decode(value, validate=True).decode().partition(":")
        except (binascii.Error, ValueError):
            return None
        if not separator:
            return None
        salt, expected = credentials.passwords.get(
            name, (b"no such user", b"")
        )  # an unknown name takes as long as a known one
        is_right = await self._logins.check(
            name, password, expected, address, lambda: hmac.compare_digest(_scrypt(password, salt), expected)
        )
        return credentials.users[name] if is_right else None

    def _current(self) -> _Credentials:
        """The file's content, at most `_CHECK_FILE_S` old."""
        now = self._clock()
        if now < self._check_file_at:
            return self._credentials
        self._check_file_at = now + _CHECK_FILE_S
        assert self._file is not None
        stamp = _stamp(self._file)
        if stamp != self._stamp:
            self._stamp = stamp
            try:
                self._credentials = read_credentials(self._file)
                log.info("credentials_read", extra={"users": len(self._credentials.users)})
            except ConfigurationError as error:
                log.error("credentials_unusable", extra={"error": str(error)})
        return self._credentials


def read_credentials(path: Path) -> _Credentials:
    """Raises: ConfigurationError with the position of the invalid entry and the reason, without its content."""
    try:
        entries = json.loads(path.read_bytes())
    except OSError as error:
        raise ConfigurationError(f"cannot read the credentials file {path}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise ConfigurationError(f"invalid credentials file {path}: not JSON") from None
    if not isinstance(entries, list):
        raise ConfigurationError(f"invalid credentials file {path}: must be a JSON list of users")
    users: dict[str, User] = {}
    passwords: dict[str, tuple[bytes, bytes]] = {}
    tokens: dict[bytes, User] = {}
    keys: dict[bytes, User] = {}
    for i, entry in enumerate(entries):
        try:
            user = _user(entry)
            if user.name in users:
                raise ValueError("name: used by an earlier entry")
            users[user.name] = user
            if "password_hash" in entry:
                passwords[user.name] = _scrypt_parts(entry["password_hash"])
            for name, by_digest in (("token_hash", tokens), ("api_key_hash", keys)):
                if name in entry:
                    digest = _sha256_digest(entry[name])
                    if digest in by_digest:
                        raise ValueError(f"{name}: used by an earlier entry")
                    by_digest[digest] = user
        except ValueError as error:
            raise ConfigurationError(f"invalid entry {i} of the credentials file {path}: {error}") from None
    return _Credentials(users, passwords, tokens, keys)


def _user(entry: Any) -> User:
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str) or not entry["name"]:
        raise ValueError("must be an object with a name")
    if ":" in entry["name"]:
        raise ValueError("name: must not contain ':'")
    unknown = set(entry) - {"name", "admin", "groups", *_HASH_FIELD.values()}
    if unknown:
        raise ValueError(f"unknown key {sorted(unknown)[0]!r}")
    if not isinstance(entry.get("admin", False), bool):
        raise ValueError("admin: must be true or false")
    groups = entry.get("groups", [])
    if not isinstance(groups, list) or not all(isinstance(g, str) and g for g in groups):
        raise ValueError("groups: must be a list of names")
    if not any(name in entry for name in _HASH_FIELD.values()):
        raise ValueError("must have one of " + ", ".join(_HASH_FIELD.values()))
    return User(entry["name"], entry.get("admin", False), tuple(groups))


def _scrypt_parts(text: Any) -> tuple[bytes, bytes]:
    parts = text.split("$") if isinstance(text, str) else []
    try:
        kind, salt, digest = parts
        if kind == "scrypt":
            return base64.b64decode(salt, validate=True), base64.b64decode(digest, validate=True)
    except ValueError:
        pass
    raise ValueError("password_hash: must have the form scrypt$SALT$HASH")


def _sha256_digest(text: Any) -> bytes:
    kind, _, digest = text.partition("$") if isinstance(text, str) else ("", "", "")
    try:
        if kind == "sha256" and len(raw := bytes.fromhex(digest)) == hashlib.sha256().digest_size:
            return raw
    except ValueError:
        pass
    raise ValueError("token_hash and api_key_hash must have the form sha256$HEX")


def _by_digest(secret: bytes, users: Mapping[bytes, User]) -> User | None:
    """A look-up by the digest reveals nothing about the secret."""
    return users.get(hashlib.sha256(secret).digest())


def _query_key(query: bytes) -> bytes:
    if b"api_key=" not in query:
        return b""
    try:
        pairs = parse_qsl(query.decode("utf-8", "replace"), max_num_fields=1_000)
    except ValueError:
        return b""
    return next((value.encode() for name, value in pairs if name == "api_key"), b"")


def _scrypt(password: str, salt: bytes) -> bytes:
    return hashlib.scrypt(password.encode(), salt=salt, dklen=32, maxmem=64 * 1024 * 1024, **_SCRYPT)


def _stamp(path: Path) -> tuple[int, int, int]:
    """Changes when the file does, also when it is a symbolic link that is replaced, as Kubernetes does with mounted Secrets."""
    try:
        status = os.stat(path)
    except OSError:
        return (0, 0, 0)
    return (status.st_mtime_ns, status.st_size, status.st_ino)
