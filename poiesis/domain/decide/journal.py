"""What a task's log shows about its progress: the state with its times, system logs, metadata, and why the task is waiting."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Final

from poiesis.domain import states
from poiesis.domain.states import State
from poiesis.domain.task import ExecutorLog, Task

MAX_SYSTEM_LOGS: Final = 200
KEPT_FOR_THE_END: Final = 50  # of these lines: notes of filers and of waiting must not crowd out why the task ended
MAX_MESSAGE: Final = 4096

_CLUSTER_REASONS: Final = frozenset({"QuotaExceeded", "ClusterUnavailable"})
_NODE_REASONS: Final = frozenset({"NodesBusy", "NoNode", "Queued"})
_CONTAINER_REASON: Final = re.compile(r"\w+ in (tif|tof|executor-\d+)")


def move(task: Task, to: State, now: datetime) -> Task:
    """Move along the table, however many steps; sets the log's start and end time on the way."""
    steps = states.path(task.state, to)
    if not steps:
        return task
    log = task.log
    if State.INITIALIZING in steps and log.start_time is None:
        log = replace(log, start_time=now)
    if to.is_terminal:
        log = replace(log, end_time=now)
    return replace(task, state=to, log=log)


def note(task: Task, now: datetime, text: str, room: int = MAX_SYSTEM_LOGS) -> Task:
    """Append a line to system_logs, unless it already has `room` lines."""
    if len(task.log.system_logs) >= room:
        return task
    line = f"{now.isoformat(timespec='milliseconds').replace('+00:00', 'Z')} {text[:MAX_MESSAGE]}"
    return replace(task, log=replace(task.log, system_logs=(*task.log.system_logs, line)))


def note_progress(task: Task, now: datetime, text: str) -> Task:
    """Like `note`, leaving room for the lines about how the task ends."""
    return note(task, now, text, room=MAX_SYSTEM_LOGS - KEPT_FOR_THE_END)


def add_metadata(task: Task, entries: Mapping[str, str]) -> Task:
    if not entries:
        return task
    return replace(task, log=replace(task.log, metadata={**task.log.metadata, **entries}))


def with_executor_logs(task: Task, logs: tuple[ExecutorLog, ...]) -> Task:
    """The pod may be observed on its node only after a command has begun there, and clocks differ: no executor starts before its task."""
    started = [at for at in (task.log.start_time, *(entry.start_time for entry in logs)) if at is not None]
    return replace(task, log=replace(task.log, logs=logs, start_time=min(started, default=None)))


def wait(task: Task, why: str, now: datetime) -> Task:
    """Show why the task is waiting (`Reason: message`); system_logs get one line for each reason."""
    why = why[:MAX_MESSAGE]
    if task.waiting == why:
        return task
    same_reason = task.waiting is not None and task.waiting.split(":")[0] == why.split(":")[0]
    if not same_reason:
        task = note_progress(task, now, why)
    task = add_metadata(task, {"waiting_reason": why})
    return replace(task, waiting=why, waiting_since=waiting_since(task, why, now))


def waiting_since(task: Task, why: str, now: datetime) -> datetime:
    """Since when the task has waited for the same kind of thing: the cluster, room on a node, a node, or the start of a container."""
    same_kind = task.waiting is not None and _kind_of_wait(task.waiting) == _kind_of_wait(why)
    return task.waiting_since if same_kind and task.waiting_since is not None else now


def _kind_of_wait(why: str) -> str:
    reason = why.split(":")[0]
    if reason in _CLUSTER_REASONS:
        return "cluster"
    if reason in _NODE_REASONS:
        return reason
    return "container" if _CONTAINER_REASON.fullmatch(reason) else "node"
