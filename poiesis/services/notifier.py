"""What follows from saved tasks and needs no cluster: a few jobs that repeat, each in a thread.

Any number of processes may run them at once, and may die at any point: what makes each job safe is in the store.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from poiesis.domain.errors import Unavailable
from poiesis.metrics import LOOP_FAILURES, LOOP_SUCCESS

log = logging.getLogger(__name__)

MAX_BACK_OFF_S: Final = 30.0


@dataclass(frozen=True)
class Job:
    """`run` does a bounded amount of work and returns how much; 0: nothing is left to do, so it runs again only after `every`.
    `pause` is between two runs while there is more."""

    name: str
    run: Callable[[], int]
    every: timedelta
    pause: timedelta = timedelta(0)


class Notifier:
    def __init__(self, jobs: Sequence[Job]) -> None:
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._repeat, args=(job,), name=job.name, daemon=True) for job in jobs]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        self._stop.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(5)

    def _repeat(self, job: Job) -> None:
        failures = 0
        wait_s = 0.0
        while not self._stop.wait(wait_s):
            try:
                wait_s = (job.pause if job.run() else job.every).total_seconds()
                failures = 0
                LOOP_SUCCESS.labels(job.name).set_to_current_time()
                continue
            except Unavailable as error:
                log.warning("job_failed", extra={"job": job.name, "error": str(error)})
            except Exception:
                log.exception("job_bug", extra={"job": job.name})
            failures += 1
            LOOP_FAILURES.labels(job.name).inc()
            wait_s = min(max(job.every.total_seconds(), 0.25) * 2 ** min(failures, 10), MAX_BACK_OFF_S)
