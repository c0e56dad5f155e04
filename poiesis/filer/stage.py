"""What staging in and staging out have in common: jobs for the pool, and one thread for small files once there are many of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast

from poiesis.domain.errors import StagingFailed
from poiesis.filer.registry import Filers
from poiesis.filer.transfer import Control, Job, Pool
from poiesis.filer.transfer_log import TransferLog
from poiesis.filer.volume import Volume
from poiesis.ports.filer import Filer

if TYPE_CHECKING:
    from poiesis.filer.small_files import Exchange, SmallFileMover, SmallFiles

SMALL_BYTES: Final = 1 << 18
MANY: Final = 100  # small files, from which on one thread moves all of them


@dataclass(frozen=True)
class Tools:
    """The parts that one run shares."""

    volume: Volume
    control: Control
    pool: Pool
    filers: Filers
    log: TransferLog


class Stage:
    def __init__(self, tools: Tools) -> None:
        self._volume, self._control, self._filers = tools.volume, tools.control, tools.filers
        self._pool, self._log = tools.pool, tools.log
        self._count_lock = threading.Lock()
        self._count = 0
        self._small, self._gave_up = 0, False
        self._mover: SmallFileMover | None = None
        self._starting = threading.Lock()

    def run(self, jobs: Iterable[Job]) -> None:
        try:
            self._pool.run(jobs)
        except BaseException:
            self._control.stop()
            raise
        finally:
            mover = self._mover
            if mover is not None:
                self._end_mover(mover)
        if mover is not None:
            self._pool.run(mover.returned_jobs())

    def _fail(self, error: Exception, path: str) -> None:
        self._log.failed(error, path)

    def _count_entry(self, where: str) -> None:
        """Of a listing or a directory. Raises: Cancelled; StagingFailed when there are too many, because some never end."""
        self._control.check()
        with self._count_lock:
            self._count += 1
        if self._count > self._control.settings.max_files:
            raise StagingFailed(f"{where}: more than {self._control.settings.max_files} files in one task")

    def _job(self, path: str, call: Callable[[], object]) -> Job:
        def run() -> None:
            try:
                self._control.check()
                call()
            except Exception as error:
                self._fail(error, path)

        return run

    def _moving(
        self, filer: Filer, path: str, size: int, job: Job, exchange: Callable[[SmallFiles], Exchange | None]
    ) -> Iterator[Job]:
        """`job`, unless the thread for small files takes the file, for which `exchange` makes what it needs; and the jobs of the
        files that this thread returns."""
        if not self._is_taken(filer, path, size, job, exchange):
            yield job
        mover = self._mover
        if mover is not None:
            if mover.gave_up or (size > SMALL_BYTES and mover.is_idle):
                self._end_mover(mover)
            yield from mover.returned_jobs()

    def _is_taken(
        self, filer: Filer, path: str, size: int, job: Job, exchange: Callable[[SmallFiles], Exchange | None]
    ) -> bool:
        if size > SMALL_BYTES or not hasattr(filer, "get_exchange"):
            return False
        with self._starting:
            self._small += 1
            if self._small == MANY and self._control.settings.parallel > 1 and not self._gave_up:
                self._begin_mover()
            mover = self._mover
        if mover is None:
            return False
        try:
            found = exchange(cast("SmallFiles", filer))
        except Exception:
            return False  # the job fails in the same way, and reports it
        return found is not None and mover.submit(found, lambda sent: self._log.moved(path, sent), job)

    def _end_mover(self, mover: SmallFileMover) -> None:
        """It has nothing to do, or gave up: its connections go back to all threads. Unless it gave up, another hundred small files begin
        another one."""
        mover.finish()
        with self._starting:
            if self._mover is mover:
                self._mover = None
                self._small, self._gave_up = 0, mover.gave_up
                self._pool.limit(self._control.settings.parallel)

    def _begin_mover(self) -> None:
        from poiesis.filer.small_files import SmallFileMover  # only for many files

        parallel = self._control.settings.parallel
        theirs = max(1, parallel // 4)
        # where the system gives no more threads or descriptors, the threads that run do the work
        with suppress(RuntimeError, OSError):
            self._mover = SmallFileMover(self._control, lambda: max(1, parallel - max(theirs, self._pool.running)))
            self._pool.limit(theirs)
