"""The list of tasks: filtered, ordered, grouped by a tag, and many at once to cancel or run again (`bulk`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

import flask

from poiesis.api.paging import page_token, read_token
from poiesis.api.ui import bulk
from poiesis.api.ui.asked import ORDERS, STATES, WAITING, Asked, read_asked
from poiesis.api.ui.formats import duration, state_group
from poiesis.api.ui.site import Ui, current_user, page
from poiesis.domain.states import State
from poiesis.domain.task import Task, View
from poiesis.ports.repository import TaskFilter

PAGE_SIZE: Final = 50
SORTED: Final = 500
"""How many running tasks, those created first, are searched for the longest running ones."""
SAMPLE: Final = 500
"""Newest tasks whose tags are the groups."""
MAX_GROUPS: Final = 50
COUNTED: Final = 1_000
"""Tasks of a group are counted up to this."""
SHOWN_TAGS: Final = 3
MAX_WHY: Final = 160


@dataclass(frozen=True)
class Row:
    """`time`: how long it has waited or runs, or how long it took. `why`: the reason for waiting or failing."""

    task: Task
    state: State
    time: str
    why: str
    tags: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Group:
    """The tasks with one value of a tag: `count` of all, up to COUNTED; `states` of those in the sample, by `state_group`."""

    value: str
    count: int
    states: Sequence[tuple[str, int]]


def register(ui: Ui) -> None:
    ui.add_link("Tasks", "/ui/tasks", order=20)
    bulk.register(ui)

    @ui.get("/tasks")
    def tasks() -> Any:
        asked = read_asked(flask.request.args)
        if asked.group:
            return page("task_groups.html", **_shared(asked), **_groups(ui, asked))
        found, following = _longest(ui, asked) if asked.order == "longest" else _page(ui, asked)
        return page("tasks.html", **_shared(asked), rows=[_row(ui, task) for task in found], following=following)


def _shared(asked: Asked) -> dict[str, Any]:
    groups = {state.value: state_group(state) for state in State}
    return {"asked": asked, "states": STATES, "orders": ORDERS, "waiting": WAITING, "groups_of_states": groups}


def _page(ui: Ui, asked: Asked) -> tuple[Sequence[Task], str | None]:
    """The tasks of one page, and the address of the next."""
    where = asked.where(ui, current_user())
    after = read_token(asked.page or None, where)
    found = ui.services.tasks.list(where, limit=PAGE_SIZE, after=after, view=View.BASIC)
    following = None if found.next_after is None else asked.query(page=page_token(where, found.next_after))
    return [task for task in found.tasks if isinstance(task, Task)], following


def _longest(ui: Ui, asked: Asked) -> tuple[Sequence[Task], None]:
    """Those that have been running for the longest time, among the SORTED ones that were created first."""
    where = replace(asked, states=(State.RUNNING,)).where(ui, current_user())
    found = ui.services.tasks.list(where, limit=SORTED, after=None, view=View.BASIC)
    running = [task for task in found.tasks if isinstance(task, Task)]
    return sorted(running, key=lambda task: since(task) or task.created_at)[:PAGE_SIZE], None


def _groups(ui: Ui, asked: Asked) -> dict[str, Any]:
    user = current_user()
    where = asked.where(ui, user)
    tagged = replace(where, tags=(*where.tags, (asked.group, "")))
    found = ui.services.tasks.list(tagged, limit=SAMPLE, after=None, view=View.BASIC)
    sample = [task for task in found.tasks if isinstance(task, Task)]
    values = Counter(task.spec.tags[asked.group] for task in sample if asked.group in task.spec.tags)
    groups = []
    for value, in_sample in values.most_common(MAX_GROUPS):
        states = Counter(state_group(t.state) for t in sample if t.spec.tags.get(asked.group) == value)
        # a filter cannot ask for an empty value: it stands for any
        count = _count(ui, replace(where, tags=(*where.tags, (asked.group, value)))) if value else in_sample
        groups.append(Group(value, count, states.most_common()))
    return {
        "groups": groups,
        "more_groups": max(0, len(values) - MAX_GROUPS),
        "sampled": len(sample) if found.next_after is not None else None,
        "counted": COUNTED,
    }


def _count(ui: Ui, where: TaskFilter) -> int:
    return ui.services.tasks.repository.count(where, limit=COUNTED)


def _row(ui: Ui, task: Task) -> Row:
    now = ui.services.tasks.clock.now()
    return Row(
        task=task,
        state=ui.context.views.state(task.state),
        time=_time(task, now),
        why=(task.reason or "")[:MAX_WHY],
        tags=list(task.spec.tags.items())[:SHOWN_TAGS],
    )


def since(task: Task) -> datetime | None:
    """When the task came into its state."""
    return next((change.at for change in reversed(task.history) if change.state is task.state), None)


def _time(task: Task, now: datetime) -> str:
    if task.state.is_terminal:
        end = task.log.end_time or since(task)
        return "" if end is None else duration(end - (task.log.start_time or task.created_at))
    begin = since(task) if task.state is State.RUNNING else task.created_at
    return duration(now - (begin or task.created_at))
