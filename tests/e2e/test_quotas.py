"""Quotas and fair shares with real pods, while the elected admitter is killed."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import partial
from itertools import accumulate
from typing import Final

import pytest

from tests.e2e import users
from tests.e2e.conftest import Cluster, Installation, Json, installation, until
from tests.e2e.site import BUSYBOX, TERMINAL

MAX_TASKS: Final = 4
MAX_OF_USER: Final = 3
MANY, FEW = 24, 4
KILLS: Final = 3
WAIT_S: Final = 240.0


@pytest.fixture
def service(cluster: Cluster, image: str) -> Iterator[Installation]:
    admission = {"site": {"maxTasks": MAX_TASKS}, "user": {"maxTasks": MAX_OF_USER}}
    before = users.credentials(["ada", "bob"])
    with installation(cluster, image, before=before, api=users.VALUES, admission=admission) as service:
        yield service


def most_at_once(ended: Sequence[Json]) -> int:
    """Of tasks whose containers ran at the same time, by the launcher's clock; a pod is gone only later."""
    logs = [task["logs"][0] for task in ended]
    changes = sorted([(log["start_time"], 1) for log in logs] + [(log["end_time"], -1) for log in logs])
    return max(accumulate(change for _, change in changes))


@pytest.mark.timeout(480)
def test_killed_admitters_pass_no_quota_and_serve_a_newcomer_soon(service: Installation) -> None:
    def post(user: str) -> str:
        body = {"executors": [{"image": BUSYBOX, "command": ["sleep", "1"]}], "resources": {"cpu_cores": 0.05}}
        task_id = str(users.call(service, user, "POST", "/tasks", body)["id"])
        owners[task_id] = user
        return task_id

    def task(task_id: str) -> Json:
        found: Json = users.call(service, owners[task_id], "GET", f"/tasks/{task_id}?view=FULL")
        return found

    def has_ended(count: int) -> bool:
        return sum(task(task_id)["state"] in TERMINAL for task_id in owners) >= count

    owners: dict[str, str] = {}
    many = [post("ada") for _ in range(MANY)]
    until(lambda: task(many[0])["state"] in TERMINAL, WAIT_S, service.story)
    why = task(many[-1])["logs"][0]["metadata"]["waiting_reason"]
    assert "in your queue" in why and f"{MAX_OF_USER} of {MAX_OF_USER}" in why
    few = [post("bob") for _ in range(FEW)]
    for kill in range(1, KILLS + 1):
        names = [pod["metadata"]["name"] for pod in service.get("pods", "-l", "app.kubernetes.io/component=monitor")]
        service.kubectl("delete", "pod", random.choice(names), "--grace-period=0", "--force")
        until(partial(has_ended, 6 * kill), WAIT_S, service.story)
    until(partial(has_ended, len(owners)), WAIT_S, service.story)

    ended = {task_id: task(task_id) for task_id in owners}
    assert {t["state"] for t in ended.values()} == {"COMPLETE"}, json.dumps(ended, indent=1)
    assert {t["logs"][0]["metadata"].get("attempts") for t in ended.values()} == {None}, "none was started twice"
    assert MAX_OF_USER <= most_at_once(list(ended.values())) <= MAX_TASKS, "the quota is used, and not passed"
    for user in ("ada", "bob"):
        assert most_at_once([t for i, t in ended.items() if owners[i] == user]) <= MAX_OF_USER
    started = {i: datetime.fromisoformat(t["logs"][0]["start_time"]) for i, t in ended.items()}
    before_bob = sum(started[i] < max(started[j] for j in few) for i in many)
    assert before_bob < MANY, "the newcomer did not wait for all of the queue before it"
