"""Names in the log store: `TASK/ATTEMPT/executor-N/STREAM/OFFSET`, and beside the chunks an empty `end` or `end.truncated`.

Offsets have 16 digits, so that names sort by offset and the end comes last. Whatever else is there is ignored.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, Literal

from poiesis.domain.errors import UnknownTask
from poiesis.domain.naming import is_task_id
from poiesis.domain.observed import executor_name
from poiesis.domain.task import TaskId
from poiesis.ports.logs import MAX_CHUNK_BYTES, Chunk, ChunkPage, LogRef, StoredLog

Mark = Literal["end", "end.truncated"]
_NAME: Final = re.compile(
    r"([0-9a-z]{26})/(\d{1,9})/executor-(\d{1,9})/(stdout|stderr)/(?:(\d{16})|(end(?:\.truncated)?))"
)


def task_directory(task_id: TaskId) -> str:
    """Raises: UnknownTask for an id that the service cannot have made."""
    if not is_task_id(task_id):
        raise UnknownTask(task_id[:100])
    return f"{task_id}/"


def directory(ref: LogRef) -> str:
    return f"{task_directory(ref.task_id)}{ref.attempt}/{executor_name(ref.executor)}/{ref.stream}/"


def chunk_name(offset: int) -> str:
    return f"{offset:016d}"


def mark_name(*, truncated: bool) -> Mark:
    return "end.truncated" if truncated else "end"


def before(position: int) -> str:
    """A name that sorts before the chunk with the byte at `position` and after all but a few earlier ones; empty: the start."""
    return chunk_name(position - MAX_CHUNK_BYTES) if position >= MAX_CHUNK_BYTES else ""


def parse(name: str) -> tuple[LogRef, int | Mark] | None:
    """The stream, and the offset of a chunk or a mark; None for a name that is neither."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    ref = LogRef(TaskId(match[1]), int(match[2]), int(match[3]), match[4])  # type: ignore[arg-type]
    return ref, int(match[5]) if match[5] else match[6]  # type: ignore[return-value]


def collect(entries: Iterable[tuple[str, int]]) -> list[StoredLog]:
    """The streams of names with sizes, sorted."""
    sizes: dict[LogRef, int] = {}
    marks: dict[LogRef, Mark] = {}
    for name, size in entries:
        found = parse(name)
        if found is None:
            continue
        ref, what = found
        sizes.setdefault(ref, 0)
        if isinstance(what, int):
            sizes[ref] = max(sizes[ref], what + size)
        else:
            marks[ref] = what
    return [StoredLog(ref, sizes[ref], ref in marks, marks.get(ref) == "end.truncated") for ref in sorted(sizes)]


def chunk_page(entries: Iterable[tuple[str, int]], position: int) -> ChunkPage:
    """Return the chunks of one stream, from the one with the byte at `position`."""
    found: list[tuple[int, int]] = []
    is_last = False
    for name, size in entries:
        parsed = parse(name)
        if parsed is not None and isinstance(parsed[1], int):
            found.append((parsed[1], size))
        is_last |= parsed is not None and not isinstance(parsed[1], int)
    return ChunkPage(tuple(Chunk(o, size) for o, size in sorted(found) if o + size > position), is_last)
