"""A real Prometheus with the chart's rules reads real roles; one alert fires when Redis is stopped. And an API with several workers."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import urllib3
import yaml

from tests.servers import redis as redis_module
from tests.servers.process import free_ports, running

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "helm" / "poiesis" / "files" / "alerts.yaml"
PROMETHEUS = ROOT / ".cache" / "monitoring" / "prometheus"
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
    if not PROMETHEUS.exists():
        pytest.skip("no Prometheus: run `make monitoring` (needs go)")
    health, web, redis_port = free_ports(3)

    def redis() -> Any:
        def command(directory: Path, _: list[int]) -> list[str]:
            return redis_module.command(directory, [redis_port])

        return running("redis", 0, command, lambda _: redis_module.ping([redis_port]))

    with ExitStack() as stack:
        first = ExitStack()
        redis_url = first.enter_context(redis())
        stack.callback(first.close)
        variables = settings(mongo_url, redis_url, health)
        stack.enter_context(role("notifier", tmp_path / "notifier.log", **variables))
        eventually(lambda: HTTP.request("GET", f"http://127.0.0.1:{health}/readyz").status == 200, "notifier", 240)
        stack.enter_context(prometheus(tmp_path, health, web))

        def alerts(state: str) -> set[str]:
            found = json.loads(get(f"http://127.0.0.1:{web}/api/v1/alerts"))["data"]["alerts"]
            return {alert["labels"]["alertname"] for alert in found if alert["state"] == state}

        up = f"http://127.0.0.1:{web}/api/v1/query?query=poiesis_dependency_up%7Bdependency%3D%22broker%22%7D"
        eventually(lambda: values(get(up)) == ["1"], "measurement of Redis", 60)
        assert "PoiesisRedisDown" not in alerts("pending") | alerts("firing")
        stopped = time.monotonic()
        first.close()
        eventually(lambda: "PoiesisRedisDown" in alerts("firing"), "alert", 150)
        fired = time.monotonic() - stopped
        assert fired >= 60  # its `for`
        assert "PoiesisStoreDown" not in alerts("firing")
        stack.enter_context(redis())
        eventually(lambda: "PoiesisRedisDown" not in alerts("firing"), "end of the alert", 90)
        print(f"PoiesisRedisDown fired {fired:.0f} s after Redis was stopped")


def values(answer: str) -> list[str]:
    return [each["value"][1] for each in json.loads(answer)["data"]["result"]]


@contextmanager
def prometheus(directory: Path, health: int, web: int) -> Iterator[None]:
    configuration = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(RULES)],
        "scrape_configs": [
            {
                "job_name": "poiesis",
                "static_configs": [{"targets": [f"127.0.0.1:{health}"], "labels": {"namespace": "tes"}}],
            }
        ],
    }
    file = directory / "prometheus.yaml"
    file.write_text(yaml.safe_dump(configuration))
    command = [
        str(PROMETHEUS), f"--config.file={file}", f"--storage.tsdb.path={directory / 'tsdb'}", f"--web.listen-address=127.0.0.1:{web}",
    ]  # fmt: skip
    with (directory / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=directory)
        try:
            eventually(lambda: HTTP.request("GET", f"http://127.0.0.1:{web}/-/ready").status == 200, "Prometheus", 60)
            yield
        finally:
            process.terminate()
            process.wait(30)
