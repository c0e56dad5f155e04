"""The follower beside real launchers, and beside files that user code has forged."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import resource
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from poiesis.config import ARCHITECTURES, LogSettings, shipped_launchers
from poiesis.domain.errors import AccessDenied, StorageUnavailable
from poiesis.domain.task import TaskId
from poiesis.logstore.directory import DirectoryLogStore
from poiesis.logstore.follower import SEGMENT_BYTES, Follower
from poiesis.ports.logs import LogRef, Stream

TASK = TaskId("0" * 26)
SETTINGS = LogSettings(url="file:///unused", interval=timedelta(seconds=0.1), finish=timedelta(seconds=2))


class Store(DirectoryLogStore):
    """Counts writes, and fails on demand."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.writes: list[tuple[int, int]] = []
        self.error: Exception | None = None

    def write(self, ref: LogRef, offset: int, source: int, start: int, size: int) -> None:
        if self.error is not None:
            raise self.error
        super().write(ref, offset, source, start, size)
        self.writes.append((offset, size))


@dataclass
class Bench:
    control: Path
    store: Store
    settings: LogSettings = SETTINGS
    stop: threading.Event = field(default_factory=threading.Event)
    results: list[str | None] = field(default_factory=list)
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def follow(self, *executors: int, grace_s: float = 1.0, resumes: bool = False) -> threading.Thread:
        follower = Follower(self.store, str(self.control), TASK, 1, executors or (0,), self.settings, resumes=resumes)
        thread = threading.Thread(
            target=lambda: self.results.append(follower.run(self.stop.is_set, time.sleep, grace_s)), daemon=True
        )
        thread.start()
        return thread

    def launch(self, script: str, *options: object, name: str = "executor-0") -> subprocess.Popen[bytes]:
        launcher = shipped_launchers()[ARCHITECTURES[platform.machine()]]
        words = [
            launcher,
            "--name",
            name,
            "--control",
            self.control,
            "--keep-output",
            self.settings.max_bytes,
            *options,
        ]
        process = subprocess.Popen([*map(str, words), "--", "/bin/sh", "-c", script], stdout=-3, stderr=-3)
        self.processes.append(process)
        return process

    def record(self, name: str = "executor-0", **fields: Any) -> None:
        document = {"name": name, "started": "2026-01-01T00:00:00Z", "stdout_bytes": 0, "stderr_bytes": 0} | fields
        (self.control / f"{name}.json").write_text(json.dumps(document))

    def ref(self, executor: int = 0, stream: Stream = "stdout") -> LogRef:
        return LogRef(TASK, 1, executor, stream)

    def stored(self, stream: Stream = "stdout", executor: int = 0) -> bytes:
        ref, position, data = self.ref(executor, stream), 0, b""
        while found := self.store.chunks(ref, position).chunks:
            for chunk in found:
                assert chunk.offset <= position  # the last one may have grown
                start = position - chunk.offset
                data += self.store.read(ref, chunk, start, chunk.size_bytes - start)
                position = chunk.end
        return data

    def until(self, data: bytes, seconds: float = 10) -> float:
        started = time.monotonic()
        while self.stored() != data:
            assert time.monotonic() - started < seconds, self.stored()[-100:]
            time.sleep(0.01)
        return time.monotonic() - started


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    (tmp_path / "control").mkdir()
    made = Bench(tmp_path / "control", Store(tmp_path / "logs"))
    yield made
    made.stop.set()
    for process in made.processes:
        process.kill()
        process.wait()


def test_output_without_a_newline_is_stored_while_the_command_runs(bench: Bench) -> None:
    bench.follow()
    process = bench.launch(r"printf '\r 10%%'; sleep 1; printf '\r 20%%'; sleep 30")
    bench.until(b"\r 10%", 2)
    bench.until(b"\r 10%\r 20%", 3)
    process.terminate()


def test_the_end_stores_the_rest_and_marks_both_streams(bench: Bench) -> None:
    thread = bench.follow()
    bench.launch("echo out; echo err >&2").wait()
    thread.join(5)
    assert bench.results == [None]
    assert (bench.stored(), bench.stored("stderr")) == (b"out\n", b"err\n")
    for log in bench.store.logs(TASK):
        assert log.is_complete and not log.is_truncated
    assert not list(bench.control.glob("*.stdout.5"))


def test_executors_that_follow_each_other(bench: Bench) -> None:
    thread = bench.follow(0, 1, 2)
    bench.launch("echo 0").wait()
    bench.launch("echo 1; exit 3", name="executor-1").wait()
    bench.launch("echo never", "--wait", "executor-1", name="executor-2").wait()
    thread.join(5)
    assert bench.results == [None]
    assert [(log.ref.executor, log.size_bytes) for log in bench.store.logs(TASK)] == [(0, 0), (0, 2), (1, 0), (1, 2)]


def test_a_large_log_is_moved_in_constant_memory_and_few_chunks(bench: Bench) -> None:
    size = 200_000_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    thread = bench.follow()
    process = bench.launch(f"head -c {size} /dev/zero", "--keep-backlog", 2 * SEGMENT_BYTES)
    most = 0
    while process.poll() is None:
        most = max(most, len(list(bench.control.glob("executor-0.stdout.*"))))
        time.sleep(0.005)
    thread.join(20)
    log = bench.store.log(bench.ref())
    assert (log.size_bytes, log.is_complete, log.is_truncated) == (size, True, False)
    assert most <= 4
    assert len(bench.store.chunks(bench.ref(), 0).chunks) < 100
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 8 * 1024  # KiB


def test_a_trickle_costs_one_write_each_interval_and_little_is_written_again(bench: Bench) -> None:
    bench.settings = replace(SETTINGS, interval=timedelta(seconds=0.2))
    bench.record()
    (bench.control / "executor-0.json").unlink()
    path = bench.control / "executor-0.stdout.0"
    path.touch()
    bench.follow()
    started = time.monotonic()
    with path.open("ab", buffering=0) as file:
        while time.monotonic() - started < 2:
            file.write(b"x" * 1000)
            time.sleep(0.01)
    assert len(bench.store.writes) <= 2 / 0.2 + 2


def test_what_is_beyond_the_bound_is_truncated_and_marked(bench: Bench) -> None:
    bench.settings = replace(SETTINGS, max_bytes=1000)
    thread = bench.follow()
    bench.launch("head -c 5000 /dev/zero; printf x >&2").wait()
    thread.join(5)
    out, err = bench.store.log(bench.ref()), bench.store.log(bench.ref(stream="stderr"))
    assert (out.size_bytes, out.is_complete, out.is_truncated) == (1000, True, True)
    assert (err.size_bytes, err.is_complete, err.is_truncated) == (1, True, False)


def test_a_killed_launcher_ends_its_log_as_truncated(bench: Bench) -> None:
    thread = bench.follow()
    process = bench.launch("echo so far; sleep 60")
    bench.until(b"so far\n")
    process.kill()
    thread.join(5)
    log = bench.store.log(bench.ref())
    assert (log.size_bytes, log.is_complete, log.is_truncated) == (7, True, True)


def test_sigterm_waits_for_the_command_and_not_longer_than_the_grace(bench: Bench) -> None:
    thread = bench.follow(grace_s=0.5)
    process = bench.launch("trap '' TERM; echo running; sleep 60")
    bench.until(b"running\n")
    started = time.monotonic()
    bench.stop.set()
    thread.join(5)
    assert 0.4 < time.monotonic() - started < 2
    assert bench.results == ["the executors had not ended in time"]
    assert not bench.store.log(bench.ref()).is_complete
    process.kill()


def test_a_dead_store_is_given_up_in_bounded_time_after_the_end(bench: Bench) -> None:
    bench.settings = replace(SETTINGS, finish=timedelta(seconds=0.5))
    bench.store.error = StorageUnavailable("no route to host")
    thread = bench.follow()
    bench.launch("echo lost").wait()
    started = time.monotonic()
    thread.join(5)
    assert time.monotonic() - started < 2
    assert bench.results == ["no route to host"]


def test_a_store_that_comes_back_gets_everything(bench: Bench) -> None:
    bench.store.error = StorageUnavailable("starting")
    bench.follow()
    process = bench.launch("echo one; sleep 1; echo two; sleep 60")
    time.sleep(1.5)
    bench.store.error = None
    bench.until(b"one\ntwo\n", 10)
    process.kill()


def test_a_refusal_ends_it_before_the_command_does(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("poiesis.logstore.follower.MAX_BACKOFF_S", 0.05)
    bench.store.error = AccessDenied("s3://logs: access denied")
    thread = bench.follow()
    process = bench.launch("echo x; sleep 60")
    thread.join(5)
    assert bench.results == ["s3://logs: access denied"]
    process.kill()


def test_another_process_continues_where_one_was_killed(bench: Bench) -> None:
    first = bench.follow()
    process = bench.launch("head -c 9000000 /dev/zero; printf abc; sleep 2; printf def")
    bench.until(bytes(9000000) + b"abc")
    bench.stop.set()  # as if killed: what it does afterwards changes nothing
    first.join(5)
    bench.stop = threading.Event()
    second = bench.follow(resumes=True)
    process.wait()
    second.join(5)
    assert bench.stored() == bytes(9000000) + b"abcdef"
    assert bench.store.log(bench.ref()).is_complete


# ── what user code can put into the control directory ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["link", "link to a file", "fifo", "directory", "socket", "hard link"])
def test_only_regular_files_are_read(bench: Bench, tmp_path: Path, kind: str) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    name = bench.control / "executor-0.stdout.0"
    if kind == "link":
        name.symlink_to("/etc/passwd")
    elif kind == "link to a file":
        name.symlink_to(secret)
    elif kind == "fifo":
        os.mkfifo(name)
    elif kind == "socket":
        os.mknod(name, stat.S_IFSOCK | 0o600)
    elif kind == "directory":
        name.mkdir()
    else:
        (bench.control / "other").write_text("own")
        os.link(bench.control / "other", name)
    bench.record(stdout_bytes=6)
    bench.follow().join(5)
    assert bench.results == [None]
    assert bench.stored() == (b"own" if kind == "hard link" else b"")
    assert bench.store.log(bench.ref()).is_truncated
    assert secret.read_text() == "secret"


def test_a_huge_sparse_file_costs_no_more_than_the_bound(bench: Bench) -> None:
    bench.settings = replace(SETTINGS, max_bytes=20_000_000)
    for number in range(5):
        with (bench.control / f"executor-0.stdout.{number}").open("wb") as file:
            file.truncate(1 << 40)
    bench.record(stdout_bytes=1 << 60)
    bench.follow().join(10)
    log = bench.store.log(bench.ref())
    assert (log.size_bytes, log.is_truncated) == (20_000_000, True)


def test_a_file_that_shrinks_ends_the_log(bench: Bench) -> None:
    path = bench.control / "executor-0.stdout.0"
    path.write_bytes(b"0123456789")
    thread = bench.follow()
    bench.until(b"0123456789")
    path.write_bytes(b"01")
    time.sleep(0.3)
    path.write_bytes(b"0123456789 forged")
    bench.record(stdout_bytes=17)
    thread.join(5)
    assert bench.stored() == b"0123456789"
    assert bench.store.log(bench.ref()).is_truncated


def test_names_of_executors_that_the_pod_does_not_have_are_ignored(bench: Bench) -> None:
    for name in ("executor-7.stdout.0", "tif.stdout.0", "executor-0.stdin.0", "executor-0.stdout.x"):
        (bench.control / name).write_text("forged")
    bench.record()
    bench.follow(0).join(5)
    assert [log.size_bytes for log in bench.store.logs(TASK)] == [0, 0]


@pytest.mark.parametrize(
    "record", [b"", b"not json", b"[" * 100_000, b'{"stdout_bytes": "x"}', b'{"stdout_bytes": true}', b"\xff" * 100]
)
def test_a_forged_record_only_ends_the_own_log(bench: Bench, record: bytes) -> None:
    (bench.control / "executor-0.stdout.0").write_bytes(b"own")
    (bench.control / "executor-0.json").write_bytes(record)
    bench.follow().join(5)
    assert bench.stored() == b"own" or b"{" in record
    assert bench.results == [None]


def test_a_record_that_is_a_fifo_or_a_link_counts_as_missing(bench: Bench) -> None:
    os.mkfifo(bench.control / "executor-0.json")
    bench.stop.set()
    thread = bench.follow(grace_s=0.3)
    thread.join(5)
    assert not thread.is_alive() and bench.results == ["the executors had not ended in time"]


def test_a_lock_held_by_user_code_is_outlived(bench: Bench) -> None:
    path = bench.control / "executor-0.up"
    path.write_text("locked\n")
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        bench.stop.set()
        thread = bench.follow(grace_s=0.3)
        thread.join(5)
        assert not thread.is_alive()


def test_segments_removed_by_user_code_only_lose_its_log(bench: Bench) -> None:
    thread = bench.follow()
    (bench.control / "executor-0.stdout.1").write_bytes(b"without the first one")
    bench.record(stdout_bytes=10)
    thread.join(5)
    assert bench.stored() == b"" and bench.store.log(bench.ref()).is_truncated
