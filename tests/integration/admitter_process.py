"""An admitter that is to be killed: decides in a loop, without waiting, until SIGKILL.

    python admitter_process.py sqlite:PATH | mongodb://…/NAME   READY MAX_TASKS MAX_CPU_CORES MAX_TASKS_OF_A_USER

Creates the file READY when it has begun. Two of them at once are two leaders.
"""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from poiesis.domain.errors import PoiesisError
from poiesis.domain.policy import Policy
from poiesis.domain.quotas import AdmissionRules, Quota
from poiesis.ports.admission import AdmissionStore
from poiesis.ports.repository import TaskRepository
from poiesis.services.admission import Admitter
from poiesis.testing.queue import RecordingQueue


class RealClock:
    def now(self) -> datetime:
        return datetime.now(UTC)


def open_stores(where: str) -> tuple[TaskRepository, AdmissionStore]:
    scheme, _, rest = where.partition(":")
    if scheme == "sqlite":
        from poiesis.repository.sqlite.admission import SqliteAdmissionStore
        from poiesis.repository.sqlite.database import SqliteDatabase
        from poiesis.repository.sqlite.tasks import SqliteTaskRepository

        sqlite = SqliteDatabase(rest, busy_timeout=timedelta(seconds=60))
        return SqliteTaskRepository(sqlite), SqliteAdmissionStore(sqlite)
    from poiesis.repository.mongo.admission import MongoAdmissionStore
    from poiesis.repository.mongo.connection import MongoDatabase
    from poiesis.repository.mongo.tasks import MongoTaskRepository

    url, _, name = where.rpartition("/")
    minute = timedelta(seconds=60)
    mongo = MongoDatabase(url, name, timeout=minute, connect_timeout=minute)
    return MongoTaskRepository(mongo), MongoAdmissionStore(mongo)


def main() -> None:
    where, ready, max_tasks, max_cores, max_of_user = sys.argv[1:]
    site, user = Quota(max_tasks=int(max_tasks), max_cpu_cores=float(max_cores)), Quota(max_tasks=int(max_of_user))
    policy = Policy(admission=AdmissionRules(site=site, user=user))
    repository, store = open_stores(where)
    soon = timedelta(seconds=0.02)
    admitter = Admitter(repository, store, RecordingQueue(), RealClock(), policy, look_every=soon)
    Path(ready).touch()
    while True:
        try:
            admitter.run_once()
        except PoiesisError as error:
            print(error, file=sys.stderr, flush=True)
        time.sleep(0.01)


if __name__ == "__main__":
    main()
