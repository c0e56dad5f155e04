"""An in-memory `SessionRepository` with the same contract, except that it is not durable."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime

from poiesis.domain.errors import RepositoryUnavailable
from poiesis.domain.sessions import Session


class MemorySessionRepository:
    """`down`: set it to make every call raise RepositoryUnavailable until it is unset."""

    def __init__(self) -> None:
        self.down = False
        self.sessions: dict[str, Session] = {}
        self._lock = threading.Lock()

    def add(self, session: Session, *, keep: int) -> None:
        with self._available():
            self.sessions.setdefault(session.digest, session)
            of_user = [s for s in self.sessions.values() if s.user == session.user]
            for old in sorted(of_user, key=lambda s: (s.created_at, s.digest), reverse=True)[keep:]:
                del self.sessions[old.digest]

    def find(self, digest: str) -> Session | None:
        with self._available():
            return self.sessions.get(digest)

    def save(self, session: Session) -> bool:
        with self._available():
            stored = self.sessions.get(session.digest)
            if stored is None or stored.version != session.version:
                return False
            self.sessions[session.digest] = replace(session, version=session.version + 1)
            return True

    def remove(self, digest: str) -> bool:
        with self._available():
            return self.sessions.pop(digest, None) is not None

    def remove_expired(self, now: datetime) -> int:
        with self._available():
            old = [s.digest for s in self.sessions.values() if s.expires_at <= now]
            for digest in old:
                del self.sessions[digest]
            return len(old)

    @contextmanager
    def _available(self) -> Iterator[None]:
        if self.down:
            raise RepositoryUnavailable("the store is down")
        with self._lock:
            yield
