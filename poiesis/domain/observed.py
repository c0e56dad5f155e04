"""What is observed of a task in a cluster, independent of the kind of cluster. `decide` has no other input from outside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from poiesis.domain.report import FilerReport

TIF = "tif"  # names of containers
TOF = "tof"
NODE_UNREACHABLE = "NodeUnreachable"  # why a task waits: a pod that is deleted stays, because its node is silent
DISK_LIMIT = "DiskLimit"  # why a pod was lost: it wrote more outside of the task's volume than allowed


def executor_name(index: int) -> str:
    return f"executor-{index}"


def is_of_task(name: str) -> bool:
    """Whether a container runs a filer or an executor, in contrast to those that the site or its cluster adds to a pod."""
    return name in (TIF, TOF) or name.startswith("executor-")


class Phase(StrEnum):
    """Of a container, in any cluster."""

    WAITING = "waiting"
    RUNNING = "running"
    ENDED = "ended"


@dataclass(frozen=True)
class Record:
    """A launcher's closing record (launcher/README.md). User code can forge it: it is bounded, and trusted only for its own task.

    `exit_code` None: the command was never started, for the `reason` Skipped, WaitTimeout, Terminated or AlreadyBegun.
    """

    name: str
    ok: bool
    exit_code: int | None
    reason: str | None = None
    message: str | None = None
    oom_killed: bool = False
    started_at: datetime | None = None
    ended_at: datetime | None = None
    peak_memory_bytes: int | None = None
    cpu_seconds: float | None = None
    stdout: str = ""
    stderr: str = ""
    truncated: bool = False


@dataclass(frozen=True)
class Container:
    """One container. `reason` and `message` come from the cluster, while it waits or after it ended without a record."""

    name: str
    phase: Phase
    reason: str | None = None
    message: str | None = None
    exit_code: int | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    record: Record | None = None


class Room(StrEnum):
    """Of a pod that is not scheduled: why no node takes it. Absent: not known."""

    BUSY = "busy"  # a node that could run it has no room now
    NO_NODE = "no_node"  # no node could run it even if it was empty


@dataclass(frozen=True)
class Pod:
    """A pod, or its counterpart on a single machine.

    `lost`: why the infrastructure removed it, in CamelCase (evicted, preempted, node lost, deleted by another process). `waiting`: why
    it is not scheduled yet (`Unschedulable: 0/3 nodes …`), and `room` what that means. `queued`: a queue with a quota holds it back.
    `lost_to_queue`: that queue took back what the pod had, so its node is not the reason. `deletion_due`: when a pod that is being
    deleted should be gone, if its node is another machine. `ended`: none of its containers runs or will run.
    `log_problem`: why the whole output of its executors is not stored; the task goes on.
    """

    name: str
    attempt: int
    part: str  # "task" in the single layout; "tif", "executors", "tof", "tof-2" in the staged one
    created_at: datetime | None = None
    scheduled: bool = False
    scheduled_at: datetime | None = None
    node: str | None = None
    queued: bool = False
    waiting: str | None = None
    room: Room | None = None
    lost: str | None = None
    lost_to_queue: bool = False
    message: str | None = None
    deleting: bool = False
    deletion_due: datetime | None = None
    ended: bool = False
    containers: tuple[Container, ...] = ()
    log_problem: str | None = None

    def container(self, name: str) -> Container | None:
        return next((c for c in self.containers if c.name == name), None)

    def record(self, name: str) -> Record | None:
        container = self.container(name)
        return container.record if container is not None else None


@dataclass(frozen=True)
class Observed:
    """All objects of one task in the cluster, of all attempts. What is missing here does not exist: an adapter whose cache may be stale
    asks the cluster first.

    `others` are the names of what exists beside pods: volumes, documents. `reports` maps "tif" and "tof" to their reports of the current
    attempt. `tails` are the last output of running executors, by container name: (stdout, stderr).
    """

    pods: tuple[Pod, ...] = ()
    others: tuple[str, ...] = ()
    reports: Mapping[str, FilerReport] = field(default_factory=dict)
    tails: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        return not (self.pods or self.others)

    def pod(self, part: str, attempt: int) -> Pod | None:
        return next((p for p in self.pods if p.part == part and p.attempt == attempt), None)
