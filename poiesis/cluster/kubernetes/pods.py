"""The pod of a PodPlan, as JSON. Pure: the same task, plan and settings give the same pod.

Every container runs the launcher, which waits for its turn by means of files in /poiesis/control. Mounts:

    /poiesis/bin/launcher   the launcher, read-only
    /poiesis/control        shared by the pod's containers
    /poiesis/task           the filers' documents           only filers
    /poiesis/volume         the task's whole volume         only filers; executors mount its directories at the task's paths
    /poiesis/credentials    the Secret of the user's binding   only filers, if there is one
    /poiesis/cache          the shared input cache          only TIF, if the site has a cache

Where the site has a log store, a pod with executors has one more container (`whole_logs`), which does not run the launcher.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Final

from poiesis.cluster.kubernetes import labels, objects, placement
from poiesis.cluster.kubernetes.bindings import CREDENTIALS
from poiesis.cluster.kubernetes.kueue import QUEUE_LABEL, queue_of
from poiesis.cluster.kubernetes.pokes import poke_path
from poiesis.cluster.kubernetes.settings import KubernetesSettings, Placement
from poiesis.cluster.kubernetes.whole_logs import WholeLogs
from poiesis.domain.errors import ClusterRefused
from poiesis.domain.naming import object_name
from poiesis.domain.observed import TIF
from poiesis.domain.plan import ContainerPlan, Plan, PodPlan
from poiesis.domain.policy import Policy
from poiesis.domain.records import RECORD_MARKER
from poiesis.domain.report import MAX_REPORT_BYTES
from poiesis.domain.task import Executor, Task

LAUNCHER: Final = "/poiesis/bin/launcher"
BIN: Final = "/poiesis/bin"
CONTROL: Final = "/poiesis/control"
DOCUMENTS: Final = "/poiesis/task"
WHOLE_VOLUME: Final = "/poiesis/volume"
COPY_LAUNCHER: Final = "launcher"  # the init container of delivery `init`
FILER_TAIL_BYTES: Final = 1024 * 1024  # enough for a whole report
RECORD_SLACK: Final = timedelta(seconds=10)  # for records and pokes, after the command's grace period

MAX_STRING_BYTES: Final = 128 * 1024 - 1  # of one argument or variable: Linux, MAX_ARG_STRLEN
MAX_STRINGS_BYTES: Final = 1024 * 1024  # of a container's; Linux' limit is a quarter of the stack, 2 MiB
MAX_POD_BYTES: Final = 1_400_000  # etcd's limit is 1.5 MiB

Json = dict[str, Any]
LAUNCHER_MOUNTS: Final[tuple[Json, ...]] = (
    {"name": "launcher", "mountPath": BIN, "readOnly": True},
    {"name": "control", "mountPath": CONTROL},
)


def pod(
    task: Task,
    plan: Plan,
    pod_plan: PodPlan,
    settings: KubernetesSettings,
    policy: Policy,
    *,
    launcher_name: str | None,
    document_files: Mapping[str, int],
    owned_by: objects.Owner | None = None,
    logs: WholeLogs | None = None,
) -> Json:
    """`launcher_name`: of the ConfigMap, None for delivery `init`. `document_files`: file → index of its Secret. `logs` None: the site
    has no log store.

    Raises: ClusterRefused for a pod that no cluster could run.
    """
    executors = pod_plan.executors
    logs = logs if executors else None
    found = placement.placements(task, settings, devices=bool(executors))
    metadata = _metadata(task, pod_plan, settings, found, owned_by)
    build = _Builder(task, plan, pod_plan, settings, policy, found, logs)
    spec: Json = {
        **settings.extra_pod_spec,
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": math.ceil((policy.grace + RECORD_SLACK).total_seconds()),
        "securityContext": _pod_security(settings),
        "containers": [build.container(c) for c in pod_plan.containers],
        "volumes": _volumes(task, plan, pod_plan, settings, launcher_name, document_files),
    }
    if logs is not None:
        _add_logs(spec, metadata, logs, task, executors, settings, policy)
    before = [_copy_launcher(settings)] if launcher_name is None else []
    before += [build.container(c) for c in pod_plan.init]
    optional = {
        "initContainers": before,
        "nodeSelector": placement.node_selector(task, settings, found),
        "tolerations": placement.tolerations(settings, found),
        "affinity": placement.affinity(task, settings),
        "priorityClassName": placement.priority_class(task, settings, found),
        "runtimeClassName": placement.runtime_class(found),
        "serviceAccountName": settings.service_account,
        "imagePullSecrets": [{"name": name} for name in settings.pull_secrets],
        "activeDeadlineSeconds": _last_resort(plan, pod_plan, policy),
    }
    for container in (*before, *spec["containers"]):
        if "resources" in container:
            container["resources"] = placement.with_min_requests(container["resources"], settings)
    spec |= objects.given(optional)
    made = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
    if len(json.dumps(made)) > MAX_POD_BYTES:
        raise ClusterRefused(
            f"the task's commands, variables and mounts are too long for one pod: more than {MAX_POD_BYTES} bytes"
        )
    return made


class _Builder:
    """The containers of one pod."""

    def __init__(
        self,
        task: Task,
        plan: Plan,
        pod_plan: PodPlan,
        settings: KubernetesSettings,
        policy: Policy,
        found: tuple[Placement, ...],
        logs: WholeLogs | None,
    ) -> None:
        self._task = task
        self._plan = plan
        self._settings = settings
        self._policy = policy
        self._found = found
        self._logs = logs
        self._first = next((c.name for c in pod_plan.containers if c.executor is not None), None)
        self._has_tif = TIF in plan.names

    def container(self, planned: ContainerPlan) -> Json:
        if planned.executor is None:
            return objects.given(self._filer(planned))
        return objects.given(self._executor(planned, self._task.spec.executors[planned.executor]))

    def _executor(self, planned: ContainerPlan, executor: Executor) -> Json:
        task, plan, settings, is_first = self._task, self._plan, self._settings, planned.name == self._first
        options = self._options(planned, self._policy.tail_bytes)
        paths = {"stdin": executor.stdin, "stdout": executor.stdout, "stderr": executor.stderr}
        for name, value in (paths | {"workdir": executor.workdir}).items():
            options += [f"--{name}", value] if value is not None else []
        for directory in plan.directories if is_first and not self._has_tif else ():
            options += ["--mkdir", directory]
        options += ["--ignore-error"] if executor.ignore_error else []
        options += self._logs.launcher_options() if self._logs is not None else []
        options += ["--time-limit", objects.seconds(plan.time_limit)] if plan.time_limit is not None else []
        return {
            "name": planned.name,
            "image": executor.image,
            "imagePullPolicy": settings.pull_policy,
            **_program([*options, "--", *executor.command], executor.env, planned.name),
            "securityContext": _executor_security(settings),
            "volumeMounts": [
                *LAUNCHER_MOUNTS,
                *({"name": "volume", "mountPath": m.path, "subPath": m.sub_path} for m in plan.mounts),
                *({"name": name, "mountPath": path} for name, path in _scratch(plan)),
                *([{"name": "shm", "mountPath": "/dev/shm"}] if placement.shm_bytes(task) is not None else []),
            ],
            "resources": placement.executor_resources(task, settings, self._found, counts=is_first),
        }

    def _filer(self, planned: ContainerPlan) -> Json:
        settings, cache = self._settings, self._settings.cache_volume
        direction, document = ("in", "tif.json") if planned.name == TIF else ("out", "tof.json")
        command = [*settings.filer_command, direction, "--document", f"{DOCUMENTS}/{document}"]
        command += ["--volume", WHOLE_VOLUME, "--settings", f"{DOCUMENTS}/{objects.SETTINGS_KEY}"]
        mounts = [
            *LAUNCHER_MOUNTS,
            {"name": "documents", "mountPath": DOCUMENTS, "readOnly": True},
            {"name": "volume", "mountPath": WHOLE_VOLUME},
            {"name": "filer-tmp", "mountPath": "/tmp"},
        ]
        if self._first is not None:  # beside executors: see `name_resolution`
            files = objects.NAME_FILES.items()
            mounts += [{"name": "documents", "mountPath": p, "subPath": key, "readOnly": True} for key, p in files]
        if cache.is_set and planned.name == TIF:
            mounts.append(objects.given({"name": "cache", "mountPath": objects.CACHE, "subPath": cache.sub_path}))
        for i, path in enumerate(settings.filer_file_secrets.values()):
            mounts.append({"name": f"secret-{i}", "mountPath": path, "readOnly": True})
        options = self._options(planned, FILER_TAIL_BYTES)
        options += ["--time-limit", objects.seconds(self._policy.staging_deadline(planned.name == TIF))]
        return {
            "name": planned.name,
            "image": settings.image,
            "imagePullPolicy": settings.filer_pull_policy,
            **_program([*options, "--", *command], settings.filer_env, planned.name),
            "envFrom": [{"secretRef": {"name": name}} for name in settings.filer_env_secrets],
            "securityContext": _filer_security(settings),
            "volumeMounts": mounts,
            "resources": placement.filer_resources(settings.filer_resources),
        }

    def _options(self, planned: ContainerPlan, tail_bytes: int) -> list[str]:
        settings = self._settings
        options = ["--name", planned.name, "--control", CONTROL]
        for name in planned.waits_up:
            options += ["--wait-up", name]
        for name in planned.waits_for:
            options += ["--wait", name]
        if planned.waits_up or planned.waits_for:
            options += ["--wait-timeout", objects.seconds(self._policy.turn_timeout)]
        options += ["--always"] if planned.always else []
        options += ["--tail-bytes", str(tail_bytes), "--grace", objects.seconds(self._policy.grace)]
        options += ["--record-line", RECORD_MARKER, "--cgroup"]
        if settings.poke_address is not None:  # every container pokes with its own record (docs/adr/0004)
            options += ["--poke", settings.poke_address + poke_path(self._task)]
            options += ["--poke-start"] if settings.poke_start and planned.executor is not None else []
        return options


def _add_logs(
    spec: Json,
    metadata: Json,
    logs: WholeLogs,
    task: Task,
    executors: Sequence[int],
    settings: KubernetesSettings,
    policy: Policy,
) -> None:
    """The last container, so that it delays no other one. The launchers wait for it at their end if need be."""
    control = next(mount for mount in LAUNCHER_MOUNTS if mount["name"] == "control")
    added = logs.container(task, executors, settings, policy, control)
    spec["containers"].append({**added, "securityContext": _filer_security(settings)})
    volume = next(volume for volume in spec["volumes"] if volume["name"] == "control")
    volume["emptyDir"] = {"sizeLimit": logs.control_size(settings, len(executors))}
    spec["volumes"] += logs.volumes(settings)
    metadata["annotations"] = {**metadata.get("annotations", {}), **logs.annotations}


def _metadata(
    task: Task,
    pod_plan: PodPlan,
    settings: KubernetesSettings,
    found: tuple[Placement, ...],
    owned_by: objects.Owner | None,
) -> Json:
    queue = queue_of(task, settings)
    pod_labels: dict[str, str] = {}
    annotations = dict(settings.annotations)
    for each in found:
        pod_labels |= each.labels
        annotations |= each.annotations
    pod_labels |= {QUEUE_LABEL: queue} if queue else {}
    pod_labels |= labels.of_task(settings, task.id, task.attempt, pod_plan.part)
    annotations |= labels.id_annotations(task.id)
    return objects.metadata(object_name(task.id, task.attempt, pod_plan.part), pod_labels, annotations, owned_by)


def _program(args: list[str], env: Mapping[str, str], name: str) -> Json:
    strings = [*args, *(f"{k}={v}" for k, v in env.items())]
    longest = max((len(s.encode("utf-8", "replace")) for s in strings), default=0)
    if longest > MAX_STRING_BYTES or sum(len(s) + 9 for s in strings) > MAX_STRINGS_BYTES:
        raise ClusterRefused(
            f"{name}: command or environment too long: at most {MAX_STRING_BYTES} bytes per argument and {MAX_STRINGS_BYTES} in total; "
            "pass long text as an input file"
        )
    return {
        "command": [LAUNCHER],
        "args": [objects.escape(a) for a in args],
        "env": [{"name": k, "value": objects.escape(v)} for k, v in env.items()],
    }


def _scratch(plan: Plan) -> list[tuple[str, str]]:
    """Volume names and mount paths. One volume each: the kubelet would create a subPath writable only for root."""
    return [(f"scratch-{i}", path) for i, path in enumerate(plan.scratch)]


def _copy_launcher(settings: KubernetesSettings) -> Json:
    made = {
        "name": COPY_LAUNCHER,
        "image": settings.image,
        "imagePullPolicy": settings.filer_pull_policy,
        "command": list(settings.init_command),
        "securityContext": _filer_security(settings),
        "volumeMounts": [{"name": "launcher", "mountPath": BIN}],
    }
    return objects.given(made)


def _volumes(
    task: Task,
    plan: Plan,
    pod_plan: PodPlan,
    settings: KubernetesSettings,
    launcher_name: str | None,
    document_files: Mapping[str, int],
) -> list[Json]:
    architecture = placement.architecture(task, settings) or ""
    item = {"key": objects.launcher_key(architecture), "path": "launcher", "mode": 0o555}
    delivered: Json = {"configMap": {"name": launcher_name, "items": [item]}} if launcher_name else {"emptyDir": {}}
    made: list[Json] = [
        {"name": "launcher", **delivered},
        {"name": "control", "emptyDir": {"sizeLimit": settings.control_size}},
    ]
    if plan.volume_bytes is not None and (plan.mounts or pod_plan.has_filers):
        claim = objects.volume_name(task.id, task.attempt)
        made.append({"name": "volume", "persistentVolumeClaim": {"claimName": claim}})
    made += [{"name": name, "emptyDir": {}} for name, _ in _scratch(plan) if pod_plan.executors]
    shm = placement.shm_bytes(task)
    if shm is not None and pod_plan.executors:
        made.append({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": shm}})
    if pod_plan.has_filers:
        made.append({"name": "documents", **_documents(task, document_files)})
        made.append({"name": "filer-tmp", "emptyDir": {}})
        for i, (name, path) in enumerate(settings.filer_file_secrets.items()):
            secret: Json = {"secretName": name, "defaultMode": 0o444}
            secret |= {"optional": True} if path == CREDENTIALS else {}  # the filer reports that it is missing
            made.append({"name": f"secret-{i}", "secret": secret})
    cache = settings.cache_volume
    if cache.is_set and TIF in pod_plan.names:
        where: Json = {"persistentVolumeClaim": {"claimName": cache.claim}}
        if cache.host_path:
            where = {"hostPath": {"path": cache.host_path, "type": "DirectoryOrCreate"}}
        made.append({"name": "cache", **where})
    return made


def _documents(task: Task, files: Mapping[str, int]) -> Json:
    """All Secrets of the task, in one directory."""
    names = [objects.documents_name(task.id, task.attempt, i) for i in sorted(set(files.values()) | {0})]
    return {"projected": {"defaultMode": 0o444, "sources": [{"secret": {"name": name}} for name in names]}}


def _pod_security(settings: KubernetesSettings) -> Json:
    made: Json = {"seccompProfile": {"type": "RuntimeDefault"}}
    if settings.fs_group is not None:
        made |= {"fsGroup": settings.fs_group, "fsGroupChangePolicy": "OnRootMismatch"}
    return made


def _executor_security(settings: KubernetesSettings) -> Json:
    made: Json = {"allowPrivilegeEscalation": False}
    if settings.pod_security == "restricted":
        made |= {"runAsNonRoot": True, "capabilities": {"drop": ["ALL"]}}
    elif not settings.net_raw:
        made["capabilities"] = {"drop": ["NET_RAW"]}
    if settings.read_only_root:
        made["readOnlyRootFilesystem"] = True
    if settings.run_as_user is not None:
        made["runAsUser"] = settings.run_as_user
    if settings.run_as_group is not None:
        made["runAsGroup"] = settings.run_as_group
    return made


def _filer_security(settings: KubernetesSettings) -> Json:
    user = settings.filer_run_as_user
    made: Json = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True}
    if user is not None:
        made["runAsUser"] = user
    if user != 0:
        made |= {"runAsNonRoot": True, "capabilities": {"drop": ["ALL"]}}
    else:
        made["capabilities"] = {"drop": ["NET_RAW"]}
    return made


def _last_resort(plan: Plan, pod_plan: PodPlan, policy: Policy) -> int | None:
    """After this time the kubelet ends the pod if everything else has failed; only for tasks with a time limit."""
    if plan.time_limit is None:
        return None
    total = (plan.time_limit + policy.grace) * len(pod_plan.executors) + policy.start_deadline
    total += policy.stage_in_deadline + policy.stage_out_deadline + 2 * policy.grace
    return min(math.ceil(total.total_seconds()), 2**31 - 1)


assert MAX_REPORT_BYTES < FILER_TAIL_BYTES  # a truncated report could not be parsed
