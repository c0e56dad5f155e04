"""What a task has used, as figures."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from poiesis.domain.task import Executor, ExecutorLog, Resources, Task, TaskId, TaskLog, TaskSpec
from poiesis.domain.usage import usage_of

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


def ended(resources: Resources | None, **metadata: str) -> Task:
    begin = NOON + timedelta(seconds=5)
    logs = (ExecutorLog(0, begin, begin + timedelta(seconds=10)),)
    spec = TaskSpec((Executor("alpine", ("true",)),), resources=resources)
    return Task(TaskId("t"), spec, NOON, log=TaskLog(logs=logs, metadata=metadata))


@pytest.mark.parametrize(
    ("resources", "cpu_idle", "ram_idle"),
    [
        (Resources(cpu_cores=2, ram_gb=4), 15.0, 30.0),
        (Resources(cpu_cores=0.1, ram_gb=0.5), 0.0, 0.0),
        (Resources(), None, None),
        (None, None, None),
    ],
)
def test_idle_is_what_was_requested_and_not_used(resources, cpu_idle, ram_idle):
    used = {"executor_0_cpu_seconds": "5", "executor_0_peak_memory_bytes": "1000000000"}
    figures = usage_of(ended(resources, **used))
    assert figures.get("cpu_core_seconds_idle") == cpu_idle
    assert figures.get("ram_gb_seconds_idle") == ram_idle


def test_nothing_counts_as_idle_where_the_use_is_not_known():
    figures = usage_of(ended(Resources(cpu_cores=2, ram_gb=4)))
    assert figures["cpu_core_seconds_requested"] == 20.0
    assert not {"cpu_core_seconds_idle", "ram_gb_seconds_idle"} & figures.keys()


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [({"inputs_bytes": "1024"}, 1024.0), ({"inputs_bytes": "0"}, 0.0), ({"outputs_bytes": "5"}, None), ({}, None)],
)
def test_bytes_of_inputs_are_those_that_were_staged(metadata: dict[str, str], expected: float | None):
    assert usage_of(ended(None, **metadata)).get("input_bytes") == expected
