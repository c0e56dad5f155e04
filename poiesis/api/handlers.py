"""The five operations of TES: parse, one service call, render. The names are the spec's operation ids.

The input of an operation has been read and checked before and is in the ASGI scope: the query and the body by `validation`, the user by
`middleware`. Services block on their store, so each call of one runs in a bounded pool of threads; pure computation stays in the event
loop (docs/adr/0002).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Final, ParamSpec, TypeVar

from starlette.types import Scope

from poiesis.api import views
from poiesis.api.extensions.context import Context
from poiesis.api.idempotency import idempotency_key
from poiesis.api.paging import page_token, read_token
from poiesis.api.query import QUERY, Query
from poiesis.api.requests import REQUEST
from poiesis.api.users import USER, User
from poiesis.api.validation import DOCUMENT, TASK
from poiesis.domain.task import View
from poiesis.ports.repository import TaskFilter

P = ParamSpec("P")
T = TypeVar("T")
Document = dict[str, Any]

OLD_SERVICE_INFO: Final = "service-info"
"""Never an id: the path `/tasks/service-info` of TES 0.4, which py-tes 0.4 (Toil's) reads before it creates a task."""
LARGE_READS: Final = 4
"""Reads of whole documents at once: they take several times their bytes as Python objects."""


class Handlers:
    def __init__(self, context: Context) -> None:
        services = context.services
        self._call = context.call
        self._tasks = services.tasks
        self._views = context.views
        self._info = views.service_info(services.service, services.policy, services.describe)
        self._old_info = views.old_service_info(self._info)
        self._large_reads = asyncio.Semaphore(LARGE_READS)

    async def GetServiceInfo(self, scope: Scope) -> Document:
        return self._info

    async def CreateTask(self, scope: Scope) -> Document:
        user: User = scope[USER]
        document, spec = scope.pop(DOCUMENT), scope.pop(TASK)  # the scope outlives the response
        key = idempotency_key(scope, document)
        task_id = await self._call(self._tasks.create, spec, owner=user.name, groups=user.groups, key=key)
        scope[REQUEST].task = task_id
        return {"id": task_id}

    async def GetTask(self, scope: Scope) -> Document:
        view, user, task_id = scope[QUERY].view, scope[USER], scope["path_params"]["id"]
        if task_id == OLD_SERVICE_INFO:
            return self._old_info
        task = await self._read(view, self._tasks.get, task_id, view, access=user.access)
        return self._views.task(task, view)

    async def ListTasks(self, scope: Scope) -> Document:
        query: Query = scope[QUERY]
        where = TaskFilter(
            query.name_prefix, self._views.stored_states(query.state), query.tags, access=scope[USER].access
        )
        after = read_token(query.page_token, where)
        page = await self._read(
            query.view, self._tasks.list, where, limit=query.page_size, after=after, view=query.view
        )
        document: Document = {"tasks": [self._views.task(task, query.view) for task in page.tasks]}
        if page.next_after is not None:
            document["next_page_token"] = page_token(where, page.next_after)
        return document

    async def CancelTask(self, scope: Scope) -> Document:
        await self._call(self._tasks.cancel, scope["path_params"]["id"], access=scope[USER].access)
        return {}

    async def _read(self, asked: View, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        async with nullcontext() if asked is View.MINIMAL else self._large_reads:
            return await self._call(function, *args, **kwargs)
