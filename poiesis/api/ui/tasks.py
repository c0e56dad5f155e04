"""The list of tasks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final
from urllib.parse import urlencode

import flask
from werkzeug.datastructures import MultiDict

from poiesis.api.paging import page_token, read_token
from poiesis.api.ui.site import Ui, current_user, page
from poiesis.api.users import User
from poiesis.domain.errors import InvalidRequest
from poiesis.domain.states import State
from poiesis.domain.task import View
from poiesis.ports.repository import TaskFilter

PAGE_SIZE: Final = 50
STATES: Final = tuple(state for state in State if state not in (State.UNKNOWN, State.PAUSED))


@dataclass(frozen=True)
class Asked:
    """What the address of the page asks for."""

    states: tuple[State, ...] = ()
    name: str = ""
    tag: str = ""
    owner: str = ""
    page: str = ""

    def query(self, **changes: Any) -> str:
        """The query of an address with changes; the page is the first unless it is given."""
        asked = replace(self, **{"page": "", **changes})
        pairs = [("state", state.value) for state in asked.states]
        pairs += [(name, value) for name in ("name", "tag", "owner", "page") if (value := getattr(asked, name))]
        return "?" + urlencode(pairs) if pairs else "?"

    @property
    def is_narrowed(self) -> bool:
        return bool(self.states or self.name or self.tag or self.owner)

    def where(self, ui: Ui, user: User) -> TaskFilter:
        stored = frozenset(state for shown in self.states for state in ui.context.views.stored_states(shown))
        key, _, value = self.tag.partition("=")
        return TaskFilter(
            name_prefix=self.name,
            states=stored,
            tags=((key, value),) if key else (),
            owner=self.owner or None if user.admin else None,
            access=user.access,
        )


def read_asked(given: MultiDict[str, str]) -> Asked:
    """Raises: InvalidRequest."""
    try:
        states = tuple(dict.fromkeys(State(text.upper()) for text in given.getlist("state") if text))
    except ValueError:
        raise InvalidRequest("state", f"must be some of {', '.join(STATES)}") from None
    texts = {name: given.get(name, "").strip() for name in ("name", "tag", "owner", "page")}
    return Asked(states, **texts)


def register(ui: Ui) -> None:
    ui.add_link("Tasks", "/ui/tasks", order=20)

    @ui.get("/tasks")
    def tasks() -> Any:
        user, asked = current_user(), read_asked(flask.request.args)
        where = asked.where(ui, user)
        after = read_token(asked.page or None, where)
        found = ui.services.tasks.list(where, limit=PAGE_SIZE, after=after, view=View.BASIC)
        older = None if found.next_after is None else asked.query(page=page_token(where, found.next_after))
        return page(
            "tasks.html",
            tasks=found.tasks,
            asked=asked,
            states=STATES,
            older=older,
            shown_state=ui.context.views.state,
        )
