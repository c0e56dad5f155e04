"""Admission of pods: first come, first served, within the capacity of the machine.

A pod at the head of the queue that does not fit blocks those behind it, so that small pods never starve a large one. A pod that requests
more than the machine has is treated as requesting all of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Capacity:
    pods: int
    cpu_cores: float
    memory_bytes: int


def machine_capacity(max_parallel: int | None) -> Capacity:
    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Capacity(max_parallel or 2 * cores, float(cores), memory)


class Admission(Generic[K]):
    """Not thread-safe: callers hold a lock. `start` is called for each key that is admitted."""

    def __init__(self, capacity: Capacity, start: Callable[[K], None]) -> None:
        self._capacity = capacity
        self._start = start
        self._waiting: dict[K, tuple[float, int]] = {}  # in order of arrival
        self._running: dict[K, tuple[float, int]] = {}

    def __contains__(self, key: K) -> bool:
        return key in self._waiting or key in self._running

    def is_waiting(self, key: K) -> bool:
        return key in self._waiting

    def add(self, key: K, cpu_cores: float, memory_bytes: int) -> None:
        self._waiting[key] = (min(cpu_cores, self._capacity.cpu_cores), min(memory_bytes, self._capacity.memory_bytes))
        self._admit()

    def adopt(self, key: K, cpu_cores: float, memory_bytes: int) -> None:
        """Add a pod that is running already, whether or not it fits."""
        self._running[key] = (min(cpu_cores, self._capacity.cpu_cores), min(memory_bytes, self._capacity.memory_bytes))
        self._start(key)

    def remove(self, key: K) -> None:
        """Remove a pod that has ended or is not to run."""
        self._waiting.pop(key, None)
        self._running.pop(key, None)
        self._admit()

    def why_waiting(self, key: K) -> str:
        """One sentence for the task's system log, the same as long as it waits."""
        cpu, memory = self._waiting.get(key, (0.0, 0))
        asks = [f"{cpu:g} CPUs"] if cpu else []
        asks += [f"{memory / 1e9:g} GB of memory"] if memory else []
        wants = f" for {' and '.join(asks)}" if asks else ""
        return f"Waiting for free capacity on this machine{wants}: other tasks are running."

    def _fits(self, cpu_cores: float, memory_bytes: int) -> bool:
        running = self._running.values()
        return (
            len(self._running) < self._capacity.pods
            and sum(c for c, _ in running) + cpu_cores <= self._capacity.cpu_cores + 1e-9
            and sum(m for _, m in running) + memory_bytes <= self._capacity.memory_bytes
        )

    def _admit(self) -> None:
        while self._waiting:
            key, (cpu_cores, memory_bytes) = next(iter(self._waiting.items()))
            if not self._fits(cpu_cores, memory_bytes):
                return
            del self._waiting[key]
            self._running[key] = (cpu_cores, memory_bytes)
            self._start(key)
