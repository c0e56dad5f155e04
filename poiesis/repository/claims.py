"""Keys of tasks that wait for admission or are in flight, from which everything that admission needs can be read without the task.

    queued   USER/CLASS/ID/DETAILS   user and class percent-encoded, so that a queue is a range of keys in the order of ids
    held     ID/DETAILS

A task has at most one of them, and none where it has no claim: the stores index them sparsely.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final
from urllib.parse import quote, unquote

import msgspec

from poiesis.domain.decide.admission import candidate_of, is_held, is_queued
from poiesis.domain.fair_share import Candidate, QueueKey
from poiesis.domain.quotas import Claim
from poiesis.domain.task import Task, TaskId
from poiesis.ports.admission import Place

AFTER: Final = "0"  # the character after the slash: what begins with `x/` is below `x0`


class _Details(msgspec.Struct, array_like=True):
    claim: Claim
    attempt: int
    since: datetime


def queued_key(task: Task) -> str | None:
    if task.claim is None or not is_queued(task):
        return None
    candidate = candidate_of(task)
    details = _Details(task.claim, candidate.attempt, candidate.since)
    return f"{queue_prefix(QueueKey(task.claim.user, task.claim.service_class))}/{task.id}/{_encode(details)}"


def held_key(task: Task) -> str | None:
    return f"{task.id}/{_encode(task.claim)}" if task.claim is not None and is_held(task) else None


def queue_prefix(queue: QueueKey) -> str:
    """Without the slash at its end."""
    return "/".join(quote(part, safe="") for part in queue)


def behind(place: Place | None) -> str:
    """The least key behind a place."""
    if place is None:
        return ""
    queue, task_id = place
    prefix = queue_prefix(queue)
    if task_id is None:
        return prefix + AFTER
    return f"{prefix}/{task_id}{AFTER}" if task_id else f"{prefix}/"


def read_queued(key: str) -> tuple[QueueKey, Candidate]:
    user, service_class, task_id, text = key.split("/", 3)
    details = msgspec.json.decode(text, type=_Details)
    candidate = Candidate(TaskId(task_id), details.attempt, details.claim, details.since)
    return QueueKey(unquote(user), unquote(service_class)), candidate


def read_held(key: str) -> tuple[TaskId, Claim]:
    task_id, _, text = key.partition("/")
    return TaskId(task_id), msgspec.json.decode(text, type=Claim)


def _encode(value: object) -> str:
    return msgspec.json.encode(value).decode()
