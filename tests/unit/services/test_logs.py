"""Which logs a user sees of a task, from the store or from the tails, and when they are deleted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import pytest

from poiesis.domain.access import Access
from poiesis.domain.errors import AccessDenied, InvalidRequest, RepositoryUnavailable, StorageUnavailable, UnknownTask
from poiesis.domain.naming import new_task_id
from poiesis.domain.states import Stage, State
from poiesis.domain.task import Executor, ExecutorLog, Task, TaskId, TaskLog, TaskSpec
from poiesis.ports.logs import Chunk, ChunkPage, LogRef, StoredLog
from poiesis.services import logs as module
from poiesis.services.logs import LogRetention, LogService, UnknownLog
from poiesis.testing.clock import ManualClock
from poiesis.testing.repository import MemoryTaskRepository


@dataclass
class MemoryStore:
    """Chunks of ten bytes."""

    streams: dict[LogRef, bytes] = field(default_factory=dict)
    ended: dict[LogRef, bool] = field(default_factory=dict)
    deleted: list[TaskId] = field(default_factory=list)
    error: Exception | None = None

    def logs(self, task_id: TaskId) -> Sequence[StoredLog]:
        return [self.log(ref) for ref in sorted(self.streams) if ref.task_id == task_id]

    def log(self, ref: LogRef) -> StoredLog:
        if self.error is not None:
            raise self.error
        return StoredLog(ref, len(self.streams.get(ref, b"")), ref in self.ended, self.ended.get(ref, False))

    def chunks(self, ref: LogRef, position: int) -> ChunkPage:
        size = len(self.streams.get(ref, b""))
        found = [Chunk(o, min(10, size - o)) for o in range(position - position % 10, size, 10)][:3]
        is_last = ref in self.ended and (not found or found[-1].end == size)
        return ChunkPage(tuple(c for c in found if c.end > position), is_last)

    def read(self, ref: LogRef, chunk: Chunk, start: int, size: int) -> bytes:
        return self.streams[ref][chunk.offset + start : chunk.offset + start + size]

    def write(self, *_: Any) -> None: ...

    def end(self, ref: LogRef, *, truncated: bool) -> None:
        self.ended[ref] = truncated

    def tasks(self, after: TaskId | None) -> Sequence[TaskId]:
        return sorted({ref.task_id for ref in self.streams if ref.task_id > (after or "")})[:3]

    def delete(self, task_id: TaskId) -> None:
        if self.error is not None:
            raise self.error
        self.deleted.append(task_id)
        self.streams = {ref: data for ref, data in self.streams.items() if ref.task_id != task_id}

    def close(self) -> None: ...


CLOCK = ManualClock()
SPEC = TaskSpec((Executor("i", ("c",)), Executor("i", ("c",))))


def make(store: MemoryStore | None = None, **changes: Any) -> tuple[LogService, Task]:
    repository = MemoryTaskRepository()
    task = Task(new_task_id(CLOCK.now()), SPEC, CLOCK.now(), owner="ada")
    repository.add(replace(task, **changes))
    return LogService(repository, CLOCK, store), repository.get(task.id)


def read(service: LogService, task: Task, executor: int = 0, position: int = 0, **more: Any) -> bytes:
    opened = service.open(task.id, executor, "stdout", **{"attempt": None, "access": None, **more})
    data = b""
    while piece := opened.read(position, 7):
        data, position = data + piece, position + len(piece)
    return data


def test_a_log_is_read_in_pieces_from_any_position() -> None:
    store = MemoryStore()
    service, task = make(store)
    data = bytes(range(95))
    store.streams[LogRef(task.id, 1, 0, "stdout")] = data
    for position in (0, 9, 10, 11, 94, 95, 200):
        assert read(service, task, position=position) == data[position:]


def test_the_list_has_sizes_and_marks_of_all_attempts() -> None:
    store = MemoryStore()
    service, task = make(store, attempt=2)
    first, second = LogRef(task.id, 1, 0, "stderr"), LogRef(task.id, 2, 0, "stdout")
    store.streams |= {second: b"abc", first: b""}
    store.ended[first] = True
    found = service.available(task.id, access=None)
    assert [(a.ref, a.size_bytes, a.is_complete, a.is_truncated, a.source) for a in found] == [
        (first, 0, True, True, "store"),
        (second, 3, False, False, "store"),
    ]


def test_without_a_store_the_tails_are_served_and_cannot_be_followed() -> None:
    log = TaskLog(logs=(ExecutorLog(0, stdout="tail é", stderr="err"),))
    service, task = make(None, state=State.COMPLETE, log=log)
    assert read(service, task) == "tail é".encode()
    assert [a.source for a in service.available(task.id, access=None)] == ["tail", "tail"]
    assert not service.keeps_whole_logs
    with pytest.raises(InvalidRequest, match="POIESIS_LOGS__URL"):
        service.check_followable()


def test_a_task_whose_output_could_not_be_stored_shows_its_tail() -> None:
    log = TaskLog(logs=(ExecutorLog(0, stdout="tail"),))
    service, task = make(MemoryStore(), state=State.COMPLETE, log=log)
    opened = service.open(task.id, 0, "stdout", attempt=None, access=None)
    assert (opened.read(0, 100), opened.about.source, opened.is_at_end) == (b"tail", "tail", True)


def test_a_running_executor_without_output_is_empty_and_not_unknown() -> None:
    service, task = make(MemoryStore(), state=State.RUNNING)
    opened = service.open(task.id, 1, "stdout", attempt=None, access=None)
    assert opened.read(0, 10) == b"" and not opened.is_at_end


@pytest.mark.parametrize(("executor", "attempt"), [(2, None), (10**8, None), (0, 2), (0, 0)])
def test_what_the_task_does_not_have_is_unknown(executor: int, attempt: int | None) -> None:
    service, task = make(MemoryStore())
    with pytest.raises(UnknownLog):
        service.open(task.id, executor, "stdout", attempt=attempt, access=None)


def test_an_earlier_attempt_without_stored_output_is_unknown() -> None:
    log = TaskLog(logs=(ExecutorLog(0, stdout="of the second"),))
    service, task = make(MemoryStore(), attempt=2, state=State.COMPLETE, log=log)
    with pytest.raises(UnknownLog, match="attempt 1 was not kept"):
        service.open(task.id, 0, "stdout", attempt=1, access=None)


@pytest.mark.parametrize("task_id", ["x", "../" * 9, "0" * 26])
def test_unknown_tasks(task_id: str) -> None:
    service, _ = make(MemoryStore())
    for call in (
        lambda: service.available(task_id, access=None),
        lambda: service.open(task_id, 0, "stdout", attempt=None, access=None),
    ):
        with pytest.raises(UnknownTask):
            call()


@pytest.mark.parametrize("store", [None, MemoryStore()])
def test_tasks_of_others_are_unknown_before_anything_is_read(store: MemoryStore | None) -> None:
    service, task = make(store)
    if store is not None:
        store.error = AssertionError("was asked")
    other = Access("eve")
    for call in (
        lambda: service.available(task.id, access=other),
        lambda: service.open(task.id, 0, "stdout", attempt=None, access=other),
        lambda: service.open(task.id, 99, "stdout", attempt=None, access=other),
        lambda: service.is_over(LogRef(task.id, 1, 0, "stdout"), access=other),
    ):
        with pytest.raises(UnknownTask) as caught:
            call()
        assert not isinstance(caught.value, UnknownLog)


def test_a_log_is_over_when_nothing_can_come_any_more() -> None:
    ended = TaskLog(end_time=CLOCK.now())
    for changes, expected in (
        ({"state": State.RUNNING}, False),
        ({"attempt": 2}, True),
        ({"state": State.COMPLETE, "log": ended}, False),
        ({"state": State.COMPLETE, "log": ended, "stage": Stage.DONE}, True),
        ({"state": State.COMPLETE, "log": TaskLog(end_time=CLOCK.now() - timedelta(minutes=1))}, True),
    ):
        service, task = make(MemoryStore(), **changes)
        assert service.is_over(LogRef(task.id, 1, 0, "stdout"), access=None) is expected, changes


# ── retention ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def retention(days: int = 30) -> tuple[LogRetention, MemoryStore, MemoryTaskRepository]:
    store, repository = MemoryStore(), MemoryTaskRepository()
    return LogRetention(repository, store, CLOCK, timedelta(days=days)), store, repository


def add(store: MemoryStore, repository: MemoryTaskRepository, days: float, *, known: bool) -> TaskId:
    created = CLOCK.now() - timedelta(days=days)
    task = Task(new_task_id(created), SPEC, created)
    if known:
        repository.add(task)
    store.streams[LogRef(task.id, 1, 0, "stdout")] = b"x"
    return task.id


def test_logs_of_purged_tasks_are_deleted_and_no_others() -> None:
    purge, store, repository = retention()
    old_unknown = [add(store, repository, 31 + i, known=False) for i in range(5)]
    add(store, repository, 40, known=True)  # still running after a month
    add(store, repository, 29, known=False)  # a store that was restored from a backup must not lose these
    add(store, repository, 1, known=True)
    assert purge.purge() == 5
    assert sorted(store.deleted) == sorted(old_unknown)
    assert purge.purge() == 0 and len(store.streams) == 3


def test_an_unavailable_store_of_tasks_deletes_nothing() -> None:
    purge, store, repository = retention()
    add(store, repository, 31, known=True)
    repository.down = True
    with pytest.raises(RepositoryUnavailable):
        purge.purge()
    assert store.deleted == []


def test_a_log_that_may_not_be_deleted_does_not_stop_the_others() -> None:
    purge, store, repository = retention()
    add(store, repository, 31, known=False)
    store.error = AccessDenied("denied")
    assert purge.purge() == 0
    store.error = StorageUnavailable("away")
    with pytest.raises(StorageUnavailable):
        purge.purge()
    store.error = None
    assert purge.purge() == 1


def test_logs_behind_many_of_tasks_that_are_still_known_are_deleted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SEEN_AT_ONCE", 4)
    purge, store, repository = retention()
    for i in range(20):
        add(store, repository, 60 + i, known=True)
    gone = add(store, repository, 50, known=False)
    assert sum(purge.purge() for _ in range(9)) == 1 and store.deleted == [gone]
    oldest = add(store, repository, 99, known=False)
    assert sum(purge.purge() for _ in range(9)) == 1 and store.deleted == [gone, oldest]


def test_one_call_is_bounded() -> None:
    purge, store, repository = retention()
    for i in range(600):
        add(store, repository, 31 + i / 1000, known=False)
    assert purge.purge() <= 503
    assert purge.purge() > 0
