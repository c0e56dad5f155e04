"""Which task a client's idempotency key stands for (draft-ietf-httpapi-idempotency-key-header)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Protocol

from poiesis.domain.task import TaskId

KEPT: Final = timedelta(days=1)


@dataclass(frozen=True)
class IdempotencyKey:
    """`key`: as the client sent it. `digest`: of the body of the request."""

    key: str
    digest: str


@dataclass(frozen=True)
class Reservation:
    task_id: TaskId
    digest: str
    at: datetime


class IdempotencyStore(Protocol):
    """Raises RepositoryUnavailable if the store does not answer; all methods are safe to retry."""

    def reserve(self, owner: str | None, key: IdempotencyKey, task_id: TaskId, now: datetime) -> Reservation:
        """Reserve `task_id` for a key of `owner`, unless one has been reserved for it within KEPT. Return the reservation in force:
        the same for all who reserve with the same key."""

    def purge(self, now: datetime, *, limit: int) -> int:
        """Delete up to `limit` reservations that are older than KEPT, and return how many."""
