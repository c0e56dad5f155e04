"""Kill processes of the service and of the cluster while tasks are in all stages; count lost, duplicate and leftover work.

`make chaos` runs it, one leg for each target: TASKS tasks are kept in flight (a new one is posted when one has ended) while the target
is killed with SIGKILL at KILLS random moments, each time after it has come back. Then nothing new is posted, and when all have ended:
every task is COMPLETE with the right output, every command was counted once for each attempt at most, and no object of a task is
left. Only a killed task pod, or a kubelet that was starting one, may cost an attempt.

Variables: CHAOS_SEED (printed at the start), CHAOS_KILLS (default 20), CHAOS_TASKS (default 30), CHAOS_TARGETS (names with commas). The
kubelet and the API server are targets where the cluster's processes run on this machine (CLUSTER_DIR with `run/NAME.pid` and
`run/NAME.cmd`); there the other targets' processes are found and killed by their pid too. Elsewhere their pods are deleted by force.
"""

from __future__ import annotations

import io
import json
import os
import random
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
import urllib3

from tests.e2e.conftest import ENDS, OURS, Failed, Installation, ServiceAddress, until

pytestmark = pytest.mark.chaos

KILLS: Final = int(os.environ.get("CHAOS_KILLS", "20"))
TASKS: Final = int(os.environ.get("CHAOS_TASKS", "30"))
SEED: Final = int(os.environ.get("CHAOS_SEED") or random.SystemRandom().randrange(10**6))
POSTERS: Final = 3
PAUSE_S: Final = (1.2, 4.0)  # from the return of a target to its next end; a death shows in its pod within a second
BACK_S: Final = 90.0  # for a target to come back
DRAIN_S: Final = 400.0  # for everything to end after the last kill; a lost link is found again within half a minute
GONE_S: Final = 120.0
LOOK_S: Final = 0.5
PARTS: Final = ("api", "torc", "tif", "texam", "tof", "monitor", "redis", "mongodb")
MACHINE: Final = ("kubelet", "kube-apiserver")
TASK_POD: Final = "task-pod"
TARGETS: Final = [name for name in os.environ.get("CHAOS_TARGETS", "").split(",") if name] or [
    *PARTS,
    TASK_POD,
    *MACHINE,
]
HEALTH: Final = {"kubelet": "http://127.0.0.1:10248/healthz"}
KINDS: Final = "pods,jobs,persistentvolumeclaims,secrets,configmaps"
TASK_LABEL: Final = "poiesis/task-id"

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
def counter(poiesis: Installation) -> Iterator[ServiceAddress]:
    labels = {**OURS, "chaos": "counter"}
    container = {
        "name": "main",
        "image": poiesis.image,
        "command": ["python", "-c", COUNTER],
        "readinessProbe": {
            "httpGet": {"path": "/counts", "port": 8000},
            "periodSeconds": 1,
            "timeoutSeconds": 10,
            "failureThreshold": 1000,  # readiness must not fail only because the machine is busy
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
        # the counter is not under test: it keeps its address while its readiness is unknown
        "spec": {"selector": {"chaos": "counter"}, "ports": [{"port": 8000}], "publishNotReadyAddresses": True},
    }
    for document in (pod, service):
        poiesis.kubectl("apply", "-f", "-", stdin=json.dumps(document))
    poiesis.kubectl("wait", "--for=condition=Ready", "pod/s3-counter", "--timeout=60s", timeout_s=70)
    door = ServiceAddress(poiesis.cluster, poiesis.namespace, "s3-counter", 8000)
    yield door
    door.close()
    for process in STARTED:
        process.returncode = 0  # not waited for
    for kind in ("pod", "service"):
        poiesis.kubectl("delete", kind, "s3-counter", "--wait=false", check=False)


@dataclass
class Load:
    """Tasks that are kept in flight by a few threads. Every task has its own name, in its tags and in its output."""

    poiesis: Installation
    leg: str
    chance: random.Random
    counter: str  # its address, so that commands do not depend on DNS, which may be down with the API server
    ids: dict[str, str] = field(default_factory=dict)
    states: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    problems: list[BaseException] = field(default_factory=list)
    _count: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _enough: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Tasks are posted until the block ends; afterwards every task must end."""
        threads = [threading.Thread(target=self._work, daemon=True) for _ in range(POSTERS)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._enough.set()
            for thread in threads:
                thread.join(DRAIN_S + 60)
        if self.problems:
            raise self.problems[0]

    def _work(self) -> None:
        """Each thread keeps its share of the tasks in flight."""
        mine: dict[str, float] = {}
        deadline: float | None = None
        try:
            while mine or not self._enough.is_set():
                if self._enough.is_set():
                    deadline = deadline or time.monotonic() + DRAIN_S
                    if time.monotonic() > deadline:
                        open_ones = {n: self.states.get(n) for n in mine}
                        raise Failed(f"{self.leg}: not ended: {open_ones}\n{self.poiesis.story()}")
                while len(mine) < TASKS // POSTERS and not self._enough.is_set():
                    name, begin = self._next_name(), time.monotonic()
                    self.ids[name] = self._post(name)
                    mine[name] = begin
                for name in list(mine):
                    state = self.states[name] = self._state(name)
                    if state in ENDS:
                        self.seconds[name] = time.monotonic() - mine.pop(name)
                time.sleep(LOOK_S)
        except BaseException as error:
            self.problems.append(error)

    def _next_name(self) -> str:
        with self._lock:
            self._count += 1
            return f"{self.leg}-{self._count}"

    def _state(self, name: str) -> str:
        try:
            return str(self.poiesis.task(self.ids[name], "MINIMAL")["state"])
        except (urllib3.exceptions.HTTPError, ValueError, AssertionError):  # the API may be down
            return self.states.get(name, "UNKNOWN")

    def _post(self, name: str) -> str:
        """Post until an id is answered. A post without a response may have been accepted; its tag shows it, so nothing is posted twice."""
        task = self._task(name)
        uncertain = False

        def attempt() -> str | None:
            nonlocal uncertain
            try:
                if uncertain:
                    status, found = self.poiesis.call("GET", f"/tasks?tag_key=chaos&tag_value={name}", timeout_s=10)
                    if status == 200 and found["tasks"]:
                        return str(found["tasks"][0]["id"])
                    uncertain = status != 200
                if not uncertain:
                    status, answer = self.poiesis.call("POST", "/tasks", task, timeout_s=10)
                    uncertain = status != 200
                    return str(answer["id"]) if status == 200 else None
            except (urllib3.exceptions.HTTPError, ValueError):
                uncertain = True
            return None

        return until(attempt, BACK_S, lambda: f"task {name} cannot be posted\n{self.poiesis.story()}")

    def _task(self, name: str) -> dict[str, Any]:
        with self._lock:
            nap = self.chance.choice([0, 0, 0.5, 2])
        script = (
            f"wget -q -O /dev/null http://{self.counter}:8000/{name} || exit 9; "
            f"sleep {nap}; cat /data/in > /data/out; echo {name} >> /data/out"
        )
        return {
            "name": "chaos",
            "tags": {"chaos": name},
            "inputs": [{"url": self.poiesis.s3.url("chaos-in"), "path": "/data/in"}],
            "outputs": [{"url": self.poiesis.s3.url(f"chaos-out/{name}"), "path": "/data/out"}],
            "executors": [{"image": "localhost/busybox:1", "command": ["sh", "-c", script]}],
        }


@pytest.fixture(scope="module")
def chance(poiesis: Installation) -> random.Random:
    """Also the input of all tasks, and the head of the table."""
    poiesis.s3.client().put_object(poiesis.s3.bucket, "chaos-in", io.BytesIO(b"x" * 100_000), 100_000)
    print(f"\nseed {SEED}, {KILLS} kills of each target with {TASKS} tasks in flight")
    print("| Killed | Times | Tasks | COMPLETE | Commands run twice | Lost | Repeated attempts | Left | Longest s |")
    print("|---|---|---|---|---|---|---|---|---|")
    return random.Random(SEED)


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_is_lost_duplicated_or_left_over(
    poiesis: Installation, counter: ServiceAddress, chance: random.Random, target: str
) -> None:
    machine = _machine()
    if target in MACHINE and target not in machine:
        pytest.skip("the cluster's processes are not on this machine")
    address = poiesis.kubectl("get", "service", "s3-counter", "-o", "jsonpath={.spec.clusterIP}").strip()
    load = Load(poiesis, f"{target}-{SEED}", chance, address)
    with load.running():
        for _ in range(KILLS):
            time.sleep(chance.uniform(*PAUSE_S))  # the campaign is about moments: it waits for the next one
            _kill(poiesis, target, machine, chance)
            until(lambda: _is_back(poiesis, target), BACK_S, lambda: f"{target} does not come back\n{poiesis.story()}")
            if load.problems:
                break
    counts = _counts(counter)
    tasks = {name: poiesis.task(task_id) for name, task_id in load.ids.items()}
    attempts = {name: int(task["logs"][0]["metadata"].get("attempts", "1")) for name, task in tasks.items()}
    complete = [name for name, task in tasks.items() if task["state"] == "COMPLETE"]
    twice = [name for name in tasks if counts.get(name, 0) > attempts[name]]
    lost = [name for name in tasks if not counts.get(name)]
    repeated = [name for name, count in attempts.items() if count > 1]
    left = _left(poiesis)
    row = [target, KILLS, len(tasks), len(complete), len(twice), len(lost), len(repeated), len(left)]
    print(f"| {' | '.join(map(str, row))} | {max(load.seconds.values()):.0f} |", flush=True)
    stories = [json.dumps(task, indent=1) for name, task in tasks.items() if name not in complete]
    assert len(complete) == len(tasks) >= TASKS, "\n".join(stories[:2])
    assert not twice and not lost, f"counted: { {n: counts.get(n, 0) for n in (*twice, *lost)} }"
    assert not left, f"left: {left}\n{poiesis.story()}"
    if target not in (TASK_POD, "kubelet"):
        assert not repeated, json.dumps(tasks[repeated[0]], indent=1)
    store = poiesis.s3.client()
    for name in tasks:
        body = store.get_object(poiesis.s3.bucket, f"chaos-out/{name}").read()
        assert body == b"x" * 100_000 + f"{name}\n".encode(), f"output of task {load.ids[name]}"


def _left(poiesis: Installation) -> list[str]:
    """Objects of tasks that remain after a while for cleanup."""
    found: list[str] = []

    def look() -> bool:
        try:
            items = poiesis.get(KINDS, "-l", TASK_LABEL)
        except AssertionError:
            return False
        found[:] = [f"{i['kind']}/{i['metadata']['name']}" for i in items]
        return not found

    try:
        until(look, GONE_S, lambda: "")
    except AssertionError:
        return found or ["the cluster does not respond"]
    return []


def _counts(counter: ServiceAddress) -> dict[str, int]:
    def look() -> dict[str, Any] | None:
        try:
            return {
                "counts": json.loads(urllib3.request("GET", f"{counter.url}/counts", retries=False, timeout=10).data)
            }
        except (urllib3.exceptions.HTTPError, ValueError):
            return None

    found: dict[str, int] = until(look, 60, lambda: "the counter does not respond")["counts"]
    return found


# ── killing ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _machine() -> dict[str, Path]:
    """Processes of a cluster on this machine that may be killed: name → directory of its pid file."""
    run = Path(os.environ.get("CLUSTER_DIR", Path(os.environ["KUBECONFIG"]).parent)) / "run"
    return {name: run for name in MACHINE if (run / f"{name}.pid").is_file() and (run / f"{name}.cmd").is_file()}


def _kill(poiesis: Installation, target: str, machine: dict[str, Path], chance: random.Random) -> None:
    if target in machine:
        _restart(target, machine[target])
        return
    selector = TASK_LABEL if target == TASK_POD else _selector(poiesis, target)
    pods = [p for p in poiesis.get("pods", "-l", selector) if p["status"].get("phase") in ("Pending", "Running")]
    if target == TASK_POD:
        pods = chance.sample(pods, min(1, len(pods)))
    for pod in pods:
        name, uid = pod["metadata"]["name"], pod["metadata"]["uid"]
        killed = _kill_processes(uid) if machine else 0
        # the kubelet's restart back-off grows with each restart; a new pod starts without it
        restarts = sum(c.get("restartCount", 0) for c in pod["status"].get("containerStatuses") or [])
        if not killed or (target != TASK_POD and restarts > 0):
            poiesis.kubectl("delete", "pod", name, "--grace-period=0", "--force", "--wait=false", check=False)


def _selector(poiesis: Installation, part: str) -> str:
    return f"app.kubernetes.io/instance={poiesis.release},app.kubernetes.io/component={part}"


def _kill_processes(uid: str) -> int:
    """SIGKILL every process of the pod except the sandbox's; return how many."""
    marks = (f"pod{uid}", f"pod{uid.replace('-', '_')}")
    killed = 0
    for process in Path("/proc").iterdir():
        if not process.name.isdecimal():
            continue
        try:
            mine = any(mark in (process / "cgroup").read_text() for mark in marks)
            if mine and (process / "comm").read_text().strip() != "pause":
                os.kill(int(process.name), signal.SIGKILL)
                killed += 1
        except OSError:  # it has ended in the meantime
            continue
    return killed


def _restart(name: str, run: Path) -> None:
    """SIGKILL, and the same command line again."""
    os.kill(int((run / f"{name}.pid").read_text()), signal.SIGKILL)
    time.sleep(1)  # no supervisor restarts a dead process immediately
    command = shlex.split((run / f"{name}.cmd").read_text())
    environment = {**os.environ, "PATH": f"{run.parent / 'bin'}:{os.environ['PATH']}"}
    with (run.parent / "log" / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            cwd=run.parent,
            env=environment,
        )
    (run / f"{name}.pid").write_text(f"{process.pid}\n")
    STARTED.append(process)  # it stays when the tests have ended, as the one before would have


def _is_back(poiesis: Installation, target: str) -> bool:
    try:
        if target == TASK_POD:
            return True
        if target in HEALTH:
            return bool(urllib3.request("GET", HEALTH[target], retries=False, timeout=5).status == 200)
        if target in MACHINE:
            return poiesis.cluster.kubectl("get", "--raw", "/readyz", check=False).strip() == "ok"
        return any(_is_ready(pod) for pod in poiesis.get("pods", "-l", _selector(poiesis, target)))
    except (urllib3.exceptions.HTTPError, AssertionError):
        return False


def _is_ready(pod: dict[str, Any]) -> bool:
    conditions: Sequence[dict[str, Any]] = pod["status"].get("conditions") or []
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
