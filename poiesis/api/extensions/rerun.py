"""A new task from an old one, with changes."""

from __future__ import annotations

from itertools import islice
from typing import Any, Final

import msgspec
from starlette.types import Scope

from poiesis.api.errors import MAX_PROBLEMS, NotJson
from poiesis.api.extensions.context import Context, Document, Handler
from poiesis.api.idempotency import idempotency_key
from poiesis.api.normalize import unknown_fields
from poiesis.api.requests import REQUEST
from poiesis.api.users import USER, User
from poiesis.api.validation import DOCUMENT
from poiesis.domain.errors import InvalidTask
from poiesis.domain.merge_patch import merge_patch
from poiesis.domain.task import Task, TaskSpec, View

RERUN_OF: Final = "rerun_of"
"""The tag with the id of the original."""


def operations(context: Context) -> dict[str, Handler]:
    tasks = context.services.tasks

    async def rerun(scope: Scope) -> Document:
        user: User = scope[USER]
        original, patch = scope["path_params"]["id"], scope.pop(DOCUMENT) or {}
        if misspelled := list(islice(unknown_fields(patch), MAX_PROBLEMS)):
            raise InvalidTask(misspelled)
        key = idempotency_key(scope, original, patch)
        spec = await context.call(copy_of, context, original, patch, user)
        task_id = await context.call(tasks.create, spec, owner=user.name, groups=user.groups, key=key)
        scope[REQUEST].task = task_id
        return {"id": task_id, "rerun_of": original}

    return {"RerunTask": rerun}


def copy_of(context: Context, task_id: str, patch: Any, user: User) -> TaskSpec:
    """A task that the user may see, with changes and the tag RERUN_OF. Raises: UnknownTask, InvalidTask."""
    task = context.services.tasks.get(task_id, View.FULL, access=user.access)
    assert isinstance(task, Task)
    document = msgspec.json.decode(msgspec.json.encode(task.spec))
    try:
        document = merge_patch(document, patch)
    except RecursionError:
        raise NotJson("invalid JSON: nested too deeply") from None
    if isinstance(document, dict) and isinstance(document.setdefault("tags", {}), dict):
        document["tags"] = {**document["tags"], RERUN_OF: task.id}
    return context.tasks.read(document)
