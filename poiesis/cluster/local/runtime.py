"""What a way of running commands on one machine has to offer: plain processes, docker or podman.

A `Run` is one executor of one attempt. It finds out by itself, from what is on disk or what the engine says, whether it was started in
an earlier life of this process, so that a command is never started twice.
"""

from __future__ import annotations

import os
import select
import threading
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from poiesis.cluster.local.pod import LocalPod, Member
from poiesis.cluster.local.task_directory import TaskDirectory


class RunState(StrEnum):
    ABSENT = "absent"  # it may be started
    RUNNING = "running"
    ENDED = "ended"  # nothing of it runs any more, and it must not be started again


@dataclass(frozen=True)
class Ending:
    """What the outside knows of how a command ended; only asked for when there is no record."""

    oom_killed: bool = False
    message: str | None = None


class StartFailed(Exception):
    """The command was not begun. `reason` in CamelCase, the text for people."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Signal:
    """Tells a supervisor that it is to stop; what it waits for may be a descriptor too."""

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
        """Until it is set, or `fd` is readable, or the time is over. True when `fd` is readable. Set already: does not watch itself."""
        poll = select.poll()
        if not self._set:
            poll.register(self._fd, select.POLLIN)
        if fd is not None:
            poll.register(fd, select.POLLIN)
        return any(found == fd for found, _ in poll.poll(max(0.0, seconds) * 1000))

    def close(self) -> None:
        """By the one who waits, when it will not wait any more. Counts as set; `set` may still come."""
        with self._lock:
            self._closed = self._set = True
            os.close(self._fd)


class Run(Protocol):
    def state(self) -> RunState: ...

    def start(self) -> None:
        """Start the launcher, detached from this process. Raises: StartFailed."""
        ...

    def wait(self, stop: Signal, seconds: float) -> bool:
        """Until it has ended (True), or `stop` is newly set, or the time is over (False)."""
        ...

    def terminate(self) -> None:
        """SIGTERM to the launcher, which gives the command its grace."""
        ...

    def kill(self) -> None: ...

    def ending(self) -> Ending: ...

    def tails(self) -> tuple[str, str]:
        """Live ends of stdout and stderr."""
        ...

    def clean(self) -> None:
        """Remove what is left of it outside of its folder, and its scratch space. May be repeated."""
        ...


class Runtime(Protocol):
    @property
    def pulls(self) -> bool:
        """Whether images have to be there before a command can start."""
        ...

    def describe(self) -> str:
        """One plain sentence for people: what runs the commands and what that means."""
        ...

    def probe(self) -> None:
        """Run something. Raises: StartFailed."""
        ...

    def pull(self, image: str) -> None:
        """Make sure that an image is there. Raises: StartFailed (`ErrImagePull`, `ImageRefused`)."""
        ...

    def run(self, task_dir: TaskDirectory, pod: LocalPod, member: Member) -> Run: ...

    def hand_over(self, task_dir: TaskDirectory) -> None:
        """Before the first executor: the volume's files are to be changeable by the commands."""
        ...

    def take_back(self, task_dir: TaskDirectory) -> None:
        """Before TOF or the removal: the volume's files are to be readable, and removable, by this process."""
        ...

    def release(self, task_dir: TaskDirectory) -> None:
        """Before a folder is removed: nothing is left of it elsewhere. Raises: StartFailed."""
        ...

    def sweep(self, is_ours: set[str]) -> None:
        """At the start: remove what belongs to a folder that is gone. `is_ours`: the names of those which are there."""
        ...

    def close(self) -> None:
        """What runs goes on."""
        ...
