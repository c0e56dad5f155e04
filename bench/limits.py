"""What rate limits cost: CPU of one process for lists of no tasks, without limits, with limits in memory, in Redis, and while Redis is
away. `python -m bench limits [--requests 400] [--rounds 5]`; needs the development environment. All variants run in each round."""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Mapping

import httpx

from poiesis.api.limits import RateLimiter
from poiesis.config import ApiSettings, RateLimits
from tests.servers.process import running
from tests.servers.redis import command, ping
from tests.unit.api.service import Site

LIMITS = RateLimits(enabled="on", requests_per_s=1e6, request_burst=10**6, redis_timeout_ms=1000)
CONCURRENT = 8


async def cpu_ms(limiter: RateLimiter | None, requests: int) -> float:
    """Of one request."""
    app = Site(ApiSettings(limits=LIMITS), limiter=limiter, validate_responses=False).app
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://127.0.0.1:8000") as client:

        async def list_tasks(count: int) -> None:
            for _ in range(count):
                (await client.get("/ga4gh/tes/v1/tasks")).raise_for_status()

        await list_tasks(20)
        began = time.process_time()
        await asyncio.gather(*(list_tasks(requests // CONCURRENT) for _ in range(CONCURRENT)))
        return (time.process_time() - began) * 1000 / requests


async def run(redis_url: str, requests: int, rounds: int) -> None:
    variants: Mapping[str, str | None] = {
        "off": "",
        "memory": None,
        "redis": redis_url,
        "redis away": "redis://127.0.0.1:1/0",
    }
    found: dict[str, list[float]] = {name: [] for name in variants}
    await cpu_ms(None, requests)  # everything is imported and compiled
    for _ in range(rounds):
        for name, uri in variants.items():
            limiter = RateLimiter(LIMITS, uri) if uri != "" else None
            found[name].append(await cpu_ms(limiter, requests))
            if limiter is not None:
                await limiter.close()
    base = statistics.median(found["off"])
    for name, values in found.items():
        median = statistics.median(values)
        print(f"{name:12} {median:.2f} ms CPU a request, {median / base:.2f} times")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with running("redis", 1, command, ping) as url:
        asyncio.run(run(url, arguments.requests, arguments.rounds))


if __name__ == "__main__":
    main()
