"""Why a task waits, what it does, or why it failed: a sentence, and how it came to that."""

from __future__ import annotations

from typing import Any

from starlette.types import Scope

from poiesis.api.extensions.context import Context, Document, Handler
from poiesis.api.users import USER
from poiesis.api.views import time_text
from poiesis.domain.task import Task, View
from poiesis.domain.timeline import Phase, timeline
from poiesis.domain.why import explain


def operations(context: Context) -> dict[str, Handler]:
    async def why(scope: Scope) -> Document:
        task = await context.call(
            context.services.tasks.get, scope["path_params"]["id"], View.FULL, access=scope[USER].access
        )
        assert isinstance(task, Task)
        document: dict[str, Any] = {
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
        document["timeline"] = [_phase(phase) for phase in timeline(task)]
        if task.waiting_since is not None and task.waiting is not None:
            document["waiting_since"] = time_text(task.waiting_since)
        return document

    return {"ExplainTask": why}


def _phase(phase: Phase) -> Document:
    document: dict[str, Any] = {"name": phase.name, "attempt": phase.attempt, "start": time_text(phase.start)}
    if phase.end is not None:
        document["end"] = time_text(phase.end)
    document |= {name: value for name in ("outcome", "reason") if (value := getattr(phase, name)) is not None}
    return document
