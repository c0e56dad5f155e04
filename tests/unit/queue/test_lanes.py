"""Lanes: a user's links go to later ones the more there were lately. Time is simulated."""

from collections import Counter

import pytest

from poiesis.domain.states import Role, Stage
from poiesis.queue import lanes as module
from poiesis.queue.app import make_app, queues_of
from poiesis.queue.lanes import HALF_LIFE_S, Lanes, queue_name


class Time:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def lanes(time) -> Lanes:
    return Lanes(time)


def taken(lanes: Lanes, owner: str | None, count: int, stage: Stage = Stage.LAUNCH) -> list[int]:
    return [lanes.take(owner, stage) for _ in range(count)]


def test_the_more_links_of_a_user_the_later_their_lane(lanes):
    found = taken(lanes, "ada", 5000)
    assert found == sorted(found)
    assert Counter(found) == {0: 10, 1: 90, 2: 900, 3: 4000}


def test_the_links_of_one_user_do_not_count_for_another(lanes):
    taken(lanes, "ada", 5000)
    assert taken(lanes, "bob", 10) == [0] * 10


def test_links_for_another_stage_are_counted_apart(lanes):
    """So a thousand cleanups do not delay a cancellation, and reading the output of running tasks delays no launch."""
    taken(lanes, "ada", 5000, Stage.RUN)
    assert lanes.take("ada", Stage.LAUNCH) == 0


def test_without_users_all_links_wait_in_one_lane(lanes):
    assert set(taken(lanes, None, 5000)) == {0}


def test_links_of_long_ago_no_longer_count(lanes, time):
    taken(lanes, "ada", 1600)
    time.now += HALF_LIFE_S
    assert lanes.take("ada", Stage.LAUNCH) == 2
    time.now += 2 * HALF_LIFE_S
    assert lanes.take("ada", Stage.LAUNCH) == 2
    time.now += 2 * HALF_LIFE_S
    assert lanes.take("ada", Stage.LAUNCH) == 1
    time.now += 60 * HALF_LIFE_S
    assert lanes.take("ada", Stage.LAUNCH) == 0


def test_a_steady_user_gets_few_turns_in_the_first_lane(lanes, time):
    """One who posts ten tasks a second for an hour stays behind users with few, but below those with thousands."""
    found = []
    for _ in range(36_000):
        found.append(lanes.take("ada", Stage.LAUNCH))
        time.now += 0.1
    assert Counter(found)[0] <= 11
    assert set(found[2000:]) == {2}


def test_users_who_have_published_nothing_for_longest_are_forgotten(lanes, monkeypatch):
    monkeypatch.setattr(module, "MAX_COUNTS", 2)
    taken(lanes, "ada", 20)
    taken(lanes, "bob", 20)
    assert lanes.take("ada", Stage.LAUNCH) == 1
    lanes.take("eve", Stage.LAUNCH)
    assert lanes.take("ada", Stage.LAUNCH) == 1
    assert lanes.take("bob", Stage.LAUNCH) == 0


def test_workers_of_a_role_read_its_queue_of_every_lane_and_no_other():
    app = make_app("redis://127.0.0.1:1/0")
    assert queues_of(app, [Role.TEXAM]) == ["texam", "texam.10", "texam.100", "texam.1000"]
    assert [queue_name(Role.TEXAM, lane) for lane in range(4)] == queues_of(app, [Role.TEXAM])
    app.close()


def test_the_embedded_service_which_has_quotas_has_one_lane():
    app = make_app("memory://")
    assert queues_of(app, Role) == [role.value for role in Role]
    app.close()
