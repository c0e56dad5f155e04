"""Cancellation at every stage: CANCELED within seconds, nothing left."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import pytest

from tests.e2e.conftest import Json
from tests.e2e.site import Site, codes, one_log, posted, shell

SECONDS: Final = 30.0
"""From the request to CANCELED, on a busy cluster; including the grace period of a command that ignores SIGTERM (3 s)."""

FOREVER: Final = "while :; do sleep 0.2; done"


def _container(pod: Json, name: str) -> Json:
    found = [c for c in pod["status"].get("containerStatuses", []) if c["name"] == name]
    state: Json = found[0]["state"] if found else {}
    return state


def _waits(site: Site, task: str) -> object:
    return one_log(site.service.task(task))["metadata"].get("waiting_reason")


def _runs(site: Site, task: str) -> object:
    return site.service.task(task, "MINIMAL")["state"] == "RUNNING"


def _tif_runs(site: Site, task: str) -> object:
    return any("running" in _container(pod, "tif") for pod in site.pods.of(task).values())


def _tof_is_left(site: Site, task: str) -> object:
    return any(
        "terminated" in _container(pod, "executor-0") and "running" in _container(pod, "tof")
        for pod in site.pods.of(task).values()
    )


Ready = Callable[[Site, str], object]
STAGES: Final[dict[str, tuple[Callable[[Site], Json], Ready]]] = {
    "just created": (lambda site: {"executors": [shell("true")]}, lambda site, task: True),
    "without room": (lambda site: {"resources": {"cpu_cores": 4000}, "executors": [shell("true")]}, _waits),
    "image not there": (
        lambda site: {"executors": [{"image": "localhost/poiesis-test/absent:2", "command": ["true"]}]},
        _waits,
    ),
    "staging in": (
        lambda site: {
            "inputs": [{"url": f"{site.web}/slow", "path": "/data/in"}],
            "executors": [shell(f"wget -q -O- {site.web}/count/{site.run}-canceled")],
        },
        _tif_runs,
    ),
    "running, does not listen": (lambda site: {"executors": [shell(f"trap '' TERM; {FOREVER}")]}, _runs),
    "the second executor runs": (
        lambda site: {"executors": [shell("echo first"), shell(FOREVER)], "volumes": ["/data"]},
        lambda site, task: any("terminated" in _container(p, "executor-0") for p in site.pods.of(task).values()),
    ),
    "staging out": (
        lambda site: {
            "executors": [shell("echo 1 > /data/out")],
            "outputs": [{"path": "/data/out", "url": "s3://cut-off/canceled"}],
        },
        _tof_is_left,
    ),
}


@pytest.fixture(scope="module", autouse=True)
def nothing_is_uploaded(site: Site) -> None:
    client = site.service.s3.client()
    if not client.bucket_exists("cut-off"):
        client.make_bucket("cut-off")
    site.set_unreachable(True)


@pytest.mark.parametrize("stage", STAGES)
def test_a_task_canceled_at_any_stage_ends_within_seconds(site: Site, tasks_posted: object, stage: str):
    make, ready = STAGES[stage]
    task = site.post(make(site))
    site.until(lambda: ready(site, task), 90, f"{task} does not get to this stage: {stage}")
    began = time.monotonic()
    site.cancel(task)
    site.wait(task, ("CANCELED",), SECONDS)
    assert time.monotonic() - began < SECONDS
    site.assert_gone(task, SECONDS)
    found = site.service.task(task)
    assert any("Canceled" in line for line in one_log(found)["system_logs"])
    if stage == "staging in":
        assert site.counted(f"{site.run}-canceled") == 0
    site.cancel(task)
    assert site.service.task(task) == found, "a second request changes nothing"


@posted(lambda site: {"executors": [shell("echo done")]})
def test_a_finished_task_keeps_its_outcome(site: Site, task: str):
    found = site.complete(task)
    site.cancel(task)
    site.assert_gone(task)
    again = site.service.task(task)
    assert (again["state"], codes(again), again["logs"]) == ("COMPLETE", [0], found["logs"])


@posted(lambda site: {"executors": [shell(FOREVER)]})
def test_two_concurrent_requests_have_the_effect_of_one(site: Site, task: str):
    from concurrent.futures import ThreadPoolExecutor

    site.wait(task, ("RUNNING",))
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda _: site.cancel(task), range(6)))
    found = site.wait(task, ("CANCELED",), SECONDS)
    assert len([line for line in one_log(found)["system_logs"] if "Canceled" in line]) == 1


@posted(lambda site: {"executors": [shell("echo first >&2"), shell(f"trap 'exit 7' TERM; {FOREVER}")]})
def test_executors_that_had_ended_stay_in_the_log(site: Site, task: str):
    site.wait(task, ("RUNNING",))
    site.until(lambda: one_log(site.service.task(task))["logs"], 60, "the first executor has no entry")
    site.cancel(task)
    found = site.wait(task, ("CANCELED",), SECONDS)
    assert one_log(found)["logs"][0]["stderr"] == "first\n"


def test_an_unknown_task(site: Site):
    status, _ = site.service.call("POST", "/tasks/nothing:cancel")
    assert status == 404
