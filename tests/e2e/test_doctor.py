"""`poiesis doctor` on a cluster: every broken set-up is named, and the repair that it names then works.

The doctor runs in the pod of the chart's `helm test`, with its account and rights. A set-up is broken in the cluster, or by a setting of
that pod, as a wrong value of the chart would.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import pytest
import yaml

from tests.e2e.conftest import CHART, S3_PORT, S3_SECRET, Installation, Json, until

pytestmark = pytest.mark.timeout(600)

POD: Final = "tes-poiesis-doctor"
RUN_S: Final = 240.0
REGISTRY: Final = json.dumps({"auths": {"registry.example.org": {"auth": "eDp5"}}})

Results = dict[str, list[dict[str, str]]]
Break = Callable[["Doctor", ExitStack], Mapping[str, str]]


@dataclass
class Doctor:
    """Runs in the namespace of an installation."""

    service: Installation
    last: Results = field(default_factory=dict)

    def run(self, settings: Mapping[str, str] | None = None, *, trial: bool = True) -> Results:
        """Findings by the name of their check, with further variables in the doctor's pod."""
        objects = self._objects(settings or {}, trial)
        self.service.kubectl(
            "apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
        )
        try:

            def phase() -> bool:
                text = self.service.kubectl("get", f"pod/{POD}", "-o", "jsonpath={.status.phase}")
                return text in ("Succeeded", "Failed")

            until(phase, RUN_S, lambda: self.service.kubectl("describe", f"pod/{POD}"))
            text = self.service.kubectl("logs", POD)
        finally:
            self.service.kubectl("delete", "pod", POD, "--now", "--ignore-not-found")
        self.last = {}
        for result in json.loads(text)["results"]:
            self.last.setdefault(result["name"], []).append(result)
        return self.last

    def _objects(self, settings: Mapping[str, str], trial: bool) -> list[Json]:
        values = json.dumps(self.service.values)
        text = self._helm_template(values)
        made = [o for o in yaml.safe_load_all(text) if o]
        for item in made:
            del item["metadata"]["annotations"]
        pod = next(o for o in made if o["kind"] == "Pod")
        [container] = pod["spec"]["containers"]
        container["args"] += ["--json", *([] if trial else ["--no-trial"])]
        names = {name.removesuffix("_FILE") for name in settings}
        container["env"] = [e for e in container["env"] if e["name"].removesuffix("_FILE") not in names]
        container["env"] += [{"name": name, "value": value} for name, value in settings.items()]
        return made

    def _helm_template(self, values: str) -> str:
        service = self.service
        command = [
            "template",
            service.release,
            str(CHART),
            "-n",
            service.namespace,
            "--kube-version",
            "1.31.0",
            "-f",
            "-",
        ]
        more = os.environ.get("POIESIS_TEST_VALUES")
        command += ["-f", more] if more else []
        command += ["-s", "templates/tests/doctor.yaml"]
        done = subprocess.run(
            [service.cluster.helm_program, *command],
            input=values,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        return done.stdout

    def problem(self, name: str, words: str) -> dict[str, str]:
        """The finding of a check with these words, complete."""
        found = [r for r in self.last[name] if r["status"] in ("error", "warning")]
        matching = [r for r in found if words in r["what"]]
        assert matching, (words, found, self.last)
        assert matching[0]["follows"] and matching[0]["repair"], matching
        return matching[0]

    def assert_no_error(self, *names: str) -> None:
        for name in names:
            assert not [r for r in self.last[name] if r["status"] == "error"], self.last[name]
            assert any(r["status"] == "ok" for r in self.last[name]), self.last[name]


@pytest.fixture(scope="module")
def doctor(poiesis: Installation) -> Iterator[Doctor]:
    made = Doctor(poiesis)
    yield made
    kinds = "serviceaccount,role,rolebinding"
    poiesis.kubectl("delete", kinds, "-l", "app.kubernetes.io/component=doctor", "--ignore-not-found")


def apply(doctor: Doctor, stack: ExitStack, document: Json, *, cluster_wide: bool = False) -> None:
    kind, name = document["kind"], document["metadata"]["name"]
    run = doctor.service.cluster.kubectl if cluster_wide else doctor.service.kubectl
    run("apply", "-f", "-", stdin=json.dumps(document))
    stack.callback(run, "delete", kind, name, "--ignore-not-found")


# ── ways to break it: each returns settings for the doctor's pod ──────────────────────────────────────────────────────


def missing_right(doctor: Doctor, stack: ExitStack) -> Mapping[str, str]:
    name = f"{doctor.service.fullname}-torc"
    role = json.loads(doctor.service.kubectl("get", "role", name, "-o", "json"))
    rules = [{**r, "verbs": [v for v in r["verbs"] if v != "create"]} for r in role["rules"]]
    patch = [{"op": "replace", "path": "/rules", "value": rules}]
    doctor.service.kubectl("patch", "role", name, "--type=json", "-p", json.dumps(patch))
    restored = [{"op": "replace", "path": "/rules", "value": role["rules"]}]
    stack.callback(doctor.service.kubectl, "patch", "role", name, "--type=json", "-p", json.dumps(restored))
    return {}


def quota(doctor: Doctor, stack: ExitStack) -> Mapping[str, str]:
    spec = {"hard": {"requests.storage": "1Mi"}}
    apply(doctor, stack, {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "small"}, "spec": spec})
    return {}


def limit_range(doctor: Doctor, stack: ExitStack) -> Mapping[str, str]:
    spec = {"limits": [{"type": "Container", "max": {"memory": "900Mi"}}]}
    apply(doctor, stack, {"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "small"}, "spec": spec})
    return {}


def pod_security(doctor: Doctor, stack: ExitStack) -> Mapping[str, str]:
    label = "pod-security.kubernetes.io/enforce"
    namespace = doctor.service.namespace
    doctor.service.cluster.kubectl("label", "--overwrite", "namespace", namespace, f"{label}=restricted")
    stack.callback(doctor.service.cluster.kubectl, "label", "namespace", namespace, f"{label}-")
    return {}


def wrong_pull_secret(doctor: Doctor, stack: ExitStack) -> Mapping[str, str]:
    opaque = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "registry"}, "stringData": {"password": "x"}}
    apply(doctor, stack, opaque)
    return {"POIESIS_KUBERNETES__PULL_SECRETS": "registry"}


def wrong_s3_keys(doctor: Doctor, stack: ExitStack) -> Mapping[str, str]:
    wrong = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s3-wrong"}}
    apply(
        doctor, stack, {**wrong, "stringData": {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "wr0ng-secret"}}
    )
    return {"POIESIS_KUBERNETES__FILER_ENV_SECRETS": "s3-wrong"}


def no_policy(doctor: Doctor, stack: ExitStack) -> Mapping[str, str]:
    name = f"{doctor.service.fullname}-tasks"
    policy = json.loads(doctor.service.kubectl("get", "networkpolicy", name, "-o", "json"))
    for key in ("resourceVersion", "uid", "creationTimestamp", "managedFields", "generation"):
        policy["metadata"].pop(key, None)
    doctor.service.kubectl("delete", "networkpolicy", name)
    stack.callback(doctor.service.kubectl, "apply", "-f", "-", stdin=json.dumps(policy))
    return {}


def stopped(component: str) -> Break:
    def stop(doctor: Doctor, stack: ExitStack) -> Mapping[str, str]:
        deployment = f"deployment/{doctor.service.fullname}-{component}"

        def scale(replicas: int) -> None:
            doctor.service.kubectl("scale", deployment, f"--replicas={replicas}")
            if replicas:
                doctor.service.kubectl("rollout", "status", deployment, "--timeout=120s", timeout_s=130)
            else:
                gone = lambda: not doctor.service.get("pods", "-l", f"app.kubernetes.io/component={component}")  # noqa: E731
                until(gone, 60, doctor.service.story)

        scale(0)
        stack.callback(scale, 1)
        return {}

    return stop


def setting(name: str, value: str) -> Break:
    return lambda doctor, stack: {f"POIESIS_{name}": value}


NOWHERE: Final = "tes-poiesis-nowhere"
CASES: Final[dict[str, tuple[Break, str, str, bool]]] = {
    # the break, the check that names it, words of what it says, whether that needs the trial
    "a right is missing in a Role": (missing_right, "rights-torc", "may not: create persistentvolumeclaims", False),
    "the password of Redis is wrong": (
        setting("REDIS_URI", "redis://:wr0ng-secret@tes-poiesis-redis:6379/0"),
        "redis",
        "refuses the user name or password",
        False,
    ),
    "the address of MongoDB is wrong": (
        setting("MONGO_URI", f"mongodb://tes:wr0ng-secret@{NOWHERE}:27017"),
        "store",
        f"MongoDB at {NOWHERE}:27017 does not respond",
        False,
    ),
    "the quota is too small": (quota, "admission", "exceeded quota", False),
    "a LimitRange permits less memory than filers ask for": (
        limit_range,
        "admission",
        "maximum memory usage per Container",
        False,
    ),
    "Pod Security is too strict": (pod_security, "namespace", "enforces Pod Security restricted", False),
    "the PriorityClass does not exist": (
        setting("KUBERNETES__DEFAULT_PRIORITY_CLASS", "missing-class"),
        "admission",
        "PriorityClass with name missing-class",
        False,
    ),
    "the RuntimeClass does not exist": (
        setting("KUBERNETES__ON_DEMAND__RUNTIME_CLASS", "missing-class"),
        "admission",
        'RuntimeClass "missing-class" not found',
        False,
    ),
    "the service account of tasks does not exist": (
        setting("KUBERNETES__SERVICE_ACCOUNT", "no-such-account"),
        "admission",
        "no-such-account",
        False,
    ),
    "the claim of the cache does not exist": (
        setting("KUBERNETES__CACHE_VOLUME__CLAIM", "no-such-claim"),
        "objects",
        "no persistentvolumeclaim no-such-claim",
        False,
    ),
    "no NetworkPolicy": (no_policy, "network-policy", "restricts connections", False),
    "the monitor does not run": (stopped("monitor"), "monitor", "no monitor leads", False),
    "a worker does not run": (stopped("tif"), "workers", "no worker answers of: tif", False),
    "the StorageClass does not exist": (
        setting("KUBERNETES__STORAGE_CLASS", "no-such-class"),
        "trial",
        'storageclass.storage.k8s.io "no-such-class" not found',
        True,
    ),
    "the pull Secret does not exist": (
        setting("KUBERNETES__PULL_SECRETS", "no-such-secret"),
        "trial",
        "no Secret no-such-secret",
        True,
    ),
    "the pull Secret has another type": (wrong_pull_secret, "trial", "not one of an image registry", True),
    "the Secret of a binding does not exist": (
        setting("KUBERNETES__BINDINGS", '{"ada": {"secret": "s3-ada"}}'),
        "trial",
        "no Secret s3-ada",
        True,
    ),
    "the filers' Secret does not exist": (
        setting("KUBERNETES__FILER_ENV_SECRETS", "no-such-secret"),
        "trial",
        'secret "no-such-secret" not found',
        True,
    ),
    "the keys of S3 are wrong": (wrong_s3_keys, "trial", "wrong secret key", True),
    "the image cannot be pulled": (
        setting("KUBERNETES__IMAGE", "localhost/poiesis:no-such-tag"),
        "trial",
        "does not start: ",
        True,
    ),
    "the executor's architecture does not exist": (
        setting("KUBERNETES__ON_DEMAND__NODE_SELECTOR", '{"poiesis.test/no-such-label": "x"}'),
        "trial",
        "no node took the trial pod",
        True,
    ),
}


@contextmanager
def broken(doctor: Doctor, name: str) -> Iterator[Mapping[str, str]]:
    with ExitStack() as stack:
        yield CASES[name][0](doctor, stack)


@pytest.mark.addon
@pytest.mark.parametrize("name", CASES)
def test_a_broken_set_up_is_named_and_the_repair_works(doctor: Doctor, name: str) -> None:
    _, check, words, trial = CASES[name]
    with broken(doctor, name) as settings:
        doctor.run(settings, trial=trial)
        found = doctor.problem(check, words)
        print(f"{found['what']}\n  so: {found['follows']}\n  repair: {found['repair']}")
    assert "wr0ng-secret" not in json.dumps(doctor.last)
    if trial:
        return  # `test_a_site_without_faults` shows that the trial then works
    is_there = {"monitor", "workers"}  # they need a moment after the repair
    if check in is_there:
        until(
            lambda: not [r for r in doctor.run(trial=False)[check] if r["status"] == "error"], 90, doctor.service.story
        )
    else:
        doctor.run(trial=False)
    doctor.assert_no_error(check)


def test_a_site_without_faults_has_no_error_and_nothing_is_left(doctor: Doctor) -> None:
    before = doctor.service.left()
    service = doctor.service
    main = {"main": {"url": f"http://s3.{service.namespace}.svc:{S3_PORT}", "buckets": [service.s3.bucket]}}
    doctor.run({"POIESIS_FILER__S3": json.dumps(main)})  # of the other endpoints one is denied, and one has no bucket
    errors = {name: r for name, found in doctor.last.items() for r in found if r["status"] == "error"}
    assert not errors
    assert any("pokes arrive at the monitor" in r["what"] for r in doctor.last["trial"]), doctor.last["trial"]
    assert any("main: http://s3." in r["what"] for r in doctor.last["trial"]), doctor.last["trial"]
    made = [n for n in doctor.service.left() if n not in before and "doctor" not in n and "launcher" not in n]
    assert made == []


def test_a_pull_secret_that_was_created_is_accepted(doctor: Doctor) -> None:
    """The repair of `the pull Secret does not exist`."""
    name = f"registry-{secrets.token_hex(3)}"
    document: dict[str, Any] = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}}
    document |= {"type": "kubernetes.io/dockerconfigjson", "stringData": {".dockerconfigjson": REGISTRY}}
    with ExitStack() as stack:
        apply(doctor, stack, document)
        doctor.run({"POIESIS_KUBERNETES__PULL_SECRETS": name, "POIESIS_KUBERNETES__FILER_ENV_SECRETS": S3_SECRET})
    assert not [r for r in doctor.last["trial"] if "Secret" in r["what"] and r["status"] == "error"]
    assert [r for r in doctor.last["trial"] if r["what"] == "1 Secrets that the settings name exist"]


def test_what_a_killed_run_left_behind_is_removed(doctor: Doctor) -> None:
    """By age: the label and the time of creation decide, which cannot be set; so only a young one is tried here, which stays."""
    labels = {"poiesis/doctor": "trial", "app.kubernetes.io/instance": doctor.service.release}
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}, "storageClassName": "none"}
    claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "young", "labels": labels}}
    with ExitStack() as stack:
        apply(doctor, stack, {**claim, "spec": spec})
        doctor.run()
        assert doctor.service.kubectl("get", "pvc", "young", "-o", "name").strip()


def test_helm_test_passes_without_faults_and_cleans_up(installed: Callable[..., Installation]) -> None:
    service = installed(filer={"s3": [], "envSecrets": []})
    output = service.helm("test", service.release, "--timeout", "300s")
    assert POD in output and "Failed" not in output
    assert not service.get("pods,roles,serviceaccounts", "-l", "app.kubernetes.io/component=doctor")
