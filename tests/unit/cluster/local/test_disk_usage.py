"""Measuring the disk space of a command's files."""

from __future__ import annotations

from pathlib import Path

import pytest

from poiesis.cluster.local import disk_usage
from poiesis.cluster.local.disk_usage import MIN_ENTRY_BYTES, DiskUsage


def write(path: Path, size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)


def test_bytes_on_disk_count_in_all_directories(tmp_path: Path) -> None:
    write(tmp_path / "a/deep/er/file", 100_000)
    write(tmp_path / "b/file", 100_000)
    assert not DiskUsage(tmp_path / "a", limit_bytes=150_000).is_exceeded()
    assert DiskUsage(tmp_path / "a", tmp_path / "b", tmp_path / "missing", limit_bytes=150_000).is_exceeded()


def test_empty_files_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_usage, "SLICE_SECONDS", 60.0)  # one look is enough however slow the disk is
    for n in range(100):
        (tmp_path / str(n)).touch()
    assert not DiskUsage(tmp_path, limit_bytes=100 * MIN_ENTRY_BYTES).is_exceeded()
    assert DiskUsage(tmp_path, limit_bytes=100 * MIN_ENTRY_BYTES - 1).is_exceeded()


def test_hard_links_count_once_and_symbolic_links_are_not_followed(tmp_path: Path) -> None:
    write(tmp_path / "outside/file", 1_000_000)
    write(tmp_path / "in/file", 100_000)
    for n in range(9):
        (tmp_path / f"in/link-{n}").hardlink_to(tmp_path / "in/file")
    (tmp_path / "in/elsewhere").symlink_to(tmp_path / "outside")
    assert not DiskUsage(tmp_path / "in", limit_bytes=120_000).is_exceeded()


def test_a_long_measurement_continues_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(10):
        write(tmp_path / str(n), 10_000)
    monkeypatch.setattr(disk_usage, "SLICE_SECONDS", -1.0)
    usage = DiskUsage(tmp_path, limit_bytes=80_000)
    looks = [usage.is_exceeded() for _ in range(9)]
    assert looks[:5] == [False] * 5 and looks[-1]


def test_removed_files_do_not_count_in_the_next_measurement(tmp_path: Path) -> None:
    write(tmp_path / "file", 90_000)
    usage = DiskUsage(tmp_path, limit_bytes=100_000)
    assert not usage.is_exceeded()
    (tmp_path / "file").unlink()
    write(tmp_path / "other", 90_000)
    assert not usage.is_exceeded()


def test_too_many_directories_exceed_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_usage, "MAX_PENDING", 10)
    for n in range(11):
        (tmp_path / str(n)).mkdir()
    assert DiskUsage(tmp_path, limit_bytes=10**9).is_exceeded()
