"""The log store in a directory: one file for each chunk. Nothing of a user's may write there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from poiesis.domain.errors import NotFound, StagingFailed, StorageUnavailable
from poiesis.domain.naming import is_task_id
from poiesis.domain.task import TaskId
from poiesis.logstore import names
from poiesis.ports.logs import Chunk, ChunkPage, LogRef, StoredLog

MAX_TASKS = 1000  # of one call


class DirectoryLogStore:
    def __init__(self, root: Path) -> None:
        self._root = root

    def close(self) -> None:
        pass

    def logs(self, task_id: TaskId) -> Sequence[StoredLog]:
        with _errors():
            return names.collect(self._names(self._root / names.task_directory(task_id)))

    def log(self, ref: LogRef) -> StoredLog:
        with _errors():
            return next(iter(names.collect(self._names(self._root / names.directory(ref)))), StoredLog(ref, 0))

    def chunks(self, ref: LogRef, position: int) -> ChunkPage:
        with _errors():
            return names.chunk_page(self._names(self._root / names.directory(ref)), position)

    def read(self, ref: LogRef, chunk: Chunk, start: int, size: int) -> bytes:
        with _errors(), open(self._chunk(ref, chunk.offset), "rb", buffering=0) as file:
            data = os.pread(file.fileno(), size, start)
        if len(data) != size:
            raise StorageUnavailable("the stored log is shorter than before")
        return data

    def write(self, ref: LogRef, offset: int, source: int, start: int, size: int) -> None:
        """Only the bytes that the chunk does not have are copied."""
        with _errors():
            path = self._chunk(ref, offset)
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600), "wb", buffering=0) as file:
                done = file.seek(0, os.SEEK_END)
                while done < size:
                    copied = os.sendfile(file.fileno(), source, start + done, size - done)
                    if copied == 0:
                        raise StagingFailed("the file was truncated during the transfer")
                    done += copied

    def end(self, ref: LogRef, *, truncated: bool) -> None:
        with _errors():
            directory = self._root / names.directory(ref)
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            (directory / names.mark_name(truncated=truncated)).touch(mode=0o600)

    def tasks(self, after: TaskId | None) -> Sequence[TaskId]:
        with _errors():
            found = os.listdir(self._root) if self._root.exists() else []
        return sorted(TaskId(n) for n in found if is_task_id(n) and n > (after or ""))[:MAX_TASKS]

    def delete(self, task_id: TaskId) -> None:
        with _errors():
            directory = self._root / names.task_directory(task_id)
            if directory.exists():
                shutil.rmtree(directory)

    def _chunk(self, ref: LogRef, offset: int) -> Path:
        return self._root / names.directory(ref) / names.chunk_name(offset)

    def _names(self, directory: Path) -> Iterator[tuple[str, int]]:
        for path, _, files in os.walk(directory):
            for file in files:
                full = Path(path, file)
                yield str(full.relative_to(self._root)), full.stat().st_size


@contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise NotFound("the log is no longer stored") from error
    except OSError as error:
        raise StorageUnavailable(f"the log store's directory cannot be used: {error.strerror or error}") from error
