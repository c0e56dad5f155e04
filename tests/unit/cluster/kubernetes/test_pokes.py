from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
import urllib3

from poiesis.cluster.kubernetes.pokes import BOUNDS, MAX_POKE_BYTES, PokeListener
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
