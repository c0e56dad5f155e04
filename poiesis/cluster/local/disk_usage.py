"""Disk space of a running command, measured at intervals: an ordinary user has no quotas to give a directory.

Not counted: files deleted while they are open, and what lies in directories that this process may not read.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

SLICE_SECONDS: Final = 0.02  # per measurement; a large tree takes several
MIN_ENTRY_BYTES: Final = 4096  # what an entry counts at least, so that empty files are bounded too
MAX_PENDING: Final = 100_000  # directories seen and not yet read; more count as above any limit


class DiskUsage:
    """Of everything below `directories`, without following links."""

    def __init__(self, *directories: Path, limit_bytes: int) -> None:
        self._directories = [str(d) for d in directories]
        self._limit_bytes = limit_bytes
        self._walk = self._sizes()
        self._bytes = 0

    def is_exceeded(self) -> bool:
        """Continue measuring for a moment; True as soon as the total since the start of the walk is above the limit."""
        deadline = time.monotonic() + SLICE_SECONDS
        for size in self._walk:
            self._bytes += size
            if self._bytes > self._limit_bytes:
                return True
            if time.monotonic() > deadline:
                return False
        self._walk, self._bytes = self._sizes(), 0
        return False

    def _sizes(self) -> Iterator[int]:
        pending = list(self._directories)
        while pending:
            try:
                entries = os.scandir(pending.pop())
            except OSError:
                continue
            with entries:
                for entry in entries:
                    try:
                        status = entry.stat(follow_symlinks=False)
                    except OSError:
                        continue
                    is_directory = stat.S_ISDIR(status.st_mode)
                    if is_directory:
                        pending.append(entry.path)
                    links = 1 if is_directory else max(1, status.st_nlink)
                    yield self._limit_bytes + 1 if len(pending) > MAX_PENDING else _bytes(status, links)


def _bytes(status: os.stat_result, links: int) -> int:
    return max(MIN_ENTRY_BYTES, status.st_blocks * 512) // links
