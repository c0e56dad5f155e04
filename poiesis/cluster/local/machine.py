"""What this machine has for tasks."""

from __future__ import annotations

import os
import shutil
from datetime import datetime
from pathlib import Path

from poiesis.domain.capacity import Capacity
from poiesis.domain.quotas import Amount


def cores() -> int:
    return len(os.sched_getaffinity(0))


def memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def capacity(directory: Path, requested: Amount, at: datetime) -> Capacity:
    """`requested`: by the tasks in flight, whose files are below `directory`."""
    whole = Amount(millicores=1000 * cores(), memory_bytes=memory_bytes())
    disk = shutil.disk_usage(directory)
    return Capacity(at, 1, 1, 1, whole, requested, whole, disk.total, disk.free)
