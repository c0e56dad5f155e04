"""Rate limits: the algorithm in memory and in a real Redis, and what the API does with it."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import uvloop

from poiesis.api.credentials import hash_secret
from poiesis.api.errors import Refused
from poiesis.api.limits import MAX_COUNTERS, RateLimiter, user_counter
from poiesis.config import ApiSettings, RateLimits
from poiesis.domain.errors import ConfigurationError
from tests.unit.api.service import HELLO, Site, assert_error

LIMITS = RateLimits(requests_per_s=10, request_burst=5, body_bytes_per_s=1000, body_burst_bytes=2000)


class Time:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


async def admitted(limiter: RateLimiter, times: int, *, user: str = "ada", body_bytes: int = 0) -> int:
    """How many of `times` requests are admitted."""
    count = 0
    for _ in range(times):
        try:
            await limiter.admit_user(user_counter(user, ""), body_bytes)
            count += 1
        except Refused:
            pass
    return count


class TestInMemory:
    def test_a_burst_then_one_for_each_interval(self) -> None:
        clock = Time()
        limiter = RateLimiter(LIMITS, clock=clock)
        assert asyncio.run(admitted(limiter, 20)) == 5
        clock.now += 0.1
        assert asyncio.run(admitted(limiter, 20)) == 1
        clock.now += 0.3
        assert asyncio.run(admitted(limiter, 20)) == 3
        clock.now += 1000  # no more than a burst is saved
        assert asyncio.run(admitted(limiter, 20)) == 5

    def test_users_and_addresses_do_not_count_for_each_other(self) -> None:
        limiter = RateLimiter(LIMITS, clock=Time())
        assert asyncio.run(admitted(limiter, 9)) == 5
        assert asyncio.run(admitted(limiter, 9, user="eve")) == 5
        asyncio.run(limiter.admit_address("ada"))

    def test_a_body_may_be_larger_than_the_burst_and_the_next_one_waits(self) -> None:
        clock = Time()
        limiter = RateLimiter(LIMITS, clock=clock)
        assert asyncio.run(admitted(limiter, 2, body_bytes=10_000)) == 1
        assert asyncio.run(admitted(limiter, 1)) == 1  # a request without a body does not
        clock.now += 7.9
        assert asyncio.run(admitted(limiter, 1, body_bytes=1)) == 0
        clock.now += 0.2
        assert asyncio.run(admitted(limiter, 1, body_bytes=1)) == 1

    def test_a_body_of_undeclared_size_is_charged_afterwards(self) -> None:
        limiter = RateLimiter(LIMITS, clock=Time())
        asyncio.run(limiter.charge_user("u:ada", 10_000))
        assert asyncio.run(admitted(limiter, 1, body_bytes=1)) == 0

    def test_retry_after_is_when_the_next_one_is_admitted(self) -> None:
        clock = Time()
        limiter = RateLimiter(LIMITS, clock=clock)
        asyncio.run(admitted(limiter, 1, body_bytes=6_500))
        with pytest.raises(Refused) as refused:
            asyncio.run(limiter.admit_user("u:ada", 1))
        assert (refused.value.status_code, refused.value.headers) == (429, {"Retry-After": "5"})
        clock.now += 5
        asyncio.run(limiter.admit_user("u:ada", 1))

    def test_the_counters_are_bounded(self) -> None:
        limiter = RateLimiter(LIMITS, clock=Time())

        async def fill() -> None:
            for i in range(MAX_COUNTERS + 100):
                await limiter.admit_address(str(i))

        asyncio.run(fill())
        assert len(limiter._spent) == MAX_COUNTERS


class TestRedis:
    def test_replicas_share_a_limit(self, redis_url: str) -> None:
        limits = RateLimits(requests_per_s=0.001, request_burst=50, redis_timeout_ms=5000)

        async def run() -> int:
            replicas = [RateLimiter(limits, redis_url) for _ in range(3)]
            counts = await asyncio.gather(*(admitted(r, 10) for r in replicas for _ in range(4)))
            for replica in replicas:
                await replica.close()
            return sum(counts)

        assert asyncio.run(run()) == 50

    def test_it_refills_and_forgets(self, redis_url: str) -> None:
        import redis

        limits = RateLimits(requests_per_s=0.5, request_burst=2, redis_timeout_ms=5000)

        async def run() -> list[int]:
            limiter = RateLimiter(limits, redis_url)
            first = await admitted(limiter, 3)
            await asyncio.sleep(2.1)
            second = await admitted(limiter, 1)
            await limiter.close()
            return [first, second]

        assert asyncio.run(run()) == [2, 1]
        with redis.Redis.from_url(redis_url) as client:
            [key] = client.keys("poiesis:limit:*")
            assert b"ada" not in key
            assert 0 < client.pttl(key) <= 5_000

    def test_bodies_are_counted_and_a_refused_request_spends_nothing(self, redis_url: str) -> None:
        limits = RateLimits(
            requests_per_s=0.001, request_burst=3, body_bytes_per_s=1, body_burst_bytes=100,
            redis_timeout_ms=5000,
        )  # fmt: skip

        async def run() -> list[int]:
            limiter = RateLimiter(limits, redis_url)
            found = [await admitted(limiter, 1, body_bytes=1_000)]
            found.append(await admitted(limiter, 5, body_bytes=1))
            found.append(await admitted(limiter, 5))
            await limiter.charge_user("u:eve", 1_000)
            found.append(await admitted(limiter, 1, user="eve", body_bytes=1))
            await limiter.close()
            return found

        assert asyncio.run(run()) == [1, 0, 2, 0]

    @pytest.mark.parametrize("uri", ["silent", "redis://127.0.0.1:1/0"])
    def test_without_redis_each_process_limits_and_no_request_waits_long(self, uri: str) -> None:
        async def run(url: str) -> tuple[list[int], float]:
            limiter = RateLimiter(RateLimits(requests_per_s=0.001, request_burst=5), url)
            began = time.perf_counter()
            counts = await asyncio.gather(*(admitted(limiter, 20) for _ in range(10)))
            took = time.perf_counter() - began
            await limiter.close()
            return counts, took

        with socket.create_server(("127.0.0.1", 0)) as silent:  # connects, and never answers
            port = silent.getsockname()[1]
            counts, took = asyncio.run(run(f"redis://127.0.0.1:{port}/0" if uri == "silent" else uri))
        assert sum(counts) == 5
        assert took < 3  # 200 requests; each on its own would wait for 10 s together

    def test_a_redis_that_comes_back_is_used_again(self, redis_url: str) -> None:
        clock = Time()
        limits = RateLimits(requests_per_s=0.001, request_burst=5, redis_timeout_ms=5000)

        async def run() -> list[int]:
            limiter = RateLimiter(limits, redis_url, clock=clock)
            limiter._went_away(TimeoutError())
            found = [await admitted(limiter, 9)]
            clock.now += 2
            found.append(await admitted(limiter, 9))
            await limiter.close()
            return found

        assert asyncio.run(run()) == [5, 5]

    def test_a_connection_that_was_reset_stops_no_request(self, redis_url: str) -> None:
        """For such a connection uvloop raises RuntimeError, which redis passes on."""
        clock = Time()
        limits = RateLimits(requests_per_s=0.001, request_burst=5, redis_timeout_ms=5000)

        async def run() -> list[int]:
            async with asyncio.timeout(20), _relayed(redis_url) as (url, reset):
                limiter = RateLimiter(limits, url, clock=clock)
                counts = [await admitted(limiter, 3)]
                assert limiter._redis is not None
                connection: Any = limiter._redis.connection
                reset()
                while not connection._writer.is_closing():
                    await asyncio.sleep(0.001)
                counts += await asyncio.gather(admitted(limiter, 9))
                clock.now += 2
                counts.append(await admitted(limiter, 9))
                await limiter.close()
                return counts

        assert uvloop.run(run()) == [3, 5, 2]


@asynccontextmanager
async def _relayed(redis_url: str) -> AsyncIterator[tuple[str, Callable[[], None]]]:
    """The URL of a relay to Redis, and what resets its connections."""
    there = urlsplit(redis_url)
    clients: list[asyncio.StreamWriter] = []

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
        writer.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        clients.append(writer)
        to_reader, to_writer = await asyncio.open_connection(there.hostname, there.port)
        await asyncio.gather(copy(reader, to_writer), copy(to_reader, writer))

    def reset() -> None:
        for writer in clients:
            connection = writer.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        yield f"redis://127.0.0.1:{port}{there.path}", reset


@pytest.fixture
def make_site(tmp_path: Path) -> Callable[..., Site]:
    def make(**limits: Any) -> Site:
        file = tmp_path / "credentials.json"
        file.write_text(json.dumps([{"name": n, "token_hash": hash_secret(n, "bearer")} for n in ("ada", "eve")]))
        settings = ApiSettings(auth=("bearer",), credentials_file=str(file), limits=RateLimits(**limits))
        return Site(settings, limiter=RateLimiter(settings.limits, clock=Time()))

    return make


def bearer(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {name}"}


class TestApi:
    def test_too_many_requests_of_a_user_are_429_and_others_are_served(self, make_site: Callable[..., Site]) -> None:
        site = make_site(request_burst=3)
        statuses = [site.get("/tasks", headers=bearer("ada")).status_code for _ in range(5)]
        assert statuses == [200, 200, 200, 429, 429]
        refused = site.get("/tasks", headers=bearer("ada"))
        assert_error(refused, 429, "rate_limited")
        assert refused.headers["retry-after"] == "1"
        assert site.get("/tasks", headers=bearer("eve")).status_code == 200

    def test_wrong_credentials_count_for_the_address(self, make_site: Callable[..., Site]) -> None:
        site = make_site(address_request_burst=3)
        statuses = [site.get("/tasks", headers=bearer(f"guess-{i}")).status_code for i in range(5)]
        assert statuses == [401, 401, 401, 429, 429]
        assert site.get("/service-info").status_code == 429
        assert site.client.get("/").status_code == 429
        assert site.get("/tasks", headers=bearer("ada")).status_code == 200  # of the same address

    def test_health_is_never_limited(self, make_site: Callable[..., Site]) -> None:
        site = make_site(address_request_burst=1)
        assert {site.client.get("/healthz").status_code for _ in range(5)} == {200}

    def test_a_large_body_delays_the_next_one_and_is_refused_before_it_is_read(
        self, make_site: Callable[..., Site]
    ) -> None:
        site = make_site(body_bytes_per_s=10, body_burst_bytes=20)
        site.create(headers=bearer("ada"))
        assert_error(site.post("/tasks", HELLO, headers=bearer("ada")), 429, "rate_limited")
        assert site.get("/tasks", headers=bearer("ada")).status_code == 200
        assert site.stored() == 1

    def test_a_chunked_body_counts_too(self, make_site: Callable[..., Site]) -> None:
        site = make_site(body_bytes_per_s=10, body_burst_bytes=20)
        chunks = iter([json.dumps(HELLO).encode()])
        headers = bearer("ada") | {"Content-Type": "application/json"}
        assert site.client.post("/ga4gh/tes/v1/tasks", content=chunks, headers=headers).status_code == 200
        assert site.post("/tasks", HELLO, headers=bearer("ada")).status_code == 429

    def test_without_authentication_the_address_counts_as_the_user(self) -> None:
        limits = RateLimits(enabled="on", request_burst=2)
        site = Site(ApiSettings(limits=limits), limiter=RateLimiter(limits, clock=Time()))
        assert [site.get("/tasks").status_code for _ in range(3)] == [200, 200, 429]


@pytest.mark.parametrize("name", ["requests_per_s", "request_burst", "body_bytes_per_s", "body_burst_bytes"])
def test_limits_are_positive(name: str) -> None:
    values: dict[str, Any] = {name: 0}
    with pytest.raises(ConfigurationError, match=f"LIMITS__{name.upper()}"):
        RateLimits(**values)
