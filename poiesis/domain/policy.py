"""What a site configures for tasks: limits, deadlines, retries, defaults. Plain values, read from the environment by `poiesis.config`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta

from poiesis.domain.quotas import GIGABYTE, NO_SETTING, AdmissionRules

__all__ = ["GIGABYTE", "LONGEST", "NO_SETTING", "Limits", "Policy"]

LONGEST = timedelta(days=3650)
"""The longest duration that the launcher takes."""


def _never(urls: Iterable[str]) -> bool:
    return False


@dataclass(frozen=True)
class Limits:
    """Limits of a single task. A task beyond one of them is refused (400)."""

    max_executors: int = 100
    max_inputs: int = 10_000
    max_outputs: int = 10_000
    max_volumes: int = 100
    max_tags: int = 1_000
    max_content_bytes: int = 1024 * 1024
    """Of the `content` of one input; TES requires at least 128 KiB."""
    max_total_content_bytes: int = 8 * 1024 * 1024
    """Of all `content` of a task together. Keeps a stored document well below MongoDB's 16 MB."""
    max_command_bytes: int = 128 * 1024
    """Of one argument (Linux allows 128 KiB); all arguments and variables of an executor together may have five times as much."""
    max_text_bytes: int = 64 * 1024
    """Of the name, the description, and each tag."""
    max_cpu_cores: float | None = None
    """None: no limit."""
    max_ram_gb: float | None = None
    """None: no limit."""
    max_disk_gb: float | None = None
    """None: no limit."""
    max_shm_gb: float | None = None
    """Of the backend parameter shm_gb. None: the task's ram_gb, or 1 if it requests none."""


@dataclass(frozen=True)
class Policy:
    limits: Limits = field(default_factory=Limits)

    url_schemes_in: frozenset[str] = field(default=frozenset({"s3", "http", "https", "file"}), metadata=NO_SETTING)
    """URL schemes that TIF can read; others are refused when a task is created."""
    url_schemes_out: frozenset[str] = field(default=frozenset({"s3", "file"}), metadata=NO_SETTING)
    file_roots: tuple[str, ...] = field(default=(), metadata=NO_SETTING)
    """Directories allowed in `file://` URLs (absolute, symlinks resolved). Empty: `file` is refused."""

    backend_parameters: frozenset[str] = field(
        default=frozenset({"time_limit", "optional_outputs"}), metadata=NO_SETTING
    )
    """Supported keys of tesResources.backend_parameters, in lower case; see `domain.parameters`. Default: those of a single machine."""

    queues: Mapping[str, tuple[str, ...]] = field(default_factory=dict, metadata=NO_SETTING)
    """Kueue's local queues that tasks may name, by user, `group:NAME`, or `*` for everyone."""

    admission: AdmissionRules = field(default_factory=AdmissionRules, metadata=NO_SETTING)
    """Quotas, and who goes first when they are full."""

    exposes_credentials: Callable[[Iterable[str]], bool] = field(default=_never, metadata=NO_SETTING, compare=False)
    """Whether transfers to any of these URLs send credentials unencrypted although the site does not allow it beside a task's commands."""

    group_may_cancel: bool = False
    """Whether members of a task's groups, who see it, may also cancel it. False: only its owner and administrators may."""

    layout: str = "auto"
    """`auto`, `single` or `staged`."""
    default_disk_bytes: int = 10 * GIGABYTE
    """Size of the volume of a task without `disk_gb`."""
    tail_bytes: int = 16 * 1024
    """How much of the end of stdout and of stderr is kept in the task's log. Two of these for each executor must fit into a document."""

    default_time_limit: timedelta | None = None
    """Of each executor, if the task does not set one. None: no limit."""
    max_time_limit: timedelta | None = None
    """Maximum for each executor, and the limit of tasks that do not set one. None: unlimited."""
    grace: timedelta = timedelta(seconds=10)
    """Between SIGTERM and SIGKILL."""
    turn_timeout: timedelta = timedelta(days=8)
    """How long a container waits for its turn at most, not counting the time while the containers before it run: a last resort if all that
    could end it is gone."""

    max_attempts: int = 3
    """Maximum number of attempts, including the first, if faults of the infrastructure end them. Repetitions for lack of memory
    (`memory_retries`) do not count."""
    retry_started: bool = True
    """Whether an attempt may be retried after its command had begun. False if running a command at most once matters more than success."""
    show_preempted: bool = False
    """End a task as PREEMPTED instead of SYSTEM_ERROR if its last attempt was preempted. Several clients wait forever on PREEMPTED."""
    retry_delay: timedelta = timedelta(seconds=2)
    """Delay before the second attempt; doubles with each further attempt, up to five minutes."""

    on_demand_after: int | None = None
    """After how many attempts lost with their preemptible nodes a preemptible task falls back to other nodes; less than `max_attempts`.
    Preemptions by Kueue do not count. None: never."""

    schedule_deadline: timedelta = timedelta(hours=24)
    """How long a pod may wait to be scheduled to a node, unless the nodes that it could run on are only busy: then it waits for them."""
    no_node_deadline: timedelta = timedelta(minutes=15)
    """The same where no node of the cluster could run the pod even if it was empty. Longer than an autoscaler takes to add a node."""
    start_deadline: timedelta = timedelta(hours=1)
    """How long a scheduled pod may take to start all containers, including image pulls without errors."""
    image_deadline: timedelta = timedelta(seconds=60)
    """How long a failing image pull is tolerated; if the image is not found or access is denied, the task ends at once."""
    stage_in_deadline: timedelta = timedelta(days=1)
    """How long the download of all inputs may take, from its start; after that it is stopped, and the task ends as SYSTEM_ERROR."""
    stage_out_deadline: timedelta = timedelta(days=1)
    """How long the upload of all outputs may take, from its start; after that it is stopped, and the task ends as SYSTEM_ERROR."""
    cluster_deadline: timedelta = timedelta(hours=24)
    """How long a task waits for a cluster that is unavailable or has no quota left before it ends as SYSTEM_ERROR."""
    recheck: timedelta = timedelta(seconds=30)
    """How often a running task is checked even without an event."""
    keep: timedelta = timedelta(0)
    """How long the pods and volumes of a finished task are kept for debugging."""

    def staging_deadline(self, is_input: bool) -> timedelta:
        return self.stage_in_deadline if is_input else self.stage_out_deadline
