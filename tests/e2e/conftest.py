"""The chart on a real cluster: that of KUBECONFIG, with the image POIESIS_TEST_IMAGE on its nodes.

`poiesis` is an installation shared by all tests of a session; `installed` creates further ones, for tests that change or remove them.
Each has its own namespace, a store and a broker in the release, and an S3 server. Everything is removed at the end; leftovers of the
release fail the session. Variables:

    KUBECONFIG, POIESIS_TEST_IMAGE       required, else all tests are skipped
    POIESIS_TEST_MONGO_IMAGE             default localhost/mongo:7 (`../shared/cluster/services` builds it); any other is treated as the
                                         official image
    POIESIS_TEST_REDIS_IMAGE             default localhost/redis:7
    POIESIS_TEST_S3_IMAGE                default localhost/s3:4
    POIESIS_TEST_VALUES                  an additional values file for every installation, applied last
    POIESIS_TEST_KEEP                    any value: keep the shared installation
    POIESIS_TEST_INSTALLED               namespace of a kept installation, to use again
    HELM, KUBECTL                        paths of the programs, if not found automatically
"""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import urlsplit

import pytest
import urllib3
from minio import Minio

from tests.e2e.programs import ROOT, find

if TYPE_CHECKING:
    from tests.e2e.site import Site

pytest.register_assert_rewrite("tests.e2e.site")

CHART: Final = ROOT / "helm" / "poiesis"
RELEASE: Final = "tes"
BASE_PATH: Final = "/ga4gh/tes/v1"
CALL_S: Final = 60.0  # of one kubectl
INSTALL_S: Final = 300  # of helm, until all pods are ready
GONE_S: Final = 90.0  # for garbage collection after helm has done its part
POLL_S: Final = 0.5
ENDS: Final = frozenset({"COMPLETE", "EXECUTOR_ERROR", "SYSTEM_ERROR", "CANCELED", "PREEMPTED"})
MONGO_IMAGE: Final = "localhost/mongo:7"
S3_USER, S3_PASSWORD = "test", "testtest"
S3_PORT: Final = 8333
S3_SECRET: Final = "s3-credentials"
PART: Final = "poiesis.test/part"
OURS: Final = {PART: "s3"}
"""Label of what the tests put into the namespace beside the release."""
EVERYBODYS: Final = {("configmaps", "kube-root-ca.crt"), ("serviceaccounts", "default")}
UNTOLD: Final = frozenset(
    {"events", "events.events.k8s.io", "pods.metrics.k8s.io", "localsubjectaccessreviews.authorization.k8s.io"}
)

Json = dict[str, Any]
T = TypeVar("T")


class Failed(AssertionError):
    """kubectl or helm failed; the message has its output."""


@dataclass(frozen=True)
class Cluster:
    """kubectl and helm for one kubeconfig."""

    kubectl_program: str
    helm_program: str
    kubeconfig: str

    def kubectl(self, *arguments: str, stdin: str | None = None, check: bool = True, timeout_s: float = CALL_S) -> str:
        return self._run([self.kubectl_program, *arguments], stdin, check, timeout_s)

    def helm(self, *arguments: str, check: bool = True, timeout_s: float = INSTALL_S + 60) -> str:
        return self._run([self.helm_program, *arguments], None, check, timeout_s)

    def environment(self) -> dict[str, str]:
        return {**os.environ, "KUBECONFIG": self.kubeconfig}

    def _run(self, command: Sequence[str], stdin: str | None, check: bool, timeout_s: float) -> str:
        done = subprocess.run(
            command, input=stdin, capture_output=True, text=True, timeout=timeout_s, check=False, env=self.environment()
        )
        if check and done.returncode != 0:
            words = " ".join([Path(command[0]).name, *command[1:]])
            raise Failed(f"{words} ended with {done.returncode}:\n{done.stderr}\n{done.stdout[-2000:]}")
        return done.stdout


class ServiceAddress:
    """An address for a Service from outside the cluster: its cluster IP if reachable, else a port-forward, restarted when it has ended
    (with its pod)."""

    def __init__(self, cluster: Cluster, namespace: str, service: str, port: int) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._target = (service, port)
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        found = cluster.kubectl("-n", namespace, "get", "service", service, "-o", "jsonpath={.spec.clusterIP}").strip()
        host = f"[{found}]" if ":" in found else found
        self._direct = f"http://{host}:{port}" if _answers(found, port) else None
        self._forwarded: str | None = None

    @property
    def url(self) -> str:
        """With scheme and port, without a path."""
        if self._direct is not None:
            return self._direct
        with self._lock:
            if self._process is None or self._process.poll() is not None or self._forwarded is None:
                self._close()
                self._forwarded = self._forward()
            return self._forwarded

    def close(self) -> None:
        with self._lock:
            self._close()

    def _forward(self) -> str:
        service, port = self._target
        command = [
            self._cluster.kubectl_program,
            "-n",
            self._namespace,
            "port-forward",
            f"service/{service}",
            f":{port}",
        ]
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=self._cluster.environment()
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        match = re.search(r"127\.0\.0\.1:(\d+)", line)
        if match is None:
            raise Failed(f"{' '.join(command)}: {line}")
        threading.Thread(target=_drain, args=(self._process.stdout,), daemon=True).start()
        return f"http://127.0.0.1:{match[1]}"

    def _close(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)
            self._process = None


def _drain(stream: Any) -> None:
    with stream:
        for _ in stream:
            pass


def _answers(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=2):
            return True
    except OSError:
        return False


@dataclass(frozen=True)
class S3:
    """The S3 server of an installation, and a bucket of it. `endpoint` is its address in the cluster, for tasks."""

    endpoint: str
    bucket: str
    _door: ServiceAddress
    access_key: str = S3_USER
    secret_key: str = S3_PASSWORD

    def client(self) -> Minio:
        """From here."""
        pool = urllib3.PoolManager(timeout=urllib3.Timeout(connect=5, read=60), retries=urllib3.Retry(2))
        place = urlsplit(self._door.url).netloc
        return Minio(
            place,
            access_key=self.access_key,
            secret_key=self.secret_key,
            secure=False,
            region="us-east-1",
            http_client=pool,
        )

    def url(self, key: str) -> str:
        return f"s3://{self.bucket}/{key}"


@dataclass
class Installation:
    """A release in its own namespace. `values` are the ones that it was installed with last."""

    cluster: Cluster
    namespace: str
    image: str
    values: Json
    release: str = RELEASE
    notes: str = ""
    chart: Path = CHART
    _api: ServiceAddress | None = None
    _s3: S3 | None = None
    _http: urllib3.PoolManager = field(default_factory=lambda: urllib3.PoolManager(retries=False, maxsize=16))

    @property
    def url(self) -> str:
        """Of the API, without a path."""
        assert self._api is not None, "not installed"
        return self._api.url

    @property
    def s3(self) -> S3:
        assert self._s3 is not None, "not installed"
        return self._s3

    @property
    def fullname(self) -> str:
        """The prefix of the names of the release's objects."""
        return f"{self.release}-poiesis"

    def kubectl(self, *arguments: str, stdin: str | None = None, check: bool = True, timeout_s: float = CALL_S) -> str:
        """In the namespace."""
        return self.cluster.kubectl("-n", self.namespace, *arguments, stdin=stdin, check=check, timeout_s=timeout_s)

    def get(self, *arguments: str) -> list[Json]:
        """Objects as Kubernetes has them: `get("pods", "-l", "a=b")`."""
        found: list[Json] = json.loads(self.kubectl("get", *arguments, "-o", "json"))["items"]
        return found

    def helm(self, *arguments: str, check: bool = True) -> str:
        return self.cluster.helm(*arguments, "-n", self.namespace, check=check)

    def call(self, method: str, path: str, body: Json | None = None, timeout_s: float = 30) -> tuple[int, Any]:
        """One request to the API, below its base path: status and document."""
        answer = self._http.request(
            method,
            f"{self.url}{BASE_PATH}{path}",
            body=None if body is None else json.dumps(body),
            headers={"Content-Type": "application/json"},
            timeout=timeout_s,
        )
        return answer.status, json.loads(answer.data)

    def create(self, task: Json) -> str:
        """Post a task and return its id."""
        status, document = self.call("POST", "/tasks", task)
        assert status == 200, (status, document)
        return str(document["id"])

    def task(self, task_id: str, view: str = "FULL") -> Json:
        status, document = self.call("GET", f"/tasks/{task_id}?view={view}")
        assert status == 200, (status, document)
        found: Json = document
        return found

    def wait(self, task_id: str, states: Sequence[str], timeout_s: float = 120) -> Json:
        """Wait until the task is in one of the states; fail at once if it ends in another."""

        def look() -> Json | None:
            found = self.task(task_id)
            if found["state"] in ENDS and found["state"] not in states:
                raise Failed(f"task {task_id} ended: {json.dumps(found, indent=2)}\n{self.story()}")
            return found if found["state"] in states else None

        return until(
            look, timeout_s, lambda: f"task {task_id} is {json.dumps(self.task(task_id), indent=2)}\n{self.story()}"
        )

    def install(self) -> None:
        self.notes = self._apply("install", self.values)
        self._api = ServiceAddress(self.cluster, self.namespace, f"{self.fullname}-api", 8000)

    def upgrade(self, **changed: Any) -> None:
        """With further values, merged by their top-level names."""
        self.values = _merged(self.values, changed)
        self._apply("upgrade", self.values)

    def uninstall(self) -> None:
        if self._api is not None:
            self._api.close()
            self._api = None
        self.helm("uninstall", self.release, "--wait", "--timeout", f"{INSTALL_S}s", check=False)

    def left(self) -> list[str]:
        """Everything in the namespace, of any kind, that is neither in every namespace nor created by the tests."""
        kinds = self.cluster.kubectl("api-resources", "--verbs=list", "--namespaced", "-o", "name").split()
        found = []
        for kind in sorted(set(kinds) - UNTOLD):
            for item in self.get(kind):
                metadata = item["metadata"]
                if (kind, metadata["name"]) in EVERYBODYS or self._is_of_tests(kind, metadata):
                    continue
                found.append(f"{kind}/{metadata['name']}")
        return found

    def assert_nothing_left(self) -> None:
        seen: list[str] = []

        def look() -> bool:
            seen[:] = self.left()
            return not seen

        until(look, GONE_S, lambda: f"left behind in {self.namespace}: {', '.join(seen)}\n{self.story()}")

    def story(self) -> str:
        """The state of the installation, for failure messages."""
        parts = [
            self.kubectl("get", "pods,persistentvolumeclaims", "-o", "wide", check=False),
            self.kubectl("get", "events", "--sort-by=.lastTimestamp", check=False)[-4000:],
        ]
        for component in ("api", "torc", "tif", "texam", "tof", "monitor", "mongodb", "redis"):
            selector = f"app.kubernetes.io/instance={self.release},app.kubernetes.io/component={component}"
            output = self.kubectl("logs", "-l", selector, "--tail=15", "--all-containers", check=False)
            parts.append(f"── {component}\n{output[-3000:]}")
        return "\n".join(parts)

    def _apply(self, verb: str, values: Json) -> str:
        command = [verb, self.release, str(self.chart), "--wait", "--timeout", f"{INSTALL_S}s", "-f", "-"]
        extra = os.environ.get("POIESIS_TEST_VALUES")
        command += ["-f", extra] if extra else []
        done = subprocess.run(
            [self.cluster.helm_program, *command, "-n", self.namespace],
            input=json.dumps(values),
            capture_output=True,
            text=True,
            timeout=INSTALL_S + 60,
            check=False,
            env=self.cluster.environment(),
        )
        if done.returncode != 0:
            raise Failed(f"helm {verb} failed:\n{done.stderr}\n{self.story()}")
        return done.stdout

    def _is_of_tests(self, kind: str, metadata: Json) -> bool:
        of_s3 = metadata["name"] == "s3" or metadata["name"].startswith("s3-")
        return (of_s3 and kind.startswith("endpoint")) or PART in (metadata.get("labels") or {})


def until(look: Callable[[], T | None], timeout_s: float, story: Callable[[], str]) -> T:
    """Return the first true result of `look`; fail with `story` after the deadline."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > deadline:
            raise Failed(f"not within {timeout_s:g} s: {story()}")
        time.sleep(POLL_S)


def _merged(values: Mapping[str, Any], changed: Mapping[str, Any]) -> Json:
    found = dict(values)
    for key, value in changed.items():
        old = found.get(key)
        found[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return found


# ── what is installed ─────────────────────────────────────────────────────────────────────────────────────────────────


def values_for(image: str, namespace: str) -> Json:
    """A small service: one pod of each role, store and broker in the release, S3 beside it."""
    repository, _, digest = image.partition("@")
    tag = ""
    if not digest and ":" in repository.rpartition("/")[2]:
        repository, _, tag = repository.rpartition(":")
    mongo = os.environ.get("POIESIS_TEST_MONGO_IMAGE", MONGO_IMAGE)
    mongodb: Json = {"bundled": True, "image": mongo, "persistence": {"size": "1Gi"}}
    if mongo == MONGO_IMAGE:  # not MongoDB itself: other arguments, another directory, no users
        mongodb |= {"args": [], "auth": {"enabled": False}}
        mongodb["persistence"] |= {"mountPath": "/data"}
    # two installations fit on a small node, with room for tasks
    small = {"resources": {"requests": {"cpu": "10m"}}}
    return {
        "image": {"repository": repository, "tag": tag or "latest", "digest": digest},
        "api": {"replicas": 1, "auth": {"allowAnonymous": True}, **small},
        "monitor": {"replicas": 1, **small},
        **dict.fromkeys(("torc", "tif", "texam", "tof"), small),
        "mongodb": mongodb | small,
        "redis": {"bundled": True, "image": os.environ.get("POIESIS_TEST_REDIS_IMAGE", "localhost/redis:7"), **small},
        "filer": {
            "envSecrets": [S3_SECRET],
            "allowUnencryptedCredentials": True,  # otherwise every upload to this S3 would have its own pod
            "s3": [
                {"name": "main", "url": f"http://s3.{namespace}.svc:{S3_PORT}"},
                # the same server through a Service that a test may cut off
                {"name": "away", "url": f"http://s3-away.{namespace}.svc:{S3_PORT}", "buckets": ["cut-off"]},
                # and without credentials
                {
                    "name": "anonymous",
                    "url": f"http://s3.{namespace}.svc:{S3_PORT}",
                    "buckets": ["denied"],
                    "anonymous": True,
                },
            ],
            "allowAddresses": [f"s3-web.{namespace}.svc"],
        },
        "settings": {"POIESIS_POLICY__IMAGE_DEADLINE": "10s", "POIESIS_POLICY__GRACE": "3s"},
        "tasks": {
            "networkPolicy": {
                "extraEgress": [{"to": [{"podSelector": {"matchExpressions": [{"key": PART, "operator": "Exists"}]}}]}]
            }
        },
    }


def s3_objects() -> Json:
    """SeaweedFS in one pod. Room for many small buckets: each is a collection with its own volumes."""
    image = os.environ.get("POIESIS_TEST_S3_IMAGE", "localhost/s3:4")
    command = [
        "weed",
        "server",
        "-dir=/data",
        "-ip.bind=0.0.0.0",
        "-s3",
        f"-s3.port={S3_PORT}",
        "-s3.config=/etc/s3.json",
    ]
    command += ["-master.volumeSizeLimitMB=128", "-volume.max=200"]
    container = {
        "name": "s3",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": command,
        "ports": [{"name": "s3", "containerPort": S3_PORT}],
        "readinessProbe": {"httpGet": {"path": "/status", "port": "s3"}, "periodSeconds": 1, "failureThreshold": 120},
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
    }
    pod = {"containers": [container], "volumes": [{"name": "data", "emptyDir": {}}], "enableServiceLinks": False}
    pod["terminationGracePeriodSeconds"] = 1  # its data goes with it
    metadata = {"name": "s3", "labels": OURS}
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata,
        "spec": {"selector": {"matchLabels": OURS}, "template": {"metadata": {"labels": OURS}, "spec": pod}},
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {"selector": OURS, "ports": [{"name": "s3", "port": S3_PORT, "targetPort": "s3"}]},
    }
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": S3_SECRET, "labels": OURS},
        "stringData": {"AWS_ACCESS_KEY_ID": S3_USER, "AWS_SECRET_ACCESS_KEY": S3_PASSWORD},
    }
    return {"apiVersion": "v1", "kind": "List", "items": [deployment, service, secret]}


@contextmanager
def installation(
    cluster: Cluster,
    image: str,
    *,
    keep: bool = False,
    before: Callable[[Installation], object] = lambda _: None,
    chart: Path = CHART,
    **values: Any,
) -> Iterator[Installation]:
    """In a new namespace, which is removed afterwards. `before` creates what the release needs there."""
    namespace = f"poiesis-e2e-{secrets.token_hex(3)}"
    made = Installation(cluster, namespace, image, _merged(values_for(image, namespace), values), chart=chart)
    with ExitStack() as stack:
        cluster.kubectl("create", "namespace", namespace)
        if not keep:
            stack.callback(_remove_namespace, cluster, namespace)
        made.kubectl("apply", "-f", "-", stdin=json.dumps(s3_objects()))
        before(made)
        try:
            made.install()
            made.kubectl("rollout", "status", "deployment/s3", "--timeout=180s", timeout_s=200)
            door = ServiceAddress(cluster, namespace, "s3", S3_PORT)
            stack.callback(door.close)
            made._s3 = S3(f"http://s3.{namespace}.svc:{S3_PORT}", "tasks", door)
            _make_bucket(made)
            yield made
        finally:
            if not keep:
                made.uninstall()
        if not keep:
            made.assert_nothing_left()


def _make_bucket(made: Installation) -> None:
    client = made.s3.client()

    def look() -> bool:
        try:
            if not client.bucket_exists(made.s3.bucket):
                client.make_bucket(made.s3.bucket)
        except Exception:  # any error while the server is not ready yet
            return False
        return True

    until(look, 60, made.story)


def _remove_namespace(cluster: Cluster, namespace: str) -> None:
    cluster.kubectl("delete", "namespace", namespace, "--wait", "--timeout=120s", check=False, timeout_s=130)

    def look() -> bool:
        volumes = json.loads(cluster.kubectl("get", "persistentvolumes", "-o", "json"))["items"]
        return all((v["spec"].get("claimRef") or {}).get("namespace") != namespace for v in volumes)

    until(look, GONE_S, lambda: f"volumes of {namespace} are still there")


# ── fixtures ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="session")
def cluster() -> Cluster:
    kubeconfig = os.environ.get("KUBECONFIG")
    if not kubeconfig:
        pytest.skip("KUBECONFIG is not set")
    programs = {name: find(name) for name in ("kubectl", "helm")}
    for name, program in programs.items():
        if program is None:
            pytest.skip(f"no {name} in PATH or beside KUBECONFIG; set {name.upper()} to another")
    found = Cluster(str(programs["kubectl"]), str(programs["helm"]), kubeconfig)
    try:
        found.kubectl("get", "--raw", "/readyz", "--request-timeout=10s", timeout_s=20)
    except (Failed, subprocess.TimeoutExpired) as error:
        pytest.skip(f"the cluster of KUBECONFIG does not respond: {error}")
    return found


@pytest.fixture(scope="session")
def image() -> str:
    """The image under test; it has to be on the nodes, or where they can pull it."""
    found = os.environ.get("POIESIS_TEST_IMAGE")
    if not found:
        pytest.skip("POIESIS_TEST_IMAGE is not set")
    return found


@pytest.fixture(scope="session")
def poiesis(cluster: Cluster, image: str) -> Iterator[Installation]:
    """The installation that all tests share, ready; `.url`, `.kubectl(…)`, `.s3`, `.call(…)`, `.create(…)`, `.wait(…)`."""
    if namespace := os.environ.get("POIESIS_TEST_INSTALLED"):
        made = Installation(cluster, namespace, image, values_for(image, namespace))
        made._api = ServiceAddress(cluster, namespace, f"{made.fullname}-api", 8000)
        door = ServiceAddress(cluster, namespace, "s3", S3_PORT)
        made._s3 = S3(f"http://s3.{namespace}.svc:{S3_PORT}", "tasks", door)
        yield made
        return
    with installation(cluster, image, keep=bool(os.environ.get("POIESIS_TEST_KEEP"))) as made:
        yield made


@pytest.fixture
def installed(cluster: Cluster, image: str) -> Iterator[Callable[..., Installation]]:
    """`installed(api={…})`: an installation only for this test, with its own values."""
    with ExitStack() as stack:
        yield lambda **values: stack.enter_context(installation(cluster, image, **values))


@pytest.fixture(scope="session")
def site(poiesis: Installation) -> Iterator[Site]:
    """The shared installation from a user's point of view."""
    from tests.e2e.site import site_of  # which imports this module

    with site_of(poiesis) as made:
        yield made


@pytest.fixture(scope="module")
def tasks_posted(request: pytest.FixtureRequest, site: Site) -> Iterator[Mapping[str, str]]:
    """All tasks of this module's tests (`@posted`), running side by side; when its tests are over, nothing of any task may be left."""
    from tests.e2e.site import assert_nothing_left, post_all

    yield post_all(site, [i for i in request.session.items if getattr(i, "module", None) is request.module])
    assert_nothing_left(site)


@pytest.fixture
def task(request: pytest.FixtureRequest, tasks_posted: Mapping[str, str]) -> str:
    """Id of the task that this test is about."""
    return tasks_posted[request.node.nodeid]
