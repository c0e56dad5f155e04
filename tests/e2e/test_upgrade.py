"""An upgrade from an earlier version, and the way back, with tasks in flight: `make upgrade-e2e`.

The earlier chart is that of the commit POIESIS_TEST_OLD_COMMIT, and POIESIS_TEST_OLD_IMAGE the image built from it (`make old-image`). The
default commit is the last one without users, quotas, events and whole logs, whose stored documents differ most from those of today.
"""

from __future__ import annotations

import json
import os
import subprocess
import tarfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import pytest
import urllib3

from tests.e2e.conftest import CHART, Cluster, Failed, Installation, Json, installation, until, values_for
from tests.e2e.programs import ROOT
from tests.e2e.site import BUSYBOX, Pods

OLD_COMMIT: Final = os.environ.get("POIESIS_TEST_OLD_COMMIT", "6eac920")
OLD_IMAGE: Final = os.environ.get("POIESIS_TEST_OLD_IMAGE")
IN_FLIGHT: Final = 30
MAX_CREATED: Final = 20  # while pods of the service are replaced
ENDS_S: Final = 420.0
ENDED: Final = ("COMPLETE", "EXECUTOR_ERROR", "SYSTEM_ERROR", "CANCELED")
pytestmark = [pytest.mark.upgrade, pytest.mark.timeout(1200)]


def task(service: Installation, name: str, seconds: int) -> Json:
    """It writes down that it ran, into its log and its output."""
    script = f"echo begin {name}; sleep {seconds}; cat /data/in > /data/out; echo end {name}"
    return {
        "name": name,
        "tags": {"project": "upgrade"},
        "inputs": [{"path": "/data/in", "content": f"input of {name}\n"}],
        "outputs": [{"path": "/data/out", "url": service.s3.url(f"{name}.txt")}],
        "executors": [{"image": BUSYBOX, "command": ["sh", "-c", script]}],
    }


def assert_ran_once(service: Installation, pods: Pods, name: str, found: Json) -> None:
    assert found["state"] == "COMPLETE", f"{name}: {json.dumps(found, indent=1)}"
    (log,) = found["logs"]
    assert [entry["stdout"] for entry in log["logs"]] == [f"begin {name}\nend {name}\n"], found
    assert [entry["exit_code"] for entry in log["logs"]] == [0]
    with service.s3.client().get_object(service.s3.bucket, f"{name}.txt") as stored:
        assert stored.read() == f"input of {name}\n".encode()
    executed = [
        p for p in pods.of(found["id"]).values() if any("executor" in c["name"] for c in p["spec"]["containers"])
    ]
    assert len(executed) == 1, [p["metadata"]["name"] for p in executed]


@dataclass
class Creator:
    """A client that creates a task every three seconds, and repeats nothing: what is accepted has to end."""

    service: Installation
    accepted: dict[str, str] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)

    @contextmanager
    def running(self, prefix: str) -> Iterator[None]:
        stop = threading.Event()

        def run() -> None:
            number = 0
            while number < MAX_CREATED and not stop.wait(3):
                number += 1
                name = f"{prefix}-{number}"
                try:
                    self.accepted[name] = self.service.create(task(self.service, name, 1))
                except (AssertionError, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
                    self.refused.append(str(error))

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(60)


def is_kept(before: Any, after: Any) -> bool:
    """Whether a document has everything that it had; an upgrade may add fields."""
    if isinstance(before, dict):
        return isinstance(after, dict) and all(
            key in after and is_kept(value, after[key]) for key, value in before.items()
        )
    if isinstance(before, list):
        return isinstance(after, list) and len(before) == len(after) and all(map(is_kept, before, after))
    return bool(before == after)


@pytest.fixture(scope="module")
def old_chart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    done = subprocess.run(["git", "archive", OLD_COMMIT, "helm/poiesis"], cwd=ROOT, capture_output=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"the clone does not have the commit {OLD_COMMIT}: {done.stderr.decode().strip()}")
    directory = tmp_path_factory.mktemp("old")
    with tarfile.open(fileobj=BytesIO(done.stdout)) as archive:
        archive.extractall(directory, filter="data")
    return directory / "helm" / "poiesis"


@pytest.fixture(scope="module")
def service(cluster: Cluster, old_chart: Path) -> Iterator[Installation]:
    if not OLD_IMAGE:
        pytest.skip("POIESIS_TEST_OLD_IMAGE is not set: make old-image builds it")

    def as_then(made: Installation) -> None:
        made.values["api"].pop("auth")  # a value that the earlier chart does not have

    with installation(cluster, OLD_IMAGE, chart=old_chart, before=as_then) as made:
        yield made


def create_all(service: Installation, tasks: dict[str, int]) -> dict[str, str]:
    with ThreadPoolExecutor(8) as pool:
        ids = pool.map(lambda item: service.create(task(service, *item)), tasks.items())
        return dict(zip(tasks, ids, strict=True))


def listed_by(service: Installation) -> list[Json] | None:
    status, document = service.call("GET", "/tasks?page_size=1000&view=MINIMAL")
    return document["tasks"] if status == 200 else None


def end_of(service: Installation, task_id: str) -> Json:
    """The task when it has ended, whatever the state."""
    return state_of(service, task_id, *ENDED)


def state_of(service: Installation, task_id: str, *states: str) -> Json:
    """The task when it is in one of the states. Requests are repeated, as clients do: the bundled store is replaced too."""

    def look() -> Json | None:
        try:
            found = service.task(task_id)
        except (urllib3.exceptions.HTTPError, OSError, AssertionError):
            return None  # the API is being replaced
        return found if found["state"] in states else None

    return until(look, ENDS_S, lambda: f"task {task_id} is not {states}\n{service.story()}")


def test_tasks_in_flight_survive_an_upgrade_and_a_rollback(service: Installation, image: str):
    with Pods(service, service.namespace).followed() as pods:
        ended = create_all(service, {f"ended-{n}": 1 for n in range(3)})
        before = {name: end_of(service, task_id) for name, task_id in ended.items()}
        in_flight = create_all(service, {f"flight-{n}": 5 + 5 * n for n in range(IN_FLIGHT)})
        state_of(service, in_flight["flight-5"], "RUNNING", *ENDED)
        cancelled = service.create(task(service, "cancelled", 600))

        creator = Creator(service)
        of_today = values_for(image, service.namespace)
        service.chart, service.values = CHART, {**service.values, "image": of_today["image"], "api": of_today["api"]}
        started = time.monotonic()
        with creator.running("during-upgrade"):
            service.upgrade()
        upgraded_s = time.monotonic() - started
        until(lambda: service.call("POST", f"/tasks/{cancelled}:cancel", {})[0] == 200, 60, service.story)
        for name, task_id in ended.items():
            after = end_of(service, task_id)
            assert is_kept(before[name], after), (before[name], after)
        listed = until(lambda: listed_by(service), 60, service.story)
        still = sum(found["id"] in in_flight.values() and found["state"] not in ENDED for found in listed)
        for name, task_id in {**in_flight, **creator.accepted}.items():
            assert_ran_once(service, pods, name, end_of(service, task_id))
        assert end_of(service, cancelled)["state"] == "CANCELED"
        print(
            f"\nupgrade: {upgraded_s:.0f} s; {still} of {IN_FLIGHT} tasks still ran after it; "
            f"{len(creator.accepted)} created meanwhile, {len(creator.refused)} not accepted: {creator.refused[:2]}"
        )

        newer = create_all(service, {f"back-{n}": 5 + 5 * n for n in range(10)})
        state_of(service, newer["back-5"], "RUNNING", *ENDED)
        at_rollback = {name: end_of(service, task_id) for name, task_id in in_flight.items()}
        creator = Creator(service)
        with creator.running("during-rollback"):
            service.helm("rollback", service.release, "--wait", "--timeout", "300s")
        for name, task_id in {**newer, **creator.accepted}.items():
            assert_ran_once(service, pods, name, end_of(service, task_id))
        for name, task_id in in_flight.items():  # what the newer version wrote is readable for the older one
            found = end_of(service, task_id)
            assert (found["state"], found["name"]) == ("COMPLETE", name)
            assert found["logs"][0]["logs"][0]["stdout"] == at_rollback[name]["logs"][0]["logs"][0]["stdout"]
        print(
            f"rollback: {len(creator.accepted)} created meanwhile, {len(creator.refused)} not accepted: {creator.refused[:2]}"
        )
    if not creator.accepted and not creator.refused:
        raise Failed("the client did nothing during the rollback")
