"""Authentication: basic, bearer, API key, or none, as the settings allow.

The credentials file is a JSON list; each entry has a name and one or more hashes made by `hash_secret`:

    [{"name": "ada", "password_hash": "scrypt$…", "token_hash": "sha256$…", "api_key_hash": "sha256$…", "admin": true}]

It is read again when it changes; an invalid file leaves the previous content in force. Users choose passwords, so these are
hashed slowly (scrypt) and attempts are limited (`logins`); tokens and keys are random, so one SHA-256 is enough for them. Users see
their own tasks and those of their groups, admins all tasks. Secrets never appear in a log, an error or a repr.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import logging
import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final
from urllib.parse import parse_qsl

import msgspec

from poiesis.api.errors import Refused
from poiesis.api.logins import LoginGate
from poiesis.api.users import ANONYMOUS, Method, User
from poiesis.config import ApiSettings
from poiesis.domain.errors import ConfigurationError

log = logging.getLogger(__name__)

METHODS: Final[tuple[Method, ...]] = ("basic", "bearer", "api_key")
_CHALLENGE: Final[Mapping[Method, str]] = {
    "basic": 'Basic realm="poiesis", charset="UTF-8"',
    "bearer": 'Bearer realm="poiesis"',
    "api_key": 'ApiKey realm="poiesis"',
}
_SCRYPT: Final = {"n": 2**14, "r": 8, "p": 1}  # 16 MB and about 50 ms: what RFC 7914 suggests for interactive logins
_CHECK_FILE_S: Final = 1.0  # seconds between checks of the file's modification time


def hash_secret(secret: str, method: Method) -> str:
    """Return the hash for the credentials file, under `password_hash`, `token_hash` or `api_key_hash`."""
    if method != "basic":
        return "sha256$" + hashlib.sha256(secret.encode()).hexdigest()
    salt = secrets.token_bytes(16)
    return f"scrypt${base64.b64encode(salt).decode()}${base64.b64encode(_scrypt(secret, salt)).decode()}"


@dataclass(frozen=True)
class _Credentials:
    """`passwords` by user name: with salt and hash. `tokens` and `keys` by SHA-256."""

    users: set[str] = field(default_factory=set)
    passwords: dict[str, tuple[User, bytes, bytes]] = field(default_factory=dict, repr=False)
    tokens: dict[bytes, User] = field(default_factory=dict, repr=False)
    keys: dict[bytes, User] = field(default_factory=dict, repr=False)


class Authenticator:
    """Used in the event loop only. Raises on construction: ConfigurationError for invalid settings or an invalid credentials file."""

    def __init__(self, settings: ApiSettings, *, clock: Callable[[], float] = time.monotonic) -> None:
        wrong = [m for m in settings.auth if m not in METHODS]
        if wrong:
            raise ConfigurationError(f"invalid authentication method {wrong[0]!r}: use any of {', '.join(METHODS)}")
        self._methods = frozenset(settings.auth)
        self._challenge = ", ".join(_CHALLENGE[m] for m in METHODS if m in settings.auth)
        self._clock = clock
        self._logins = LoginGate(clock)
        self._file: Path | None = None
        if self._methods:
            if settings.credentials_file is None:
                raise ConfigurationError(
                    "missing credentials file for authentication: set POIESIS_API__CREDENTIALS_FILE"
                )
            self._file = Path(settings.credentials_file)
            self._stamp = _stamp(self._file)
            self._credentials = read_credentials(self._file)
            self._check_file_at = clock() + _CHECK_FILE_S

    async def user(self, headers: Sequence[tuple[bytes, bytes]], query: bytes, address: str) -> User:
        """Return the user of a request that came from `address`. Raises: Refused."""
        if not self._methods:
            return ANONYMOUS
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
            raise Refused(401, problem, "unauthenticated", {"WWW-Authenticate": self._challenge})
        return user

    def close(self) -> None:
        self._logins.close()

    async def _basic(self, value: str, credentials: _Credentials, address: str) -> User | None:
        try:
            name, separator, password = base64.b64decode(value, validate=True).decode().partition(":")
        except ValueError:
            return None
        if not separator:
            return None
        # an unknown name takes as long as a known one
        user, salt, expected = credentials.passwords.get(name, (None, b"no such user", b""))
        is_right = await self._logins.check(
            name, password, expected, address, lambda: hmac.compare_digest(_scrypt(password, salt), expected)
        )
        return user if is_right else None

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


_Sha256 = Annotated[str, msgspec.Meta(pattern=r"^sha256\$[0-9a-fA-F]{64}$")]


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    """Of the credentials file. msgspec's messages name the field and not its content."""

    name: Annotated[str, msgspec.Meta(pattern="^[^:]+$")]
    password_hash: Annotated[str, msgspec.Meta(pattern=r"^scrypt\$[^$]*\$[^$]*$")] | None = None
    token_hash: _Sha256 | None = None
    api_key_hash: _Sha256 | None = None
    admin: bool = False
    groups: tuple[Annotated[str, msgspec.Meta(min_length=1)], ...] = ()


def read_credentials(path: Path) -> _Credentials:
    """Raises: ConfigurationError with the position of the invalid entry and the reason, without its content."""
    try:
        entries = msgspec.json.decode(path.read_bytes(), type=list[_Entry])
    except OSError as error:
        raise ConfigurationError(f"cannot read the credentials file {path}: {error.strerror}") from None
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"invalid credentials file {path}: {error}") from None
    except (msgspec.DecodeError, ValueError):
        raise ConfigurationError(f"invalid credentials file {path}: not JSON") from None
    found = _Credentials()
    for i, entry in enumerate(entries):
        try:
            _add(entry, found)
        except ValueError as error:
            raise ConfigurationError(f"invalid entry {i} of the credentials file {path}: {error}") from None
    return found


def _add(entry: _Entry, to: _Credentials) -> None:
    """Raises: ValueError."""
    user = User(entry.name, entry.admin, entry.groups)
    if user.name in to.users:
        raise ValueError("name: used by an earlier entry")
    to.users.add(entry.name)
    if not (entry.password_hash or entry.token_hash or entry.api_key_hash):
        raise ValueError("must have one of password_hash, token_hash, api_key_hash")
    if entry.password_hash:
        _, salt, digest = entry.password_hash.split("$")
        to.passwords[entry.name] = user, base64.b64decode(salt, validate=True), base64.b64decode(digest, validate=True)
    for name, text, by_digest in (("token", entry.token_hash, to.tokens), ("api_key", entry.api_key_hash, to.keys)):
        if text and by_digest.setdefault(bytes.fromhex(text.removeprefix("sha256$")), user) is not user:
            raise ValueError(f"{name}_hash: used by an earlier entry")


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
