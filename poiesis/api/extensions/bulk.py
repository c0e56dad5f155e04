"""Many tasks with one request: their states by id, and canceling them by id or by filter."""

from __future__ import annotations

from typing import Any, Final

from starlette.types import Scope

from poiesis.api.errors import InvalidBody
from poiesis.api.extensions.context import Context, Document, Handler
from poiesis.api.paging import page_token, read_token
from poiesis.api.query import MAX_TAGS
from poiesis.api.requests import REQUEST, RequestRecord
from poiesis.api.users import USER, User
from poiesis.api.validation import DOCUMENT
from poiesis.api.views import NO_STATE
from poiesis.domain.access import Access
from poiesis.domain.errors import Problem
from poiesis.domain.states import TERMINAL, State
from poiesis.domain.task import TaskId
from poiesis.ports.repository import TaskFilter
from poiesis.services.bulk import Canceled, cancel_each, cancel_matching, matching

UNFINISHED: Final = frozenset(State) - TERMINAL - {State.CANCELING}
DEFAULT_LIMIT: Final = 100


def operations(context: Context) -> dict[str, Handler]:
    tasks = context.services.tasks

    async def states(scope: Scope) -> Document:
        ids = list(dict.fromkeys(scope.pop(DOCUMENT)["ids"]))
        found = await context.call(tasks.states, ids, access=scope[USER].access)
        return {
            "tasks": [{"id": task_id, "state": context.views.state(state)} for task_id, state in found.items()],
            "unknown": [task_id for task_id in ids if task_id not in found],
        }

    async def cancel(scope: Scope) -> Document:
        document, user = scope.pop(DOCUMENT), scope[USER]
        record: RequestRecord = scope[REQUEST]
        if ("ids" in document) is ("filter" in document):
            raise InvalidBody([Problem("$", "must have either ids or filter")])
        if "ids" not in document:
            return await cancel_by_filter(document, user, record)
        ids = list(dict.fromkeys(document["ids"]))
        if not document.get("dry_run"):
            done = await context.call(cancel_each, tasks, ids, access=user.access)
            record.tasks = done.canceled
            return _document(done)
        found = await context.call(tasks.states, ids, access=user.access)
        ids = [i for i in ids if found.get(TaskId(i)) in UNFINISHED]
        return {"would_cancel": len(ids), "ids": ids}

    async def cancel_by_filter(document: dict[str, Any], user: User, record: RequestRecord) -> Document:
        where = _filter(context, document["filter"], user)
        limit = document.get("limit", DEFAULT_LIMIT)
        if document.get("dry_run"):
            number, ids = await context.call(matching, tasks, where, limit=limit)
            return {"would_cancel": number, "ids": ids}
        after = read_token(document.get("page_token"), where)
        done = await context.call(cancel_matching, tasks, where, limit=limit, after=after)
        record.tasks = done.canceled
        document = _document(done)
        if done.next_after is not None:
            document["next_page_token"] = page_token(where, done.next_after)
        return document

    return {"GetStates": states, "CancelTasks": cancel}


def _mine(given: dict[str, Any], user: User) -> Access | None:
    """Return the access that a filter has: to the user's own tasks, with `everyone` to all that the user may see."""
    return user.access if given.get("everyone") or user.name is None else Access(user.name)


def _filter(context: Context, given: dict[str, Any], user: User) -> TaskFilter:
    if len(given.get("tags", {})) > MAX_TAGS:
        raise InvalidBody([Problem("$.filter.tags", f"invalid length: must have at most {MAX_TAGS} tags")])
    shown = given.get("state")
    states = context.views.stored_states(State(shown)) & UNFINISHED if shown else UNFINISHED
    return TaskFilter(
        name_prefix=given.get("name_prefix", ""),
        states=states or NO_STATE,
        tags=tuple(given.get("tags", {}).items()),
        access=_mine(given, user),
    )


def _document(done: Canceled) -> dict[str, Any]:
    failed = [{"id": task_id, "message": message} for task_id, message in done.failed.items()]
    return {
        "canceled": done.canceled,
        "unchanged": done.unchanged,
        "forbidden": done.forbidden,
        "unknown": done.unknown,
        "failed": failed,
    }
