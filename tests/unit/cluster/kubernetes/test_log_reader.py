"""One bad node must not slow the others: real threads, and reads that block until the test lets them go."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from poiesis.cluster.kubernetes.errors import ApiError
from poiesis.cluster.kubernetes.log_reader import LONGEST_PAUSE_S, THREADS, THREADS_PER_NODE, LogRead, LogReader

DEADLINE_S = 20.0
REFUSED = ApiError(500, "InternalError", "dial tcp 10.0.0.1:10250: connect: connection refused")


class Scene:
    def __init__(self) -> None:
        self.reader = LogReader()
        self.reads: Counter[str] = Counter()  # by node
        self.given_up: Counter[str] = Counter()
        self.at_once: Counter[str] = Counter()
        self.most_at_once: Counter[str] = Counter()
        self.lock = threading.Lock()

    def submit(
        self, uid: str, node: str, behave: Callable[[], object] = lambda: None, patience_s: float = DEADLINE_S
    ) -> LogRead:
        def read() -> None:
            with self.lock:
                self.reads[node] += 1
                self.at_once[node] += 1
                self.most_at_once[node] = max(self.most_at_once[node], self.at_once[node])
            try:
                behave()
            finally:
                with self.lock:
                    self.at_once[node] -= 1

        def give_up() -> None:
            with self.lock:
                self.given_up[node] += 1

        submitted = self.reader.submit(LogRead((uid, False), node, read, give_up, lambda: None, patience_s))
        assert submitted is not None
        return submitted


@pytest.fixture
def scene() -> Iterator[Scene]:
    scene = Scene()
    yield scene
    scene.reader.close()


def refuse() -> None:
    raise REFUSED


def test_a_thousand_pods_on_nodes_that_refuse_delay_no_other_node(scene: Scene) -> None:
    for i in range(1000):
        scene.submit(f"bad-{i}", f"bad-{i % 10}", refuse, patience_s=1.0)
    slowest = 0.0
    for i in range(50):
        began = time.monotonic()
        assert scene.submit(f"good-{i}", "good").done.wait(DEADLINE_S)
        slowest = max(slowest, time.monotonic() - began)
    assert slowest < 1.0
    assert sum(n for node, n in scene.reads.items() if node != "good") < 200, "paused after each failure"


def test_nodes_that_hang_take_at_most_their_share_of_threads(scene: Scene) -> None:
    assert THREADS_PER_NODE < THREADS
    release = threading.Event()
    hanging = [scene.submit(f"bad-{i}", "bad", lambda: release.wait(DEADLINE_S)) for i in range(100)]
    assert scene.submit("good", "good").done.wait(DEADLINE_S)
    assert scene.most_at_once["bad"] <= THREADS_PER_NODE
    release.set()
    assert all(read.done.wait(DEADLINE_S) for read in hanging)
    assert scene.most_at_once["bad"] <= THREADS_PER_NODE and not scene.given_up


def test_reads_of_a_refusing_node_are_given_up_together_after_their_patience(scene: Scene) -> None:
    reads = [scene.submit(f"bad-{i}", "bad", refuse, patience_s=0.5) for i in range(500)]
    assert all(read.done.wait(DEADLINE_S) for read in reads)
    assert scene.given_up["bad"] == 500 and scene.reads["bad"] < 20


def test_a_node_that_recovers_is_read_again_at_once(scene: Scene) -> None:
    healthy = threading.Event()
    reads = [scene.submit(f"{i}", "node", lambda: None if healthy.is_set() else refuse()) for i in range(100)]
    while scene.reads["node"] < 2:
        time.sleep(0.005)
    assert scene.reader.is_failing("node") and scene.most_at_once["node"] <= THREADS_PER_NODE
    healthy.set()
    assert all(read.done.wait(LONGEST_PAUSE_S + DEADLINE_S) for read in reads)
    assert not scene.given_up and not scene.reader.is_failing("node")


def test_the_same_read_is_queued_once(scene: Scene) -> None:
    release = threading.Event()
    first = scene.submit("a", "node", lambda: release.wait(DEADLINE_S))
    assert scene.submit("a", "node") is first
    release.set()
    assert first.done.wait(DEADLINE_S) and scene.reads["node"] == 1


def test_what_will_never_be_readable_is_given_up_at_once_and_does_not_count_against_the_node(scene: Scene) -> None:
    def gone() -> None:
        raise ApiError(404, "NotFound", "no such pod")

    assert scene.submit("a", "node", gone).done.wait(DEADLINE_S)
    assert scene.given_up["node"] == 1 and not scene.reader.is_failing("node")


def test_a_bug_ends_its_read_only(scene: Scene) -> None:
    def bug() -> None:
        raise ValueError("bug")

    assert scene.submit("a", "node", bug).done.wait(DEADLINE_S)
    assert scene.submit("b", "node").done.wait(DEADLINE_S)
