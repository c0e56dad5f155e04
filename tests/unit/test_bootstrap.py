"""The composition root: what it builds, in which mode, and that it closes what it opened."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest

from poiesis import bootstrap
from poiesis.bootstrap import Bootstrap, SystemClock
from poiesis.cluster.kubernetes.placement import placements
from poiesis.cluster.kubernetes.settings import KubernetesSettings, Placement
from poiesis.config import Settings, shipped_launchers
from poiesis.domain.decide.admission import check_admissible
from poiesis.domain.errors import ConfigurationError, InvalidTask
from poiesis.domain.quotas import AdmissionRules, ServiceClass
from poiesis.domain.task import Executor, Resources, Task, TaskId, TaskSpec
from poiesis.filer.settings import FilerSettings
from poiesis.repository.sqlite.tasks import SqliteTaskRepository
from poiesis.services.create_bursts import LEAST
from poiesis.services.deferred_begin import DeferredBegin


@pytest.fixture
def embedded(tmp_path: Path) -> Bootstrap:
    return Bootstrap(Settings(directory=str(tmp_path)), FilerSettings(file_roots=(str(tmp_path),)))


def test_the_policy_has_the_abilities_of_the_adapters(embedded: Bootstrap, tmp_path: Path) -> None:
    policy = embedded.policy
    assert policy.file_roots == (str(tmp_path),)
    assert {"file", "s3", "http", "https"} <= policy.url_schemes_in and {"file", "s3"} <= policy.url_schemes_out
    assert policy.backend_parameters == {"time_limit", "optional_outputs"}
    without = Bootstrap(Settings(directory=str(tmp_path)), FilerSettings())
    assert "file" not in without.policy.url_schemes_in | without.policy.url_schemes_out


@pytest.mark.parametrize("default", ["default", "bulk"])
def test_a_class_that_a_task_may_ask_for_can_be_launched(default: str) -> None:
    admission = AdmissionRules(classes={"bulk": ServiceClass(max_tasks=5)}, default_class=default)
    kubernetes = KubernetesSettings(service_classes={"burst": Placement()})
    parts = Bootstrap(Settings(admission=admission), FilerSettings(), kubernetes)
    assert "service_class" in parts.policy.backend_parameters
    assert parts._kubernetes is not None
    for name in ("bulk", "burst", "default", "other"):
        task_spec = TaskSpec((), resources=Resources(backend_parameters={"service_class": name}))
        task = Task(TaskId("a"), task_spec, datetime(2026, 1, 1, tzinfo=UTC))
        try:
            check_admissible(task_spec, parts.policy.admission, "ada", ())
        except InvalidTask:
            assert name in ("default", "other") and name != default
        else:
            placements(task, parts._kubernetes, devices=False)


@pytest.mark.parametrize(
    ("classes", "service_classes"), [({}, {}), ({"bulk": ServiceClass()}, {}), ({}, {"burst": Placement()})]
)
def test_the_parameter_exists_where_a_class_does(
    classes: dict[str, ServiceClass], service_classes: dict[str, Placement]
) -> None:
    kubernetes = KubernetesSettings(service_classes=service_classes)
    parts = Bootstrap(Settings(admission=AdmissionRules(classes=classes)), FilerSettings(), kubernetes)
    assert ("service_class" in parts.policy.backend_parameters) == bool(classes or service_classes)


def test_the_embedded_mode_has_a_file_and_no_broker(embedded: Bootstrap, tmp_path: Path) -> None:
    with embedded:
        assert embedded.is_embedded
        embedded.repository.ready()
        assert (tmp_path / "tasks.sqlite").exists()
        assert embedded.celery.conf.broker_url.startswith("memory:")
        embedded.api_ready()


def test_the_embedded_mode_holds_admission_while_creates_queue(embedded: Bootstrap) -> None:
    spec = TaskSpec((Executor("alpine", ("true",)),))
    creating = [threading.Thread(target=embedded.tasks.create, args=(spec,)) for _ in range(LEAST)]
    with embedded:
        database = cast(SqliteTaskRepository, embedded.repository)._database
        with database.writing():
            for thread in creating:
                thread.start()
            while len(database._write_lock._waiting) < LEAST:
                time.sleep(0.001)
            held = embedded.admitter.hold(threading.Event())
        for thread in creating:
            thread.join(10)
    assert list(held) == [""]


def test_on_kubernetes_the_api_publishes_behind_its_answers_until_it_is_closed() -> None:
    parts = Bootstrap.from_environ({"POIESIS_MONGO_URI": "mongodb://127.0.0.1:1"})
    tasks = parts.tasks
    assert isinstance(tasks.queue, DeferredBegin)
    with ExitStack() as stack:
        for _ in range(LEAST):
            stack.enter_context(tasks.creating("ann"))
        assert "ann" in parts.create_bursts.hold(threading.Event())
    tasks.on_close()
    assert not tasks.queue._thread.is_alive()


def test_only_the_embedded_mode_ignores_claims_of_an_earlier_process(
    embedded: Bootstrap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(bootstrap, "Orchestrator", lambda *_, **options: seen.append(options.get("exclusive_since")))
    server = Bootstrap(Settings(), FilerSettings(), KubernetesSettings())
    for parts in (embedded, server):
        parts.__dict__.update(repository=None, cluster=None)
        assert parts.orchestrator is None
    assert seen[0] is not None and seen[1] is None


def test_parts_are_built_once_and_closed_in_reverse_order(embedded: Bootstrap, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[str] = []

    class Part:
        def __init__(self, name: str) -> None:
            self.name = name

        def close(self) -> None:
            closed.append(self.name)

    for name in ("first", "second", "third"):
        embedded._opened(cast(Any, Part(name)))
    with embedded:
        assert embedded.repository is embedded.repository and embedded.queue is embedded.queue
    assert closed == ["third", "second", "first"]
    embedded.close()
    assert len(closed) == 3


def test_a_part_that_fails_to_close_keeps_no_other_open(embedded: Bootstrap) -> None:
    closed: list[int] = []

    class Part:
        def __init__(self, number: int) -> None:
            self.number = number

        def close(self) -> None:
            closed.append(self.number)
            if self.number == 1:
                raise RuntimeError("stuck")

    for number in range(3):
        embedded._opened(cast(Any, Part(number)))
    with pytest.raises(RuntimeError, match="stuck"):
        embedded.close()
    assert closed == [2, 1, 0]


def test_an_unsupported_architecture_is_a_configuration_error(
    embedded: Bootstrap, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap, "shipped_launchers", dict)
    with pytest.raises(ConfigurationError, match="unsupported architecture"), embedded:
        _ = embedded.cluster
    assert sorted(shipped_launchers()) == ["amd64", "arm64"]


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"POIESIS_KUBERNETES__X": "1"}, "POIESIS_KUBERNETES__X"),
        ({"POIESIS_FILER__X": "1"}, "POIESIS_FILER__X"),
        ({"POIESIS_X": "1"}, "POIESIS_X"),
        ({"POIESIS_FILER__PARALLEL": "9999"}, "parallel"),
    ],
)
def test_a_role_reads_every_adapters_settings(variables: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        Bootstrap.from_environ(variables)


def test_variables_of_the_client_are_not_settings_of_a_role() -> None:
    client = {"POIESIS_URL": "http://h", "POIESIS_TOKEN": "t", "POIESIS_TEST_IMAGE": "i"}
    parts = Bootstrap.from_environ({**client, "POIESIS_KUBERNETES__NAMESPACE": "tasks", "POIESIS_MAX_PARALLEL": "3"})
    assert not parts.is_embedded and parts.settings.max_parallel == 3
    assert parts.describe() == "Tasks run as pods on Kubernetes."


def test_secrets_are_not_shown() -> None:
    parts = Bootstrap(Settings(mongo_uri="mongodb://u:secret@h", redis_uri="redis://:secret@h"), FilerSettings())
    assert "secret" not in repr(parts.settings) + repr(replace(parts.settings, log_level="DEBUG"))


def test_the_clock_is_aware() -> None:
    offset: Callable[[], Any] = SystemClock().now().utcoffset
    assert offset() is not None and offset().total_seconds() == 0


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("poiesis.cli.main", ("celery", "kubernetes", "pymongo", "minio", "connexion", "flask")),
        ("poiesis.cli.task", ("celery", "kubernetes", "pymongo", "minio", "connexion", "flask")),
        ("poiesis.bootstrap", ("celery", "kubernetes", "pymongo", "connexion", "flask", "sqlite3")),
        ("poiesis.roles", ("celery", "kubernetes", "pymongo", "minio", "connexion", "flask")),
    ],
)
def test_roles_import_only_what_they_use(module: str, absent: tuple[str, ...]) -> None:
    program = f"import sys, {module}; print(*sorted(set(sys.modules) & set({absent!r})))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize(
    ("allow", "kubernetes", "exposes"), [(False, True, True), (True, True, False), (False, False, False)]
)
def test_credentials_over_open_connections_count_on_kubernetes_unless_allowed(
    tmp_path: Path, allow: bool, kubernetes: bool, exposes: bool
) -> None:
    filer = FilerSettings(allow_unencrypted_credentials=allow, s3={"main": {"url": "http://s3.example.org"}})
    parts = Bootstrap(Settings(directory=str(tmp_path)), filer, KubernetesSettings() if kubernetes else None)
    assert parts.policy.exposes_credentials(["s3://bucket/key"]) is exposes
    assert parts.policy.exposes_credentials(["https://example.org/file"]) is False
