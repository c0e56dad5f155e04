"""Limits of memory and processes, and usage, of plain processes: by the kernel's control groups where this process may create some.

Version 2: a group below our own (or the nearest one above that can be written). Version 1: a group in each hierarchy. Where no controller
can be used there is no limit, and `find` returns None.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MOUNT: Final = Path("/sys/fs/cgroup")
_FILES_1: Final = {"memory": "memory.limit_in_bytes", "pids": "pids.max", "cpuacct": "cpuacct.usage"}
_FILES_2: Final = {"memory": "memory.max", "pids": "pids.max"}
_MEMORY_FILES: Final = {
    1: ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes"),
    2: ("memory.max", "memory.swap.max"),
}


@dataclass(frozen=True)
class Group:
    """One command's. `members`: where its first process enters. `shown`: what its launcher reads below `--cgroup-root`:
    name → directory."""

    members: tuple[Path, ...]
    shown: tuple[tuple[str, Path], ...]

    def kill_count(self) -> int:
        """How many of its processes the kernel killed because they were out of memory."""
        for directory in self.members:
            for name in ("memory.events", "memory.oom_control"):
                with contextlib.suppress(OSError, ValueError):
                    for line in (directory / name).read_text().splitlines():
                        if line.startswith("oom_kill "):
                            return int(line.split()[1])
        return 0

    def remove(self) -> bool:
        """Once its processes are gone and have been reaped. False: not yet."""
        return all([_remove(directory) for directory in self.members])


@dataclass(frozen=True)
class Groups:
    """Where groups can be made: controller (`memory`, `pids`, `cpuacct`) → parent directory."""

    version: int
    parents: Mapping[str, Path]

    def group(self, name: str) -> Group:
        members = tuple(dict.fromkeys(parent / name for parent in self.parents.values()))
        if self.version == 2:
            return Group(members, (("", members[0]),))
        return Group(members, tuple((c, self.parents[c] / name) for c in ("memory", "cpuacct") if c in self.parents))

    def make(self, name: str, *, memory_bytes: int | None, max_processes: int) -> Group:
        """Raises: OSError."""
        group = self.group(name)
        for directory in group.members:
            directory.mkdir(exist_ok=True)
        if "pids" in self.parents:
            (self.parents["pids"] / name / "pids.max").write_text(str(max_processes))
        if memory_bytes is not None and "memory" in self.parents:
            limit, swap = _MEMORY_FILES[self.version]
            (self.parents["memory"] / name / limit).write_text(str(memory_bytes))
            with contextlib.suppress(OSError):  # no swap, or none that is counted
                (self.parents["memory"] / name / swap).write_text("0" if self.version == 2 else str(memory_bytes))
        return group


def _remove(directory: Path) -> bool:
    for _ in range(50):
        try:
            directory.rmdir()
        except FileNotFoundError:
            return True
        except OSError:
            time.sleep(0.01)
        else:
            return True
    return False


def find() -> Groups | None:
    """Where this process can create groups that limit memory or processes; None: nowhere."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    own = {c: path for _, controllers, path in (line.split(":", 2) for line in lines) for c in controllers.split(",")}
    parents: dict[str, Path] = {}
    for controller, file in _FILES_1.items():
        for parent in _upwards(MOUNT / controller, own[controller]) if controller in own else ():
            if _works(parent, file):
                parents[controller] = parent
                break
    if parents.keys() & {"memory", "pids"}:
        return Groups(1, parents)
    for parent in _upwards(MOUNT, own[""]) if "" in own else ():
        for controller in _FILES_2:
            with contextlib.suppress(OSError):
                (parent / "cgroup.subtree_control").write_text(f"+{controller}")
        if found := [c for c, file in _FILES_2.items() if _works(parent, file)]:
            return Groups(2, dict.fromkeys(found, parent))
    return None


def _upwards(mount: Path, own: str) -> Iterator[Path]:
    """Our own group and those above it. In a container the path may be the host's, which does not exist here."""
    path = mount / own.lstrip("/")
    while path != mount:
        if path.is_dir():
            yield path
        path = path.parent
    if mount.is_dir():
        yield mount


def _works(parent: Path, file: str) -> bool:
    if not os.access(parent, os.W_OK) or not os.access(parent / "cgroup.procs", os.W_OK):
        return False
    trial = parent / f"poiesis-trial-{os.getpid()}"
    try:
        trial.mkdir()
    except OSError:
        return False
    try:
        return os.access(trial / file, os.R_OK) and os.access(trial / "cgroup.procs", os.W_OK)
    finally:
        with contextlib.suppress(OSError):
            trial.rmdir()
