from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import urllib3

from poiesis.domain.errors import RepositoryUnavailable
from poiesis.roles.health import HealthServer

HTTP = urllib3.PoolManager(retries=False, timeout=10)


class Site:
    """A role with a health server; `error` is what keeps it from being ready."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.asked = 0
        self.server = HealthServer("127.0.0.1:0", self.ready)
        self.server.start()

    def ready(self) -> None:
        self.asked += 1
        if self.error is not None:
            raise self.error

    def get(self, path: str) -> tuple[int, str]:
        answer = HTTP.request("GET", f"http://127.0.0.1:{self.server.port}{path}")
        return answer.status, answer.data.decode()


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    yield made
    made.server.close()
    HTTP.clear()


def test_health_and_readiness(site: Site) -> None:
    assert site.get("/healthz") == (200, "ok\n")
    assert site.get("/readyz") == (200, "ready\n")
    assert site.get("/else")[0] == 404
    assert HTTP.request("POST", f"http://127.0.0.1:{site.server.port}/poke/a/0f").status == 405


def test_a_role_that_cannot_work_is_healthy_but_not_ready(site: Site) -> None:
    site.error = RepositoryUnavailable("the store is away")
    assert site.get("/readyz") == (503, "the store is away\n")
    assert site.get("/healthz")[0] == 200


def test_many_readiness_requests_are_few_for_the_store(site: Site) -> None:
    started = time.monotonic()
    for _ in range(50):
        site.get("/readyz")
    assert site.asked <= 2 + time.monotonic() - started


def test_metrics_are_served(site: Site) -> None:
    status, text = site.get("/metrics")
    assert status == 200
    assert "# TYPE poiesis_tasks_created_total counter" in text
    assert "_created " not in text  # a second series for each counter


def test_256_dripping_connections_do_not_shut_healthz(site: Site) -> None:
    with ExitStack() as stack:
        slow = []
        for _ in range(256):
            slow.append(stack.enter_context(socket.create_connection(("127.0.0.1", site.server.port), timeout=10)))
            slow[-1].sendall(b"GET /healthz HTTP/1.1\r\nX: ")
        started = time.monotonic()
        assert [site.get("/healthz")[0] for _ in range(20)] == [200] * 20
        assert time.monotonic() - started < 5
