"""What is counted and traced of a task when it is saved: by the process whose save it was, so once."""

from __future__ import annotations

from poiesis import tracing
from poiesis.domain.history import Phase
from poiesis.domain.states import Stage
from poiesis.domain.task import Task
from poiesis.domain.timeline import timeline
from poiesis.metrics import PHASE_SECONDS, STAGED_BYTES, STAGED_FILES, TASKS_ENDED, known_reason

DIRECTIONS = (("in", "inputs"), ("out", "outputs"))


def count_saved(before: Task, saved: Task) -> None:
    """`before`: the task that the save replaced."""
    has_ended = saved.state.is_terminal and not before.state.is_terminal
    if has_ended:
        _count_ended(saved)
    phases = ended_phases(before, saved)
    if phases or has_ended:
        tracing.phases(saved, phases, has_ended=has_ended)
    for phase in phases:
        if phase.end is not None:
            PHASE_SECONDS.labels(phase.name.split(" ")[0]).observe((phase.end - phase.start).total_seconds())


def ended_phases(before: Task, saved: Task) -> list[Phase]:
    """What this save completed: all phases but the last cleanup when the task ends, and that when everything is gone."""
    if not saved.state.is_terminal:
        return []
    ended, gone = not before.state.is_terminal, saved.stage is Stage.DONE and before.stage is not Stage.DONE
    return [p for p in timeline(saved) if (gone if p.name == "cleanup" and p.attempt == saved.attempt else ended)]


def _count_ended(task: Task) -> None:
    TASKS_ENDED.labels(task.state.value, known_reason(task.log.metadata.get("failure_reason"))).inc()
    for direction, prefix in DIRECTIONS:
        for counter, unit in ((STAGED_BYTES, "bytes"), (STAGED_FILES, "files")):
            text = task.log.metadata.get(f"{prefix}_{unit}", "")
            counter.labels(direction).inc(int(text) if text.isdecimal() else 0)
