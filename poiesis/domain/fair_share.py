"""Which queued task starts next: caps that are never passed, and shares by dominant resource (docs/adr/0014).

Pure: the `Ledger` gets what is in flight and the time as arguments, and `decide` picks from the first tasks of each queue. Every user has
one queue for each service class, in the order of task ids. The queue whose user has the lowest share comes first:

    share   the largest part of a site's cap, over all dimensions, of what the user's tasks hold, averaged with what they have held
            (an average over time that halves with each half-life), and with the task in question added
    weight  the user's, times the class's, times 1 + (time since a task of the queue last started or ended) / aging
    key     share / weight

A task that does not fit is passed over; smaller ones start before it for `reserve_after` at most, counted from when it is its user's turn:
no user who waits for the same thing has used less. Then it has a reservation: where it does not fit, others are admitted only if they
leave what it needs. Reservations are in the order of waiting, and one waits only for older ones, so that they cannot block each other.
Without the turn, a user whose tasks take the whole site would get it for all of the time but the `reserve_after` between two of them.

Quotas of the user and the user's groups come before those that all share, the class's and the site's: as long as a task does not fit in
its user's quota, nothing of the site is kept for it, and its wait for the site begins when only the site is in its way.

A decision looks at `Queue.heads` only, never at what waits behind them. It costs the number of queues, and a logarithm of it for each task
that is admitted.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, NamedTuple

from poiesis.domain.quotas import NO_CAPS, AdmissionRules, Amount, Caps, Claim
from poiesis.domain.task import TaskId

MAX_RESERVATIONS: Final = 16  # in quotas that all share
NEGLIGIBLE: Final = 1e-4  # of the site: past usage below it is forgotten
SHARED: Final = frozenset({"class", "site"})  # kinds of pools


class Pool(NamedTuple):
    """Something with a quota: `kind` is site, class, group or user."""

    kind: str
    name: str


SITE: Final = Pool("site", "")


@dataclass(frozen=True)
class Candidate:
    id: TaskId
    attempt: int
    claim: Claim
    since: datetime


class QueueKey(NamedTuple):
    user: str
    service_class: str


@dataclass
class Queue:
    """The first tasks of one queue, oldest first. `served_at`: when its last task was admitted."""

    key: QueueKey
    heads: list[Candidate]
    served_at: datetime | None = None


class Blocked(NamedTuple):
    """Since when the first task of a queue has not fitted; and since when only because of pools that all share, None: never."""

    since: datetime
    shared_since: datetime | None = None


@dataclass
class Account:
    """What a user's tasks hold, and the average of what they have held, as of `at`."""

    held: Amount
    used: tuple[float, ...]
    at: datetime


class Ledger:
    """What is in flight, by task, and in sum for each pool. Not thread-safe."""

    def __init__(self, rules: AdmissionRules, sums: Mapping[Pool, Amount] | None = None) -> None:
        self.rules = rules
        self.held: dict[TaskId, Claim] = {}
        self.blocked: dict[TaskId, Blocked] = {}
        self.accounts: dict[str, Account] = {}
        self.ended: dict[QueueKey, datetime] = {}  # when the last task of a queue ended
        self.sums: dict[Pool, Amount] = dict(sums or {})
        self._caps: dict[Pool, Caps] = {}

    def hold(self, task_id: TaskId, claim: Claim, now: datetime) -> None:
        if task_id in self.held:
            return
        self.held[task_id] = claim
        self.blocked.pop(task_id, None)
        for pool in self.pools(claim):
            self.sums[pool] = self.sum(pool).plus(claim.amount)
        account = self._account(claim.user, now)
        account.held = account.held.plus(claim.amount)

    def release(self, task_id: TaskId, now: datetime) -> bool:
        """False: the task holds nothing."""
        claim = self.held.pop(task_id, None)
        if claim is None:
            return False
        for pool in self.pools(claim):
            self.sums[pool] = self.sum(pool).minus(claim.amount)
        account = self._account(claim.user, now)
        account.held = account.held.minus(claim.amount)
        self.ended[QueueKey(claim.user, claim.service_class)] = now
        return True

    def sum(self, pool: Pool) -> Amount:
        return self.sums.get(pool, Amount())

    def caps(self, pool: Pool) -> Caps:
        found = self._caps.get(pool)
        if found is None:
            rules = self.rules
            of = {"user": rules.user_caps, "group": rules.group_caps, "class": rules.class_caps}
            found = self._caps[pool] = rules.site.caps if pool == SITE else of[pool.kind](pool.name)
        return found

    def forget_idle(self, now: datetime) -> None:
        """Drop accounts and sums that hold nothing and no longer count."""
        for user in list(self.accounts):
            past = self.past_share(user, now)
            if self.accounts[user].held == Amount() and past < NEGLIGIBLE:
                del self.accounts[user]
        self.ended = {queue: at for queue, at in self.ended.items() if queue.user in self.accounts}
        self.sums = {pool: amount for pool, amount in self.sums.items() if amount != Amount()}
        self._caps.clear()

    def is_full(self) -> bool:
        """Whether not even a task that asks for nothing fits."""
        most = self.caps(SITE)[0]
        return most is not None and self.sum(SITE).tasks >= most

    def share(self, claim: Claim, now: datetime) -> float:
        """The user's share of the site with this task added, not weighted."""
        account = self._account(claim.user, now)
        counts_past = bool(self.rules.half_life)
        share = 0.0
        for held, used, more, cap in zip(account.held, account.used, claim.amount, self._shared(), strict=True):
            if cap is not None:
                share = max(share, ((held + used) / 2 if counts_past else held) / max(cap, 1) + more / max(cap, 1))
        return share

    def past_share(self, user: str, now: datetime) -> float:
        """What the user's tasks have held of the site, on average, not weighted."""
        used = self._account(user, now).used
        return max(u / max(cap, 1) for u, cap in zip(used, self._shared(), strict=True) if cap is not None)

    def _shared(self) -> Caps:
        """The caps that shares are parts of."""
        caps = self.caps(SITE)
        return (1, None, None, None, None) if caps == NO_CAPS else caps  # then the number of tasks is what is shared

    def misfit(self, claim: Claim) -> Iterator[tuple[Pool, int]]:
        """Every pool and dimension in which the claim does not fit now."""
        for pool in self.pools(claim):
            for dimension, (held, more, cap) in enumerate(
                zip(self.sum(pool), claim.amount, self.caps(pool), strict=True)
            ):
                if cap is not None and more and held + more > cap:
                    yield pool, dimension

    def obstacle(self, claim: Claim) -> frozenset[tuple[Pool, int]]:
        """The first pool in which the claim does not fit now, with each dimension; empty: it fits."""
        found = list(self.misfit(claim))
        return frozenset(item for item in found if item[0] == found[0][0])

    def caps_of(self, claim: Claim, dimension: int) -> list[int]:
        return [cap for pool in self.pools(claim) if (cap := self.caps(pool)[dimension]) is not None]

    def never_fits(self, claim: Claim) -> str | None:
        """Why the claim is larger than a quota; None: it is not."""
        for pool in self.pools(claim):
            for dimension, (more, cap) in enumerate(zip(claim.amount, self.caps(pool), strict=True)):
                if cap is not None and more > cap:
                    most = _quantity(dimension, cap)
                    return f"asks for {_quantity(dimension, more)}, but the limit of {_owner(pool)} is {most}"
        return None

    def pools(self, claim: Claim) -> Iterable[Pool]:
        """Those that all share are the last."""
        yield Pool("user", claim.user)
        for group in claim.groups:
            yield Pool("group", group)
        yield Pool("class", claim.service_class)
        yield SITE

    def _account(self, user: str, now: datetime) -> Account:
        account = self.accounts.get(user)
        if account is None:
            account = self.accounts[user] = Account(Amount(), (0.0,) * len(Amount()), now)
        elif now > account.at:
            half_life = self.rules.half_life
            kept = 0.5 ** ((now - account.at) / half_life) if half_life else 0.0
            account.used = tuple(h + (u - h) * kept for h, u in zip(account.held, account.used, strict=True))
            account.at = now
        return account


_Reservation = tuple[int, Claim]
"""The place in the order of waiting, and the claim that waits."""


@dataclass
class _Reservations:
    """By pool: for a claim that does not fit there, and for one that does, and waits for another pool."""

    ledger: Ledger
    awaited: dict[Pool, _Reservation] = field(default_factory=dict)
    kept: dict[Pool, _Reservation] = field(default_factory=dict)

    def allow(self, claim: Claim, place: int) -> bool:
        """Whether what is left in each pool is enough for those that have waited longer."""
        for pool in self.ledger.pools(claim):
            for reserved in (self.awaited.get(pool), self.kept.get(pool)):
                if reserved is None or reserved[0] >= place:
                    continue
                sums, caps = self.ledger.sum(pool), self.ledger.caps(pool)
                for held, more, wanted, cap in zip(sums, claim.amount, reserved[1].amount, caps, strict=True):
                    if cap is not None and more and wanted and held + more + wanted > cap:
                        return False
        return True

    def add(self, claim: Claim, place: int, *, shared: bool) -> bool:
        """Keep what the claim needs of its user's and groups' quotas, up to the first in which it does not fit; if it fits in all of them,
        and `shared`, also where else it does not. Return whether others may have to wait."""
        misfit = {pool for pool, _ in self.ledger.misfit(claim)}
        for pool in self.ledger.pools(claim):
            if pool.kind in SHARED:
                break
            if pool in misfit:
                self.awaited.setdefault(pool, (place, claim))
                return False
            self.kept.setdefault(pool, (place, claim))
        if not shared:
            return False
        for pool in misfit:
            self.awaited.setdefault(pool, (place, claim))
        return bool(misfit)


def decide(ledger: Ledger, queues: Sequence[Queue], now: datetime, *, limit: int) -> list[Candidate]:
    """Return up to `limit` tasks to admit, in order: they are held in the ledger afterwards and gone from their queue's heads."""
    admitted: list[Candidate] = []
    reserved, later = _reserve(ledger, queues, now, admitted, limit)
    heap: list[tuple[float, datetime, int]] = []
    # heads of each queue that have been looked at: what did not fit does not fit later either
    passed = [0] * len(queues)
    refused: list[set[tuple[Amount, tuple[str, ...]]]] = [set() for _ in queues]

    def offer(index: int) -> None:
        """Put the next task of the queue that fits on the heap."""
        queue = queues[index]
        for candidate in queue.heads[passed[index] :]:
            demand = (candidate.claim.amount, candidate.claim.groups)
            if demand not in refused[index]:
                if _fits(ledger, candidate.claim, reserved, later):
                    key = ledger.share(candidate.claim, now) / _weight(ledger, queue, candidate, now)
                    heapq.heappush(heap, (key, candidate.since, index))
                    return
                refused[index].add(demand)
            passed[index] += 1

    for index in range(len(queues)):
        offer(index)
    while heap and len(admitted) < limit:
        _, _, index = heapq.heappop(heap)
        queue = queues[index]
        if _fits(ledger, queue.heads[passed[index]].claim, reserved, later):
            admitted.append(_admit(ledger, queue, passed[index], now))
        offer(index)
    _mark_blocked(ledger, queues, now)
    return admitted


def _mark_blocked(ledger: Ledger, queues: Sequence[Queue], now: datetime) -> None:
    """Note since when a first task has not fitted although it is its user's turn."""
    turns = []
    for index, queue in enumerate(queues):
        if queue.heads and (obstacle := ledger.obstacle(queue.heads[0].claim)):
            past = ledger.past_share(queue.key.user, now) / _weight(ledger, queue, queue.heads[0], now)
            turns.append((past, queue.heads[0].since, index, obstacle))
    waiting = {queue.heads[0].id for queue in queues if queue.heads}
    ledger.blocked = {task_id: blocked for task_id, blocked in ledger.blocked.items() if task_id in waiting}
    awaited: set[tuple[Pool, int]] = set()
    for _, _, index, obstacle in sorted(turns, key=lambda turn: turn[:3]):
        if not obstacle <= awaited:
            task_id = queues[index].heads[0].id
            blocked = ledger.blocked.setdefault(task_id, Blocked(now))
            if blocked.shared_since is None and all(pool.kind in SHARED for pool, _ in obstacle):
                ledger.blocked[task_id] = blocked._replace(shared_since=now)
        awaited |= obstacle


def _reserve(
    ledger: Ledger, queues: Sequence[Queue], now: datetime, admitted: list[Candidate], limit: int
) -> tuple[_Reservations, int]:
    """Admit or reserve for the first tasks that have not fitted for too long, longest first; return a place behind them too."""
    reserved = _Reservations(ledger)
    late = []
    latest = now - ledger.rules.reserve_after
    for queue in queues:
        blocked = ledger.blocked.get(queue.heads[0].id) if queue.heads else None
        if blocked is not None and blocked.since <= latest:
            late.append((blocked.shared_since or blocked.since, queue.heads[0].id, queue))
    shared = 0
    for place, (_, task_id, queue) in enumerate(sorted(late, key=lambda item: item[:2])):
        claim, since = queue.heads[0].claim, ledger.blocked[task_id].shared_since
        if len(admitted) < limit and _fits(ledger, claim, reserved, place):
            admitted.append(_admit(ledger, queue, 0, now))
        else:
            is_late = since is not None and since <= latest
            shared += reserved.add(claim, place, shared=is_late and shared < MAX_RESERVATIONS)
    return reserved, len(late)


def _fits(ledger: Ledger, claim: Claim, reserved: _Reservations, place: int) -> bool:
    return next(ledger.misfit(claim), None) is None and reserved.allow(claim, place)


def _admit(ledger: Ledger, queue: Queue, index: int, now: datetime) -> Candidate:
    candidate = queue.heads.pop(index)
    ledger.hold(candidate.id, candidate.claim, now)
    queue.served_at = now
    return candidate


def _weight(ledger: Ledger, queue: Queue, candidate: Candidate, now: datetime) -> float:
    claim, rules = candidate.claim, ledger.rules
    since = max(filter(None, (queue.served_at, ledger.ended.get(queue.key), candidate.since)))
    waited = max((now - since) / rules.aging, 0.0) if rules.aging else 0.0
    return rules.weight(claim.user, claim.groups) * rules.class_weight(claim.service_class) * (1 + waited)


# ── in words ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def why(ledger: Ledger, claim: Claim) -> str:
    """Why a task is waiting, in words for its user."""
    found = next(ledger.misfit(claim), None)
    if found is None:
        return "waiting for its turn"
    pool, dimension = found
    cap, held, more = ledger.caps(pool)[dimension], ledger.sum(pool)[dimension], claim.amount[dimension]
    assert cap is not None
    has = {"user": "you have", "group": f"the group {pool.name} has", "class": f"the class {pool.name} has"}.get(
        pool.kind, "the site has"
    )
    if dimension == 0:
        return f"{has} {held} of {cap} tasks running"
    taken = "all taken" if held >= cap else f"{_quantity(dimension, cap - held)} free"
    return f"waiting for {_quantity(dimension, more)}; {has} {_quantity(dimension, cap)}, {taken}"


def _owner(pool: Pool) -> str:
    return {"site": "this service", "user": "each user"}.get(pool.kind, f"the {pool.kind} {pool.name}")


def _quantity(dimension: int, value: int) -> str:
    if dimension == 1:
        return f"{value / 1000:g} CPU core{'' if value == 1000 else 's'}"
    if dimension == 2:
        return f"{value / 1e9:g} GB of memory"
    name = ("task", "", "", "GPU", "volume")[dimension]
    return f"{value} {name}{'' if value == 1 else 's'}"


def ordinal(number: int) -> str:
    suffix = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{suffix}"
