"""The credentials file: a JSON list; each entry has a name and one or more hashes made by `hash_secret`:

    [{"name": "ada", "password_hash": "scrypt$…", "token_hash": "sha256$…", "api_key_hash": "sha256$…", "admin": true, "groups": ["lab"]}]

It is read again when it changes; an invalid file leaves the previous content in force. Secrets never appear in a log, an error or a repr.
"""

from __future__ import annotations

import base64
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final

import msgspec

from poiesis.api.users import User
from poiesis.domain.errors import ConfigurationError
from poiesis.domain.secret_hashes import hash_secret, scrypt

__all__ = ["Credentials", "CredentialsFile", "hash_secret", "read_credentials", "scrypt"]

log = logging.getLogger(__name__)

_CHECK_FILE_S: Final = 1.0  # seconds between checks of the file's modification time


@dataclass(frozen=True)
class Credentials:
    """`passwords` by user name: with salt and hash. `tokens` and `keys` by SHA-256."""

    users: dict[str, User] = field(default_factory=dict)
    passwords: dict[str, tuple[User, bytes, bytes]] = field(default_factory=dict, repr=False)
    tokens: dict[bytes, User] = field(default_factory=dict, repr=False)
    keys: dict[bytes, User] = field(default_factory=dict, repr=False)


class CredentialsFile:
    """Used in the event loop only. Raises on construction: ConfigurationError for an invalid file."""

    def __init__(self, path: Path, clock: Callable[[], float]) -> None:
        self._path = path
        self._clock = clock
        self._stamp = _stamp(path)
        self._content = read_credentials(path)
        self._check_at = clock() + _CHECK_FILE_S

    def content(self) -> Credentials:
        """At most `_CHECK_FILE_S` old."""
        now = self._clock()
        if now < self._check_at:
            return self._content
        self._check_at = now + _CHECK_FILE_S
        stamp = _stamp(self._path)
        if stamp != self._stamp:
            self._stamp = stamp
            try:
                self._content = read_credentials(self._path)
                log.info("credentials_read", extra={"users": len(self._content.users)})
            except ConfigurationError as error:
                log.error("credentials_unusable", extra={"error": str(error)})
        return self._content


_Sha256 = Annotated[str, msgspec.Meta(pattern=r"^sha256\$[0-9a-fA-F]{64}$")]


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    """An entry of the credentials file. msgspec's messages name the field and not its content."""

    name: Annotated[str, msgspec.Meta(pattern="^[^:]+$")]
    password_hash: Annotated[str, msgspec.Meta(pattern=r"^scrypt\$[^$]*\$[^$]*$")] | None = None
    token_hash: _Sha256 | None = None
    api_key_hash: _Sha256 | None = None
    admin: bool = False
    groups: tuple[Annotated[str, msgspec.Meta(min_length=1)], ...] = ()


def read_credentials(path: Path) -> Credentials:
    """Raises: ConfigurationError with the position of the invalid entry and the reason, without its content."""
    try:
        entries = msgspec.json.decode(path.read_bytes(), type=list[_Entry])
    except OSError as error:
        raise ConfigurationError(f"cannot read the credentials file {path}: {error.strerror}") from None
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"invalid credentials file {path}: {error}") from None
    except (msgspec.DecodeError, ValueError):
        raise ConfigurationError(f"invalid credentials file {path}: not JSON") from None
    found = Credentials()
    for i, entry in enumerate(entries):
        try:
            _add(entry, found)
        except ValueError as error:
            raise ConfigurationError(f"invalid entry {i} of the credentials file {path}: {error}") from None
    return found


def _add(entry: _Entry, to: Credentials) -> None:
    """Raises: ValueError."""
    user = User(entry.name, entry.admin, entry.groups, in_file=True)
    if user.name in to.users:
        raise ValueError("name: used by an earlier entry")
    to.users[entry.name] = user
    if not (entry.password_hash or entry.token_hash or entry.api_key_hash):
        raise ValueError("must have one of password_hash, token_hash, api_key_hash")
    if entry.password_hash:
        _, salt, digest = entry.password_hash.split("$")
        to.passwords[entry.name] = user, base64.b64decode(salt, validate=True), base64.b64decode(digest, validate=True)
    for name, text, by_digest in (("token", entry.token_hash, to.tokens), ("api_key", entry.api_key_hash, to.keys)):
        if text and by_digest.setdefault(bytes.fromhex(text.removeprefix("sha256$")), user) is not user:
            raise ValueError(f"{name}_hash: used by an earlier entry")


def _stamp(path: Path) -> tuple[int, int, int]:
    """Changes when the file does, also when it is a symbolic link that is replaced, as Kubernetes does with mounted Secrets."""
    try:
        status = os.stat(path)
    except OSError:
        return (0, 0, 0)
    return (status.st_mtime_ns, status.st_size, status.st_ino)
