"""What a task that has ended has used, as figures for accounting."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Final

from poiesis.domain.task import Task

_CPU_SECONDS: Final = re.compile(r"executor_\d+_cpu_seconds")
_PEAK_MEMORY: Final = re.compile(r"executor_\d+_peak_memory_bytes")
_INPUT_BYTES: Final = re.compile("inputs_bytes")


def usage_of(task: Task) -> Mapping[str, float]:
    """Figures of a task that has ended; what is not known is left out.

    | Figure | Meaning |
    |---|---|
    | `waiting_seconds` | from creation to the start of the first command; of a task that never ran, to its end |
    | `running_seconds` | from the start of the first command to the end of the last |
    | `cpu_seconds` | used by the commands |
    | `cpu_core_seconds_requested` | `cpu_cores` times `running_seconds` |
    | `ram_gb_seconds_requested` | `ram_gb` times `running_seconds` |
    | `cpu_core_seconds_idle`, `ram_gb_seconds_idle` | what was requested and not used; of memory, more than the peak |
    | `peak_memory_bytes` | the largest of any command |
    | `input_bytes` | of all files that were downloaded or written as inputs, in the last attempt |
    | `output_bytes` | of all files uploaded |
    """
    starts = [entry.start_time for entry in task.log.logs if entry.start_time is not None]
    ends = [entry.end_time for entry in task.log.logs if entry.end_time is not None]
    begun = min(starts, default=task.log.end_time)
    running = _seconds(min(starts), max(ends)) if starts and ends else 0.0
    cores = task.spec.requested.cpu_cores
    cpu = _numbers(task, _CPU_SECONDS)
    memory = _numbers(task, _PEAK_MEMORY)
    peak = max(memory, default=None)
    asked_cores = None if cores is None else cores * running
    idle_ram = None if task.ram_gb is None or peak is None else max(0.0, task.ram_gb - peak / 1e9) * running
    inputs = _numbers(task, _INPUT_BYTES)
    figures = {
        "waiting_seconds": _seconds(task.created_at, begun),
        "running_seconds": running,
        "cpu_seconds": sum(cpu) if cpu else None,
        "cpu_core_seconds_requested": asked_cores,
        "cpu_core_seconds_idle": None if asked_cores is None or not cpu else max(0.0, asked_cores - sum(cpu)),
        "ram_gb_seconds_requested": None if task.ram_gb is None else task.ram_gb * running,
        "ram_gb_seconds_idle": idle_ram,
        "peak_memory_bytes": peak,
        "input_bytes": max(inputs, default=None),
        "output_bytes": float(sum(item.size_bytes for item in task.log.outputs)),
    }
    return {name: value for name, value in figures.items() if value is not None}


def with_whole_numbers(figures: Mapping[str, float]) -> dict[str, float]:
    """The figures, with bytes and the number of tasks as integers."""
    return {
        name: round(value) if name == "tasks" or name.endswith("_bytes") else value for name, value in figures.items()
    }


def _seconds(begin: datetime, end: datetime | None) -> float:
    return 0.0 if end is None else max(0.0, (end - begin).total_seconds())


def _numbers(task: Task, name: re.Pattern[str]) -> list[float]:
    return [float(value) for key, value in task.log.metadata.items() if name.fullmatch(key)]
