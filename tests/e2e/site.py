"""Shared by the tests of tasks: posting many of them at once, servers for their inputs, and a record of every pod of a task.

`@posted` declares the task of a test. All tasks of a module's selected tests are posted when its first test begins, so that they run in
parallel and a test only waits for its own; the fixture `task` is that task's id.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import pytest
import urllib3
from minio.error import S3Error

from tests.e2e.conftest import PART, S3_PORT, Failed, Installation, Json, ServiceAddress, until

BUSYBOX: Final = os.environ.get("POIESIS_TEST_EXECUTOR_IMAGE", "localhost/busybox:1")
NOSHELL: Final = os.environ.get("POIESIS_TEST_NOSHELL_IMAGE", "localhost/noshell:1")
TERMINAL: Final = ("COMPLETE", "EXECUTOR_ERROR", "SYSTEM_ERROR", "CANCELED", "PREEMPTED")
TASK_LABEL: Final = "poiesis/task-id"
KINDS: Final = "pods,jobs,persistentvolumeclaims,secrets,configmaps"
ENDS_S: Final = 240.0  # for a task among all others of its module on a small, busy cluster
WEB_PORT: Final = 8080

WEB_SERVER: Final = r"""
import collections, http.server, threading, time
asked, lock = collections.Counter(), threading.Lock()
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        kind, _, rest = self.path.strip("/").partition("/")
        with lock:
            asked[self.path] += self.command == "GET"
        if kind == "text":
            return self.respond(200, rest.encode())
        if kind == "status":
            return self.respond(int(rest), b"no\n")
        if kind == "later" and asked[self.path] <= 2:      # two failures, then the file
            return self.respond(503, b"not yet\n")
        if kind == "later":
            return self.respond(200, b"at last\n")
        if kind == "count":                                 # how often this was asked for, this time included
            return self.respond(200, b"%d\n" % asked[self.path])
        if kind == "asked":                                 # how often another path was fetched
            return self.respond(200, b"%d\n" % asked["/" + rest])
        if kind == "large":                                 # so many bytes of a version, slowly enough that others ask meanwhile
            size = int(rest.partition("/")[0])
            if self.command == "GET":
                time.sleep(2)
            return self.respond(200, bytes(size), {"ETag": '"%s"' % rest})
        if kind == "secret":
            given = self.headers.get("Authorization", "")
            return self.respond(200 if given.startswith("Basic ") else 401, b"shown\n")
        if kind == "slow":                                  # a byte a second, for ten minutes
            self.send_response(200)
            self.send_header("Content-Length", "600")
            self.end_headers()
            for _ in range(600):
                self.wfile.write(b".")
                self.wfile.flush()
                time.sleep(1)
            return None
        return self.respond(404, b"nothing here\n")
    do_HEAD = do_GET
    def respond(self, status, body, headers={}):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
    def log_message(self, *_):
        pass
http.server.ThreadingHTTPServer(("", 8080), Handler).serve_forever()
"""

F = TypeVar("F", bound=Callable[..., Any])


def posted(make: Callable[..., Json]) -> Callable[[F], F]:
    """`make(site, **parameters of the test)` is the task of this test."""

    def mark(function: F) -> F:
        function.__dict__["posts"] = make
        return function

    return mark


def shell(script: str, **more: Any) -> Json:
    """An executor that runs a script."""
    return {"image": BUSYBOX, "command": ["sh", "-c", script], **more}


HIJACK: Final = r"""
echo real > /data/result
(echo "127.0.0.1 $STORE" >> /etc/hosts; echo nameserver 127.0.0.1 > /etc/resolv.conf) 2>/dev/null
while true; do nc -l -p $PORT >> /tmp/stolen; done &
echo '{"ok": true}' > /poiesis/control/executor-0.json    # TOF starts while this command still runs
sleep 12
cat /etc/hosts /tmp/stolen
"""


def hijack(site: Site, key: str) -> Json:
    """A task that tries to redirect its own upload to a listener in its pod; its stdout has what the listener received."""
    store = urlsplit(site.service.s3.endpoint)
    environment = {"STORE": str(store.hostname), "PORT": str(store.port)}
    return {
        "inputs": [content("/data/in", "x")],
        "executors": [shell(HIJACK, env=environment)],
        "outputs": [{"path": "/data/result", "url": site.url(key)}],
    }


def assert_not_hijacked(site: Site, found: Json, key: str) -> None:
    log = one_log(found)["logs"][0]
    assert "PUT" not in log["stdout"], log["stdout"]
    assert "Signature" not in log["stdout"], log["stdout"]
    assert site.got(key) == b"real\n"


def content(path: str, text: str) -> Json:
    return {"path": path, "content": text}


@dataclass
class Pods:
    """Every pod of every task in a namespace, as first and as last seen, from a watch."""

    service: Installation
    namespace: str
    first: dict[str, Json] = field(default_factory=dict)
    last: dict[str, Json] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _process: subprocess.Popen[str] | None = None

    @contextmanager
    def followed(self) -> Iterator[Pods]:
        cluster = self.service.cluster
        command = [
            cluster.kubectl_program,
            "-n",
            self.namespace,
            "get",
            "pods",
            "-l",
            TASK_LABEL,
            "--watch",
            "-o",
            "json",
        ]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=cluster.environment())
        thread = threading.Thread(target=self._read, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._process.terminate()
            self._process.wait(10)
            thread.join(10)

    def of(self, task_id: str) -> dict[str, Json]:
        """Pods of the task by name, as last seen."""
        with self._lock:
            return {n: p for n, p in self.last.items() if p["metadata"]["labels"][TASK_LABEL] == task_id}

    def all(self) -> list[Json]:
        with self._lock:
            return list(self.first.values())

    def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        decoder, text = json.JSONDecoder(), ""
        with self._process.stdout as stream:
            for line in stream:
                text += line
                if line.rstrip() != "}":
                    continue
                pod, end = decoder.raw_decode(text)
                text = text[end:].lstrip()
                name = pod["metadata"]["name"]
                with self._lock:
                    self.first.setdefault(name, pod)
                    self.last[name] = pod


@dataclass
class Site:
    """An installation from a user's point of view. `tasks_in`: the namespace of tasks."""

    service: Installation
    pods: Pods
    tasks_in: str
    web: str
    run: str = field(default_factory=lambda: secrets.token_hex(3))

    def url(self, key: str) -> str:
        return self.service.s3.url(f"{self.run}/{key}")

    def put(self, key: str, data: bytes) -> str:
        """Store an object and return its URL."""
        from io import BytesIO

        self.service.s3.client().put_object(self.service.s3.bucket, f"{self.run}/{key}", BytesIO(data), len(data))
        return self.url(key)

    def got(self, key: str) -> bytes | None:
        """The object; None if it does not exist."""
        try:
            with self.service.s3.client().get_object(self.service.s3.bucket, f"{self.run}/{key}") as answer:
                found: bytes = answer.read()
                return found
        except S3Error as error:
            if error.code == "NoSuchKey":
                return None
            raise

    def keys(self, prefix: str) -> dict[str, int]:
        """Names below the prefix and their sizes."""
        whole = f"{self.run}/{prefix}"
        found = self.service.s3.client().list_objects(self.service.s3.bucket, whole, recursive=True)
        return {str(o.object_name)[len(whole) :]: int(o.size or 0) for o in found if not o.is_dir}

    def post(self, task: Json) -> str:
        return self.service.create(task)

    def wait(self, task_id: str, states: tuple[str, ...], timeout_s: float = ENDS_S) -> Json:
        """Wait until the task is in one of the states; fail at once if it ends in another."""
        found = self.service.wait(task_id, [*states, *TERMINAL], timeout_s)
        assert found["state"] in states, f"{json.dumps(found, indent=2)}\n{self.story()}"
        return found

    def ended(self, task_id: str, timeout_s: float = ENDS_S) -> Json:
        return self.service.wait(task_id, TERMINAL, timeout_s)

    def complete(self, task_id: str) -> Json:
        return self.wait(task_id, ("COMPLETE",))

    def cancel(self, task_id: str) -> None:
        status, document = self.service.call("POST", f"/tasks/{task_id}:cancel")
        assert (status, document) == (200, {})

    def until(self, look: Callable[[], Any], timeout_s: float = 60, story: str = "") -> Any:
        return until(look, timeout_s, lambda: f"{story}\n{self.story()}")

    def kubectl(self, *arguments: str, stdin: str | None = None, check: bool = True) -> str:
        return self.service.cluster.kubectl("-n", self.tasks_in, *arguments, stdin=stdin, check=check)

    def objects(self, task_id: str | None = None) -> list[str]:
        """Names of the cluster's objects of this task, or of all tasks."""
        selector = TASK_LABEL if task_id is None else f"{TASK_LABEL}={task_id}"
        return self.kubectl("get", KINDS, "-l", selector, "-o", "name", "--ignore-not-found").split()

    def assert_gone(self, task_id: str, timeout_s: float = 60) -> None:
        seen: list[str] = []

        def look() -> bool:
            seen[:] = self.objects(task_id)
            return not seen

        self.until(look, timeout_s, f"task {task_id} left something behind: {seen}")

    def pod_of(self, task_id: str, ready: Callable[[Json], Any] = bool, timeout_s: float = 60) -> Json:
        """The task's only pod, as soon as `ready` is true for it."""

        def look() -> Json | None:
            found = list(self.pods.of(task_id).values())
            return found[-1] if found and ready(found[-1]) else None

        pod: Json = self.until(look, timeout_s, f"no such pod of {task_id}")
        return pod

    def counted(self, name: str) -> int:
        """How often `self.web/count/NAME` was requested."""
        return self.fetched(f"count/{name}")

    def fetched(self, path: str) -> int:
        """How often `self.web/PATH` was fetched."""
        door = ServiceAddress(self.service.cluster, self.service.namespace, "s3-web", WEB_PORT)
        try:
            return int(urllib3.request("GET", f"{door.url}/asked/{path}", timeout=10).data)
        finally:
            door.close()

    def set_unreachable(self, yes: bool) -> None:
        """Whether the Service of the bucket `cut-off` has no endpoints."""
        patch = {"spec": {"selector": {PART: "none" if yes else "s3"}}}
        self.service.kubectl("patch", "service", "s3-away", "--type=merge", "-p", json.dumps(patch))

    def story(self) -> str:
        return self.service.story()


def failure(task: Json) -> str | None:
    found: str | None = task["logs"][0]["metadata"].get("failure_reason")
    return found


def why(task: Json) -> str:
    return str(task["logs"][0]["metadata"].get("failure_message", ""))


def codes(task: Json) -> list[int]:
    return [entry["exit_code"] for entry in task["logs"][0]["logs"]]


def one_log(task: Json) -> Json:
    """The task's only log, whatever happened to it."""
    (log,) = task["logs"]
    found: Json = log
    return found


# ── servers beside the service ────────────────────────────────────────────────────────────────────────────────────────


def web_objects(image: str) -> list[Json]:
    """An HTTP server for inputs (with the image under test, which has Python), and a Service without endpoints."""
    labels = {PART: "web"}
    container = {
        "name": "web",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python", "-c", WEB_SERVER],
        "readinessProbe": {"tcpSocket": {"port": WEB_PORT}, "periodSeconds": 1},
    }
    pod = {"containers": [container], "enableServiceLinks": False, "terminationGracePeriodSeconds": 1}
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "s3-web", "labels": labels},
        "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": pod}},
    }
    return [deployment, service_of("s3-web", "web", WEB_PORT), service_of("s3-away", "none", S3_PORT)]


def service_of(name: str, part: str, port: int) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "labels": {PART: "web"}},
        "spec": {"selector": {PART: part}, "ports": [{"port": port, "targetPort": port}]},
    }


@contextmanager
def site_of(service: Installation, tasks_in: str | None = None, *, web: bool = True) -> Iterator[Site]:
    """`web`: with the HTTP server and the Service that can be cut off."""
    if web:
        items = web_objects(service.image)
        service.kubectl("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
        service.kubectl("rollout", "status", "deployment/s3-web", "--timeout=120s", timeout_s=130)
    where = tasks_in or service.namespace
    with Pods(service, where).followed() as pods:
        yield Site(service, pods, where, f"http://s3-web.{service.namespace}.svc:{WEB_PORT}")


def post_all(site: Site, items: list[pytest.Item]) -> Mapping[str, str]:
    """Ids of the tasks that these tests are about, by the test's id."""
    found = {}
    for item in items:
        make = getattr(getattr(item, "function", None), "posts", None)
        if make is not None:
            callspec = getattr(item, "callspec", None)
            found[item.nodeid] = site.post(make(site, **(callspec.params if callspec else {})))
    return found


def assert_nothing_left(site: Site, timeout_s: float = 90) -> None:
    """After the tests of a module: cancel what is still running; then no task may have objects in the cluster."""
    tasks: dict[str, list[str]] = defaultdict(list)
    for name, pod in site.pods.last.items():
        tasks[pod["metadata"]["labels"][TASK_LABEL]].append(name)
    for task_id in tasks:
        status, task = site.service.call("GET", f"/tasks/{task_id}")
        if status == 200 and task["state"] not in TERMINAL:  # the trial pod of `poiesis doctor` has no task
            site.cancel(task_id)
    left: list[str] = []

    def look() -> bool:
        left[:] = site.objects()
        return not left

    try:
        until(look, timeout_s, lambda: "")
    except Failed:
        raise Failed(f"tasks left behind: {', '.join(left)}\n{site.story()}") from None
