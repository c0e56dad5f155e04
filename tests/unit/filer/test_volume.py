"""Walking directories of a volume."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from poiesis.filer import volume
from poiesis.filer.volume import Volume

DEPTH = 200


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_deep_directory_needs_one_descriptor_a_level(tmp_path: Path) -> None:
    deepest = tmp_path / "root" / "/".join(["d"] * DEPTH)
    deepest.mkdir(parents=True)
    (deepest / "file").write_text("x")
    tree = Volume(tmp_path)
    before = open_files()
    found = [(entry.path, open_files() - before) for entry in tree.walk("/d")]
    assert [path for path, _ in found] == ["/d" * DEPTH + "/file"]
    assert found[0][1] <= DEPTH + 3
    assert open_files() == before
    tree.close()


def test_directories_of_any_size_are_walked_completely(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(volume, "LISTED", 3)
    names = {f"/d/{name}/{i}" for name in ("few", "many/more") for i in range(2 if name == "few" else 20)}
    for name in names:
        path = tmp_path / f"root{name}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    (tmp_path / "root/d/empty").mkdir()
    tree = Volume(tmp_path)
    found = [(entry.path, entry.is_directory) for entry in tree.walk("/d")]
    assert sorted(found) == sorted([(name, False) for name in names] + [("/d/empty", True)])
    tree.close()
