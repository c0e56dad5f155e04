"""Memory limits and usage of plain processes, by the kernel's control groups where this process may make some.

Version 2: a group below our own (or the nearest one above that may be written) with the memory controller. Version 1: groups below our own
in the hierarchies `memory` and `cpuacct`. Where neither works there is no limit, and `find` says so with None.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MOUNT: Final = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Group:
    """One command's. `members`: where its first process enters. `shown`: what its launcher reads below `--cgroup-root`:
    name → directory."""

    members: tuple[Path, ...]
    shown: tuple[tuple[str, Path], ...]

    def kill_count(self) -> int:
        """How many of its processes the kernel killed for want of memory."""
        for directory in self.members:
            for name in ("memory.events", "memory.oom_control"):
                with contextlib.suppress(OSError, ValueError):
                    for line in (directory / name).read_text().splitlines():
                        if line.startswith("oom_kill "):
                            return int(line.split()[1])
        return 0

    def remove(self) -> bool:
        """Once its processes are gone; they count as there until somebody has reaped them. False: not yet."""
        return all([_remove(directory) for directory in self.members])


@dataclass(frozen=True)
class Groups:
    """Where groups can be made. `cpuacct` None: version 2, or usage of CPU is not kept."""

    version: int
    memory: Path
    cpuacct: Path | None = None

    def group(self, name: str) -> Group:
        directory = self.memory / name
        if self.version == 2:
            return Group((directory,), (("", directory),))
        shown = [("memory", directory)]
        if self.cpuacct is not None:
            shown.append(("cpuacct", self.cpuacct / name))
        return Group(tuple(path for _, path in shown), tuple(shown))

    def make(self, name: str, memory_bytes: int | None) -> Group:
        """Raises: OSError."""
        group = self.group(name)
        for directory in group.members:
            directory.mkdir(exist_ok=True)
        if memory_bytes is not None:
            if self.version == 2:
                (self.memory / name / "memory.max").write_text(str(memory_bytes))
                with contextlib.suppress(OSError):
                    (self.memory / name / "memory.swap.max").write_text("0")
            else:
                (self.memory / name / "memory.limit_in_bytes").write_text(str(memory_bytes))
                with contextlib.suppress(OSError):
                    (self.memory / name / "memory.memsw.limit_in_bytes").write_text(str(memory_bytes))
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
    """Where this process may make groups that limit memory; None: nowhere."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    own = {c: path for _, controllers, path in (line.split(":", 2) for line in lines) for c in controllers.split(",")}
    if "memory" in own:
        for memory in _upwards(MOUNT / "memory", own["memory"]):
            if _works(memory, "memory.limit_in_bytes"):
                cpu = next(
                    (p for p in _upwards(MOUNT / "cpuacct", own.get("cpuacct", "/")) if _works(p, "cpuacct.usage")),
                    None,
                )
                return Groups(1, memory, cpu)
    if "" in own:
        for memory in _upwards(MOUNT, own[""]):
            with contextlib.suppress(OSError):
                (memory / "cgroup.subtree_control").write_text("+memory")
            if _works(memory, "memory.max"):
                return Groups(2, memory)
    return None


def _upwards(mount: Path, own: str) -> Iterator[Path]:
    """Our own group and those above it. In a container the path may be the host's, of which nothing is seen here."""
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
