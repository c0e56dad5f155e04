"""Where a task's containers run: Kubernetes, or one machine.

Every object is named from task id and attempt (`domain.naming`), so each call may be repeated: what exists already is success, what is
gone already is success. No call waits for a container.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Protocol, runtime_checkable

from poiesis.domain.observed import Observed, Record
from poiesis.domain.plan import Plan, PodPlan
from poiesis.domain.task import Task, TaskId


class Cluster(Protocol):
    """All methods raise ClusterUnavailable or QuotaExceeded (repeat later), ClusterRefused (never)."""

    def create_volume(self, task: Task, plan: Plan) -> None:
        """Make the volume that `plan.volume` asks for, empty."""
        ...

    def create_documents(self, task: Task, plan: Plan) -> None:
        """Make what the filers read: their part of the task, visible to them alone."""
        ...

    def launch(self, task: Task, plan: Plan, pod: PodPlan) -> None:
        """Start one pod of the plan; its containers begin side by side and take turns."""
        ...

    def observe(self, task: Task, *, poked: bool = False, tails: bool = False) -> Observed:
        """All that exists of the task, all attempts.

        Records and reports of the present attempt are filled in for what has ended. `poked`: the task's containers said that the end
        has come, so look for records before the cluster shows it. `tails`: read live ends of running executors' output too.
        """
        ...

    def delete_pods(self, task: Task) -> None:
        """Ask for the end of every pod of the task, all attempts: their commands get SIGTERM, after a grace SIGKILL."""
        ...

    def delete_all(self, task: Task) -> None:
        """Ask for the removal of every object of the task, all attempts: pods first, then documents and volumes."""
        ...

    def ready(self) -> None:
        """Returns, or raises ClusterUnavailable."""
        ...

    def close(self) -> None: ...


class ClusterEvents(Protocol):
    """Optional ability: tell what changed. An event is a task id and only wakes `reconcile`."""

    def follow(self, wake: Callable[[TaskId], None]) -> None:
        """Call `wake` for every task of which something changed, from any thread, until `close`. Missed events are found by resync."""
        ...

    def task_ids(self) -> Iterable[TaskId]:
        """The ids of all tasks that own something in the cluster now: what the sweep compares with the store."""
        ...


@runtime_checkable
class TellsStarting(Protocol):
    """Optional ability: tell which tasks keep the nodes busy with starting their pods."""

    def starting(self) -> Collection[TaskId]:
        """Tasks with a pod that has a node and whose containers do not all run yet; not those that cannot start. Costs no call."""
        ...


@runtime_checkable
class HearsRecords(Protocol):
    """Optional ability: take closing records from the containers themselves, before the cluster can show them."""

    def hear(self, task: Task, records: Sequence[Record]) -> None:
        """What containers of the task's present pod sent along with a poke; `observe` shows it from now on. Bounded, may be forgotten."""
        ...
