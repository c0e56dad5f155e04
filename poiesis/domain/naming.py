"""Names: task ids, and the names and labels of objects in a cluster, all derived from a task id.

Names are deterministic, so that creating an object twice is detected, and contain the attempt, so that an object of an old attempt is never
taken for one of the new attempt. They are valid for any id: at most 63 characters of `[a-z0-9-]`; any other id is hashed.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from collections.abc import Callable
from datetime import datetime
from typing import Final

from poiesis.domain.errors import UnknownTask
from poiesis.domain.task import TaskId

_LABEL: Final = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")
_ID: Final = re.compile(r"[0-9a-z]{26}")
_LONGEST_ID: Final = 37  # of a hashed one; leaves room for prefix, five digits of attempt and `executor-99` within 63
_B32HEX_LOWER: Final = str.maketrans("ABCDEFGHIJKLMNOPQRSTUV", "abcdefghijklmnopqrstuv")


def new_task_id(now: datetime, random_bytes: Callable[[int], bytes] = secrets.token_bytes) -> TaskId:
    """A new id: 26 characters that sort by creation time (microseconds) and cannot be guessed (72 random bits)."""
    raw = int(now.timestamp() * 1_000_000).to_bytes(7, "big") + random_bytes(9)
    return TaskId(base64.b32hexencode(raw).decode().rstrip("=").translate(_B32HEX_LOWER))


def first_task_id(moment: datetime) -> TaskId:
    """The smallest id that a task created at this moment can have: ids of earlier tasks are below it, of later ones above."""
    return new_task_id(moment, bytes)


def is_task_id(text: str) -> bool:
    """Whether `new_task_id` can have made it; any other id need not be looked up."""
    return _ID.fullmatch(text) is not None


def checked_task_id(text: str) -> TaskId:
    """Raises: UnknownTask for an id that this service cannot have made, which need not be looked up."""
    if not is_task_id(text):
        raise UnknownTask(text[:100])
    return TaskId(text)


def slug(task_id: str) -> str:
    """The id if it is valid in object names and labels, else a stable hash of it."""
    if len(task_id) <= _LONGEST_ID and _LABEL.fullmatch(task_id):
        return task_id
    kept = re.sub(r"[^a-z0-9]+", "-", task_id.lower()).strip("-")[:20].strip("-")
    digest = hashlib.sha256(task_id.encode(errors="surrogatepass")).hexdigest()[:16]
    return f"{kept}-{digest}" if kept else f"x-{digest}"


def object_name(task_id: str, attempt: int, part: str) -> str:
    """Name of an object of one attempt, such as `poiesis-<id>-1-task`; `part`: task, tif, executors, tof, tof-2, volume, filer."""
    return f"poiesis-{slug(task_id)}-{attempt}-{part}"
