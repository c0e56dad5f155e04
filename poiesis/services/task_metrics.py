"""What is counted of a task when it is saved: by the process whose save it was, so once."""

from __future__ import annotations

from poiesis.domain.task import Task
from poiesis.metrics import STAGED_BYTES, STAGED_FILES, TASKS_ENDED, known_reason

DIRECTIONS = (("in", "inputs"), ("out", "outputs"))


def count_saved(before: Task, saved: Task) -> None:
    """`before`: the task that the save replaced."""
    if saved.state.is_terminal and not before.state.is_terminal:
        _count_ended(saved)


def _count_ended(task: Task) -> None:
    TASKS_ENDED.labels(task.state.value, known_reason(task.log.metadata.get("failure_reason"))).inc()
    for direction, prefix in DIRECTIONS:
        for counter, unit in ((STAGED_BYTES, "bytes"), (STAGED_FILES, "files")):
            text = task.log.metadata.get(f"{prefix}_{unit}", "")
            counter.labels(direction).inc(int(text) if text.isdecimal() else 0)
