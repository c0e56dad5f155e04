"""The output of a task's commands: the end of it as text, and all of it with JavaScript, which reads windows of any size from the API.

What the pages need of a log of gigabytes is its size and its last bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import flask

from poiesis.api.ui.site import Ui, current_user, page
from poiesis.api.ui.task import read_task, shared
from poiesis.api.ui.text import plain_log, visible
from poiesis.domain.errors import InvalidRequest, PoiesisError
from poiesis.domain.states import State
from poiesis.domain.task import Task
from poiesis.ports.logs import STREAMS, Stream
from poiesis.services.logs import AvailableLog, UnknownLog

TAIL_BYTES: Final = 32 * 1024
MAX_CHOICES: Final = 1000
BOTH: Final = "both"


@dataclass(frozen=True)
class Pane:
    """One stream. `about` None: there is no such log, for the reason `problem`."""

    stream: Stream
    path: str
    about: AvailableLog | None
    tail: str
    problem: str | None = None

    @property
    def is_cut(self) -> bool:
        return self.about is not None and self.about.size_bytes > TAIL_BYTES


@dataclass(frozen=True)
class Choice:
    value: str
    text: str
    is_chosen: bool


def register(ui: Ui) -> None:
    @ui.get("/tasks/<task_id>/logs")
    def logs(task_id: str) -> Any:
        task = read_task(ui, task_id)
        attempt = _number("attempt", 1, task.attempt, task.attempt)
        executor = _number("executor", 0, len(task.spec.executors) - 1, _interesting(task))
        stream = flask.request.args.get("stream", BOTH)
        streams = [each for each in STREAMS if stream in (each, BOTH)] or list(STREAMS)
        return page(
            "logs.html",
            tab="logs",
            panes=[_pane(ui, task, attempt, executor, each) for each in streams],
            attempts=[
                Choice(str(n), f"{n} of {task.attempt}", n == attempt) for n in _around(attempt, 1, task.attempt)
            ],
            executors=[Choice(str(n), _title(task, n), n == executor) for n in range(len(task.spec.executors))],
            streams=[Choice(each, text, each == stream) for each, text in _STREAM_TEXTS],
            whole=ui.services.logs.keeps_whole_logs,
            is_latest=attempt == task.attempt,
            tail_bytes=ui.services.policy.tail_bytes,
            **shared(ui, task),
        )


_STREAM_TEXTS: Final = ((BOTH, "stdout and stderr"), ("stdout", "stdout"), ("stderr", "stderr"))


def _pane(ui: Ui, task: Task, attempt: int, executor: int, stream: Stream) -> Pane:
    path = f"/poiesis/v1/tasks/{task.id}/logs/{executor}/{stream}?attempt={attempt}"
    try:
        opened = ui.services.logs.open(task.id, executor, stream, attempt=attempt, access=current_user().access)
        size = opened.about.size_bytes
        return Pane(stream, path, opened.about, plain_log(_tail(opened.read, size)))
    except UnknownLog as error:
        return Pane(stream, path, None, "", str(error))
    except PoiesisError as error:  # the log store: the rest of the page is of use without it
        return Pane(stream, path, None, "", f"The log store does not respond as it should: {error}")


def _tail(read: Any, size: int) -> str:
    """The last lines, from the beginning of one."""
    start = max(0, size - TAIL_BYTES)
    data = b""
    while len(data) < size - start and (piece := read(start + len(data), size - start - len(data))):
        data += piece
    if start > 0:
        data = data.partition(b"\n")[2] or data
    return data.decode(errors="replace")


def _interesting(task: Task) -> int:
    """The executor that failed, else the one that runs, else the last that has a log."""
    last = max(0, min(len(task.log.logs), len(task.spec.executors)) - 1)
    is_next = task.state is State.RUNNING and task.log.logs and task.log.logs[last].exit_code == 0
    return min(last + 1, len(task.spec.executors) - 1) if is_next else last


def _title(task: Task, index: int) -> str:
    command = visible(" ".join(task.spec.executors[index].command)[:60])
    return f"{index}: {command}"


def _around(chosen: int, first: int, last: int) -> range:
    return range(max(first, min(chosen, last - MAX_CHOICES + 1)), last + 1)[:MAX_CHOICES]


def _number(name: str, least: int, most: int, default: int) -> int:
    """Raises: InvalidRequest."""
    text = flask.request.args.get(name, "")
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 10 and least <= int(text) <= most):
        raise InvalidRequest(name, f"must be a number from {least} to {most}")
    return int(text)
