"""A worker of all roles in a separate process: `python -m tests.integration.queue_worker REDIS DATABASE MARKER HOLD`.

Its cluster is in memory. With HOLD `hold`, creating a volume touches MARKER and never returns.
"""

import sys
import threading
from datetime import UTC, datetime
from pathlib import Path

from poiesis.domain.plan import Plan
from poiesis.domain.states import Role
from poiesis.domain.task import Task
from poiesis.queue.app import make_app
from poiesis.queue.links import register
from poiesis.queue.publisher import CeleryQueue
from poiesis.queue.worker import run_worker
from poiesis.repository.sqlite.database import SqliteDatabase
from poiesis.repository.sqlite.tasks import SqliteTaskRepository
from poiesis.services.orchestrator import Orchestrator
from poiesis.testing.cluster import MemoryCluster
from tests.unit.domain.samples import POLICY


class WallClock:
    def now(self) -> datetime:
        return datetime.now(UTC)


class HoldingCluster(MemoryCluster):
    marker: Path | None = None

    def create_volume(self, task: Task, plan: Plan) -> None:
        if self.marker is not None:
            self.marker.touch()
            threading.Event().wait()
        super().create_volume(task, plan)


def main(redis_url: str, database: str, marker: str, hold: str) -> int:
    clock = WallClock()
    cluster = HoldingCluster(clock)
    cluster.marker = Path(marker) if hold == "hold" else None
    app = make_app(redis_url)
    register(
        app,
        Orchestrator(SqliteTaskRepository(SqliteDatabase(Path(database))), cluster, clock, POLICY),
        CeleryQueue(app),
    )
    return run_worker(app, Role, threads=2, name="test")


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
