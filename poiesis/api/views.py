"""From domain values to the documents of TES 1.1, by view. Only keys of the spec, never null.

| View | Shows |
|---|---|
| MINIMAL | only `id` and `state` |
| BASIC | all but `content` of inputs, `stdout` and `stderr` of executors, `system_logs` |
| FULL | all |

The last output of a running executor cannot be a log entry, which must have an exit code: clients take any entry for an executor that
has ended. It is in `metadata` as `live_executor`, `live_stdout` and `live_stderr` (FULL, docs/api.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from poiesis import __version__
from poiesis.config import ApiSettings, ServiceSettings
from poiesis.domain.policy import Policy
from poiesis.domain.states import State
from poiesis.domain.task import ExecutorLog, FileType, Task, TaskLog, TaskSpec, TaskSummary, View

Document = dict[str, Any]

TES_VERSION: Final = "1.1.0"
NO_STATE: Final = frozenset({State.UNKNOWN})
"""For a filter that no task matches: no stored task is in this state."""


class Views:
    """Documents as a site shows them, with its mapping of states."""

    def __init__(self, settings: ApiSettings) -> None:
        self._shown = {state: _shown(state, settings) for state in State}

    def state(self, state: State) -> State:
        return self._shown[state]

    def task(self, task: Task | TaskSummary, view: View) -> Document:
        document: Document = {"id": task.id, "state": self._shown[task.state]}
        if isinstance(task, TaskSummary):
            return document
        full = view is View.FULL
        document |= _spec(task.spec, full)
        document["logs"] = [_task_log(task.log, full)]
        document["creation_time"] = time_text(task.created_at)
        return document

    def stored_states(self, shown: State | None) -> frozenset[State]:
        """The stored states that are shown as `shown`, for filters; empty: any."""
        if shown is None:
            return frozenset()
        return frozenset(state for state, as_ in self._shown.items() if as_ == shown) or NO_STATE


def service_info(service: ServiceSettings, policy: Policy, describe: str) -> Document:
    """Spec: tesServiceInfo. `describe`: a sentence about what tasks run on."""
    return {
        "id": service.id,
        "name": service.name,
        "type": {"group": "org.ga4gh", "artifact": "tes", "version": TES_VERSION},
        "description": " ".join(part for part in (sentence(service.description), describe) if part),
        "organization": {"name": service.organization_name, "url": service.organization_url},
        **_given(
            contactUrl=service.contact_url,
            documentationUrl=service.documentation_url,
            environment=service.environment,
        ),
        "version": __version__,
        "storage": list(service.storage) or usable_storage(policy),
        "tesResources_backend_parameters": sorted(policy.backend_parameters),
    }


def old_service_info(info: Document) -> Document:
    """Return the service info of TES 0.4, whose clients refuse keys that they do not know."""
    return {"name": info["name"], "doc": info["description"], "storage": info["storage"]}


def usable_storage(policy: Policy) -> list[str]:
    """URL prefixes of the schemes that the filers support: `s3://`, and for files the allowed directories."""
    schemes = sorted(policy.url_schemes_in | policy.url_schemes_out)
    return [f"{s}://" for s in schemes if s != "file"] + (
        [f"file://{root}" for root in policy.file_roots] if "file" in schemes else []
    )


def _shown(state: State, settings: ApiSettings) -> State:
    if settings.client_safe_states and state is State.CANCELING:
        return State.RUNNING
    if settings.preempted_as_system_error and state is State.PREEMPTED:
        return State.SYSTEM_ERROR
    if settings.queued_as_initializing and state is State.QUEUED:
        return State.INITIALIZING
    return state


def _spec(spec: TaskSpec, full: bool) -> Document:
    document = {"inputs": [], "outputs": [], "volumes": [], "tags": {}, **_given(**msgspec.to_builtins(spec))}
    for name in ("inputs", "outputs", "executors"):
        document[name] = [_given(**item) for item in document[name]]
    for item in (*document["inputs"], *document["outputs"]):
        item.setdefault("type", FileType.FILE.value)
        if not full:
            item.pop("content", None)
    for executor in document["executors"]:
        _drop_unset(executor, "env", "ignore_error")
    if "resources" in document:
        document["resources"] = resources = _given(**document["resources"])
        _drop_unset(resources, "zones", "backend_parameters")
        if "cpu_cores" in resources:
            resources["cpu_cores"] = math.ceil(resources["cpu_cores"])  # an integer in TES
    return document


def _drop_unset(document: Document, *names: str) -> None:
    for name in names:
        if not document.get(name):
            document.pop(name, None)


def _task_log(log: TaskLog, full: bool) -> Document:
    document: Document = {
        "logs": [_executor_log(entry, entry.exit_code, full) for entry in log.logs if entry.exit_code is not None],
        "outputs": [{"url": o.url, "path": o.path, "size_bytes": str(o.size_bytes)} for o in log.outputs],
        "metadata": {**log.metadata, **(_live(log) if full else {})},
    }
    document |= _times(log.start_time, log.end_time)
    if full:
        document["system_logs"] = list(log.system_logs)
    return document


def _executor_log(entry: ExecutorLog, exit_code: int, full: bool) -> Document:
    document: Document = {"exit_code": exit_code, **_times(entry.start_time, entry.end_time)}
    if full:
        document |= {"stdout": entry.stdout, "stderr": entry.stderr}
    return document


def _live(log: TaskLog) -> Mapping[str, str]:
    """The last executor without an exit code; its position, and the tails."""
    for index in reversed(range(len(log.logs))):
        entry = log.logs[index]
        if entry.exit_code is None:
            return {"live_executor": str(index), "live_stdout": entry.stdout, "live_stderr": entry.stderr}
    return {}


def _times(start: datetime | None, end: datetime | None) -> Document:
    return _given(start_time=start and time_text(start), end_time=end and time_text(end))


def time_text(at: datetime) -> str:
    """RFC 3339 with microseconds and offset, which Python, Go and Java all parse."""
    return at.astimezone(UTC).isoformat(timespec="microseconds")


def _given(**values: Any) -> Document:
    return {name: value for name, value in values.items() if value is not None}


def sentence(text: str) -> str:
    """Return the text with a full stop, unless it already ends a sentence."""
    text = text.strip()
    return text if not text or text[-1] in ".!?" else text + "."
