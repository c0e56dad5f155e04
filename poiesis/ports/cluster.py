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

    def observe(self, task: Task, *, plan: Plan | None = None, poked: bool = False, tails: bool = False) -> Observed:
        """Everything that exists of the task, from all attempts.

        Records and reports of the current attempt are filled in for containers that have ended. `plan`: the task's, if the caller
        has made it. `poked`: a container reported its end, so look for records before the cluster shows it. `tails`: also read the
        last output of running executors.
        """
        ...

    def delete_pods(self, task_id: TaskId, attempts: int, plan: Plan | None = None) -> None:
        """Request deletion of every pod of attempts 1 to `attempts`: their commands get SIGTERM, and SIGKILL after a grace period.

        `plan`, of the last attempt, saves looking up the names of its objects.
        """
        ...

    def delete_all(self, task_id: TaskId, attempts: int, plan: Plan | None = None) -> None:
        """Like `delete_pods`, and of documents and volumes after the pods."""
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
class ReportsStarting(Protocol):
    """Optional ability: tell which tasks keep the nodes busy with starting their pods."""

    def starting(self) -> Collection[TaskId]:
        """Tasks with a pod that has a node and whose containers do not all run yet; not those that cannot start. Costs no call."""
        ...


@runtime_checkable
class AcceptsRecords(Protocol):
    """Optional ability: take closing records from the containers themselves, before the cluster can show them."""

    def accept_records(self, task: Task, records: Sequence[Record]) -> None:
        """What containers of the task's present pod sent along with a poke; `observe` shows it from now on. Bounded, may be forgotten."""
        ...
