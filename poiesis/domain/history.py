"""The changes of a task that its users see: of its state, and of the reason why it waits; and the times of its phases.

`Task.recorded` adds a change to `Task.history`: it is called before each save, and stores make an event of the change with the save.
`Task.phases` has the times that nothing else of a task keeps; `domain.timeline` makes the whole of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

from poiesis.domain.states import State

MAX_CHANGES: Final = 200
KEPT_FIRST: Final = 50
MAX_REASON: Final = 500  # characters
MAX_PHASES: Final = 200

Result = Literal["ok", "failed", "canceled"]


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


@dataclass(frozen=True)
class Phase:
    """`name`: `queued`, `admitted`, `scheduled`, `images`, `inputs`, `executor 0`, …, `outputs` or `cleanup`. `end` and `outcome` None: it
    goes on, or its end is not known. `reason`: the CamelCase word for why an attempt was lost, in its `cleanup`."""

    name: str
    attempt: int
    start: datetime
    end: datetime | None = None
    outcome: Result | None = None
    reason: str | None = None


def with_phases(phases: tuple[Phase, ...], *new: Phase) -> tuple[Phase, ...]:
    """At most MAX_PHASES; later ones are not kept."""
    return (*phases, *new[: max(0, MAX_PHASES - len(phases))])


def with_change(history: tuple[Change, ...], change: Change) -> tuple[Change, ...]:
    """At most MAX_CHANGES: the first KEPT_FIRST and the last ones."""
    if len(history) >= MAX_CHANGES:
        history = (*history[:KEPT_FIRST], *history[KEPT_FIRST + 1 + len(history) - MAX_CHANGES :])
    return (*history, change)


def _word(reason: str | None) -> str | None:
    return None if reason is None else reason.split(":")[0]
