"""A bare pod against a Job with `backoffLimit: 0`: when its container runs, ends and is reported as ended; one at a time and in a burst.

    KUBECONFIG=… python bench/pod_or_job.py [--image busybox] [--namespace NAME] [--repeat 7] [--burst 30]

Times are seconds from the create call until the event of one watch arrives, by this process' clock; medians. Results and the decision:
docs/adr/0003-bare-pods-or-jobs.md.
"""

from __future__ import annotations

import argparse
import json
import secrets
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from poiesis.cluster.kubernetes.client import Client
from poiesis.cluster.kubernetes.errors import ApiError
from poiesis.cluster.kubernetes.settings import KubernetesSettings

MARKS = ("running", "terminated", "Succeeded", "Complete")


class Bench:
    def __init__(self, namespace: str, image: str) -> None:
        self.client = Client(KubernetesSettings(namespace=namespace))
        self.pods = f"/api/v1/namespaces/{namespace}/pods"
        self.jobs = f"/apis/batch/v1/namespaces/{namespace}/jobs"
        self.image = image
        self.run = f"bench-{secrets.token_hex(3)}"
        self.created: dict[str, float] = {}
        self.seen: dict[str, dict[str, float]] = {}
        self.changed = threading.Condition()
        for path in (self.pods, self.jobs):
            threading.Thread(target=self.watch, args=(path,), daemon=True).start()

    def watch(self, path: str) -> None:
        query = {"labelSelector": f"bench={self.run}", "watch": "true", "timeoutSeconds": 3600}
        for line in self.client.stream(path, query, read_timeout_s=3600):
            now, found = time.monotonic(), json.loads(line)["object"]
            status = found.get("status") or {}
            name = found["metadata"]["labels"]["name"]
            states = [state for c in status.get("containerStatuses") or [] for state in c["state"]]
            conditions = [c["type"] for c in status.get("conditions") or [] if c["status"] == "True"]
            with self.changed:
                for mark in (*states, status.get("phase"), *conditions):
                    if mark in MARKS:
                        self.seen.setdefault(name, {}).setdefault(mark, now)
                self.changed.notify_all()

    def start(self, kind: str) -> str:
        name = f"{kind}-{secrets.token_hex(4)}"
        labels = {"bench": self.run, "name": name}
        container = {"name": "main", "image": self.image, "command": ["true"]}
        spec = {"restartPolicy": "Never", "terminationGracePeriodSeconds": 1, "containers": [container]}
        metadata = {"name": name, "labels": labels}
        self.created[name] = time.monotonic()
        if kind == "pod":
            self.client.create(self.pods, {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
        else:
            template = {"metadata": {"labels": labels}, "spec": spec}
            job = {"backoffLimit": 0, "template": template}
            self.client.create(self.jobs, {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": job})
        return name

    def wait(self, names: list[str], kind: str) -> None:
        wanted = {"terminated", "Succeeded" if kind == "pod" else "Complete"}
        with self.changed:
            for name in names:
                self.changed.wait_for(lambda name=name: wanted <= set(self.seen.get(name, ())), 300)  # type: ignore[misc]

    def remove(self, names: list[str], kind: str) -> None:
        for name in names:
            self.client.delete(
                f"{self.pods if kind == 'pod' else self.jobs}/{name}", {"propagationPolicy": "Background"}
            )

    def measure(self, kind: str, count: int) -> dict[str, float]:
        """Medians over `count` started at once, and the time until the last one was reported as ended."""
        with ThreadPoolExecutor(min(count, 16)) as pool:
            names = list(pool.map(lambda _: self.start(kind), range(count)))
        self.wait(names, kind)
        self.remove(names, kind)
        after: dict[str, list[float]] = {mark: [] for mark in MARKS}
        for name in names:
            for mark, at in self.seen[name].items():
                after[mark].append(at - self.created[name])
        first = min(self.created[name] for name in names)
        last = max(self.seen[name]["terminated"] for name in names)
        return {m: statistics.median(v) for m, v in after.items() if v} | {"all terminated": last - first}


def show(title: str, found: dict[str, Any]) -> None:
    print(f"{title:22}" + "".join(f"{key} {value:6.2f}   " for key, value in found.items()), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", default="busybox")
    parser.add_argument("--namespace", default="default")
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--burst", type=int, default=30)
    options = parser.parse_args()
    bench = Bench(options.namespace, options.image)
    time.sleep(1)  # until the watches have started
    one: dict[str, list[dict[str, float]]] = {"pod": [], "job": []}
    for _ in range(options.repeat):  # alternating, so that both run under the same load
        for kind, found in one.items():
            found.append(bench.measure(kind, 1))
    for kind, found in one.items():
        keys = [k for k in (*MARKS, "all terminated") if k in found[0]]
        show(f"one {kind}", {k: statistics.median(f[k] for f in found if k in f) for k in keys})
    for _ in range(2):
        for kind in one:
            show(f"burst of {options.burst} {kind}s", bench.measure(kind, options.burst))


if __name__ == "__main__":
    try:
        main()
    except ApiError as error:
        raise SystemExit(f"the Kubernetes API: {error}") from error
