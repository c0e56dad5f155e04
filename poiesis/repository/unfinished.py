"""Keys of tasks that have not ended, from which they are counted by state and reason without reading them: STATE/REASON/OWNER.

Stores index the keys of only these tasks, so that a count costs what is counted, whatever else is stored.
"""

from __future__ import annotations

from typing import Final

from poiesis.domain.decide.admission import waiting_word
from poiesis.domain.states import State
from poiesis.domain.task import Task

MAX_GROUPS: Final = 100  # pairs of state and reason that are counted


def unfinished_key(task: Task) -> str | None:
    """None: the task has ended."""
    return None if task.state.is_terminal else f"{group_key(task.state, waiting_word(task))}/{task.owner or ''}"


def group_key(state: State, reason: str = "") -> str:
    """Without the slash and the owner."""
    return f"{state.value}/{reason}"


def group_of(key: str) -> tuple[State, str]:
    state, reason, _ = key.split("/", 2)
    return State(state), reason
