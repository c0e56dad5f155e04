"""Why a task waits, what it does, or why it failed: a sentence, and how it came to that."""

from __future__ import annotations

from starlette.types import Scope

from poiesis.api.extensions.context import Context, Document, Handler
from poiesis.api.users import USER
from poiesis.api.views import time_text
from poiesis.domain.task import Task, View
from poiesis.domain.why import explain


def operations(context: Context) -> dict[str, Handler]:
    async def why(scope: Scope) -> Document:
        task = await context.call(
            context.services.tasks.get, scope["path_params"]["id"], View.FULL, access=scope[USER].access
        )
        assert isinstance(task, Task)
        document = {
            "id": task.id,
            "state": context.views.state(task.state),
            "why": explain(task),
            "attempt": task.attempt,
            "history": [
                {
                    "at": time_text(change.at),
                    "state": context.views.state(change.state),
                    **({"reason": change.reason} if change.reason else {}),
                }
                for change in task.history
            ],
        }
        if task.waiting_since is not None and task.waiting is not None:
            document["waiting_since"] = time_text(task.waiting_since)
        return document

    return {"ExplainTask": why}
