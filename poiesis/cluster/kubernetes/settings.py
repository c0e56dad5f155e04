"""What a site decides about Kubernetes. Read once, in bootstrap; every field has its unit and the reason of its default below it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import PurePosixPath
from typing import Any, Literal
from urllib.parse import urlsplit

from poiesis.domain.errors import ConfigurationError

Delivery = Literal["configmap", "init"]
PodSecurity = Literal["baseline", "restricted"]


@dataclass(frozen=True)
class Placement:
    """Where pods of one kind go and what they carry: of preemptible tasks, of tasks with GPUs, of a node class or service class."""

    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Mapping[str, Any], ...] = ()
    """As in a pod: `{"key": …, "operator": …, "value": …, "effect": …}`."""
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    priority_class: str | None = None
    runtime_class: str | None = None
    cpu_limit: bool | None = None
    """None: as `KubernetesSettings.cpu_limit` says."""


@dataclass(frozen=True)
class Resources:
    """Quantities as Kubernetes writes them (`250m`, `64Mi`); None: not said."""

    cpu_request: str | None = None
    memory_request: str | None = None
    cpu_limit: str | None = None
    memory_limit: str | None = None


@dataclass(frozen=True)
class CacheVolume:
    """Where TIF's containers, and no others, keep inputs for other tasks: one of both, or none (docs/data-plane.md)."""

    host_path: str | None = None
    """A directory of the node; every node has a cache of its own. Filers have to be able to write to it. Namespaces that enforce
    Pod Security `baseline` or `restricted` refuse it."""
    claim: str | None = None
    """Name of a PersistentVolumeClaim in the namespace: one cache for all nodes that can mount it (ReadWriteMany)."""
    sub_path: str | None = None
    """Directory of the claim's volume; None: all of it."""

    def __post_init__(self) -> None:
        if self.host_path and self.claim:
            raise ConfigurationError("the cache is on a host_path or on a claim, not on both")
        if self.sub_path and not self.claim:
            raise ConfigurationError("the cache's sub_path is one of a claim")
        if self.host_path and not _is_deep(self.host_path):
            raise ConfigurationError(
                "the cache's host_path has to be an absolute path at least two directories deep, without '..'"
            )
        if self.sub_path and (self.sub_path.startswith("/") or ".." in self.sub_path.split("/")):
            raise ConfigurationError("the cache's sub_path has to be a relative path without '..'")

    @property
    def is_set(self) -> bool:
        return bool(self.host_path or self.claim)


def _is_deep(path: str) -> bool:
    """No `/`, `/etc`, `/var`: a slip of the pen must not open a node's directories to a container."""
    return path.startswith("/") and ".." not in path.split("/") and len(PurePosixPath(path).parts) > 2


@dataclass(frozen=True)
class KubernetesSettings:
    namespace: str = "default"
    """Where tasks run; every object is made there."""
    instance: str = "poiesis"
    """Value of `app.kubernetes.io/instance`: two services in one namespace see only their own objects."""
    kubeconfig: str | None = None
    """Path; None: the service account of the pod we run in, else KUBECONFIG or ~/.kube/config."""
    context: str | None = None
    """Of the kubeconfig; None: its current one."""

    image: str = "localhost/poiesis:dev"
    """Of the filers (and of the `init` delivery): the service's own."""
    pull_policy: str | None = None
    """Of users' images; None: Kubernetes' default (Always for `:latest`, else IfNotPresent)."""
    filer_pull_policy: str | None = None
    pull_secrets: tuple[str, ...] = ()
    """Names of image pull Secrets in the namespace."""

    delivery: Delivery = "configmap"
    """How the launcher comes into containers. `configmap` costs nothing, `init` (a container that copies it: +1 s) is for sites that
    forbid executables in ConfigMaps."""
    launchers: Mapping[str, str] = field(default_factory=dict)
    """Path of the launcher's binary for each architecture (`amd64`, `arm64`), for `configmap`. Pods are pinned to one of them. Empty:
    those that came with this package."""
    architecture: str | None = None
    """Of tasks that ask for none, for `configmap`. None: that of the node on which the service itself runs; a cluster with nodes of both
    needs one named here."""
    init_command: tuple[str, ...] = ("cp", "/usr/local/bin/launcher", "/poiesis/bin/launcher")
    """What copies the launcher out of `image`, for `init`."""

    filer_command: tuple[str, ...] = ("python", "-m", "poiesis.filer")
    """In `image`; followed by `in` or `out` and the paths of document, volume and settings. Tests put a stand-in here."""
    filer_env: Mapping[str, str] = field(default_factory=dict)
    """Variables of filer containers, without secrets (proxies, AWS_REGION)."""
    filer_env_secrets: tuple[str, ...] = ()
    """Names of Secrets whose keys become variables of filer containers alone (AWS_ACCESS_KEY_ID, …)."""
    filer_file_secrets: Mapping[str, str] = field(default_factory=dict)
    """Name of a Secret → directory in filer containers alone where its keys appear as files."""
    filer_resources: Resources = Resources(memory_request="64Mi", memory_limit="1Gi")
    """No CPU is reserved: filers work while the executors' share lies idle."""
    filer_run_as_user: int | None = 65532
    """None: not set, for clusters that choose one themselves (OpenShift). 0 lets TOF read files that an executor's root kept to itself."""

    cache_volume: CacheVolume = CacheVolume()
    """Keeps inputs for other tasks; it becomes the `cache_dir` of TIF's filer."""

    pod_security: PodSecurity = "baseline"
    """Pod Security Standard that task pods meet. `baseline` runs images that need root; `restricted` demands another user, drops every
    capability, and is for namespaces that enforce it."""
    run_as_user: int | None = None
    """Of executors; None: the image's. With `restricted`, images without a numeric user need one here."""
    run_as_group: int | None = None
    fs_group: int | None = 65532
    """Group of the volume's files, so that filers and executors of any user can write where the other one did. None: not set, for
    clusters that choose one themselves (OpenShift)."""
    net_raw: bool = False
    """Whether executors keep the capability NET_RAW, with which a command can read the unencrypted traffic of its pod."""
    resolv_conf: str | None = None
    """Content of /etc/resolv.conf in filer containers. None: that of the service's own pod, with the search list of the tasks'
    namespace and the `dnsConfig` of `extra_pod_spec`."""
    read_only_root: bool = False
    """Executors' root file system; most images expect to write to /tmp."""
    service_account: str | None = None
    """None: the namespace's default one. No pod of a task is given its token."""

    storage_class: str | None = None
    """None: the cluster's default."""
    access_mode: str = "ReadWriteOnce"
    volume_wait: timedelta = timedelta(seconds=1)
    """How long a pod's creation waits for its volume to be bound: the scheduler punishes a pod that comes earlier by a second and more.
    Zero for classes that bind with the first pod (they are noticed too)."""
    control_size: str = "64Mi"
    """Limit of the small shared directory by whose files containers take turns."""

    default_cpu_cores: float | None = None
    """Requested for tasks that ask for none. None: nothing, so that idle tasks do not fill a small cluster."""
    default_ram_gb: float | None = None
    cpu_limit: bool = False
    """Whether cpu_cores is also a limit. Off: a task may use what lies idle. Memory's limit is always its request."""

    preemptible: Placement = Placement()
    """Of tasks with `preemptible: true`."""
    on_demand: Placement = Placement()
    """Of all others."""
    zone_label: str = "topology.kubernetes.io/zone"
    """Node label that `zones` names values of."""
    gpu_resource: str = "nvidia.com/gpu"
    gpu: Placement = Placement()
    """Of pods that hold GPUs."""
    gpu_type_label: str | None = None
    """Node label that the parameter `gpu_type` is a value of; None: such tasks are refused."""
    node_classes: Mapping[str, Placement] = field(default_factory=dict)
    service_classes: Mapping[str, Placement] = field(default_factory=dict)
    priority_classes: frozenset[str] = frozenset()
    """PriorityClasses that tasks may name."""
    default_priority_class: str | None = None
    queue: str | None = None
    """Kueue's local queue of tasks that do not name one. None: such tasks are not Kueue's."""
    queues: Mapping[str, Any] = field(default_factory=dict)
    """Further local queues that tasks may name: a JSON object of lists, by user, `group:NAME`, or `*` for everyone."""

    owner: str | None = None
    """Name of a ConfigMap in the namespace that owns all tasks' objects: when it goes (helm uninstall), Kubernetes collects them. It
    must live as long as the service: a new one of the same name is another owner. None: no owner."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """On every object, beside ours."""
    annotations: Mapping[str, str] = field(default_factory=dict)
    """On pods."""
    extra_pod_spec: Mapping[str, Any] = field(default_factory=dict)
    """Fields of a pod's spec as Kubernetes writes them (`hostAliases`, `dnsConfig`, `schedulerName`); ours win."""

    poke_address: str | None = None
    """`host:port` where TExAM listens for wake-ups by the launcher; None: ends are learnt from the watch alone, half a second later."""
    poke_listen: str = "0.0.0.0:8082"
    """Where TExAM's monitor listens for pokes: the only port of the service that task pods need to reach."""
    poke_path: str = "/poke/{task_id}/{nonce}"
    poke_start: bool = False
    """Also when an executor's command begins."""

    connect_timeout: timedelta = timedelta(seconds=3)
    read_timeout: timedelta = timedelta(seconds=15)
    """Of one call to the API server."""
    attempts: int = 4
    """At one call, the first one counted, for faults that pass: about four seconds in all."""
    pool_size: int = 16
    """Connections kept; more threads than this wait for one."""
    watch_timeout: timedelta = timedelta(minutes=5)
    """After which a watch is begun anew where it ended, with jitter."""
    relist: timedelta = timedelta(minutes=30)
    """After which everything is listed again, whatever the watch said."""
    page_size: int = 250
    """Of lists."""
    record_cache_bytes: int = 32 * 1024 * 1024
    """Of closing records kept so that no log is read twice."""

    def __post_init__(self) -> None:
        for key, queues in self.queues.items():
            if not isinstance(queues, list | tuple) or not all(isinstance(queue, str) for queue in queues):
                raise ConfigurationError(f"queues: {key!r} must be a list of queue names")
        if self.pod_security == "restricted" and self.cache_volume.host_path:
            raise ConfigurationError("Pod Security `restricted` has no host_path: keep the cache on a claim")
        for name, value in self.filer_env.items():
            if name.lower().endswith("_proxy") and name.lower() != "no_proxy" and _is_loopback(value):
                raise ConfigurationError(
                    f"filer_env: {name} is an address of the pod itself, where a task's command can listen: use a proxy outside of it"
                )


def _is_loopback(proxy: str) -> bool:
    host = urlsplit(proxy if "://" in proxy else f"//{proxy}").hostname or ""
    return host in ("localhost", "::1", "::", "0.0.0.0") or host.startswith("127.")
