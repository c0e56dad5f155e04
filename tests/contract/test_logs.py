"""One suite for every log store, each against a real one.

1. what is written can be read, byte for byte, from any position
2. the last chunk grows, and its earlier bytes stay
3. a stream has a size while it grows, and marks once it is complete
4. the streams of a task are separate, and those of other tasks are not listed
5. deletion removes all of one task and may be repeated
6. tasks are listed oldest first, from a position on
7. ids that the service cannot have made are refused
8. other names in the store are ignored
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from poiesis.config import LogSettings
from poiesis.domain.errors import NotFound, PoiesisError, UnknownTask
from poiesis.domain.task import TaskId
from poiesis.logstore.open import open_store
from poiesis.ports.logs import MAX_CHUNK_BYTES, Chunk, LogRef, LogStore, Stream
from tests.servers import S3Server

TASK = TaskId("0" * 25 + "5")


@dataclass
class Given:
    store: LogStore
    directory: Path

    def write(self, ref: LogRef, offset: int, data: bytes, before: bytes = b"") -> None:
        path = self.directory / uuid.uuid4().hex
        path.write_bytes(before + data)
        descriptor = os.open(path, os.O_RDONLY)
        try:
            self.store.write(ref, offset, descriptor, len(before), len(data))
        finally:
            os.close(descriptor)

    def read(self, ref: LogRef, position: int = 0) -> bytes:
        data = b""
        while found := self.store.chunks(ref, position).chunks:
            for chunk in found:
                start = position - chunk.offset
                data += self.store.read(ref, chunk, start, chunk.size_bytes - start)
                position = chunk.end
        return data


@pytest.fixture(params=["directory", "s3"])
def given(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Given]:
    if request.param == "directory":
        settings = LogSettings(url=f"file://{tmp_path}/logs")
    else:
        s3: S3Server = request.getfixturevalue("s3_server")
        settings = LogSettings(
            url=f"s3://{s3.bucket}/some/prefix",
            endpoint=s3.endpoint,
            region=s3.region,
            access_key=s3.access_key,
            secret_key=s3.secret_key,
        )
    store = open_store(settings)
    assert store is not None
    yield Given(store, tmp_path)
    for task_id in store.tasks(None):
        store.delete(task_id)
    store.close()


def ref(task_id: TaskId = TASK, attempt: int = 1, executor: int = 0, stream: Stream = "stdout") -> LogRef:
    return LogRef(task_id, attempt, executor, stream)


@pytest.mark.parametrize("size", [1, 1000, 300_000, 2_000_000])
def test_1_what_is_written_can_be_read(given: Given, size: int) -> None:
    data = os.urandom(size)
    given.write(ref(), 0, data, before=b"not this")
    given.write(ref(), size, b"next")
    assert given.read(ref()) == data + b"next"
    assert given.read(ref(), size - 1) == data[-1:] + b"next"
    assert given.read(ref(), size + 4) == b""


def test_1_a_position_far_within_a_long_log_is_found(given: Given) -> None:
    offsets = range(0, 3 * MAX_CHUNK_BYTES, MAX_CHUNK_BYTES // 2)
    for offset in offsets:  # as if they had been written without gaps
        given.write(ref(), offset, b"x" * 10)
    for position in (0, MAX_CHUNK_BYTES, 2 * MAX_CHUNK_BYTES + 3):
        assert given.store.chunks(ref(), position).chunks[0].offset == position // (MAX_CHUNK_BYTES // 2) * (
            MAX_CHUNK_BYTES // 2
        )


def test_1_a_range_beyond_the_end_is_an_error(given: Given) -> None:
    given.write(ref(), 0, b"abc")
    for start, size in ((0, 4), (3, 1), (10, 1)):
        with pytest.raises(PoiesisError):
            given.store.read(ref(), Chunk(0, 3), start, size)
    with pytest.raises(NotFound):
        given.store.read(ref(), Chunk(3, 3), 0, 3)


def test_2_the_last_chunk_grows(given: Given) -> None:
    for size in (10, 10, 400_000):
        given.write(ref(), 0, (b"0123456789" * 40_000)[:size])
        assert given.store.log(ref()).size_bytes == size
    assert given.read(ref()) == b"0123456789" * 40_000


@pytest.mark.parametrize("truncated", [False, True])
def test_3_size_and_marks(given: Given, truncated: bool) -> None:
    assert (given.store.log(ref()).size_bytes, given.store.log(ref()).is_complete) == (0, False)
    given.write(ref(), 0, b"abc")
    given.write(ref(), 3, b"de")
    found = given.store.log(ref())
    assert (found.size_bytes, found.is_complete, found.is_truncated) == (5, False, False)
    assert not given.store.chunks(ref(), 5).is_last
    given.store.end(ref(), truncated=truncated)
    found = given.store.log(ref())
    assert (found.size_bytes, found.is_complete, found.is_truncated) == (5, True, truncated)
    assert given.read(ref()) == b"abcde"
    assert given.store.chunks(ref(), 5).is_last


def test_4_streams_are_separate(given: Given) -> None:
    refs = [ref(attempt=a, executor=e, stream=s) for a in (1, 2) for e in (0, 1, 10) for s in ("stdout", "stderr")]
    for i, each in enumerate(refs):
        given.write(each, 0, b"x" * (i + 1))
    given.write(ref(TaskId("0" * 25 + "6")), 0, b"other")
    found = given.store.logs(TASK)
    assert sorted(refs) == [log.ref for log in found]
    assert {log.ref: log.size_bytes for log in found} == {each: i + 1 for i, each in enumerate(refs)}
    assert given.read(ref(executor=1)) == b"x" * 3


def test_5_deletion_may_be_repeated(given: Given) -> None:
    for offset in range(5):
        given.write(ref(), offset, b"x")
    given.write(ref(stream="stderr"), 0, b"x")
    given.write(ref(TaskId("0" * 25 + "6")), 0, b"other")
    for _ in range(2):
        given.store.delete(TASK)
        assert list(given.store.logs(TASK)) == []
    assert given.read(ref(TaskId("0" * 25 + "6"))) == b"other"


def test_6_tasks_are_listed_oldest_first(given: Given) -> None:
    ids = [TaskId("0" * 24 + f"{i:02d}") for i in range(12)]
    for task_id in reversed(ids):
        given.write(ref(task_id), 0, b"x")
    found: list[TaskId] = []
    while page := given.store.tasks(found[-1] if found else None):
        found += page
    assert found == ids
    assert given.store.tasks(ids[6])[0] == ids[7]


@pytest.mark.parametrize("task_id", ["", "..", "../" * 8 + "etc/passwd", "A" * 26, "0" * 27, "0" * 25 + "/"])
def test_7_other_ids_are_refused(given: Given, task_id: str) -> None:
    wrong: Any = TaskId(task_id)
    for call in (
        lambda: given.store.logs(wrong),
        lambda: given.store.delete(wrong),
        lambda: given.store.log(ref(wrong)),
        lambda: given.store.chunks(ref(wrong), 0),
        lambda: given.store.end(ref(wrong), truncated=False),
    ):
        with pytest.raises(UnknownTask):
            call()


def test_8_other_names_are_ignored(tmp_path: Path) -> None:
    store = open_store(LogSettings(url=f"file://{tmp_path}"))
    assert store is not None
    for name in ("x/y", f"{TASK}/1/executor-0/stdout/12", f"{TASK}/1/tif/stdout/{'0' * 16}", f"{TASK}/a/b/stdin/end"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("odd")
    assert list(store.logs(TASK)) == []
    assert list(store.tasks(None)) == [TASK]
