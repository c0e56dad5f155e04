"""Task ↔ document: plain dicts, lists, strings, numbers and booleans, which JSON and BSON keep alike.

A document has a head (what stores filter, sort and compare by), the parts `spec` and `log`, and the part `bulk`: input
contents, tails and system logs, that is all that the view BASIC does not show. A store leaves `bulk` out of a read, and
what remains decodes to a task in that view.

- Times are RFC 3339 strings of one width (`2026-01-31T12:00:00.000001Z`): exact where MongoDB's dates keep
  milliseconds, sorted as they stand, and readable in any shell.
- Mappings (tags, env, …) are lists of `{"k": …, "v": …}`: their keys are users' text, which MongoDB cannot have as
  field names when it holds dots, `$` or NUL.
- `tags` in the head holds tokens made for equality: for each tag one of its key and one of key and value (`tag_token`),
  so that a list narrowed by tags walks an index in the order of ids.
- `due_at` is there only while the task is not done: what resync asks for, on a small index. `due_stage` is null then.

`schema` is raised when old code could no longer read what new code writes; `MIGRATIONS` then takes older documents up,
one version at a time, when they are read. They are written in the new form with their next save.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

from poiesis.domain.errors import IllegalTransition, InvalidTask, PoiesisError, Problem, RepositoryUnavailable
from poiesis.domain.states import Stage, State, path
from poiesis.domain.task import (
    Executor,
    ExecutorLog,
    FileType,
    Input,
    Outcome,
    Output,
    OutputFileLog,
    Resources,
    Task,
    TaskId,
    TaskLog,
    TaskSpec,
    Version,
)

Document = dict[str, Any]
Encoded = TypeVar("Encoded")

SCHEMA: Final = 1
MIGRATIONS: Final[Mapping[int, Callable[[Document], Document]]] = {}
"""From each older schema to the next one."""

MAX_BYTES: Final = 15 * 1024 * 1024  # MongoDB refuses documents above 16 MiB; the rest is for what it adds
MAX_SPEC_BYTES: Final = 12 * 1024 * 1024  # leaves a log at least 3 MiB, so that every accepted task can end
MAX_TOKEN_TEXT: Final = 128  # characters; longer keys and values are hashed in tokens, to keep indexes small


def to_document(task: Task) -> Document:
    """The whole task. Raises: ValueError for a time without a zone (a bug)."""
    done = task.stage is Stage.DONE
    return {
        "_id": task.id,
        "schema": SCHEMA,
        "version": int(task.version),
        "state": task.state.value,
        "stage": task.stage.value,
        "stage_since": _from_time(task.stage_since),
        "wake_at": _from_time(task.wake_at),
        "due_stage": None if done else task.due_stage.value,
        **({"due_at": format_time(task.wake_at)} if task.wake_at is not None and not done else {}),
        "created_at": format_time(task.created_at),
        "attempt": task.attempt,
        "nonce": task.nonce,
        "owner": task.owner,
        "cancel_requested_at": _from_time(task.cancel_requested_at),
        "layout": task.layout,
        "part": task.part,
        "waiting": task.waiting,
        "waiting_since": _from_time(task.waiting_since),
        "memory_scale": task.memory_scale,
        **({"uploads": task.uploads} if task.uploads != 1 else {}),
        "launching_at": _from_time(task.launching_at),
        "outcome": _from_outcome(task.outcome),
        "name": task.spec.name,
        "tags": tag_tokens(task.spec.tags),
        "spec": _from_spec(task.spec),
        "log": _from_log(task.log),
        "bulk": {
            "contents": [item.content for item in task.spec.inputs],
            "stdout": [item.stdout for item in task.log.logs],
            "stderr": [item.stderr for item in task.log.logs],
            "system_logs": list(task.log.system_logs),
        },
    }


def from_document(document: Document) -> Task:
    """The task, upgraded from an older schema; without the part `bulk` as the view BASIC shows it.

    Raises: RepositoryUnavailable when a newer release wrote it.
    """
    document = upgrade(document)
    outcome = document["outcome"]
    bulk = document.get("bulk")
    return Task(
        id=TaskId(document["_id"]),
        spec=_to_spec(document["spec"], document["name"], bulk),
        created_at=parse_time(document["created_at"]),
        state=State(document["state"]),
        stage=Stage(document["stage"]),
        stage_since=_to_time(document["stage_since"]),
        wake_at=_to_time(document["wake_at"]),
        attempt=document["attempt"],
        version=Version(document["version"]),
        nonce=document["nonce"],
        owner=document["owner"],
        cancel_requested_at=_to_time(document["cancel_requested_at"]),
        layout=document["layout"],
        part=document["part"],
        waiting=document["waiting"],
        waiting_since=_to_time(document["waiting_since"]),
        memory_scale=document["memory_scale"],
        uploads=document.get("uploads", 1),
        launching_at=_to_time(document["launching_at"]),
        outcome=None if outcome is None else Outcome(**{**outcome, "state": State(outcome["state"])}),
        log=_to_log(document["log"], bulk),
    )


def upgrade(document: Document, migrations: Mapping[int, Callable[[Document], Document]] = MIGRATIONS) -> Document:
    """The document in the present schema, `len(migrations) + 1`.

    Raises: RepositoryUnavailable when it is newer. That is retryable on purpose: while releases are mixed, old
    code must neither end nor overwrite a task that it cannot read.
    """
    present = len(migrations) + 1
    schema = document["schema"]
    if schema > present:
        raise RepositoryUnavailable(
            f"task {document['_id']!r} was stored by a newer release (schema {schema}, this one knows {present}); "
            "finish the upgrade of all processes"
        )
    while schema < present:
        document = {**migrations[schema](document), "schema": schema + 1}
        schema += 1
    return document


def encode_within_bounds(task: Task, encode: Callable[[Document], tuple[Encoded, int]]) -> Encoded:
    """The task as `encode` makes it, which returns the encoded document and its size in bytes.

    What grows while a task runs is shortened when the document would pass `MAX_BYTES`: a task has to be able to end.
    Raises: InvalidTask when what the user sent is too large, or holds text or numbers that cannot be stored.
    """
    try:
        encoded, size_bytes = encode(to_document(task))
        if size_bytes <= MAX_BYTES:
            return encoded
        _, spec_bytes = encode(to_document(replace(task, log=TaskLog())))
        if spec_bytes > MAX_SPEC_BYTES:
            raise InvalidTask(
                [Problem("$", f"the task is too large to be stored: {spec_bytes} of {MAX_SPEC_BYTES} bytes")]
            )
        encoded, _ = encode(to_document(replace(task, log=shortened(task.log, MAX_BYTES - spec_bytes))))
        return encoded
    except UnicodeEncodeError as error:
        raise InvalidTask([Problem("$", "text holds half of a surrogate pair, which is no character")]) from error
    except OverflowError as error:
        raise InvalidTask([Problem("$", "a number needs more than 64 bits")]) from error


def shortened(log: TaskLog, room_bytes: int) -> TaskLog:
    """The log within about `room_bytes`: first output files, ends of tails, last system logs, and a note."""
    share = room_bytes // 4
    tail_bytes = share // max(1, 2 * len(log.logs))
    outputs = _within(log.outputs, share, lambda item: len(item.url.encode()) + len(item.path.encode()))
    system_logs = _within(log.system_logs[::-1], share, lambda line: len(line.encode()))[::-1]
    metadata = _within(list(log.metadata.items()), share, lambda item: len(item[0].encode()) + len(item[1].encode()))
    note = "the log was too large to be kept whole"
    if omitted := len(log.outputs) - len(outputs):
        note += f"; {omitted} output files are not listed"
    return replace(
        log,
        logs=tuple(replace(e, stdout=_end(e.stdout, tail_bytes), stderr=_end(e.stderr, tail_bytes)) for e in log.logs),
        outputs=tuple(outputs),
        metadata=dict(metadata),
        system_logs=(*system_logs, note),
    )


def same_request(stored: Task, task: Task) -> bool:
    """Whether both are the same accepted task, however far each of them is."""
    return (stored.spec, stored.created_at, stored.owner) == (task.spec, task.created_at, task.owner)


def id_taken(task_id: str) -> PoiesisError:
    return PoiesisError(f"the id {task_id!r} belongs to another task")


def tag_token(key: str, value: str = "") -> str:
    """What tags are compared by: `key` with exactly this value, or with any when it is empty (`TaskFilter.tags`)."""
    # The key's length tells where it ends and whether it is hashed, the sign after it whether the value is:
    # so no two tags share a token.
    token = f"{len(key)}:{key if len(key) <= MAX_TOKEN_TEXT else _digest(key)}"
    if not value:
        return token
    return f"{token}={value}" if len(value) <= MAX_TOKEN_TEXT else f"{token}#{_digest(value)}"


def tag_tokens(tags: Mapping[str, str]) -> list[str]:
    return sorted({token for key, value in tags.items() for token in (tag_token(key), tag_token(key, value))})


def sources(to: State) -> list[str]:
    """The stored states from which a task may be saved as `to`: those with a `states.path`, `to` itself included."""
    return [state.value for state in State if _has_path(state, to)]


def after_prefix(prefix: str) -> str | None:
    """The least text above all that begin with `prefix`, by code points; None when there is none."""
    kept = prefix.rstrip("\U0010ffff")
    if not kept:
        return None
    following = ord(kept[-1]) + 1
    return kept[:-1] + chr(0xE000 if following == 0xD800 else following)  # between them stand surrogates, no characters


def format_time(moment: datetime) -> str:
    """RFC 3339, UTC, always with six digits of a second, so that it sorts as text."""
    if moment.tzinfo is None:
        raise ValueError("a time without a zone cannot be stored")
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def parse_time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _has_path(seen: State, to: State) -> bool:
    try:
        path(seen, to)
    except IllegalTransition:
        return False
    return True


def _from_time(moment: datetime | None) -> str | None:
    return None if moment is None else format_time(moment)


def _to_time(text: str | None) -> datetime | None:
    return None if text is None else parse_time(text)


def _from_pairs(mapping: Mapping[str, str]) -> list[Document]:
    return [{"k": key, "v": value} for key, value in mapping.items()]


def _to_pairs(pairs: Iterable[Document]) -> dict[str, str]:
    return {pair["k"]: pair["v"] for pair in pairs}


def _from_outcome(outcome: Outcome | None) -> Document | None:
    if outcome is None:
        return None
    return {
        "state": outcome.state.value,
        "reason": outcome.reason,
        "message": outcome.message,
        "retry": outcome.retry,
    }


def _from_spec(spec: TaskSpec) -> Document:
    return {
        "description": spec.description,
        "executors": [
            {
                "image": item.image,
                "command": list(item.command),
                "workdir": item.workdir,
                "stdin": item.stdin,
                "stdout": item.stdout,
                "stderr": item.stderr,
                "env": _from_pairs(item.env),
                "ignore_error": item.ignore_error,
            }
            for item in spec.executors
        ],
        "inputs": [
            {
                "path": item.path,
                "url": item.url,
                "type": None if item.type is None else item.type.value,
                "name": item.name,
                "description": item.description,
                "streamable": item.streamable,
            }
            for item in spec.inputs
        ],
        "outputs": [
            {
                "path": item.path,
                "url": item.url,
                "path_prefix": item.path_prefix,
                "type": None if item.type is None else item.type.value,
                "name": item.name,
                "description": item.description,
            }
            for item in spec.outputs
        ],
        "resources": None if spec.resources is None else _from_resources(spec.resources),
        "volumes": list(spec.volumes),
        "tags": _from_pairs(spec.tags),
    }


def _from_resources(resources: Resources) -> Document:
    return {
        "cpu_cores": resources.cpu_cores,
        "ram_gb": resources.ram_gb,
        "disk_gb": resources.disk_gb,
        "preemptible": resources.preemptible,
        "zones": list(resources.zones),
        "backend_parameters": _from_pairs(resources.backend_parameters),
        "backend_parameters_strict": resources.backend_parameters_strict,
    }


def _to_spec(part: Document, name: str | None, bulk: Document | None) -> TaskSpec:
    contents = [None] * len(part["inputs"]) if bulk is None else bulk["contents"]
    resources = part["resources"]
    return TaskSpec(
        executors=tuple(
            Executor(**{**item, "command": tuple(item["command"]), "env": _to_pairs(item["env"])})
            for item in part["executors"]
        ),
        name=name,
        description=part["description"],
        inputs=tuple(
            Input(**{**item, "type": _to_type(item["type"])}, content=content)
            for item, content in zip(part["inputs"], contents, strict=True)
        ),
        outputs=tuple(Output(**{**item, "type": _to_type(item["type"])}) for item in part["outputs"]),
        resources=None
        if resources is None
        else Resources(
            **{
                **resources,
                "zones": tuple(resources["zones"]),
                "backend_parameters": _to_pairs(resources["backend_parameters"]),
            }
        ),
        volumes=tuple(part["volumes"]),
        tags=_to_pairs(part["tags"]),
    )


def _to_type(text: str | None) -> FileType | None:
    return None if text is None else FileType(text)


def _from_log(log: TaskLog) -> Document:
    return {
        "logs": [
            {
                "exit_code": item.exit_code,
                "start_time": _from_time(item.start_time),
                "end_time": _from_time(item.end_time),
            }
            for item in log.logs
        ],
        "outputs": [{"url": item.url, "path": item.path, "size_bytes": item.size_bytes} for item in log.outputs],
        "metadata": _from_pairs(log.metadata),
        "start_time": _from_time(log.start_time),
        "end_time": _from_time(log.end_time),
    }


def _to_log(part: Document, bulk: Document | None) -> TaskLog:
    empty = [""] * len(part["logs"])
    stdout, stderr = (empty, empty) if bulk is None else (bulk["stdout"], bulk["stderr"])
    return TaskLog(
        logs=tuple(
            ExecutorLog(
                exit_code=item["exit_code"],
                start_time=_to_time(item["start_time"]),
                end_time=_to_time(item["end_time"]),
                stdout=out,
                stderr=err,
            )
            for item, out, err in zip(part["logs"], stdout, stderr, strict=True)
        ),
        outputs=tuple(OutputFileLog(**item) for item in part["outputs"]),
        metadata=_to_pairs(part["metadata"]),
        start_time=_to_time(part["start_time"]),
        end_time=_to_time(part["end_time"]),
        system_logs=() if bulk is None else tuple(bulk["system_logs"]),
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


Item = TypeVar("Item")
_ITEM_BYTES: Final = 128  # field names, types and lengths around one item, rounded up


def _within(items: Sequence[Item], room_bytes: int, size_bytes: Callable[[Item], int]) -> list[Item]:
    kept: list[Item] = []
    for item in items:
        room_bytes -= size_bytes(item) + _ITEM_BYTES
        if room_bytes < 0:
            break
        kept.append(item)
    return kept


def _end(text: str, limit_bytes: int) -> str:
    """The last characters within `limit_bytes` of UTF-8."""
    raw = text.encode()
    return text if len(raw) <= limit_bytes else raw[len(raw) - limit_bytes :].decode(errors="ignore")
