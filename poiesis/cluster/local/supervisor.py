"""Runs the containers of one pod in order; one thread for each running pod.

Each step is on disk before the next one begins, so another process can take over at any point:

    on disk                              the supervisor
    record of the container              continues with the next
    no record, a filer                   runs it (again): filers may be repeated
    no record, launcher is running       waits for its end
    no record, launcher never started    starts it
    no record, launcher has ended        reads the record from the control directory; without one the command and its pod are lost

A command is never started twice: the runtime leaves a trace before it begins (`Run.state`), and so does the launcher.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from poiesis.cluster.local.disk_usage import DiskUsage
from poiesis.cluster.local.pod import LocalPod, Member
from poiesis.cluster.local.runtime import Run, RunState, Runtime, Signal, StartFailed
from poiesis.cluster.local.task_directory import TaskDirectory, read_bounded, read_document, write_document
from poiesis.config import LogSettings
from poiesis.domain.errors import PoiesisError
from poiesis.domain.observed import TIF, Record
from poiesis.domain.policy import GIGABYTE
from poiesis.domain.records import MAX_RECORD_BYTES, parse_record
from poiesis.domain.report import FilerReport, format_report
from poiesis.domain.task import TaskId
from poiesis.ports.clock import Clock

log = logging.getLogger(__name__)

Cancelled = Callable[[], bool]
Stage = Callable[[Mapping[str, Any], Path, Cancelled], FilerReport]

KILL_SLACK: Final = 5.0  # seconds after the grace period, for a launcher that hangs: others kill the command themselves
PULL_RETRY: Final = 5.0  # seconds
RETRY: Final = 2.0
STARTING: Final = 0.02  # seconds between checks whether a launcher that is to end handles signals yet
LOOK: Final = 0.5  # seconds; how often the disk space of a running command is measured
SEGMENT_BYTES: Final = 8 * 1024 * 1024  # launcher/keep.c
MAX_CONTROL_BYTES: Final = MAX_RECORD_BYTES + (1 << 20)  # of a container's control directory, which its user can write


@dataclass(frozen=True)
class Filers:
    """The work of TIF and TOF: `(document, volume, cancelled) -> report`. `cancelled()` is True once it should stop; may be ignored."""

    stage_in: Stage
    stage_out: Stage


@dataclass(frozen=True)
class LogKeeping:
    """Keeps the whole output of commands. `follow(control, task_id, attempt, executor, over)` blocks until the output of one executor is
    stored, or for a bounded time after its end or `over` is set; it raises nothing."""

    settings: LogSettings
    follow: Callable[[Path, TaskId, int, int, threading.Event], None]

    @property
    def control_bytes(self) -> int:
        """Of the output that waits in a control directory."""
        return 2 * (self.settings.backlog_bytes + 3 * SEGMENT_BYTES)


class Stopped(Exception):
    """The pod has to end."""


class Lost(Exception):
    """A command was started, and how it ended cannot be determined."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class _TimeLimit:
    """Of a filer, which asks whether to stop. As after a restart of the service it runs again, so does its time."""

    def __init__(self, seconds: float | None) -> None:
        self._at = math.inf if seconds is None else time.monotonic() + seconds
        self.stopped = False
        """Whether the filer was asked to stop for it."""

    def is_over(self) -> bool:
        self.stopped = self.stopped or time.monotonic() >= self._at
        return self.stopped


class Supervisor:
    """`changed` must not raise and is called after each observable change, `ended` once at the end, also when detached."""

    def __init__(
        self,
        task_dir: TaskDirectory,
        pod: LocalPod,
        *,
        runtime: Runtime,
        filers: Filers,
        clock: Clock,
        changed: Callable[[], None],
        ended: Callable[[], None],
        logs: LogKeeping | None = None,
    ) -> None:
        self._task_dir = task_dir
        self._pod = pod
        self._runtime = runtime
        self._filers = filers
        self._clock = clock
        self._changed = changed
        self._ended = ended
        self._logs = logs
        self._followers: list[threading.Thread] = []
        self._over = threading.Event()
        self._stop = Signal()
        self._deleting = False
        self._detached = False
        self._grace = max((m.command.grace_s for m in pod.members if m.command is not None), default=0.0)
        self._above_limit: dict[str, Any] | None = None  # stdout and stderr of a command killed for its disk usage
        self._run: Run | None = None
        self._run_name: str | None = None
        self.problem: tuple[str, str] | None = None  # why the containers of the executors do not start: reason, message
        self._pulling = False
        self.images_ready = not runtime.pulls
        self._thread = threading.Thread(target=self._main, name=f"pod-{pod.part}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def delete(self) -> None:
        """End the pod and what runs in it."""
        self._deleting = True
        self._stop.set()

    def detach(self) -> None:
        """This process closes: commands continue; filers are asked to stop and are repeated by the next process."""
        self._detached = True
        self._stop.set()

    def join(self, seconds: float) -> None:
        self._thread.join(seconds)

    def tails(self) -> dict[str, tuple[str, str]]:
        run, name = self._run, self._run_name
        return {} if run is None or name is None else {name: run.tails()}

    # ---- the pod

    def _main(self) -> None:
        """All steps can be repeated, so transient errors (a full disk, an engine that is down) are retried until they pass."""
        while not self._attempt():
            if self._detached:
                break
            self._stop.wait(RETRY)
        if not self._detached:
            self._changed()
            self._finish_logs()
        try:
            self._ended()
        except Exception:
            log.exception("callback_failed", extra={"task_id": self._pod.task_id})
        self._stop.close()

    def _attempt(self) -> bool:
        """False: retry."""
        try:
            self._go()
        except (OSError, StartFailed) as error:
            log.warning("pod_stalled", extra={"task_id": self._pod.task_id, "pod": self._pod.name, "error": str(error)})
            return False
        except Exception:
            log.exception("supervisor_failed", extra={"task_id": self._pod.task_id, "pod": self._pod.name})
            return not self._detached and self._give_up()
        return True

    def _give_up(self) -> bool:
        """After an unexpected error: another attempt may follow, so no command of this one may go on. False: retry."""
        try:
            self._end_runs()
        except (OSError, StartFailed):
            return False
        except Exception:  # then it cannot be ended
            log.exception("supervisor_failed", extra={"task_id": self._pod.task_id, "pod": self._pod.name})
        try:
            self._lose("LocalError", "internal error of the service; see its log")
        except OSError:
            return False
        return True

    def _go(self) -> None:
        if self._task_dir.has_mark(self._pod.part, "deleting"):  # requested before a restart
            self.delete()
        try:
            if not self.images_ready and not self._pulling:
                self._pulling = True
                threading.Thread(target=self._pull_images, name=f"pull-{self._pod.part}", daemon=True).start()
            for member in self._pod.members:
                if self._stop.is_set or self._task_dir.has_mark(self._pod.part, "lost"):
                    break
                if not self._task_dir.has_record(member.name):
                    self._take_turn(member)
        except Stopped:
            pass
        except Lost as error:
            self._lose(error.reason, str(error))
        if self._detached:
            return
        self._end_runs()
        if self._deleting:
            self._task_dir.forget_pod(self._pod.part)
        else:
            self._task_dir.mark(self._pod.part, "ended", at=_text(self._clock.now()))

    def _lose(self, reason: str, message: str) -> None:
        self._task_dir.mark(self._pod.part, "lost", reason=reason, message=message, at=_text(self._clock.now()))

    def _take_turn(self, member: Member) -> None:
        failed = self._first_failed(member)
        if failed is not None:
            self._close(member, ok=False, reason="Skipped", message=f"{failed} failed")
        elif member.is_filer:
            self._transfer(member)
        else:
            while not self.images_ready and not self._stop.is_set:
                self._stop.wait(0.05)
            if self._stop.is_set:
                raise Stopped
            self._execute(member)
        self._changed()

    def _first_failed(self, member: Member) -> str | None:
        """The container whose failure prevents this one from running. After a failed TIF nothing runs, not even TOF."""
        names = [m.name for m in self._pod.members if m.name == TIF]
        names += [] if member.always else member.waits_for
        for name in names:
            document = read_document(self._task_dir.state(name))
            if name != member.name and document is not None and document.get("ok") is not True:
                return name
        return None

    # ---- filers

    def _transfer(self, member: Member) -> None:
        task_dir = self._task_dir
        document = read_document(task_dir.path / "documents" / f"{member.name}.json")
        started, limit = self._clock.now(), _TimeLimit(member.time_limit_s)
        if document is None:
            report = FilerReport(error=f"missing document of {member.name}", error_code="internal", retryable=True)
        else:
            stage = self._filers.stage_in if member.name == TIF else self._filers.stage_out
            try:
                if member.name != TIF:
                    self._runtime.take_back(task_dir)
                task_dir.volume.mkdir(exist_ok=True)
                report = stage(document, task_dir.volume, lambda: self._stop.is_set or limit.is_over())
            except PoiesisError as error:
                report = FilerReport(error=str(error), error_code=error.code, retryable=error.retryable)
            except Exception as error:
                if self._stop.is_set:
                    raise Stopped from error
                log.exception("filer_failed", extra={"task_id": self._pod.task_id, "filer": member.name})
                report = FilerReport(error=f"{type(error).__name__}: {error}", error_code="internal")
        if self._stop.is_set and report.error is not None:
            raise Stopped
        write_document(task_dir.state(member.name, "report.json"), json.loads(format_report(report)))
        ok, ended = report.error is None, self._clock.now()
        outcome = {"exit_code": 0 if ok else 1, "reason": "TimeLimit" if limit.stopped and not ok else None}
        self._close(member, ok=ok, **outcome, message=report.error, started=_text(started), ended=_text(ended))

    # ---- executors

    def _pull_images(self) -> None:
        """Until every image is present; the first failure is shown as the containers' problem."""
        while not self._stop.is_set:
            try:
                for image in self._pod.images:
                    self._runtime.pull(image)
                self.problem = None
                self.images_ready = True
                self._changed()
                return
            except StartFailed as error:
                self.problem = (error.reason, str(error))
            except Exception as error:
                self.problem = ("ErrImagePull", f"{type(error).__name__}: {error}")
            self._changed()
            self._stop.wait(PULL_RETRY)

    def _execute(self, member: Member) -> None:
        run = self._runtime.run(self._task_dir, self._pod, member)
        state = run.state()
        if state is RunState.ABSENT:
            if not any(m.command is not None and self._task_dir.has_record(m.name) for m in self._pod.members):
                self._runtime.hand_over(self._task_dir)
            try:
                run.start()
            except StartFailed as error:
                run.clean()
                raise Lost(error.reason, str(error)) from error
        self._run, self._run_name = run, member.name
        self._follow_output(member)
        self._changed()  # the wake-up at the start may precede the save of the launch
        try:
            if not self._follow(run, member):
                raise Stopped
            self._settle(member, run)
        finally:
            self._run = self._run_name = None

    def _follow_output(self, member: Member) -> None:
        """In a thread of its own: a slow store delays no command."""
        if self._logs is None or member.command is None or not member.command.keep_bytes:
            return
        control, index = self._task_dir.control(member.name), int(member.name.rpartition("-")[2])
        arguments = (control, self._pod.task_id, self._pod.attempt, index, self._over)
        thread = threading.Thread(target=self._logs.follow, args=arguments, name=f"logs-{member.name}", daemon=True)
        thread.start()
        self._followers.append(thread)

    def _finish_logs(self) -> None:
        """Wait for them before the files can be removed: the task's end has been shown already."""
        self._over.set()
        deadline = time.monotonic() + (self._logs.settings.finish.total_seconds() + 2 if self._logs is not None else 0)
        for thread in self._followers:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _follow(self, run: Run, member: Member) -> bool:
        """Wait until it has ended (True) or this process closes (False)."""
        usages = self._disk_usages(member)
        while not self._deleting:
            # a stop before the wait does not end the wait, so the wait is short
            if run.wait(self._stop, 0.0 if self._stop.is_set else LOOK):
                return True
            if self._detached and not self._deleting:
                return False
            if self._above_limit is None and any(usage.is_exceeded() for usage in usages):
                stdout, stderr = run.tails()
                run.kill()
                self._above_limit = {"stdout": stdout, "stderr": stderr}
                with contextlib.suppress(OSError):  # the disk may be full
                    write_document(self._task_dir.state(member.name, "above-limit"), self._above_limit)
        return self._end(run, member)

    def _end(self, run: Run, member: Member) -> bool:
        """SIGTERM once the launcher can receive it, SIGKILL after the grace period; True when it has ended."""
        kill_at = time.monotonic() + self._grace + KILL_SLACK
        terminated = False
        while True:
            left = kill_at - time.monotonic()
            if run.wait(self._stop, left if terminated else min(left, STARTING)):
                return True
            if not terminated and self._handles_signals(member):
                terminated = True
                run.terminate()
            elif time.monotonic() >= kill_at:
                run.kill()
                kill_at = time.monotonic() + 1.0

    def _disk_usages(self, member: Member) -> list[DiskUsage]:
        task_dir, limit = self._task_dir, self._pod.disk_bytes
        control_bytes = MAX_CONTROL_BYTES + (self._logs.control_bytes if self._logs is not None else 0)
        usages = [DiskUsage(task_dir.control(member.name), limit_bytes=control_bytes)]
        if limit is not None:
            usages.append(DiskUsage(task_dir.volume, task_dir.scratch(member.name), limit_bytes=limit))
        return usages

    def _handles_signals(self, member: Member) -> bool:
        """Whether SIGTERM reaches the launcher: the kernel sends process 1 of a namespace only signals that it has a handler for."""
        control = self._task_dir.control(member.name)
        return any(os.path.lexists(control / f"{member.name}.{mark}") for mark in ("up", "begun"))

    def _settle(self, member: Member, run: Run) -> None:
        """Store the record of a command that has ended, where user code cannot change it."""
        assert member.command is not None
        above_limit = self._above_limit or read_document(self._task_dir.state(member.name, "above-limit"))
        if above_limit is not None:
            self._above_limit = None
            run.clean()
            message = (
                f"the task's files exceed its disk space of {(self._pod.disk_bytes or 0) / GIGABYTE:g} GB: "
                "request more with resources.disk_gb"
            )
            limit: dict[str, Any] = {"exit_code": 137, "reason": "DiskLimit", "message": message, "truncated": True}
            self._close(member, ok=False, **limit, **above_limit, ended=_text(self._clock.now()))
            return
        data = read_bounded(self._task_dir.control(member.name) / f"{member.name}.json", MAX_RECORD_BYTES)
        record = parse_record(data, member.command.tail_bytes) if data is not None else None
        if record is not None and record.name == member.name:
            oom_killed = record.oom_killed or (not record.ok and run.ending().oom_killed)
            self._close(member, **_document(replace(record, oom_killed=oom_killed)))
            run.clean()
            return
        ending = run.ending()
        run.clean()
        if ending.oom_killed:
            message = "the memory limit was reached and the kernel killed the whole container"
            self._close(member, ok=member.command.ignore_error, exit_code=137, oom_killed=True, message=message)
            return
        began = (self._task_dir.control(member.name) / f"{member.name}.begun").exists()
        message = ending.message or ("how its command ended is unknown" if began else "its command was not started")
        raise Lost("ExecutorLost" if began else "ExecutorNotStarted", f"{member.name}: {message}")

    def _end_runs(self) -> None:
        """End what was started, also by earlier processes."""
        for member in self._pod.members:
            if member.command is None or self._task_dir.has_record(member.name):
                continue
            run = self._runtime.run(self._task_dir, self._pod, member)
            if run.state() is RunState.RUNNING:
                self._end(run, member)
            if run.state() is not RunState.ABSENT:
                run.clean()

    def _close(self, member: Member, **record: Any) -> None:
        write_document(self._task_dir.state(member.name), {"exit_code": None, **record, "name": member.name})


def read_record(task_dir: TaskDirectory, member: Member) -> Record | None:
    """The stored record of a container that has ended."""
    data = read_bounded(task_dir.state(member.name), MAX_RECORD_BYTES)
    tail_bytes = member.command.tail_bytes if member.command is not None else 0
    return parse_record(data, tail_bytes) if data is not None else None


def _document(record: Record) -> dict[str, Any]:
    document = asdict(record)
    started, ended = document.pop("started_at"), document.pop("ended_at")
    return document | {"started": started and _text(started), "ended": ended and _text(ended)}


def _text(moment: datetime) -> str:
    return moment.isoformat()
