"""States and stages of a task, and the one table of allowed moves.

A *state* is what TES clients see (spec: tesState). A *stage* says which role has to act next; no client sees it. The store moves
a task by compare-and-set alone, and only along `TRANSITIONS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from poiesis.domain.errors import IllegalTransition


class State(StrEnum):
    """Spec: tesState. UNKNOWN and PAUSED exist for filters; Poiesis never puts a task there."""

    UNKNOWN = "UNKNOWN"
    QUEUED = "QUEUED"
    INITIALIZING = "INITIALIZING"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    COMPLETE = "COMPLETE"
    EXECUTOR_ERROR = "EXECUTOR_ERROR"
    SYSTEM_ERROR = "SYSTEM_ERROR"
    CANCELED = "CANCELED"
    PREEMPTED = "PREEMPTED"
    CANCELING = "CANCELING"

    @property
    def is_terminal(self) -> bool:
        return self in TERMINAL


class Stage(StrEnum):
    """What has to happen next, in order. `Role` of each: `ROLE_OF`."""

    PREPARE = "prepare"  # torc: the task's volume
    STAGE_IN = "stage_in"  # tif: the filers' document; in the staged layout the TIF pod
    LAUNCH = "launch"  # texam: the pod
    RUN = "run"  # texam: follow the containers until their records are in
    STAGE_OUT = "stage_out"  # tof: what was uploaded; in the staged layout the TOF pod
    FINISH = "finish"  # torc: settle the end
    CLEAN = "clean"  # torc: remove every object, see that it is gone
    DONE = "done"  # nothing is left to do, nothing is left behind

    @property
    def is_ending(self) -> bool:
        """Whether the task, or its attempt, has an outcome: from here on objects are only deleted."""
        return self in (Stage.FINISH, Stage.CLEAN, Stage.DONE)


class Role(StrEnum):
    TORC = "torc"
    TIF = "tif"
    TEXAM = "texam"
    TOF = "tof"


ROLE_OF: Final[Mapping[Stage, Role]] = {
    Stage.PREPARE: Role.TORC,
    Stage.STAGE_IN: Role.TIF,
    Stage.LAUNCH: Role.TEXAM,
    Stage.RUN: Role.TEXAM,
    Stage.STAGE_OUT: Role.TOF,
    Stage.FINISH: Role.TORC,
    Stage.CLEAN: Role.TORC,
    Stage.DONE: Role.TORC,
}

TRANSITIONS: Final[Mapping[State, frozenset[State]]] = {  # TES 1.1, tesState
    State.QUEUED: frozenset({State.INITIALIZING, State.CANCELING, State.CANCELED, State.SYSTEM_ERROR}),
    State.INITIALIZING: frozenset({State.RUNNING, State.CANCELING, State.PREEMPTED, State.SYSTEM_ERROR}),
    State.RUNNING: frozenset(
        {State.COMPLETE, State.EXECUTOR_ERROR, State.SYSTEM_ERROR, State.PREEMPTED, State.CANCELING}
    ),
    State.CANCELING: frozenset({State.CANCELED, State.SYSTEM_ERROR}),
}  # absent as a key: terminal, no way out (UNKNOWN and PAUSED are never entered)

TERMINAL: Final = frozenset({State.COMPLETE, State.EXECUTOR_ERROR, State.SYSTEM_ERROR, State.CANCELED, State.PREEMPTED})

_FORWARD: Final = (State.QUEUED, State.INITIALIZING, State.RUNNING)


def path(seen: State, to: State) -> tuple[State, ...]:
    """The moves from `seen` to `to`, each allowed by the table; empty when they are the same.

    An observer that meets a finished task it never saw running walks the table in order: QUEUED → INITIALIZING → RUNNING → COMPLETE.
    Raises: IllegalTransition when the table has no way.
    """
    if seen == to:
        return ()
    steps: list[State] = []
    at = seen
    while to not in TRANSITIONS.get(at, frozenset()):
        if at not in _FORWARD[:-1]:
            raise IllegalTransition(f"a task cannot move from {seen} to {to}")
        at = _FORWARD[_FORWARD.index(at) + 1]
        steps.append(at)
    return (*steps, to)
