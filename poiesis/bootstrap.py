"""The composition root: settings → adapters → services. Nothing else builds an adapter, and each is imported by the method that builds
it, so that a role pays only for what it uses.

A `Bootstrap` builds each part on first use and closes them in reverse order.
"""

from __future__ import annotations

import logging
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from poiesis import tracing
from poiesis.config import ARCHITECTURES, PREFIX, LogSettings, Settings, read, shipped_launchers
from poiesis.domain.bindings import binding_of
from poiesis.domain.capacity import Capacity
from poiesis.domain.errors import ConfigurationError
from poiesis.domain.policy import GIGABYTE, Policy
from poiesis.domain.quotas import AdmissionRules, Quota
from poiesis.domain.task import TaskId
from poiesis.filer import registry
from poiesis.filer.settings import FilerSettings
from poiesis.observability import configure_logging
from poiesis.ports.cluster import Cluster, FollowedCluster
from poiesis.ports.logs import LogStore
from poiesis.ports.queue import Queue
from poiesis.ports.repository import TaskRepository
from poiesis.services.admission import Admitter, WaitingReasons
from poiesis.services.capacity import CapacityReport, reported_capacity
from poiesis.services.create_bursts import CreateBursts
from poiesis.services.deferred_begin import DeferredBegin
from poiesis.services.keys import KeyService
from poiesis.services.logs import LogRetention, LogService
from poiesis.services.monitor import Monitor
from poiesis.services.notifier import Job, Notifier
from poiesis.services.orchestrator import Orchestrator
from poiesis.services.statistics import Statistics
from poiesis.services.tasks import TaskService
from poiesis.services.usage import UsageService
from poiesis.services.webhooks import MAX_THREADS, WebhookDispatcher, WebhookService

if TYPE_CHECKING:
    from celery import Celery

    from poiesis.api.audit import AuditLog
    from poiesis.api.limits import RateLimiter
    from poiesis.api.services import Services
    from poiesis.cluster.kubernetes.leader import Election
    from poiesis.cluster.kubernetes.pokes import PokeListener
    from poiesis.cluster.kubernetes.settings import KubernetesSettings
    from poiesis.cluster.local import LogKeeping
    from poiesis.repository.mongo.connection import MongoDatabase
    from poiesis.repository.sqlite.database import SqliteDatabase
    from poiesis.repository.stores import Stores

log = logging.getLogger(__name__)

KUBERNETES_PREFIX: Final = f"{PREFIX}KUBERNETES__"
FILER_PREFIX: Final = f"{PREFIX}FILER__"
CLIENT_VARIABLES: Final = (f"{PREFIX}URL", f"{PREFIX}TOKEN", f"{PREFIX}PROFILE", f"{PREFIX}TEST_")
SETTLE: Final = timedelta(seconds=0.3)  # where pokes report the end of a pod, its other events may be merged
UNREADABLE: Final = "/poiesis/credentials/netrc"  # only in filer containers
RELAY_EVERY: Final = timedelta(seconds=0.25)  # streams of events are that late at most, beside their own polling
RELAY_BATCH: Final = 200  # tasks
WEBHOOKS_EVERY: Final = timedelta(seconds=0.5)
PURGE_EVERY: Final = timedelta(minutes=10)
USAGE_EVERY: Final = timedelta(minutes=1)
STATISTICS_EVERY: Final = timedelta(seconds=15)
PURGE_BATCH: Final = 200
ADAPTER_PREFIXES: Final = (KUBERNETES_PREFIX, FILER_PREFIX, *CLIENT_VARIABLES)


def _within_machine(quota: Quota, max_parallel: int | None) -> Quota:
    """The quota of the embedded mode: that of the settings where they have one, else what this machine has."""
    from poiesis.cluster.local import machine

    cores, memory_gb = machine.cores(), machine.memory_bytes() / GIGABYTE
    return replace(
        quota,
        max_tasks=max_parallel or quota.max_tasks or 2 * cores,
        max_cpu_cores=cores if quota.max_cpu_cores is None else quota.max_cpu_cores,
        max_ram_gb=memory_gb if quota.max_ram_gb is None else quota.max_ram_gb,
    )


T = TypeVar("T", bound="Cluster | Queue | LogStore | SqliteDatabase | MongoDatabase")


class SystemClock:
    def now(self) -> datetime:
        return datetime.now(UTC)


class Bootstrap(ExitStack):
    def __init__(self, settings: Settings, filer: FilerSettings, kubernetes: KubernetesSettings | None = None) -> None:
        super().__init__()
        self._given = settings
        hidden = [str(Path(directory).resolve()) for directory in settings.credentials.values() if directory]
        self.filer = replace(filer, file_hidden=(*filer.file_hidden, *hidden)) if hidden else filer
        classes = frozenset({*settings.admission.classes, settings.admission.default_class})
        self._kubernetes = kubernetes and replace(kubernetes, admission_classes=classes)
        self.clock = SystemClock()

    @classmethod
    def from_environ(cls, environ: Mapping[str, str], role: str = "api") -> Self:
        """Build the parts of a role of the server mode, and begin its traces. Raises: ConfigurationError."""
        from poiesis.cluster.kubernetes.settings import KubernetesSettings

        settings = read(Settings, environ, others=ADAPTER_PREFIXES)
        configure_logging(settings.log_level, settings.log_format)
        parts = cls(
            settings, read(FilerSettings, environ, FILER_PREFIX), read(KubernetesSettings, environ, KUBERNETES_PREFIX)
        )
        parts.trace(role, environ)
        return parts

    def trace(self, role: str, environ: Mapping[str, str]) -> None:
        """Record traces from now on, if a collector is configured. Raises: ConfigurationError."""
        tracing.start(self._given.tracing.endpoint, self._given.tracing.ratio, role, environ)
        self.callback(tracing.stop)

    @classmethod
    def of_store(cls, environ: Mapping[str, str], directory: str | None) -> Self:
        """Build the parts of a command that uses only the store: MongoDB if a URI is set, else a directory. Raises: ConfigurationError."""
        from poiesis.cluster.kubernetes.settings import KubernetesSettings

        settings = read(Settings, environ, others=ADAPTER_PREFIXES)
        uri = f"{PREFIX}MONGO_URI"
        if directory is None and (uri in environ or f"{uri}_FILE" in environ):
            return cls(settings, FilerSettings(), KubernetesSettings())
        path = Path(directory or settings.directory)
        if not path.is_dir():
            raise ConfigurationError(
                f"no store: set POIESIS_MONGO_URI, or --dir to the directory of `poiesis up`, not {path}"
            )
        return cls(replace(settings, directory=str(path)), FilerSettings())

    @property
    def is_embedded(self) -> bool:
        return self._kubernetes is None

    @cached_property
    def settings(self) -> Settings:
        """The settings, with the policy completed by the abilities of the adapters."""
        policy = replace(
            self._given.policy,
            admission=self._admission_rules(),
            url_schemes_in=registry.readable(self.filer),
            url_schemes_out=registry.writable(self.filer),
            file_roots=self.filer.file_roots,
        )
        if self._kubernetes is not None:
            from poiesis.cluster.kubernetes.placement import allowed_queues, usable_parameters

            keys, queues = usable_parameters(self._kubernetes), allowed_queues(self._kubernetes)
            policy = replace(policy, backend_parameters=keys, queues=queues)
            if not self.filer.allow_unencrypted_credentials:
                policy = replace(policy, exposes_credentials=self._exposes_credentials)
        if self._given.admission.classes:
            policy = replace(policy, backend_parameters=policy.backend_parameters | {"service_class"})
        return replace(self._given, policy=policy)

    def _admission_rules(self) -> AdmissionRules:
        """The quotas, completed by what the site has: on one machine that is the machine."""
        rules = self._given.admission
        if self._kubernetes is None:
            return replace(rules, site=_within_machine(rules.site, self._given.max_parallel), clamp=True)
        return replace(
            rules,
            other_classes=frozenset(self._kubernetes.service_classes),
            default_cpu_cores=self._kubernetes.default_cpu_cores or 0.0,
            default_ram_gb=self._kubernetes.default_ram_gb or 0.0,
        )

    def _exposes_credentials(self, urls: Iterable[str]) -> bool:
        from poiesis.filer.credentials import first_unencrypted

        filer = self.filer
        if self._kubernetes is not None and any(b.secret for b in self._kubernetes.bindings.values()):
            filer = replace(filer, netrc_file=UNREADABLE)  # a user's own may have a login for any host
        return first_unencrypted(urls, filer) is not None

    @property
    def policy(self) -> Policy:
        return self.settings.policy

    @cached_property
    def stores(self) -> Stores:
        from poiesis.repository.stores import mongo_stores, sqlite_stores

        if self.is_embedded:
            from poiesis.repository.sqlite.database import SqliteDatabase

            return sqlite_stores(self._opened(SqliteDatabase(Path(self.settings.directory) / "tasks.sqlite")))
        from poiesis.repository.mongo.connection import MongoDatabase

        return mongo_stores(self._opened(MongoDatabase(self.settings.mongo_uri, self.settings.mongo_database)))

    @cached_property
    def repository(self) -> TaskRepository:
        return self.stores.tasks

    @cached_property
    def keys(self) -> KeyService:
        return KeyService(self.stores.keys, self.clock, self.settings.api.key_lifetime)

    @cached_property
    def celery(self) -> Celery:
        from poiesis.queue.app import make_app

        return make_app("memory://" if self.is_embedded else self.settings.redis_uri)

    @cached_property
    def queue(self) -> Queue:
        from poiesis.queue.publisher import CeleryQueue

        return self._opened(CeleryQueue(self.celery))

    @cached_property
    def cluster(self) -> FollowedCluster:
        if self._kubernetes is None:
            return self._opened(self._local_cluster())
        from poiesis.cluster.kubernetes.adapter import KubernetesCluster

        logs = self.settings.logs
        if not self.filer.allow_unencrypted_credentials:
            self._check_log_store(logs)
        return self._opened(KubernetesCluster(self._kubernetes, self.policy, self.filer.to_json(), logs))

    def _check_log_store(self, logs: LogSettings) -> None:
        from poiesis.logstore.open import sends_unencrypted

        if logs.url is not None and sends_unencrypted(logs):
            raise ConfigurationError(
                "POIESIS_LOGS__ENDPOINT: requests to it are readable in the network that the tasks' commands share: use https, or set "
                "POIESIS_FILER__ALLOW_UNENCRYPTED_CREDENTIALS=true"
            )

    @cached_property
    def log_store(self) -> LogStore | None:
        """None: the site keeps no whole logs."""
        from poiesis.logstore.open import open_store

        store = open_store(self.settings.logs)
        return None if store is None else self._opened(store)

    @cached_property
    def logs(self) -> LogService:
        return LogService(self.repository, self.clock, self.log_store)

    def log_retention(self) -> LogRetention | None:
        """None: no log is ever deleted."""
        if self.log_store is None or self.settings.retention is None:
            return None
        return LogRetention(self.repository, self.log_store, self.clock, self.settings.retention)

    def _log_keeping(self) -> LogKeeping | None:
        """None: the site keeps no whole logs."""
        from poiesis.cluster.local import LogKeeping

        return None if self.log_store is None else LogKeeping(self.settings.logs, self._keep_log)

    def _keep_log(self, control: Path, task_id: TaskId, attempt: int, executor: int, over: Event) -> None:
        """Move the output of an executor to the log store until it is stored, or could not be a while after `over` was set."""
        from poiesis.logstore.follower import Follower

        assert self.log_store is not None
        settings = self.settings.logs

        def wait(seconds: float) -> None:
            if over.wait(seconds):
                time.sleep(min(seconds, 0.05))

        try:
            follower = Follower(self.log_store, str(control), task_id, attempt, (executor,), settings, resumes=True)
            problem = follower.run(over.is_set, wait, settings.finish.total_seconds())
        except OSError as error:
            problem = str(error)
        if problem is not None:
            log.warning("logs_incomplete", extra={"task_id": task_id, "executor": executor, "error": problem})

    def _local_cluster(self) -> FollowedCluster:
        from poiesis.cluster.local import Filers, LocalCluster, credential_files
        from poiesis.filer.staging import stage

        arch = ARCHITECTURES.get(platform.machine(), platform.machine())
        launcher = shipped_launchers().get(arch)
        if launcher is None:
            raise ConfigurationError(f"unsupported architecture {arch}: tasks run on amd64 and arm64")
        return LocalCluster(
            Path(self.settings.directory),
            self.settings.runtime,
            self.policy,
            Filers(
                lambda doc, volume, cancelled: stage("in", doc, volume, self._filer_of(doc), cancelled=cancelled),
                lambda doc, volume, cancelled: stage("out", doc, volume, self._filer_of(doc), cancelled=cancelled),
            ),
            self.clock,
            launcher,
            hidden=[
                *credential_files(os.environ),
                *(Path(d).resolve() for d in self.settings.credentials.values() if d),
            ],
            visible=[Path(d) for d in self.settings.visible_directories],
            max_processes=self.settings.max_processes,
            logs=self._log_keeping(),
        )

    def _filer_of(self, document: Mapping[str, Any]) -> FilerSettings:
        """The filer's settings for a task, by the `owner` and `groups` of its document."""
        directory = binding_of(self.settings.credentials, document.get("owner"), document.get("groups", ()))
        if directory is None:
            return self.filer
        name = f"the credentials directory of {document.get('owner') or 'everyone'}" if directory else ""
        return replace(
            self.filer, credentials_dir=directory or os.devnull, credentials_name=name, cache_scope=f"bound {directory}"
        )

    @cached_property
    def orchestrator(self) -> Orchestrator:
        exclusive_since = self.clock.now() if self.is_embedded else None  # its directory is locked by now
        return Orchestrator(self.repository, self.cluster, self.clock, self.policy, exclusive_since=exclusive_since)

    @cached_property
    def usage(self) -> UsageService:
        return UsageService(self.stores.events, self.stores.usage, self.clock, self.settings.usage_tags)

    @cached_property
    def tasks(self) -> TaskService:
        parts = (self.clock, self.policy, self.stores.idempotency, self.reasons)
        creating = self.create_bursts.creating
        if self.is_embedded:
            return TaskService(self.repository, self.queue, *parts, on_queued=self.admitter.wake, creating=creating)
        queue = DeferredBegin(self.queue, self.create_bursts.hold)
        queue.start()
        return TaskService(self.repository, queue, *parts, creating=creating, on_close=queue.close)

    @cached_property
    def reasons(self) -> WaitingReasons:
        return WaitingReasons(self.stores.admission, self.clock, self.policy)

    @cached_property
    def admitter(self) -> Admitter:
        parts = (self.repository, self.stores.admission, self.queue, self.clock, self.policy)
        if not self.is_embedded:
            return Admitter(*parts)
        return Admitter(*parts, apart_s=0.0, hold=self.create_bursts.hold)  # a command may take less than APART_S

    @cached_property
    def create_bursts(self) -> CreateBursts:
        return CreateBursts()

    @cached_property
    def webhooks(self) -> WebhookService:
        settings = self.settings.webhooks
        return WebhookService(
            self.stores.webhooks, self.clock, allow_http=settings.allow_http, max_per_user=settings.max_per_user
        )

    def _webhook_dispatcher(self) -> WebhookDispatcher:
        """Raises: ConfigurationError."""
        from poiesis.notifications.http_sender import HttpWebhookSender

        pool = ThreadPoolExecutor(MAX_THREADS, "webhook")
        dispatcher = WebhookDispatcher(
            self.stores.webhooks, self.stores.events, HttpWebhookSender(self.settings.webhooks), self.clock, pool
        )
        self.callback(dispatcher.close)
        return dispatcher

    def monitor(self) -> Monitor:
        return Monitor(
            self.orchestrator,
            self.repository,
            self.queue,
            self.cluster,
            self.clock,
            threads=self.settings.monitor_threads,
            resync_every=self.settings.resync,
            retention=self.settings.retention,
            admitter=self.admitter,
            capacity=self._capacity_report(),
            log_retention=self.log_retention(),
            settle=SETTLE if self._kubernetes is not None and self._kubernetes.poke_address else timedelta(0),
        )

    def _capacity_report(self) -> CapacityReport | None:
        """None: the monitor may not read nodes."""
        if self._kubernetes is None or not self._kubernetes.read_nodes:
            return None
        from poiesis.cluster.kubernetes.adapter import KubernetesCluster

        assert isinstance(self.cluster, KubernetesCluster)
        return CapacityReport(self.cluster.capacity, self.stores.admission, self.clock)

    def capacity(self) -> Capacity | None:
        """The room for tasks, for administrators; None: not known. Raises: RepositoryUnavailable."""
        now = self.clock.now()
        if self._kubernetes is not None:
            return reported_capacity(self.stores.admission, now)
        from poiesis.cluster.local import machine

        return machine.capacity(Path(self.settings.directory), self.reasons.held(), now)

    def notifier(self) -> Notifier:
        now, events, idempotency = self.clock.now, self.stores.events, self.stores.idempotency
        kept = self.settings.events_retention
        webhooks = self._webhook_dispatcher()
        purge_pause = timedelta(seconds=0.1)
        jobs = (
            Job("relay", lambda: events.relay(RELAY_BATCH), RELAY_EVERY),
            Job("purge-events", lambda: events.purge(now() - kept, limit=PURGE_BATCH), PURGE_EVERY, purge_pause),
            Job("make-webhook-messages", webhooks.make_messages, WEBHOOKS_EVERY),
            Job("send-webhook-messages", webhooks.send, WEBHOOKS_EVERY),
            Job("purge-dead-letters", webhooks.purge, PURGE_EVERY, purge_pause),
            Job("usage", self.usage.roll_up, USAGE_EVERY),
            Job("statistics", self.statistics().measure, STATISTICS_EVERY),
            Job("purge-keys", lambda: idempotency.purge(now(), limit=PURGE_BATCH), PURGE_EVERY, purge_pause),
        )
        return Notifier(jobs)

    def statistics(self) -> Statistics:
        return Statistics(self.repository, self.stores.admission, self.queue, self.clock, self.policy.admission)

    def poke_listener(self, monitor: Monitor) -> PokeListener:
        from poiesis.cluster.kubernetes.adapter import KubernetesCluster
        from poiesis.cluster.kubernetes.pokes import PokeListener

        assert self._kubernetes is not None and isinstance(self.cluster, KubernetesCluster)
        return PokeListener(self._kubernetes.poke_listen, monitor.poke, self.cluster.may_have_pod)

    def election(self, on_start: Callable[[], None], on_stop: Callable[[], None]) -> Election:
        """Return the election of the leading monitor among those of this namespace and instance."""
        from poiesis.cluster.kubernetes.leader import Election

        assert self._kubernetes is not None
        return Election(self._kubernetes, on_start, on_stop)

    def describe(self) -> str:
        """Return a sentence on what tasks run on. The API of the server mode has no access to a cluster."""
        from poiesis.cluster.local import LocalCluster

        if self.is_embedded and isinstance(self.cluster, LocalCluster):
            return self.cluster.describe()
        return "Tasks run as pods on Kubernetes."

    def api_services(self) -> Services:
        from poiesis.api.services import Services, SiteDefaults

        return Services(
            tasks=self.tasks,
            policy=self.policy,
            api=self.settings.api,
            service=self.settings.service,
            describe=self.describe(),
            keys=self.keys,
            sessions=self.stores.sessions,
            ready=self.api_ready,
            events=self.stores.events,
            logs=self.logs,
            usage=self.usage,
            defaults=SiteDefaults()
            if self._kubernetes is None
            else SiteDefaults(
                self._kubernetes.default_cpu_cores, self._kubernetes.default_ram_gb, self._kubernetes.queue
            ),
            audit=self._audit(),
            limiter=self._limiter(),
            webhooks=self.webhooks,
            capacity=self.capacity,
        )

    def _audit(self) -> AuditLog | None:
        from poiesis.api.audit import AuditLog

        target = self.settings.api.audit
        if target == "auto":
            target = "off" if self.is_embedded else "stdout"
        return None if target == "off" else AuditLog(target)

    def _limiter(self) -> RateLimiter | None:
        from poiesis.api.limits import RateLimiter

        api = self.settings.api
        if api.limits.enabled == "off" or (api.limits.enabled == "auto" and not api.auth):
            return None
        return RateLimiter(api.limits, None if self.is_embedded else self.settings.redis_uri)

    def ready(self) -> None:
        """Readiness of a worker or the monitor. Raises: Unavailable."""
        self.repository.ready()
        self.queue.ready()
        self.cluster.ready()

    def api_ready(self) -> None:
        """Readiness of the API, which needs no cluster. Raises: Unavailable."""
        self.repository.ready()
        self.queue.ready()

    def _opened(self, part: T) -> T:
        self.callback(part.close)
        return part
