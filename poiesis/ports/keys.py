"""Where API keys are stored."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Protocol

from poiesis.domain.keys import ApiKey


class KeyRepository(Protocol):
    """Durable. Every method raises RepositoryUnavailable if the store does not answer; all are safe to retry."""

    def add(self, key: ApiKey) -> None:
        """Store a new key; the same again changes nothing."""

    def find(self, digest: str) -> ApiKey | None: ...

    def list(self, user: str | None, *, limit: int) -> Sequence[ApiKey]:
        """The keys of a user, or of all (None), oldest first."""

    def remove(self, key_id: str, *, user: str | None) -> bool:
        """Whether there was such a key, of this user if one is given."""

    def mark_used(self, key_id: str, at: datetime) -> None:
        """Record the last use, unless a later one is recorded; an unknown key is ignored."""

    def set_rights(self, user: str, groups: Collection[str], *, admin: bool) -> None:
        """Give all keys of a user these groups, and this for `admin`."""
