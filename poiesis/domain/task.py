"""A TES task as it is stored: the request (`TaskSpec`), its progress (`Task`) and its results (`TaskLog`).

Everything is frozen; a change is a new value made by `dataclasses.replace` and saved by compare-and-set on `Task.version`.
Field names are the spec's. Times are aware UTC. Sizes are bytes unless the spec's name says otherwise (`disk_gb`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from functools import cached_property
from typing import NewType

from poiesis.domain.history import MAX_REASON, Change, Phase, with_change
from poiesis.domain.patterns import PathPattern
from poiesis.domain.quotas import Claim
from poiesis.domain.states import Stage, State

TaskId = NewType("TaskId", str)
Version = NewType("Version", int)


class FileType(StrEnum):
    """Spec: tesFileType."""

    FILE = "FILE"
    DIRECTORY = "DIRECTORY"


class View(StrEnum):
    """Spec: parameter `view`."""

    MINIMAL = "MINIMAL"
    BASIC = "BASIC"
    FULL = "FULL"


@dataclass(frozen=True)
class Executor:
    """Spec: tesExecutor. `command` is argv, never a shell line. Paths are absolute paths in the container."""

    image: str
    command: tuple[str, ...]
    workdir: str | None = None
    stdin: str | None = None
    stdout: str | None = None
    stderr: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    ignore_error: bool = False


@dataclass(frozen=True)
class Input:
    """Spec: tesInput. `content` takes precedence over `url`; empty `content` is only kept where there is no `url`. `type` None: not given;
    the filer checks what the URL refers to."""

    path: str
    url: str | None = None
    content: str | None = None
    type: FileType | None = None
    name: str | None = None
    description: str | None = None
    streamable: bool | None = None


@dataclass(frozen=True)
class Output:
    """Spec: tesOutput. `path` may contain wildcards and escapes, parsed in `pattern`; with wildcards, `path_prefix` is set and `url` is
    that of a directory."""

    path: str
    url: str
    path_prefix: str | None = None
    type: FileType | None = None
    name: str | None = None
    description: str | None = None

    @cached_property
    def pattern(self) -> PathPattern:
        return PathPattern(self.path)


@dataclass(frozen=True)
class Resources:
    """Spec: tesResources. None: not requested. Gigabytes are 10^9 bytes. `backend_parameters` has only supported keys."""

    cpu_cores: float | None = None
    ram_gb: float | None = None
    disk_gb: float | None = None
    preemptible: bool | None = None
    zones: tuple[str, ...] = ()
    backend_parameters: Mapping[str, str] = field(default_factory=dict)
    backend_parameters_strict: bool | None = None


@dataclass(frozen=True)
class TaskSpec:
    """The request (spec: tesTask without the server's fields)."""

    executors: tuple[Executor, ...]
    name: str | None = None
    description: str | None = None
    inputs: tuple[Input, ...] = ()
    outputs: tuple[Output, ...] = ()
    resources: Resources | None = None
    volumes: tuple[str, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def requested(self) -> Resources:
        """The resources; without any, those that request nothing."""
        return self.resources or Resources()


@dataclass(frozen=True)
class ExecutorLog:
    """Spec: tesExecutorLog, of an executor that has ended or (exit_code None, never shown to clients) still runs.

    `stdout` and `stderr` are tails, bounded by `Policy.tail_bytes`.
    """

    exit_code: int | None
    start_time: datetime | None = None
    end_time: datetime | None = None
    stdout: str = ""
    stderr: str = ""


@dataclass(frozen=True)
class OutputFileLog:
    """Spec: tesOutputFileLog; one file, directories flattened."""

    url: str
    path: str
    size_bytes: int


@dataclass(frozen=True)
class TaskLog:
    """Spec: tesTaskLog. A task has exactly one; attempts stay inside it."""

    logs: tuple[ExecutorLog, ...] = ()
    outputs: tuple[OutputFileLog, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    start_time: datetime | None = None
    end_time: datetime | None = None
    system_logs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """How the task, or with `retry` only this attempt, will end. The state changes in the finish stage.

    `reason` is a CamelCase word (`OutOfMemory`, `ImagePullFailed`, …) that goes to `metadata.failure_reason`; None: no failure.
    """

    state: State
    reason: str | None = None
    message: str | None = None
    retry: bool = False


@dataclass(frozen=True)
class TaskSummary:
    """What the view MINIMAL shows."""

    id: TaskId
    state: State


@dataclass(frozen=True)
class Task:
    """One stored task."""

    id: TaskId
    spec: TaskSpec
    created_at: datetime
    state: State = State.QUEUED
    stage: Stage = Stage.PREPARE
    """What has to happen next."""
    stage_since: datetime | None = None
    wake_at: datetime | None = None
    """When resync reconciles the task at the latest: every task that is not done has one, so none is forgotten, except where it waits for
    admission."""
    attempt: int = 1
    """From 1; part of the names of objects in the cluster."""
    version: Version = Version(0)
    """Counts saves; 0: never stored."""
    nonce: str = ""
    """Required in a poke, see `poke_nonce`."""
    owner: str | None = None
    groups: tuple[str, ...] = ()
    """Those of the owner at creation, whose members may see the task."""
    cancel_requested_at: datetime | None = None
    """A request beside the state."""
    layout: str | None = None
    """Set once planned, so that all stages of an attempt agree."""
    part: str | None = None
    """The launched pod that the task waits for."""
    waiting: str | None = None
    """The reason for no progress, `Reason: message`."""
    waiting_since: datetime | None = None
    memory_scale: int = 1
    """Multiplies `ram_gb` after out-of-memory retries."""
    uploads: int = 1
    """Uploads that this attempt has started, from 1."""
    launching_at: datetime | None = None
    """When a process claimed the right to create the next pod."""
    claim: Claim | None = None
    """What the task holds of the site's quotas, from its admission until its state is final; None: it does not wait for admission."""
    preemptions: int = 0
    """Attempts that were lost with their node on preemptible capacity."""
    on_demand: bool = False
    """Whether the task no longer uses preemptible capacity."""
    most_ram_gb: float | None = None
    """What out-of-memory retries may ask for at most."""
    outcome: Outcome | None = None
    log: TaskLog = field(default_factory=TaskLog)
    history: tuple[Change, ...] = ()
    """The first and the last of all changes."""
    changes: int = 0
    """How many there were."""
    trace: str | None = None
    """`traceparent` of the request that created the task, where traces are recorded (`poiesis.tracing`)."""
    phases: tuple[Phase, ...] = ()
    """Times that `domain.timeline` needs and nothing else keeps."""

    @property
    def ram_gb(self) -> float | None:
        """The request of this attempt, never less than that of the first; None: no request."""
        asked = self.spec.requested.ram_gb
        if asked is None or self.memory_scale == 1:
            return asked
        scaled = asked * self.memory_scale
        return scaled if self.most_ram_gb is None else max(asked, min(scaled, self.most_ram_gb))

    @property
    def memory_retries(self) -> int:
        """How many attempts ran out of memory and were repeated with twice as much."""
        return self.memory_scale.bit_length() - 1

    @property
    def is_preemptible(self) -> bool:
        """Whether this attempt runs on preemptible capacity."""
        return bool(self.spec.requested.preemptible) and not self.on_demand

    @property
    def reason(self) -> str | None:
        """Why the task waits or how it failed, as in `history`."""
        if not self.state.is_terminal:
            return self.waiting
        if self.outcome is None or self.outcome.reason is None:
            return None
        return f"{self.outcome.reason}: {self.outcome.message}" if self.outcome.message else self.outcome.reason

    def recorded(self, at: datetime) -> Task:
        """This task with its change, if there is one, added to the history. To be called before each save, on the version that was read."""
        last = self.history[-1] if self.history else None
        if last is not None:
            if last.shows(self.state, self.reason):
                return self
            at = max(at, last.at)  # clocks of processes differ
        reason = None if self.reason is None else self.reason[:MAX_REASON]
        history = with_change(self.history, Change(self.version + 1, at, self.state, reason))
        return replace(self, history=history, changes=self.changes + 1)

    @property
    def poke_nonce(self) -> str:
        """The nonce in pokes of this attempt's containers: a force-deleted pod may keep running for a while and still poke."""
        return f"{self.nonce}-{self.attempt}-{self.uploads}"

    @property
    def due_stage(self) -> Stage:
        """The stage to act on now: a cancel request goes straight to the finish."""
        if self.cancel_requested_at is not None and not self.stage.is_ending:
            return Stage.FINISH
        return self.stage
