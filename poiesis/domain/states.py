"""States and stages of a task, and the table of allowed transitions.

A *state* is what TES clients see (spec: tesState). A *stage* is what has to happen next, and by which role; clients do not see it. The
store changes a task only by compare-and-set, and only along `TRANSITIONS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from poiesis.domain.errors import IllegalTransition


class State(StrEnum):
    """Spec: tesState. UNKNOWN and PAUSED exist only for filters; no task enters them."""

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
    """What has to happen next, in order. `ROLE_OF` has the role of each."""

    ADMIT = "admit"  # the leading monitor: wait for room in the site's quotas; only where there are any
    PREPARE = "prepare"  # torc: the task's volume
    STAGE_IN = "stage_in"  # tif: the filers' document; in the staged layout the TIF pod
    LAUNCH = "launch"  # texam: the pod
    RUN = "run"  # texam: follow the containers until they have ended
    STAGE_OUT = "stage_out"  # tof: in the staged layout the TOF pod; a repeated upload
    FINISH = "finish"  # torc: the final state, or the next attempt
    CLEAN = "clean"  # torc: delete every object and verify that it is gone
    DONE = "done"  # nothing is left to do, and nothing is left in the cluster

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
    Stage.ADMIT: Role.TORC,
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
}  # states without an entry are terminal (UNKNOWN and PAUSED are never entered)

TERMINAL: Final = frozenset({State.COMPLETE, State.EXECUTOR_ERROR, State.SYSTEM_ERROR, State.CANCELED, State.PREEMPTED})

_FORWARD: Final = (State.QUEUED, State.INITIALIZING, State.RUNNING)


def path(seen: State, to: State) -> tuple[State, ...]:
    """Return the transitions from `seen` to `to`, each allowed by the table; empty if they are equal.

    An observer of a finished task that it never saw running passes through every state: QUEUED → INITIALIZING → RUNNING → COMPLETE.
    Raises: IllegalTransition if there is no path.
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
