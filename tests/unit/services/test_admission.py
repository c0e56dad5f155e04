"""The admitter: rounds that are written before they are carried out, kills between any two calls of the store, two leaders, readers."""

import random
import threading
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poiesis.domain.decide.admission import cancel_at_once, claim_of, enqueue, is_held, notes_on_size
from poiesis.domain.decide.stages import plan_of
from poiesis.domain.errors import InvalidTask, RepositoryUnavailable
from poiesis.domain.fair_share import decide
from poiesis.domain.policy import Policy
from poiesis.domain.quotas import AdmissionRules, Amount, Quota
from poiesis.domain.states import Stage, State
from poiesis.domain.task import Executor, Resources, Task, TaskId, TaskSpec, Version
from poiesis.services.admission import BATCH, ROUND, Admitter, WaitingReasons
from poiesis.services.tasks import TaskService
from poiesis.services.waiting_queues import FURTHER_READS, HEADS, PAGE, SHORT_READS, SWEEP_READS
from poiesis.testing.admission import MemoryAdmissionStore
from poiesis.testing.clock import START, ManualClock
from poiesis.testing.queue import RecordingQueue
from poiesis.testing.repository import MemoryTaskRepository
from tests.unit.domain.samples import POLICY, spec, stored


class Killed(BaseException):
    """The process was killed here."""


class Fragile:
    """Passes calls on; `countdown` calls from now the process is killed, before or after the call has its effect."""

    def __init__(self, target: Any, countdown: list[int], after: bool) -> None:
        self._target, self._countdown, self._after = target, countdown, after

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            self._countdown[0] -= 1
            if self._countdown[0] == 0 and not self._after:
                raise Killed
            result = getattr(self._target, name)(*args, **kwargs)
            if self._countdown[0] == 0:
                raise Killed
            return result

        return call


class Service:
    def __init__(self, rules: AdmissionRules) -> None:
        self.clock = ManualClock()
        self.repository = MemoryTaskRepository()
        self.store = MemoryAdmissionStore(self.repository)
        self.queue = RecordingQueue()
        self.policy = replace(POLICY, admission=rules)
        self.most = 0

    def admitter(self, countdown: list[int] | None = None, *, after: bool = False) -> Admitter:
        repository: Any = self.repository
        store: Any = self.store
        if countdown is not None:
            repository, store = Fragile(repository, countdown, after), Fragile(store, countdown, after)
        return Admitter(repository, store, self.queue, self.clock, self.policy)

    def post(self, number: int, owner: str = "ann", **resources: Any) -> TaskId:
        task = stored(spec(resources=Resources(**resources)), id=TaskId(f"{number:026d}"), owner=owner)
        task = replace(task, stage_since=START)
        rules = self.policy.admission
        queued = enqueue(task, claim_of(task, plan_of(task, self.policy), rules), rules)
        self.repository.add(queued)
        return queued.id

    def tasks(self, *, admitted: bool) -> list[Task]:
        return [t for t in self.repository.snapshot() if is_held(t) is admitted and not t.state.is_terminal]

    def held(self) -> Amount:
        total = Amount()
        for task in self.tasks(admitted=True):
            assert task.claim is not None
            total = total.plus(task.claim.amount)
        return total

    def end(self, task_id: TaskId) -> None:
        task = self.repository.get(task_id)
        done = replace(task, state=State.SYSTEM_ERROR, stage=Stage.DONE, wake_at=None)
        assert self.repository.save(done, seen=task.version)


def test_a_round_admits_what_fits_and_publishes_the_chain():
    service = Service(AdmissionRules(site=Quota(max_tasks=2)))
    ids = [service.post(n) for n in range(3)]
    admitter = service.admitter()
    assert admitter.run_once() == 2
    assert [service.repository.get(i).stage for i in ids] == [Stage.PREPARE, Stage.PREPARE, Stage.ADMIT]
    assert service.queue.published == [(i, Stage.LAUNCH) for i in ids[:2]]
    assert service.queue.owners == ["ann"] * 2
    assert service.repository.get(ids[2]).wake_at is None
    assert admitter.run_once() == 0
    service.end(ids[0])
    admitter.ended(ids[0])
    assert admitter.run_once() == 1


def test_an_end_that_was_not_reported_is_found():
    service = Service(AdmissionRules(site=Quota(max_tasks=1)))
    ids = [service.post(n) for n in range(2)]
    admitter = service.admitter()
    admitter.run_once()
    service.end(ids[0])
    assert admitter.run_once() == 0
    service.clock.advance(timedelta(seconds=6))
    assert admitter.run_once() == 1


def test_without_quotas_tasks_queued_under_an_earlier_configuration_are_admitted():
    service = Service(AdmissionRules(site=Quota(max_tasks=1)))
    ids = [service.post(n) for n in range(3)]
    service.policy = replace(service.policy, admission=AdmissionRules())
    assert service.admitter().run_once() == len(ids)


def test_more_than_a_batch_is_admitted_in_rounds():
    service = Service(AdmissionRules(site=Quota(max_tasks=500)))
    for n in range(BATCH + 10):
        service.post(n)
    admitter = service.admitter()
    total = 0
    for _ in range(8):
        service.clock.advance(timedelta(seconds=3))
        total += admitter.run_once()
    assert total == BATCH + 10


def test_of_two_admitters_one_loses_the_round_and_reads_again():
    service = Service(AdmissionRules(site=Quota(max_tasks=3)))
    for n in range(2):
        service.post(n)
    first, second = service.admitter(), service.admitter()
    assert first.run_once() == 2
    assert second.run_once() == 0 or service.held().tasks <= 3
    for n in range(2, 9):
        service.post(n)
    service.clock.advance(timedelta(seconds=3))
    for _ in range(3):
        first.run_once()
        second.run_once()
        service.clock.advance(timedelta(seconds=3))
    assert service.held().tasks == 3


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 3)), min_size=1, max_size=12),
    st.integers(1, 40),
    st.booleans(),
    st.integers(0, 2**32),
)
@settings(max_examples=80, deadline=None)
def test_a_kill_at_any_call_passes_no_cap_admits_nothing_twice_and_forgets_nothing(posts, at, after, seed):
    rng = random.Random(seed)
    rules = AdmissionRules(site=Quota(max_tasks=4, max_cpu_cores=6), user=Quota(max_tasks=3))
    service = Service(rules)
    ids = [service.post(n, user, cpu_cores=float(cores)) for n, (user, cores) in enumerate(posts)]
    countdown = [at]
    admitters = [service.admitter(countdown, after=after), service.admitter()]
    for _ in range(200):
        if all(service.repository.get(i).state.is_terminal for i in ids):
            break
        index = rng.randrange(2)
        try:
            admitters[index].run_once()
        except Killed:
            countdown[0] = rng.randint(1, 40)
            admitters[index] = service.admitter(countdown if index == 0 else None, after=rng.random() < 0.5)
        held, by_user = service.held(), Counter(t.owner for t in service.tasks(admitted=True))
        assert held.tasks <= 4 and held.millicores <= 6000 and max(by_user.values(), default=0) <= 3
        running = service.tasks(admitted=True)
        if running and rng.random() < 0.6:
            ended = rng.choice(running).id
            service.end(ended)
            for admitter in admitters:
                if rng.random() < 0.5:
                    admitter.ended(ended)
        service.clock.advance(timedelta(seconds=rng.choice([0, 1, 7])))
    assert all(service.repository.get(i).state.is_terminal for i in ids)
    assert all(service.repository.get(i).version == 3 for i in ids)  # added, admitted once, ended


def test_two_admitters_at_full_speed_pass_no_cap():
    service = Service(AdmissionRules(site=Quota(max_tasks=5)))
    ids = [service.post(n) for n in range(60)]
    failures: list[str] = []
    stop = threading.Event()

    def admit() -> None:
        admitter = service.admitter()
        while not stop.is_set():
            admitter.run_once()

    threads = [threading.Thread(target=admit) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(4000):
        if (held := service.held().tasks) > 5:
            failures.append(f"{held} in flight")
        running = service.tasks(admitted=True)
        if running:
            service.end(random.choice(running).id)
            service.clock.advance(timedelta(seconds=6))
        if all(t.state.is_terminal for t in service.repository.snapshot()):
            break
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures
    assert all(service.repository.get(i).state.is_terminal for i in ids)


def test_an_unavailable_store_is_an_error_and_the_next_call_continues():
    service = Service(AdmissionRules(site=Quota(max_tasks=1)))
    service.post(1)
    admitter = service.admitter()
    service.repository.down = True
    with pytest.raises(RepositoryUnavailable):
        admitter.run_once()
    service.repository.down = False
    assert admitter.run_once() == 1


def test_a_task_that_is_canceled_while_it_waits_is_never_admitted():
    service = Service(AdmissionRules(site=Quota(max_tasks=1)))
    ids = [service.post(n) for n in range(2)]
    admitter = service.admitter()
    admitter._load(service.clock.now())
    task = service.repository.get(ids[0])
    canceled = cancel_at_once(task, service.clock.now())
    assert canceled is not None and service.repository.save(canceled, seen=task.version)
    assert admitter.run_once() == 1
    assert service.repository.get(ids[0]).state is State.CANCELED
    assert is_held(service.repository.get(ids[1]))


def test_a_task_larger_than_a_quota_is_refused_and_ended_if_the_quota_shrank():
    service = Service(AdmissionRules(site=Quota(max_cpu_cores=8)))
    with pytest.raises(InvalidTask, match="asks for 9 CPU cores, but the limit of this service is 8 CPU cores"):
        service.post(1, cpu_cores=9)
    task_id = service.post(2, cpu_cores=8)
    service.policy = replace(service.policy, admission=AdmissionRules(site=Quota(max_cpu_cores=4)))
    service.admitter().run_once()
    task = service.repository.get(task_id)
    assert task.outcome is not None and task.outcome.reason == "ExceedsQuota"
    assert service.queue.published == [(task_id, Stage.FINISH)]


def test_on_one_machine_a_larger_task_counts_as_all_of_it():
    service = Service(AdmissionRules(site=Quota(max_cpu_cores=2), clamp=True))
    service.post(1, cpu_cores=64)
    service.post(2, cpu_cores=1)
    admitter = service.admitter()
    assert admitter.run_once() == 1
    service.policy = replace(service.policy, admission=AdmissionRules(site=Quota(max_cpu_cores=1), clamp=True))
    service.end(TaskId(f"{1:026d}"))
    service.post(3, cpu_cores=2)
    assert service.admitter().run_once() == 1


def test_a_task_larger_than_the_machine_says_so_in_its_system_log():
    rules = AdmissionRules(site=Quota(max_cpu_cores=2, max_ram_gb=8.25), clamp=True)
    line = "asks for more than this machine has (64 CPU cores of 2, 9 GB of memory of 8.25)"
    [note] = notes_on_size(spec_of(64, 9), rules)
    assert note.startswith(line)
    service = Service(rules)
    tasks = TaskService(service.repository, service.queue, service.clock, service.policy)
    assert tasks.repository.get(tasks.create(spec_of(64, 9))).log.system_logs == (note,)
    assert tasks.repository.get(tasks.create(spec_of(2, 8.25))).log.system_logs == ()
    assert tasks.check(spec_of(64, 9))[1] == (note,)  # what a dry run shows
    assert not notes_on_size(spec_of(64, 9), replace(rules, clamp=False))
    assert not notes_on_size(spec_of(None, None), rules)


def spec_of(cpu_cores: float | None, ram_gb: float | None) -> TaskSpec:
    return TaskSpec((Executor("alpine", ("true",)),), resources=Resources(cpu_cores=cpu_cores, ram_gb=ram_gb))


def test_readers_see_their_place_and_the_reason_without_a_write():
    service = Service(AdmissionRules(site=Quota(max_tasks=9), user=Quota(max_tasks=2)))
    ids = [service.post(n) for n in range(5)]
    service.admitter().run_once()
    reasons = WaitingReasons(service.store, service.clock, service.policy)
    shown = reasons.show(service.repository.get(ids[4]))
    assert shown.log.metadata["waiting_reason"] == "Queued: 3rd in your queue; you have 2 of 2 tasks running"
    assert shown.waiting == shown.log.metadata["waiting_reason"]
    listed = reasons.show(service.repository.get(ids[4]), place=False)
    assert listed.waiting == "Queued: you have 2 of 2 tasks running"
    assert service.repository.get(ids[4]).version == 1
    running = service.repository.get(ids[0])
    assert reasons.show(running) is running


def test_past_usage_outlives_the_admitter():
    service = Service(AdmissionRules(site=Quota(max_tasks=1), half_life=timedelta(minutes=1)))
    heavy = service.post(1, "heavy")
    admitter = service.admitter()
    admitter.run_once()
    service.clock.advance(timedelta(minutes=5))
    service.end(heavy)
    service.post(2, "heavy")
    service.post(3, "light")
    admitter.ended(heavy)
    admitter.run_once()
    assert "heavy" in service.store.read_note(ROUND).text
    assert [t.owner for t in service.tasks(admitted=True)] == ["light"]
    service.end(TaskId(f"{3:026d}"))
    service.post(4, "light")
    again = service.admitter()
    again.run_once()
    assert again._ledger is not None and again._ledger.accounts["heavy"].used[0] > 0.3


def test_policy_without_quotas_is_not_enabled():
    assert not Policy().admission.is_enabled


def test_an_admitter_that_was_stopped_within_a_round_and_goes_on_later_passes_no_cap():
    """Another one has completed the round by then, before it decided about a user who comes first."""
    service = Service(AdmissionRules(site=Quota(max_tasks=2)))
    ids = [service.post(n, "ann") for n in range(2)]
    slow, saves = service.admitter(), 0
    save = service.repository.save

    def stopped(task: Task, *, seen: Version) -> bool:
        nonlocal saves
        saves += 1
        if saves == 2:  # the first of the two is admitted, the second has been read
            service.post(10, "bob")
            service.repository.save = save  # type: ignore[method-assign]
            other = service.admitter()
            for _ in range(3):
                other.run_once()
        return save(task, seen=seen)

    service.repository.save = stopped  # type: ignore[method-assign]
    slow.run_once()
    assert saves == 2
    assert service.held().tasks == 2
    assert all(is_held(service.repository.get(i)) for i in ids)


@pytest.mark.parametrize(
    ("rules", "woken"), [(AdmissionRules(), False), (AdmissionRules(site=Quota(max_tasks=2)), True)]
)
def test_an_ended_task_causes_a_round_only_where_there_are_quotas(rules, woken):
    admitter = Service(rules).admitter()
    admitter.ended(TaskId("1" * 26))
    assert admitter._woken.is_set() is woken


@pytest.mark.parametrize(("apart_s", "rounds"), [(0.0, 6), (60.0, 1)])
def test_tasks_that_end_soon_after_a_round_share_the_next(monkeypatch, apart_s, rounds):
    admitter = replace(Service(AdmissionRules(site=Quota(max_tasks=2))).admitter(), apart_s=apart_s, poll_s=60.0)
    done = threading.Semaphore(0)

    def run_once(waiting: Collection[str]) -> int:
        done.release()
        return 0

    monkeypatch.setattr(admitter, "run_once", run_once)
    admitter.start()
    seen = int(done.acquire(timeout=10))
    for number in range(5):
        admitter.ended(TaskId(f"{number:026d}"))
        seen += done.acquire(timeout=10 if rounds > 1 else 0.02)
    admitter.close()
    assert seen == rounds
    assert not admitter._thread.is_alive()


def rounds_until(service: Service, admitter: Admitter, done: Callable[[], bool], most: int) -> int:
    for count in range(most):
        if done():
            return count
        admitter.run_once()
        service.clock.advance(timedelta(seconds=0.2))
    raise AssertionError(f"not after {most} rounds")


@pytest.mark.parametrize("blocked", [10, HEADS - 1, HEADS, HEADS + 1, HEADS + PAGE, 10 * PAGE])
def test_a_task_that_fits_starts_behind_any_number_that_do_not(blocked):
    service = Service(AdmissionRules(site=Quota(max_cpu_cores=8)))
    service.post(0, "bob", cpu_cores=1)
    admitter = service.admitter()
    assert admitter.run_once() == 1
    for n in range(blocked):
        service.post(10 + n, cpu_cores=8)
    small = [service.post(1000 + n, cpu_cores=1) for n in range(3)]
    started = rounds_until(service, admitter, lambda: all(is_held(service.repository.get(i)) for i in small), 40)
    assert started <= 3 + blocked // PAGE


def test_canceled_tasks_keep_no_room_and_an_older_one_that_waits_again_goes_first():
    service = Service(AdmissionRules(site=Quota(max_cpu_cores=8)))
    service.post(0, "bob", cpu_cores=1)
    admitter = service.admitter()
    admitter.run_once()
    large = [service.post(10 + n, cpu_cores=8) for n in range(2 * HEADS)]
    rounds_until(service, admitter, lambda: bool(admitter._ledger and admitter._ledger.blocked), 3)
    for task_id in large[:-1]:
        task = service.repository.get(task_id)
        canceled = cancel_at_once(task, service.clock.now())
        assert canceled is not None and service.repository.save(canceled, seen=task.version)
    service.clock.advance(timedelta(minutes=20))  # longer than anything is kept for
    small = service.post(1000, "carl", cpu_cores=1)
    rounds_until(service, admitter, lambda: is_held(service.repository.get(small)), 2)
    older = service.post(1, cpu_cores=3)
    younger = [service.post(2000 + n, cpu_cores=3) for n in range(3)]
    assert admitter.run_once() == 2
    assert [is_held(service.repository.get(i)) for i in (older, *younger)] == [True, True, False, False]


class Counted:
    """Passes calls on, and counts them."""

    def __init__(self, target: Any) -> None:
        self._target = target
        self.calls: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        self.calls[name] += 1
        return getattr(self._target, name)


def test_a_round_reads_the_store_a_bounded_number_of_times_and_finds_every_queue():
    service = Service(AdmissionRules(site=Quota(max_cpu_cores=8)))
    service.post(0, "bob", cpu_cores=8)
    admitter = service.admitter()
    admitter.run_once()
    for n in range(2000):
        service.post(10 + n, f"user{n % 200}", cpu_cores=8)
    admitter.store = admitter._queues._store = counted = Counted(service.store)
    for _ in range(20):
        service.clock.advance(timedelta(seconds=0.2))
        counted.calls.clear()
        assert admitter.run_once() == 0
        assert counted.calls["queued"] <= SWEEP_READS + SHORT_READS + FURTHER_READS
    assert len(admitter._queues.queues()) == 200


def test_a_task_that_has_waited_long_is_seen_by_the_first_decision_after_a_start():
    """One call does not read the queues of 30 users, and the last one's task waits for all of the site."""
    service = Service(AdmissionRules(site=Quota(max_cpu_cores=10)))
    running = [service.post(0, "a", cpu_cores=9)]
    first = service.admitter()
    first.run_once()
    large = service.post(1, "z", cpu_cores=10)
    first.run_once()
    running.append(service.post(2, "b", cpu_cores=1))
    assert first.run_once() == 1  # the note has since when the large one waits
    service.clock.advance(timedelta(hours=1))
    for n in range(30 * (PAGE + 6)):
        service.post(10 + n, f"user{n % 30:02}", cpu_cores=1)
    for task_id in running:
        service.end(task_id)
    assert service.admitter().run_once() == 1
    assert is_held(service.repository.get(large)), "others took the room that was kept for it"


def test_nothing_is_decided_again_while_nothing_changes(monkeypatch):
    service = Service(AdmissionRules(site=Quota(max_cpu_cores=8)))
    running = service.post(0, "bob", cpu_cores=8)
    admitter = service.admitter()
    admitter.run_once()
    service.post(1, cpu_cores=8)
    decisions = 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal decisions
        decisions += 1
        return decide(*args, **kwargs)

    monkeypatch.setattr("poiesis.services.admission.decide", counted)
    for _ in range(20):
        admitter.run_once()
        service.clock.advance(timedelta(seconds=0.2))
    assert decisions <= 6  # once a second, for what only time changes
    admitter.run_once()
    before = decisions
    service.post(2, "carl", cpu_cores=8)
    admitter.run_once()
    assert decisions == before + 1
    service.end(running)
    admitter.ended(running)
    assert admitter.run_once() == 1


def test_a_clock_that_was_set_back_delays_no_look_at_what_has_ended():
    service = Service(AdmissionRules(site=Quota(max_tasks=1)))
    ids = [service.post(n) for n in range(2)]
    admitter = service.admitter()
    admitter.run_once()
    service.clock.advance(timedelta(hours=-1))
    service.end(ids[0])
    assert admitter.run_once() == 1


def test_a_round_admits_no_task_of_a_user_who_has_to_wait():
    service = Service(AdmissionRules(site=Quota(max_tasks=3)))
    first = service.post(0, "ann")
    second = service.post(1, "bob")
    admitter = service.admitter()
    assert admitter.run_once({"ann"}) == 1
    assert [t.id for t in service.tasks(admitted=True)] == [second]
    assert admitter.run_once() == 1
    assert service.repository.get(first).stage is Stage.PREPARE


def test_a_blocked_task_stays_blocked_while_its_user_has_to_wait():
    service = Service(AdmissionRules(site=Quota(max_cpu_cores=2)))
    for number, owner in enumerate(["ann", "ann"]):
        service.post(number, owner, cpu_cores=2)
    admitter = service.admitter()
    assert admitter.run_once() == 1
    assert admitter._ledger is not None
    blocked = dict(admitter._ledger.blocked)
    assert blocked
    service.clock.advance(timedelta(seconds=1))
    assert admitter.run_once({"ann"}) == 0
    assert admitter._ledger.blocked == blocked


def test_a_round_begins_once_admission_is_not_held(monkeypatch):
    held, over, rounds = threading.Event(), threading.Event(), threading.Semaphore(0)
    waited = []

    def hold(closed: threading.Event) -> Collection[str]:
        held.set()
        over.wait(10)
        return {"ann"}

    def run_once(waiting: Collection[str]) -> int:
        waited.append(set(waiting))
        rounds.release()
        return 0

    admitter = replace(Service(AdmissionRules(site=Quota(max_tasks=2))).admitter(), apart_s=0.0, poll_s=0.0, hold=hold)
    monkeypatch.setattr(admitter, "run_once", run_once)
    admitter.start()
    assert rounds.acquire(timeout=10) and held.wait(10)
    assert not rounds.acquire(timeout=0.02)
    over.set()
    assert rounds.acquire(timeout=10)
    admitter.close()
    assert waited[:2] == [set(), {"ann"}]
    assert not admitter._thread.is_alive()
