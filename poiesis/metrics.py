"""All metrics, in one place: docs/metrics.md is made from this list, and the dashboards and alerts of the chart may only use what is in it.

Names follow Prometheus' rules: base units, and the unit or `_total` at the end. The number of series is bounded: labels are states,
reasons, service classes of the configuration, routes as templates, verbs; never a user, a task, an object or an address. What a user can
influence goes through `known_reason` or `known_class`.

Several workers of an API share their values by files in `PROMETHEUS_MULTIPROC_DIR` (docs/adr/0018-metrics-and-traces.md). The client
library reads this variable at import and names the files by process id, so that each restart would leave files behind. Here each worker
takes the first free slot instead, locked while it lives, and continues the counters of the worker that had it before.
"""

from __future__ import annotations

import fcntl
import os
import platform
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import prometheus_client
from prometheus_client import CollectorRegistry, generate_latest, values
from prometheus_client.multiprocess import MultiProcessCollector

import poiesis
from poiesis.domain.why import FAILURES

SHARED: Final = "PROMETHEUS_MULTIPROC_DIR"
MAX_SLOTS: Final = 1024
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
OTHER: Final = "Other"

FAST: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
LONG: Final = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0, 21600.0, 86400.0)


@dataclass(frozen=True)
class Described:
    """What the reference shows of a metric."""

    name: str
    kind: str
    text: str
    labels: tuple[str, ...]


CATALOGUE: Final[list[Described]] = []


def _slot(directory: Path) -> int:
    """Lock a free slot until this process ends."""
    for slot in range(MAX_SLOTS):
        lock = os.open(directory / f"slot-{slot}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return slot
        except OSError:
            os.close(lock)
    raise RuntimeError(f"no free slot for metrics in {directory}")


def _share_values() -> None:
    """Keep the values of this process in the files of a slot, where it is one of several workers; otherwise they are in its memory."""
    if SHARED not in os.environ:
        return
    directory = Path(os.environ[SHARED])
    slot = _slot(directory)
    for gauges in directory.glob(f"gauge_*_{slot}.db"):  # what was counted continues, what was measured does not
        gauges.unlink(missing_ok=True)
    values.ValueClass = values.MultiProcessValue(lambda: slot)  # type: ignore[no-untyped-call]


_share_values()
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call] # a second series for each counter


def _described(kind: str, name: str, text: str, labels: Sequence[str]) -> None:
    CATALOGUE.append(Described(name, kind, text, tuple(labels)))


def _counter(name: str, text: str, *labels: str) -> prometheus_client.Counter:
    _described("counter", name, text, labels)
    return prometheus_client.Counter(name, text, labels)


def _gauge(name: str, text: str, *labels: str) -> prometheus_client.Gauge:
    _described("gauge", name, text, labels)
    return prometheus_client.Gauge(name, text, labels, multiprocess_mode="max")


def _histogram(name: str, text: str, *labels: str, buckets: Sequence[float] = FAST) -> prometheus_client.Histogram:
    _described("histogram", name, text, labels)
    return prometheus_client.Histogram(name, text, labels, buckets=buckets)


# ── the process ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────
BUILD = _gauge("poiesis_build_info", "1, with the version of Poiesis and of Python.", "version", "python")
DEPENDENCY_UP = _gauge(
    "poiesis_dependency_up",
    "1 while the store (`store`) or Redis (`broker`) responds, as the notifier sees it.",
    "dependency",
)
LOOP_SUCCESS = _gauge(
    "poiesis_loop_last_success_timestamp_seconds", "When a job that repeats last succeeded, in Unix time.", "loop"
)
LOOP_FAILURES = _counter("poiesis_loop_failures_total", "Failed runs of jobs that repeat.", "loop")

# ── tasks ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────
TASKS_CREATED = _counter("poiesis_tasks_created_total", "Tasks accepted by this process.")
TASKS_ENDED = _counter(
    "poiesis_tasks_ended_total",
    "Tasks that ended in this process, by state and `failure_reason` (empty without one; `Other`: not one of the service's own).",
    "state",
    "reason",
)
TASKS = _gauge(
    "poiesis_tasks", "Tasks that have not ended, by state, counted up to 10,000 for each, by the notifier.", "state"
)
PHASE_SECONDS = _histogram(
    "poiesis_task_phase_duration_seconds",
    "Duration of each phase of the tasks that have ended, of all attempts; `executor` is that of each executor.",
    "phase",
    buckets=LONG,
)
STAGED_BYTES = _counter(
    "poiesis_staged_bytes_total", "Bytes staged for tasks that have ended: `in` or `out`.", "direction"
)
STAGED_FILES = _counter(
    "poiesis_staged_files_total", "Files staged for tasks that have ended: `in` or `out`.", "direction"
)

# ── admission ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────
QUEUED = _gauge(
    "poiesis_queued_tasks",
    "Tasks that wait for admission, by service class, counted up to 10,000 for each user, by the notifier.",
    "service_class",
)
QUEUED_AGE = _gauge(
    "poiesis_queued_oldest_age_seconds",
    "How long the oldest task of a service class has waited for admission.",
    "service_class",
)
ADMISSIONS = _counter(
    "poiesis_admissions_total",
    "Decisions of the admitter: `admitted`, or `refused` as larger than a quota.",
    "service_class",
    "decision",
)
ADMISSION_WAIT = _histogram(
    "poiesis_admission_wait_seconds", "How long a task waited until it was admitted.", "service_class", buckets=LONG
)
ADMISSION_ROUND = _histogram("poiesis_admission_round_duration_seconds", "Duration of a round of the admitter.")
ADMISSION_HELD = _gauge(
    "poiesis_admission_held",
    "What tasks in flight hold of the site's quota: `tasks`, `millicores`, `memory_bytes`, `gpus`, `volumes`.",
    "resource",
)
ADMISSION_LIMIT = _gauge("poiesis_admission_limit", "The site's quota, where it has one.", "resource")
ADMISSION_FULL = _gauge("poiesis_admission_is_full", "1 while the site's quota has no room for any task.")

# ── links, reconcile, monitor ──────────────────────────────────────────────────────────────────────────────────────────────────────
LINK_SECONDS = _histogram("poiesis_link_duration_seconds", "Duration of a link.", "link")
LINK_FAILURES = _counter("poiesis_link_failures_total", "Failed links.", "link")
RECONCILE_SECONDS = _histogram(
    "poiesis_reconcile_duration_seconds", "Duration of a reconcile, by the reason why it returned.", "reason"
)
RECONCILE_CONFLICTS = _counter(
    "poiesis_reconcile_conflicts_total", "Saves that another process preceded: the task was read and decided again."
)
WORK_QUEUE = _gauge("poiesis_work_queue_tasks", "Tasks that wait in this monitor to be reconciled.")
BROKER_MESSAGES = _gauge(
    "poiesis_broker_messages", "Links that wait in the queue of a role, as the notifier sees it.", "queue"
)
POKES = _counter("poiesis_pokes_total", "Pokes received from containers.", "result")
LEADING = _gauge("poiesis_monitor_is_leader", "1 in the leading monitor.")
WATCH_AGE = _gauge(
    "poiesis_watch_age_seconds",
    "Time since the API server last sent something on the watch of a resource; bookmarks come about once a minute.",
    "resource",
)
LEAKS_FOUND = _counter(
    "poiesis_leaked_tasks_found_total",
    "Tasks whose objects the sweep found left over: `done` tasks, or `unknown` to the store.",
    "kind",
)
LEAKS_REMOVED = _counter(
    "poiesis_leaked_tasks_removed_total", "Tasks whose left over objects the sweep has had deleted, by kind.", "kind"
)
LEAKED = _gauge("poiesis_leaked_tasks", "Tasks with left over objects (pods, volumes) that the last sweep found.")

# ── Kubernetes and the store ───────────────────────────────────────────────────────────────────────────────────────────────────────
KUBERNETES_REQUESTS = _counter(
    "poiesis_kubernetes_requests_total",
    "Requests to the Kubernetes API, by verb and resource as in RBAC, and by status (0: no answer).",
    "verb",
    "resource",
    "code",
)
KUBERNETES_SECONDS = _histogram(
    "poiesis_kubernetes_request_duration_seconds",
    "Duration of requests to the Kubernetes API; of a watch, until it begins.",
    "verb",
)
STORE_SECONDS = _histogram(
    "poiesis_store_operation_duration_seconds",
    "Duration of operations of the store: commands of MongoDB; `read` and `write` transactions of SQLite.",
    "operation",
)
STORE_ERRORS = _counter("poiesis_store_errors_total", "Failed operations of the store.", "operation")

# ── the API ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────
HTTP_REQUESTS = _counter(
    "poiesis_http_requests_total",
    "Requests to the API, by route as in its OpenAPI documents; all pages are `/ui` or `page`, the rest is `other`.",
    "method",
    "route",
    "code",
)
HTTP_SECONDS = _histogram(
    "poiesis_http_request_duration_seconds", "Time until a response begins, by route.", "method", "route"
)
LIMITED = _counter("poiesis_requests_limited_total", "Requests refused by a rate limit.", "limit")
AUDIT_LOST = _counter("poiesis_audit_lost_total", "Audit lines that could not be written.")

# ── events and webhooks ────────────────────────────────────────────────────────────────────────────────────────────────────────────
RELAY_LAG = _gauge(
    "poiesis_event_relay_lag_seconds",
    "How old the oldest change was that the relay last found missing in the log of events; 0: none.",
)
WEBHOOK_DELIVERIES = _counter(
    "poiesis_webhook_deliveries_total",
    "Messages sent to webhooks, by result: `delivered`, `failed` (sent again later), `dead` (given up).",
    "result",
)

BUILD.labels(poiesis.__version__, platform.python_version()).set(1)


def known_reason(reason: str | None) -> str:
    """The label of a reason: reports of filers come from the task's volume, where user code can write any."""
    if reason is None:
        return ""
    return reason if reason in FAILURES else OTHER


def known_class(name: str, configured: Collection[str]) -> str:
    """The label of a service class; a task may still have one that is no longer configured."""
    return name if name in configured else OTHER


def exposition(shared: Path | None = None) -> bytes:
    """All values in Prometheus' text format: of this process, or the sums of those that share the directory `shared`."""
    if shared is None:
        return generate_latest()
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=str(shared))  # type: ignore[no-untyped-call]
    return generate_latest(registry)
