"""The page of one task: why it waits or failed, its timeline, files, resources and commands; its document; its cancellation."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final

import flask

from poiesis.api.extensions.rerun import RERUN_OF
from poiesis.api.ui.drawing import draw
from poiesis.api.ui.figures import figures, number
from poiesis.api.ui.site import Ui, current_user, page
from poiesis.api.ui.text import link_of, plain_log, visible
from poiesis.api.users import User
from poiesis.domain.errors import UnknownTask
from poiesis.domain.naming import is_task_id
from poiesis.domain.states import State
from poiesis.domain.task import ExecutorLog, Input, Output, Task, TaskId, TaskSummary, View
from poiesis.domain.timeline import timeline
from poiesis.domain.why import explain
from poiesis.ports.repository import TaskFilter

MAX_FILES: Final = 200
MAX_EXECUTORS: Final = 100
MAX_TAGS: Final = 50
MAX_RERUNS: Final = 10
MAX_TEXT: Final = 4096
MAX_JSON: Final = 512 * 1024
"""Characters of a document that are shown; the download has all."""
TAIL_LINES: Final = 12
_USAGE: Final = ("peak_memory_bytes", "cpu_seconds")
_SHOWN_ELSEWHERE: Final = ("checksum:", "executor_", "failure_")


@dataclass(frozen=True)
class Command:
    """One executor. `log` None: it has not begun, or its result is not known."""

    index: int
    image: str
    line: str
    workdir: str | None
    env: tuple[tuple[str, str], ...]
    files: tuple[tuple[str, str], ...]
    log: ExecutorLog | None
    peak_memory: float | None
    cpu_seconds: float | None
    is_running: bool
    is_failure: bool
    tail: str
    tail_of: str


@dataclass(frozen=True)
class Written:
    """One uploaded file, or an output that has not been uploaded."""

    url: str
    path: str
    size: int | None
    checksum: str | None


def register(ui: Ui) -> None:
    for filter_ in (visible, plain_log, link_of):
        ui.blueprint.add_app_template_filter(filter_, filter_.__name__)

    @ui.get("/tasks/<task_id>")
    def task(task_id: str) -> Any:
        found = read_task(ui, task_id)
        return page("task.html", tab="task", **shared(ui, found), **_shown(ui, found))

    @ui.get("/tasks/<task_id>/json")
    def document(task_id: str) -> Any:
        found = read_task(ui, task_id)
        text = _document(ui, found)
        return page(
            "task_json.html",
            tab="json",
            document=text[:MAX_JSON],
            omitted=max(0, len(text) - MAX_JSON),
            **shared(ui, found),
        )

    @ui.get("/tasks/<task_id>/task.json")
    def download(task_id: str) -> Any:
        found = read_task(ui, task_id)
        response = flask.make_response(_document(ui, found) + "\n")
        response.headers["Content-Type"] = "application/json"
        response.headers["Content-Disposition"] = f'attachment; filename="task-{found.id}.json"'
        return response

    @ui.get("/tasks/<task_id>/cancel")
    def confirm(task_id: str) -> Any:
        found = read_task(ui, task_id)
        return page("task_cancel.html", tab="", **shared(ui, found))

    @ui.post("/tasks/<task_id>/cancel")
    def cancel(task_id: str) -> Any:
        ui.services.tasks.cancel(task_id, access=current_user().access)
        return flask.redirect(f"/ui/tasks/{task_id}", 303)


def read_task(ui: Ui, task_id: str) -> Task:
    """In the view FULL, which also asks for the present output of its command. Raises: UnknownTask."""
    found = ui.services.tasks.get(task_id, View.FULL, access=current_user().access)
    assert isinstance(found, Task)
    return found


def shared(ui: Ui, task: Task) -> dict[str, Any]:
    """Return what every page of a task shows."""
    user = current_user()
    return {
        "task": task,
        "state": ui.context.views.state(task.state),
        "name": visible(task.spec.name or "") or "Task without a name",
        "may_cancel": _may_cancel(ui, task, user),
        "is_over": task.state.is_terminal,
    }


def _may_cancel(ui: Ui, task: Task, user: User) -> bool:
    if task.state.is_terminal or task.cancel_requested_at is not None or "write" not in user.scopes:
        return False
    return user.access is None or user.access.owns(task.owner) or ui.services.policy.group_may_cancel


def _shown(ui: Ui, task: Task) -> dict[str, Any]:
    spec, now = task.spec, ui.services.tasks.clock.now()
    commands = [_command(task, index) for index in range(min(len(spec.executors), MAX_EXECUTORS))]
    return {
        "sentence": visible(explain(task)),
        "drawing": draw(timeline(task), now),
        "commands": commands,
        "failure": next((command for command in commands if command.is_failure and command.tail), None),
        "inputs": spec.inputs[:MAX_FILES],
        "more_inputs": max(0, len(spec.inputs) - MAX_FILES),
        "input_size": _input_size,
        "staged": _staged(task, "inputs"),
        "uploaded": _staged(task, "outputs"),
        "outputs": _written(task),
        "more_outputs": max(0, len(task.log.outputs or spec.outputs) - MAX_FILES),
        "figures": figures(task),
        "tags": list(spec.tags.items())[:MAX_TAGS],
        "original": _original(ui, task),
        "reruns": _reruns(ui, task),
        "metadata": _metadata(task.log.metadata),
        "whole_logs": ui.services.logs.keeps_whole_logs,
    }


def _command(task: Task, index: int) -> Command:
    executor, logs, metadata = task.spec.executors[index], task.log.logs, task.log.metadata
    log = logs[index] if index < len(logs) else None
    is_running = task.state is State.RUNNING and (
        (log is not None and log.exit_code is None) or (log is None and index == len(logs))
    )
    is_failure = log is not None and log.exit_code not in (0, None) and not executor.ignore_error
    tail_of = "stderr" if log is not None and log.stderr.strip() else "stdout"
    text = "" if log is None else getattr(log, tail_of)
    files = (("stdin", executor.stdin), ("stdout", executor.stdout), ("stderr", executor.stderr))
    peak, cpu = (number(metadata, f"executor_{index}_{name}") for name in _USAGE)
    return Command(
        index=index,
        image=visible(executor.image),
        line=visible(shlex.join(executor.command)[:MAX_TEXT]),
        workdir=executor.workdir,
        env=tuple((visible(key), visible(value[:MAX_TEXT])) for key, value in list(executor.env.items())[:MAX_FILES]),
        files=tuple((stream, path) for stream, path in files if path),
        log=log,
        peak_memory=peak,
        cpu_seconds=cpu,
        is_running=is_running,
        is_failure=is_failure,
        tail="\n".join(plain_log(text[-MAX_TEXT:]).strip("\n").splitlines()[-TAIL_LINES:]),
        tail_of=tail_of,
    )


def _input_size(item: Input) -> int | None:
    """Return the bytes of an input's content; of an input with a URL only the sum of all is known."""
    return None if item.content is None else len(item.content.encode(errors="surrogatepass"))


def _staged(task: Task, what: str) -> tuple[float, float, float | None] | None:
    """Files, bytes and seconds of a transfer; None: it has not ended, or nothing was transferred."""
    files, size = (number(task.log.metadata, f"{what}_{name}") for name in ("files", "bytes"))
    return None if not files or size is None else (files, size, number(task.log.metadata, f"{what}_seconds"))


def _written(task: Task) -> list[Written]:
    """The files that were uploaded, then the outputs that had none of them."""
    uploaded = [
        Written(item.url, item.path, item.size_bytes, task.log.metadata.get(f"checksum:{item.path}"))
        for item in task.log.outputs[:MAX_FILES]
    ]
    paths = [PurePosixPath(item.path) for item in task.log.outputs]
    known = {str(above) for path in paths for above in (path, *path.parents)}
    missing = [item for item in task.spec.outputs if not known or _path(item) not in known]
    return [*uploaded, *(Written(item.url, item.path, None, None) for item in missing)][:MAX_FILES]


def _path(output: Output) -> str:
    """Return the path of an output; with wildcards, of the directory that they are in."""
    return str(PurePosixPath(output.path_prefix or output.path))


def _original(ui: Ui, task: Task) -> TaskId | None:
    """The task that this one is a rerun of, if the user may see it: the tag is text of the user."""
    named = task.spec.tags.get(RERUN_OF, "")
    if not is_task_id(named):
        return None
    try:
        return ui.services.tasks.get(named, View.MINIMAL, access=current_user().access).id
    except UnknownTask:
        return None


def _reruns(ui: Ui, task: Task) -> tuple[Task | TaskSummary, ...]:
    where = TaskFilter(tags=((RERUN_OF, task.id),), access=current_user().access)
    return ui.services.tasks.list(where, limit=MAX_RERUNS, after=None, view=View.MINIMAL).tasks


def _metadata(metadata: Mapping[str, str]) -> list[tuple[str, str]]:
    entries = [item for item in metadata.items() if not item[0].startswith(_SHOWN_ELSEWHERE)]
    return [(visible(key), visible(value[:MAX_TEXT])) for key, value in entries[:MAX_FILES]]


def _document(ui: Ui, task: Task) -> str:
    return json.dumps(ui.context.views.task(task, View.FULL), indent=2, ensure_ascii=True)
