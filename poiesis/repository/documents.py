"""Task ↔ document: the fields of the domain's dataclasses as plain dicts, lists, strings, numbers and booleans (docs/adr/0008).

A document has a head (what stores filter, sort and compare by), the parts `spec` and `log`, and the part `bulk`: input
contents, tails and system logs, that is all that the view BASIC does not show. A store leaves `bulk` out of a read, and
what remains decodes to a task in that view.

- Times are RFC 3339 strings in UTC, exact where MongoDB's dates keep milliseconds; those of the head have one width
  (`2026-01-31T12:00:00.000001Z`), so that they sort as text.
- `tags` in the head has tokens to compare for equality: for each tag one of its key and one of key and value (`tag_token`),
  so that a list filtered by tags scans an index in the order of ids.
- `readers` in the head has the tokens of who may see the task (`domain.access`).
- `queued` and `held` are keys of tasks under quotas (`repository.claims`), `unfinished` one of tasks that have not ended.
- `due_at` and `due_stage` are what resync queries, on a small index; null when the task is done.
- `ended_at` is what the retention goes by; null until the task is done.

`schema` is raised when old code can no longer read what new code writes; `MIGRATIONS` then upgrades older documents, one
version at a time, when they are read. They are written in the new form with their next save.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

import msgspec

from poiesis.domain.access import reader_tokens
from poiesis.domain.errors import IllegalTransition, InvalidTask, PoiesisError, Problem, RepositoryUnavailable
from poiesis.domain.history import Change
from poiesis.domain.states import Stage, State, path
from poiesis.domain.task import Task, TaskLog
from poiesis.ports.events import Event
from poiesis.repository.claims import held_key, queued_key
from poiesis.repository.unfinished import unfinished_key

Document = dict[str, Any]
Encoded = TypeVar("Encoded")
_ENCODER: Final = msgspec.json.Encoder()
_EVENTS: Final = msgspec.json.Decoder(Event)

SCHEMA: Final = 2

MAX_BYTES: Final = 15 * 1024 * 1024  # MongoDB refuses documents above 16 MiB, which includes what it adds
MAX_SPEC_BYTES: Final = 12 * 1024 * 1024  # leaves at least 3 MiB for the log, so that every accepted task can end
MAX_TOKEN_TEXT: Final = 128  # characters; longer keys and values are hashed in tokens, to keep indexes small


def to_document(task: Task) -> Document:
    """The whole task. Raises: ValueError for a naive datetime (a bug).

    A field that msgspec left at its default while it decoded the task is left out: it is in the class, not in the object.
    """
    done = task.stage is Stage.DONE
    document: Document = msgspec.to_builtins(task)
    spec, log = document["spec"], document["log"]
    logs = log.get("logs", ())
    bulk = {
        "contents": [item.pop("content", None) for item in spec.get("inputs", ())],
        "stdout": [item.pop("stdout", "") for item in logs],
        "stderr": [item.pop("stderr", "") for item in logs],
        "system_logs": log.pop("system_logs", ()),
    }
    wake_at = None if task.wake_at is None else format_time(task.wake_at)
    return {
        "_id": document.pop("id"),
        "schema": SCHEMA,
        "owner": None,
        **document,
        "version": int(task.version),
        "state": task.state.value,
        "created_at": format_time(task.created_at),
        "wake_at": wake_at,
        "due_stage": None if done else task.due_stage.value,
        "due_at": None if done else wake_at,
        "ended_at": format_time(task.log.end_time or task.created_at) if done else None,
        "name": spec.pop("name", None),
        "tags": tag_tokens(task.spec.tags),
        "readers": reader_tokens(task.owner, task.groups),
        "queued": queued_key(task),
        "held": held_key(task),
        "unfinished": unfinished_key(task),
        "bulk": bulk,
    }


def from_document(document: Document) -> Task:
    """The task, upgraded from an older schema; without the part `bulk` as the view BASIC shows it.

    Raises: RepositoryUnavailable when a newer release wrote it.
    """
    document = upgrade(document)
    spec, log, bulk = document["spec"], document["log"], document.get("bulk")
    if bulk is not None:
        inputs = zip(spec.get("inputs", ()), bulk["contents"], strict=True)
        logs = zip(log.get("logs", ()), bulk["stdout"], bulk["stderr"], strict=True)
        spec = {**spec, "inputs": [{**item, "content": content} for item, content in inputs]}
        ended = [{**item, "stdout": stdout, "stderr": stderr} for item, stdout, stderr in logs]
        log = {**log, "logs": ended, "system_logs": bulk["system_logs"]}
    spec = {**spec, "name": document["name"]}
    return msgspec.convert({**document, "id": document["_id"], "spec": spec, "log": log}, Task)


def new_change(task: Task, version: int) -> Change | None:
    """The change that `Task.recorded` has added for the save that makes this version."""
    return task.history[-1] if task.history and task.history[-1].n == version else None


def encode_event(event: Event) -> str:
    """Without its number, which the log gives it."""
    return _ENCODER.encode(replace(event, seq=0)).decode()


def decode_event(text: str, seq: int) -> Event:
    return replace(_EVENTS.decode(text), seq=seq)


def encode_json(value: object) -> bytes:
    """Raises: UnicodeEncodeError for an unpaired surrogate."""
    return _ENCODER.encode(value)


def decode_json(text: str) -> Any:
    return msgspec.json.decode(text)


def _maps_from_pairs(document: Document) -> Document:
    """Schema 1 had each map as a list of `{"k": key, "v": value}`."""

    def mapped(part: Document, name: str) -> Document:
        return {**part, name: {pair["k"]: pair["v"] for pair in part[name]}}

    spec = mapped(document["spec"], "tags")
    spec["executors"] = [mapped(item, "env") for item in spec["executors"]]
    spec["resources"] = spec["resources"] and mapped(spec["resources"], "backend_parameters")
    return {**document, "spec": spec, "log": mapped(document["log"], "metadata")}


MIGRATIONS: Final[Mapping[int, Callable[[Document], Document]]] = {1: _maps_from_pairs}
"""From each older schema to the next one."""


def upgrade(document: Document, migrations: Mapping[int, Callable[[Document], Document]] = MIGRATIONS) -> Document:
    """The document in the current schema, `len(migrations) + 1`.

    Raises: RepositoryUnavailable if it is newer. That is retryable on purpose: while releases are mixed, old code must neither
    end nor overwrite a task that it cannot read.
    """
    present = len(migrations) + 1
    schema = document["schema"]
    if schema > present:
        raise RepositoryUnavailable(
            f"task {document['_id']!r} was stored by a newer release (schema {schema}, supported: up to {present}): "
            "upgrade all processes"
        )
    while schema < present:
        document = {**migrations[schema](document), "schema": schema + 1}
        schema += 1
    return document


def encode_within_bounds(task: Task, encode: Callable[[Document], tuple[Encoded, int]]) -> Encoded:
    """Encode the task by `encode`, which returns the encoded document and its size in bytes.

    The log is shortened if the document would be larger than `MAX_BYTES`: every task must be able to end.
    Raises: InvalidTask when what the user sent is too large, or contains text that cannot be stored.
    """
    try:
        encoded, size_bytes = encode(to_document(task))
        if size_bytes <= MAX_BYTES:
            return encoded
        _, spec_bytes = encode(to_document(replace(task, log=TaskLog())))
        if spec_bytes > MAX_SPEC_BYTES:
            message = f"too large: {spec_bytes} bytes; at most {MAX_SPEC_BYTES}, pass large content by URL"
            raise InvalidTask([Problem("$", message)])
        encoded, _ = encode(to_document(replace(task, log=shortened(task.log, MAX_BYTES - spec_bytes))))
        return encoded
    except UnicodeEncodeError as error:
        message = "invalid text: contains an unpaired surrogate; must be valid Unicode"
        raise InvalidTask([Problem("$", message)]) from error


def shortened(log: TaskLog, room_bytes: int) -> TaskLog:
    """The log in about `room_bytes`: the first output files, the ends of tails, the last system logs, and a note."""
    share = room_bytes // 4
    tail_bytes = share // max(1, 2 * len(log.logs))
    outputs = _within(log.outputs, share, lambda item: len(item.url.encode()) + len(item.path.encode()))
    system_logs = _within(log.system_logs[::-1], share, lambda line: len(line.encode()))[::-1]
    metadata = _within(list(log.metadata.items()), share, lambda item: len(item[0].encode()) + len(item[1].encode()))
    note = "the log was too large and has been shortened"
    if omitted := len(log.outputs) - len(outputs):
        note += f"; {omitted} output files are not listed"
    return replace(
        log,
        logs=tuple(replace(e, stdout=_end(e.stdout, tail_bytes), stderr=_end(e.stderr, tail_bytes)) for e in log.logs),
        outputs=tuple(outputs),
        metadata=dict(metadata),
        system_logs=(*system_logs, note),
    )


def check_same_request(stored: Task, task: Task) -> None:
    """Raises: PoiesisError unless both are the same accepted task, whatever their progress."""
    if (stored.spec, stored.created_at, stored.owner) != (task.spec, task.created_at, task.owner):
        raise PoiesisError(f"the id {task.id!r} belongs to another task")


def tag_token(key: str, value: str = "") -> str:
    """Tags are compared by tokens: `key` with exactly this value, or with any if it is empty (`TaskFilter.tags`)."""
    # The length of the key shows where it ends and whether it is hashed, the sign after it whether the value is:
    # so no two tags share a token.
    token = f"{len(key)}:{key if len(key) <= MAX_TOKEN_TEXT else _digest(key)}"
    if not value:
        return token
    return f"{token}={value}" if len(value) <= MAX_TOKEN_TEXT else f"{token}#{_digest(value)}"


def tag_tokens(tags: Mapping[str, str]) -> list[str]:
    return sorted({token for key, value in tags.items() for token in (tag_token(key), tag_token(key, value))})


def sources(to: State) -> list[str]:
    """The stored states from which a task may be saved as `to`: those with a `states.path`, including `to` itself."""
    found = []
    for state in State:
        with suppress(IllegalTransition):
            path(state, to)
            found.append(state.value)
    return found


def after_prefix(prefix: str) -> str | None:
    """The smallest text, by code points, above all that begin with `prefix`; None if there is no such text."""
    kept = prefix.rstrip("\U0010ffff")
    if not kept:
        return None
    following = ord(kept[-1]) + 1
    return kept[:-1] + chr(0xE000 if following == 0xD800 else following)  # surrogates are not characters


def format_time(moment: datetime) -> str:
    """RFC 3339, UTC, always with microseconds, so that it sorts as text."""
    if moment.tzinfo is None:
        raise ValueError("a naive datetime cannot be stored")
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def parse_time(text: str) -> datetime:
    """Of `format_time`."""
    return datetime.fromisoformat(text)


def key_of_owner(owner: str | None, key: str) -> str:
    """A digest, so that keys of any length and text can be looked up; different for each pair of owner and key."""
    return _digest(encode_json([owner, key]).decode())


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
