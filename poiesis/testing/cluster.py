"""An in-memory `Cluster` and `ClusterEvents` whose pods are controlled by the test.

A pod is launched unscheduled and stays so until the test moves it: `schedule`, `start`, `end`, or `run` for its whole life without faults;
`hold`, `stick`, `lose` and `vanish` are faults. Nothing moves by itself. `fail` makes the next calls raise, before or after their
effect: an exception that is not an `Exception` stands for a process killed there. `calls` has every call, `created` counts creations.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, Literal

from poiesis.domain.errors import ClusterUnavailable
from poiesis.domain.naming import object_name
from poiesis.domain.observed import Container, Observed, Phase, Pod, Record, Room
from poiesis.domain.plan import Plan, PodPlan
from poiesis.domain.report import FilerReport
from poiesis.domain.task import Task, TaskId
from poiesis.ports.clock import Clock

Method = Literal["create_volume", "create_documents", "launch", "observe", "delete_pods", "delete_all"]


@dataclass(frozen=True)
class Call:
    """One call of the port; `part` is set only for a launch."""

    method: Method
    task_id: TaskId
    attempt: int | None
    part: str | None = None


@dataclass
class _Fault:
    method: Method
    error: BaseException
    times: int
    after: bool


@dataclass
class _Objects:
    """What one task owns."""

    pods: dict[str, Pod] = field(default_factory=dict)
    others: set[str] = field(default_factory=set)
    reports: dict[tuple[int, str], FilerReport] = field(default_factory=dict)
    tails: dict[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        return not (self.pods or self.others)


class MemoryCluster:
    """See the module.

    Set `slow`: deleted pods stay, being deleted, until `remove`; `down`: every call raises ClusterUnavailable; `events`: how often each
    change is reported: 0 loses events, 2 duplicates them.
    """

    def __init__(self, clock: Clock) -> None:
        self.slow = False
        self.down = False
        self.events = 1
        self.calls: list[Call] = []
        self.created: Counter[tuple[TaskId, int, str]] = Counter()
        self._clock = clock
        self._tasks: dict[TaskId, _Objects] = {}
        self._faults: list[_Fault] = []
        self._wake: Callable[[TaskId], None] | None = None
        self._lock = threading.RLock()

    # ── the port ────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    def create_volume(self, task: Task, plan: Plan) -> None:
        with self._call("create_volume", task.id, task.attempt) as mine:
            mine.others.add(object_name(task.id, task.attempt, "volume"))

    def create_documents(self, task: Task, plan: Plan) -> None:
        with self._call("create_documents", task.id, task.attempt) as mine:
            mine.others.add(object_name(task.id, task.attempt, "filer"))

    def launch(self, task: Task, plan: Plan, pod: PodPlan) -> None:
        with self._call("launch", task.id, task.attempt, pod.part) as mine:
            name = object_name(task.id, task.attempt, pod.part)
            if name not in mine.pods:
                self.created[task.id, task.attempt, pod.part] += 1
                containers = tuple(Container(container, Phase.WAITING) for container in pod.names)
                now = self._clock.now()
                mine.pods[name] = Pod(name, task.attempt, pod.part, created_at=now, containers=containers)

    def observe(self, task: Task, *, plan: Plan | None = None, poked: bool = False, tails: bool = False) -> Observed:
        with self._call("observe", task.id, task.attempt, changes=False) as mine:
            return Observed(
                pods=tuple(mine.pods.values()),
                others=tuple(sorted(mine.others)),
                reports={name: r for (attempt, name), r in mine.reports.items() if attempt == task.attempt},
                tails=dict(mine.tails) if tails else {},
            )

    def delete_pods(self, task_id: TaskId, attempts: int, plan: Plan | None = None) -> None:
        with self._call("delete_pods", task_id, attempts) as mine:
            self._delete_pods(mine)

    def delete_all(self, task_id: TaskId, attempts: int | None, plan: Plan | None = None) -> None:
        with self._call("delete_all", task_id, attempts) as mine:
            self._delete_pods(mine)
            mine.others.clear()

    def ready(self) -> None:
        if self.down:
            raise ClusterUnavailable("the cluster is down")

    def close(self) -> None:
        pass

    def follow(self, wake: Callable[[TaskId], None]) -> None:
        self._wake = wake

    def task_ids(self) -> Iterable[TaskId]:
        self.ready()
        with self._lock:
            return [task_id for task_id, objects in self._tasks.items() if not objects.is_empty]

    # ── faults ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    def fail(self, method: Method, error: BaseException, *, times: int = 1, after: bool = False) -> None:
        """Let the next `times` calls of `method` raise, instead of their effect or `after` it."""
        self._faults.append(_Fault(method, error, times, after))

    # ── the life of pods ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def pods(self, task_id: str) -> tuple[Pod, ...]:
        with self._lock:
            return tuple(self._of(task_id).pods.values())

    def is_empty(self, task_id: str) -> bool:
        with self._lock:
            return self._of(task_id).is_empty

    def hold(self, task_id: str, part: str, why: str, room: Room | None = None, *, queued: bool = False) -> None:
        """No node can take the pod: `Unschedulable: 0/3 nodes are available`; or a queue holds it back."""
        self._change(task_id, part, lambda pod: replace(pod, waiting=why, room=room, queued=queued))

    def schedule(self, task_id: str, part: str, node: str = "node-1") -> None:
        now = self._clock.now()
        self._change(
            task_id,
            part,
            lambda pod: replace(
                pod, scheduled=True, scheduled_at=now, waiting=None, room=None, queued=False, node=node
            ),
        )

    def stick(self, task_id: str, part: str, container: str, reason: str, message: str | None = None) -> None:
        """A container does not start: `ErrImagePull`, `CreateContainerConfigError`, or `ContainerCreating` for the ordinary wait."""
        self.set(task_id, part, container, phase=Phase.WAITING, reason=reason, message=message)

    def start(self, task_id: str, part: str) -> None:
        """All containers run; on a node, if it had none."""
        now = self._clock.now()

        def started(pod: Pod) -> Pod:
            running: dict[str, Any] = {"phase": Phase.RUNNING, "reason": None, "message": None, "started_at": now}
            containers = tuple(replace(c, **running) if c.phase is Phase.WAITING else c for c in pod.containers)
            return replace(pod, scheduled=True, waiting=None, node=pod.node or "node-1", containers=containers)

        self._change(task_id, part, started)

    def end(self, task_id: str, part: str, container: str, record: Record | None = None, **fields: object) -> None:
        """One container ends, with or without a record (then `reason`, `exit_code` and `message` come from the cluster)."""
        code = record.exit_code if record else None
        ended = {"phase": Phase.ENDED, "exit_code": code, "ended_at": self._clock.now(), "record": record}
        self.set(task_id, part, container, **{**ended, **fields})

    def set(self, task_id: str, part: str, container: str, **fields: object) -> None:
        """Change fields of one container."""

        def changed(pod: Pod) -> Pod:
            containers = tuple(replace(c, **fields) if c.name == container else c for c in pod.containers)  # type: ignore[arg-type]
            return replace(pod, containers=containers, ended=all(c.phase is Phase.ENDED for c in containers))

        self._change(task_id, part, changed)

    def run(self, task_id: str, part: str, **records: Record) -> None:
        """A whole life without faults: every container succeeds, or ends with the record given under its name (`-` as `_`)."""
        self.start(task_id, part)
        for container in self._pod(task_id, part).containers:
            given = records.get(container.name.replace("-", "_"))
            self.end(task_id, part, container.name, given or self.record(container.name))

    def record(self, name: str, exit_code: int | None = 0, **fields: object) -> Record:
        """Return a launcher's record, successful if the exit code is 0."""
        now = self._clock.now()
        times = {} if exit_code is None else {"started_at": now - timedelta(seconds=1), "ended_at": now}
        return Record(**{"name": name, "ok": exit_code == 0, "exit_code": exit_code, **times, **fields})  # type: ignore[arg-type]

    def report(self, task_id: str, filer: str, report: FilerReport, attempt: int = 1) -> None:
        """Set the report of `tif` or `tof`."""
        with self._lock:
            self._of(task_id).reports[attempt, filer] = report

    def tail(self, task_id: str, container: str, stdout: str, stderr: str = "") -> None:
        with self._lock:
            self._of(task_id).tails[container] = (stdout, stderr)

    def lose(self, task_id: str, part: str, reason: str, message: str | None = None, *, to_queue: bool = False) -> None:
        """The infrastructure removes the pod: `Evicted`, `Preempted`, `NodeLost`; what is left of it shows why."""
        self._change(
            task_id, part, lambda pod: replace(pod, lost=reason, message=message, lost_to_queue=to_queue, ended=True)
        )

    def vanish(self, task_id: str, part: str) -> None:
        """Another process deletes the pod, and it is gone."""
        with self._lock:
            del self._of(task_id).pods[self._pod(task_id, part).name]
        self._notify(TaskId(task_id))

    def remove(self, task_id: str) -> None:
        """Pods that are being deleted are gone."""
        with self._lock:
            mine = self._of(task_id)
            mine.pods = {name: pod for name, pod in mine.pods.items() if not pod.deleting}
        self._notify(TaskId(task_id))

    # ── inside ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    @contextmanager
    def _call(
        self, method: Method, task_id: TaskId, attempt: int | None, part: str | None = None, *, changes: bool = True
    ) -> Iterator[_Objects]:
        with self._lock:
            self.calls.append(Call(method, task_id, attempt, part))
            if self.down:
                raise ClusterUnavailable("the cluster is down")
            fault = self._fault(method)
            if fault is not None and not fault.after:
                raise fault.error
            yield self._of(task_id)
        if changes:
            self._notify(task_id)
        if fault is not None:
            raise fault.error

    def _fault(self, method: str) -> _Fault | None:
        fault = next((f for f in self._faults if f.method == method and f.times > 0), None)
        if fault is not None:
            fault.times -= 1
        return fault

    def _of(self, task_id: str) -> _Objects:
        return self._tasks.setdefault(TaskId(task_id), _Objects())

    def _pod(self, task_id: str, part: str) -> Pod:
        """The newest pod of that part."""
        return max((p for p in self._of(task_id).pods.values() if p.part == part), key=lambda pod: pod.attempt)

    def _change(self, task_id: str, part: str, change: Callable[[Pod], Pod]) -> None:
        with self._lock:
            pod = self._pod(task_id, part)
            self._of(task_id).pods[pod.name] = change(pod)
        self._notify(TaskId(task_id))

    def _delete_pods(self, mine: _Objects) -> None:
        mine.pods = {name: replace(pod, deleting=True) for name, pod in mine.pods.items()} if self.slow else {}

    def _notify(self, task_id: TaskId) -> None:
        if self._wake is not None:
            for _ in range(self.events):
                self._wake(task_id)
