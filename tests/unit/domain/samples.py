"""Small tasks for the tests of domain and services, and a `World` that takes one through its stages without any server."""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from poiesis.domain.policy import Policy
from poiesis.domain.states import ROLE_OF, Role, Stage, State
from poiesis.domain.task import Executor, Input, Output, Resources, Task, TaskId, TaskSpec
from poiesis.services.orchestrator import Orchestrator, Reconciled, stages_of
from poiesis.testing.clock import START, ManualClock
from poiesis.testing.cluster import MemoryCluster
from poiesis.testing.repository import MemoryTaskRepository

ID = TaskId("0123456789abcdefghijklmnop")
POLICY = Policy(
    url_schemes_in=frozenset({"s3", "http", "https", "ftp", "file"}),
    url_schemes_out=frozenset({"s3", "file"}),
    file_roots=("/srv/share",),
    backend_parameters=frozenset({"time_limit", "optional_outputs", "gpu", "memory_retries"}),
)
STAGED = replace(POLICY, layout="staged")
FAULT = timedelta(minutes=6)  # longer than any delay before a retry


def executor(**fields: Any) -> Executor:
    return Executor(**{"image": "alpine", "command": ("true",), **fields})


def input_file(path: str = "/data/in.txt", url: str = "s3://bucket/in.txt", **fields: Any) -> Input:
    return Input(path=path, url=url, **fields)


def output_file(path: str = "/out/out.txt", url: str = "s3://bucket/out.txt", **fields: Any) -> Output:
    return Output(path=path, url=url, **fields)


def spec(executors: int | tuple[Executor, ...] = 1, **fields: Any) -> TaskSpec:
    """`executors`: the executors, or how many default ones."""
    some = (executor(),) * executors if isinstance(executors, int) else executors
    return TaskSpec(executors=some, **fields)


def with_parameters(**parameters: str) -> Resources:
    return Resources(backend_parameters=parameters)


SMALL = spec()
FILES = spec(inputs=(input_file(),), outputs=(output_file(),))
THREE = spec(3, inputs=(input_file(),), outputs=(output_file(),))
GPUS = spec(2, inputs=(input_file(),), outputs=(output_file(),), resources=with_parameters(gpu="1"))


class World:
    """One task, its store, its cluster and a clock; `link` and `monitor` are what the roles do."""

    def __init__(
        self,
        task_spec: TaskSpec = SMALL,
        policy: Policy = POLICY,
        *,
        repository: MemoryTaskRepository | None = None,
        cluster: MemoryCluster | None = None,
    ) -> None:
        self.policy = policy
        self.clock = ManualClock()
        self.repository = repository or MemoryTaskRepository()
        self.cluster = cluster or MemoryCluster(self.clock)
        self.orchestrator = Orchestrator(self.repository, self.cluster, self.clock, policy)
        self.repository.add(stored(task_spec))

    @property
    def task(self) -> Task:
        return self.repository.get(ID)

    @property
    def now(self) -> datetime:
        return self.clock.now()

    def change(self, **fields: Any) -> Task:
        """Change the stored task directly."""
        task = self.task
        assert self.repository.save(replace(task, **fields), seen=task.version)
        return self.task

    def link(self, role: Role, **options: Any) -> Reconciled:
        return self.orchestrator.reconcile(ID, stages_of(role), **options)

    def monitor(self, **options: Any) -> Reconciled:
        return self.orchestrator.reconcile(ID, {Stage.RUN}, **options)

    def settle(self) -> Task:
        """Run the monitor and the links that are due until nothing is due."""
        for _ in range(20):
            due = self.monitor().due
            if due is None:
                return self.task
            self.link(ROLE_OF[due])
        raise AssertionError(f"the task does not settle: {self.task}")

    def wait(self, by: timedelta) -> Task:
        self.clock.advance(by)
        return self.settle()

    def launch(self) -> Task:
        """Until the first pod has been launched."""
        task = self.settle()
        assert task.part is not None
        return task

    def cancel(self) -> None:
        self.change(cancel_requested_at=self.now, state=State.CANCELING)

    def to_the_end(self) -> Task:
        """Until nothing is left to do, moving the clock to each wake-up."""
        for _ in range(30):
            task = self.settle()
            if task.stage is Stage.DONE:
                return task
            assert task.wake_at is not None
            self.clock.advance(max(task.wake_at - self.now, timedelta(seconds=1)))
            self.cluster.remove(ID)
        raise AssertionError(f"the task does not end: {self.task}")


def stored(task_spec: TaskSpec = SMALL, **fields: Any) -> Task:
    return Task(
        **{
            "id": ID,
            "spec": task_spec,
            "created_at": START,
            "stage_since": START,
            "wake_at": START + timedelta(seconds=10),
            "nonce": "nonce",
            **fields,
        }
    )


def running(task_spec: TaskSpec = SMALL, policy: Policy = POLICY) -> World:
    world = World(task_spec, policy)
    world.launch()
    world.cluster.start(ID, "task")
    world.settle()
    return world


def text_of(task: Task) -> str:
    return "\n".join(task.log.system_logs)
