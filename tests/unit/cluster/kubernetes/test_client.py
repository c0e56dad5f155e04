"""Retries, time-outs and counters, against a scripted server."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest
from kubernetes.client import Configuration

from poiesis.cluster.kubernetes.client import Client
from poiesis.cluster.kubernetes.errors import ApiError
from poiesis.cluster.kubernetes.settings import KubernetesSettings
from poiesis.domain.errors import ConfigurationError
from tests.unit.cluster.kubernetes.conftest import Answer, ApiServer, Request

PODS = "/api/v1/namespaces/tasks/pods"


def in_turn(*answers: Answer | None) -> Callable[[Request], Answer | None]:
    left = list(answers)
    return lambda _: left.pop(0) if len(left) > 1 else left[0]


def test_transient_faults_are_retried_with_back_off(server: ApiServer, client: Client, slept: list[float]) -> None:
    server.answer = in_turn(Answer(status=500), None, Answer(status=503, body="busy"), Answer(body={"ok": 1}))
    assert client.get(PODS) == {"ok": 1}
    assert slept == pytest.approx([0.2, 0.4, 0.8]) and len(server.requests) == 4


def test_retries_are_limited(server: ApiServer, client: Client) -> None:
    server.answer = in_turn(Answer(status=500, body={"message": "no"}))
    with pytest.raises(ApiError, match="no"):
        client.create(PODS, {})
    assert len(server.requests) == 4


def test_retry_after_is_respected(server: ApiServer, client: Client, slept: list[float]) -> None:
    server.answer = in_turn(Answer(status=429, headers={"Retry-After": "3"}), Answer(body={}))
    client.get(PODS)
    assert slept == [3.0]


def test_a_long_retry_after_is_not_waited_for(server: ApiServer, client: Client, slept: list[float]) -> None:
    server.answer = in_turn(Answer(status=429, headers={"Retry-After": "60"}))
    with pytest.raises(ApiError) as caught:
        client.get(PODS)
    assert caught.value.retry_after == 60 and not slept


def test_writes_are_spaced_and_half_as_fast_after_a_429(server: ApiServer, settings: KubernetesSettings) -> None:
    """All threads of a process share the pace, so that a refusal of one slows the others down too."""
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    client = Client(
        replace(settings, writes_per_second=10), Configuration(host=server.url, retries=0),
        sleep=sleep, jitter=lambda: 0.5, monotonic=lambda: now[0],
    )  # fmt: skip
    server.answer = in_turn(Answer(body={}))
    for _ in range(20):
        client.create(PODS, {})
    assert 1.3 < now[0] < 1.95
    began = now[0]
    client.get(PODS)
    assert now[0] == began, "reads are not spaced"
    server.answer = in_turn(Answer(status=429, headers={"Retry-After": "3"}), Answer(body={}))
    client.create(PODS, {})
    assert now[0] - began >= 3
    began = now[0]
    for _ in range(5):
        client.create(PODS, {})
    assert now[0] - began > 0.6, "half the rate, which recovers"
    for _ in range(300):
        client.create(PODS, {})
    began = now[0]
    for _ in range(10):
        client.create(PODS, {})
    assert now[0] - began == pytest.approx(1, abs=0.1)
    client.close()


def test_a_turn_that_is_far_away_is_not_waited_for(server: ApiServer, settings: KubernetesSettings) -> None:
    client = Client(
        replace(settings, writes_per_second=10), Configuration(host=server.url, retries=0), monotonic=lambda: 0.0
    )
    server.answer = in_turn(Answer(status=429, headers={"Retry-After": "60"}))
    for _ in range(2):
        with pytest.raises(ApiError) as caught:
            client.create(PODS, {})
        assert caught.value.status == 429 and (caught.value.retry_after or 0) >= 60
    assert len(server.requests) == 1
    client.close()


def test_turns_that_were_not_waited_for_delay_no_later_write(server: ApiServer, settings: KubernetesSettings) -> None:
    """Links that are tried again and again meanwhile write nothing: as soon as the server's time is over, writes go on."""
    now = [0.0]
    client = Client(
        replace(settings, writes_per_second=10), Configuration(host=server.url, retries=0),
        sleep=lambda s: now.__setitem__(0, now[0] + s), jitter=lambda: 0.5, monotonic=lambda: now[0],
    )  # fmt: skip
    server.answer = in_turn(Answer(status=429, headers={"Retry-After": "60"}), Answer(body={}))
    for _ in range(1000):
        with pytest.raises(ApiError):
            client.create(PODS, {})
    now[0] += 60
    began = now[0]
    for _ in range(5):
        client.create(PODS, {})
    assert now[0] - began < 2
    assert len(server.requests) == 6
    client.close()


def test_an_attempt_that_could_end_late_is_not_made(server: ApiServer, settings: KubernetesSettings) -> None:
    now = [0.0]
    client = Client(
        replace(settings, connect_timeout=timedelta(seconds=3), read_timeout=timedelta(seconds=15)),
        Configuration(host=server.url, retries=0), sleep=lambda s: None, jitter=lambda: 0.5, monotonic=lambda: now[0],
    )  # fmt: skip

    def fail_slowly(_: Request) -> Answer:
        now[0] += 15
        return Answer(status=500)

    server.answer = fail_slowly
    with pytest.raises(ApiError, match="TooLate"):
        client.create(PODS, {}, until=60)
    assert len(server.requests) == 3, "the fourth could have ended after 63 s"
    client.close()


def test_a_call_takes_less_time_than_a_launch_has() -> None:
    with pytest.raises(ConfigurationError, match="read_timeout"):
        KubernetesSettings(read_timeout=timedelta(seconds=57))


@pytest.mark.parametrize("status", [400, 403, 404, 409, 410, 422])
def test_rejections_are_not_retried(server: ApiServer, client: Client, status: int) -> None:
    server.answer = in_turn(Answer(status=status, body={"reason": "R", "message": "M"}))
    with pytest.raises(ApiError) as caught:
        client.create(PODS, {})
    assert (caught.value.status, caught.value.reason, len(server.requests)) == (status, "R", 1)


def test_deleting_a_missing_object_succeeds(server: ApiServer, client: Client) -> None:
    server.answer = in_turn(Answer(body={}), Answer(status=404, body={}))
    assert client.delete(f"{PODS}/a", {"propagationPolicy": "Background"}) is True
    assert client.delete(f"{PODS}/a", {}) is False
    assert server.requests[0].body == {
        "apiVersion": "v1",
        "kind": "DeleteOptions",
        "propagationPolicy": "Background",
    }


def test_the_end_of_a_long_text_is_kept(server: ApiServer, client: Client) -> None:
    server.answer = in_turn(Answer(lines=[b"x" * 300_000, "é".encode() * 100_000, b"end"]))
    assert client.text(f"{PODS}/a/log", {}, 7, 5.0) == "ééend"


def test_a_text_is_read_once_and_within_its_time(server: ApiServer, client: Client) -> None:
    server.answer = in_turn(Answer(status=500))
    with pytest.raises(ApiError):
        client.text(f"{PODS}/a/log", {}, 7, 5.0)
    assert len(server.requests) == 1
    held = threading.Event()
    server.answer = in_turn(Answer(lines=[b"x"], hold=held))
    with pytest.raises(ApiError, match="ReadTimeoutError"):
        client.text(f"{PODS}/a/log", {}, 7, 0.1)
    held.set()


def test_a_response_that_is_not_json_is_retried(server: ApiServer, client: Client) -> None:
    server.answer = in_turn(Answer(body="<html>"), Answer(body="[]"), Answer(body={"a": 1}))
    assert client.get(PODS) == {"a": 1}


def test_calls_are_counted_as_rbac_names_them(server: ApiServer, client: Client) -> None:
    server.answer = in_turn(Answer(body={}))
    client.get(PODS)
    client.get(f"{PODS}/a")
    client.create(PODS, {})
    client.delete(f"{PODS}/a", {})
    client.replace("/apis/coordination.k8s.io/v1/namespaces/tasks/leases/l", {})
    client.text(f"{PODS}/a/log", {}, 10, 5.0)
    client.create("/api/v1/namespaces", {})
    client.get("/version")
    assert client.calls == {
        "list pods": 1,
        "get pods": 1,
        "create pods": 1,
        "delete pods": 1,
        "update leases": 1,
        "get pods/log": 1,
        "create namespaces": 1,
        "list version": 1,
    }
