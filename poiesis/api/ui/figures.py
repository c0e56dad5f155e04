"""What a task has asked for against what it has used, with a hint in words."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from poiesis.domain.parameters import gpu_count
from poiesis.domain.policy import GIGABYTE
from poiesis.domain.task import Resources, Task
from poiesis.domain.usage import usage_of

NEARLY_ALL: Final = 0.9
_NUMBER: Final = re.compile(r"\d{1,18}(\.\d{1,9})?", re.ASCII)


@dataclass(frozen=True)
class Figure:
    """One resource. `part`: of the request that was used, in per cent at most 100; None: not known."""

    name: str
    asked: str
    used: str
    part: float | None
    hint: str | None = None

    @property
    def level(self) -> str:
        if self.part is None:
            return ""
        return "high" if self.part >= 100 * NEARLY_ALL else "low" if self.part < 25 else "good"


def number(metadata: Mapping[str, str], name: str) -> float | None:
    """A number from the metadata, which is text that a task may have caused."""
    text = metadata.get(name, "")
    return float(text) if _NUMBER.fullmatch(text) else None


def figures(task: Task) -> list[Figure]:
    return [_cpu(task), _memory(task), *_disk(task), *_gpu(task)]


def _cpu(task: Task) -> Figure:
    asked = (task.spec.resources or Resources()).cpu_cores
    usage = usage_of(task)
    cpu, running = usage.get("cpu_seconds"), usage.get("running_seconds", 0.0)
    if cpu is None or running <= 0:
        return Figure("CPU", _cores(asked), _unmeasured(task), None)
    cores = cpu / running
    part = None if not asked else cores / asked
    hint = None
    if part is not None and part < 0.25 and asked is not None and asked >= 2:
        hint = f"It used {cores:.2g} of {asked:g} cores on average: request fewer, and it may start earlier."
    elif part is not None and part >= NEARLY_ALL and running >= 60:
        hint = "It used nearly all of its cores: with more it may finish earlier, if its command can use them."
    return Figure("CPU", _cores(asked), f"{cores:.2g} cores on average", _percent(part), hint)


def _memory(task: Task) -> Figure:
    asked, peak = task.ram_gb, usage_of(task).get("peak_memory_bytes")
    text = "no request" if asked is None else _gigabytes(asked)
    if peak is None:
        return Figure("Memory", text, _unmeasured(task), None)
    used = peak / GIGABYTE
    part = None if not asked else used / asked
    hint = None
    if task.outcome is not None and task.outcome.reason == "OutOfMemory":
        hint = "A command ran out of memory: request more, or set the backend parameter memory_retries."
    elif part is not None and part >= NEARLY_ALL:
        hint = "Its peak was close to the request: a little more data, and it may run out of memory."
    elif part is not None and part < 0.25 and asked is not None and asked >= 1:
        hint = f"Its peak was {_gigabytes(used)} of {_gigabytes(asked)}: request less, and it may start earlier."
    return Figure("Memory", text, f"{_gigabytes(used)} at its peak", _percent(part), hint)


def _disk(task: Task) -> Iterator[Figure]:
    """Only what was transferred is known: commands may have written more."""
    asked = (task.spec.resources or Resources()).disk_gb
    moved = [number(task.log.metadata, f"{name}_bytes") for name in ("inputs", "outputs")]
    known = [value for value in moved if value]
    if asked is None and not known:
        return
    text = "no request" if asked is None else _gigabytes(asked)
    if not known:
        yield Figure("Disk", text, _unmeasured(task), None)
        return
    used = sum(known) / GIGABYTE
    part = None if not asked else used / asked
    hint = None
    if task.outcome is not None and task.outcome.reason in ("DiskLimit", "Evicted"):
        hint = "It wrote more than there was room for: request more disk."
    yield Figure("Disk", text, f"at least {_gigabytes(used)}, its inputs and outputs", _percent(part), hint)


def _gpu(task: Task) -> Iterator[Figure]:
    asked = gpu_count((task.spec.resources or Resources()).backend_parameters)
    if asked:
        yield Figure("GPUs", f"{asked}", "not measured", None)


def _unmeasured(task: Task) -> str:
    return "not measured" if task.state.is_terminal else "not known yet"


def _percent(part: float | None) -> float | None:
    return None if part is None else round(min(100.0, max(0.0, 100 * part)), 1)


def _cores(cores: float | None) -> str:
    if cores is None:
        return "no request"
    return "1 core" if cores == 1 else f"{cores:g} cores"


def _gigabytes(value: float) -> str:
    if value < 0.001:
        return f"{value * 1e6:.0f} kB"
    return f"{value * 1000:.3g} MB" if value < 1 else f"{value:.4g} GB"
