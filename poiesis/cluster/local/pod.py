"""A pod as this adapter stores it on disk: all that is needed to run it, also after a restart, without the task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from poiesis.config import LogSettings
from poiesis.domain.naming import object_name
from poiesis.domain.observed import TIF, TOF
from poiesis.domain.plan import ContainerPlan, Mount, Plan, PodPlan
from poiesis.domain.policy import GIGABYTE, Policy
from poiesis.domain.quotas import whole_units
from poiesis.domain.report import ROOT
from poiesis.domain.task import Task, TaskId


@dataclass(frozen=True)
class Command:
    """An executor's command. `time_limit_s` None: no limit; `memory_bytes` None: all of the machine's memory. `keep_…`: of its whole
    output, for a log store; 0: none."""

    image: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    workdir: str | None = None
    stdin: str | None = None
    stdout: str | None = None
    stderr: str | None = None
    ignore_error: bool = False
    time_limit_s: float | None = None
    grace_s: float = 10.0
    tail_bytes: int = 16 * 1024
    memory_bytes: int | None = None
    keep_bytes: int = 0
    keep_backlog: int = 0
    keep_stall_s: float = 0.0


@dataclass(frozen=True)
class Member:
    """A container of the pod. `command` None: a filer. `waits_for`: containers that have to succeed first, unless `always`.
    `time_limit_s`: of a filer (None: of a pod that was written before there was one)."""

    name: str
    command: Command | None = None
    waits_for: tuple[str, ...] = ()
    always: bool = False
    time_limit_s: float | None = None

    @property
    def is_filer(self) -> bool:
        return self.command is None


@dataclass(frozen=True)
class LocalPod:
    """`members` in the order in which they run. `disk_bytes`: limit of its files (None: of a pod that was written before there was a
    limit)."""

    task_id: TaskId
    attempt: int
    part: str
    members: tuple[Member, ...]
    mounts: tuple[Mount, ...] = ()
    disk_bytes: int | None = None

    @property
    def name(self) -> str:
        return object_name(self.task_id, self.attempt, self.part)

    @property
    def key(self) -> tuple[TaskId, int, str]:
        return (self.task_id, self.attempt, self.part)

    @property
    def images(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(m.command.image for m in self.members if m.command is not None))

    def document(self) -> dict[str, Any]:
        return asdict(self)


def make_pod(task: Task, plan: Plan, pod: PodPlan, policy: Policy, logs: LogSettings | None = None) -> LocalPod:
    memory = None if task.ram_gb is None else whole_units(task.ram_gb, GIGABYTE)
    containers = (*pod.init, *pod.containers)
    members = [_member(task, plan, c, memory, policy, logs) for c in containers]
    return LocalPod(
        task_id=task.id,
        attempt=task.attempt,
        part=pod.part,
        members=tuple(members),
        mounts=(*plan.mounts, *(Mount(path, f"{ROOT}{path}") for path in plan.scratch)),
        disk_bytes=plan.volume_bytes or policy.default_disk_bytes,
    )


def _member(
    task: Task, plan: Plan, container: ContainerPlan, memory: int | None, policy: Policy, logs: LogSettings | None
) -> Member:
    command = time_limit_s = None
    if container.executor is not None:
        executor = task.spec.executors[container.executor]
        command = Command(
            image=executor.image,
            argv=executor.command,
            env=dict(executor.env),
            workdir=executor.workdir,
            stdin=executor.stdin,
            stdout=executor.stdout,
            stderr=executor.stderr,
            ignore_error=executor.ignore_error,
            time_limit_s=plan.time_limit.total_seconds() if plan.time_limit is not None else None,
            grace_s=policy.grace.total_seconds(),
            tail_bytes=policy.tail_bytes,
            memory_bytes=memory,
            keep_bytes=0 if logs is None else logs.max_bytes,
            keep_backlog=0 if logs is None else logs.backlog_bytes,
            keep_stall_s=0.0 if logs is None else logs.max_stall.total_seconds(),
        )
    elif container.name not in (TIF, TOF):
        raise AssertionError(f"no such filer: {container.name}")
    else:
        time_limit_s = policy.staging_deadline(container.name == TIF).total_seconds()
    return Member(container.name, command, container.waits_for, container.always, time_limit_s)


def read_pod(document: Mapping[str, Any]) -> LocalPod:
    """The pod of a `LocalPod.document`. Raises: KeyError, TypeError when the document is not valid."""
    members = []
    for item in document["members"]:
        command = item["command"]
        if command is not None:
            known = {k: v for k, v in command.items() if k != "cpu_cores"}  # which earlier versions stored
            command = Command(**{**known, "argv": tuple(command["argv"])})
        limit = item.get("time_limit_s")
        members.append(Member(item["name"], command, tuple(item["waits_for"]), item["always"], limit))
    mounts = tuple(Mount(**m) for m in document["mounts"])
    fields = {name: document[name] for name in ("task_id", "attempt", "part")}
    return LocalPod(**fields, members=tuple(members), mounts=mounts, disk_bytes=document.get("disk_bytes"))
