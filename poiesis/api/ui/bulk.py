"""Canceling, or running again, many tasks: a page that shows how many, then the form that does it, in bounded steps.

`do` is `cancel` or `rerun`. The tasks are those of `id`, or with `all` those that match the filters of the list and existed when the page
was shown; of other members of a group, none.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final

import flask
from werkzeug.datastructures import MultiDict

from poiesis.api.extensions.bulk import UNFINISHED
from poiesis.api.extensions.rerun import copy_of
from poiesis.api.paging import page_token, read_token
from poiesis.api.ui.asked import YEARS, Asked, read_asked
from poiesis.api.ui.site import Ui, current_request, current_user, page
from poiesis.api.users import User
from poiesis.api.views import NO_STATE
from poiesis.domain.errors import Forbidden, InvalidRequest, InvalidTask, PoiesisError, Unavailable, UnknownTask
from poiesis.domain.naming import is_task_id
from poiesis.domain.task import TaskId, View
from poiesis.ports.idempotency import IdempotencyKey
from poiesis.ports.repository import COUNT_LIMIT, TaskFilter

ACTIONS: Final = {"cancel": "Cancel", "rerun": "Run again"}
MAX_IDS: Final = 200
STEP: Final = 500
"""Tasks of one request; the page then asks to go on."""
STEP_S: Final = 5.0
LISTED: Final = 20
MAX_PROBLEMS: Final = 20


@dataclass
class Done:
    """What one step did. `next_after`: where the next goes on."""

    tasks: list[str] = field(default_factory=list)
    """The ids of those that were canceled, or created."""
    unchanged: int = 0
    problems: list[str] = field(default_factory=list)
    failed: int = 0
    next_after: TaskId | None = None

    @property
    def changed(self) -> int:
        return len(self.tasks)

    def fail(self, task_id: str, error: Exception) -> None:
        self.failed += 1
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(f"{task_id}: {error}")

    def stop(self, ids: Sequence[str], error: Exception, *, goes_on: bool) -> None:
        """After the first of `ids`. The others are left to the next step, or have failed where there is none."""
        if goes_on:
            self.next_after = TaskId(ids[0])
            self.problems.append(str(error))
            return
        for task_id in ids[1:]:
            self.fail(task_id, error)


@dataclass(frozen=True)
class Choice:
    """What a request chose. `until`: with `all`, the time before which the tasks were created."""

    do: str
    ids: tuple[str, ...]
    asked: Asked | None
    until: datetime
    nonce: str

    def where(self, ui: Ui, user: User) -> TaskFilter:
        assert self.asked is not None
        where = self.asked.where(ui, user, only_own=True)
        until = self.until if where.created_to is None else min(self.until, where.created_to)
        where = replace(where, created_to=until, oldest_first=False)
        if self.do == "rerun":
            return where
        states = where.states & UNFINISHED if where.states else UNFINISHED
        return replace(where, states=states or NO_STATE)

    def fields(self) -> list[tuple[str, str]]:
        """Return the fields of the form, which are also the parameters of the following addresses."""
        pairs = [("do", self.do), ("until", self.until.isoformat()), ("nonce", self.nonce)]
        return pairs + ([("id", i) for i in self.ids] if self.asked is None else [("all", "1"), *self.asked.pairs()])


def register(ui: Ui) -> None:
    @ui.get("/tasks/bulk")
    def confirm() -> Any:
        choice = _read(flask.request.args, ui.services.tasks.clock.now())
        return page(
            "bulk_confirm.html",
            choice=choice,
            title=ACTIONS[choice.do],
            limit=COUNT_LIMIT,
            step=STEP,
            **_counted(ui, choice),
        )

    @ui.post("/tasks/bulk")
    def act() -> Any:
        form = flask.request.form
        choice = _read(form, ui.services.tasks.clock.now())
        before = {name: _number(form.get(name, "0")) for name in ("changed", "unchanged", "failed")}
        done = _step(ui, choice, form.get("after") or None)
        current_request().tasks = done.tasks
        total = {name: before[name] + getattr(done, name) for name in before}
        after = None
        if done.next_after is not None:
            after = page_token(choice.where(ui, current_user()), done.next_after)
        return page("bulk_done.html", choice=choice, title=ACTIONS[choice.do], done=done, total=total, after=after)


def _read(given: MultiDict[str, str], now: datetime) -> Choice:
    """Raises: InvalidRequest."""
    do = given.get("do", "")
    if do not in ACTIONS:
        raise InvalidRequest("do", f"must be one of {', '.join(ACTIONS)}")
    ids = tuple(dict.fromkeys(i for i in given.getlist("id") if is_task_id(i)))
    if len(ids) > MAX_IDS:
        raise InvalidRequest("id", f"must be given at most {MAX_IDS} times: choose by a filter instead")
    is_all = given.get("all") == "1"
    try:
        until = datetime.fromisoformat(given["until"]) if given.get("until") else now
        until = min(until, now)
        if until.year not in YEARS:
            raise ValueError(until)
    except (ValueError, TypeError):
        raise InvalidRequest("until", "must be a time with its offset") from None
    asked = replace(read_asked(given), page="", group="", order="") if is_all else None
    nonce = given.get("nonce", "")[:64] or secrets.token_urlsafe(16)
    return Choice(do, () if is_all else ids, asked, until, nonce)


def _counted(ui: Ui, choice: Choice) -> dict[str, Any]:
    """How many tasks it is about, and the first of them."""
    user, tasks = current_user(), ui.services.tasks
    if choice.asked is not None:
        where = choice.where(ui, user)
        found = tasks.list(where, limit=LISTED, after=None, view=View.BASIC)
        return {"count": tasks.repository.count(where), "listed": found.tasks}
    states = tasks.states(choice.ids, access=user.access)
    ids = [i for i, state in states.items() if choice.do == "rerun" or state in UNFINISHED]
    listed = [tasks.get(i, View.BASIC, access=user.access) for i in ids[:LISTED]]
    return {"count": len(ids), "listed": listed, "left_out": len(choice.ids) - len(ids)}


def _step(ui: Ui, choice: Choice, after: str | None) -> Done:
    """Act on as many tasks as one request may."""
    user, done = current_user(), Done()
    if choice.asked is None:
        ids: Sequence[str] = choice.ids
    else:
        where = choice.where(ui, user)
        found = ui.services.tasks.list(where, limit=STEP, after=read_token(after, where), view=View.MINIMAL)
        ids, done.next_after = [task.id for task in found.tasks], found.next_after
    deadline = time.monotonic() + STEP_S
    for i, task_id in enumerate(ids):
        try:
            if choice.do == "rerun":
                done.tasks.append(_rerun(ui, task_id, user, choice.nonce))
            elif ui.services.tasks.cancel(task_id, access=user.access):
                done.tasks.append(task_id)
            else:
                done.unchanged += 1
        except (UnknownTask, Forbidden, InvalidTask) as error:
            done.fail(task_id, error)
        except PoiesisError as error:
            if i == 0:
                raise
            if isinstance(error, Unavailable):  # each of the following would wait for the store as long
                done.stop(ids[i - 1 :], error, goes_on=choice.asked is not None)
                break
            done.fail(task_id, error)
        if choice.asked is not None and i + 1 < len(ids) and time.monotonic() > deadline:
            done.next_after = TaskId(task_id)
            break
    return done


def _rerun(ui: Ui, task_id: str, user: User, nonce: str) -> TaskId:
    """The id of the new task. The form sent twice creates each task once."""
    spec = copy_of(ui.context, task_id, {}, user)
    digest = hashlib.sha256(f"{nonce} {task_id}".encode()).hexdigest()
    key = IdempotencyKey(f"ui-{digest[:40]}", digest)
    return ui.services.tasks.create(spec, owner=user.name, groups=user.groups, key=key)


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
