"""What `decide` returns: effects on the cluster as values, and the task to save after them."""

from __future__ import annotations

from dataclasses import dataclass

from poiesis.domain.task import Task


@dataclass(frozen=True)
class CreateVolume:
    pass


@dataclass(frozen=True)
class CreateDocuments:
    pass


@dataclass(frozen=True)
class Launch:
    part: str


@dataclass(frozen=True)
class DeletePods:
    pass


@dataclass(frozen=True)
class DeleteAll:
    pass


Effect = CreateVolume | CreateDocuments | Launch | DeletePods | DeleteAll


@dataclass(frozen=True)
class Decision:
    """`task`: to save after all `effects` have succeeded, if it differs. `again`: the new stage can be decided at once."""

    task: Task
    effects: tuple[Effect, ...] = ()
    again: bool = False
