"""Long polls: one answer when a task has ended, or the first of many, or a task has changed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from starlette.types import Scope

from poiesis.api.event_feed import FellBehind, task_topic
from poiesis.api.extensions.context import Context, Document, Handler
from poiesis.api.parameters import PARAMETERS
from poiesis.api.streams import RightsCheck
from poiesis.api.validation import DOCUMENT
from poiesis.domain.errors import UnknownTask
from poiesis.domain.states import State
from poiesis.domain.task import TaskId

LOST_EVENT_S = 10.0
"""How often the store is asked while no event comes: the relay of events may be down."""


def operations(context: Context) -> dict[str, Handler]:
    async def wait(scope: Scope) -> Document:
        task_id, asked = scope["path_params"]["id"], scope[PARAMETERS]
        known = asked.get("from")

        def has_come(states: Mapping[TaskId, State]) -> bool:
            state = states[TaskId(task_id)]
            return state.is_terminal if known is None else context.views.state(state) != known

        states, reached = await _wait(context, scope, [task_id], asked["timeout"], has_come)
        return {**_documents(context, states)[0], "reached": reached}

    async def wait_for_many(scope: Scope) -> Document:
        document: dict[str, Any] = scope.pop(DOCUMENT)
        ids = list(dict.fromkeys(document["ids"]))
        of = all if document.get("until") == "ALL" else any

        def has_come(states: Mapping[TaskId, State]) -> bool:
            return of(state.is_terminal for state in states.values())

        states, reached = await _wait(context, scope, ids, document.get("timeout", 30), has_come)
        unknown = [task_id for task_id in ids if task_id not in states]
        return {"tasks": _documents(context, states), "unknown": unknown, "reached": reached}

    return {"WaitForTask": wait, "WaitForTasks": wait_for_many}


def _documents(context: Context, states: Mapping[TaskId, State]) -> list[Document]:
    return [{"id": task_id, "state": context.views.state(state)} for task_id, state in states.items()]


async def _wait(
    context: Context,
    scope: Scope,
    ids: Sequence[str],
    timeout_s: float,
    has_come: Callable[[Mapping[TaskId, State]], bool],
) -> tuple[Mapping[TaskId, State], bool]:
    """The states of the tasks, and whether what was waited for has come.

    Raises: UnknownTask if the user may see none of them, or no longer; Refused if the credentials no longer count.
    """
    rights = RightsCheck(scope)
    clock = asyncio.get_running_loop().time
    deadline = clock() + timeout_s
    with context.limits.hold(scope) as hold:
        async with context.feed.reader([task_topic(task_id) for task_id in ids]) as reader:
            hold.wake = reader.wake
            while True:
                access = (await rights.user()).access
                states = await context.call(context.services.tasks.states, ids, access=access)
                if not states:
                    raise UnknownTask(ids[0][:100])
                reached = has_come(states)
                remaining = deadline - clock()
                if reached or remaining <= 0 or hold.has_left:
                    return states, reached
                with suppress(FellBehind):
                    await reader.wait(min(remaining, LOST_EVENT_S))
