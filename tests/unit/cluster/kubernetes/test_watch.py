"""The informer against a scripted API server: faults of a watch, and the state after them."""

from __future__ import annotations

import json
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from poiesis.cluster.kubernetes.cache import MAX_GONE, PODS, Cache, PodView, project_pod
from poiesis.cluster.kubernetes.client import Client
from poiesis.cluster.kubernetes.settings import KubernetesSettings
from poiesis.cluster.kubernetes.watch import Watch
from poiesis.domain.task import TaskId
from tests.unit.cluster.kubernetes.conftest import Answer, ApiServer, Request, pod_json

RUNNING = {"executor-0": {"running": {"startedAt": "2026-01-02T03:04:06Z"}}}
ENDED = {"executor-0": {"terminated": {"exitCode": 0, "reason": "Completed", "message": "x" * 2000}}}


def event(what: str, document: dict[str, Any]) -> bytes:
    return json.dumps({"type": what, "object": document}).encode() + b"\n"


def listing(*items: dict[str, Any], version: int = 1, more: str | None = None) -> Answer:
    metadata = {"resourceVersion": str(version), **({"continue": more} if more else {})}
    return Answer(body={"items": list(items), "metadata": metadata})


def task_pod(name: str, version: int = 1, **more: Any) -> dict[str, Any]:
    return pod_json(f"pod-{name}", task_id=name, version=version, **more)


class Fixture:
    """One watch, run in the test's own thread until the script ends: the last response closes it."""

    def __init__(self, server: ApiServer, client: Client, settings: KubernetesSettings) -> None:
        self.server = server
        self.waits: list[float] = []
        self.woken: list[TaskId] = []
        self.cache = Cache(self.woken.append)
        self.now = 0.0
        self.watch = Watch(
            client,
            settings,
            PODS,
            "a=b",
            project_pod,
            self.cache,
            monotonic=lambda: self.now,
            jitter=lambda: 0.5,
            wait=self.waits.append,
        )

    def play(self, *answers: Answer | Callable[[], Answer | None] | None) -> list[Request]:
        left = list(answers)

        def answer(_: Request) -> Answer | None:
            if not left:
                self.watch.close()
                return Answer(lines=[])
            following = left.pop(0)
            return following() if callable(following) else following

        self.server.answer = answer
        self.watch.run()
        return self.server.requests

    def state(self, name: str) -> str | None:
        found = self.cache.pods(TaskId(name))
        return found[0].containers[0].state if found else None


@pytest.fixture
def fixture(server: ApiServer, settings: KubernetesSettings) -> Iterator[Fixture]:
    from kubernetes.client import Configuration

    client = Client(replace(settings, attempts=1), Configuration(host=server.url, retries=0))
    made = Fixture(server, client, settings)
    yield made
    made.watch.close()
    client.close()


def test_list_then_watch_from_there(fixture: Fixture) -> None:
    requests = fixture.play(
        listing(task_pod("a"), task_pod("b"), version=10),
        Answer(lines=[event("MODIFIED", task_pod("a", 11, containers=RUNNING)), event("DELETED", task_pod("b", 12))]),
    )
    assert requests[0].query == {"labelSelector": "a=b", "limit": "250"}
    assert requests[1].query["resourceVersion"] == "10" and requests[1].query["allowWatchBookmarks"] == "true"
    assert requests[2].query["resourceVersion"] == "12"  # continues where it ended
    assert fixture.state("a") == "running" and fixture.state("b") is None
    assert fixture.woken[:2] in (["a", "b"], ["b", "a"]) and fixture.woken[2:] == ["a", "b"]


def test_lists_are_read_in_pages(fixture: Fixture) -> None:
    requests = fixture.play(listing(task_pod("a"), more="token"), listing(task_pod("b"), version=5), Answer(lines=[]))
    assert requests[1].query["continue"] == "token" and requests[2].query["resourceVersion"] == "5"
    assert fixture.state("a") and fixture.state("b")


def test_the_watch_is_not_synced_before_the_first_list(fixture: Fixture) -> None:
    assert not fixture.watch.is_fresh() and not fixture.watch.synced.is_set()
    fixture.play(Answer(status=500), listing(task_pod("a")))
    assert fixture.watch.synced.is_set()


def test_an_expired_version_causes_a_relist_that_finds_deleted_objects(fixture: Fixture) -> None:
    gone = Answer(lines=[event("ERROR", {"code": 410, "reason": "Expired", "message": "too old resource version"})])
    fixture.play(
        listing(task_pod("a"), task_pod("b"), version=10),
        gone,
        listing(task_pod("a", 20, containers=RUNNING), version=20),
        Answer(status=410, body={"reason": "Expired"}),
        listing(version=30),
    )
    assert fixture.state("a") is None and fixture.state("b") is None
    assert fixture.woken.count(TaskId("b")) == 2 and fixture.woken.count(TaskId("a")) == 3
    assert fixture.cache.is_gone(PODS, "pod-a") and fixture.cache.is_gone(PODS, "pod-b")


def test_a_disconnect_within_a_line_loses_nothing(fixture: Fixture) -> None:
    whole, half = event("MODIFIED", task_pod("a", 11)), event("MODIFIED", task_pod("a", 12, containers=RUNNING))
    requests = fixture.play(
        listing(task_pod("a"), version=10),
        Answer(lines=[whole, half[: len(half) // 2]], cut=True),
        Answer(lines=[half]),
    )
    assert requests[2].query["resourceVersion"] == "11"
    assert fixture.state("a") == "running"


def test_an_event_in_several_chunks_and_several_in_one(fixture: Fixture) -> None:
    first, second = event("MODIFIED", task_pod("a", 11)), event("MODIFIED", task_pod("a", 12, containers=RUNNING))
    both = first + second
    fixture.play(listing(task_pod("a"), version=10), Answer(lines=[both[:50], both[50:900], both[900:]]))
    assert fixture.state("a") == "running"


def test_repeated_and_late_events_are_ignored(fixture: Fixture) -> None:
    fresh = event("MODIFIED", task_pod("a", 15, containers=ENDED))
    fixture.play(
        listing(task_pod("a", 10), version=10),
        Answer(
            lines=[
                fresh,
                fresh,
                event("MODIFIED", task_pod("a", 12, containers=RUNNING)),
                event("DELETED", task_pod("a", 20)),
                event("MODIFIED", task_pod("a", 19, containers=RUNNING)),
                event("ADDED", task_pod("a", 10)),
            ]
        ),
    )
    assert fixture.state("a") is None and fixture.woken == ["a", "a", "a"]  # listed, ended, deleted


def test_an_irrelevant_change_wakes_no_task(fixture: Fixture) -> None:
    same = task_pod("a", 11)
    same["metadata"]["managedFields"] = [{"manager": "kubelet"}]
    same["status"]["podIP"] = "10.0.0.1"
    fixture.play(listing(task_pod("a", 10), version=10), Answer(lines=[event("MODIFIED", same)]))
    assert fixture.woken == ["a"]


def test_bookmarks_move_the_version(fixture: Fixture) -> None:
    requests = fixture.play(
        listing(version=10), Answer(lines=[event("BOOKMARK", {"metadata": {"resourceVersion": "77"}})], cut=True)
    )
    assert requests[2].query["resourceVersion"] == "77" and not fixture.woken


def test_an_unreachable_server_is_retried_with_back_off(fixture: Fixture) -> None:
    fixture.play(*[None] * 10, listing(task_pod("a")))
    assert fixture.waits[:4] == [0.5, 1.0, 2.0, 4.0] and max(fixture.waits) == 30.0
    assert fixture.state("a")


def test_a_stream_with_an_invalid_event_is_started_again(fixture: Fixture) -> None:
    fixture.play(
        listing(version=10),
        Answer(lines=[b"no json\n"]),
        Answer(lines=[b'["no event"]\n']),
        Answer(lines=[event("ADDED", task_pod("a", 11))]),
    )
    assert fixture.state("a")


def test_everything_is_listed_again_after_a_while(fixture: Fixture) -> None:
    def later() -> Answer:
        fixture.now += timedelta(minutes=31).total_seconds()
        return Answer(lines=[])

    requests = fixture.play(listing(task_pod("a"), version=10), later, listing(version=20))
    assert "watch" not in requests[2].query and fixture.state("a") is None


def test_a_minute_without_a_connection_loses_nothing(fixture: Fixture) -> None:
    """Pods that ended or were created in the meantime are among the events since the last version."""

    def away() -> None:
        fixture.now += 10

    fixture.play(
        listing(task_pod("a"), version=10),
        Answer(lines=[event("MODIFIED", task_pod("a", 11))], cut=True),
        *[away] * 6,
        Answer(lines=[event("MODIFIED", task_pod("a", 12, containers=ENDED)), event("ADDED", task_pod("b", 13))]),
    )
    assert fixture.state("a") == "terminated" and fixture.state("b")


def test_without_a_stream_the_cache_soon_becomes_stale(fixture: Fixture) -> None:
    fixture.play(listing(task_pod("a"), version=10))
    assert fixture.watch.is_fresh()
    fixture.now += 6
    assert not fixture.watch.is_fresh()


def test_close_ends_a_silent_stream_at_once(server: ApiServer, client: Client, settings: KubernetesSettings) -> None:
    hold, opened = threading.Event(), threading.Event()

    def answer(request: Request) -> Answer:
        if "watch" not in request.query:
            return listing(version=1)
        opened.set()
        return Answer(lines=[event("BOOKMARK", {"metadata": {"resourceVersion": "2"}})], hold=hold)

    server.answer = answer
    watch = Watch(client, settings, PODS, "a=b", project_pod, Cache(lambda _: None))
    watch.start()
    try:
        assert opened.wait(10)
        watch.close()
        assert not watch._thread.is_alive()
    finally:
        hold.set()


def test_memory_is_flat_over_five_thousand_finished_pods() -> None:
    """Each pod is created, runs, ends with a message of 2 KB, and is deleted."""
    woken: list[int] = [0]

    def count(_: TaskId) -> None:
        woken[0] += 1

    cache = Cache(count)
    version = 0

    def lives(first: int, last: int) -> None:
        nonlocal version
        for i in range(first, last):
            for states in (None, RUNNING, ENDED):
                version += 1
                view = project_pod(task_pod(f"t{i:025}", version, containers=states))
                assert isinstance(view, PodView)
                cache.put(PODS, version, view)
            version += 1
            assert view is not None
            cache.delete(PODS, version, view)

    lives(0, 100)
    tracemalloc.start()
    try:
        lives(100, 5000)
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert woken[0] == 4 * 5000 and len(cache) == 0
    # only the names of deleted objects remain, at most MAX_GONE
    assert grown / 4900 < 500 and MAX_GONE * 500 < 32 * 1024 * 1024
