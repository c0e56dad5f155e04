"""POST to COMPLETE against a bare pod's create to Succeeded, side by side on one cluster, and bursts of tasks against bursts of pods.

    KUBECONFIG=… python -m bench tasks --url http://HOST:PORT --namespace NS [--s3 http://… --bucket B] [--rounds 7] [--burst 30,100]
    … --s3 … --monitors DEPLOYMENT [--series 100]

Rounds alternate pod, task, task with S3, so that a busy machine slows all equally; medians and their ratios are printed. The end of
a pod is seen by watch, that of a task by polling every 10 ms. With `--monitors` the rounds are repeated with one and two replicas of the
monitor, in turn and twice. `--series` runs that many tasks with S3 one after the other and prints their median and 99th percentile.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from kubernetes import client, config, watch
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

IMAGE = "localhost/busybox:1"
TERMINAL = {"COMPLETE", "EXECUTOR_ERROR", "SYSTEM_ERROR", "CANCELED", "PREEMPTED"}
DEADLINE_S = 3600


class Tes:
    """A client that keeps one connection for each thread."""

    def __init__(self, url: str) -> None:
        self._netloc = urlsplit(url).netloc
        self._local = threading.local()

    def call(self, method: str, path: str, body: Any = None) -> Any:
        for attempt in (1, 2):
            connection = getattr(self._local, "connection", None)
            if connection is None:
                connection = self._local.connection = http.client.HTTPConnection(self._netloc, timeout=30)
            try:
                data = None if body is None else json.dumps(body)
                connection.request(method, "/ga4gh/tes/v1" + path, data, {"Content-Type": "application/json"})
                answer = connection.getresponse()
                document = json.loads(answer.read())
            except (OSError, http.client.HTTPException):
                self._local.connection = None
                if attempt == 2:
                    raise
                continue
            if answer.status != 200:
                raise RuntimeError(f"{method} {path}: {answer.status} {document}")
            return document

    def run(self, task: dict[str, Any]) -> float:
        """Seconds from POST to COMPLETE."""
        begin = time.monotonic()
        task_id = self.call("POST", "/tasks", task)["id"]
        while True:
            state = self.call("GET", f"/tasks/{task_id}")["state"]
            if state in TERMINAL:
                break
            if time.monotonic() - begin > DEADLINE_S:
                raise RuntimeError(f"task {task_id} is still {state} after {DEADLINE_S} s")
            time.sleep(0.01)
        seconds = time.monotonic() - begin
        if state != "COMPLETE":
            raise RuntimeError(json.dumps(self.call("GET", f"/tasks/{task_id}?view=FULL")["logs"], indent=1))
        return seconds

    def burst(self, tasks: list[dict[str, Any]]) -> float:
        """Seconds from the first POST to the end_time of the last one; posted by 8 threads, polled rarely."""
        tag = f"burst-{time.monotonic()}"
        begin, deadline = time.time(), time.monotonic() + DEADLINE_S
        with ThreadPoolExecutor(8) as pool:
            ids = list(pool.map(lambda t: self.call("POST", "/tasks", {**t, "tags": {"burst": tag}})["id"], tasks))
        last = begin
        for task_id in ids:
            while (found := self.call("GET", f"/tasks/{task_id}"))["state"] not in TERMINAL:
                if time.monotonic() > deadline:
                    raise RuntimeError(f"task {task_id} has not ended after {DEADLINE_S} s")
                time.sleep(0.5)
            if found["state"] != "COMPLETE":
                raise RuntimeError(f"task {task_id} ended as {found['state']}")
            end = self.call("GET", f"/tasks/{task_id}?view=BASIC")["logs"][0]["end_time"]
            last = max(last, datetime.fromisoformat(end).timestamp())
        return last - begin


class Pods:
    """Bare pods that run `true`, with a label for each burst."""

    def __init__(self, namespace: str) -> None:
        self._core = client.CoreV1Api()
        self._namespace = namespace
        self._count = 0

    def burst(self, count: int) -> float:
        """Seconds from the first create until all are Succeeded, by watch."""
        self._count += 1
        label = f"bench-{os.getpid()}-{self._count}"
        left = {f"{label}-{i}" for i in range(count)}
        begin = time.monotonic()
        with ThreadPoolExecutor(8) as pool:
            made = pool.map(lambda name: self._create(name, label), sorted(left))
            while left and time.monotonic() - begin < DEADLINE_S:
                try:
                    self._watch(label, left)
                except (OSError, HTTPError, ApiException):  # an API server under such load closes watches
                    time.sleep(1)
            seconds = time.monotonic() - begin
            list(made)
        self._core.delete_collection_namespaced_pod(
            self._namespace, label_selector=f"bench={label}", grace_period_seconds=0
        )
        self._gone(label)
        if left:
            raise RuntimeError(f"{len(left)} bare pods have not ended")
        return seconds

    def _watch(self, label: str, left: set[str]) -> None:
        """Take out of `left` what has succeeded or does, until nothing is left or the watch ends."""
        found = self._core.list_namespaced_pod(self._namespace, label_selector=f"bench={label}")
        left -= {pod.metadata.name for pod in found.items if pod.status.phase == "Succeeded"}
        if not left:
            return
        stream = watch.Watch()
        events = stream.stream(
            self._core.list_namespaced_pod,
            self._namespace,
            label_selector=f"bench={label}",
            resource_version=found.metadata.resource_version,
            timeout_seconds=300,
        )
        for event in events:
            if event["object"].status.phase == "Succeeded":
                left.discard(event["object"].metadata.name)
            if not left:
                stream.stop()

    def _create(self, name: str, label: str) -> None:
        container = {"name": "main", "image": IMAGE, "command": ["true"]}
        spec = {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "containers": [container],
        }
        self._core.create_namespaced_pod(
            self._namespace, {"metadata": {"name": name, "labels": {"bench": label}}, "spec": spec}
        )

    def _gone(self, label: str) -> None:
        self.wait_empty(f"bench={label}")

    def wait_empty(self, selector: str) -> None:
        deadline = time.monotonic() + 600
        while self._core.list_namespaced_pod(self._namespace, label_selector=selector).items:
            if time.monotonic() > deadline:
                raise RuntimeError(f"pods of {selector} do not go away")
            time.sleep(0.1)


def _median(name: str, values: list[float], base: float | None) -> float:
    middle = statistics.median(values)
    ratio = "" if base is None else f"   {middle / base:5.2f} x bare pod"
    print(f"{name:46} median {middle:6.2f} s   min {min(values):6.2f}   max {max(values):6.2f}{ratio}", flush=True)
    return middle


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench tasks", description=__doc__.split("\n")[0])
    parser.add_argument("--url", required=True)
    parser.add_argument("--namespace", required=True, help="for the bare pods; the tasks' own is best")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--burst", default="", help="such as 30,100")
    parser.add_argument("--burst-rounds", type=int, default=1)
    parser.add_argument(
        "--s3", help="S3 endpoint as seen from here; access by AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    )
    parser.add_argument("--bucket", default="bench")
    parser.add_argument("--monitors", help="the monitor's deployment, to compare one replica with two")
    parser.add_argument("--series", type=int, default=0, help="so many tasks with S3 one after the other")
    arguments = parser.parse_args(argv)
    config.load_config()
    tes, pods = Tes(arguments.url), Pods(arguments.namespace)
    nothing = {"name": "bench", "executors": [{"image": IMAGE, "command": ["true"]}]}
    kinds: dict[str, Callable[[], float]] = {
        "bare pod, create to Succeeded": lambda: pods.burst(1),
        "task without files": lambda: tes.run(nothing),
    }
    if arguments.s3:
        copy = _s3_task(arguments.s3, arguments.bucket)
        kinds["task with 1 MB from and to S3"] = lambda: tes.run(copy)
    monitors = Monitors(arguments.namespace, arguments.monitors) if arguments.monitors else None
    for suffix, values in _rounds(kinds, arguments.rounds, monitors).items():
        base = None
        for name, seconds in values.items():
            middle = _median(name + suffix, seconds, base)
            base = base or middle
    if arguments.series and arguments.s3:
        _series(tes, _s3_task(arguments.s3, arguments.bucket), arguments.series)
    for count in [int(n) for n in arguments.burst.split(",") if n]:
        bare, tasks = [], []
        for _ in range(arguments.burst_rounds):
            bare.append(pods.burst(count))
            tasks.append(tes.burst([nothing] * count))
            pods.wait_empty("poiesis/task-id")
        middle = _median(f"{count} bare pods at once", bare, None)
        _median(f"{count} tasks at once", tasks, middle)
    return 0


class Monitors:
    """The replicas of the monitor."""

    def __init__(self, namespace: str, name: str) -> None:
        self._apps = client.AppsV1Api()
        self._namespace = namespace
        self._name = name

    def scale(self, replicas: int) -> None:
        self._apps.patch_namespaced_deployment_scale(self._name, self._namespace, {"spec": {"replicas": replicas}})
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            found = self._apps.read_namespaced_deployment_status(self._name, self._namespace).status
            if (found.replicas, found.ready_replicas) == (replicas, replicas):
                time.sleep(25)  # until a new leader has the Lease, and the Service its endpoints
                return
            time.sleep(0.5)
        raise RuntimeError(f"{self._name} does not have {replicas} ready replicas")


def _rounds(
    kinds: dict[str, Callable[[], float]], rounds: int, monitors: Monitors | None
) -> dict[str, dict[str, list[float]]]:
    """Seconds by suffix and kind."""
    measured: dict[str, dict[str, list[float]]] = {}
    for replicas in (1, 2, 1, 2) if monitors is not None else (0,):
        if monitors is not None:
            monitors.scale(replicas)
        suffix = {0: "", 1: ", 1 monitor", 2: ", 2 monitors"}[replicas]
        values = measured.setdefault(suffix, {name: [] for name in kinds})
        for round_ in range(-1, rounds):  # one to warm up
            for name, measure in kinds.items():
                seconds = measure()
                if round_ >= 0:
                    values[name].append(seconds)
    return measured


def _series(tes: Tes, task: dict[str, Any], count: int) -> None:
    seconds = sorted(tes.run(task) for _ in range(count))
    middle, late = statistics.median(seconds), seconds[-1 - count // 100]
    print(
        f"{count} tasks with S3 in turn: median {middle:.2f} s   p99 {late:.2f} s ({late / middle:.2f} x)   max {seconds[-1]:.2f} s"
    )


def _s3_task(endpoint: str, bucket: str) -> dict[str, Any]:
    from minio import Minio

    parts = urlsplit(endpoint)
    try:
        user, password = os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]
    except KeyError as missing:
        raise SystemExit(f"--s3 needs the environment variable {missing.args[0]}") from None
    store = Minio(parts.netloc, user, password, secure=parts.scheme == "https")
    if not store.bucket_exists(bucket):
        store.make_bucket(bucket)
    store.put_object(bucket, "in", io.BytesIO(os.urandom(10**6)), 10**6)
    return {
        "name": "bench-s3",
        "inputs": [{"url": f"s3://{bucket}/in", "path": "/data/in"}],
        "outputs": [{"url": f"s3://{bucket}/out", "path": "/data/out"}],
        "executors": [{"image": IMAGE, "command": ["cp", "/data/in", "/data/out"]}],
    }


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
