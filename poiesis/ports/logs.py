"""Where the whole output of executors is kept, beyond the tails in the task's log (docs/adr/0013-whole-logs.md).

The output of one stream is a sequence of chunks without gaps, named by their offset. The last one grows until it is large enough; the
bytes that it has never change, so a reader may use a size that it has seen before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from poiesis.domain.task import TaskId

Stream = Literal["stdout", "stderr"]
STREAMS: Final[tuple[Stream, Stream]] = ("stdout", "stderr")
MAX_CHUNK_BYTES: Final = 8 * 1024 * 1024


@dataclass(frozen=True, order=True)
class LogRef:
    """One stream of one executor (its index) in one attempt."""

    task_id: TaskId
    attempt: int
    executor: int
    stream: Stream


@dataclass(frozen=True)
class StoredLog:
    """`is_complete`: the executor has ended and nothing will be added. `is_truncated`: it wrote more than is kept, or may have."""

    ref: LogRef
    size_bytes: int
    is_complete: bool = False
    is_truncated: bool = False


@dataclass(frozen=True)
class Chunk:
    offset: int
    size_bytes: int

    @property
    def end(self) -> int:
        return self.offset + self.size_bytes


@dataclass(frozen=True)
class ChunkPage:
    """`is_last`: the stream is complete and these are its last chunks."""

    chunks: tuple[Chunk, ...]
    is_last: bool = False


class LogStore(Protocol):
    """Methods raise StorageUnavailable (retry) and StagingFailed (its subclasses NotFound, AccessDenied: a retry does not help)."""

    def logs(self, task_id: TaskId) -> Sequence[StoredLog]:
        """All streams of a task, sorted."""

    def log(self, ref: LogRef) -> StoredLog:
        """One stream; empty if nothing is stored."""

    def chunks(self, ref: LogRef, position: int) -> ChunkPage:
        """The chunk with the byte at `position`, and some that follow, in order."""

    def read(self, ref: LogRef, chunk: Chunk, start: int, size: int) -> bytes:
        """`size` bytes of a chunk, from `start` within it."""

    def write(self, ref: LogRef, offset: int, source: int, start: int, size: int) -> None:
        """Set the content of the chunk at `offset` to `size` bytes of the open file `source`, from `start` on.

        Only the last chunk may be written again, and what it has is a prefix of its new content.
        """

    def end(self, ref: LogRef, *, truncated: bool) -> None:
        """Mark the stream as complete."""

    def tasks(self, after: TaskId | None) -> Sequence[TaskId]:
        """Some tasks with logs, oldest (smallest id) first, with ids above `after`; none: there are no more."""

    def delete(self, task_id: TaskId) -> None:
        """Delete all logs of a task; none are there: nothing."""

    def close(self) -> None: ...
