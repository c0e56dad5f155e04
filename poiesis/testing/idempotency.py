"""An in-memory `IdempotencyStore`."""

from __future__ import annotations

import threading
from datetime import datetime

from poiesis.domain.task import TaskId
from poiesis.ports.idempotency import KEPT, IdempotencyKey, Reservation


class MemoryIdempotencyStore:
    def __init__(self) -> None:
        self._kept: dict[tuple[str | None, str], Reservation] = {}
        self._lock = threading.Lock()

    def reserve(self, owner: str | None, key: IdempotencyKey, task_id: TaskId, now: datetime) -> Reservation:
        with self._lock:
            found = self._kept.get((owner, key.key))
            if found is None or found.at <= now - KEPT:
                found = self._kept[owner, key.key] = Reservation(task_id, key.digest, now)
            return found

    def purge(self, now: datetime, *, limit: int) -> int:
        with self._lock:
            old = [name for name, kept in self._kept.items() if kept.at <= now - KEPT][:limit]
            for name in old:
                del self._kept[name]
            return len(old)
