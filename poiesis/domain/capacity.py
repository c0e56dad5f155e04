"""The room that nodes, or the one machine, have for tasks, and how much of it tasks ask for. Pure."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import datetime

from poiesis.domain.quotas import Amount


@dataclass(frozen=True)
class Capacity:
    """`usable` nodes are ready and accept pods of tasks; `allocatable`, `requested` and `largest` are of these. `Amount.tasks` are pods."""

    at: datetime
    nodes: int
    ready: int
    usable: int
    allocatable: Amount
    requested: Amount
    """By the pods of tasks of this service; those of other services are not known."""
    largest: Amount
    """The most that one node has of each resource."""
    disk_bytes: int | None = None
    """Of the file system of tasks' files; None: nodes have no common one."""
    disk_free_bytes: int | None = None

    def to_text(self) -> str:
        return json.dumps({**asdict(self), "at": self.at.isoformat()})


def read_capacity(text: str) -> Capacity | None:
    """Of `Capacity.to_text`; None: it was written by a release with other fields, or is empty."""
    try:
        found = json.loads(text)
        amounts = {name: Amount(*found[name]) for name in ("allocatable", "requested", "largest")}
        return Capacity(**{**found, **amounts, "at": datetime.fromisoformat(found["at"])})
    except (ValueError, TypeError, KeyError):
        return None
