"""Limits in control groups of both versions, on fake directories instead of the kernel's."""

from __future__ import annotations

from pathlib import Path

import pytest

from poiesis.cluster.local.cgroups import Groups


@pytest.mark.parametrize(
    ("version", "memory", "limits"),
    [
        (1, "memory", {"memory/x/memory.limit_in_bytes": "1000", "pids/x/pids.max": "5"}),
        (2, "unified", {"unified/x/memory.max": "1000", "unified/x/memory.swap.max": "0", "unified/x/pids.max": "5"}),
    ],
)
def test_memory_and_processes_are_limited(tmp_path: Path, version: int, memory: str, limits: dict[str, str]) -> None:
    parents = {"memory": tmp_path / memory, "pids": tmp_path / ("pids" if version == 1 else memory)}
    for parent in parents.values():
        parent.mkdir(exist_ok=True)
    group = Groups(version, parents).make("x", memory_bytes=1000, max_processes=5)
    assert {path: (tmp_path / path).read_text() for path in limits} == limits
    assert group.shown[0][1] == tmp_path / memory / "x"
    assert len(group.members) == (2 if version == 1 else 1)


def test_without_a_memory_controller_processes_are_limited(tmp_path: Path) -> None:
    Groups(1, {"pids": tmp_path}).make("x", memory_bytes=1000, max_processes=5)
    assert [p.name for p in (tmp_path / "x").iterdir()] == ["pids.max"]
