"""Pokes of one pod reach any of the monitor's replicas, each with its own memory: the last one has to be enough where it arrives."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from poiesis.cluster.kubernetes.adapter import KubernetesCluster
from poiesis.cluster.kubernetes.cache import PODS
from poiesis.domain.observed import TIF, TOF
from poiesis.domain.policy import Policy
from poiesis.domain.records import MAX_POKED_RECORDS, parse_poke
from poiesis.domain.report import FilerReport, format_report
from poiesis.domain.states import Stage, State
from poiesis.domain.task import Executor, FileType, Input, Output, TaskSpec
from poiesis.services.orchestrator import Orchestrator
from poiesis.testing.clock import ManualClock
from poiesis.testing.repository import MemoryTaskRepository
from tests.unit.cluster.kubernetes.conftest import TASK_ID, Answer, make_task, pod_json
from tests.unit.cluster.kubernetes.test_adapter import CORE, Store, make, store

__all__ = ["make", "store"]  # fixtures

SPEC = TaskSpec(
    (Executor("busybox", ("true",)),),
    inputs=(Input(path="/data/in", url="s3://b/in", type=FileType.FILE),),
    outputs=(Output(path="/data/out", url="s3://b/out", type=FileType.FILE),),
)
NAMES = (TIF, "executor-0", TOF)
NOW = datetime(2026, 1, 2, 3, 4, 8, tzinfo=UTC)
RUNNING = {"running": {"startedAt": "2026-01-02T03:04:06Z"}}


def line(name: str) -> bytes:
    report = format_report(FilerReport(total_files=1, total_bytes=7)) if name != "executor-0" else "hello"
    document = {"v": 1, "name": name, "ok": True, "exit_code": 0, "stdout": f"{report}\n"}
    return json.dumps(document | {"started": "2026-01-02T03:04:06Z", "ended": "2026-01-02T03:04:07Z"}).encode() + b"\n"


def pokes(last_has_all: bool = True) -> list[bytes]:
    """As launchers send them: their own record, then those of the others that have ended."""
    bodies = [line(name) + b"".join(map(line, NAMES[:i])) for i, name in enumerate(NAMES)]
    return bodies if last_has_all else [*bodies[:-1], line(TOF)]


class Site:
    def __init__(self, make: Callable[..., KubernetesCluster], store: Store, replicas: int) -> None:
        self.repository = MemoryTaskRepository()
        self.task = make_task(SPEC, layout="single", state=State.QUEUED, stage_since=NOW, wake_at=NOW)
        self.repository.add(self.task)
        pod = pod_json(containers=dict.fromkeys(NAMES, RUNNING), phase="Running")
        store.objects[f"{CORE}/{PODS}/{pod['metadata']['name']}"] = pod
        clock = ManualClock(NOW)
        self.replicas = [Orchestrator(self.repository, make(), clock, Policy()) for _ in range(replicas)]

    def poke(self, replica: int, body: bytes) -> None:
        self.replicas[replica].reconcile(TASK_ID, {Stage.RUN}, poked=self.task.poke_nonce, records=parse_poke(body))

    @property
    def state(self) -> State:
        return self.repository.get(TASK_ID).state


@pytest.mark.parametrize("route", [(0, 0, 0), (0, 1, 0), (1, 0, 0), (0, 1, 2), (2, 2, 1)])
def test_the_last_poke_ends_the_task_whichever_replica_it_reaches(
    make: Callable[..., KubernetesCluster], store: Store, route: tuple[int, ...]
) -> None:
    site = Site(make, store, replicas=3)
    for replica, body in zip(route, pokes(), strict=True):
        assert not site.state.is_terminal
        site.poke(replica, body)
    task = site.repository.get(TASK_ID)
    assert task.state is State.COMPLETE and task.log.logs[0].stdout == "hello\n"
    assert task.log.metadata["inputs_bytes"] == "7" and task.log.metadata["node"] == "node1"
    assert not [r for r in store.server.requests if r.path.endswith("/log")]


def test_only_the_last_poke_has_to_arrive(make: Callable[..., KubernetesCluster], store: Store) -> None:
    site = Site(make, store, replicas=1)
    site.poke(0, pokes()[-1])
    assert site.state is State.COMPLETE


def test_records_that_did_not_fit_into_the_last_poke_are_read_from_the_logs(
    make: Callable[..., KubernetesCluster], store: Store
) -> None:
    store.deny = lambda request: (
        Answer(body="POIESIS-RECORD " + line(request.query["container"]).decode())
        if request.path.endswith("/log")
        else None
    )
    site = Site(make, store, replicas=1)
    site.poke(0, pokes(last_has_all=False)[-1])
    assert site.state is State.COMPLETE


def test_a_standby_asks_for_the_pod_by_name(make: Callable[..., KubernetesCluster], store: Store) -> None:
    """A list by label would make the API server look at every pod of the namespace."""
    site = Site(make, store, replicas=1)
    site.poke(0, pokes()[0])
    (request,) = store.server.requests
    assert request.query["fieldSelector"] == f"metadata.name=poiesis-{TASK_ID}-1-task"


def test_the_sender_speaks_for_itself_and_the_first_record_of_each_name_counts() -> None:
    own, forged = line("executor-0"), line("executor-0").replace(b'"exit_code": 0', b'"exit_code": 9')
    assert [r.exit_code for r in parse_poke(own + forged)] == [0]


def test_a_poke_of_any_bytes_is_parsed_within_bounds() -> None:
    assert parse_poke(b"") == () and parse_poke(b"\n\xff\n{}\n[]\n") == ()
    many = b"".join(line(f"executor-{i}") for i in range(2 * MAX_POKED_RECORDS))
    assert len(parse_poke(many)) == MAX_POKED_RECORDS
