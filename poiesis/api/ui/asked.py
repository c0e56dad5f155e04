"""What the address of the list of tasks asks for: filters, order, grouping, page."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from urllib.parse import urlencode

from werkzeug.datastructures import MultiDict

from poiesis.api.ui.site import Ui
from poiesis.api.users import User
from poiesis.api.views import NO_STATE
from poiesis.domain.access import Access
from poiesis.domain.errors import InvalidRequest
from poiesis.domain.states import State
from poiesis.ports.repository import TaskFilter

STATES: Final = tuple(state for state in State if state not in (State.UNKNOWN, State.PAUSED))
WAITING: Final = (State.QUEUED, State.INITIALIZING)
ORDERS: Final = {"": "Newest first", "oldest": "Oldest first", "longest": "Longest running first"}
_TEXTS: Final = ("name", "tag", "owner", "group", "page")
YEARS: Final = range(1970, 9999)
"""What every store and time zone can express."""
_MINUTE: Final = "%Y-%m-%dT%H:%M"


@dataclass(frozen=True)
class Asked:
    """`created_to` is a minute that is included. `group`: the key of a tag."""

    states: tuple[State, ...] = ()
    name: str = ""
    tag: str = ""
    owner: str = ""
    created_from: datetime | None = None
    created_to: datetime | None = None
    order: str = ""
    group: str = ""
    page: str = ""

    def query(self, **changes: Any) -> str:
        """The query of an address with changes; the page is the first unless it is given."""
        return "?" + urlencode(list(replace(self, **{"page": "", **changes}).pairs()))

    def pairs(self) -> Iterator[tuple[str, str]]:
        """Parameters and their values; only those that are given."""
        yield from (("state", state.value) for state in self.states)
        yield from ((name, value) for name in _TEXTS if (value := getattr(self, name)))
        if self.order:
            yield "order", self.order
        for name, moment in (("from", self.created_from), ("to", self.created_to)):
            if moment is not None:
                yield name, moment.strftime(_MINUTE)

    @property
    def is_narrowed(self) -> bool:
        return bool(self.states or self.name or self.tag or self.owner or self.created_from or self.created_to)

    def where(self, ui: Ui, user: User, *, only_own: bool = False) -> TaskFilter:
        """`only_own`: without the tasks of other members of the user's groups, also where `owner` is the user."""
        stored = frozenset(state for shown in self.states for state in ui.context.views.stored_states(shown))
        key, _, value = self.tag.partition("=")
        access = user.access
        only_own = only_own or self.owner == user.name
        return TaskFilter(
            name_prefix=self.name,
            states=stored or (NO_STATE if self.states else frozenset()),
            tags=((key, value),) if key else (),
            owner=self.owner or None if user.admin else None,
            access=Access(access.owner) if only_own and access is not None else access,
            created_from=self.created_from,
            created_to=None if self.created_to is None else self.created_to + timedelta(minutes=1),
            oldest_first=self.order in ("oldest", "longest"),
        )


def read_asked(given: MultiDict[str, str]) -> Asked:
    """Raises: InvalidRequest."""
    try:
        states = tuple(dict.fromkeys(State(text.upper()) for text in given.getlist("state") if text))
    except ValueError:
        raise InvalidRequest("state", f"must be some of {', '.join(STATES)}") from None
    order = given.get("order", "")
    if order not in ORDERS:
        raise InvalidRequest("order", f"must be one of {', '.join(filter(None, ORDERS))}")
    texts = {name: given.get(name, "").strip() for name in _TEXTS}
    return Asked(states, created_from=_moment(given, "from"), created_to=_moment(given, "to"), order=order, **texts)


def _moment(given: MultiDict[str, str], name: str) -> datetime | None:
    """A minute of UTC, as `<input type=datetime-local>` sends it, or a day."""
    text = given.get(name, "").strip()
    if not text:
        return None
    for form in (_MINUTE, "%Y-%m-%d"):
        try:
            found = datetime.strptime(text, form).replace(tzinfo=UTC)
        except ValueError:
            continue
        if found.year in YEARS:
            return found
    raise InvalidRequest(name, "must be a time in UTC such as 2026-01-31T12:00, or a day such as 2026-01-31")
