"""Every metric is moved by a test, their names follow the rules, and workers share theirs.

`moves` registers which metrics a test moves and checks that it does; the last test fails when a metric exists that none moves.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
from kubernetes.client import Configuration
from prometheus_client import REGISTRY, Gauge
from prometheus_client.parser import text_string_to_metric_families

from poiesis import metrics
from poiesis.api.audit import AuditLog
from poiesis.api.limits import RateLimiter
from poiesis.cluster.kubernetes.cache import PODS, Cache, project_pod
from poiesis.cluster.kubernetes.client import Client
from poiesis.cluster.kubernetes.errors import ApiError
from poiesis.cluster.kubernetes.pokes import PokeListener
from poiesis.cluster.kubernetes.settings import KubernetesSettings
from poiesis.cluster.kubernetes.watch import Watch
from poiesis.config import RateLimits
from poiesis.domain.errors import ClusterUnavailable, QueueUnavailable, RepositoryUnavailable
from poiesis.domain.quotas import AdmissionRules, Quota, ServiceClass
from poiesis.domain.states import Role, Stage, State
from poiesis.domain.task import TaskId
from poiesis.http_listener import Request
from poiesis.ports.webhooks import Answer
from poiesis.queue.links import _run
from poiesis.repository.sqlite.database import SqliteDatabase
from poiesis.roles.monitor import lead
from poiesis.services.notifier import Job, Notifier
from poiesis.services.statistics import Statistics
from poiesis.services.task_metrics import count_saved
from poiesis.services.work_queue import WorkQueue
from poiesis.testing.queue import RecordingQueue
from tests.contract.stores import in_mongo
from tests.unit.api.service import Site
from tests.unit.api.test_limits import admitted
from tests.unit.cluster.kubernetes.conftest import Answer as ApiAnswer
from tests.unit.cluster.kubernetes.conftest import ApiServer
from tests.unit.domain.samples import ID, SMALL, World, stored
from tests.unit.services.test_admission import Service
from tests.unit.services.test_monitor import Scene
from tests.unit.services.test_orchestrator import RacedRepository
from tests.unit.services.test_webhooks import Site as WebhookSite
from tests.unit.services.test_webhooks import site as webhooks  # noqa: F401 -- a fixture

MOVED: set[str] = set()


def values(name: str) -> dict[tuple[tuple[str, str], ...], float]:
    """The values of a metric by labels; of a histogram its counts."""
    described = next(d for d in metrics.CATALOGUE if d.name == name)
    sample = f"{name}_count" if described.kind == "histogram" else name
    return {
        tuple(sorted(found.labels.items())): found.value
        for family in REGISTRY.collect()
        for found in family.samples
        if found.name == sample
    }


def value(name: str, **labels: str) -> float:
    return values(name).get(tuple(sorted(labels.items())), 0.0)


def forget_gauges(names: Sequence[str]) -> None:
    """Another test may have left the very value that this one sets."""
    labelled = {described.name for described in metrics.CATALOGUE if described.labels}
    for gauge in vars(metrics).values():
        name = next(iter(gauge.describe())).name if isinstance(gauge, Gauge) else ""
        if name not in names:
            continue
        if name in labelled:
            gauge.clear()
        else:
            gauge.set(-1)


def moves(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    MOVED.update(names)

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        @wraps(test)
        def checked(*arguments: Any, **fixtures: Any) -> None:
            forget_gauges(names)
            before = {name: values(name) for name in names}
            test(*arguments, **fixtures)
            assert [name for name in names if values(name) == before[name]] == []

        return checked

    return decorate


@contextmanager
def adds(amount: float, name: str, **labels: str) -> Iterator[None]:
    before = value(name, **labels)
    yield
    assert value(name, **labels) - before == amount


def until(condition: Callable[[], bool]) -> None:
    deadline, turn = time.monotonic() + 30, threading.Event()
    while not condition():
        assert time.monotonic() < deadline
        turn.wait(0.005)


# ── tasks ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@moves("poiesis_tasks_created_total", "poiesis_http_requests_total", "poiesis_http_request_duration_seconds")
def test_a_task_is_created() -> None:
    site = Site()
    route = {"method": "POST", "route": "/ga4gh/tes/v1/tasks"}
    with (
        adds(1, "poiesis_tasks_created_total"),
        adds(1, "poiesis_http_requests_total", code="200", **route),
        adds(1, "poiesis_http_request_duration_seconds", **route),
    ):
        site.create()


@pytest.mark.parametrize(
    ("path", "route", "code"),
    [
        ("/v1/tasks/x", "/ga4gh/tes/v1/tasks/{id}", "404"),  # the same as with the other base path
        ("/poiesis/v1/whoami", "/poiesis/v1/whoami", "200"),
        ("/healthz", "/healthz", "200"),
        ("/", "page", "200"),
        ("/wp-login.php", "other", "404"),
        ("/ga4gh/tes/v1/tasks/a/b/c", "other", "404"),
    ],
)
def test_requests_are_counted_by_the_template_of_their_route(path: str, route: str, code: str) -> None:
    with adds(1, "poiesis_http_requests_total", method="GET", route=route, code=code):
        Site().client.get(path)


def test_invented_methods_and_paths_make_one_series() -> None:
    client = Site().client
    client.request("BREW", "/pot")
    before = len(values("poiesis_http_requests_total"))
    for number in range(20):
        client.request(f"BREW{number}", f"/pot{number}")
        client.get(f"/ga4gh/tes/v1/tasks/{number}")
    assert len(values("poiesis_http_requests_total")) <= before + 1


@moves(
    "poiesis_tasks_ended_total",
    "poiesis_reconcile_duration_seconds",
    "poiesis_task_phase_duration_seconds",
)
def test_a_task_ends() -> None:
    world = World(SMALL)
    world.launch()
    world.cluster.run(ID, "task")
    with (
        adds(1, "poiesis_tasks_ended_total", state="COMPLETE", reason=""),
        adds(1, "poiesis_reconcile_duration_seconds", reason="other_role"),
        adds(1, "poiesis_task_phase_duration_seconds", phase="executor"),
        adds(1, "poiesis_task_phase_duration_seconds", phase="queued"),
        adds(0, "poiesis_task_phase_duration_seconds", phase="cleanup"),
    ):
        world.monitor()
    with (
        adds(0, "poiesis_task_phase_duration_seconds", phase="executor"),
        adds(1, "poiesis_task_phase_duration_seconds", phase="cleanup"),
    ):
        world.to_the_end()


@moves("poiesis_staged_bytes_total", "poiesis_staged_files_total")
def test_what_was_staged_and_why_a_task_failed_are_counted_once() -> None:
    running = stored(state=State.RUNNING)
    metadata = {"failure_reason": "OutputFailed", "inputs_bytes": "1000", "inputs_files": "3", "outputs_bytes": "x"}
    ended = replace(running, state=State.SYSTEM_ERROR, log=replace(running.log, metadata=metadata))
    with (
        adds(1, "poiesis_tasks_ended_total", state="SYSTEM_ERROR", reason="OutputFailed"),
        adds(1000, "poiesis_staged_bytes_total", direction="in"),
        adds(3, "poiesis_staged_files_total", direction="in"),
        adds(0, "poiesis_staged_bytes_total", direction="out"),
    ):
        count_saved(running, ended)
        count_saved(ended, replace(ended, stage=Stage.DONE))


def test_reasons_and_classes_that_a_user_could_invent_share_one_label() -> None:
    assert [metrics.known_reason(reason) for reason in (None, "OutOfMemory", "Nonsense")] == [
        "",
        "OutOfMemory",
        "Other",
    ]
    assert [metrics.known_class(name, {"a"}) for name in ("a", "b")] == ["a", "Other"]


# ── admission ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

RULES = AdmissionRules(site=Quota(max_tasks=1, max_cpu_cores=4), classes={"urgent": ServiceClass()})


@moves(
    "poiesis_admissions_total",
    "poiesis_admission_wait_seconds",
    "poiesis_admission_round_duration_seconds",
    "poiesis_admission_held",
    "poiesis_admission_limit",
    "poiesis_admission_is_full",
)
def test_tasks_are_admitted() -> None:
    service = Service(RULES)
    service.post(1, cpu_cores=2)
    service.post(2)
    service.clock.advance(timedelta(seconds=5))
    labels = {"service_class": "default"}
    with (
        adds(1, "poiesis_admissions_total", decision="admitted", **labels),
        adds(1, "poiesis_admission_wait_seconds", **labels),
        adds(1, "poiesis_admission_round_duration_seconds"),
    ):
        service.admitter().run_once()
    assert value("poiesis_admission_held", resource="millicores") == 2000
    assert value("poiesis_admission_limit", resource="millicores") == 4000
    assert value("poiesis_admission_is_full") == 1


@moves(
    "poiesis_queued_tasks",
    "poiesis_queued_oldest_age_seconds",
    "poiesis_tasks",
    "poiesis_broker_messages",
    "poiesis_dependency_up",
)
def test_the_notifier_measures_store_and_broker() -> None:
    service = Service(RULES)
    urgent = {"backend_parameters": {"service_class": "urgent"}}
    service.post(1, owner="ann", **urgent)
    service.post(2, owner="bob", **urgent)
    service.clock.advance(timedelta(seconds=90))
    service.queue.backlog = {Role.TIF: 7}
    statistics = Statistics(service.repository, service.store, service.queue, service.clock, RULES)
    statistics.measure()
    assert value("poiesis_queued_tasks", service_class="urgent") == 2
    assert value("poiesis_queued_oldest_age_seconds", service_class="urgent") == 90
    assert value("poiesis_queued_tasks", service_class="default") == 0
    assert value("poiesis_tasks", state="QUEUED") == 2
    assert value("poiesis_broker_messages", queue="tif") == 7
    assert value("poiesis_dependency_up", dependency="broker") == 1

    service.queue.down = True
    service.repository.purge(service.clock.now() - timedelta(days=1), limit=1)
    with pytest.raises(QueueUnavailable):
        statistics.measure()
    assert value("poiesis_dependency_up", dependency="broker") == 0
    assert value("poiesis_dependency_up", dependency="store") == 1  # measured although the broker is away


def test_queues_are_measured_a_page_at_a_time_and_shown_when_all_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("poiesis.services.statistics.QUEUES", 2)
    service = Service(RULES)
    for number in range(5):
        service.post(number, owner=f"user{number}")
    statistics = Statistics(service.repository, service.store, service.queue, service.clock, RULES)
    metrics.QUEUED.labels("default").set(0)
    shown = []
    for _ in range(6):
        statistics.measure()
        shown.append(value("poiesis_queued_tasks", service_class="default"))
    assert shown == [0, 0, 5, 5, 5, 5]


# ── links, reconcile, monitor ──────────────────────────────────────────────────────────────────────────────────────────────────────


@moves("poiesis_link_duration_seconds", "poiesis_link_failures_total")
def test_a_link_runs_and_one_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    world, queue = World(SMALL), RecordingQueue()
    with adds(1, "poiesis_link_duration_seconds", link="torc.prepare"):
        _run("torc.prepare", ID, None, world.orchestrator, queue)

    def away(*_: object, **__: object) -> None:
        raise RepositoryUnavailable("away")

    monkeypatch.setattr(world.repository, "get", away)
    with adds(1, "poiesis_link_failures_total", link="torc.prepare"):
        _run("torc.prepare", ID, None, world.orchestrator, queue)


@moves("poiesis_reconcile_conflicts_total")
def test_a_lost_race_is_a_conflict() -> None:
    repository = RacedRepository()
    world = World(SMALL, repository=repository)
    repository.rival = replace(world.task, cancel_requested_at=world.now)
    with adds(1, "poiesis_reconcile_conflicts_total"):
        world.link(Role.TORC)
        world.link(Role.TEXAM)


@moves("poiesis_work_queue_tasks")
def test_tasks_wait_in_the_monitor() -> None:
    queue = WorkQueue(lambda task_id, hint: None, threads=0)
    queue.start()
    queue.wake(TaskId("a"))
    queue.wake(TaskId("b"))
    assert value("poiesis_work_queue_tasks") == 2


@moves("poiesis_pokes_total")
def test_pokes_are_counted_by_result() -> None:
    listener = PokeListener("127.0.0.1:0", lambda *_: None, {"known"}.__contains__, per_second=2)
    for path in ("/poke/known/0f", "/poke/other/0f", "/poke/known/0f"):
        listener._respond(Request("POST", path, b"", "10.0.0.1"))
    listener.close()
    assert all(value("poiesis_pokes_total", result=result) >= 1 for result in ("taken", "unknown", "dropped"))


@moves("poiesis_monitor_is_leader", "poiesis_loop_last_success_timestamp_seconds", "poiesis_loop_failures_total")
def test_the_leading_monitor_repeats_its_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics.LEADING.set(0)
    scene, failures = Scene(), value("poiesis_loop_failures_total", loop="resync")
    lead(scene.monitor)
    try:
        assert value("poiesis_monitor_is_leader") == 1
        until(lambda: value("poiesis_loop_last_success_timestamp_seconds", loop="resync") > time.time() - 60)
        monkeypatch.setattr(scene.world.repository, "due", lambda *_, **__: 1 / 0)
        until(lambda: value("poiesis_loop_failures_total", loop="resync") > failures)
    finally:
        scene.monitor.close()


def test_jobs_of_the_notifier_are_measured() -> None:
    ran = threading.Event()

    def work() -> int:
        if not ran.is_set():
            ran.set()
            raise RepositoryUnavailable("away")
        return 0

    failures = value("poiesis_loop_failures_total", loop="work")  # other tests have jobs of that name
    notifier = Notifier([Job("work", work, timedelta(seconds=0.1))])  # the pause after a failure depends on it
    notifier.start()
    until(lambda: value("poiesis_loop_failures_total", loop="work") == failures + 1)
    until(lambda: value("poiesis_loop_last_success_timestamp_seconds", loop="work") > time.time() - 60)
    notifier.close()


@moves("poiesis_leaked_tasks_found_total", "poiesis_leaked_tasks_removed_total", "poiesis_leaked_tasks")
def test_the_sweep_counts_what_it_finds_and_what_it_could_remove(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics.LEAKED.set(0)
    scene = Scene()
    scene.world.launch()
    monkeypatch.setattr(scene.world.cluster, "task_ids", lambda: [TaskId("unknown")])
    with (
        adds(1, "poiesis_leaked_tasks_found_total", kind="unknown"),
        adds(1, "poiesis_leaked_tasks_removed_total", kind="unknown"),
    ):
        scene.monitor.sweep()
    assert value("poiesis_leaked_tasks") == 1

    def refuse(*_: object) -> None:
        raise ClusterUnavailable("away")

    monkeypatch.setattr(scene.world.cluster, "delete_all", refuse)
    with adds(0, "poiesis_leaked_tasks_removed_total", kind="unknown"), pytest.raises(ClusterUnavailable):
        scene.monitor.sweep()
    assert value("poiesis_leaked_tasks") == 1


# ── Kubernetes and the store ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def api_server() -> Iterator[tuple[ApiServer, Client]]:
    server = ApiServer()
    client = Client(KubernetesSettings(attempts=1), Configuration(host=server.url, retries=0))
    yield server, client
    client.close()
    server.close()


@moves("poiesis_kubernetes_requests_total", "poiesis_kubernetes_request_duration_seconds")
def test_requests_to_kubernetes_are_counted_as_rbac_names_them(api_server: tuple[ApiServer, Client]) -> None:
    server, client = api_server
    server.answer = lambda _: ApiAnswer(status=409, body={})
    with (
        adds(1, "poiesis_kubernetes_requests_total", verb="create", resource="pods", code="409"),
        adds(1, "poiesis_kubernetes_request_duration_seconds", verb="create"),
        pytest.raises(ApiError),
    ):
        client.create("/api/v1/namespaces/tasks/pods", {})
    server.answer = lambda _: ApiAnswer(body={})
    with adds(1, "poiesis_kubernetes_requests_total", verb="get", resource="pods/log", code="200"):
        client.get("/api/v1/namespaces/tasks/pods/some-task/log")
    gone = Client(KubernetesSettings(attempts=1), Configuration(host="http://127.0.0.1:9", retries=0))
    with (
        adds(1, "poiesis_kubernetes_requests_total", verb="list", resource="pods", code="0"),
        pytest.raises(ApiError),
    ):
        gone.get("/api/v1/namespaces/tasks/pods")
    gone.close()


@moves("poiesis_watch_age_seconds")
def test_the_age_of_a_watch_grows_until_the_server_sends_something(api_server: tuple[ApiServer, Client]) -> None:
    server, client = api_server
    now = [100.0]
    watch = Watch(
        client, KubernetesSettings(), PODS, "a=b", project_pod, Cache(lambda _: None),
        monotonic=lambda: now[0], wait=lambda _: None,
    )  # fmt: skip
    bookmark = b'{"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "5"}}}\n'

    def answer(request: Any) -> ApiAnswer:
        if "watch" not in request.query:
            return ApiAnswer(body={"items": [], "metadata": {"resourceVersion": "1"}})
        if watch._last_sent_at > 100.0:
            watch._closed.set()
            return ApiAnswer(lines=[])
        now[0] += 40.0
        return ApiAnswer(lines=[bookmark])

    server.answer = answer
    watch.start()
    watch._thread.join(30)
    now[0] += 7.0
    assert value("poiesis_watch_age_seconds", resource=PODS) == 7.0


@moves("poiesis_store_operation_duration_seconds", "poiesis_store_errors_total")
def test_operations_of_sqlite_are_measured(tmp_path: Path) -> None:
    database = SqliteDatabase(tmp_path / "tasks.sqlite")
    with (
        adds(1, "poiesis_store_operation_duration_seconds", operation="read"),
        adds(1, "poiesis_store_operation_duration_seconds", operation="write"),
        adds(1, "poiesis_store_errors_total", operation="write"),
    ):
        with database.reading() as db:
            db.execute("SELECT 1")
        with pytest.raises(RepositoryUnavailable), database.writing() as db:
            db.execute("nonsense")
    database.close()


@moves("poiesis_event_relay_lag_seconds")
def test_the_lag_of_the_relay_and_commands_of_mongodb(mongo_url: str) -> None:
    stores = in_mongo(mongo_url)
    try:
        old = datetime.now(UTC) - timedelta(hours=1)
        with adds(1, "poiesis_store_operation_duration_seconds", operation="insert"):
            stores.tasks.add(stored(created_at=old).recorded(old))
        stores.events.relay(100)
        assert 3600 <= value("poiesis_event_relay_lag_seconds") < 3700
    finally:
        stores.close()


# ── the API, webhooks, the process ─────────────────────────────────────────────────────────────────────────────────────────────────


@moves("poiesis_requests_limited_total")
def test_a_refused_request_is_counted() -> None:
    limiter = RateLimiter(RateLimits(requests_per_s=1, request_burst=1))
    with adds(1, "poiesis_requests_limited_total", limit="user"):
        assert asyncio.run(admitted(limiter, 2)) == 1


@moves("poiesis_audit_lost_total")
def test_a_lost_audit_line_is_counted(tmp_path: Path) -> None:
    log = AuditLog(str(tmp_path / "audit"))
    log._waiting_bytes = 10**9
    with adds(1, "poiesis_audit_lost_total"):
        log.write({"a": "b"})


@moves("poiesis_webhook_deliveries_total")
def test_deliveries_are_counted_by_result(webhooks: WebhookSite) -> None:  # noqa: F811
    webhooks.service.create("https://r.example/x", owner="ada")
    webhooks.receiver.answers = [Answer(400), Answer(204)]
    webhooks.events.add()
    with (
        adds(1, "poiesis_webhook_deliveries_total", result="failed"),
        adds(1, "poiesis_webhook_deliveries_total", result="delivered"),
    ):
        webhooks.deliver()
        webhooks.advance(timedelta(hours=2))
        webhooks.deliver()


MOVED.add("poiesis_build_info")


def test_the_build_is_known() -> None:
    assert list(values("poiesis_build_info").values()) == [1]


# ── several workers ────────────────────────────────────────────────────────────────────────────────────────────────────────────────

WORKER = """
import os, sys
from poiesis import metrics
for _ in range(int(sys.argv[1])):
    metrics.TASKS_CREATED.inc()
    metrics.STORE_SECONDS.labels("find").observe(0.002)
metrics.QUEUED.labels("default").set(int(sys.argv[1]))
print("counted", flush=True)
sys.stdin.readline()
os.kill(os.getpid(), 9)  # without any clean-up
"""


@contextmanager
def worker(directory: Path, count: int) -> Iterator[None]:
    environ = {**os.environ, metrics.SHARED: str(directory)}
    with subprocess.Popen(
        [sys.executable, "-c", WORKER, str(count)],
        env=environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None and process.stdin is not None
        assert process.stdout.readline() == "counted\n"
        try:
            yield
        finally:
            process.communicate("\n", timeout=60)


def summed(directory: Path) -> dict[str, float]:
    families = text_string_to_metric_families(metrics.exposition(directory).decode())
    return {f"{s.name}{sorted(s.labels.values())}": s.value for family in families for s in family.samples}


def test_workers_share_their_metrics_and_a_restarted_one_continues_those_of_its_predecessor(tmp_path: Path) -> None:
    with worker(tmp_path, 3), worker(tmp_path, 5):
        both = summed(tmp_path)
        assert both["poiesis_tasks_created_total[]"] == 8
        assert both["poiesis_store_operation_duration_seconds_count['find']"] == 8
        assert both["poiesis_queued_tasks['default']"] == 5
    files = len(list(tmp_path.iterdir()))
    assert summed(tmp_path)["poiesis_tasks_created_total[]"] == 8  # counters never go back
    with worker(tmp_path, 2):
        again = summed(tmp_path)
        assert again["poiesis_tasks_created_total[]"] == 10
    for _ in range(3):
        with worker(tmp_path, 1):
            pass
    assert summed(tmp_path)["poiesis_tasks_created_total[]"] == 13
    assert len(list(tmp_path.iterdir())) == files  # restarts leave nothing behind


# ── the catalogue ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_no_metric_exists_that_no_test_moves() -> None:
    known = {described.name for described in metrics.CATALOGUE}
    assert known == MOVED
    registered = {
        family.name + ("_total" if family.type == "counter" else "")
        for family in REGISTRY.collect()
        if family.name.startswith("poiesis_")
    }
    assert registered - known == set()


UNITS = ("_seconds", "_bytes", "_info")


@pytest.mark.parametrize("described", metrics.CATALOGUE, ids=lambda d: d.name)
def test_names_follow_the_rules(described: metrics.Described) -> None:
    assert described.name.startswith("poiesis_") and described.text.endswith(".")
    assert described.name.endswith("_total") is (described.kind == "counter")
    if described.kind == "histogram":
        assert described.name.endswith(UNITS)
    assert not any(word in described.name for word in ("_ms", "_milliseconds", "_minutes", "_mb", "_gb"))
    assert not set(described.labels) & {"user", "owner", "task", "task_id", "id", "pod", "path", "address", "node"}
