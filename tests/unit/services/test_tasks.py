"""Create, get, list, cancel."""

from dataclasses import replace
from datetime import timedelta

import pytest

from poiesis.domain.access import Access
from poiesis.domain.errors import Forbidden, InvalidTask, RepositoryUnavailable, UnknownTask
from poiesis.domain.history import Change
from poiesis.domain.naming import is_task_id
from poiesis.domain.quotas import AdmissionRules, Quota, ServiceClass
from poiesis.domain.states import TRANSITIONS, Role, Stage, State
from poiesis.domain.task import Resources, Task, TaskId, Version, View
from poiesis.ports.idempotency import IdempotencyKey
from poiesis.ports.repository import TaskFilter
from poiesis.services.admission import WaitingReasons
from poiesis.services.tasks import FIRST_WAKE_UP, MAX_RACES, TAIL_EVERY, TaskService
from poiesis.testing.admission import MemoryAdmissionStore
from poiesis.testing.clock import ManualClock
from poiesis.testing.idempotency import MemoryIdempotencyStore
from poiesis.testing.queue import RecordingQueue
from poiesis.testing.repository import MemoryTaskRepository
from tests.unit.domain.samples import FILES, ID, POLICY, SMALL, World, spec, with_parameters


class Counter(MemoryTaskRepository):
    """Loses the next `races` saves."""

    races = 0

    def save(self, task: Task, *, seen: Version) -> bool:
        if self.races:
            self.races -= 1
            return False
        return super().save(task, seen=seen)


class Desk:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.repository = Counter()
        self.queue = RecordingQueue()
        self.service = TaskService(self.repository, self.queue, self.clock, POLICY)

    def task(self, task_id: str) -> Task:
        return self.repository.get(TaskId(task_id))

    def put(self, task_id: str, **fields) -> Task:
        task = self.task(task_id)
        assert self.repository.save(replace(task, **fields), seen=task.version)
        return self.task(task_id)


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_a_created_task_is_stored_and_published_and_has_a_wake_up(desk):
    task_id = desk.service.create(FILES, owner="me", notes=["noted"])
    task = desk.task(task_id)
    assert is_task_id(task_id)
    assert (task.state, task.stage, task.owner, task.spec) == (State.QUEUED, Stage.PREPARE, "me", FILES)
    assert task.wake_at == desk.clock.now() + FIRST_WAKE_UP
    assert task.log.system_logs == ("noted",)
    assert task.history == (Change(1, desk.clock.now(), State.QUEUED),)
    assert len(task.nonce) == 16
    assert desk.queue.published == [(task_id, Stage.PREPARE)]


def test_a_task_that_a_quota_refuses_does_not_use_up_its_key(desk):
    rules = AdmissionRules(user=Quota(max_cpu_cores=2))
    service = replace(desk.service, policy=replace(POLICY, admission=rules), idempotency=MemoryIdempotencyStore())
    large, small = (replace(SMALL, resources=Resources(cpu_cores=cores)) for cores in (3, 1))
    with pytest.raises(InvalidTask, match="limit of each user"):
        service.create(large, owner="me", key=IdempotencyKey("k", "digest of large"))
    assert desk.task(service.create(small, owner="me", key=IdempotencyKey("k", "digest of small")))


def test_every_task_has_its_own_nonce(desk):
    assert desk.task(desk.service.create(SMALL)).nonce != desk.task(desk.service.create(SMALL)).nonce


def test_a_task_is_accepted_while_the_queue_is_down(desk):
    desk.queue.down = True
    task_id = desk.service.create(SMALL)
    assert [t for t, _ in desk.repository.due(desk.clock.advance(FIRST_WAKE_UP), limit=1)] == [task_id]


def test_an_invalid_task_is_neither_stored_nor_published(desk):
    with pytest.raises(InvalidTask):
        desk.service.create(spec(volumes=("x",)))
    assert desk.queue.published == []
    assert desk.repository.count(TaskFilter()) == 0


def test_a_queue_of_another_team_is_refused_and_nothing_stored(desk):
    policy = replace(
        POLICY, backend_parameters=frozenset({"queue"}), queues={"*": ("small",), "group:imaging": ("large",)}
    )
    service = TaskService(desk.repository, desk.queue, desk.clock, policy)
    large = spec(resources=with_parameters(queue="large"))
    with pytest.raises(InvalidTask, match="use one of small"):
        service.create(large, owner="ada")
    assert desk.queue.published == []
    assert service.create(large, owner="ada", groups=["imaging"])


def test_a_task_that_could_not_be_stored_is_not_published(desk):
    desk.repository.down = True
    with pytest.raises(RepositoryUnavailable):
        desk.service.create(SMALL)
    assert desk.queue.published == []


def test_dropped_fields_are_noted_in_the_system_log(desk):
    task = desk.task(desk.service.create(spec(resources=with_parameters(colour="red")), notes=["noted"]))
    assert task.log.system_logs[0] == "noted" and "colour" in task.log.system_logs[1]


@pytest.mark.parametrize("view", View)
def test_a_task_of_another_owner_is_unknown(desk, view):
    task_id = desk.service.create(SMALL, owner="me")
    assert desk.service.get(task_id, view, access=Access("me")).id == task_id
    assert desk.service.get(task_id, view).id == task_id
    with pytest.raises(UnknownTask):
        desk.service.get(task_id, view, access=Access("you"))
    with pytest.raises(UnknownTask):
        desk.service.cancel(task_id, access=Access("you"))
    assert desk.task(task_id).cancel_requested_at is None


def test_a_member_of_the_owners_group_sees_a_task_and_may_cancel_it_only_by_setting(desk):
    task_id = desk.service.create(SMALL, owner="me", groups=["lab", "imaging"])
    member = Access("you", frozenset({"imaging"}))
    assert desk.service.get(task_id, View.FULL, access=member).id == task_id
    assert desk.task(task_id).groups == ("lab", "imaging")
    with pytest.raises(Forbidden, match="only its owner or an administrator may cancel"):
        desk.service.cancel(task_id, access=member)
    assert desk.task(task_id).cancel_requested_at is None
    allowing = replace(desk.service, policy=replace(POLICY, group_may_cancel=True))
    allowing.cancel(task_id, access=member)
    assert desk.task(task_id).cancel_requested_at is not None


def test_an_owner_and_an_admin_may_cancel_a_task_of_a_group(desk):
    for access in (Access("me"), None):
        task_id = desk.service.create(SMALL, owner="me", groups=["lab"])
        desk.service.cancel(task_id, access=access)
        assert desk.task(task_id).cancel_requested_at is not None


def test_a_list_shows_an_owner_their_own_tasks(desk):
    mine = desk.service.create(SMALL, owner="me")
    desk.service.create(SMALL, owner="you")
    for owner, expected in ((None, [mine]), ("you", [])):
        where = TaskFilter(owner=owner, access=Access("me"))
        page = desk.service.list(where, limit=5, after=None, view=View.MINIMAL)
        assert [task.id for task in page.tasks] == expected
    assert len(desk.service.list(TaskFilter(), limit=5, after=None, view=View.MINIMAL).tasks) == 2


@pytest.mark.parametrize("task_id", ["", "x", "../x", "0" * 25, "A" * 26, "x" * 10_000])
def test_an_invalid_id_is_unknown_without_a_query(desk, task_id):
    desk.repository.down = True
    with pytest.raises(UnknownTask) as caught:
        desk.service.get(task_id, View.FULL)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("state", [state for state in TRANSITIONS if state is not State.CANCELING])
@pytest.mark.parametrize("stage", [stage for stage in Stage if stage not in (Stage.ADMIT, Stage.CLEAN, Stage.DONE)])
def test_a_task_is_canceling_right_after_the_request_whatever_its_state_and_stage(desk, state, stage):
    task_id = desk.service.create(SMALL)
    desk.put(task_id, state=state, stage=stage)
    desk.service.cancel(task_id)
    task = desk.service.get(task_id, View.FULL)
    assert (task.state, task.due_stage, task.cancel_requested_at) == (State.CANCELING, Stage.FINISH, desk.clock.now())
    desk.clock.advance(timedelta(seconds=1))
    desk.service.cancel(task_id)
    assert desk.task(task_id) == task, "repeating it changes nothing"
    assert desk.queue.published[1:] == [(task_id, Stage.FINISH)]


def test_a_canceled_task_without_pods_is_canceled_by_the_next_link():
    world = World(SMALL)
    TaskService(world.repository, RecordingQueue(), world.clock, POLICY).cancel(ID)
    states = [world.task.state]
    world.link(Role.TORC)
    states.append(world.task.state)
    assert states == [State.CANCELING, State.CANCELED]


def test_a_cancel_of_a_finished_task_changes_nothing(desk):
    task_id = desk.service.create(SMALL)
    task = desk.put(task_id, state=State.SYSTEM_ERROR, stage=Stage.CLEAN)
    desk.service.cancel(task_id)
    assert desk.task(task_id) == task
    assert len(desk.queue.published) == 1


def test_a_cancel_of_an_unknown_task_is_refused(desk):
    with pytest.raises(UnknownTask):
        desk.service.cancel("0" * 26)


def test_a_cancel_is_accepted_while_the_queue_is_down(desk):
    task_id = desk.service.create(SMALL)
    desk.queue.down = True
    desk.service.cancel(task_id)
    assert desk.task(task_id).wake_at is not None
    assert desk.repository.due(desk.clock.advance(FIRST_WAKE_UP), limit=1) == [(task_id, Stage.FINISH)]


def test_a_cancel_retries_lost_races_or_fails(desk):
    task_id = desk.service.create(SMALL)
    desk.repository.races = MAX_RACES - 1
    desk.service.cancel(task_id)
    assert desk.task(task_id).cancel_requested_at is not None
    other = desk.service.create(SMALL)
    desk.repository.races = MAX_RACES
    with pytest.raises(RepositoryUnavailable):
        desk.service.cancel(other)


def test_reading_a_running_task_requests_its_live_output_at_intervals(desk):
    task_id = desk.service.create(SMALL)
    desk.put(task_id, state=State.RUNNING, stage=Stage.RUN)
    desk.queue.published.clear()
    for _ in range(5):
        desk.service.get(task_id, View.FULL)
    assert desk.queue.published == [(task_id, Stage.RUN)]
    desk.clock.advance(TAIL_EVERY)
    desk.service.get(task_id, View.FULL)
    assert len(desk.queue.published) == 2


def test_links_are_published_for_the_owner_of_the_task(desk):
    task_id = desk.service.create(SMALL, owner="ada")
    desk.put(task_id, state=State.RUNNING, stage=Stage.RUN)
    desk.service.get(task_id, View.FULL)
    desk.service.cancel(task_id)
    assert desk.queue.published == [(task_id, Stage.LAUNCH), (task_id, Stage.RUN), (task_id, Stage.FINISH)]
    assert desk.queue.owners == ["ada"] * 3


def test_reading_anything_else_requests_nothing(desk):
    task_id = desk.service.create(SMALL)
    desk.queue.published.clear()
    desk.service.get(task_id, View.FULL)
    desk.put(task_id, state=State.RUNNING, stage=Stage.RUN)
    desk.service.get(task_id, View.MINIMAL)
    desk.service.get(task_id, View.BASIC)
    assert desk.queue.published == []


def test_the_record_of_readers_is_bounded(desk, monkeypatch):
    monkeypatch.setattr("poiesis.services.tasks._MAX_TAILS", 3)
    for _ in range(10):
        task_id = desk.service.create(SMALL)
        desk.put(task_id, state=State.RUNNING, stage=Stage.RUN)
        desk.service.get(task_id, View.FULL)
    assert len(desk.service._tail_requests) <= 3


RULES = AdmissionRules(
    site=Quota(max_tasks=2, max_cpu_cores=4),
    classes={"urgent": ServiceClass(groups=("clinic",)), "bulk": ServiceClass()},
)


def with_quotas(desk: Desk) -> tuple[TaskService, list[str]]:
    policy = replace(POLICY, admission=RULES, backend_parameters=POLICY.backend_parameters | {"service_class"})
    woken: list[str] = []
    reasons = WaitingReasons(MemoryAdmissionStore(desk.repository), desk.clock, policy)
    return TaskService(
        desk.repository, desk.queue, desk.clock, policy, None, reasons, lambda: woken.append("woken")
    ), woken


def test_where_there_are_quotas_a_new_task_waits_for_admission_and_nothing_is_published(desk):
    service, woken = with_quotas(desk)
    task_id = service.create(FILES, owner="me", groups=["clinic"])
    task = desk.task(task_id)
    assert (task.state, task.stage, task.wake_at) == (State.QUEUED, Stage.ADMIT, None)
    assert task.claim is not None and task.claim.user == "me" and task.claim.amount.volumes == 1
    assert woken == ["woken"] and not desk.queue.published
    assert not desk.repository.due(desk.clock.now() + timedelta(days=9), limit=9)


def test_a_reader_of_a_queued_task_sees_its_place_and_a_list_the_reason(desk):
    service, _ = with_quotas(desk)
    ids = [service.create(SMALL, owner="me") for _ in range(2)]
    shown = service.get(max(ids), View.BASIC)  # ids of the same microsecond are in any order
    assert (
        isinstance(shown, Task)
        and shown.log.metadata["waiting_reason"] == "Queued: 2nd in your queue; waiting for its turn"
    )
    page = service.list(TaskFilter(), limit=9, after=None, view=View.BASIC)
    assert [t.waiting for t in page.tasks if isinstance(t, Task)] == ["Queued: waiting for its turn"] * 2
    assert desk.task(ids[1]).waiting is None


def test_a_queued_task_is_canceled_at_once_without_the_cluster(desk):
    service, _ = with_quotas(desk)
    task_id = service.create(SMALL)
    desk.repository.races = 1
    service.cancel(task_id)
    task = desk.task(task_id)
    assert (task.state, task.stage, task.wake_at) == (State.CANCELED, Stage.DONE, None)
    assert task.log.end_time == desk.clock.now() and "Canceled by request." in task.log.system_logs[-1]
    assert not desk.queue.published
    service.cancel(task_id)
    assert desk.task(task_id).version == task.version


@pytest.mark.parametrize(
    ("resources", "groups", "problem"),
    [
        ({"cpu_cores": 5}, [], "asks for 5 CPU cores, but the limit of this service is 4 CPU cores"),
        (
            {"backend_parameters": {"service_class": "urgent"}},
            ["lab"],
            "service class 'urgent' is not available to you: use one of bulk",
        ),
        ({"backend_parameters": {"service_class": "none"}}, [], "service class 'none' is not available to you"),
    ],
)
def test_what_no_quota_allows_is_refused(desk, resources, groups, problem):
    service, _ = with_quotas(desk)
    with pytest.raises(InvalidTask) as refused:
        service.create(spec(resources=Resources(**resources)), groups=groups)
    assert problem in str(refused.value.problems[0])
    assert desk.repository.count(TaskFilter()) == 0


def test_members_may_use_their_class(desk):
    service, _ = with_quotas(desk)
    task_id = service.create(
        spec(resources=Resources(backend_parameters={"service_class": "urgent"})), groups=["clinic"]
    )
    claim = desk.task(task_id).claim
    assert claim is not None and claim.service_class == "urgent"
