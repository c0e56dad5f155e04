"""Who calls: basic, bearer, API key, or nobody, as the site's settings allow.

The credentials file is a JSON list; each entry has a name and one or more hashes made by `hash_secret`:

    [{"name": "ada", "password_hash": "scrypt$…", "token_hash": "sha256$…", "api_key_hash": "sha256$…", "admin": true}]

It is read again when it changes; a file that cannot be used then leaves the old one in force. People choose passwords, so those are
hashed slowly (scrypt) and what was verified is remembered for a while; tokens and keys are random, so one SHA-256 is enough for them.
Users see and cancel their own tasks alone, admins everybody's. Secrets are in no log, error or repr.
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
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import parse_qsl

from poiesis.api.errors import NotAuthenticated
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
_LOOK_AGAIN_S: Final = 1.0  # seconds between looks at the file's time stamp
_REMEMBER_S: Final = 300.0  # seconds that a verified password counts without hashing it again
_MAX_REMEMBERED: Final = 1_000


@dataclass(frozen=True)
class User:
    name: str
    admin: bool = False
    groups: tuple[str, ...] = ()


def hash_secret(secret: str, method: Method) -> str:
    """The hash to put into the credentials file under `password_hash`, `token_hash` or `api_key_hash`."""
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
    """Raises on construction: ConfigurationError when the settings or the credentials file cannot be used."""

    def __init__(self, settings: ApiSettings, *, clock: Callable[[], float] = time.monotonic) -> None:
        wrong = [m for m in settings.auth if m not in METHODS]
        if wrong:
            raise ConfigurationError(f"{wrong[0]!r} is no way to authenticate; use any of {', '.join(METHODS)}")
        self.enabled: Final = bool(settings.auth)
        self._methods = frozenset(settings.auth)
        self._challenge = ", ".join(_CHALLENGE[m] for m in METHODS if m in settings.auth)
        self._clock = clock
        self._lock = threading.Lock()
        self._verified: OrderedDict[bytes, float] = OrderedDict()
        self._pepper = secrets.token_bytes(32)  # of the remembered passwords, for this process alone
        self._file: Path | None = None
        if self.enabled:
            if settings.credentials_file is None:
                raise ConfigurationError("authentication needs a credentials file; set POIESIS_API__CREDENTIALS_FILE")
            self._file = Path(settings.credentials_file)
            self._seen = _stamp(self._file)
            self._credentials = read_credentials(self._file)
            self._look_at = clock() + _LOOK_AGAIN_S

    def user(self, headers: Sequence[tuple[bytes, bytes]], query: bytes) -> User | None:
        """Who sent a request with these headers and query; None where everybody may call. Blocks: a password takes 50 ms.

        Raises: NotAuthenticated.
        """
        if not self.enabled:
            return None
        credentials = self._current()
        named = {k.lower(): v for k, v in headers if k.lower() in (b"authorization", b"x-api-key")}
        scheme, _, value = named.get(b"authorization", b"").decode("latin-1").strip().partition(" ")
        value = value.strip()
        found: User | None = None
        if scheme.lower() == "basic" and "basic" in self._methods:
            found = self._basic(value, credentials)
        elif scheme.lower() == "bearer" and "bearer" in self._methods:
            found = _by_digest(value.encode("latin-1"), credentials.tokens)
        if found is None and "api_key" in self._methods:
            key = named.get(b"x-api-key") or _query_key(query)
            found = _by_digest(key, credentials.keys) if key else None
        if found is None:
            asked = "are not valid" if named or b"api_key=" in query else "are missing"
            raise NotAuthenticated(f"credentials {asked}", self._challenge)
        return found

    def _basic(self, value: str, credentials: _Credentials) -> User | None:
        try:
            name, separator, password = base64.b64decode(value, validate=True).decode().partition(":")
        except (binascii.Error, ValueError):
            return None
        if not separator:
            return None
        salt, expected = credentials.passwords.get(name, (b"no such user", b""))
        proof = hmac.digest(self._pepper, b"\0".join((name.encode(), expected, password.encode())), "sha256")
        now = self._clock()
        with self._lock:
            if self._verified.get(proof, now) > now:
                return credentials.users.get(name)
        if not hmac.compare_digest(_scrypt(password, salt), expected):  # an unknown name takes as long as a known one
            return None
        with self._lock:
            self._verified[proof] = now + _REMEMBER_S
            while len(self._verified) > _MAX_REMEMBERED:
                self._verified.popitem(last=False)
        return credentials.users[name]

    def _current(self) -> _Credentials:
        """The file's content, looked at again now and then."""
        now = self._clock()
        if now < self._look_at:
            return self._credentials
        with self._lock:
            self._look_at = now + _LOOK_AGAIN_S
            assert self._file is not None
            stamp = _stamp(self._file)
            if stamp != self._seen:
                self._seen = stamp
                try:
                    self._credentials = read_credentials(self._file)
                    log.info("credentials_read", extra={"users": len(self._credentials.users)})
                except ConfigurationError as error:
                    log.error("credentials_unusable", extra={"error": str(error)})
        return self._credentials


def read_credentials(path: Path) -> _Credentials:
    """Raises: ConfigurationError that names the entry and what is wrong with it, without its content."""
    try:
        entries = json.loads(path.read_bytes())
    except OSError as error:
        raise ConfigurationError(f"the credentials file {path} cannot be read: {error.strerror}") from None
    except ValueError:
        raise ConfigurationError(f"the credentials file {path} is no JSON") from None
    if not isinstance(entries, list):
        raise ConfigurationError(f"the credentials file {path} has to be a JSON list of users")
    users: dict[str, User] = {}
    passwords: dict[str, tuple[bytes, bytes]] = {}
    tokens: dict[bytes, User] = {}
    keys: dict[bytes, User] = {}
    for i, entry in enumerate(entries):
        try:
            user = _user(entry)
            if user.name in users:
                raise ValueError("its name is taken by an entry before")
            users[user.name] = user
            if "password_hash" in entry:
                passwords[user.name] = _scrypt_parts(entry["password_hash"])
            for name, where in (("token_hash", tokens), ("api_key_hash", keys)):
                if name in entry:
                    digest = _sha256_digest(entry[name])
                    if digest in where:
                        raise ValueError(f"its {name} is that of another entry")
                    where[digest] = user
        except ValueError as error:
            raise ConfigurationError(f"entry {i} of the credentials file {path} cannot be used: {error}") from None
    return _Credentials(users, passwords, tokens, keys)


def _user(entry: Any) -> User:
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str) or not entry["name"]:
        raise ValueError("it has to be an object with a name")
    if ":" in entry["name"]:
        raise ValueError("a name cannot hold ':'")
    unknown = set(entry) - {"name", "admin", "groups", *_HASH_FIELD.values()}
    if unknown:
        raise ValueError(f"it has an unknown key, {sorted(unknown)[0]!r}")
    if not isinstance(entry.get("admin", False), bool):
        raise ValueError("admin has to be true or false")
    groups = entry.get("groups", [])
    if not isinstance(groups, list) or not all(isinstance(g, str) and g for g in groups):
        raise ValueError("groups has to be a list of names")
    if not any(name in entry for name in _HASH_FIELD.values()):
        raise ValueError("it has none of " + ", ".join(_HASH_FIELD.values()))
    return User(entry["name"], entry.get("admin", False), tuple(groups))


def _scrypt_parts(text: Any) -> tuple[bytes, bytes]:
    parts = text.split("$") if isinstance(text, str) else []
    if len(parts) != 3 or parts[0] != "scrypt":
        raise ValueError("password_hash is not of the form scrypt$SALT$HASH")
    try:
        return base64.b64decode(parts[1], validate=True), base64.b64decode(parts[2], validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("password_hash is not of the form scrypt$SALT$HASH") from None


def _sha256_digest(text: Any) -> bytes:
    kind, _, digest = text.partition("$") if isinstance(text, str) else ("", "", "")
    try:
        if kind == "sha256" and len(raw := bytes.fromhex(digest)) == hashlib.sha256().digest_size:
            return raw
    except ValueError:
        pass
    raise ValueError("token_hash and api_key_hash have the form sha256$HEX")


def _by_digest(secret: bytes, known: Mapping[bytes, User]) -> User | None:
    """All are compared, each in constant time; there are few, and a digest tells nothing about its secret."""
    digest = hashlib.sha256(secret).digest()
    found = None
    for candidate, user in known.items():
        if hmac.compare_digest(candidate, digest):
            found = user
    return found


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
    """Changes when the file does, also when it is a link that is swapped, as Kubernetes does with mounted Secrets."""
    try:
        status = os.stat(path)
    except OSError:
        return (0, 0, 0)
    return (status.st_mtime_ns, status.st_size, status.st_ino)
