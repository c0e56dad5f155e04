"""What the admitter has in memory of the queues: each task once, in order, nothing for long that is gone, and in the end each task."""

from __future__ import annotations

import bisect
import random
from collections.abc import Sequence
from typing import cast

import pytest

from poiesis.domain.fair_share import Candidate, QueueKey
from poiesis.domain.quotas import Amount, Claim
from poiesis.domain.task import TaskId
from poiesis.ports.admission import AdmissionStore, Place
from poiesis.services import waiting_queues
from poiesis.services.waiting_queues import (
    FURTHER_READS,
    HEADS,
    MAX_HEADS,
    PAGE,
    SHORT_READS,
    SWEEP_READS,
    WaitingQueues,
)
from poiesis.testing.clock import START


class Store:
    """Sorted queues, and how often they were read."""

    def __init__(self) -> None:
        self.keys: list[tuple[QueueKey, TaskId]] = []
        self.reads = 0

    def add(self, user: str, number: int) -> None:
        bisect.insort(self.keys, (QueueKey(user, "default"), TaskId(f"{number:08}")))

    def queued(self, after: Place | None, *, limit: int) -> Sequence[tuple[QueueKey, Candidate]]:
        self.reads += 1
        if after is None:
            begin = 0
        elif after[1] is None:
            begin = bisect.bisect(self.keys, (after[0], TaskId("~")))
        else:
            begin = bisect.bisect(self.keys, (after[0], after[1]))
        found = self.keys[begin : begin + limit]
        return [(k, Candidate(i, 1, Claim(k.user, Amount(1), "default"), START)) for k, i in found]


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def waiting(store: Store) -> WaitingQueues:
    return WaitingQueues(cast(AdmissionStore, store))


def keep(candidate: Candidate) -> Candidate | None:
    return candidate


def ids(waiting: WaitingQueues, user: str = "ann") -> list[str]:
    return [c.id for queue in waiting.queues() if queue.key.user == user for c in queue.heads]


def check_order(waiting: WaitingQueues) -> None:
    for queue in waiting.queues():
        found = [c.id for c in queue.heads]
        assert found == sorted(set(found)), "twice, or not in order"
        assert len(found) <= HEADS + PAGE


@pytest.mark.parametrize("seed", range(20))
def test_queues_that_change_are_shown_in_order_each_task_once(store: Store, waiting: WaitingQueues, seed: int) -> None:
    chance = random.Random(seed)
    number = 0
    for _ in range(60):
        for _ in range(chance.randrange(120)):
            number += 1
            store.add(
                chance.choice(["ann", "bob", "carl"]), number if chance.random() < 0.9 else chance.randrange(number)
            )
            store.keys = sorted(set(store.keys))
        if chance.random() < 0.3:  # the first ones are canceled or admitted
            del store.keys[: chance.randrange(200)]
        if chance.random() < 0.5:
            store.keys = [k for k in store.keys if chance.random() < 0.8]
        waiting.read(keep)
        if chance.random() < 0.7:
            waiting.look_further(keep)
        check_order(waiting)
        for queue in waiting.queues():
            mine = [i for k, i in store.keys if k == queue.key]
            assert [c.id for c in queue.heads[:20]] == mine[:20]


def test_every_task_of_a_long_queue_is_shown(store: Store, waiting: WaitingQueues) -> None:
    for number in range(1000):
        store.add("ann", number)
    seen: set[str] = set()
    rounds = 0
    while len(seen) < 1000:
        waiting.read(keep)
        waiting.look_further(keep)
        check_order(waiting)
        seen |= set(ids(waiting))
        rounds += 1
    assert rounds <= 2 + 1000 // PAGE


def test_the_first_tasks_stay_in_memory_while_others_are_looked_at(store: Store, waiting: WaitingQueues) -> None:
    for number in range(1000):
        store.add("ann", number)
    for _ in range(10):
        waiting.read(keep)
        waiting.look_further(keep)
        assert ids(waiting)[:HEADS] == [f"{n:08}" for n in range(HEADS)]


def test_queues_that_are_empty_are_forgotten(store: Store, waiting: WaitingQueues) -> None:
    store.add("ann", 1)
    store.add("bob", 2)
    waiting.read(keep)
    assert len(waiting.queues()) == 2
    store.keys.pop()
    waiting.read(keep)
    waiting.read(keep)
    assert [queue.key.user for queue in waiting.queues()] == ["ann"]


def test_reads_and_memory_are_bounded_with_many_long_queues(store: Store, waiting: WaitingQueues) -> None:
    for user in range(600):
        store.keys += [(QueueKey(f"user{user:04}", "default"), TaskId(f"{n:08}")) for n in range(100)]
    for _ in range(60):
        store.reads = 0
        waiting.read(keep)
        waiting.look_further(keep)
        assert store.reads <= SWEEP_READS + SHORT_READS + FURTHER_READS
    assert len(waiting.queues()) == 600
    assert sum(len(queue.heads) for queue in waiting.queues()) <= 2 * MAX_HEADS + 600 * waiting_queues.LEAST_HEADS


def test_a_task_is_checked_once_and_left_out_if_it_cannot_be_admitted(store: Store, waiting: WaitingQueues) -> None:
    checked: list[str] = []

    def check(candidate: Candidate) -> Candidate | None:
        checked.append(candidate.id)
        return None if candidate.id == "00000001" else candidate

    for number in range(3):
        store.add("ann", number)
    for _ in range(3):
        waiting.read(check)
    assert ids(waiting) == ["00000000", "00000002"]
    assert checked.count("00000000") == 1


def test_it_says_whether_anything_has_changed(store: Store, waiting: WaitingQueues) -> None:
    def changed() -> bool:
        """Within two reads, the second of which may forget a queue."""
        waiting.has_changed = False
        waiting.read(keep)
        waiting.read(keep)
        return waiting.has_changed

    store.add("ann", 1)
    assert changed() and not changed()
    store.add("bob", 1)
    assert changed() and not changed()
    store.keys.clear()
    assert changed() and not changed()
