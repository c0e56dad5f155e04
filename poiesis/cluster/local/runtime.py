"""The interface of a runtime, which runs commands on one machine: plain processes, docker or podman.

A `Run` is one executor of one attempt. It determines from disk or from the engine whether an earlier process started it, so that a
command is never started twice.
"""

from __future__ import annotations

import os
import select
import threading
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from poiesis.cluster.local.pod import Command, LocalPod, Member
from poiesis.cluster.local.task_directory import TaskDirectory
from poiesis.domain.policy import LONGEST


class RunState(StrEnum):
    ABSENT = "absent"  # may be started
    RUNNING = "running"
    ENDED = "ended"  # must not be started again


@dataclass(frozen=True)
class Ending:
    """How a command ended, as observed from outside; used only when there is no record."""

    oom_killed: bool = False
    message: str | None = None


class StartFailed(Exception):
    """The command was not started. `reason` is CamelCase, the message is for people."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Signal:
    """Requests that a supervisor stop; a supervisor can wait for it and a file descriptor together."""

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._lock = threading.Lock()
        self._set = False
        self._closed = False

    def set(self) -> None:
        with self._lock:
            if not self._set and not self._closed:
                os.eventfd_write(self._fd, 1)
            self._set = True

    @property
    def is_set(self) -> bool:
        return self._set

    def wait(self, seconds: float, fd: int | None = None) -> bool:
        """Wait until it is set, `fd` is readable or the time is over; True when `fd` is readable. A signal that is set already
        does not end the wait."""
        poll = select.poll()
        if not self._set:
            poll.register(self._fd, select.POLLIN)
        if fd is not None:
            poll.register(fd, select.POLLIN)
        return any(found == fd for found, _ in poll.poll(max(0.0, seconds) * 1000))

    def close(self) -> None:
        """For the waiting side, once it stops waiting. Counts as set; `set` may still be called."""
        with self._lock:
            self._closed = self._set = True
            os.close(self._fd)


class Run(Protocol):
    def state(self) -> RunState: ...

    def start(self) -> None:
        """Start the launcher, detached from this process. Raises: StartFailed."""

    def wait(self, stop: Signal, seconds: float) -> bool:
        """Wait until the command has ended (True), or `stop` becomes set or the time is over (False)."""

    def terminate(self) -> None:
        """Send SIGTERM to the launcher, which gives the command its grace period."""

    def kill(self) -> None: ...

    def ending(self) -> Ending: ...

    def tails(self) -> tuple[str, str]:
        """The current ends of stdout and stderr."""

    def clean(self) -> None:
        """Remove what is left outside of the task's directory, and the scratch space. May be repeated."""


class Runtime(Protocol):
    """What returns here is for runtimes that need not do it."""

    pulls: bool
    """Whether images have to be pulled before a command can start."""

    def describe(self) -> str:
        """Describe to users what runs the commands and what it does not isolate."""

    def probe(self) -> None:
        """Run a trial command. Raises: StartFailed."""

    def pull(self, image: str) -> None:
        """Pull an image unless it is present. Raises: StartFailed (`ErrImagePull`, `ImageRefused`)."""
        return

    def run(self, task_dir: TaskDirectory, pod: LocalPod, member: Member) -> Run: ...

    def hand_over(self, task_dir: TaskDirectory) -> None:
        """Before the first executor: make the volume's files writable for the commands."""
        return

    def take_back(self, task_dir: TaskDirectory) -> None:
        """Before TOF or the removal: make the volume's files readable and removable for this process."""
        return

    def release(self, task_dir: TaskDirectory) -> None:
        """Before a task's directory is removed: remove what exists of it elsewhere. Raises: StartFailed."""

    def sweep(self, existing: set[str]) -> None:
        """At the start: remove what belongs to task directories that no longer exist. `existing`: names of those that do."""
        return

    def close(self) -> None:
        """Running commands continue."""


def launcher_arguments(
    launcher: str, control: str, name: str, command: Command, workdir: str | None, *, cgroup_root: str | None = None
) -> list[str]:
    """The launcher's command line for one executor (launcher/README.md), which runs the command as soon as it is started.

    `launcher`, `control` and `cgroup_root` are paths as the launcher sees them.
    """
    options = {
        "--name": name,
        "--control": control,
        "--tail-bytes": str(command.tail_bytes),
        "--grace": f"{command.grace_s:.3f}",
        "--log-stall": "0",
        "--stdin": command.stdin,
        "--stdout": command.stdout,
        "--stderr": command.stderr,
        "--workdir": workdir,
        "--time-limit": None
        if command.time_limit_s is None
        else f"{min(command.time_limit_s, LONGEST.total_seconds()):.3f}",
        "--cgroup-root": cgroup_root,
    }
    words = [word for option, value in options.items() if value is not None for word in (option, value)]
    if command.keep_bytes:
        words += ["--keep-output", str(command.keep_bytes), "--keep-backlog", str(command.keep_backlog)]
        words += ["--keep-stall", f"{command.keep_stall_s:.3f}"]
    words += ["--cgroup"] if cgroup_root is not None else []
    words += ["--ignore-error"] if command.ignore_error else []
    return [launcher, *words, "--", *command.argv]
