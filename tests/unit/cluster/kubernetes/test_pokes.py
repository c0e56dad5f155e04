from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
import urllib3

from poiesis.cluster.kubernetes.pokes import BOUNDS, MAX_POKE_BYTES, RESOLVED_FOR_S, PokeAddress, PokeListener
from poiesis.domain.task import TaskId

HTTP = urllib3.PoolManager(retries=False, timeout=10)


class Site:
    def __init__(self, **options: Any) -> None:
        self.pokes: list[tuple[str, str, bytes]] = []
        self.now = 0.0
        known = options.pop("known", {"abc123"})
        self.listener = PokeListener(
            "127.0.0.1:0",
            lambda task_id, nonce, body: self.pokes.append((task_id, nonce, body)),
            lambda task_id: task_id in known,
            monotonic=lambda: self.now,
            **options,
        )
        self.listener.start()

    def post(self, path: str, body: bytes = b"") -> int:
        return HTTP.request("POST", f"http://127.0.0.1:{self.listener.port}{path}", body=body).status


@pytest.fixture
def make_site() -> Iterator[Callable[..., Site]]:
    sites: list[Site] = []

    def make(**options: Any) -> Site:
        sites.append(Site(**options))
        return sites[-1]

    yield make
    for site in sites:
        site.listener.close()
    HTTP.clear()


def test_a_poke_wakes_its_task_and_carries_its_record(make_site: Callable[..., Site]) -> None:
    site = make_site()
    assert site.post("/poke/abc123/0f", b'{"name": "x"}') == 202
    assert site.post("/poke/abc123/0f-1-1") == 202
    assert site.pokes == [(TaskId("abc123"), "0f", b'{"name": "x"}'), (TaskId("abc123"), "0f-1-1", b"")]


@pytest.mark.parametrize(
    "path",
    [
        "/poke/",
        "/poke/ABC/0f",
        "/poke/a/zz",
        "/poke/a/0f/x",
        f"/poke/{'a' * 65}/0f",
        "/poke/..%2f/0f",
        "/healthz",
        "/metrics",
    ],
)
def test_nothing_but_pokes_is_served(make_site: Callable[..., Site], path: str) -> None:
    site = make_site()
    assert site.post(path) == 404
    assert HTTP.request("GET", f"http://127.0.0.1:{site.listener.port}{path}").status == 404
    assert site.pokes == []


def test_a_poke_for_a_task_without_a_pod_leaves_nothing(make_site: Callable[..., Site]) -> None:
    site = make_site()
    assert {site.post(f"/poke/unknown{i}/0f", b"{}") for i in range(50)} == {404}
    assert site.pokes == []


def test_one_address_cannot_use_up_the_rate_of_all(make_site: Callable[..., Site]) -> None:
    site = make_site(per_address=5, per_second=8)
    assert [site.post("/poke/abc123/0f") for _ in range(7)] == [202] * 5 + [429] * 2
    site.now = 1.0
    assert [site.post("/poke/abc123/0f") for _ in range(6)] == [202] * 5 + [429]
    assert len(site.pokes) == 10


def test_a_poke_is_bounded_in_bytes(make_site: Callable[..., Site]) -> None:
    site = make_site(bounds=replace(BOUNDS, request_deadline_s=60))
    assert site.post("/poke/abc123/0f", b"x" * MAX_POKE_BYTES) == 202
    with suppress(urllib3.exceptions.HTTPError):  # refused before all of it was sent
        assert site.post("/poke/abc123/0f", b"x" * (MAX_POKE_BYTES + 1)) == 413
    assert len(site.pokes) == 1


# ---- the address for launchers


def test_no_launch_waits_for_a_name_server_that_lost_a_question(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = threading.Event()

    def resolve(*_: object, **__: object) -> list[object]:
        answer.wait(20)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.7", 8082))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    now = [0.0]
    address = PokeAddress("monitor:8082", lambda: now[0])
    began = time.monotonic()
    assert address.resolved() == "monitor:8082"
    assert time.monotonic() - began < 5
    answer.set()
    until(lambda: address.resolved() == "10.0.0.7:8082")
    answer.clear()
    now[0] += RESOLVED_FOR_S + 1
    assert address.resolved() == "10.0.0.7:8082", "the one before is used while it is resolved again"
    answer.set()


def test_a_name_that_is_unknown_is_left_to_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(*_: object, **__: object) -> list[object]:
        raise socket.gaierror("unknown")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    assert PokeAddress("monitor:8082").resolved() == "monitor:8082" and PokeAddress(None).resolved() is None


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)
