from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from poiesis.cluster.local.pod import LocalPod, make_pod, read_pod
from poiesis.cluster.local.runtime import launcher_arguments
from poiesis.domain.plan import plan
from poiesis.domain.policy import Policy
from poiesis.domain.task import Executor, Input, Output, Resources, Task, TaskId, TaskSpec

POLICY = Policy(grace=timedelta(seconds=3), tail_bytes=100)


def pods(spec: TaskSpec, *, memory_scale: int = 1) -> list[LocalPod]:
    task = Task(TaskId("a"), spec, datetime(2026, 1, 1, tzinfo=UTC), attempt=2, memory_scale=memory_scale)
    the_plan = plan(spec, POLICY)
    return [make_pod(task, the_plan, p, POLICY) for p in the_plan.pods]


FULL = TaskSpec(
    executors=(
        Executor("image", ("a", "--b", ""), "/w", "/data/in", "/data/out", "/data/err", {"A": "1\n2"}, True),
        Executor("image", ("c",)),
        Executor("other", ("d",)),
    ),
    inputs=(Input("/data/in", content="x"), Input("/in.txt", content="x")),
    outputs=(Output("/data/out", "file:///x"),),
    resources=Resources(cpu_cores=1.5, ram_gb=2, backend_parameters={"time_limit": "90s"}),
)


def test_a_pod_survives_its_document() -> None:
    for pod in pods(FULL):
        assert read_pod(json.loads(json.dumps(pod.document()))) == pod


def test_an_invalid_pod_is_refused() -> None:
    with pytest.raises((KeyError, TypeError)):
        read_pod({})


def test_members_are_in_the_order_of_their_turns() -> None:
    (pod,) = pods(FULL)
    assert pod.name == "poiesis-a-2-task" and pod.images == ("image", "other")
    assert [m.name for m in pod.members] == ["tif", "executor-0", "executor-1", "executor-2", "tof"]
    assert [m.is_filer for m in pod.members] == [True, False, False, False, True]
    assert pod.members[4].always and pod.members[2].waits_for == ("executor-0",)


def test_filers_have_the_deadlines_of_the_policy() -> None:
    (pod,) = pods(FULL)
    assert [m.time_limit_s for m in pod.members] == [86400, None, None, None, 86400]


@pytest.mark.parametrize(
    ("ram_gb", "scale", "limit"), [(2, 1, 2_000_000_000), (2, 4, 8_000_000_000), (8.3, 1, 8_300_000_000)]
)
def test_the_memory_limit_is_that_of_the_attempt(ram_gb: float, scale: int, limit: int) -> None:
    (pod,) = pods(replace(FULL, resources=Resources(ram_gb=ram_gb)), memory_scale=scale)
    assert {m.command.memory_bytes for m in pod.members if m.command is not None} == {limit}


def test_the_launchers_command_line() -> None:
    (pod,) = pods(FULL)
    command = pod.members[1].command
    assert command is not None
    assert launcher_arguments("/l", "/c", "executor-0", command, command.workdir, cgroup_root="/g") == [
        "/l", "--name", "executor-0", "--control", "/c", "--tail-bytes", "100", "--grace", "3.000", "--log-stall", "0",
        "--stdin", "/data/in", "--stdout", "/data/out", "--stderr", "/data/err", "--workdir", "/w", "--time-limit", "90.000",
        "--cgroup-root", "/g", "--cgroup", "--ignore-error", "--", "a", "--b", "",
    ]  # fmt: skip
