"""What the services need from the outside, as Protocols in the domain's words. Adapters implement them; no vendor type crosses.

Names are imported when first asked for, so that a filer (a process that lives for a second) pays for its own port alone.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from poiesis.ports.clock import Clock
    from poiesis.ports.cluster import Cluster, ClusterEvents, HearsRecords, TellsStarting
    from poiesis.ports.filer import Filer
    from poiesis.ports.queue import Queue
    from poiesis.ports.repository import Page, TaskFilter, TaskRepository

__all__ = [
    "Clock",
    "Cluster",
    "ClusterEvents",
    "Filer",
    "HearsRecords",
    "Page",
    "Queue",
    "TaskFilter",
    "TaskRepository",
    "TellsStarting",
]
_MODULES = {
    "Clock": "clock",
    "Cluster": "cluster",
    "ClusterEvents": "cluster",
    "Filer": "filer",
    "HearsRecords": "cluster",
    "Page": "repository",
    "Queue": "queue",
    "TaskFilter": "repository",
    "TaskRepository": "repository",
    "TellsStarting": "cluster",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
