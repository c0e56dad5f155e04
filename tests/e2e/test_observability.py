"""A real Prometheus reads every role of a real installation, and the chart's alert on Redis fires when Redis is stopped."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import urllib3

from tests.e2e.conftest import Installation, until
from tests.servers.prometheus import PROGRAM, Prometheus, prometheus

HEALTH = 8081
TASK = {"executors": [{"image": "localhost/busybox:1", "command": ["true"]}]}


@pytest.mark.timeout(900)
def test_prometheus_reads_every_role_and_an_alert_fires_when_redis_is_stopped(
    installed: Callable[..., Installation],
) -> None:
    if not PROGRAM.exists():
        pytest.skip("no Prometheus: run `make monitoring` (needs go)")
    service = installed(api={"workers": 2, "auth": {"allowAnonymous": True}})
    pods = service.get("pods", "-l", f"app.kubernetes.io/instance={service.release}")
    component = "app.kubernetes.io/component"
    roles = {p["metadata"]["labels"][component] for p in pods} - {"mongodb", "redis", "test"}
    targets = [
        (
            f"{p['status']['podIP']}:{HEALTH}",
            {"namespace": service.namespace, "role": p["metadata"]["labels"][component]},
        )
        for p in pods
        if p["metadata"]["labels"][component] in roles
    ]
    assert roles >= {"api", "torc", "tif", "texam", "tof", "monitor", "notifier"}
    with prometheus(targets) as site:
        until(lambda: site.query("sum(up)") == [len(targets)], 60, service.story)
        service.wait(service.create(TASK), ["COMPLETE"])
        until(lambda: measured(site), 90, service.story)
        assert site.query("sum(poiesis_monitor_is_leader)") == [1]
        assert site.alerts() == set()

        stopped = time.monotonic()
        service.kubectl("scale", f"deployment/{service.fullname}-redis", "--replicas=0")
        until(lambda: "PoiesisRedisDown" in site.alerts(), 240, service.story)
        print(f"PoiesisRedisDown fired {time.monotonic() - stopped:.0f} s after Redis was stopped")
        service.kubectl("scale", f"deployment/{service.fullname}-redis", "--replicas=1")
        until(
            lambda: answers(service), 240, service.story
        )  # without Redis the API is not ready: its Service has no endpoint
        service.wait(service.create(TASK), ["COMPLETE"], timeout_s=240)
        until(lambda: "PoiesisRedisDown" not in site.alerts(), 120, service.story)


def answers(service: Installation) -> bool:
    try:
        return service.call("GET", "/service-info")[0] == 200
    except urllib3.exceptions.HTTPError:
        return False


def measured(site: Prometheus) -> bool:
    """One task has been counted by each of the parts that it went through."""
    return all(
        site.query(f"sum({expression})") not in ([], [0.0])
        for expression in (
            "poiesis_tasks_created_total",
            'poiesis_http_requests_total{role="api",code="200"}',
            'poiesis_tasks_ended_total{state="COMPLETE"}',
            'poiesis_task_phase_duration_seconds_count{phase="executor"}',
            'poiesis_link_duration_seconds_count{link="texam.launch"}',
            'poiesis_kubernetes_requests_total{verb="create",resource="pods"}',
            "poiesis_store_operation_duration_seconds_count",
            'poiesis_dependency_up{dependency="broker"}',
            'poiesis_watch_age_seconds{resource="pods"}',
        )
    )
