"""API keys: create, list, revoke, and find the user of one. The use cases of API and CLI.

A secret is shown once and stored as its SHA-256, which is enough for 256 random bits. Its prefix lets programs that search for leaked
secrets recognize it.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from poiesis.domain.errors import InvalidRequest, UnknownKey
from poiesis.domain.keys import RIGHTS, ApiKey, Right
from poiesis.ports.clock import Clock
from poiesis.ports.keys import KeyRepository

PREFIX: Final = "poiesis_"
MAX_KEYS: Final = 100  # of a user
MAX_LISTED: Final = 1_000
MAX_NAME: Final = 100
RECORD_USE_EVERY: Final = timedelta(minutes=10)
_SECRET: Final = re.compile(rb"poiesis_[A-Za-z0-9_-]{43}")


def is_key(secret: bytes) -> bool:
    """Whether this looks like a key of ours: others are not looked up."""
    return _SECRET.fullmatch(secret) is not None


@dataclass(frozen=True)
class KeyService:
    repository: KeyRepository
    clock: Clock
    max_lifetime: timedelta | None = None

    def create(
        self,
        user: str,
        name: str,
        rights: Collection[Right],
        *,
        groups: Collection[str] = (),
        admin: bool = False,
        in_file: bool = False,
        lifetime: timedelta | None = None,
    ) -> tuple[ApiKey, str]:
        """The new key, and its secret, which cannot be shown again. `lifetime` None: the longest that is allowed.

        Raises: InvalidRequest, RepositoryUnavailable.
        """
        if not name.strip() or len(name) > MAX_NAME or not name.isprintable():
            raise InvalidRequest("name", f"must have 1 to {MAX_NAME} printable characters")
        if not rights or not set(rights) <= RIGHTS:
            raise InvalidRequest("scopes", f"must be some of {', '.join(sorted(RIGHTS))}")
        lifetime = lifetime or self.max_lifetime
        if lifetime is not None and not timedelta(0) < lifetime <= (self.max_lifetime or timedelta.max):
            raise InvalidRequest("lifetime", f"must be at most {self.max_lifetime}")
        self._check_room(user, for_more=1)
        secret = PREFIX + secrets.token_urlsafe(32)
        now = self.clock.now()
        key = ApiKey(
            id=secrets.token_hex(8),
            digest=_digest(secret.encode()),
            user=user,
            name=name,
            rights=frozenset(rights),
            created_at=now,
            groups=tuple(groups),
            admin=admin and "admin" in rights,
            in_file=in_file,
            expires_at=None if lifetime is None else now + lifetime,
        )
        self.repository.add(key)
        try:
            self._check_room(user, for_more=0)  # again, since others may have been added meanwhile
        except InvalidRequest:
            self.repository.remove(key.id, user=user)
            raise
        return key, secret

    def _check_room(self, user: str, *, for_more: int) -> None:
        """Raises: InvalidRequest."""
        if len(self.repository.list(user, limit=MAX_KEYS + 1)) + for_more > MAX_KEYS:
            raise InvalidRequest("user", f"has {MAX_KEYS} keys, which is the limit: revoke one")

    def find(self, secret: bytes) -> ApiKey | None:
        """The key with this secret; its use is recorded at most every RECORD_USE_EVERY. Raises: RepositoryUnavailable."""
        return self.find_digest(_digest(secret)) if is_key(secret) else None

    def find_digest(self, digest: str) -> ApiKey | None:
        """The same by the SHA-256 of the secret."""
        key = self.repository.find(digest)
        if key is None or self.has_expired(key):
            return None
        now = self.clock.now()
        if key.last_used_at is None or key.last_used_at + RECORD_USE_EVERY <= now:
            self.repository.mark_used(key.id, now)
        return key

    def has_expired(self, key: ApiKey) -> bool:
        return key.expires_at is not None and key.expires_at <= self.clock.now()

    def list(self, user: str | None) -> Sequence[ApiKey]:
        """The keys of a user, or of all users."""
        return self.repository.list(user, limit=MAX_LISTED)

    def revoke(self, key_id: str, *, user: str | None) -> None:
        """`user` None: of any user. Raises: UnknownKey, also for a key of another user; RepositoryUnavailable."""
        if not self.repository.remove(key_id, user=user):
            raise UnknownKey(key_id)

    def set_rights(self, user: str, groups: Collection[str], *, admin: bool) -> None:
        """What a provider says about a user now holds for the user's keys too."""
        self.repository.set_rights(user, groups, admin=admin)


def _digest(secret: bytes) -> str:
    return hashlib.sha256(secret).hexdigest()
