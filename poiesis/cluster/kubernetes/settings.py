"""A site's settings for Kubernetes, read once in bootstrap. The docstring of a field has its unit and the reason of its default."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import PurePosixPath
from typing import Any, Literal
from urllib.parse import urlsplit

from poiesis.cluster.kubernetes.quantities import quantity
from poiesis.domain.errors import ConfigurationError
from poiesis.domain.policy import NO_SETTING
from poiesis.ports.cluster import LAUNCH_WITHIN

_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
Delivery = Literal["configmap", "init"]
PodSecurity = Literal["baseline", "restricted"]


@dataclass(frozen=True)
class Placement:
    """Placement and metadata of one kind of pods: preemptible, with GPUs, of a node class or service class."""

    node_selector: Mapping[str, str] = field(default_factory=dict)
    """Labels that the node must have."""
    tolerations: tuple[Mapping[str, Any], ...] = ()
    """As in a pod: `{"key": …, "operator": …, "value": …, "effect": …}`."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Additional labels of the pod."""
    annotations: Mapping[str, str] = field(default_factory=dict)
    """Additional annotations of the pod."""
    priority_class: str | None = None
    """The pod's PriorityClass."""
    runtime_class: str | None = None
    """The pod's RuntimeClass."""
    cpu_limit: bool | None = None
    """None: `KubernetesSettings.cpu_limit`."""


@dataclass(frozen=True)
class Resources:
    """Kubernetes quantities (`250m`, `64Mi`); None: not set."""

    cpu_request: str | None = None
    memory_request: str | None = None
    cpu_limit: str | None = None
    memory_limit: str | None = None


@dataclass(frozen=True)
class CacheVolume:
    """The input cache, mounted only in TIF's containers: a host_path or a claim, or neither (docs/data-plane.md)."""

    host_path: str | None = None
    """A directory of the node, writable for filers; each node has its own cache. Pod Security `baseline` and `restricted` do not permit
    it."""
    claim: str | None = None
    """Name of a PersistentVolumeClaim in the namespace: a cache shared by all nodes that can mount it (ReadWriteMany)."""
    sub_path: str | None = None
    """Directory in the claim's volume; None: its root."""

    def __post_init__(self) -> None:
        if self.host_path and self.claim:
            raise ConfigurationError("cache_volume: set host_path or claim, not both")
        if self.sub_path and not self.claim:
            raise ConfigurationError("cache_volume: sub_path requires claim")
        if self.host_path and not _is_deep(self.host_path):
            raise ConfigurationError(
                "cache_volume: host_path must be an absolute path at least two directories deep, without '..'"
            )
        if self.sub_path and (self.sub_path.startswith("/") or ".." in self.sub_path.split("/")):
            raise ConfigurationError("cache_volume: sub_path must be a relative path without '..'")

    @property
    def is_set(self) -> bool:
        return bool(self.host_path or self.claim)


@dataclass(frozen=True)
class Binding:
    """Credentials of the tasks of one user or group, in place of those that all tasks share."""

    secret: str | None = None
    """Name of a Secret in the namespace with the credentials of filers, by fixed keys (docs/operators.md), in place of all Secrets of
    filers. None: the shared ones; empty: none."""
    pull_secrets: tuple[str, ...] | None = None
    """Names of image pull Secrets, in place of `KubernetesSettings.pull_secrets`. None: those."""

    def __post_init__(self) -> None:
        for name in (*([self.secret] if self.secret else []), *(self.pull_secrets or ())):
            if not _NAME.fullmatch(name):
                raise ConfigurationError(f"bindings: invalid name of a Secret: {name!r}")


def _is_deep(path: str) -> bool:
    """Not `/`, `/etc`, `/var`: a typing error must not expose a node's directories to a container."""
    return path.startswith("/") and ".." not in path.split("/") and len(PurePosixPath(path).parts) > 2


@dataclass(frozen=True)
class KubernetesSettings:
    namespace: str = "default"
    """Namespace of the tasks' objects."""
    instance: str = "poiesis"
    """Value of `app.kubernetes.io/instance`: separates services that share a namespace."""
    kubeconfig: str | None = None
    """Path; None: the pod's service account, else KUBECONFIG or ~/.kube/config."""
    context: str | None = None
    """Of the kubeconfig; None: the current one."""

    image: str = "localhost/poiesis:dev"
    """The service's own image, for filers and for delivery `init`."""
    pull_policy: str | None = None
    """For users' images; None: Kubernetes' default (Always for `:latest`, else IfNotPresent), or with pull Secrets in `bindings` Always,
    because a node gives an image that it has to every pod that does not pull."""
    filer_pull_policy: str | None = None
    """For `image` in tasks' pods; None: Kubernetes' default."""
    pull_secrets: tuple[str, ...] = ()
    """Names of image pull Secrets in the namespace."""

    delivery: Delivery = "configmap"
    """How containers get the launcher: `configmap` costs nothing; `init` (an init container copies it: +1 s) is for sites that forbid
    executables in ConfigMaps."""
    launchers: Mapping[str, str] = field(default_factory=dict)
    """Path of the launcher for each architecture (`amd64`, `arm64`), for `configmap`. Pods are pinned to one of them. Empty: the launchers
    shipped with the package."""
    architecture: str | None = None
    """For tasks that do not set it, with `configmap`. None: that of the node that runs the service; set it in clusters with nodes of
    several architectures."""
    init_command: tuple[str, ...] = ("cp", "/usr/local/bin/launcher", "/poiesis/bin/launcher")
    """Copies the launcher out of `image`, for `init`."""

    filer_command: tuple[str, ...] = ("python", "-m", "poiesis.filer")
    """In `image`; followed by `in` or `out` and the paths of document, volume and settings. Replaced in tests."""
    filer_env: Mapping[str, str] = field(default_factory=dict)
    """Variables of filer containers, not for secrets (proxies, AWS_REGION)."""
    filer_env_secrets: tuple[str, ...] = ()
    """Names of Secrets whose keys become variables of filer containers only (AWS_ACCESS_KEY_ID, …)."""
    filer_file_secrets: Mapping[str, str] = field(default_factory=dict)
    """Name of a Secret → directory where filer containers, and no others, mount its keys as files."""
    filer_resources: Resources = Resources(memory_request="64Mi", memory_limit="1Gi")
    """Of a filer container; no CPU request by default, because filers work while the executors are idle."""
    filer_run_as_user: int | None = 65532
    """None: not set, for clusters that assign one (OpenShift). 0 lets TOF read files that are readable for root only."""

    bindings: Mapping[str, Binding] = field(default_factory=dict)
    """Credentials by user, `group:NAME`, or `*` for all others, in place of the shared ones: JSON objects of the fields above. Of several
    groups of a user the first one here counts."""
    bound_file_secrets: tuple[str, ...] = ()
    """Those of `filer_file_secrets` without credentials (certificates, known_hosts), which tasks with a binding mount too."""
    image_pull_secrets: tuple[str, ...] = ()
    """Names of image pull Secrets for `image`, which tasks keep whose binding replaces `pull_secrets`."""
    logs_env_secrets: tuple[str, ...] = ()
    """Names of Secrets whose keys become variables of the containers that fill the log store, and of no others
    (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY); see POIESIS_LOGS__URL."""
    logs_file_secrets: Mapping[str, str] = field(default_factory=dict)
    """Name of a Secret → directory where these containers mount its keys as files, such as POIESIS_LOGS__CA_FILE."""
    logs_claim: str | None = None
    """PersistentVolumeClaim (ReadWriteMany) of a log store that is a directory; mounted there in these containers."""
    logs_resources: Resources = Resources(memory_request="32Mi", memory_limit="128Mi")
    """Of these containers, one in each pod with executors while POIESIS_LOGS__URL is set."""

    cache_volume: CacheVolume = CacheVolume()
    """The input cache; becomes the `cache_dir` of TIF's filer."""

    pod_security: PodSecurity = "baseline"
    """Pod Security Standard of task pods. `baseline` allows images that run as root; `restricted` requires another user, drops all
    capabilities, and is for namespaces that enforce it."""
    run_as_user: int | None = None
    """Of executors; None: the image's. Required with `restricted` for images without a numeric user."""
    run_as_group: int | None = None
    """Of executors; None: the image's."""
    fs_group: int | None = 65532
    """Group of the volume's files, so that filers and executors with different users can write the same directories. None: not set, for
    clusters that assign one (OpenShift)."""
    net_raw: bool = False
    """Whether executors keep the capability NET_RAW, with which a command can read the unencrypted traffic of its pod."""
    resolv_conf: str | None = None
    """Content of /etc/resolv.conf in filer containers beside executors. None: that of the service's own pod, with the search list of the
    tasks' namespace. Required outside the cluster, and with dnsPolicy or dnsConfig in `extra_pod_spec`."""
    read_only_root: bool = False
    """Whether executors' root file system is read-only; most images expect to write to /tmp."""
    service_account: str | None = None
    """None: the namespace's default. Its token is not mounted."""

    storage_class: str | None = None
    """None: the cluster's default."""
    access_mode: str = "ReadWriteOnce"
    """Of tasks' volumes."""
    volume_wait: timedelta = timedelta(seconds=1)
    """How long the creation of a pod waits for its volume to be bound: an earlier pod spends a second or more in the scheduler's back-off.
    Zero for classes that bind with the first pod (they are also detected)."""
    control_size: str = "64Mi"
    """Size limit of the control directory, by whose files containers take turns."""

    default_cpu_cores: float | None = None
    """Request of tasks that do not set cpu_cores. None: none, so that idle tasks do not fill a small cluster."""
    default_ram_gb: float | None = None
    """Request and limit of tasks that do not set ram_gb. None: none."""
    ephemeral_storage_limit: str | None = None
    """Of what an executor writes outside of the task's volume (the root file system of its container), such as `20Gi`; a task that writes
    more ends as DiskLimit. At least 1Gi, since the control files of the pod count too, and with whole logs 2Gi. None: no limit."""
    cpu_limit: bool = False
    """Whether cpu_cores is also a limit. False: a task may use idle CPUs. The memory limit always equals its request."""

    min_requests: Mapping[str, str] = field(default_factory=dict)
    """What every container of tasks' pods requests at least of a resource for which it has a request: a JSON object such as
    `{"cpu": "10m", "memory": "16Mi"}`. For a namespace whose LimitRange has `min`: of several executors only the first one has the task's
    requests, and the others, which take turns with it, request nothing."""

    preemptible: Placement = Placement()
    """For tasks with `preemptible: true`."""
    on_demand: Placement = Placement()
    """For all other tasks."""
    zone_label: str = "topology.kubernetes.io/zone"
    """Node label for `zones`."""
    gpu_resource: str = "nvidia.com/gpu"
    """Extended resource for the parameter `gpu`."""
    gpu: Placement = Placement()
    """For pods with GPUs, and for the transfers of such tasks unless `access_mode` is ReadWriteMany."""
    gpu_type_label: str | None = None
    """Node label for the parameter `gpu_type`; None: not supported."""
    node_classes: Mapping[str, Placement] = field(default_factory=dict)
    """Placements for the parameter `node_class`, by name: JSON objects of the fields above."""
    service_classes: Mapping[str, Placement] = field(default_factory=dict)
    """The same for the parameter `service_class`."""
    admission_classes: frozenset[str] = field(default=frozenset(), metadata=NO_SETTING)
    """Further service classes, which only matter for admission, and that of tasks that do not ask for one."""
    priority_classes: frozenset[str] = frozenset()
    """PriorityClasses that tasks may use."""
    default_priority_class: str | None = None
    """Of tasks that do not set `priority_class`."""
    queue: str | None = None
    """Kueue's local queue of tasks that do not name one. None: such tasks are not Kueue's."""
    queues: Mapping[str, Any] = field(default_factory=dict)
    """Further local queues that tasks may name: a JSON object of lists, by user, `group:NAME`, or `*` for everyone."""
    default_queues: Mapping[str, str] = field(default_factory=dict)
    """Local queue of tasks that do not name one, by user, `group:NAME`, or `*`: the first entry that fits its owner; else `queue`."""

    owner: str | None = None
    """Name of a ConfigMap in the namespace that owns all tasks' objects, so that Kubernetes deletes them with it (helm uninstall). It must
    exist as long as the service: a recreated one is a different owner. None: no owner."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Additional labels of all objects."""
    annotations: Mapping[str, str] = field(default_factory=dict)
    """Annotations of pods."""
    extra_pod_spec: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the pod's spec (`hostAliases`, `dnsConfig`, `schedulerName`); those set by the service take precedence, but
    `nodeSelector`, `tolerations` and `affinity` apply in addition to the placement of each kind of task."""

    read_nodes: bool = False
    """Whether the leading monitor lists nodes, for the room that the dashboard's overview shows to administrators, and to know which tasks
    are larger than every node. It needs a ClusterRole (`list` of nodes), which the chart creates with `rbac.readNodes`."""

    poke_address: str | None = None
    """`host:port` of TExAM's poke listener, for launchers; None: ends are only noticed by the watch, half a second later."""
    poke_listen: str = "0.0.0.0:8082"
    """Where TExAM's monitor listens for pokes: the only port of the service that task pods need to reach."""
    poke_start: bool = False
    """Also poke when an executor's command starts."""

    connect_timeout: timedelta = timedelta(seconds=3)
    """Of a connection to the API server."""
    read_timeout: timedelta = timedelta(seconds=15)
    """Of one call to the API server; with `connect_timeout` less than a minute, since a pod is created within that time or not at all."""
    attempts: int = 4
    """Of one call, including the first, for transient failures: about four seconds in total."""
    writes_per_second: float = 100.0
    """Objects that one process creates, and deletes, a second at most. The rate is halved whenever the API server answers 429."""
    pool_size: int = 16
    """Size of the connection pool; further threads wait."""
    watch_timeout: timedelta = timedelta(minutes=5)
    """After which a watch is restarted where it ended, with jitter."""
    relist: timedelta = timedelta(minutes=30)
    """After which everything is listed again."""
    page_size: int = 250
    """Page size of lists."""
    record_cache_bytes: int = 32 * 1024 * 1024
    """Size of the cache of closing records, so that no log is read twice."""

    def __post_init__(self) -> None:
        for key, queues in self.queues.items():
            if not isinstance(queues, list | tuple) or not all(isinstance(queue, str) for queue in queues):
                raise ConfigurationError(f"queues: {key!r} must be a list of queue names")
        if self.connect_timeout + self.read_timeout >= LAUNCH_WITHIN:
            raise ConfigurationError(
                f"read_timeout: with connect_timeout it must be less than {LAUNCH_WITHIN.seconds}s"
            )
        if unknown := set(self.bound_file_secrets) - set(self.filer_file_secrets):
            raise ConfigurationError(f"bound_file_secrets: {min(unknown)!r} is not in filer_file_secrets")
        if self.pod_security == "restricted" and self.cache_volume.host_path:
            raise ConfigurationError("cache_volume: Pod Security `restricted` does not permit host_path; use claim")
        for name, value in self.min_requests.items():
            if not quantity(value):
                raise ConfigurationError(
                    f"min_requests: invalid quantity {value!r} of {name}: use one such as 10m or 16Mi"
                )
        for name, value in self.filer_env.items():
            if name.lower().endswith("_proxy") and name.lower() != "no_proxy" and _is_loopback(value):
                raise ConfigurationError(
                    f"filer_env: {name} is an address of the pod itself, where a task's command can listen: use a proxy outside of it"
                )


def _is_loopback(proxy: str) -> bool:
    host = urlsplit(proxy if "://" in proxy else f"//{proxy}").hostname or ""
    return host in ("localhost", "::1", "::", "0.0.0.0") or host.startswith("127.")
