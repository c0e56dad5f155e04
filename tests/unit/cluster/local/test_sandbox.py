"""The sandbox's new root: what it costs to work out, which happens for each command."""

from __future__ import annotations

import time
from typing import Any

from poiesis.cluster.local.sandbox import Root


def seconds_for(count: int) -> float:
    """Of processor time, the least of three, for a task with so many mounts."""
    mounts: dict[str, dict[str, Any]] = {
        f"/data/{number}": {"kind": "rw", "source": "/srv", "task": True} for number in range(count)
    }
    points = {**mounts, "/root": {"kind": "hidden"}, "/srv/keys": {"kind": "hidden"}}
    times = []
    for _ in range(3):
        begin = time.process_time()
        Root("/nonexistent", ["/usr", "/bin"], points, (0, 0))
        times.append(time.process_time() - begin)
    return min(times)


def test_points_of_a_task_are_not_compared_with_each_other() -> None:
    assert seconds_for(8000) < 30 * seconds_for(1000)  # eight times as many; each with each would take 64 times as long
