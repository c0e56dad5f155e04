"""The changes of a task that its users see: of its state, and of the reason why it waits.

`Task.recorded` adds a change to `Task.history`: it is called before each save, and stores make an event of the change with the save.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from poiesis.domain.states import State

MAX_CHANGES: Final = 200
KEPT_FIRST: Final = 50
MAX_REASON: Final = 500  # characters


@dataclass(frozen=True)
class Change:
    """`n`: the version of the task that has it first, so it grows but has gaps. `reason` (`Reason: message`): why the task waits, or
    how it failed; None: neither."""

    n: int
    at: datetime
    state: State
    reason: str | None = None

    def shows(self, state: State, reason: str | None) -> bool:
        """Whether `state` and `reason` are nothing new: messages change often, so only the word before the colon is compared."""
        return self.state is state and _word(self.reason) == _word(reason)


def with_change(history: tuple[Change, ...], change: Change) -> tuple[Change, ...]:
    """At most MAX_CHANGES: the first KEPT_FIRST and the last ones."""
    if len(history) >= MAX_CHANGES:
        history = (*history[:KEPT_FIRST], *history[KEPT_FIRST + 1 + len(history) - MAX_CHANGES :])
    return (*history, change)


def _word(reason: str | None) -> str | None:
    return None if reason is None else reason.split(":")[0]
