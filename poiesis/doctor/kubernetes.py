"""Checks of the cluster: the API server, rights, and what it would accept of tasks.

The service has no rights in other namespaces and none to read most of this, so a question that may not be asked is a skipped check, not an
error. What the API server accepts is asked with `dryRun=All`: every admission plug-in answers, and nothing is created.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Final
from urllib.parse import urlsplit

from poiesis.cluster.kubernetes import kueue, objects, pods
from poiesis.cluster.kubernetes.client import Client
from poiesis.cluster.kubernetes.delivery import with_launchers
from poiesis.cluster.kubernetes.errors import ApiError
from poiesis.cluster.kubernetes.quantities import quantity
from poiesis.cluster.kubernetes.rights import NODE_RIGHTS, Right, lease_name, rights_of
from poiesis.cluster.kubernetes.settings import KubernetesSettings, Placement
from poiesis.doctor.result import Finding, Findings, error, ok, skipped, warning
from poiesis.doctor.site import Site, host_of
from poiesis.domain.naming import new_task_id
from poiesis.domain.plan import plan as make_plan
from poiesis.domain.policy import GIGABYTE
from poiesis.domain.task import Executor, Input, Resources, Task, TaskSpec

Json = dict[str, Any]

LEAST_VERSION: Final = (1, 27)
LEASE_AGE_S: Final = 60.0
FULL: Final = 0.9  # of a quota
TWO_EXECUTORS: Final = "tasks with two executors"
TASKS_FAIL: Final = "No task can start: their pods or volumes are refused."
ENFORCE: Final = "pod-security.kubernetes.io/enforce"
LEVELS: Final = ("privileged", "baseline", "restricted")


class Api:
    """The API server as this process sees it."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.settings: KubernetesSettings = replace(site.kubernetes, attempts=2)
        self.namespace = site.kubernetes.namespace

    @cached_property
    def client(self) -> Client:
        """Raises: ConfigurationError."""
        return Client(self.settings)

    @property
    def core(self) -> str:
        return f"/api/v1/namespaces/{self.namespace}"

    def read(self, path: str, query: Mapping[str, object] | None = None) -> Json | None:
        """None: there is no such object. Raises: ApiError."""
        try:
            return self.client.get(path, query)
        except ApiError as failure:
            if failure.status == 404:
                return None
            raise


def guarded(what: str, check: Callable[[], Findings]) -> Findings:
    """A check that is skipped if this account has no right to it."""
    try:
        yield from check()
    except ApiError as failure:
        if failure.status == 403:
            repair = "Run it with an account that may. What is wrong there shows in `admission` and `trial`, too."
            yield skipped(f"this account may not read {what}", repair)
        else:
            yield error(f"{what}: {failure}", "Not known.", "See the check `api-server`.")


def check_api_server(api: Api) -> Findings:
    try:
        version = api.client.get("/version")
    except ApiError as failure:
        yield error(
            f"the API server does not respond: {failure}",
            "Tasks wait; none starts or ends.",
            "Check that a NetworkPolicy or firewall lets this pod connect to it, its service account's token, and KUBECONFIG outside "
            "of the cluster.",
        )
        return
    numbers = tuple(int(n) for n in re.findall(r"\d+", f"{version.get('major')}.{version.get('minor')}")[:2])
    if numbers < LEAST_VERSION:
        least = ".".join(map(str, LEAST_VERSION))
        yield warning(
            f"Kubernetes {version.get('gitVersion')} is older than {least}",
            "Poiesis is not tested with it.",
            "Upgrade.",
        )
    yield ok(f"Kubernetes {version.get('gitVersion')}, namespace of tasks {api.namespace}")


# ── rights ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def check_rights(api: Api, role: str, account: str | None) -> Findings:
    """Check the rights of this account, or of `account` (`NAMESPACE:NAME`) if this one may ask about its rights in the tasks' namespace."""
    wanted = list(rights_of(role, api.settings))
    missing = [right for right in wanted if not _is_allowed(api, right.attributes(api.namespace), account)]
    if missing:
        yield error(
            f"the service account of {role} may not: {', '.join(map(str, missing))} (namespace {api.namespace})",
            "Tasks stop at the stages of this role.",
            f"Run helm upgrade with rbac.create=true, or give its Role the missing verbs: kubectl -n {api.namespace} edit role "
            f"(the table in docs/operators.md, Permissions).",
        )
    else:
        yield ok(f"{role}: {len(wanted)} rights" if wanted else f"{role} needs none")


def check_node_rights(api: Api, account: str | None) -> Findings:
    """Check the right to list nodes, of this account or of `account` as above.

    It is one of the whole cluster. A review in the tasks' namespace, as for `account`, counts a ClusterRoleBinding too.
    """
    namespace = "" if account is None else api.namespace
    rights = [Right("", resource, "", verb) for resource, verbs in NODE_RIGHTS.items() for verb in sorted(verbs)]
    missing = [right for right in rights if not _is_allowed(api, right.attributes(namespace), account)]
    if missing:
        yield warning(
            f"the service account of monitor may not: {', '.join(map(str, missing))} (in the whole cluster)",
            "The overview of the dashboard does not show the room on nodes.",
            "Run helm upgrade with rbac.create=true; or create a ClusterRole with this right and bind it to the account "
            "(docs/operators.md, Permissions); or set rbac.readNodes=false (POIESIS_KUBERNETES__READ_NODES).",
        )
    else:
        yield ok("monitor may list nodes")


def _is_allowed(api: Api, attributes: Mapping[str, str], account: str | None) -> bool:
    spec: Json = {"resourceAttributes": dict(attributes)}
    review, path = "SelfSubjectAccessReview", "selfsubjectaccessreviews"
    if account is not None:
        namespace = account.partition(":")[0]
        spec["user"] = f"system:serviceaccount:{account}"
        spec["groups"] = ["system:serviceaccounts", f"system:serviceaccounts:{namespace}", "system:authenticated"]
        review, path = "LocalSubjectAccessReview", f"namespaces/{api.namespace}/localsubjectaccessreviews"
    body: Json = {"apiVersion": "authorization.k8s.io/v1", "kind": review, "spec": spec}
    if account is not None:
        body["metadata"] = {"namespace": api.namespace}
    answer = api.client.create(f"/apis/authorization.k8s.io/v1/{path}", body)
    return bool((answer.get("status") or {}).get("allowed"))


# ── the namespace ─────────────────────────────────────────────────────────────────────────────────────────────────────


def check_namespace(api: Api) -> Findings:
    found = api.read(f"/api/v1/namespaces/{api.namespace}")
    if found is None:
        repair = (
            f"kubectl create namespace {api.namespace}, or correct tasks.namespace (POIESIS_KUBERNETES__NAMESPACE)."
        )
        yield error(f"the namespace of tasks {api.namespace} does not exist", TASKS_FAIL, repair)
        return
    if (found.get("status") or {}).get("phase") == "Terminating":
        yield error(f"the namespace {api.namespace} is being deleted", TASKS_FAIL, "Choose another one for tasks.")
        return
    yield from _pod_security(api, (found["metadata"].get("labels") or {}).get(ENFORCE, "privileged"))


def _pod_security(api: Api, enforced: str) -> Findings:
    settings = api.settings
    needed = "privileged" if settings.cache_volume.host_path else settings.pod_security
    if enforced in LEVELS and LEVELS.index(enforced) > LEVELS.index(needed):
        because = "the input cache is a hostPath" if settings.cache_volume.host_path else "tasks.podSecurity"
        repair = (
            "Set filer.cache.existingClaim instead of hostPath."
            if settings.cache_volume.host_path
            else "Set tasks.podSecurity=restricted, with tasks.runAsUser=65532 for images without a numeric user"
        )
        yield error(
            f"the namespace {api.namespace} enforces Pod Security {enforced}, and pods of tasks need {needed} ({because})",
            TASKS_FAIL,
            f"{repair}; or allow it: kubectl label --overwrite namespace {api.namespace} {ENFORCE}={needed}.",
        )
    elif settings.pod_security == "restricted" and settings.run_as_user is None:
        yield warning(
            "tasks.podSecurity is restricted without tasks.runAsUser",
            "Images that set no numeric user, which are most, do not start.",
            "Set tasks.runAsUser (POIESIS_KUBERNETES__RUN_AS_USER), such as 65532.",
        )
    else:
        yield ok(f"{api.namespace} enforces Pod Security {enforced}; pods of tasks need {needed}")


def check_quotas(api: Api) -> Findings:
    """How much is left; whether pods as such would be refused is asked by `admission`."""
    quotas = api.client.get(f"{api.core}/resourcequotas").get("items") or []
    full = 0
    for quota in quotas:
        name, status = quota["metadata"]["name"], quota.get("status") or {}
        for resource, hard in (status.get("hard") or {}).items():
            used = (status.get("used") or {}).get(resource, "0")
            if quantity(used) >= FULL * quantity(hard):
                full += 1
                yield warning(
                    f"ResourceQuota {name}: {used} of {hard} {resource} are used",
                    "Tasks wait until others have ended (they are not lost).",
                    f"Raise it: kubectl -n {api.namespace} edit resourcequota {name}; or limit tasks with admission.site.",
                )
    if not full:
        yield ok(f"{len(quotas)} ResourceQuotas, all with room" if quotas else "no ResourceQuota")


# ── what the API server accepts ───────────────────────────────────────────────────────────────────────────────────────


def trial_task(image: str, command: tuple[str, ...]) -> Task:
    """A task like those of users, with an input, an executor and a small volume."""
    now = datetime.now(UTC)
    spec = TaskSpec(
        executors=(Executor(image, command),),
        inputs=(Input("/data/trial.txt", content="trial"),),
        resources=Resources(disk_gb=0.01),
    )
    return Task(new_task_id(now), spec, now, nonce=secrets.token_hex(8), stage_since=now)


def variants(settings: KubernetesSettings) -> Iterator[tuple[str, Task, KubernetesSettings]]:
    """Pods of tasks, without parameters, with two executors, of which only the first one has the task's requests, and with each class that
    the site has: what it is, a task, and settings with only that placement."""
    task = trial_task(settings.image, ("true",))
    yield "a task without parameters", task, settings
    small = Resources(cpu_cores=0.1, ram_gb=0.1, disk_gb=0.01)
    yield (
        TWO_EXECUTORS,
        replace(task, spec=replace(task.spec, executors=2 * task.spec.executors, resources=small)),
        settings,
    )
    named: dict[str, Placement] = {"preemptible tasks": settings.preemptible, "tasks with GPUs": settings.gpu}
    named |= {f"node class {name}": placement for name, placement in settings.node_classes.items()}
    named |= {f"service class {name}": placement for name, placement in settings.service_classes.items()}
    named |= {f"priority class {name}": Placement(priority_class=name) for name in sorted(settings.priority_classes)}
    for what, placement in named.items():
        if placement.priority_class or placement.runtime_class:
            yield what, task, replace(settings, on_demand=placement)


def check_admission(api: Api) -> Findings:
    """Send a volume and pods as tasks have them, to be refused or accepted, not created."""
    settings = with_launchers(replace(api.settings, owner=None, bindings={}))
    policy = api.site.settings.policy
    size = policy.default_disk_bytes
    accepted = 0
    failures: set[str] = set()
    for i, (what, task, own) in enumerate(variants(settings)):
        if what == TWO_EXECUTORS and failures:  # they are refused for the same reason
            continue
        plan = make_plan(task.spec, policy)
        pod = pods.pod(task, plan, plan.pods[0], own, policy, launcher_name="doctor", document_files={})
        documents = {"pods": pod}
        if i == 0:  # the volume of all of them is the same
            volume = objects.volume(task, replace(plan, volume_bytes=size), own)
            documents = {"persistentvolumeclaims": volume, **documents}
        for kind, document in documents.items():
            try:
                api.client.create(f"{api.core}/{kind}?dryRun=All", document)
                accepted += 1
            except ApiError as failure:
                if failure.status == 403 and re.search(r'User "[^"]+" cannot ', failure.message):
                    repair = "Run it with the account of texam, or as `helm test`."
                    yield skipped(f"this account may not create {kind}", repair)
                    return
                if str(failure) not in failures:
                    failures.add(str(failure))
                    yield refused(api, failure, what, size if kind != "pods" else 0)
    if not failures:
        yield ok(f"pods and volumes of tasks are accepted ({accepted} sent as a dry run)")


def refused(api: Api, failure: ApiError, what: str, volume_bytes: int = 0) -> Finding:
    """Why the API server does not accept an object of a task."""
    text, namespace = failure.message, api.namespace
    kind = f"a volume of {volume_bytes / GIGABYTE:g} GB" if volume_bytes else f"the pod of {what}"
    for pattern, repair in (
        (
            r"PriorityClass",
            "Create it (kubectl get priorityclasses), or correct tasks.priorityClasses, tasks.defaultPriorityClass and the placements.",
        ),
        (
            r"RuntimeClass",
            "Create it (kubectl get runtimeclasses), or correct runtimeClass of the placements of tasks.",
        ),
        (
            r"violates PodSecurity",
            f"Set tasks.podSecurity=restricted with tasks.runAsUser=65532, or allow it: kubectl label --overwrite namespace {namespace} "
            f"{ENFORCE}={api.settings.pod_security}.",
        ),
        (
            r"must specify",
            f"The ResourceQuota wants requests or limits that tasks do not set: give tasks.defaults and filer.resources, or add a "
            f"LimitRange with defaults in {namespace}.",
        ),
        (
            r"exceeded quota",
            f"Raise the quota (kubectl -n {namespace} describe resourcequota), or ask for less: tasks.defaults, filer.resources, "
            "tasks.volume.defaultSizeGb; with tasks in flight this may pass.",
        ),
        (
            r"minimum \S+ usage per Container",
            f"Set tasks.minRequests to the min of the LimitRange (POIESIS_KUBERNETES__MIN_REQUESTS={_least(text)}), or remove the min: "
            f"kubectl -n {namespace} describe limitrange.",
        ),
        (
            r"max limit to request ratio per Container .* request is 0",
            f"Remove maxLimitRequestRatio from the LimitRange (kubectl -n {namespace} describe limitrange): executors that wait for their "
            "turn have the task's limits and request nothing.",
        ),
        (
            r"(?:maximum|minimum) .* usage per|limit to request ratio per|must be less than or equal to",
            f"Change the LimitRange (kubectl -n {namespace} describe limitrange), or tasks.defaults, filer.resources and "
            "tasks.volume.defaultSizeGb.",
        ),
        (r"serviceaccount|service account", "Create it, or correct tasks.serviceAccountName."),
        (r"webhook", "Ask who runs that admission webhook for an exception, or change what it objects to."),
    ):
        if re.search(pattern, text, re.IGNORECASE):
            return error(
                f"{kind} is refused: {text}",
                TASKS_FAIL if what.startswith("a task") else "Such tasks fail.",
                repair,
            )
    return error(
        f"{kind} is refused: {failure}", TASKS_FAIL, "Change the setting or the cluster's policy that it names."
    )


def _least(refusal: str) -> str:
    """The minimums that a refusal of the LimitRange plug-in names, as in the settings."""
    return json.dumps(dict(re.findall(r"minimum (\S+) usage per Container is ([0-9.]*[0-9][A-Za-z]*)", refusal)))


# ── what the configuration names ──────────────────────────────────────────────────────────────────────────────────────


def check_storage_class(api: Api) -> Findings:
    classes = api.client.get("/apis/storage.k8s.io/v1/storageclasses").get("items") or []
    names = {c["metadata"]["name"]: c for c in classes}
    wanted = api.settings.storage_class
    known = ", ".join(sorted(names)) or "none"
    if wanted is not None:
        if wanted and wanted not in names:
            repair = f"Set tasks.volume.storageClass to one that exists: {known}."
            yield error(
                f"there is no StorageClass {wanted}", "Tasks with files wait for their volume and fail.", repair
            )
        else:
            yield ok(f"StorageClass {wanted or '(none)'}")
        return
    key = "storageclass.kubernetes.io/is-default-class"
    default = [n for n, c in names.items() if (c["metadata"].get("annotations") or {}).get(key) == "true"]
    if not default:
        yield error(
            f"no StorageClass is the default one (there are: {known})",
            "Tasks with files wait for their volume and fail.",
            f"Set tasks.volume.storageClass, or mark one: kubectl annotate storageclass NAME {key}=true.",
        )
    else:
        yield ok(f"default StorageClass {default[0]}")


def check_objects(api: Api) -> Findings:
    """Claims, Kueue's queues and the owner that the settings name. Secrets and classes are checked by `trial` and `admission`."""
    settings, found = api.settings, 0
    claims = {"filer.cache.existingClaim": settings.cache_volume.claim, "logs.existingClaim": settings.logs_claim}
    wanted = [("persistentvolumeclaims", name, value) for value, name in claims.items() if name]
    if settings.owner is not None:
        wanted.append(("configmaps", settings.owner, "POIESIS_KUBERNETES__OWNER"))
    for kind, name, value in wanted:
        if api.read(f"{api.core}/{kind}/{name}") is None:
            singular = kind.removesuffix("s")
            what = f"there is no {singular} {name} in {api.namespace} ({value})"
            repair = (
                "Run helm upgrade, which creates it." if kind == "configmaps" else f"Create it, or correct {value}."
            )
            yield error(what, TASKS_FAIL, repair)
        else:
            found += 1
    queues = {
        settings.queue,
        *settings.default_queues.values(),
        *(q for each in settings.queues.values() for q in each),
    }
    for queue in sorted(q for q in queues if q):
        if api.read(f"{kueue.API}/namespaces/{api.namespace}/localqueues/{queue}") is None:
            yield error(
                f"there is no LocalQueue {queue} in {api.namespace} (tasks.queue, tasks.queues)",
                "Tasks in this queue are never admitted.",
                f"Create it for a ClusterQueue: kubectl -n {api.namespace} get localqueues; or correct the value.",
            )
        else:
            found += 1
    yield ok(f"objects that the settings name: {found}, all exist")


def check_network_policy(api: Api) -> Findings:
    """Whether a policy selects the pods of tasks; whether it is enforced shows `trial`."""
    from poiesis.cluster.kubernetes import labels

    policies = (
        api.client.get(f"/apis/networking.k8s.io/v1/namespaces/{api.namespace}/networkpolicies").get("items") or []
    )
    of = {**labels.common(api.settings, labels.TASK), labels.TASK_ID: "any"}
    selecting = [
        p["metadata"]["name"]
        for p in policies
        if "Egress" in (p["spec"].get("policyTypes") or []) and _selects(p["spec"].get("podSelector") or {}, of)
    ]
    if selecting:
        yield ok(f"pods of tasks are selected by {', '.join(selecting)}")
    else:
        yield warning(
            f"no NetworkPolicy in {api.namespace} restricts connections of tasks' pods",
            "Commands of users can connect to Redis, MongoDB, the Kubernetes API and the metadata server of the cloud.",
            "Set tasks.networkPolicy.enabled=true in the chart's values.",
        )


def _selects(selector: Json, found: Mapping[str, str]) -> bool:
    """Compare `matchLabels`; `matchExpressions` are not evaluated and count as selecting."""
    return all(found.get(key) == value for key, value in (selector.get("matchLabels") or {}).items())


def check_monitor(api: Api) -> Findings:
    """One monitor leads, and renews its Lease every few seconds."""
    name = lease_name(api.settings)
    lease = api.read(f"/apis/coordination.k8s.io/v1/namespaces/{api.namespace}/leases/{name}")
    spec = (lease or {}).get("spec") or {}
    holder, renewed = spec.get("holderIdentity"), spec.get("renewTime")
    age = None
    if renewed:
        age = (datetime.now(UTC) - datetime.fromisoformat(renewed)).total_seconds()
    if not holder or age is None or age > LEASE_AGE_S:
        since = "" if age is None else f" (last sign {age:.0f} s ago)"
        yield error(
            f"no monitor leads: the Lease {name} in {api.namespace} has no current holder{since}",
            "Ends of pods are not noticed, and lost messages are not repeated: tasks stop.",
            "Look at its pods: kubectl get pods -l app.kubernetes.io/component=monitor, and at their logs.",
        )
    else:
        yield ok(f"{holder} leads")


def events_of(api: Api, name: str) -> list[str]:
    """Reasons and messages of the warnings about an object; empty without the right to read them."""
    try:
        found = api.client.get(f"{api.core}/events", {"fieldSelector": f"involvedObject.name={name},type=Warning"})
    except ApiError:
        return []
    return list(dict.fromkeys(f"{e.get('reason')}: {e.get('message')}"[:500] for e in found.get("items") or []))


def targets_of(api: Api) -> list[tuple[str, str, int]]:
    """What pods of tasks must not reach: name, host, port."""
    settings = api.site.settings
    server = urlsplit(api.client.host)
    redis, mongo = host_of(settings.redis_uri), host_of(settings.mongo_uri)
    return [
        ("Redis", redis[0], redis[1] or 6379),
        ("MongoDB", mongo[0], mongo[1] or 27017),
        ("the Kubernetes API", server.hostname or "", server.port or 443),
        ("the cloud's metadata server", "169.254.169.254", 80),
    ]
