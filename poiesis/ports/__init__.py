"""What the services need from the outside, as Protocols in the domain's words. Adapters implement them; no vendor type crosses."""

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
