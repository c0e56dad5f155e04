"""What a site decides about tasks: limits, deadlines, retries, defaults. Pure values; `poiesis.config` reads them from the environment."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

GIGABYTE = 10**9
NO_SETTING: Final[Mapping[str, bool]] = {
    "setting": False
}  # what the adapters can do: `bootstrap` fills it in, nobody sets it


def _never(urls: Iterable[str]) -> bool:
    return False


@dataclass(frozen=True)
class Limits:
    """What a single task may ask for. Broken limits are problems of the request (400)."""

    max_executors: int = 100
    max_inputs: int = 10_000
    max_outputs: int = 10_000
    max_volumes: int = 100
    max_tags: int = 1_000
    max_content_bytes: int = 1024 * 1024
    """Of one input's `content`; TES asks for at least 128 KiB."""
    max_total_content_bytes: int = 8 * 1024 * 1024
    """Of all `content` of a task together: keeps a stored document far below MongoDB's 16 MB."""
    max_command_bytes: int = 128 * 1024
    """One argument, and all arguments and variables of an executor together five times as much (Linux: 128 KiB an argument)."""
    max_text_bytes: int = 64 * 1024
    """Name, description, one tag."""
    max_cpu_cores: float | None = None
    """None: no site limit."""
    max_ram_gb: float | None = None
    max_disk_gb: float | None = None
    max_shm_gb: float | None = None
    """Of the backend parameter shm_gb. None: the task's ram_gb, or 1 where it asks for none."""


@dataclass(frozen=True)
class Policy:
    limits: Limits = field(default_factory=Limits)

    url_schemes_in: frozenset[str] = field(default=frozenset({"s3", "http", "https", "file"}), metadata=NO_SETTING)
    """Schemes that TIF can read; others are refused when the task is created."""
    url_schemes_out: frozenset[str] = field(default=frozenset({"s3", "file"}), metadata=NO_SETTING)
    file_roots: tuple[str, ...] = field(default=(), metadata=NO_SETTING)
    """Directories that `file://` URLs may name (allow-list, absolute, symlinks resolved). Empty: none, `file` is refused."""

    backend_parameters: frozenset[str] = field(
        default=frozenset({"time_limit", "optional_outputs"}), metadata=NO_SETTING
    )
    """Keys of tesResources.backend_parameters that this service understands (lower case); see `domain.parameters`."""

    queues: Mapping[str, tuple[str, ...]] = field(default_factory=dict, metadata=NO_SETTING)
    """Kueue's local queues that tasks may name, by user, `group:NAME`, or `*` for everyone."""

    exposes_credentials: Callable[[Iterable[str]], bool] = field(default=_never, metadata=NO_SETTING, compare=False)
    """Whether transfers to any of these URLs send credentials unencrypted although the site does not allow it beside a task's commands."""

    layout: str = "auto"
    """auto, or always `single` or `staged`."""
    default_disk_bytes: int = 10 * GIGABYTE
    """Size of a task's volume when `disk_gb` is left out."""
    tail_bytes: int = 16 * 1024
    """Of each of stdout and stderr kept in the task's log. Two of these for each executor have to fit in a document."""

    default_time_limit: timedelta | None = None
    """Of each executor; None: no limit unless the task asks."""
    max_time_limit: timedelta | None = None
    """A site's maximum for each executor; also the limit of tasks that ask for none. None: unlimited."""
    grace: timedelta = timedelta(seconds=10)
    """Between SIGTERM and SIGKILL."""
    turn_timeout: timedelta = timedelta(days=8)
    """How long a container waits for its turn at most: the last resort when everything that could end it is gone."""

    max_attempts: int = 3
    """Attempts at a task that faults of the infrastructure broke, the first one counted."""
    retry_started: bool = True
    """Whether an attempt whose command had begun may be repeated; False where 'at most once' matters more than an end in success."""
    show_preempted: bool = False
    """End tasks as PREEMPTED whose last attempt was preempted, instead of SYSTEM_ERROR. Several clients wait for ever on PREEMPTED."""
    retry_delay: timedelta = timedelta(seconds=2)
    """Before the second attempt; doubles with each further one, up to five minutes."""

    schedule_deadline: timedelta = timedelta(hours=24)
    """How long a task may wait for a node."""
    start_deadline: timedelta = timedelta(hours=1)
    """How long a scheduled pod may take to start all containers, image pulls that make no error included."""
    image_deadline: timedelta = timedelta(seconds=60)
    """How long a failing image pull is borne; refusals (not found, no access) end it at once."""
    stage_in_deadline: timedelta = timedelta(days=1)
    stage_out_deadline: timedelta = timedelta(days=1)
    cluster_deadline: timedelta = timedelta(hours=24)
    """How long the cluster may refuse to take a task's objects for want of room (quota) or be away before the task is given up."""
    recheck: timedelta = timedelta(seconds=30)
    """A running task is looked at this often even if no event came."""
    keep: timedelta = timedelta(0)
    """How long a finished task's objects are kept for debugging."""
