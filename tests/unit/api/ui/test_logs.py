"""The page of logs without JavaScript: the end of each output as text, and which log it is."""

from __future__ import annotations

from typing import Any

import pytest

from poiesis.domain.errors import StorageUnavailable
from poiesis.domain.states import Stage, State
from poiesis.domain.task import ExecutorLog, TaskLog
from poiesis.ports.logs import Chunk, ChunkPage, LogRef, StoredLog
from tests.unit.api.service import HELLO, Site

TWO = {**HELLO, "executors": [*HELLO["executors"], {"image": "alpine", "command": ["second", "<b>"]}]}


class Kept:
    """A log store with the same output for everything."""

    def __init__(self, content: bytes, *, complete: bool = True) -> None:
        self.content, self.complete = content, complete
        self.read_bytes = 0
        self.is_down = False

    def log(self, ref: LogRef) -> StoredLog:
        if self.is_down:
            raise StorageUnavailable("the bucket does not answer")
        return StoredLog(ref, len(self.content), self.complete)

    def logs(self, task_id: str) -> list[StoredLog]:
        return []

    def chunks(self, ref: LogRef, position: int) -> ChunkPage:
        return ChunkPage((Chunk(0, len(self.content)),), self.complete)

    def read(self, ref: LogRef, chunk: Chunk, start: int, size: int) -> bytes:
        self.read_bytes += size
        return self.content[start : start + size]

    def close(self) -> None:
        pass


def with_store(content: bytes, **more: Any) -> tuple[Site, Kept]:
    store = Kept(content, **more)
    return Site(logs=store), store  # type: ignore[arg-type]


def test_only_the_end_of_a_large_log_is_read():
    site, store = with_store(b"".join(b"line %09d\n" % n for n in range(500_000)))
    text = site.client.get(f"/ui/tasks/{site.create()}/logs").text
    assert "line 000499999" in text and "line 000400000" not in text
    assert "7.5 MB; the end is shown" in text
    assert store.read_bytes <= 2 * 32 * 1024
    assert len(text) < 100_000


def test_streams_attempts_and_executors_are_chosen_by_the_address():
    site, _ = with_store(b"out\n")
    task_id = site.create(TWO)
    site.change(task_id, attempt=3)
    path = f"/ui/tasks/{task_id}/logs"
    both = site.client.get(path).text
    assert f"/poiesis/v1/tasks/{task_id}/logs/0/stdout?attempt=3&amp;download=true" in both and "logs/0/stderr" in both
    one = site.client.get(path + "?attempt=2&executor=1&stream=stderr").text
    assert "logs/1/stderr?attempt=2" in one and "logs/1/stdout" not in one
    assert "second &lt;b&gt;" in one
    for query in (
        "attempt=0",
        "attempt=4",
        "attempt=x",
        "executor=2",
        "executor=-1",
        "attempt=99999999999",
        "executor=%C2%B2",
    ):
        assert site.client.get(f"{path}?{query}").status_code == 400, query


def test_the_executor_that_failed_or_runs_is_shown_first():
    site, _ = with_store(b"x")
    task_id = site.create(TWO)
    site.change(task_id, state=State.RUNNING, log=TaskLog((ExecutorLog(0),)))
    assert "logs/1/stdout" in site.client.get(f"/ui/tasks/{task_id}/logs").text
    site.change(task_id, log=TaskLog((ExecutorLog(3),)), state=State.EXECUTOR_ERROR)
    assert "logs/0/stdout" in site.client.get(f"/ui/tasks/{task_id}/logs").text


@pytest.mark.parametrize("attempt", [1, 2500, 5000])
def test_of_very_many_attempts_those_around_the_chosen_one_can_be_chosen(attempt):
    site, _ = with_store(b"out\n")
    task_id = site.create()
    site.change(task_id, attempt=5000)
    text = site.client.get(f"/ui/tasks/{task_id}/logs?attempt={attempt}").text
    assert text.count(" of 5000</option>") == 1000
    assert f'<option value="{attempt}" selected>' in text


def test_without_a_log_store_the_page_says_so_and_what_to_set(site):
    task_id = site.create()
    at = site.clock.now()
    log = TaskLog((ExecutorLog(0, at, at, "the tail\n", "\x1b[31mred\x1b[0m\n"),))
    site.change(task_id, state=State.COMPLETE, stage=Stage.DONE, wake_at=None, log=log)
    text = site.client.get(f"/ui/tasks/{task_id}/logs").text
    assert "only the last 16.4 kB of each output" in text and "POIESIS_LOGS__URL" in text
    assert "the tail" in text and "red" in text and "\x1b" not in text
    site.change(task_id, attempt=2)
    assert "the output of attempt 1 was not kept" in site.client.get(f"/ui/tasks/{task_id}/logs?attempt=1").text


def test_a_log_store_that_does_not_answer_leaves_the_page_usable():
    site, store = with_store(b"x")
    task_id = site.create()
    store.is_down = True
    page = site.client.get(f"/ui/tasks/{task_id}/logs")
    assert page.status_code == 200 and "the bucket does not answer" in page.text


@pytest.mark.parametrize(
    "content", [b"\x80" * 100_000, b"\xff\xfe\x00", "ü".encode() * 50_000, b"\n" * 100_000, b"x" * 40_000 + b"\n"]
)
def test_output_that_is_not_text_is_shown_all_the_same(content):
    site, _ = with_store(content)
    assert site.client.get(f"/ui/tasks/{site.create()}/logs").status_code == 200
