"""Where a task's containers run: Kubernetes, or one machine.

Object names are made from task id and attempt (`domain.naming`), so each call may be repeated: creating what exists and deleting what is
gone succeed. No call waits for a container.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import timedelta
from typing import Final, Protocol, runtime_checkable

from poiesis.domain.observed import Observed, Record
from poiesis.domain.plan import Plan, PodPlan
from poiesis.domain.task import Task, TaskId

LAUNCH_WITHIN: Final = timedelta(seconds=60)


class Cluster(Protocol):
    """All methods raise ClusterUnavailable and QuotaExceeded (retry later), and ClusterRefused (never retry)."""

    def create_volume(self, task: Task, plan: Plan) -> None:
        """Create the volume of `plan.volume_bytes`, empty."""

    def create_documents(self, task: Task, plan: Plan) -> None:
        """Create the documents that the filers read: their part of the task, visible only to them."""

    def launch(self, task: Task, plan: Plan, pod: PodPlan) -> None:
        """Create one pod of the plan, within LAUNCH_WITHIN or not at all; its containers start side by side and take turns."""

    def observe(self, task: Task, *, plan: Plan | None = None, poked: bool = False, tails: bool = False) -> Observed:
        """Everything that exists of the task, from all attempts.

        Records and reports of the current attempt are filled in for containers that have ended. `plan`: the task's, if the caller
        has made it. `poked`: a container reported its end, so look for records before the cluster shows it. `tails`: also read the
        last output of running executors.
        """

    def delete_pods(self, task_id: TaskId, attempts: int, plan: Plan | None = None) -> None:
        """Request deletion of every pod of attempts 1 to `attempts`: their commands get SIGTERM, and SIGKILL after a grace period.

        `plan`, of the last attempt, saves looking up the names of its objects.
        """

    def delete_all(self, task_id: TaskId, attempts: int | None, plan: Plan | None = None) -> None:
        """Like `delete_pods`, and of documents and volumes after the pods. `attempts` None, without a plan: of every attempt."""

    def ready(self) -> None:
        """Returns, or raises ClusterUnavailable."""

    def close(self) -> None: ...


class ClusterEvents(Protocol):
    """Optional ability: report changes. An event is a task id and only wakes `reconcile`."""

    def follow(self, wake: Callable[[TaskId], None]) -> None:
        """Call `wake` for every task with a change, from any thread, until `close`. Resync makes up for missed events."""

    def task_ids(self) -> Iterable[TaskId]:
        """The ids of all tasks with objects in the cluster, which the sweep compares with the store."""


class FollowedCluster(Cluster, ClusterEvents, Protocol):
    """A cluster that also reports changes."""


@runtime_checkable
class ReportsStarting(Protocol):
    """Optional ability: report which tasks' pods the nodes are busy starting."""

    def starting(self) -> Collection[TaskId]:
        """Tasks with a scheduled pod whose containers do not all run yet, except those that cannot start. Makes no call."""

    def is_on_its_way(self, task_id: TaskId) -> bool:
        """Whether the task has pods which show no end, no fault and no reason to wait: what they show can be looked at a moment later.
        Makes no call."""


@runtime_checkable
class AcceptsRecords(Protocol):
    """Optional ability: accept closing records from the containers themselves, before the cluster shows them."""

    def accept_records(self, task: Task, records: Sequence[Record]) -> None:
        """Accept what containers of the task's current pod sent with a poke; `observe` shows it from now on. Bounded, may be dropped."""
