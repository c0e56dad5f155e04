"""The decision of admission: caps, order, shares, back-fill and reservations, as properties and in simulations."""

import time
from collections import Counter, deque
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poiesis.domain.errors import ConfigurationError
from poiesis.domain.fair_share import SITE, Candidate, Ledger, Pool, Queue, QueueKey, decide, ordinal, why
from poiesis.domain.quotas import AdmissionRules, Amount, Claim, Quota, ServiceClass
from poiesis.domain.task import TaskId
from poiesis.testing.clock import START

SECOND = timedelta(seconds=1)
PAGE = 50


def amount(tasks: int = 1, cores: float = 0, gpus: int = 0, memory_bytes: int = 0, volumes: int = 0) -> Amount:
    return Amount(tasks, round(cores * 1000), memory_bytes, gpus, volumes)


@dataclass
class Site:
    """A site whose tasks last as long as they say: `step` ends those that are due, decides once, and moves the clock."""

    rules: AdmissionRules
    now: datetime = START
    waiting: dict[QueueKey, deque[tuple[Candidate, int]]] = field(default_factory=dict)
    running: dict[TaskId, datetime] = field(default_factory=dict)
    started: dict[TaskId, datetime] = field(default_factory=dict)
    served: dict[QueueKey, datetime] = field(default_factory=dict)
    count: int = 0

    def __post_init__(self) -> None:
        self.ledger = Ledger(self.rules)

    def post(self, user: str, what: Amount, seconds: int = 10, service_class: str = "default", groups=()) -> TaskId:
        self.count += 1
        task_id = TaskId(f"{self.count:026d}")
        candidate = Candidate(task_id, 1, Claim(user, what, service_class, tuple(groups)), self.now)
        self.waiting.setdefault(QueueKey(user, service_class), deque()).append((candidate, seconds))
        return task_id

    def step(self, by: timedelta = SECOND, limit: int = 1000) -> list[Candidate]:
        for task_id in [t for t, end in self.running.items() if end <= self.now]:
            del self.running[task_id]
            assert self.ledger.release(task_id, self.now)
        pages = {key: list(islice(rest, PAGE)) for key, rest in sorted(self.waiting.items()) if rest}
        seconds = {c.id: s for page in pages.values() for c, s in page}
        queues = [Queue(key, [c for c, _ in page], self.served.get(key)) for key, page in pages.items()]
        decided = decide(self.ledger, queues, self.now, limit=limit)
        admitted = {c.id for c in decided}
        assert len(admitted) == len(decided)
        for queue in queues:
            self.served[queue.key] = queue.served_at or self.now
            rest = self.waiting[queue.key]
            page = [rest.popleft() for _ in pages[queue.key]]
            rest.extendleft((c, s) for c, s in reversed(page) if c.id not in admitted)
        for candidate in decided:
            self.running[candidate.id] = self.now + timedelta(seconds=seconds[candidate.id])
            self.started[candidate.id] = self.now
        self.now += by
        return decided

    def reason(self, user: str) -> str:
        return why(self.ledger, self.waiting[QueueKey(user, "default")][0][0].claim)

    def held(self, user: str) -> Amount:
        return self.ledger.sum(Pool("user", user))


def caps_of(site: Site) -> None:
    """Nothing is above any cap, and the sums are those of the tasks."""
    for pool, total in site.ledger.sums.items():
        mine = Amount()
        for claim in site.ledger.held.values():
            if pool in site.ledger.pools(claim):
                mine = mine.plus(claim.amount)
        assert total == mine
        assert all(cap is None or held <= cap for held, cap in zip(total, site.ledger.caps(pool), strict=True))


AMOUNTS = st.builds(amount, cores=st.integers(0, 6), gpus=st.integers(0, 2), volumes=st.integers(0, 1))
QUOTAS = st.builds(
    Quota,
    max_tasks=st.none() | st.integers(1, 6),
    max_cpu_cores=st.none() | st.integers(1, 12),
    max_gpus=st.none() | st.integers(0, 3),
    max_volumes=st.none() | st.integers(0, 4),
    weight=st.none() | st.floats(0.1, 10),
)
RULES = st.builds(
    AdmissionRules,
    site=QUOTAS,
    user=QUOTAS,
    users=st.dictionaries(st.sampled_from("ab"), QUOTAS),
    group=QUOTAS,
    groups=st.dictionaries(st.sampled_from("gh"), QUOTAS),
    classes=st.dictionaries(
        st.sampled_from(["default", "urgent"]),
        st.builds(ServiceClass, max_tasks=st.none() | st.integers(1, 4), weight=st.none() | st.floats(0.5, 4)),
    ),
    half_life=st.sampled_from([timedelta(0), 30 * SECOND]),
    aging=st.sampled_from([timedelta(0), 60 * SECOND]),
    reserve_after=st.sampled_from([timedelta(0), 20 * SECOND]),
)
POSTS = st.lists(
    st.tuples(
        st.sampled_from("abc"),
        AMOUNTS,
        st.integers(1, 30),
        st.sampled_from(["default", "urgent"]),
        st.sets(st.sampled_from("gh")),
    ),
    max_size=12,
)


@given(RULES, POSTS, st.lists(st.integers(1, 40), max_size=15), st.integers(1, 5))
@settings(max_examples=100, deadline=None)
def test_no_cap_is_ever_passed(rules, posts, steps, limit):
    site = Site(rules)
    for number, (user, what, seconds, service_class, groups) in enumerate(posts):
        site.post(user, what, seconds, service_class, groups)
        if number < len(steps):
            site.step(steps[number] * SECOND, limit)
            caps_of(site)
    for by in steps:
        site.step(by * SECOND, limit)
        caps_of(site)


@given(RULES, POSTS, st.lists(st.integers(1, 40), max_size=10))
@settings(max_examples=100, deadline=None)
def test_whatever_fits_starts_unless_a_task_has_waited_too_long(rules, posts, steps):
    """Work-conserving: without a reservation, nothing that fits is left waiting."""
    site = Site(replace(rules, reserve_after=timedelta(days=1)))
    for user, what, seconds, service_class, groups in posts:
        site.post(user, what, seconds, service_class, groups)
    for by in [0, *steps]:
        site.step(by * SECOND)
        for rest in site.waiting.values():
            for candidate, _ in rest:
                assert next(site.ledger.misfit(candidate.claim), None) is not None


@given(RULES, POSTS)
@settings(max_examples=60, deadline=None)
def test_every_task_that_fits_at_all_starts_while_small_ones_keep_coming(rules, posts):
    """No starvation: however many tasks of others arrive, one that no quota forbids starts in bounded time."""
    site = Site(rules)
    mine = [site.post(user, what, seconds, c, groups) for user, what, seconds, c, groups in posts]
    forbidden = {c.id for rest in site.waiting.values() for c, _ in rest if site.ledger.never_fits(c.claim)}
    possible = set(mine) - forbidden
    for key in list(site.waiting):  # the admitter ends them
        site.waiting[key] = deque((c, s) for c, s in site.waiting[key] if c.id not in forbidden)
    for number in range(30 * (len(posts) + 2)):
        if possible <= site.started.keys():
            break
        site.post(f"other-{number % 3}", amount(), 15)
        site.step(5 * SECOND)
    late = possible - site.started.keys()
    smallest = [c for c in (rules.site.max_tasks, rules.classes.get("default", ServiceClass()).max_tasks) if c]
    assert not late or not all(c is None or c > 0 for c in smallest) or rules.aging == timedelta(0)


@pytest.mark.parametrize("half_life", [timedelta(0), timedelta(minutes=5), timedelta(hours=1)])
def test_shares_converge_to_the_weights(half_life):
    users = {"a": Quota(weight=1), "b": Quota(weight=2), "c": Quota(weight=5)}
    site = Site(AdmissionRules(site=Quota(max_tasks=80), users=users, half_life=half_life))
    for _ in range(2000):
        for user in users:
            site.post(user, amount(), seconds=60)
    spent: Counter[str] = Counter()
    for step in range(400):
        site.step(5 * SECOND, limit=100)
        if step >= 200:
            spent.update({user: site.held(user).tasks for user in users})
    total = sum(spent.values())
    assert total == 80 * 200
    assert [round(spent[user] / total, 2) for user in "abc"] == pytest.approx([1 / 8, 2 / 8, 5 / 8], abs=0.02)


def test_the_dominant_resource_is_what_is_shared():
    """DRF's example: 9 cores, 18 GB; tasks of 1 core and 4 GB against 3 cores and 1 GB: three and two of them."""
    site = Site(AdmissionRules(site=Quota(max_cpu_cores=9, max_ram_gb=18), half_life=timedelta(0)))
    for _ in range(10):
        site.post("a", amount(cores=1, memory_bytes=4 * 10**9), 1000)
        site.post("b", amount(cores=3, memory_bytes=10**9), 1000)
    site.step()
    assert (site.held("a").tasks, site.held("b").tasks) == (3, 2)


def test_ten_tasks_of_a_newcomer_start_within_two_generations_of_five_thousand():
    site = Site(AdmissionRules(site=Quota(max_tasks=20)))
    for number in range(5000):
        site.post("greedy", amount(), seconds=20 + number % 20)
    for _ in range(600):
        site.step()
    posted = site.now
    mine = [site.post("newcomer", amount(), seconds=30) for _ in range(10)]
    for _ in range(80):
        site.step()
    assert all(site.started[task_id] - posted <= 2 * 40 * SECOND for task_id in mine)
    assert site.started[mine[0]] - posted <= 5 * SECOND


def test_a_user_who_has_used_much_stands_behind_one_who_has_not():
    site = Site(AdmissionRules(site=Quota(max_tasks=4), half_life=timedelta(minutes=10)))
    for _ in range(4):
        site.post("heavy", amount(), seconds=600)
    for _ in range(601):
        site.step()
    for _ in range(8):
        site.post("heavy", amount(), 60)
        site.post("light", amount(), 60)
    admitted = site.step()
    assert Counter(c.claim.user for c in admitted) == {"light": 3, "heavy": 1}


def test_a_large_task_lets_small_ones_pass_only_for_a_while():
    site = Site(AdmissionRules(site=Quota(max_cpu_cores=8), reserve_after=timedelta(minutes=1)))
    for _ in range(8):
        site.post("small", amount(cores=1), seconds=20)
    site.step()
    large = site.post("large", amount(cores=8), seconds=5)
    overtaken = 0
    while large not in site.started:
        site.post("small", amount(cores=1), seconds=20)
        overtaken += sum(c.claim.user == "small" for c in site.step())
        assert site.now < START + timedelta(minutes=3)
    assert overtaken >= 10  # it did not block them
    assert site.started[large] - START <= timedelta(seconds=60 + 20 + 5)


def test_tasks_that_take_the_whole_site_do_not_keep_it_from_others():
    """Before turns were counted, the user of the small ones got 1 % of it."""
    site = Site(AdmissionRules(site=Quota(max_cpu_cores=8)))
    held: Counter[str] = Counter()
    for _ in range(8):
        site.post("large", amount(cores=8), seconds=600)
    for _ in range(120):
        for _ in range(8):
            site.post("small", amount(cores=1), seconds=60)
        site.step(by=60 * SECOND)
        held.update({user: site.held(user).millicores for user in ("large", "small")})
    assert min(held.values()) >= 0.35 * held.total()


@pytest.mark.parametrize("groups", [(), ("g",)])
def test_nothing_of_the_site_is_kept_for_a_task_that_its_own_quota_stops(groups: tuple[str, ...]):
    """Neither after `reserve_after` nor at once when its own quota has room again: its wait for the site begins then."""
    rules = AdmissionRules(
        site=Quota(max_gpus=8),
        users={} if groups else {"a": Quota(max_tasks=1)},
        groups={"g": Quota(max_tasks=1)},
        reserve_after=timedelta(minutes=10),
    )
    site = Site(rules)
    site.post("a", amount(), seconds=40 * 60, groups=groups)
    site.step()
    large = site.post("a", amount(gpus=8), seconds=60, groups=groups)
    for minute in range(60):
        for number in range(8):
            site.post("b", amount(gpus=1), seconds=(2 + number) * 60 - 1)
        site.step(by=60 * SECOND)
        assert site.held("b").gpus == 8 or minute >= 50, f"after {minute} min"
    assert timedelta(minutes=50) <= site.started[large] - START <= timedelta(minutes=60)


@pytest.mark.parametrize("groups", [(), ("g",)])
def test_a_large_task_starts_within_a_quota_of_its_own_that_small_ones_fill(groups: tuple[str, ...]):
    rules = AdmissionRules(
        site=Quota(max_gpus=100),
        users={} if groups else {"a": Quota(max_gpus=4)},
        groups={"g": Quota(max_gpus=4)},
        reserve_after=timedelta(minutes=1),
    )
    site = Site(rules)
    for _ in range(4):
        site.post("a" if not groups else "other", amount(gpus=1), seconds=20, groups=groups)
    site.step()
    large = site.post("a", amount(gpus=4), seconds=5, groups=groups)
    while large not in site.started:
        site.post("a" if not groups else "other", amount(gpus=1), seconds=20, groups=groups)
        site.step()
        assert site.now < START + timedelta(minutes=3)


def test_what_is_kept_in_an_own_quota_stays_kept_while_the_site_is_waited_for():
    """Else the user's small tasks would fill the own quota again and again, and the wait for the site would begin again each time."""
    rules = AdmissionRules(site=Quota(max_gpus=8), users={"a": Quota(max_gpus=4)}, reserve_after=timedelta(minutes=1))
    site = Site(rules)
    for user in "aaaabbbb":
        site.post(user, amount(gpus=1), seconds=20)
    site.step()
    large = site.post("a", amount(gpus=4), seconds=5)
    while large not in site.started:
        for user in "ab":
            site.post(user, amount(gpus=1), seconds=20)
        site.step()
        assert site.now < START + timedelta(minutes=5)


def test_a_task_that_its_own_quota_stops_takes_no_place_in_a_group_from_one_that_waits_for_it():
    """In a simulation the large one waited for more than 600 minutes."""
    rules = AdmissionRules(
        users={"u": Quota(max_tasks=1)}, groups={"g": Quota(max_cpu_cores=10)}, reserve_after=timedelta(minutes=10)
    )
    site = Site(rules)
    site.post("u", amount(cores=1), seconds=10**6, groups=["g"])
    for number in range(9):
        site.post(f"small{number % 3}", amount(cores=1), seconds=300 + 60 * number, groups=["g"])
    site.step()
    site.post("u", amount(cores=1), groups=["g"])
    site.step(by=60 * SECOND)
    large = site.post("v", amount(cores=8), groups=["g"])
    while large not in site.started:
        for user in range(3):
            site.post(f"small{user}", amount(cores=1), seconds=300 + 60 * user, groups=["g"])
        site.step(by=60 * SECOND)
        assert site.now < START + timedelta(hours=1)


def test_small_tasks_behind_a_large_one_that_does_not_fit_keep_their_turn():
    """They count with what they ask for, not with what the large one does."""
    site = Site(AdmissionRules(site=Quota(max_cpu_cores=10), aging=timedelta(0), half_life=timedelta(0)))
    site.post("c", amount(cores=8), seconds=1000)
    site.step()
    site.post("a", amount(cores=9))
    small = site.post("a", amount(cores=1), 100)
    site.post("b", amount(cores=2), 100)
    assert small in {c.id for c in site.step()}


def test_a_queue_does_not_age_while_its_task_runs():
    site = Site(AdmissionRules(site=Quota(max_tasks=1), half_life=timedelta(0), aging=timedelta(minutes=1)))
    site.post("a", amount(), seconds=3600)
    site.step()
    site.post("a", amount())
    site.post("b", amount())
    for _ in range(60):
        site.step(by=timedelta(minutes=1))
    assert [c.claim.user for c in site.step()] == ["b"]


def test_tasks_that_use_nothing_that_a_large_one_waits_for_pass_it():
    site = Site(AdmissionRules(site=Quota(max_cpu_cores=8, max_gpus=2), reserve_after=timedelta(0)))
    site.post("a", amount(cores=1, gpus=2), seconds=1000)
    site.step()
    site.post("b", amount(cores=1, gpus=2), seconds=10)
    site.step()
    site.step()
    cpu = [site.post("c", amount(cores=1), 10) for _ in range(9)]
    site.step()
    assert sum(t in site.started for t in cpu) == 6  # one core is kept for b
    assert site.reason("b") == "waiting for 2 GPUs; the site has 2 GPUs, all taken"


def test_two_reservations_do_not_block_each_other():
    rules = AdmissionRules(
        site=Quota(max_cpu_cores=4), group=Quota(max_gpus=2), reserve_after=timedelta(0), half_life=timedelta(0)
    )
    site = Site(rules)
    site.post("a", amount(cores=4), 20)
    site.post("g1", amount(gpus=2), 30, groups=["g"])
    site.step()
    both = [
        site.post("g2", amount(cores=4, gpus=1), 10, groups=["g"]),
        site.post("g3", amount(cores=3, gpus=2), 10, groups=["g"]),
    ]
    for _ in range(60):
        site.step()
    assert all(task_id in site.started for task_id in both)


def test_a_class_with_a_larger_weight_goes_first_and_does_not_starve_the_other():
    classes = {"urgent": ServiceClass(weight=10)}
    site = Site(AdmissionRules(site=Quota(max_tasks=2), classes=classes, aging=timedelta(minutes=1)))
    bulk = [site.post("a", amount(), 5) for _ in range(3)]
    site.step()
    started = []
    for _ in range(400):
        site.post("a", amount(), 5, "urgent")
        started += [c.claim.service_class for c in site.step()]
    assert bulk[2] in site.started
    assert started[:2] == ["urgent", "urgent"]


def test_reasons_name_the_quota_and_the_place():
    rules = AdmissionRules(site=Quota(max_tasks=3, max_gpus=8), user=Quota(max_tasks=2), group=Quota(max_cpu_cores=2))
    site = Site(rules)
    for _ in range(3):
        site.post("a", amount(), 100)
    site.post("b", amount(gpus=9))
    site.post("c", amount(cores=1.5), 100, groups=["lab"])
    site.post("c", amount(cores=1), groups=["lab"])
    site.step()
    assert [site.reason(user) for user in "abc"] == [
        "you have 2 of 2 tasks running",
        "the site has 3 of 3 tasks running",
        "waiting for 1 CPU core; the group lab has 2 CPU cores, 0.5 CPU cores free",
    ]
    claim = Claim("b", amount(gpus=9), "default")
    assert site.ledger.never_fits(claim) == "asks for 9 GPUs, but the limit of this service is 8 GPUs"
    assert [ordinal(n) for n in (1, 2, 3, 4, 11, 12, 21, 102, 113)] == [
        *("1st", "2nd", "3rd", "4th", "11th", "12th", "21st", "102nd", "113th")
    ]


def test_a_decision_does_not_depend_on_how_many_wait_and_grows_slowly_with_the_queues():
    def seconds(users: int) -> float:
        ledger = Ledger(AdmissionRules(site=Quota(max_tasks=10**6)))
        queues = [
            Queue(
                QueueKey(str(u), "default"),
                [Candidate(TaskId(f"{u}-{n}"), 1, Claim(str(u), amount(), "default"), START) for n in range(4)],
            )
            for u in range(users)
        ]
        begin = time.process_time()
        assert len(decide(ledger, queues, START, limit=10**6)) == 4 * users
        return (time.process_time() - begin) / (4 * users)

    seconds(100)
    assert seconds(4000) < 6 * min(seconds(200) for _ in range(3))


def test_releasing_twice_or_holding_twice_counts_once():
    ledger = Ledger(AdmissionRules())
    claim = Claim("a", amount(cores=1), "default")
    for _ in range(2):
        ledger.hold(TaskId("t"), claim, START)
    assert ledger.sum(SITE) == amount(cores=1)
    assert [ledger.release(TaskId("t"), START) for _ in range(2)] == [True, False]
    assert ledger.sum(SITE) == Amount()
    ledger.forget_idle(START)
    assert not ledger.accounts


def test_past_usage_halves_with_each_half_life_and_is_forgotten():
    ledger = Ledger(AdmissionRules(site=Quota(max_tasks=1), half_life=timedelta(hours=1)))
    claim = Claim("a", amount(), "default")
    ledger.hold(TaskId("t"), claim, START)
    ledger.release(TaskId("t"), START + timedelta(hours=10))
    assert ledger.share(claim, START + timedelta(hours=10)) == pytest.approx(1.5, abs=0.01)
    assert ledger.share(claim, START + timedelta(hours=11)) == pytest.approx(1.25, abs=0.01)
    ledger.forget_idle(START + timedelta(hours=30))
    assert not ledger.accounts


@pytest.mark.parametrize("field", ["max_tasks", "max_cpu_cores", "weight"])
@pytest.mark.parametrize("value", [-1, "3", float("nan"), True])
def test_a_quota_that_is_not_a_number_is_refused(field, value):
    with pytest.raises(ConfigurationError, match=f"invalid {field}"):
        Quota(**{field: value})


def test_named_quotas_inherit_what_they_leave_out():
    rules = AdmissionRules(user=Quota(max_tasks=5, max_gpus=1), users={"ann": Quota(max_tasks=9)})
    assert rules.user_caps("ann")[:4] == (9, None, None, 1)
    assert rules.user_caps("bob")[0] == 5
    assert rules.is_enabled and not AdmissionRules(users={"ann": Quota(weight=3)}).is_enabled


def test_who_may_use_a_class():
    rules = AdmissionRules(classes={"urgent": ServiceClass(users=("ann",), groups=("clinic",)), "bulk": ServiceClass()})
    assert rules.may_use("urgent", "ann", ()) and rules.may_use("urgent", "bob", ["clinic"])
    assert not rules.may_use("urgent", "bob", ["lab"]) and not rules.may_use("unknown", "ann", ())
    assert rules.may_use("bulk", None, ()) and rules.may_use("default", None, ())
    assert not replace(rules, default_class="bulk").may_use("default", None, ()), "no such class, and without quotas"
