"""Where sessions of browsers are stored."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

from poiesis.domain.sessions import Session


class SessionRepository(Protocol):
    """Durable. Every method raises RepositoryUnavailable if the store does not answer; all are safe to retry."""

    def add(self, session: Session, *, keep: int) -> None:
        """Store a new session. Of all sessions of its user, only the `keep` newest stay."""

    def find(self, digest: str) -> Session | None: ...

    def save(self, session: Session) -> bool:
        """Replace the session if it is still at `session.version`, which grows by one (compare-and-set)."""

    def remove(self, digest: str) -> bool:
        """Whether there was such a session."""

    def remove_expired(self, now: datetime) -> int:
        """Remove sessions whose time has passed, and return how many."""
