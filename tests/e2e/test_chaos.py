"""Kill processes of the service and of the cluster while tasks are in all stages, and count what was lost, doubled or left.

`make chaos` runs it; variables: CHAOS_SEED (printed at the start), CHAOS_ROUNDS (kills; default 20), CHAOS_TASKS (tasks a round;
default 30). The kubelet and the API server are killed too where the cluster's processes run on this machine (CLUSTER_DIR with
`run/NAME.pid` and `run/NAME.cmd`).

Every task fetches an input from S3, has its executor call a counter (a pod that nobody kills) with the task's number, and uploads an
output. After each round: every task is COMPLETE with the right output, every number was counted once, and no pod, PVC or Secret of a
task is there.
"""

from __future__ import annotations

import io
import json
import os
import random
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import pytest
import urllib3

from tests.e2e.conftest import ENDS, OURS, Door, Installation, until

pytestmark = pytest.mark.chaos

ROUNDS: Final = int(os.environ.get("CHAOS_ROUNDS", "20"))
TASKS: Final = int(os.environ.get("CHAOS_TASKS", "30"))
ROUND_S: Final = 300.0
SPREAD_S: Final = 6.0  # within which tasks are posted and the kill comes
PARTS: Final = ("api", "torc", "tif", "texam", "tof", "monitor", "redis", "mongodb")
MACHINE: Final = ("kubelet", "kube-apiserver")

STARTED: Final[list[subprocess.Popen[bytes]]] = []

COUNTER: Final = """
import collections, http.server, json
counts = collections.Counter()
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path != "/counts":
            counts[self.path[1:]] += 1
        body = json.dumps(counts).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body if self.path == "/counts" else body[:0].ljust(len(body)))
    def log_message(self, *_):
        pass
http.server.ThreadingHTTPServer(("", 8000), Handler).serve_forever()
"""


@pytest.fixture(scope="module")
def counter(poiesis: Installation) -> Iterator[Door]:
    labels = {**OURS, "chaos": "counter"}
    container = {
        "name": "main",
        "image": poiesis.image,
        "command": ["python", "-c", COUNTER],
        "readinessProbe": {
            "httpGet": {"path": "/counts", "port": 8000},
            "periodSeconds": 1,
            "timeoutSeconds": 10,
            "failureThreshold": 1000,  # a busy machine is no reason to send nobody there
        },
    }
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "s3-counter", "labels": labels},
        "spec": {"containers": [container], "enableServiceLinks": False},
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "s3-counter", "labels": labels},
        "spec": {"selector": {"chaos": "counter"}, "ports": [{"port": 8000}]},
    }
    for document in (pod, service):
        poiesis.kubectl("apply", "-f", "-", stdin=json.dumps(document))
    poiesis.kubectl("wait", "--for=condition=Ready", "pod/s3-counter", "--timeout=60s", timeout_s=70)
    door = Door(poiesis.cluster, poiesis.namespace, "s3-counter", 8000)
    yield door
    door.close()
    for process in STARTED:
        process.returncode = 0  # nobody waits for it
    for kind in ("pod", "service"):
        poiesis.kubectl("delete", kind, "s3-counter", "--wait=false", check=False)


def test_nothing_is_lost_doubled_or_left_whatever_is_killed(poiesis: Installation, counter: Door) -> None:
    seed = int(os.environ.get("CHAOS_SEED", str(random.SystemRandom().randrange(10**6))))
    chance = random.Random(seed)
    machine = _machine()
    targets = [*PARTS, *machine]
    store = poiesis.s3.client()
    store.put_object(poiesis.s3.bucket, "chaos-in", io.BytesIO(b"x" * 100_000), 100_000)
    print(
        f"\nseed {seed}, {ROUNDS} rounds of {TASKS} tasks\n| round | killed | after s | COMPLETE | run twice | lost | left | longest s |"
    )
    print("|---|---|---|---|---|---|---|---|")
    chance.shuffle(targets)
    for number in range(ROUNDS):
        target = targets[number % len(targets)]
        after = chance.uniform(0.2, SPREAD_S)
        begin = time.monotonic()
        with ThreadPoolExecutor(4) as pool:
            delays = sorted(chance.uniform(0, SPREAD_S) for _ in range(TASKS))
            sleeps = [chance.choice([0, 0, 0.5, 2]) for _ in range(TASKS)]
            posted = [
                pool.submit(_post, poiesis, f"{seed}-{number}-{i}", begin + delay, nap, counter)
                for i, (delay, nap) in enumerate(zip(delays, sleeps, strict=True))
            ]
            _pause(begin + after)
            _kill(poiesis, target, machine)
            ids = [future.result() for future in posted]
        ended = _ends(poiesis, ids)
        longest = time.monotonic() - begin
        counts = _counts(counter)
        mine = {f"{seed}-{number}-{i}": counts.get(f"{seed}-{number}-{i}", 0) for i in range(TASKS)}
        twice = [n for n, c in mine.items() if c > 1]
        lost = [n for n, c in mine.items() if c == 0]
        complete = sum(state == "COMPLETE" for state in ended.values())
        left = _left(poiesis)
        print(
            f"| {number + 1} | {target} | {after:.1f} | {complete}/{TASKS} | {len(twice)} | {len(lost)} | {len(left)} | {longest:.0f} |",
            flush=True,
        )
        stories = [json.dumps(poiesis.task(i), indent=1) for i, s in ended.items() if s != "COMPLETE"]
        assert complete == TASKS, f"round {number + 1}, {target} killed:\n" + "\n".join(stories[:2])
        assert not twice and not lost, f"round {number + 1}, {target} killed: counted {mine}"
        assert not left, f"round {number + 1}, {target} killed: left {left}\n{poiesis.story()}"
        for i, name in enumerate(mine):
            body = store.get_object(poiesis.s3.bucket, f"chaos-out/{name}").read()
            assert body == b"x" * 100_000 + f"{name}\n".encode(), f"output of task {ids[i]}"


def _post(poiesis: Installation, name: str, at: float, nap: float, counter: Door) -> str:
    """Post until an id is answered. A post without an answer may have been accepted; the name in tags tells, so nothing is posted twice."""
    script = (
        f"wget -q -O /dev/null http://s3-counter.{poiesis.namespace}.svc:8000/{name} || exit 9; "
        f"sleep {nap}; cat /data/in > /data/out; echo {name} >> /data/out"
    )
    task = {
        "name": "chaos",
        "tags": {"chaos": name},
        "inputs": [{"url": poiesis.s3.url("chaos-in"), "path": "/data/in"}],
        "outputs": [{"url": poiesis.s3.url(f"chaos-out/{name}"), "path": "/data/out"}],
        "executors": [{"image": "localhost/busybox:1", "command": ["sh", "-c", script]}],
    }
    _pause(at)

    def attempt() -> str | None:
        try:
            status, found = poiesis.call("GET", f"/tasks?tag_key=chaos&tag_value={name}", timeout_s=10)
            if status == 200 and found["tasks"]:
                return str(found["tasks"][0]["id"])
            if status != 200:
                return None
            status, answer = poiesis.call("POST", "/tasks", task, timeout_s=10)
            return str(answer["id"]) if status == 200 else None
        except (urllib3.exceptions.HTTPError, ValueError):
            return None

    return until(attempt, ROUND_S, lambda: f"task {name} cannot be posted\n{poiesis.story()}")


def _ends(poiesis: Installation, ids: list[str]) -> dict[str, str]:
    states: dict[str, str] = {}

    def look() -> bool:
        for task_id in ids:
            if states.get(task_id) not in ENDS:
                try:
                    states[task_id] = poiesis.task(task_id, "MINIMAL")["state"]
                except (urllib3.exceptions.HTTPError, ValueError, AssertionError):
                    return False
        return all(states.get(i) in ENDS for i in ids)

    until(
        look, ROUND_S, lambda: f"not ended: { {i: s for i, s in states.items() if s not in ENDS} }\n{poiesis.story()}"
    )
    return states


def _left(poiesis: Installation) -> list[str]:
    """Objects of tasks that are still there after a while for cleaning up."""
    found: list[str] = []

    def look() -> bool:
        try:
            items = poiesis.get("pods,persistentvolumeclaims,secrets", "-l", "poiesis/task-id")
        except AssertionError:
            return False
        found[:] = [f"{i['kind']}/{i['metadata']['name']}" for i in items]
        return not found

    try:
        until(look, 120, lambda: "")
    except AssertionError:
        return found or ["the cluster does not answer"]
    return []


def _counts(counter: Door) -> dict[str, int]:
    def look() -> dict[str, Any] | None:
        try:
            return {
                "counts": json.loads(urllib3.request("GET", f"{counter.url}/counts", retries=False, timeout=10).data)
            }
        except (urllib3.exceptions.HTTPError, ValueError):
            return None

    found: dict[str, int] = until(look, 60, lambda: "the counter does not answer")["counts"]
    return found


def _machine() -> dict[str, Path]:
    """Processes of a cluster on this machine that may be killed: name → folder of its pid file."""
    run = Path(os.environ.get("CLUSTER_DIR", Path(os.environ["KUBECONFIG"]).parent)) / "run"
    return {name: run for name in MACHINE if (run / f"{name}.pid").is_file() and (run / f"{name}.cmd").is_file()}


def _kill(poiesis: Installation, target: str, machine: dict[str, Path]) -> None:
    """SIGKILL. Deployments replace a pod by themselves; a process of the machine is started again with its own command line."""
    if target not in machine:
        selector = f"app.kubernetes.io/instance={poiesis.release},app.kubernetes.io/component={target}"
        poiesis.kubectl("delete", "pod", "-l", selector, "--grace-period=0", "--force", "--wait=false")
        return
    run = machine[target]
    os.kill(int((run / f"{target}.pid").read_text()), signal.SIGKILL)
    time.sleep(1)  # a dead process is not started again at once anywhere
    command = shlex.split((run / f"{target}.cmd").read_text())
    environment = {**os.environ, "PATH": f"{run.parent / 'bin'}:{os.environ['PATH']}"}
    with (run.parent / "log" / f"{target}.log").open("ab") as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            cwd=run.parent,
            env=environment,
        )
    (run / f"{target}.pid").write_text(f"{process.pid}\n")
    STARTED.append(process)  # it stays when the tests have ended, as the one before would have


def _pause(until_s: float) -> None:
    """The campaign is about moments: it waits for the next one."""
    time.sleep(max(0.0, until_s - time.monotonic()))
