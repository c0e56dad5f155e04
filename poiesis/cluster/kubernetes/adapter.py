"""`Cluster` and `ClusterEvents` on Kubernetes.

API calls of a task: create PVC, Secret and pod; read logs for records that did not come with the pod's status; delete pod and PVC. The
watch does the rest, so a task without files needs two calls, plus one for each log. Without a watch (`follow` was not called, or it is
down) `observe` lists by the task's label instead.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from poiesis.cluster.kubernetes import bindings, kueue, labels, name_resolution, objects, pods
from poiesis.cluster.kubernetes.cache import (
    PODS,
    VOLUMES,
    Cache,
    PodView,
    VolumeView,
    project_pod,
    project_volume,
)
from poiesis.cluster.kubernetes.client import Client
from poiesis.cluster.kubernetes.delivery import InstanceOwner, LauncherDelivery, with_launchers
from poiesis.cluster.kubernetes.errors import ApiError, translate, translated
from poiesis.cluster.kubernetes.nodes import capacity_of
from poiesis.cluster.kubernetes.observe import pod_of
from poiesis.cluster.kubernetes.pokes import PokeAddress
from poiesis.cluster.kubernetes.records import Records
from poiesis.cluster.kubernetes.settings import KubernetesSettings
from poiesis.cluster.kubernetes.watch import Watch
from poiesis.cluster.kubernetes.whole_logs import WholeLogs
from poiesis.config import LogSettings
from poiesis.domain.capacity import Capacity
from poiesis.domain.decide.stages import plan_of
from poiesis.domain.errors import ClusterRefused, ClusterUnavailable, PoiesisError
from poiesis.domain.naming import object_name
from poiesis.domain.observed import Observed, Pod, Record
from poiesis.domain.plan import Plan, PodPlan
from poiesis.domain.policy import Policy
from poiesis.domain.quotas import Amount
from poiesis.domain.report import FilerReport
from poiesis.domain.task import Task, TaskId
from poiesis.ports.cluster import LAUNCH_WITHIN

log = logging.getLogger(__name__)

BINDING_PAUSE_S: Final = 0.02  # before the second check of a volume; grows by half each time
BINDS_LATE_S: Final = 60.0  # how long not to wait for volumes after one was not bound in time
LOG_WAIT_S: Final = 2.0  # where nothing calls again when a log has been read
MAX_UIDS: Final = 10_000
NODES_KNOWN: Final = timedelta(hours=1)  # for how long the nodes count as they were, if they cannot be listed


class KubernetesCluster:
    """`filer_settings_json` is passed to the filers unchanged (`poiesis.filer.settings`); it contains no secrets. `logs`: the log store.

    Raises: ConfigurationError when no cluster is configured or a launcher cannot be read.
    """

    def __init__(
        self,
        settings: KubernetesSettings,
        policy: Policy,
        filer_settings_json: str = "{}",
        logs: LogSettings | None = None,
        *,
        client: Client | None = None,
    ) -> None:
        self.settings = settings = with_launchers(settings)
        self._policy = policy
        self._filer_settings = objects.filer_settings(filer_settings_json, settings)
        self._name_files = name_resolution.files(settings)
        self._whole_logs: WholeLogs | None = None
        if logs is not None and logs.url is not None:
            self._whole_logs = WholeLogs(logs, {key: text.decode() for key, text in self._name_files.items()})
        self.client = client or Client(settings)
        self._core = f"/api/v1/namespaces/{settings.namespace}"
        self._records = Records(
            self.client, settings.namespace, policy.tail_bytes, settings.record_cache_bytes, finished=self._changed
        )
        self._owner = InstanceOwner(self.client, settings)
        self.launcher = LauncherDelivery(self.client, settings, self._owner)
        self._poke_address = PokeAddress(settings.poke_address)
        self._lock = threading.Lock()
        self._binds_late_until = 0.0  # on the monotonic clock
        self._volume_uids: OrderedDict[str, str] = OrderedDict()
        self._wake: Callable[[TaskId], None] | None = None
        self._cache = Cache(self._changed, self._records.forget)
        self._watches: tuple[Watch, ...] = ()
        self._workloads = Cache(self._changed)
        self._workload_watches: tuple[Watch, ...] = ()
        self._positions = kueue.QueuePositions(self.client, settings.namespace)
        self._largest: Amount | None = None  # the most that one node has of each resource, if that is known
        self._largest_at = datetime.min.replace(tzinfo=UTC)

    # ── create ──────────────────────────────────────────────────────────────────────────────────────────────────────────

    def create_volume(self, task: Task, plan: Plan) -> None:
        if plan.volume_bytes is None:
            return
        made = self._create(VOLUMES, objects.volume(task, plan, self.settings, self._owner.reference()))
        self._remember_uid(made["metadata"]["name"], made["metadata"]["uid"])

    def create_documents(self, task: Task, plan: Plan) -> None:
        if not plan.has_filers:
            return
        name = objects.volume_name(task.id, task.attempt)
        owned_by = objects.owner("PersistentVolumeClaim", name, self._volume_uid(task, name))
        for secret in objects.secrets(task, plan, self.settings, self._files_of(task), owned_by):
            self._create("secrets", secret)

    def launch(self, task: Task, plan: Plan, pod: PodPlan) -> None:
        until = self.client.monotonic() + LAUNCH_WITHIN.total_seconds()
        if plan.volume_bytes is not None and pod == plan.pods[0]:
            self._await_binding(task)
        files: dict[str, int] = {}
        if plan.has_filers:
            contents = objects.secret_contents(objects.documents(task, plan, self._files_of(task)))
            files = {name: index for index, content in enumerate(contents) for name in content}
        document = pods.pod(
            task,
            plan,
            pod,
            replace(bindings.settings_of(task, self.settings), poke_address=self._poke_address.resolved()),
            self._policy,
            launcher_name=self.launcher.ensure(),
            document_files=files,
            owned_by=self._owner.reference(),
            logs=self._whole_logs,
        )
        self._create(PODS, document, until=until)

    def _files_of(self, task: Task) -> dict[str, bytes]:
        """The filers' files that do not depend on the task's inputs and outputs."""
        text = bindings.filer_settings_of(task, self.settings, self._filer_settings)
        return {objects.SETTINGS_KEY: text.encode(), **self._name_files}

    def _await_binding(self, task: Task) -> None:
        """Wait briefly for the provisioner: a pod scheduled before its volume is bound spends a second or more in the scheduler's back-off.
        Classes that bind only with the first pod are detected, and not waited for again for some time."""
        deadline = time.monotonic() + self.settings.volume_wait.total_seconds()
        if deadline < self._binds_late_until:
            return
        pause = BINDING_PAUSE_S
        while not self._is_bound(task):
            if time.monotonic() + pause > deadline:
                self._binds_late_until = time.monotonic() + BINDS_LATE_S
                return
            time.sleep(pause)
            pause *= 1.5

    def _is_bound(self, task: Task) -> bool:
        """From the watch, else with a request. True also if unknown: creating the pod will show it."""
        name = objects.volume_name(task.id, task.attempt)
        shown = next((v for v in self._cache.volumes(task.id) if v.name == name), None) if self._is_followed() else None
        if shown is not None:
            return shown.bound
        try:
            found = self.client.get(f"{self._core}/{VOLUMES}/{name}")
        except ApiError:
            return True
        view = project_volume(found)
        return view is None or view.bound

    def _create(self, kind: str, document: dict[str, Any], *, until: float | None = None) -> dict[str, Any]:
        """The created object, or an existing one with the same task, attempt and part in its labels."""
        metadata = document["metadata"]
        what = f"create {kind} {metadata['name']}"
        try:
            return self.client.create(f"{self._core}/{kind}", document, until=until)
        except ApiError as error:
            if error.status != 409 or error.reason not in ("AlreadyExists", ""):
                raise translate(error, what) from error
        try:
            found = self.client.get(f"{self._core}/{kind}/{metadata['name']}")
        except ApiError as error:
            if error.status == 404:
                raise ClusterUnavailable(f"{what}: the object existed but was deleted in the meantime") from error
            if error.status == 403 and kind == "secrets":
                # the service has no permission to read Secrets, and others cannot guess the name
                return document
            raise translate(error, f"get {kind} {metadata['name']}") from error
        if not labels.is_same(found.get("metadata") or {}, metadata):
            raise ClusterRefused(f"{what}: an object with that name exists and does not belong to this task")
        return found

    def _volume_uid(self, task: Task, name: str) -> str:
        with self._lock:
            uid = self._volume_uids.get(name)
        uid = uid or next((v.uid for v in self._cache.volumes(task.id) if v.name == name), None)
        if uid is not None:
            return uid
        with translated(f"get volume {name}"):
            found = self.client.get(f"{self._core}/{VOLUMES}/{name}")
        self._remember_uid(name, found["metadata"]["uid"])
        return str(found["metadata"]["uid"])

    def _remember_uid(self, name: str, uid: str) -> None:
        with self._lock:
            self._volume_uids[name] = uid
            while len(self._volume_uids) > MAX_UIDS:
                self._volume_uids.popitem(last=False)

    def accept_records(self, task: Task, records: Sequence[Record]) -> None:
        part = task.part or plan_of(task, self._policy).executor_pods[0].part  # its launch may not be saved yet
        self._records.accept_records(object_name(task.id, task.attempt, part), records)

    # ── observe ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def observe(self, task: Task, *, plan: Plan | None = None, poked: bool = False, tails: bool = False) -> Observed:
        pod_views, volume_views = self._views(task, plan)
        found: list[Pod] = []
        reports: dict[str, FilerReport] = {}
        live: dict[str, tuple[str, str]] = {}
        # of two TOF pods the current one takes precedence
        for view in sorted(pod_views, key=lambda v: v.part == task.part):
            if view.attempt != task.attempt:
                found.append(pod_of(view, task, {}))
                continue
            wait_s = LOG_WAIT_S if self._wake is None else 0.0
            known = self._records.of(view, poked=poked, may_read=not task.due_stage.is_ending, wait_s=wait_s)
            records = {n: r.record for n, r in known.reports.items() if r.record is not None}
            view, queued = self._queued(view) if any(map(kueue.is_gate, view.gates)) else (view, None)
            too_large = self._is_too_large(view)
            found.append(pod_of(view, task, records, reading=known.reading, queued=queued, too_large=too_large))
            reports |= {n: r.report for n, r in known.reports.items() if r.report is not None}
            if tails:
                live |= self._records.tails(view, known.reports)
        return Observed(pods=tuple(found), others=tuple(v.name for v in volume_views), reports=reports, tails=live)

    def _queued(self, view: PodView) -> tuple[PodView, str | None]:
        """Why the pod is in a queue; None: it will not leave that by itself, which the pod then shows as its own reason to wait."""
        workload = self._workloads.workload(view.task_id, view.name)
        if reason := kueue.deactivated(workload):
            return replace(view, waiting=reason), None
        return view, kueue.describe(workload, self._positions.of(workload) if workload is not None else None)

    def _views(self, task: Task, plan: Plan | None) -> tuple[tuple[PodView, ...], tuple[VolumeView, ...]]:
        if self._is_followed():
            known, volumes = self._cache.pods(task.id), self._cache.volumes(task.id)
            if self._is_certain(task, plan, {v.name for v in known}, {v.name for v in volumes}):
                return known, volumes
        if task.due_stage.is_ending or task.part is None:
            return self._listed(task.id)
        return self._listed(task.id, (PODS,), name=object_name(task.id, task.attempt, task.part))

    def _is_certain(self, task: Task, plan: Plan | None, pod_names: set[str], volume_names: set[str]) -> bool:
        """Whether the cache is conclusive: the objects that the task's stage depends on are present, or were seen deleted."""
        if not task.due_stage.is_ending and task.part is not None:
            parts, has_volume = [task.part], False
        else:
            plan = plan or plan_of(task, self._policy)
            parts, has_volume = [p.part for p in plan.pods], plan.volume_bytes is not None
        wanted = {object_name(task.id, task.attempt, part) for part in parts}
        volume = {objects.volume_name(task.id, task.attempt)} if has_volume else set()
        return all(self._cache.is_gone(PODS, name) for name in wanted - pod_names) and all(
            self._cache.is_gone(VOLUMES, name) for name in volume - volume_names
        )

    def _listed(
        self, task_id: TaskId | None, kinds: Sequence[str] = (PODS, VOLUMES), *, name: str | None = None
    ) -> tuple[tuple[PodView, ...], tuple[VolumeView, ...]]:
        """Of one task, or of all. By name the API server need not look at every object of the namespace."""
        query = {"labelSelector": labels.selector(self.settings, task_id)}
        query |= {"fieldSelector": f"metadata.name={name}"} if name is not None else {}
        with translated(f"list objects of task {task_id}" if task_id else "list objects of all tasks"):
            lists = {kind: self.client.get(f"{self._core}/{kind}", query) for kind in kinds}
        pod_views = (project_pod(d) for d in lists[PODS].get("items") or [])
        volume_views = (project_volume(d) for d in lists.get(VOLUMES, {}).get("items") or [])
        return (
            tuple(v for v in pod_views if v is not None and task_id in (None, v.task_id)),
            tuple(v for v in volume_views if v is not None and task_id in (None, v.task_id)),
        )

    # ── delete ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def delete_pods(self, task_id: TaskId, attempts: int, plan: Plan | None = None) -> None:
        self._delete(task_id, attempts, plan, with_volumes=False)

    def delete_all(self, task_id: TaskId, attempts: int | None, plan: Plan | None = None) -> None:
        self._delete(task_id, attempts or 1, plan, with_volumes=True)  # without a plan, what exists is looked up

    def _delete(self, task_id: TaskId, attempts: int, plan: Plan | None, *, with_volumes: bool) -> None:
        """Names of the last attempt come from the plan, other names (earlier attempts, a task without a plan) from the cache or a list.
        The volume owns the Secrets, which are deleted with it."""
        pod_names = [object_name(task_id, attempts, p.part) for p in plan.pods] if plan else []
        volume_names = [objects.volume_name(task_id, attempts)] if plan and plan.volume_bytes is not None else []
        if self._is_followed():
            known, volumes = self._cache.pods(task_id), self._cache.volumes(task_id)
        elif attempts > 1 or plan is None:
            known, volumes = self._listed(task_id)
        else:
            known, volumes = (), ()
        pod_names += [v.name for v in known if v.name not in pod_names]
        volume_names += [v.name for v in volumes if v.name not in volume_names]
        for name in pod_names:
            self._delete_one(PODS, name)
        if with_volumes:
            for name in volume_names:
                self._delete_one(VOLUMES, name)
            for view in known:
                self._records.forget(view)

    def _delete_one(self, kind: str, name: str) -> None:
        if self._is_followed() and self._cache.is_gone(kind, name):
            return
        with translated(f"delete {kind} {name}"):
            self.client.delete(f"{self._core}/{kind}/{name}", {"propagationPolicy": "Background"})

    # ── events ──────────────────────────────────────────────────────────────────────────────────────────────────────────

    def follow(self, wake: Callable[[TaskId], None]) -> None:
        """Start watching; returns at once. Until the first list is complete, `observe` lists."""
        self._wake = wake
        selector = labels.selector(self.settings)
        self._watches = (
            Watch(self.client, self.settings, PODS, selector, self._project_pod, self._cache),
            Watch(self.client, self.settings, VOLUMES, selector, project_volume, self._cache),
        )
        if kueue.is_used(self.settings):
            project, api = kueue.project_workload, kueue.API
            watch = Watch(self.client, self.settings, kueue.WORKLOADS, "", project, self._workloads, api=api)
            self._workload_watches = (watch,)
            self._positions.start()
        for watch in (*self._watches, *self._workload_watches):
            watch.start()

    def _project_pod(self, document: Mapping[str, Any]) -> PodView | None:
        return project_pod(document, self.settings.gpu_resource)

    def synced(self, timeout: float | None = None) -> bool:
        """Wait for the first lists; whether they are complete."""
        return bool(self._watches) and all(w.synced.wait(timeout) for w in self._watches)

    def task_ids(self) -> Iterable[TaskId]:
        """From the cache if there is a watch, else with two lists."""
        if self._is_followed():
            return self._cache.task_ids()
        pod_views, volume_views = self._listed(None)
        return dict.fromkeys((*(v.task_id for v in pod_views), *(v.task_id for v in volume_views)))

    def may_have_pod(self, task_id: TaskId) -> bool:
        """True also without a watch that would show it."""
        return not self._is_followed() or bool(self._cache.pods(task_id))

    def starting(self) -> Collection[TaskId]:
        return self._cache.starting() if self._is_followed() else ()

    def is_on_its_way(self, task_id: TaskId) -> bool:
        return self._cache.is_on_its_way(task_id)

    def _is_followed(self) -> bool:
        return bool(self._watches) and all(w.is_fresh() for w in self._watches)

    def _changed(self, task_id: TaskId) -> None:
        if self._wake is not None:
            try:
                self._wake(task_id)
            except Exception:
                log.exception("wake_failed", extra={"task_id": task_id})

    # ── nodes ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def capacity(self, at: datetime) -> Capacity:
        """Of all nodes, with what the pods that the watch shows request. Raises: ClusterUnavailable without the right to list nodes."""
        if not self._is_followed():
            raise ClusterUnavailable("the pods of tasks are not known yet")
        try:
            found = capacity_of(self._nodes(), self._cache.all_pods(), self.settings, at)
        except PoiesisError:
            if at - self._largest_at >= NODES_KNOWN:
                self._largest = None
            raise
        self._largest, self._largest_at = found.largest if found.usable else None, at
        return found

    def _is_too_large(self, view: PodView) -> bool:
        """Whether the pod requests more of a resource than any usable node has; False if the nodes are not known."""
        return self._largest is not None and any(
            asked > most for asked, most in zip(view.requested, self._largest, strict=True)
        )

    def _nodes(self) -> Iterator[Mapping[str, Any]]:
        query: dict[str, object] = {"limit": self.settings.page_size}
        while True:
            with translated("list nodes"):
                page = self.client.get("/api/v1/nodes", query)
            yield from page.get("items") or []
            token = (page.get("metadata") or {}).get("continue")
            if not token:
                return
            query["continue"] = token

    # ── other ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def ready(self) -> None:
        try:
            self.client.get("/version")
        except ApiError as error:
            raise ClusterUnavailable(f"get the API server's version: {error}") from error

    def close(self) -> None:
        for watch in (*self._watches, *self._workload_watches):
            watch.close()
        self._positions.close()
        self._records.close()
        self.client.close()
