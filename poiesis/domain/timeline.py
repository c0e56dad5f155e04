"""The phases of a task, attempt by attempt, from what the task has recorded: for its page, the command line and traces.

| Phase | From | To | Source |
|---|---|---|---|
| queued | the creation, or the end of the attempt before | the admission; without quotas the schedule | `created_at` |
| admitted | the admission; only where the site has quotas | the schedule | recorded by `admitted` |
| scheduled | the schedule to a node | the first container's start: images are pulled meanwhile | recorded by `scheduled` |
| images | an image could not be pulled | it could, or the attempt ended | `history` |
| inputs, outputs | the filer's start | its end | recorded by `staged` |
| executor N | the command's start | its end | the task's log |
| cleanup | the end of the attempt | everything in the cluster is gone | `end_time`, `stage_since` |

Not recorded: how long an image pull without errors took (it is a part of `scheduled`), the uploads that were interrupted, and the
waits of the staged layout for nodes of its later pods: they show as gaps. A running or lost command begins with the end of the one before
it, or when the task was seen to be running, because its time is known once it has ended. Tasks of older releases have fewer phases.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Final

from poiesis.domain.history import Phase, Result, with_phases
from poiesis.domain.observed import Record
from poiesis.domain.states import Stage, State
from poiesis.domain.task import ExecutorLog, Task

__all__ = ["Phase", "admitted", "attempt_ended", "commands_lost", "scheduled", "staged", "timeline"]

IMAGE_REASONS: Final = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "ImageInspectError", "InvalidImageName", "ErrImageNeverPull", "ImageRefused"}
)
_ORDER: Final = ("queued", "admitted", "scheduled", "images", "inputs", "executor", "outputs")


# ── recording: each is part of a save that happens anyway ──────────────────────────────────────────────────────────────────────────


def admitted(task: Task, now: datetime) -> Task:
    return _with(task, Phase("admitted", task.attempt, now))


def scheduled(task: Task, at: datetime) -> Task:
    """The first pod of the attempt was seen on a node. Clusters report whole seconds, so it may seem to be before the creation."""
    if any(phase.name == "scheduled" and phase.attempt == task.attempt for phase in reversed(task.phases)):
        return task
    return _with(task, Phase("scheduled", task.attempt, max(at, task.created_at)))


def staged(task: Task, name: str, record: Record | None) -> Task:
    """A filer (`inputs`, `outputs`) has ended."""
    if record is None or record.started_at is None:
        return task
    result: Result = "ok" if record.ok else "failed"
    end = None if record.ended_at is None else max(record.started_at, record.ended_at)
    return _with(task, Phase(name, task.attempt, record.started_at, end, result))


def commands_lost(task: Task, records: Sequence[Record | None]) -> Task:
    """The records of a lost pod's executors (None: not known), which the task's log does not get."""
    found = [
        Phase(f"executor {index}", task.attempt, record.started_at, record.ended_at, "ok" if record.ok else "failed")
        for index, record in enumerate(records)
        if record is not None and record.started_at is not None
    ]
    if task.state is State.RUNNING and len(found) < len(records) and all(phase.outcome == "ok" for phase in found):
        since = found[-1].end if found else _running_since(task, _recorded(task, task.attempt))
        found += [Phase(f"executor {len(found)}", task.attempt, since)] if since is not None else []
    return _with(task, *found)


def attempt_ended(task: Task, now: datetime) -> Task:
    """An attempt is followed by another one: everything of it is gone `now`, and its log is about to be dropped."""
    lost_at = min(task.stage_since or now, now)
    reason = None if task.outcome is None else task.outcome.reason
    cleanup = Phase("cleanup", task.attempt, lost_at, now, "ok", reason)
    return _with(task, *_executors(task, lost_at), cleanup)


def _recorded(task: Task, attempt: int) -> list[Phase]:
    return [phase for phase in task.phases if phase.attempt == attempt]


def _with(task: Task, *phases: Phase) -> Task:
    return replace(task, phases=with_phases(task.phases, *phases))


# ── reading ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def timeline(task: Task) -> list[Phase]:
    """All phases, by attempt and start; those that overlap run side by side. The task is one of the view BASIC or FULL."""
    found: list[Phase] = []
    begin: datetime | None = task.created_at
    for attempt in range(1, task.attempt + 1):
        recorded = _recorded(task, attempt)
        cleanup = _cleanup(task) if attempt == task.attempt else _named(recorded, "cleanup")
        if begin is not None and (cleanup is not None or attempt == task.attempt):
            phases = _attempt(task, attempt, begin, recorded, cleanup)
            found += sorted(phases, key=lambda phase: (phase.start, _rank(phase)))
            found += [cleanup] if cleanup is not None else []
        begin = None if cleanup is None else cleanup.end
    return found


def _attempt(task: Task, attempt: int, begin: datetime, recorded: list[Phase], cleanup: Phase | None) -> list[Phase]:
    """The phases of one attempt before its cleanup."""
    finish = None if cleanup is None else cleanup.start
    is_last = attempt == task.attempt
    work = [phase for phase in recorded if phase.name not in ("admitted", "scheduled", "cleanup")]
    if is_last:
        work += _executors(task, finish)
        if cleanup is None or task.cancel_requested_at is not None:  # what a cancel interrupted leaves no record
            work += _in_progress(task, work)
    work = list(_in_sequence(work))
    admission, schedule = _named(recorded, "admitted"), _named(recorded, "scheduled")
    placed = schedule.start if schedule is not None else (task.log.start_time if attempt == 1 else None)
    first = min((phase.start for phase in work), default=None)
    placed = _earliest(placed, first)  # a short command may have begun before its pod was seen
    milestones = [
        ("queued", begin),
        ("admitted", None if admission is None else _earliest(admission.start, placed)),
        ("scheduled", placed),
    ]
    phases = [*_between(attempt, milestones, first, finish), *_images(task, attempt, begin, finish), *work]
    phases = [_clipped(phase, begin, finish) for phase in phases]
    return _with_failure(phases, task, is_last, finish)


def _in_sequence(work: Iterable[Phase]) -> Iterator[Phase]:
    """Clocks of nodes differ: no filer or command starts before the end of the one before it."""
    ended: datetime | None = None
    for phase in sorted(work, key=lambda phase: (_rank(phase), phase.start)):
        start = phase.start if ended is None else max(phase.start, ended)
        ended = phase.end and max(start, phase.end)
        yield replace(phase, start=start, end=ended)


def _earliest(*times: datetime | None) -> datetime | None:
    return min((at for at in times if at is not None), default=None)


def _between(
    attempt: int, milestones: list[tuple[str, datetime | None]], first: datetime | None, finish: datetime | None
) -> Iterator[Phase]:
    """Each phase lasts until the next milestone that was reached."""
    reached = [(name, at) for name, at in milestones if at is not None]
    for index, (name, at) in enumerate(reached):
        end = reached[index + 1][1] if index + 1 < len(reached) else first
        yield Phase(name, attempt, at, end or finish, None if end is None else "ok")


def _executors(task: Task, finish: datetime | None) -> Iterator[Phase]:
    """Commands with a start time that are not recorded. One without an end was lost with the attempt."""
    known = {phase.name for phase in _recorded(task, task.attempt)}
    for index, entry in enumerate(task.log.logs):
        name = f"executor {index}"
        if entry.start_time is not None and name not in known:
            end = entry.end_time or finish
            yield Phase(name, task.attempt, entry.start_time, end, _result(task, index, entry))


def _result(task: Task, index: int, entry: ExecutorLog) -> Result | None:
    if entry.exit_code is None:
        return None
    ignored = index < len(task.spec.executors) and task.spec.executors[index].ignore_error
    return "ok" if entry.exit_code == 0 or ignored else "failed"


def _in_progress(task: Task, work: list[Phase]) -> Iterator[Phase]:
    """What the current attempt does now, or did when it was canceled: a command, or the upload."""
    ended = [entry for entry in task.log.logs if entry.exit_code is not None]
    is_seen = task.attempt == 1 or bool(task.log.logs)  # the state of a later attempt stays that of the one before
    if not is_seen or not _is_or_was_running(task):
        return
    if task.cancel_requested_at is not None and any(
        _result(task, index, entry) == "failed" for index, entry in enumerate(ended)
    ):
        return  # nothing began after it
    since = ended[-1].end_time if ended else _running_since(task, work)
    if since is None:
        return
    if len(ended) < len(task.spec.executors) and task.stage is not Stage.STAGE_OUT:
        current = Phase(f"executor {len(ended)}", task.attempt, since)
    elif task.spec.outputs:
        current = Phase("outputs", task.attempt, since)
    else:
        return
    if _named(work, current.name) is None:
        yield current


def _is_or_was_running(task: Task) -> bool:
    """Whether it runs; for one with a cancel request, whether it ran until then."""
    if task.cancel_requested_at is None:
        return task.state is State.RUNNING
    before = [c.state for c in task.history if not c.state.is_terminal and c.state is not State.CANCELING]
    return bool(before) and before[-1] is State.RUNNING


def _running_since(task: Task, work: list[Phase]) -> datetime | None:
    inputs = _named(work, "inputs")
    if inputs is not None and inputs.end is not None:
        return inputs.end
    if task.attempt > 1:
        return task.stage_since
    return next((change.at for change in task.history if change.state is State.RUNNING), task.log.start_time)


def _images(task: Task, attempt: int, begin: datetime, finish: datetime | None) -> Iterator[Phase]:
    since: datetime | None = None
    for change in task.history:
        if change.at < begin or (finish is not None and change.at > finish):
            continue
        waits = (change.reason or "").split(":")[0].split(" in ")[0] in IMAGE_REASONS and not change.state.is_terminal
        if waits and since is None:
            since = change.at
        elif not waits and since is not None:
            yield Phase("images", attempt, since, change.at, None if change.at == finish else "ok")
            since = None
    if since is not None:
        yield Phase("images", attempt, since, finish)


def _cleanup(task: Task) -> Phase | None:
    """Of the last attempt."""
    if task.state.is_terminal:
        start = task.log.end_time or task.stage_since
        end = task.stage_since if task.stage is Stage.DONE else None
        if start is None or end is None:
            return None if start is None else Phase("cleanup", task.attempt, start)
        return Phase("cleanup", task.attempt, start, max(start, end), "ok")
    if task.stage is Stage.FINISH and task.stage_since is not None:
        reason = None if task.outcome is None or not task.outcome.retry else task.outcome.reason
        return Phase("cleanup", task.attempt, task.stage_since, reason=reason)
    return None


def _clipped(phase: Phase, begin: datetime, finish: datetime | None) -> Phase:
    """Clocks of nodes differ: nothing starts before its attempt, or ends after it or before its start."""
    start = max(phase.start, begin) if finish is None else min(max(phase.start, begin), finish)
    end = finish if phase.end is None else phase.end if finish is None else min(phase.end, finish)
    return replace(phase, start=start, end=None if end is None else max(start, end))


def _with_failure(phases: list[Phase], task: Task, is_last: bool, finish: datetime | None) -> list[Phase]:
    """Give the phases that ended with their attempt its outcome."""
    if finish is None:
        return phases
    how: Result = "failed"
    if is_last and task.state is State.COMPLETE:
        how = "ok"
    elif is_last and (task.state is State.CANCELED or task.cancel_requested_at is not None):
        how = "canceled"
    elif is_last and not task.state.is_terminal and task.outcome is not None and task.outcome.state is State.COMPLETE:
        how = "ok"
    cut = [replace(phase, outcome=how) if phase.outcome is None else phase for phase in phases]
    if how == "ok" or any(phase.outcome == how for phase in cut):
        return cut
    last = max(range(len(cut)), key=lambda index: (cut[index].end or finish, cut[index].start), default=None)
    return [replace(phase, outcome=how) if index == last else phase for index, phase in enumerate(cut)]


def _named(phases: Iterable[Phase], name: str) -> Phase | None:
    return next((phase for phase in phases if phase.name == name), None)


def _rank(phase: Phase) -> tuple[int, int]:
    name, _, number = phase.name.partition(" ")
    return (_ORDER.index(name) if name in _ORDER else len(_ORDER)), int(number or 0)
