"""The output of executors for clients: whole from the log store, or the tails in the task's log where it was not kept.

Access is the task's: what the user may not see is unknown. A log is read in pieces, by its position; nothing is kept of it in memory but
the list of its next chunks.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import product
from typing import Final, Literal

from poiesis.domain.access import Access
from poiesis.domain.errors import InvalidRequest, PoiesisError, Unavailable, UnknownTask
from poiesis.domain.naming import checked_task_id, first_task_id
from poiesis.domain.states import Stage
from poiesis.domain.task import Task, TaskId, View
from poiesis.ports.clock import Clock
from poiesis.ports.logs import STREAMS, Chunk, LogRef, LogStore, StoredLog, Stream
from poiesis.ports.repository import TaskRepository

log = logging.getLogger(__name__)

Source = Literal["store", "tail"]
OVER_AFTER: Final = timedelta(seconds=30)  # after the end of a task nothing more of its output is stored
PURGE_BATCH: Final = 500  # tasks whose logs one call deletes at most
SEEN_AT_ONCE: Final = 10_000  # tasks with logs that one call considers
PURGE_LAG: Final = timedelta(hours=1)  # for tasks that are purged a little later than they could be


class UnknownLog(UnknownTask):
    """The task exists, and has no such log."""

    code = "unknown_log"

    def __init__(self, message: str) -> None:
        PoiesisError.__init__(self, message)


@dataclass(frozen=True)
class AvailableLog:
    """`source`: `tail` is the end of an output, which is not kept as a whole."""

    ref: LogRef
    size_bytes: int
    is_complete: bool
    is_truncated: bool
    source: Source


@dataclass
class OpenLog:
    """One log, to be read from any position. Its calls block."""

    about: AvailableLog
    _store: LogStore | None = None
    _tail: bytes = b""
    _chunks: list[Chunk] = field(default_factory=list, init=False)
    _is_last: bool = field(default=False, init=False)

    def read(self, position: int, limit: int) -> bytes:
        """At most `limit` bytes from `position` on; none: they are not there, or not yet. Raises: Unavailable, StagingFailed."""
        if self._store is None:
            return self._tail[position : position + limit]
        while self._chunks and self._chunks[0].end <= position:
            self._chunks.pop(0)
        if not self._chunks:
            page = self._store.chunks(self.about.ref, position)
            self._chunks, self._is_last = list(page.chunks), page.is_last
        if not self._chunks or self._chunks[0].offset > position:  # a gap ends what can be read
            self._chunks = []
            return b""
        chunk = self._chunks[0]
        size = min(limit, chunk.end - position)
        return self._store.read(self.about.ref, chunk, position - chunk.offset, size)

    @property
    def is_at_end(self) -> bool:
        """After a `read` without bytes: nothing will be added."""
        return self._store is None or self._is_last


@dataclass(eq=False)
class LogService:
    """`store` None: the site keeps no whole logs."""

    repository: TaskRepository
    clock: Clock
    store: LogStore | None = None

    @property
    def keeps_whole_logs(self) -> bool:
        return self.store is not None

    def available(self, task_id: str, *, access: Access | None) -> list[AvailableLog]:
        """All logs of a task, oldest attempt first. Raises: UnknownTask, Unavailable."""
        task = self.repository.get(checked_task_id(task_id), access=access)
        stored = self.store.logs(task.id) if self.store is not None else ()
        found = {entry.ref: _of_store(entry) for entry in stored}
        for index, stream in product(range(len(task.log.logs)), STREAMS):
            ref = LogRef(task.id, task.attempt, index, stream)
            if ref not in found:
                found[ref] = _of_tail(ref, _tail(task, ref))
        return [found[ref] for ref in sorted(found)]

    def open(
        self, task_id: str, executor: int, stream: Stream, *, attempt: int | None, access: Access | None
    ) -> OpenLog:
        """`attempt` None: the latest one. Raises: UnknownTask, UnknownLog, Unavailable."""
        task = self.repository.get(checked_task_id(task_id), View.BASIC, access=access)
        if executor >= len(task.spec.executors):
            raise UnknownLog(f"executor {executor} does not exist: the task has {len(task.spec.executors)}")
        attempt = task.attempt if attempt is None else attempt
        if not 1 <= attempt <= task.attempt:
            raise UnknownLog(f"attempt {attempt} does not exist: the task has made {task.attempt}")
        ref = LogRef(task.id, attempt, executor, stream)
        if self.store is not None:
            entry = self.store.log(ref)
            if entry.size_bytes or entry.is_complete or not task.state.is_terminal:
                return OpenLog(_of_store(entry), self.store)
        if attempt < task.attempt:
            raise UnknownLog(f"the output of attempt {attempt} was not kept")
        tail = _tail(self.repository.get(task.id, access=access), ref)
        return OpenLog(_of_tail(ref, tail), None, tail)

    def check_followable(self) -> None:
        """Raises: InvalidRequest."""
        if self.store is None:
            message = (
                "this service keeps no whole logs (POIESIS_LOGS__URL), so they cannot be followed: read the log again"
            )
            raise InvalidRequest("follow", message)

    def is_over(self, ref: LogRef, *, access: Access | None) -> bool:
        """Whether nothing can be added to a log, even if its end was not stored. Raises: UnknownTask, Unavailable."""
        task = self.repository.get(ref.task_id, View.BASIC, access=access)
        if task.attempt > ref.attempt or task.stage is Stage.DONE:
            return True
        ended = task.log.end_time
        return task.state.is_terminal and ended is not None and self.clock.now() - ended > OVER_AFTER


def _of_store(entry: StoredLog) -> AvailableLog:
    return AvailableLog(entry.ref, entry.size_bytes, entry.is_complete, entry.is_truncated, "store")


def _of_tail(ref: LogRef, tail: bytes) -> AvailableLog:
    """Whether a tail is all of the output is not known."""
    return AvailableLog(ref, len(tail), False, True, "tail")


def _tail(task: Task, ref: LogRef) -> bytes:
    if ref.executor >= len(task.log.logs):
        return b""
    entry = task.log.logs[ref.executor]
    return (entry.stdout if ref.stream == "stdout" else entry.stderr).encode(errors="surrogatepass")


@dataclass(eq=False)
class LogRetention:
    """Deletes the logs of tasks that the store of tasks no longer has: purged ones, and any others.

    It goes by the log store's own list, oldest first, so a crash between the two deletions leaves nothing behind. A call continues where
    the last one stopped, so logs of many old tasks that are still known do not keep those behind them. Logs younger than `retention` are
    left alone, whatever the store of tasks says.
    """

    repository: TaskRepository
    store: LogStore
    clock: Clock
    retention: timedelta
    _after: TaskId | None = field(default=None, init=False)

    def purge(self) -> int:
        """Return how many tasks' logs were deleted. Raises: Unavailable."""
        newest = first_task_id(self.clock.now() - self.retention - PURGE_LAG)
        purged = seen = 0
        while seen < SEEN_AT_ONCE and purged < PURGE_BATCH:
            page = [task_id for task_id in self.store.tasks(self._after) if task_id < newest]
            if not page:
                self._after = None
                break
            known = self.repository.states(page)
            purged += sum(self._delete(task_id) for task_id in page if task_id not in known)
            self._after, seen = page[-1], seen + len(page)
        return purged

    def _delete(self, task_id: TaskId) -> bool:
        try:
            self.store.delete(task_id)
        except Unavailable:
            raise
        except PoiesisError as error:  # denied: it is tried again later
            log.warning("logs_not_deleted", extra={"task_id": task_id, "error": str(error)})
            return False
        return True
