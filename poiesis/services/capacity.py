"""The room on nodes, from the leading monitor, which may read them, to the API, which may not: a note in the store, overwritten."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from poiesis.domain.capacity import Capacity, read_capacity
from poiesis.ports.admission import AdmissionStore
from poiesis.ports.clock import Clock

NOTE: Final = "capacity"
REPORT_EVERY: Final = timedelta(seconds=30)
VALID: Final = timedelta(minutes=3)


@dataclass(eq=False)
class CapacityReport:
    """`look` raises ClusterUnavailable or ClusterRefused; then the last note becomes too old."""

    look: Callable[[datetime], Capacity]
    store: AdmissionStore
    clock: Clock

    def report_capacity(self) -> int:
        """Return the number of nodes."""
        found = self.look(self.clock.now())
        self.store.write_note(NOTE, found.to_text(), seen=self.store.read_note(NOTE).version)
        return found.nodes


def reported_capacity(store: AdmissionStore, now: datetime) -> Capacity | None:
    """None: nothing is reported, or not lately. Raises: RepositoryUnavailable."""
    found = read_capacity(store.read_note(NOTE).text)
    return None if found is None or now - found.at > VALID else found
