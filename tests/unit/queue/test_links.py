"""Links on a real worker: threads of this process over Celery's in-memory transport. No eager mode."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
from celery.signals import before_task_publish
from kombu.transport import memory

from poiesis.domain.decide.stages import plan_of
from poiesis.domain.errors import ClusterUnavailable, QueueUnavailable, QuotaExceeded
from poiesis.domain.plan import first_stages
from poiesis.domain.states import ROLE_OF, Role, Stage, State
from poiesis.domain.task import TaskId
from poiesis.queue.app import LINK_OF, make_app, role_of
from poiesis.queue.links import register
from poiesis.queue.publisher import CeleryQueue
from poiesis.queue.worker import ThreadWorker
from poiesis.services.orchestrator import Orchestrator, stages_of
from tests.unit.domain.samples import FILES, GPUS, ID, POLICY, SMALL, World, spec

PATIENCE_S = 20.0


class Spy:
    """An orchestrator that records which stages each link acts for."""

    def __init__(self, orchestrator: Orchestrator) -> None:
        self._orchestrator = orchestrator
        self.links: list[Role] = []
        self.error: Exception | None = None

    def reconcile(self, task_id: TaskId, acts_for: frozenset[Stage], **options: Any) -> object:
        role = next(role for role in Role if acts_for & {Stage.PREPARE, Stage.STAGE_IN, Stage.LAUNCH, Stage.STAGE_OUT}
                    and acts_for == stages_of(role))  # fmt: skip
        self.links.append(role)
        if self.error is not None:
            raise self.error
        return self._orchestrator.reconcile(task_id, acts_for, **options)

    def give_up(self, task_id: TaskId, error: BaseException) -> None:
        self._orchestrator.give_up(task_id, error)


class Service:
    """One worker for all tests here (stopping it takes two seconds); each test gives it a world."""

    def __init__(self) -> None:
        self.world = World()
        self.spy = Spy(self.world.orchestrator)
        self.app = make_app("memory://")
        self.queue = CeleryQueue(self.app)
        orchestrator: Any = Later(self)
        register(self.app, orchestrator, self.queue)
        self.worker = ThreadWorker(self.app, threads=4)
        self.worker.start()

    def __call__(self, world: World) -> "Service":
        self.world = world
        self.spy = Spy(world.orchestrator)
        return self

    def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        turn = threading.Event()
        while not condition():
            assert time.monotonic() < deadline, (self.world.task, self.spy.links)
            turn.wait(0.005)

    def quiet(self) -> None:
        """Until every link published so far has been handled: one of an unknown task comes after them."""
        for role in Role:
            before = self.spy.links.count(role)
            stage = {
                Role.TORC: Stage.FINISH,
                Role.TIF: Stage.STAGE_IN,
                Role.TEXAM: Stage.RUN,
                Role.TOF: Stage.STAGE_OUT,
            }
            self.queue.publish(TaskId("unknown"), stage[role])
            self.until(partial(self._more, role, before))

    def _more(self, role: Role, than: int) -> bool:
        return self.spy.links.count(role) > than


class Later:
    """The orchestrator of the current test."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def __getattr__(self, name: str) -> Any:
        return getattr(self._service.spy, name)


@pytest.fixture(scope="module")
def running() -> Iterator[Service]:
    memory.Channel.queues.clear()
    memory.Channel.events.clear()
    service = Service()
    yield service
    service.worker.close()
    service.queue.close()


@pytest.fixture
def service(running: Service) -> Iterator[Service]:
    yield running
    running.spy.error = None
    running.quiet()


def test_links_take_a_task_to_its_pod_and_end_there(service):
    one = service(World(FILES))
    one.queue.publish(ID, Stage.PREPARE)
    one.until(lambda: one.world.task.part == "task")
    assert one.spy.links == [Role.TORC, Role.TIF, Role.TEXAM]
    one.quiet()
    assert one.spy.links.count(Role.TOF) == 1  # the one from `quiet`


def test_links_without_effects_are_skipped(service):
    one = service(World(SMALL))
    one.queue.publish(ID, Stage.PREPARE)
    one.until(lambda: one.world.task.part == "task")
    assert one.spy.links == [Role.TORC, Role.TEXAM]


def test_a_late_link_publishes_the_link_that_is_due(service):
    one = service(World(FILES))
    one.queue.publish(ID, Stage.STAGE_OUT)
    one.until(lambda: one.world.task.part == "task")
    assert one.spy.links[0] is Role.TOF
    assert one.world.cluster.created == {(ID, 1, "task"): 1}


def test_links_take_a_staged_task_to_its_end(service):
    world = World(GPUS)
    one = service(world)
    one.queue.publish(ID, Stage.PREPARE)
    for part, stage in (
        ("tif", Stage.LAUNCH),
        ("executor-0", None),
        ("executor-1", Stage.STAGE_OUT),
        ("tof", Stage.FINISH),
    ):
        one.until(lambda part=part: world.task.part == part)
        world.cluster.run(ID, part)
        due = world.monitor().due
        if stage is not None:
            one.queue.publish(ID, due or stage)
    one.until(lambda: world.task.state is State.COMPLETE and world.cluster.is_empty(ID))


def test_the_same_chain_many_times_creates_one_pod(service):
    one = service(World(FILES))
    for _ in range(20):
        one.queue.publish(ID, Stage.PREPARE)
    one.until(lambda: one.world.task.part == "task")
    one.quiet()
    assert one.world.cluster.created == {(ID, 1, "task"): 1}


def test_a_link_of_an_unknown_task_is_harmless(service):
    one = service(World(SMALL))
    one.queue.publish(TaskId("unknown"), Stage.PREPARE)
    one.until(lambda: one.spy.links == [Role.TORC])
    one.queue.publish(ID, Stage.PREPARE)
    one.until(lambda: one.world.task.part == "task")


def test_a_bug_in_a_link_ends_the_task(service):
    one = service(World(SMALL))
    one.spy.error = ZeroDivisionError("a bug")
    one.queue.publish(ID, Stage.PREPARE)
    one.until(lambda: one.world.task.outcome is not None)
    one.spy.error = None
    one.queue.publish(ID, Stage.FINISH)
    one.until(lambda: one.world.task.state is State.SYSTEM_ERROR)


def test_a_fault_in_a_link_publishes_nothing_and_changes_nothing(service):
    one = service(World(SMALL))
    one.spy.error = ClusterUnavailable("unavailable")
    one.queue.publish(ID, Stage.PREPARE)
    one.until(lambda: one.spy.links == [Role.TORC])
    one.quiet()
    assert one.world.task.stage is Stage.PREPARE
    assert one.spy.links.count(Role.TEXAM) == 1


def test_a_link_that_cannot_publish_leaves_it_to_resync(service, monkeypatch):
    one = service(World(FILES))
    one.world.change(owner="ada")
    gone = threading.Event()

    def publish(task_id: TaskId, stage: Stage, *, owner: str | None = None) -> None:
        if owner == "ada":
            gone.set()
        raise QueueUnavailable("unavailable")

    one.queue.publish(ID, Stage.STAGE_OUT)
    monkeypatch.setattr(one.queue, "publish", publish)
    one.until(gone.is_set)
    monkeypatch.undo()
    one.queue.publish(ID, Stage.PREPARE)
    one.until(lambda: one.world.task.part == "task")


@pytest.mark.parametrize(
    ("task_spec", "chain"),
    [
        (SMALL, ["texam.launch"]),
        (spec(volumes=("/scratch",)), ["torc.prepare", "texam.launch"]),
        (FILES, ["torc.prepare", "tif.stage_in", "texam.launch"]),
        (GPUS, ["torc.prepare", "tif.stage_in"]),
    ],
    ids=["small", "volume", "files", "staged"],
)
def test_the_chain_of_a_new_task_is_what_flower_groups_under_its_id(service, task_spec, chain):
    """Without idle links, and with no more messages than links: Celery continues the chain, so nothing is published twice."""
    one = service(World(task_spec))
    with sent_links() as sent:
        one.queue.begin(ID, first_stages(plan_of(one.world.task, POLICY)))
        one.until(lambda: one.world.task.part is not None)
        one.quiet()
    mine = [headers for headers in sent if headers["root_id"] == ID]
    assert [headers["task"] for headers in mine] == chain
    assert mine[0]["id"] == ID
    assert [headers["parent_id"] for headers in mine] == [None, *(headers["id"] for headers in mine[:-1])]


def test_a_link_publishes_what_is_due_under_the_same_root(service):
    one = service(World(FILES))
    with sent_links() as sent:
        one.queue.publish(ID, Stage.STAGE_OUT)  # too late: `prepare` is due
        one.until(lambda: one.world.task.part == "task")
    mine = [headers for headers in sent if headers["root_id"] == ID]
    assert [headers["task"] for headers in mine] == ["tof.stage_out", "torc.prepare", "tif.stage_in", "texam.launch"]
    assert [headers["parent_id"] for headers in mine] == [None, *(headers["id"] for headers in mine[:-1])]


def test_the_rest_of_a_chain_respects_the_back_off_of_a_link_that_the_cluster_refused(service):
    one = service(World(FILES))
    one.world.cluster.fail("create_volume", QuotaExceeded("no room"))
    one.queue.begin(ID, (Stage.PREPARE, Stage.STAGE_IN, Stage.LAUNCH))
    one.until(lambda: one.spy.links == [Role.TORC, Role.TIF, Role.TEXAM])
    one.quiet()
    assert one.spy.links.count(Role.TORC) == 2  # one of them is from `quiet`: nothing was published
    assert one.world.task.waiting == "QuotaExceeded: no room"


@contextmanager
def sent_links() -> Iterator[list[dict[str, Any]]]:
    """The headers of every message published in the block."""
    sent: list[dict[str, Any]] = []

    def note(headers: dict[str, Any], **_: object) -> None:
        sent.append(headers)

    before_task_publish.connect(note)
    try:
        yield sent
    finally:
        before_task_publish.disconnect(note)


def test_every_stage_has_a_link_of_its_role():
    assert {stage: role_of(link) for stage, link in LINK_OF.items()} == dict(ROLE_OF)
