"""One plain sentence about a task: why it waits, what it does now, or why it failed.

The sentence is made from what the task has recorded: its state and stage, the reason for waiting, the outcome, and the failure. It ends
with the recorded message, which has the details; a reason that is not in the tables is shown as it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from poiesis.domain.observed import NODE_UNREACHABLE
from poiesis.domain.states import Stage, State
from poiesis.domain.task import Task

WAITS: Final[Mapping[str, str]] = {
    "Unschedulable": "no node can take its pod yet",
    "NodesBusy": "the nodes that can run its pod are busy",
    "NoNode": "no node of the cluster can run its pod",
    "Unscheduled": "the scheduler has not placed its pod yet",
    "SchedulingGated": "another controller of the cluster holds its pod back",
    "NodeUnreachable": "its node does not confirm that its containers have ended",
    "Deactivated": "its queue no longer considers it",
    "Queued": "the site's quotas leave no room for it yet",
    "QuotaExceeded": "the quota of the cluster is used up",
    "ClusterUnavailable": "the cluster does not answer",
    "ErrImagePull": "an image cannot be pulled",
    "ImagePullBackOff": "an image cannot be pulled",
    "ImageInspectError": "an image cannot be used",
    "InvalidImageName": "the name of an image is invalid",
    "ErrImageNeverPull": "an image is not on the node and may not be pulled",
    "ImageRefused": "an image was refused",
    "CreateContainerConfigError": "a container cannot be created",
    "CreateContainerError": "a container cannot be created",
    "RunContainerError": "a container cannot be started",
    "ContainerNotCreated": "a container cannot be created",
    "NoEngine": "the container engine of this machine does not answer",
    "EngineFailed": "the container engine of this machine fails",
    "SandboxFailed": "the sandbox for a command cannot be made",
    "ControlGroup": "the control group of a command cannot be used",
}
"""Reasons of `Task.waiting`: what the task waits for."""

FAILURES: Final[Mapping[str, str]] = {
    "ExecutorFailed": "a command failed",
    "OutOfMemory": "a command ran out of memory",
    "TimeLimit": "a command took longer than its time limit",
    "CommandNotFound": "a command does not exist in its image",
    "CommandNotExecutable": "a command is not executable",
    "DiskLimit": "a command wrote more than its disk limit",
    "StartFailed": "a command could not be started",
    "StdinUnavailable": "a command's stdin file could not be opened",
    "StdoutUnavailable": "a command's stdout file could not be opened",
    "StderrUnavailable": "a command's stderr file could not be opened",
    "WorkdirUnavailable": "a command's working directory could not be used",
    "OutputLost": "a command's output file is incomplete",
    "InputFailed": "an input could not be downloaded",
    "InputFilerFailed": "the download of the inputs failed",
    "InputTimeout": "the download of the inputs took too long",
    "OutputFailed": "an output could not be uploaded",
    "OutputFilerFailed": "the upload of the outputs failed",
    "OutputTimeout": "the upload of the outputs took too long",
    "OutputFilerLost": "the upload of the outputs was interrupted",
    "NotFound": "a file does not exist",
    "OutputMissing": "a declared output does not exist",
    "AccessDenied": "access to a file was denied",
    "FileTooLarge": "a file is too large",
    "UnsupportedUrl": "a URL is not supported",
    "StagingFailed": "a file could not be transferred",
    "StorageUnavailable": "a storage service did not answer",
    "Configuration": "the transfer is not configured correctly",
    "Unschedulable": "no node could take its pod in time",
    "ExceedsQuota": "it asks for more than the site's quotas ever allow",
    "ImagePullFailed": "an image could not be pulled",
    "ContainerNotCreated": "a container could not be created",
    "ContainerNotStarted": "a container could not be started",
    "StartTimeout": "its containers did not start in time",
    "ContainerLost": "a container ended without a result",
    "ContainerStatusUnknown": "the node lost a container",
    "PodDeleted": "its pod was deleted from outside",
    "PodTerminated": "its pod was terminated from outside",
    "PodFailed": "its pod failed before a command ran",
    "NotStarted": "a command was not started",
    "AlreadyBegun": "a command had begun before and may not run twice",
    "Preempted": "its pod had to make room for more important ones",
    "Evicted": "its node evicted the pod",
    "NodeLost": "its node was lost",
    "NodeShutdown": "its node was shut down",
    "VolumeLost": "the volume with its outputs was lost",
    "QuotaExceeded": "the quota of the cluster was used up for too long",
    "ClusterUnavailable": "the cluster did not answer for too long",
    "ClusterRefused": "the cluster refused its objects",
    "NoEngine": "the container engine of this machine did not answer",
    "EngineFailed": "the container engine of this machine failed",
    "SandboxFailed": "the sandbox for a command could not be made",
    "ControlGroup": "the control group of a command could not be used",
    "ExecutorLost": "a command ended without a result",
    "ExecutorNotStarted": "a command was not started",
    "LocalError": "the service's files of this task are damaged",
    "InternalError": "of an internal error of the service",
    "Bug": "of an internal error of the service",
}
"""Reasons of `Outcome` and `metadata.failure_reason`."""

_RETRY_NOTE: Final = re.compile(r"Attempt (?P<attempt>\d+) failed\. (?P<reason>\w+): (?P<message>.*)", re.DOTALL)


def explain(task: Task) -> str:
    """The sentence for the user of the task. It contains no line breaks."""
    return re.sub(r"\s+", " ", _ended(task) if task.state.is_terminal else _going_on(task))


def _ended(task: Task) -> str:
    if task.state is State.COMPLETE:
        return "The task is complete: its commands have run and its outputs are stored."
    if task.state is State.CANCELED:
        return "The task was canceled by request."
    metadata = task.log.metadata
    lead = _because(metadata.get("failure_reason"), metadata.get("failure_message"))
    attempts = f" after {task.attempt} attempts" if task.attempt > 1 else ""
    return f"The task failed{attempts} because {lead}."


def _going_on(task: Task) -> str:
    if task.waiting is not None and task.waiting.startswith(f"{NODE_UNREACHABLE}:"):
        return f"{_going_on(replace(task, waiting=None))} {_waits(task.waiting)}"
    if task.cancel_requested_at is not None:
        return "The task is being canceled: it ends when its containers are gone."
    if task.waiting is not None:
        return _waits(task.waiting)
    match task.stage:
        case Stage.ADMIT:
            return "The task waits for its turn in the site's queue."
        case Stage.PREPARE:
            return _before(task)
        case Stage.STAGE_IN:
            return (
                "The task is about to start: its inputs are prepared for the download."
                if task.part is None
                else _starting(task, "its inputs are being downloaded")
            )
        case Stage.LAUNCH:
            return "The task is about to start: its pod is being created."
        case Stage.RUN:
            return _running(task)
        case Stage.STAGE_OUT:
            return _uploading(task)
    return _ending(task)


def _before(task: Task) -> str:
    if task.attempt == 1:
        return "The task is accepted and about to be prepared."
    return f"The task waits for attempt {task.attempt}, which starts after a delay{_last_failure(task)}."


def _last_failure(task: Task) -> str:
    for line in reversed(task.log.system_logs):
        found = _RETRY_NOTE.search(line)
        if found is not None:
            return f" because attempt {found['attempt']} failed: {_because(found['reason'], found['message'])}"
    return ""


def _starting(task: Task, what: str) -> str:
    if task.state is State.QUEUED:
        return "The task waits for a node: its pod is created and not scheduled yet."
    return f"The task is starting: {what}."


def _running(task: Task) -> str:
    if task.state is not State.RUNNING:
        return _starting(task, "its images are being pulled, its inputs downloaded, or its containers started")
    ended = sum(entry.exit_code is not None for entry in task.log.logs)
    total = len(task.spec.executors)
    if ended >= total:
        return "The task's commands have ended and its outputs are being uploaded."
    return "The task's command is running." if total == 1 else f"The task's command {ended + 1} of {total} is running."


def _uploading(task: Task) -> str:
    if task.uploads > 1:
        return (
            f"The task's outputs are being uploaded again (upload {task.uploads}) because the upload was interrupted."
        )
    return "The task's commands have ended and its outputs are being uploaded."


def _ending(task: Task) -> str:
    outcome = task.outcome
    if outcome is None or outcome.reason is None:
        return "The task's commands have ended and its results are being recorded."
    lead = _because(outcome.reason, outcome.message)
    if outcome.retry:
        return f"The task is tried again as soon as the objects of attempt {task.attempt} are gone, because {lead}."
    return f"The task is about to end as failed because {lead}."


def _waits(waiting: str) -> str:
    """Of `Reason: message`, `Reason in container: message`, or a sentence."""
    head, _, message = waiting.partition(": ")
    reason, _, container = head.partition(" in ")
    if reason in WAITS:
        where = f" ({container})" if container else ""
        return _without_stop(f"The task waits because {WAITS[reason]}{where}: {message}") + "."
    return (
        _without_stop(f"The task waits because of {waiting}" if reason.isalnum() else f"The task waits. {waiting}")
        + "."
    )


def _because(reason: str | None, message: str | None) -> str:
    lead = FAILURES.get(reason or "") or (f"of {reason}" if reason else "of an unknown reason")
    return _without_stop(f"{lead}: {message}" if message else lead)


def _without_stop(text: str) -> str:
    return text.strip().rstrip(".:; ")
