"""A real Prometheus with the chart's rules reads real roles; one alert fires when Redis is stopped. And an API with several workers."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import urllib3

from tests.servers import redis as redis_module
from tests.servers.process import free_ports, running
from tests.servers.prometheus import prometheus

HTTP = urllib3.PoolManager(retries=False, timeout=urllib3.Timeout(10))
TASK = {"executors": [{"image": "alpine", "command": ["true"]}]}


def get(url: str) -> str:
    return HTTP.request("GET", url).data.decode()


def eventually(look: Callable[[], Any], what: str, deadline_s: float) -> Any:
    end = time.monotonic() + deadline_s
    while True:
        try:
            if found := look():
                return found
        except urllib3.exceptions.HTTPError:
            pass
        assert time.monotonic() < end, f"no {what} within {deadline_s:.0f} s"
        time.sleep(0.2)


@contextmanager
def role(name: str, log: Path, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    own = {k: v for k, v in os.environ.items() if not k.startswith("POIESIS_")}
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "poiesis", name], env={**own, **variables}, stdout=file, stderr=subprocess.STDOUT
        )
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def settings(mongo_url: str, redis_url: str, port: int) -> dict[str, str]:
    server, _, database = mongo_url.rpartition("/")
    return {
        "POIESIS_MONGO_URI": server,
        "POIESIS_MONGO_DATABASE": database,
        "POIESIS_REDIS_URI": redis_url,
        "POIESIS_LISTEN": f"127.0.0.1:{port}",
    }


def total(text: str, metric: str) -> float:
    return sum(float(value) for value in re.findall(rf"^{metric}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE))


@pytest.mark.timeout(600)
def test_workers_of_an_api_have_one_page_of_metrics_and_a_killed_one_takes_nothing_away(
    mongo_url: str, redis_url: str, tmp_path: Path
) -> None:
    health, api = free_ports(2)
    variables = settings(mongo_url, redis_url, health) | {"POIESIS_API__PORT": str(api), "POIESIS_API__WORKERS": "2"}
    url = f"http://127.0.0.1:{api}"
    with role("api", tmp_path / "api.log", **variables) as parent:
        eventually(lambda: HTTP.request("GET", f"{url}/readyz").status == 200, "API", 240)

        def create(times: int) -> None:
            for _ in range(times):  # a connection for each, so that both workers get some
                with urllib3.PoolManager(retries=3) as http:
                    answer = http.request(
                        "POST", f"{url}/ga4gh/tes/v1/tasks", json=TASK, headers={"Connection": "close"}
                    )
                    assert answer.status == 200, answer.data

        def created() -> float:
            return total(get(f"http://127.0.0.1:{health}/metrics"), "poiesis_tasks_created_total")

        create(20)
        assert created() == 20
        assert HTTP.request("GET", f"{url}/metrics").status == 404  # not on the API's own port
        for worker in children(parent.pid):
            os.kill(worker, signal.SIGKILL)
        assert created() == 20
        eventually(lambda: HTTP.request("GET", f"{url}/readyz").status == 200, "API", 240)
        create(10)
        assert created() == 30
        text = get(f"http://127.0.0.1:{health}/metrics")
        assert total(text, "poiesis_http_request_duration_seconds_count") >= 30
        assert "poiesis_build_info{" in text and "pid=" not in text


def children(parent: int) -> Sequence[int]:
    """The workers: processes that `multiprocessing` has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            status, command = (path / "status").read_text(), (path / "cmdline").read_text()
        except OSError:
            continue
        if f"\nPPid:\t{parent}\n" in status and "spawn_main" in command:
            found.append(int(path.name))
    assert found
    return found


@pytest.mark.timeout(600)
def test_an_alert_fires_when_redis_is_stopped_and_ends_when_it_is_back(mongo_url: str, tmp_path: Path) -> None:
    health, redis_port = free_ports(2)

    def redis() -> AbstractContextManager[str]:
        def command(directory: Path, _: list[int]) -> list[str]:
            return redis_module.command(directory, [redis_port])

        return running("redis", 0, command, lambda _: redis_module.ping([redis_port]))

    with ExitStack() as stack:
        first = stack.enter_context(ExitStack())
        variables = settings(mongo_url, first.enter_context(redis()), health)
        site = stack.enter_context(prometheus([(f"127.0.0.1:{health}", {"namespace": "tes"})]))
        stack.enter_context(role("notifier", tmp_path / "notifier.log", **variables))
        is_up = 'poiesis_dependency_up{dependency="broker"}'
        eventually(lambda: site.query(is_up) == [1], "measurement of Redis", 240)
        assert "PoiesisRedisDown" not in site.alerts("pending") | site.alerts()
        stopped = time.monotonic()
        first.close()
        eventually(lambda: "PoiesisRedisDown" in site.alerts(), "alert", 180)
        fired = time.monotonic() - stopped
        assert fired >= 60  # its `for`
        assert "PoiesisStoreDown" not in site.alerts()
        stack.enter_context(redis())
        eventually(lambda: "PoiesisRedisDown" not in site.alerts(), "end of the alert", 120)
        print(f"PoiesisRedisDown fired {fired:.0f} s after Redis was stopped")
