"""What a cluster says about one attempt of a task, in words of no vendor. `decide` reads nothing else of the world."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from poiesis.domain.report import FilerReport

TIF = "tif"  # names of containers
TOF = "tof"


def executor_name(index: int) -> str:
    return f"executor-{index}"


class Phase(StrEnum):
    """Of a container, whichever cluster runs it."""

    WAITING = "waiting"
    RUNNING = "running"
    ENDED = "ended"


@dataclass(frozen=True)
class Record:
    """A launcher's closing record (launcher/README.md). It crosses the user's reach: bounded, and trusted for its own task alone.

    `exit_code` None: the command was never started (`reason` says why: Skipped, WaitTimeout, Terminated, AlreadyBegun).
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
    """One container of the attempt. `reason` and `message` are the cluster's while it waits or after it ended without a record."""

    name: str
    phase: Phase
    reason: str | None = None
    message: str | None = None
    exit_code: int | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    record: Record | None = None


@dataclass(frozen=True)
class Pod:
    """What holds containers: a pod, or its counterpart on a single machine.

    `lost` says that the infrastructure took it away (evicted, preempted, node gone, deleted by somebody): its reason in CamelCase.
    `waiting` is why it has no node yet (`Unschedulable: 0/3 nodes …`). `ended`: no container of it runs or will run.
    """

    name: str
    attempt: int
    part: str  # "task" in the single layout; "tif", "executors", "tof", "tof-2" in the staged one
    created_at: datetime | None = None
    scheduled: bool = False
    node: str | None = None
    waiting: str | None = None
    lost: str | None = None
    message: str | None = None
    deleting: bool = False
    ended: bool = False
    containers: tuple[Container, ...] = ()

    def container(self, name: str) -> Container | None:
        return next((c for c in self.containers if c.name == name), None)


@dataclass(frozen=True)
class Observed:
    """Everything of one task in the cluster, all attempts. Absence is certain: an adapter that only guesses looks again first.

    `volumes` and `documents` are names of what exists beside the pods. `reports` maps "tif" and "tof" to what they said
    in the present attempt. `tails` are live ends of running executors' output, by container name: (stdout, stderr).
    """

    pods: tuple[Pod, ...] = ()
    volumes: tuple[str, ...] = ()
    documents: tuple[str, ...] = ()
    reports: Mapping[str, FilerReport] = field(default_factory=dict)
    tails: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        return not (self.pods or self.volumes or self.documents)

    def pod(self, part: str, attempt: int) -> Pod | None:
        return next((p for p in self.pods if p.part == part and p.attempt == attempt), None)
