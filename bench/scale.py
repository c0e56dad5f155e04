"""Many tasks at once on simulated nodes: what Poiesis itself costs, beside as many bare pods created in a tight loop in the same run.

    python -m bench scale --stages kwok/kwok.yaml > with-records.yaml    # and use that for kwok
    KUBECONFIG=… python -m bench scale --url http://HOST:PORT --namespace NS --release tes --tasks 1000 [--bare 2000] [--unreadable|--alive]

The nodes are kwok's (`../shared/cluster/addons kwok up`): pods on them run on paper, behind the real API server, scheduler and
controllers. `--stages` prints kwok's stages changed so that ended containers leave the launcher's record in their termination message;
then whole tasks complete without a kubelet. The site needs two node classes (`tasks.nodeClasses`), both with
`nodeSelector: {type: kwok}` and `tolerations: [{key: type, operator: Exists}]`: `sim`, and `sim-alive` with the annotation
`sim/run: never`.

Printed: pods created, started and ended a second, of the bare pods and of the tasks, each by a watch, and the most that were alive at
once; tasks a second until all are COMPLETE; and for each role CPU milliseconds a task, Kubernetes calls and store commands a task, from
its metrics before and after, and its memory before, in the middle and after. `--alive`: the pods never end, and the figures are those
with that many alive. `--unreadable`: with kwok's own stages, so that no pod leaves a record, and its node refuses log requests: the
latency of hello tasks on the other nodes, one after the other, before and while so many such pods end.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from kubernetes import client, config

from bench.tasks import IMAGE, Tes

ROLES = ("api", "torc", "tif", "texam", "tof", "monitor", "notifier", "admitter")
RECORD = (
    'message: {{ printf "{\\"v\\":1,\\"name\\":\\"%s\\",\\"ok\\":true,\\"exit_code\\":0,'
    '\\"started\\":\\"%s\\",\\"ended\\":\\"%s\\"}" .name $now $now | Quote }}, '
)
SAMPLE = re.compile(r"(?m)^(\w+)(?:\{([^}]*)\})? ([0-9.e+-]+)$")
DEADLINE_S = 1800


def with_records(stages: str) -> str:
    """kwok's stages, in which ended containers leave a launcher's record."""
    ended = "state: {terminated: {exitCode:"
    if ended not in stages:
        raise ValueError(f"the stages of kwok have no {ended!r}")
    return stages.replace(ended, "state: {terminated: {" + RECORD + "exitCode:")


class Roles:
    """The metrics of all roles, by role and sample; summed over replicas."""

    def __init__(self, namespace: str, release: str) -> None:
        self._core = client.CoreV1Api()
        self._namespace = namespace
        self._selector = f"app.kubernetes.io/instance={release},app.kubernetes.io/component in ({', '.join(ROLES)})"

    def read(self) -> dict[str, dict[str, float]]:
        found: dict[str, dict[str, float]] = {}
        for pod in self._core.list_namespaced_pod(self._namespace, label_selector=self._selector).items:
            role = pod.metadata.labels.get("app.kubernetes.io/component", "")
            if role not in ROLES or pod.status.phase != "Running":
                continue
            text = self._core.connect_get_namespaced_pod_proxy_with_path(
                f"{pod.metadata.name}:8081", self._namespace, "metrics"
            )
            samples = found.setdefault(role, defaultdict(float))
            for name, labels, value in SAMPLE.findall(text):
                if name.startswith(("process_", "poiesis_")):
                    samples[name + (f"{{{labels}}}" if labels else "")] += float(value)
        return found


def report(
    before: dict[str, dict[str, float]],
    middle: dict[str, dict[str, float]],
    after: dict[str, dict[str, float]],
    tasks: int,
) -> None:
    total = 0.0
    for role, samples in sorted(after.items()):

        def used(prefix: str, role: str = role, samples: dict[str, float] = samples) -> float:
            return sum(v - before.get(role, {}).get(n, 0.0) for n, v in samples.items() if n.startswith(prefix))

        cpu = 1000 * used("process_cpu_seconds_total") / tasks
        total += cpu
        calls, store = (
            used("poiesis_kubernetes_requests_total") / tasks,
            used("poiesis_store_operation_duration_seconds_count") / tasks,
        )
        memory = ", ".join(
            f"{read[role]['process_resident_memory_bytes'] / 1e6:.0f}" for read in (before, middle, after)
        )
        print(
            f"  {role:9} CPU {cpu:6.2f} ms a task   Kubernetes calls {calls:5.2f}   store commands {store:5.2f}   memory {memory} MB"
        )
    print(f"  all roles CPU {total:.2f} ms a task", flush=True)
    kinds: defaultdict[str, float] = defaultdict(float)
    for role, samples in after.items():
        for name, value in samples.items():
            if name.startswith(("poiesis_kubernetes_requests_total", "poiesis_store_operation_duration_seconds_count")):
                kinds[name.split("{")[1].rstrip("}").replace('"', "")] += (
                    value - before.get(role, {}).get(name, 0.0)
                ) / tasks
    print(
        "  a task: " + ", ".join(f"{k} {v:.2f}" for k, v in sorted(kinds.items(), key=lambda p: -p[1]) if v >= 0.01),
        flush=True,
    )


class PodWatch:
    """When the pods with a label were first seen, started and ended, by one watch without models, which costs little."""

    def __init__(self, namespace: str, label: str) -> None:
        self.begin = time.monotonic()
        self.seen: dict[str, float] = {}
        self.started: dict[str, float] = {}
        self.ended: dict[str, float] = {}
        self.most_alive = 0
        self._alive: set[str] = set()
        self._where = {"namespace": namespace, "label_selector": label}
        self._core = client.CoreV1Api()
        listed = self._core.list_namespaced_pod(**self._where)
        self._old = {pod.metadata.name for pod in listed.items}
        self._version = listed.metadata.resource_version
        threading.Thread(target=self._follow, daemon=True).start()

    def wait(self, times: dict[str, float], count: int) -> None:
        while len(times) < count:
            if time.monotonic() - self.begin > DEADLINE_S:
                raise RuntimeError(f"only {len(times)} of {count} pods after {DEADLINE_S} s")
            time.sleep(0.2)

    def report(self, what: str, count: int) -> dict[str, float]:
        """Print and return the rates from `begin` until the last pod."""
        rates = {}
        for name, times in (("created", self.seen), ("started", self.started), ("ended", self.ended)):
            if len(times) >= count:
                rates[name] = count / (sorted(times.values())[count - 1] - self.begin)
        shown = ", ".join(f"{name} {rate:.1f}" for name, rate in rates.items())
        print(f"{count} {what}: pods a second: {shown}; at most {self.most_alive} alive at once", flush=True)
        return rates

    def _follow(self) -> None:
        while True:  # the server closes a watch after a while
            answer = self._core.list_namespaced_pod(
                **self._where,
                watch=True,
                allow_watch_bookmarks=True,  # else the version of the last event may be too old
                resource_version=self._version,
                timeout_seconds=DEADLINE_S,
                _preload_content=False,
            )
            rest = b""
            for chunk in answer.stream(1 << 16):
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    self._take(json.loads(line))

    def _take(self, event: dict[str, Any]) -> None:
        if event["type"] == "ERROR":
            raise RuntimeError(event["object"])
        metadata, phase, now = event["object"]["metadata"], event["object"]["status"].get("phase"), time.monotonic()
        self._version = metadata["resourceVersion"]
        if event["type"] == "BOOKMARK" or metadata["name"] in self._old:
            return
        name = metadata["name"]
        self.seen.setdefault(name, now)
        if phase != "Pending":
            self.started.setdefault(name, now)
        if phase in ("Succeeded", "Failed"):
            self.ended.setdefault(name, now)
        if name in self.ended or event["type"] == "DELETED":
            self._alive.discard(name)
        else:
            self._alive.add(name)
        self.most_alive = max(self.most_alive, len(self._alive))


def bare_pods(namespace: str, count: int) -> dict[str, float]:
    """Create so many at once and return their rates."""
    core, label = client.CoreV1Api(), f"scale-{int(time.time())}"
    spec = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "tolerations": [{"key": "type", "operator": "Exists"}],
        "nodeSelector": {"type": "kwok"},
        "containers": [{"name": "main", "image": IMAGE, "command": ["true"]}],
    }

    def create(i: int) -> None:
        core.create_namespaced_pod(
            namespace,
            {"metadata": {"name": f"{label}-{i}", "labels": {"bench": label}}, "spec": spec},
            _preload_content=False,
        ).read()

    pods = PodWatch(namespace, f"bench={label}")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(create, range(count)))
    pods.wait(pods.ended, count)
    rates = pods.report("bare pods", count)
    core.delete_collection_namespaced_pod(namespace, label_selector=f"bench={label}", grace_period_seconds=0)
    while core.list_namespaced_pod(namespace, label_selector=f"bench={label}", limit=1).items:
        time.sleep(0.5)
    return rates


def post(tes: Tes, task: dict[str, Any], count: int) -> list[str]:
    begin = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(lambda _: tes.call("POST", "/tasks", task)["id"], range(count)))
    print(f"posted {count / (time.monotonic() - begin):.0f} a second", flush=True)
    return ids


def count_in(tes: Tes, tag: str, state: str) -> int:
    """Of the tasks with this tag."""
    found, token = 0, ""
    while True:
        page = tes.call(
            "GET",
            f"/tasks?view=MINIMAL&page_size=2048&state={state}&tag_key=scale&tag_value={tag}"
            + (f"&page_token={token}" if token else ""),
        )
        found += len(page["tasks"])
        token = page.get("next_page_token") or ""
        if not token:
            return found


def simulated(tag: str, node_class: str) -> dict[str, Any]:
    resources = {"backend_parameters": {"node_class": node_class}}
    executors = [{"image": IMAGE, "command": ["true"]}]
    return {"name": "scale", "tags": {"scale": tag}, "executors": executors, "resources": resources}


def unreadable(arguments: argparse.Namespace) -> None:
    tes, hello = Tes(arguments.url), {"name": "hello", "executors": [{"image": IMAGE, "command": ["true"]}]}

    def stream(what: str, rounds: int) -> None:
        seconds = sorted(tes.run(hello) for _ in range(rounds))
        late = seconds[int(0.95 * rounds)]
        print(
            f"hello {what}: median {statistics.median(seconds):.2f} s   p95 {late:.2f}   max {seconds[-1]:.2f}",
            flush=True,
        )

    stream("alone", 30)
    tag = str(int(time.time()))
    post(tes, simulated(tag, "sim"), arguments.tasks)
    begin = time.monotonic()
    while (left := arguments.tasks - count_in(tes, tag, "SYSTEM_ERROR")) and time.monotonic() - begin < DEADLINE_S:
        stream(f"with {left} of {arguments.tasks} unreadable tasks left after {time.monotonic() - begin:.0f} s", 10)
    print(f"all unreadable tasks have ended after {time.monotonic() - begin:.0f} s")


def tasks_at_once(arguments: argparse.Namespace, bare: dict[str, float]) -> None:
    tes, roles, count = Tes(arguments.url), Roles(arguments.namespace, arguments.release), arguments.tasks
    tag = str(int(time.time()))
    before = roles.read()
    pods = PodWatch(arguments.namespace, "poiesis/task-id")
    post(tes, simulated(tag, "sim-alive" if arguments.alive else "sim"), count)
    state, times = ("RUNNING", pods.started) if arguments.alive else ("COMPLETE", pods.ended)
    pods.wait(times, count // 2)
    middle = roles.read()
    pods.wait(times, count)
    while (done := count_in(tes, tag, state)) < count:
        if time.monotonic() - pods.begin > DEADLINE_S:
            raise RuntimeError(f"only {done} of {count} are {state}")
        time.sleep(2)
    rates = {"complete": count / (time.monotonic() - pods.begin)}
    print(f"{count} tasks: all {state}: {rates['complete']:.1f} a second", flush=True)
    rates |= pods.report("tasks", count)
    for name, base in (("created", "created"), ("started", "started"), ("ended", "ended"), ("complete", "ended")):
        if base in bare and name in rates:
            print(f"  {name}: {rates[name] / bare[base]:.2f} of the bare pods {base} a second", flush=True)
    time.sleep(5)
    report(before, middle, roles.read(), count)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench scale", description=__doc__.split("\n")[0])
    parser.add_argument("--url")
    parser.add_argument("--namespace")
    parser.add_argument("--release", default="tes")
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--bare", type=int, help="so many bare pods before them; as many as tasks")
    parser.add_argument("--alive", action="store_true", help="pods never end")
    parser.add_argument("--stages", type=Path, help="print this file of kwok's stages, changed")
    parser.add_argument(
        "--unreadable", action="store_true", help="pods without records on nodes that refuse log requests"
    )
    arguments = parser.parse_args(argv)
    if arguments.stages:
        print(with_records(arguments.stages.read_text()), end="")
        return 0
    config.load_config()
    if arguments.unreadable:
        unreadable(arguments)
        return 0
    count = arguments.tasks if arguments.bare is None else arguments.bare
    tasks_at_once(arguments, bare_pods(arguments.namespace, count) if count and not arguments.alive else {})
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
