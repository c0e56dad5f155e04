"""Election on a Lease with optimistic locking, with clocks controlled by the test."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from kubernetes.client import Configuration

from poiesis.cluster.kubernetes.client import Client
from poiesis.cluster.kubernetes.leader import Election
from poiesis.cluster.kubernetes.settings import KubernetesSettings
from tests.unit.cluster.kubernetes.conftest import Answer, ApiServer, Request


class LeaseServer:
    def __init__(self, server: ApiServer) -> None:
        self.lease: dict[str, Any] | None = None
        self.version = 0
        self.away = False
        server.answer = self.answer

    def answer(self, request: Request) -> Answer | None:
        if self.away:
            return None
        if request.method == "GET":
            if self.lease is None:
                return Answer(status=404, body={"reason": "NotFound"})
            return Answer(body=self.lease)
        wanted = copy.deepcopy(request.body)
        if request.method == "POST" and self.lease is not None:
            return Answer(status=409, body={"reason": "AlreadyExists"})
        if request.method == "PUT" and wanted["metadata"].get("resourceVersion") != str(self.version):
            return Answer(status=409, body={"reason": "Conflict", "message": "modified"})
        self.version += 1
        wanted["metadata"]["resourceVersion"] = str(self.version)
        self.lease = wanted
        return Answer(body=wanted)


class Candidate:
    def __init__(self, name: str, server: ApiServer, settings: KubernetesSettings) -> None:
        self.now = 1000.0 * len(name)  # clocks may differ
        self.events: list[str] = []
        self.client = Client(replace(settings, attempts=1), Configuration(host=server.url, retries=0))
        self.election = Election(
            settings,
            lambda: self.events.append("start"),
            lambda: self.events.append("stop"),
            identity=name,
            client=self.client,
            monotonic=lambda: self.now,
            wait=lambda _: None,
        )

    def step(self, later: float = 2) -> bool:
        self.now += later
        self.election.step()
        return self.election.is_leader


@pytest.fixture
def lease(server: ApiServer) -> LeaseServer:
    return LeaseServer(server)


@pytest.fixture
def two(server: ApiServer, settings: KubernetesSettings, lease: LeaseServer) -> Iterator[tuple[Candidate, Candidate]]:
    made = Candidate("a", server, settings), Candidate("bb", server, settings)
    yield made
    for each in made:
        each.client.close()


def test_one_of_two_leads_and_keeps_leading(two: tuple[Candidate, Candidate], lease: LeaseServer) -> None:
    first, second = two
    for _ in range(20):
        assert first.step() and not second.step()
    assert (first.events, second.events) == (["start"], [])
    assert lease.lease is not None and lease.lease["spec"]["leaseTransitions"] == 0


def test_a_dead_leader_is_replaced_after_its_lease(two: tuple[Candidate, Candidate], lease: LeaseServer) -> None:
    first, second = two
    first.step()
    assert [second.step() for _ in range(8)] == [False] * 8  # 16 s: seen first after 2
    assert second.step() and second.events == ["start"]
    assert lease.lease is not None and lease.lease["spec"]["leaseTransitions"] == 1
    assert not first.step(0.1) and first.events == ["start", "stop"]


def test_a_leader_that_cannot_renew_stops_before_another_starts(
    two: tuple[Candidate, Candidate], lease: LeaseServer
) -> None:
    first, second = two
    first.step()
    second.step()
    lease.away = True
    while first.election.is_leader:
        first.step()
        second.step()
    assert first.events == ["start", "stop"]
    lease.away = False
    assert not second.step(0)  # five more seconds of the lease
    assert second.step(6)


def test_the_renew_deadline_passes_even_while_the_thread_hangs(two: tuple[Candidate, Candidate]) -> None:
    first, _ = two
    first.step()
    first.now += 10.5
    assert not first.election.is_leader


def test_only_one_of_two_concurrent_candidates_wins(
    two: tuple[Candidate, Candidate], lease: LeaseServer, server: ApiServer
) -> None:
    first, second = two
    answer = lease.answer

    def between(request: Request) -> Answer | None:
        if request.method in ("POST", "PUT") and request.body["spec"]["holderIdentity"] == "bb":
            server.answer = answer
            first.step()  # writes first, after the other has read
        return answer(request)

    server.answer = between
    assert not second.step()
    assert first.election.is_leader and second.events == []


def test_a_leader_that_stops_releases_the_lease(two: tuple[Candidate, Candidate]) -> None:
    first, second = two
    first.step()
    first.election._closed.set()
    first.election.run()
    assert first.events == ["start", "stop"]
    assert second.step()


def test_a_failing_callback_does_not_stop_the_election(
    server: ApiServer, settings: KubernetesSettings, lease: LeaseServer
) -> None:
    def fail() -> None:
        raise RuntimeError("no")

    client = Client(settings, Configuration(host=server.url, retries=0))
    election = Election(settings, fail, fail, client=client, wait=lambda _: None)
    election.step()
    assert election.is_leader
    election.close()


def test_inconsistent_times_are_refused(settings: KubernetesSettings) -> None:
    with pytest.raises(ValueError, match="renew_deadline < lease"):
        Election(settings, lambda: None, lambda: None, lease=timedelta(seconds=5))
