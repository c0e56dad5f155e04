from __future__ import annotations

import os
from pathlib import Path

import pytest

from poiesis.cluster.local.task_directory import (
    TaskDirectory,
    all_directories,
    directories_of,
    read_bounded,
    read_document,
    remove_broken,
    remove_tree,
    write_document,
)
from poiesis.domain.plan import Mount
from poiesis.domain.task import TaskId


def task_dir(tasks: Path, task_id: str = "a", attempt: int = 1) -> TaskDirectory:
    made = TaskDirectory(tasks, TaskId(task_id), attempt)
    made.make()
    return made


def test_documents_are_complete_or_absent(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    assert read_document(path) is None
    write_document(path, {"a": "ä"})
    write_document(path, {"a": "b"})
    assert read_document(path) == {"a": "b"} and os.listdir(tmp_path) == ["x.json"]
    path.write_text("{")
    assert read_document(path) is None


def test_a_document_overwrites_nothing_that_was_planted_under_its_temporary_name(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("kept")
    for plant in (Path.symlink_to, Path.hardlink_to):
        plant(tmp_path / ".x.json.tmp", other)
        write_document(tmp_path / "x.json", {"a": "b"})
        assert other.read_text() == "kept" and read_document(tmp_path / "x.json") == {"a": "b"}


def test_files_that_users_can_write_are_not_trusted(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(b"x" * 11)
    (tmp_path / "link").symlink_to(tmp_path / "large")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "directory").mkdir()
    for name in ("large", "link", "fifo", "directory", "absent", "large/below"):
        assert read_bounded(tmp_path / name, 10) is None, name
    assert read_bounded(tmp_path / "large", 11) == b"x" * 11


def test_a_read_error_is_not_a_missing_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x").touch()

    def no_descriptor(*_: object) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "open", no_descriptor)
    with pytest.raises(OSError, match="Too many"):
        read_bounded(tmp_path / "x", 10)


def test_tasks_with_a_common_prefix_are_kept_apart(tmp_path: Path) -> None:
    for task_id, attempt in (("a", 1), ("a", 2), ("a-1", 2), ("a-1-2", 1)):
        task_dir(tmp_path, task_id, attempt)
    assert [f.name for f in directories_of(tmp_path, TaskId("a"), 2)] == ["poiesis-a-1", "poiesis-a-2"]
    assert [f.name for f in directories_of(tmp_path, TaskId("a-1"), 2)] == ["poiesis-a-1-2"]
    assert {(f.task_id, f.attempt) for f in all_directories(tmp_path)} == {("a", 1), ("a", 2), ("a-1", 2), ("a-1-2", 1)}


def test_every_id_has_its_own_directory(tmp_path: Path) -> None:
    found = task_dir(tmp_path, "../../Etc/passwd \n")
    assert found.path.parent == tmp_path
    assert [f.task_id for f in all_directories(tmp_path)] == ["../../Etc/passwd \n"]


def test_incomplete_directories_are_removed_at_the_start(tmp_path: Path) -> None:
    task_dir(tmp_path)
    (tmp_path / "poiesis-half-1" / "volume").mkdir(parents=True)
    (tmp_path / "unrelated").mkdir()
    remove_broken(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["poiesis-a-1", "unrelated"]


def test_mounts_stay_inside_of_the_volume(tmp_path: Path) -> None:
    found = task_dir(tmp_path)
    (found.volume / "root").mkdir(parents=True)
    assert found.mount_source(Mount("/data/x", "root/data/x")).is_dir()
    (found.volume / "root/in.txt").touch()
    assert found.mount_source(Mount("/in.txt", "root/in.txt", is_file=True)).is_file()
    (found.volume / "root" / "link").symlink_to("/etc")
    for path in ("root/link", "root/link/x", "root/../../task.json", "../state"):
        with pytest.raises(OSError, match="is outside"):
            found.mount_source(Mount("/x", path))


def test_a_file_to_mount_is_neither_created_nor_changed(tmp_path: Path) -> None:
    found = task_dir(tmp_path)
    (found.volume / "root").mkdir(parents=True)
    path = found.volume / "root/out"
    mount = Mount("/etc/out", "root/out", is_file=True)
    with pytest.raises(FileNotFoundError):
        found.mount_source(mount)
    path.touch()
    os.utime(path, ns=(10**9, 10**9))
    assert found.mount_source(mount) == path
    assert path.stat().st_mtime_ns == 10**9


def test_anything_can_be_removed(tmp_path: Path) -> None:
    top = tmp_path / "top"
    deep = top
    for _ in range(30):
        deep = deep / "d"
    deep.mkdir(parents=True)
    (top / "link").symlink_to(tmp_path / "kept")
    (tmp_path / "kept").write_text("kept")
    os.mkfifo(top / "fifo")
    (top / "d").chmod(0)
    assert remove_tree(top) and not top.exists() and (tmp_path / "kept").read_text() == "kept"
    assert remove_tree(top)


def test_the_removal_mark_is_removed_last(tmp_path: Path) -> None:
    found = task_dir(tmp_path)
    found.mark_removing()
    assert TaskDirectory(tmp_path, TaskId("a"), 1).is_removing
    assert found.remove() and not found.exists and found.remove()
