"""A trial volume and a trial pod, by the code that makes those of tasks: what no reading of the cluster's objects shows.

The pod has the labels of a task's pods, so that NetworkPolicies select it and the monitor sees it, and one more by which what a killed run
left behind is found. Its filer container runs `inside` with the filers' credentials, its executor runs it as a user's command. They are
deleted at the end; the monitor's sweep would do the same, since no task has that id.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

from poiesis.cluster.kubernetes import labels
from poiesis.cluster.kubernetes.adapter import KubernetesCluster
from poiesis.cluster.kubernetes.client import Client
from poiesis.cluster.kubernetes.errors import ApiError
from poiesis.cluster.kubernetes.objects import volume_name
from poiesis.cluster.kubernetes.pokes import poke_path
from poiesis.cluster.kubernetes.settings import KubernetesSettings
from poiesis.doctor.inside import SECRETS, findings_of
from poiesis.doctor.kubernetes import Api, Json, events_of, refused, targets_of, trial_task
from poiesis.doctor.result import Finding, Findings, error, ok, skipped, warning
from poiesis.domain.errors import PoiesisError
from poiesis.domain.observed import TIF, Container, Phase, Pod, executor_name
from poiesis.domain.plan import Plan
from poiesis.domain.plan import plan as make_plan
from poiesis.domain.states import Stage
from poiesis.domain.task import Task

LABEL: Final = "poiesis/doctor"
TRIAL_S: Final = 120.0  # for scheduling, image, volume, and the checks in the pod
DEADLINE_S: Final = TRIAL_S + 45  # with its removal
GONE_S: Final = 30.0
POD_DEADLINE_S: Final = 240  # after which the kubelet ends a pod that a killed run left behind
LEFT_AFTER_S: Final = 600.0
POLL_S: Final = 1.0
STUCK_S: Final = 15.0  # that long a pod may wait for something before its events are asked for the reason
LOG_S: Final = 10.0
MAX_LOG_BYTES: Final = 1024 * 1024
STARTING: Final = frozenset({None, "ContainerCreating", "PodInitializing"})
FATAL: Final = frozenset(
    {"ErrImageNeverPull", "InvalidImageName", "CreateContainerConfigError", "CreateContainerError"}
)
PULLING: Final = frozenset({"ErrImagePull", "ImagePullBackOff"})
FAIL: Final = "Tasks fail in the same way."
EXECUTOR: Final = executor_name(0)


class _TrialClient(Client):
    """Mounts Secrets in the filer container of the trial's pod, each as a directory that is empty if it does not exist."""

    def __init__(self, settings: KubernetesSettings, secrets: tuple[str, ...]) -> None:
        super().__init__(settings)
        self._secrets = secrets

    def create(self, path: str, body: Mapping[str, Any], *, until: float | None = None) -> Json:
        changed = with_secrets(body, self._secrets) if body.get("kind") == "Pod" else body
        return super().create(path, changed, until=until)


def with_secrets(pod: Mapping[str, Any], names: tuple[str, ...]) -> Json:
    spec: Json = {**pod["spec"], "volumes": [*pod["spec"]["volumes"]]}
    mounts: list[Json] = []
    for i, name in enumerate(names):
        spec["volumes"].append(
            {"name": f"doctor-{i}", "secret": {"secretName": name, "optional": True, "defaultMode": 0o444}}
        )
        mounts.append({"name": f"doctor-{i}", "mountPath": f"{SECRETS}/{name}", "readOnly": True})
    for kind in {"initContainers", "containers"} & spec.keys():
        spec[kind] = [
            {**c, "volumeMounts": [*c["volumeMounts"], *mounts]} if c["name"] == TIF else c for c in spec[kind]
        ]
    return {**pod, "spec": spec}


def check_trial(api: Api) -> Findings:
    """Everything that a task's pod needs, in a pod."""
    _remove_left(api)
    trial = _Trial(api)
    try:
        if (failure := trial.start()) is not None:
            yield failure
        else:
            yield from trial.follow()
    finally:
        trial.close()


def _remove_left(api: Api) -> None:
    """What a run that was killed has left behind."""
    selector = f"{LABEL},{labels.INSTANCE}={api.settings.instance}"
    for kind in ("pods", "persistentvolumeclaims"):
        try:
            items = api.client.get(f"{api.core}/{kind}", {"labelSelector": selector}).get("items") or []
            for metadata in (item["metadata"] for item in items):
                made = datetime.fromisoformat(metadata["creationTimestamp"])
                if (datetime.now(UTC) - made).total_seconds() > LEFT_AFTER_S:
                    api.client.delete(f"{api.core}/{kind}/{metadata['name']}", {"propagationPolicy": "Background"})
        except ApiError:
            return  # what is wrong shows when the trial is created


class _Trial:
    """Raises on construction: ConfigurationError."""

    def __init__(self, api: Api) -> None:
        self._api = api
        given = api.settings
        pull, bound = [*given.pull_secrets, *given.image_pull_secrets], []
        for binding in given.bindings.values():
            pull += binding.pull_secrets or ()
            bound += [binding.secret] if binding.secret else []
        pull = list(dict.fromkeys(pull))
        options = [word for name in pull for word in ("--pull", name)]
        self._settings = replace(
            given,
            bindings={},
            labels={**given.labels, LABEL: "trial"},
            filer_command=("python", "-m", "poiesis.doctor.inside", *options),
            extra_pod_spec={**given.extra_pod_spec, "activeDeadlineSeconds": POD_DEADLINE_S},
        )
        self._policy = replace(api.site.settings.policy, layout="single", tail_bytes=64 * 1024)
        self._cluster = KubernetesCluster(
            self._settings,
            self._policy,
            api.site.filer.to_json(),
            client=_TrialClient(self._settings, tuple(dict.fromkeys([*pull, *bound]))),
        )
        task = trial_task(given.image, ())
        poke = None
        if given.poke_address is not None:
            poke = given.poke_address + poke_path(task)
        targets = json.dumps({"closed": resolved(targets_of(api)), "poke": poke})
        command = ("python", "-m", "poiesis.doctor.inside", "network", targets)
        self._task: Task = replace(
            task, spec=replace(task.spec, executors=(replace(task.spec.executors[0], command=command),))
        )
        self._plan: Plan = make_plan(self._task.spec, self._policy)
        self._task = replace(self._task, part=self._plan.pods[0].part, stage=Stage.RUN)

    def start(self) -> Finding | None:
        step = "create a volume"
        try:
            self._cluster.create_volume(self._task, self._plan)
            step = "create a Secret"
            self._cluster.create_documents(self._task, self._plan)
            step = "create a pod"
            self._cluster.launch(self._task, self._plan, self._plan.pods[0])
        except PoiesisError as failure:
            cause = failure.__cause__
            if not isinstance(cause, ApiError):
                return error(f"cannot {step}: {failure}", FAIL, "See the checks of the cluster above.")
            if cause.status == 403 and " cannot " in cause.message:
                return skipped(f"this account may not {step}", "Run it as `helm test`, whose account may.")
            return refused(self._api, cause, "a task")
        return None

    def follow(self) -> Findings:
        began = time.monotonic()
        while True:
            observed = self._cluster.observe(self._task)
            pod = observed.pods[0] if observed.pods else None
            passed = time.monotonic() - began
            if pod is None or pod.deleting:
                what = "the trial pod was deleted by another process"
                yield warning(
                    what,
                    "Not everything was tried out.",
                    "Check again; the monitor's sweep deletes it once in five minutes.",
                )
                return
            if pod.ended:
                break
            found = self._stuck(pod, passed)
            if found is not None:
                yield found
                return
            time.sleep(POLL_S)
        yield from self._results(pod)

    def _stuck(self, pod: Pod, passed: float) -> Finding | None:
        """Why it will not start or end; None: it still may."""
        for container in pod.containers:
            if container.phase is Phase.WAITING and container.reason not in STARTING:
                is_over = container.reason in FATAL or passed > STUCK_S
                if is_over:
                    return self._waiting(container)
        if passed > TRIAL_S or (passed > STUCK_S and not pod.scheduled and self._is_unbound(pod)):
            return self._late(pod)
        if passed > STUCK_S and pod.scheduled:
            failures = [
                e for e in events_of(self._api, pod.name) if e.startswith(("FailedMount", "FailedCreatePodSandBox"))
            ]
            if failures and all(c.phase is Phase.WAITING for c in pod.containers):
                return self._late(pod, failures[-1])
        return None

    def _waiting(self, container: Container) -> Finding:
        what = f"the container {container.name} does not start: {container.reason}: {container.message or 'no details'}"
        if container.reason in PULLING or container.reason in ("ErrImageNeverPull", "InvalidImageName"):
            return error(
                what,
                "No task with files can start: filers run in the service's image.",
                f"Check image.repository and image.tag ({self._settings.image}), that the nodes reach its registry, and "
                "imagePullSecrets (a Secret of that name in the namespace of tasks).",
            )
        name = (container.message or "").partition('secret "')[2].partition('"')[0]
        if name:
            repair = f"Create the Secret {name} in {self._api.namespace}, or correct filer.envSecrets (or logs.existingSecret)."
            return error(what, "Every task with files waits, and then fails.", repair)
        return error(
            what, FAIL, f"kubectl -n {self._api.namespace} get events; kubectl describe pod while it is there."
        )

    def _is_unbound(self, pod: Pod) -> bool:
        return "PersistentVolumeClaim" in (pod.waiting or "") or not pod.waiting

    def _late(self, pod: Pod, why: str = "") -> Finding:
        claim = self._api.read(f"{self._api.core}/persistentvolumeclaims/{volume_name(self._task.id, 1)}") or {}
        if not pod.scheduled and (claim.get("status") or {}).get("phase") == "Pending":
            events = events_of(self._api, claim["metadata"]["name"])
            wanted = self._settings.storage_class
            reason = events[-1] if events else pod.waiting or "no details"
            return error(
                f"the volume is not provided ({f'class {wanted}' if wanted else 'the default StorageClass'}): {reason}",
                "Tasks with files wait for their volume and fail after policy deadlines.",
                "Set tasks.volume.storageClass to a class that exists (kubectl get storageclass) and whose provisioner runs, and "
                "tasks.volume.accessMode to one that it supports.",
            )
        if not pod.scheduled:
            return error(
                f"no node took the trial pod within {TRIAL_S:.0f} s: {pod.waiting or 'no details'}",
                "Tasks wait like it.",
                "Check nodeSelector and tolerations of tasks.onDemand, tasks.launcher.architecture, tasks.queue, and the nodes' room.",
            )
        why = why or "; ".join(events_of(self._api, pod.name)[-2:]) or "no details"
        return error(
            f"the trial pod did not end within {TRIAL_S:.0f} s on {pod.node}: {why}",
            FAIL,
            "Create the Secrets and claims that the message names, or look at the node (kubectl describe node).",
        )

    def _results(self, pod: Pod) -> Findings:
        if pod.lost is not None:
            yield error(
                f"the trial pod was lost: {pod.lost}: {pod.message or ''}",
                FAIL,
                "Look at the node and its events.",
            )
            return
        is_complete = True
        for name in (TIF, EXECUTOR):
            container = pod.container(name)
            record = container.record if container is not None else None
            if record is None:
                is_complete = False
                detail = (container.message or container.reason or "") if container is not None else "no such container"
                yield error(
                    f"the closing record of the container {name} could not be read: {detail}",
                    "Tasks end as SYSTEM_ERROR, without exit code and output.",
                    "Check the right to pods/log of the roles, and that the API server reaches the kubelets (kubectl logs). "
                    "'exec format error': set tasks.launcher.architecture to that of the nodes.",
                )
                continue
            found = findings_of(self._log(pod.name, name) if name == TIF else record.stdout)
            if not found:
                is_complete = False
                text = record.message or record.stderr[-300:] or record.reason or "no output"
                yield error(f"{name} ended with {record.exit_code}: {text}", FAIL, "See the message.")
            yield from found
        if is_complete:
            yield ok(f"a volume and a pod of a task work: started on {pod.node}, and its records were read")

    def _log(self, pod: str, container: str) -> str:
        """A filer's record comes without its output, which is a report."""
        path = f"{self._api.core}/pods/{pod}/log"
        try:
            return self._api.client.text(path, {"container": container}, MAX_LOG_BYTES, LOG_S)
        except ApiError:
            return ""

    def close(self) -> None:
        """Delete everything, and wait for it a while."""
        deadline = time.monotonic() + GONE_S
        try:
            self._cluster.delete_all(self._task.id, 1, self._plan)
            while not self._cluster.observe(replace(self._task, part=None)).is_empty and time.monotonic() < deadline:
                time.sleep(POLL_S)
        except PoiesisError:
            pass  # the next run or the sweep deletes it
        self._cluster.close()


def resolved(targets: list[tuple[str, str, int]]) -> list[tuple[str, str, int]]:
    """Return the targets with addresses: their names may not be known in the namespace of tasks. Unknown names are left out."""
    found = []
    for name, host, port in targets:
        try:
            found.append((name, str(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][4][0]), port))
        except OSError:
            continue
    return found
