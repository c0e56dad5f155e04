"""An in-memory `KeyRepository` with the same contract, except that it is not durable."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime

from poiesis.domain.errors import RepositoryUnavailable
from poiesis.domain.keys import ApiKey


class MemoryKeyRepository:
    """`down`: set it to make every call raise RepositoryUnavailable until it is unset."""

    def __init__(self) -> None:
        self.down = False
        self._keys: dict[str, ApiKey] = {}
        self._lock = threading.Lock()

    def add(self, key: ApiKey) -> None:
        with self._available():
            self._keys.setdefault(key.id, key)

    def find(self, digest: str) -> ApiKey | None:
        with self._available():
            return next((key for key in self._keys.values() if key.digest == digest), None)

    def list(self, user: str | None, *, limit: int) -> Sequence[ApiKey]:
        with self._available():
            found = [key for key in self._keys.values() if user in (None, key.user)]
        return sorted(found, key=lambda key: (key.created_at, key.id))[:limit]

    def remove(self, key_id: str, *, user: str | None) -> bool:
        with self._available():
            found = self._keys.get(key_id)
            if found is None or user not in (None, found.user):
                return False
            del self._keys[key_id]
            return True

    def mark_used(self, key_id: str, at: datetime) -> None:
        with self._available():
            found = self._keys.get(key_id)
            if found is not None and (found.last_used_at is None or found.last_used_at < at):
                self._keys[key_id] = replace(found, last_used_at=at)

    def set_rights(self, user: str, groups: Collection[str], *, admin: bool) -> None:
        with self._available():
            for key in [key for key in self._keys.values() if key.user == user]:
                self._keys[key.id] = replace(key, groups=tuple(groups), admin=admin)

    @contextmanager
    def _available(self) -> Iterator[None]:
        if self.down:
            raise RepositoryUnavailable("the key store does not respond")
        with self._lock:
            yield
