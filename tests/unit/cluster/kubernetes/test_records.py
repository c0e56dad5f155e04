"""Where records are found, and how often logs are read for them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from poiesis.cluster.kubernetes.cache import PodView, project_pod
from poiesis.cluster.kubernetes.client import Client
from poiesis.cluster.kubernetes.log_reader import LONGEST_PAUSE_S, LogReader
from poiesis.cluster.kubernetes.records import PATIENCE_S, REPORT_PATIENCE_S, ContainerReport, Found, Records
from poiesis.domain.observed import TIF, TOF, Record
from poiesis.domain.report import FilerReport, TransferredFile, format_report
from tests.unit.cluster.kubernetes.conftest import Answer, ApiServer, Request, pod_json

RUNNING = {"running": {"startedAt": "2026-01-02T03:04:06Z"}}
ENDED_AT = "2026-01-02T03:04:07Z"
DEADLINE_S = 20.0
LINE = "POIESIS-RECORD "


def record(name: str = "executor-0", **more: Any) -> str:
    return json.dumps({"v": 1, "name": name, "ok": True, "exit_code": 0, "stdout": "out", **more})


def ended(message: str | None = None, code: int = 0) -> dict[str, Any]:
    return {"terminated": {"exitCode": code, "reason": "Completed", "message": message, "finishedAt": ENDED_AT}}


def pod(**states: dict[str, Any]) -> PodView:
    view = project_pod(pod_json(containers={name.replace("_", "-"): state for name, state in states.items()}))
    assert view is not None
    return view


@pytest.fixture
def logs(server: ApiServer) -> dict[str, Answer | None]:
    """The response for the log of each container."""
    answers: dict[str, Answer | None] = {}

    def answer(request: Request) -> Answer | None:
        return answers.get(request.query.get("container", ""), Answer(status=404, body={"message": "no such pod"}))

    server.answer = answer
    return answers


@pytest.fixture
def make(client: Client) -> Iterator[Callable[..., Records]]:
    opened: list[Records] = []

    def made(cache_bytes: int = 1_000_000, **more: Any) -> Records:
        opened.append(Records(client, "tasks", 100, cache_bytes, **more))
        return opened[-1]

    yield made
    for records in opened:
        records.close()


def read(records: Records, view: PodView, *, poked: bool = False) -> dict[str, ContainerReport]:
    return records.of(view, poked=poked, wait_s=DEADLINE_S).reports


def reads(server: ApiServer) -> list[str]:
    return [r.query["container"] for r in server.requests]


def test_a_complete_termination_message_needs_no_log(make: Callable[..., Records], server: ApiServer) -> None:
    said = read(make(), pod(executor_0=ended(record()), executor_1=RUNNING))
    assert said["executor-0"].record is not None and "executor-1" not in said and not server.requests


def test_the_rest_of_a_truncated_message_is_read_from_the_log_after_the_end(
    make: Callable[..., Records], server: ApiServer, logs: dict[str, Answer | None]
) -> None:
    cut = ended(record(truncated=True, stdout="short"))
    logs["executor-0"] = Answer(body="user output\n" + LINE + record(stdout="x" * 500, truncated=True) + "\n")
    records = make()
    assert read(records, pod(executor_0=cut, executor_1=RUNNING)) == {} and not server.requests
    both = pod(executor_0=cut, executor_1=ended(record("executor-1")))
    found = read(records, both)["executor-0"].record
    assert found is not None and found.stdout == "x" * 100  # the site's tail
    read(records, both)
    assert reads(server) == ["executor-0"]
    assert 5 < int(server.requests[0].query["tailLines"]) < 100


def test_each_log_is_searched_once_for_all_containers(
    make: Callable[..., Records], logs: dict[str, Answer | None]
) -> None:
    """Not once for each container without a record: that was 0.25 s of CPU for each MB, times the square of up to 100 executors."""
    names = [f"executor-{i}" for i in range(30)]
    logs.update({name: Answer(body=f"{LINE}{{\n" * 1000) for name in names})
    records, view = make(), pod(**{name.replace("-", "_"): ended(None, 137) for name in names})
    began = time.thread_time()
    assert read(records, view) == {}
    assert time.thread_time() - began < 3


def test_a_record_that_is_nowhere_is_looked_for_once(
    make: Callable[..., Records], server: ApiServer, logs: dict[str, Answer | None]
) -> None:
    logs["executor-0"] = Answer(body="killed half-way")
    records, view = make(), pod(executor_0=ended(None, 137))
    assert read(records, view) == {}
    first = len(server.requests)
    read(records, view)
    assert len(server.requests) == first


def test_a_record_before_noise_of_the_other_stream_is_found_by_reading_further_back(
    make: Callable[..., Records], server: ApiServer, logs: dict[str, Answer | None]
) -> None:
    def answer(request: Request) -> Answer:
        if int(request.query["tailLines"]) < 1000:
            return Answer(body="late\n" * 20)
        return Answer(body=f"unfinished line {LINE}{record()}\n" + "late\n" * 500)

    server.answer = answer
    found = read(make(), pod(executor_0=ended()))
    assert found["executor-0"].record is not None and len(server.requests) == 2


class Time:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.005)


def test_no_task_waits_for_a_log_and_its_task_is_reported_when_it_has_been_read(
    make: Callable[..., Records], logs: dict[str, Answer | None]
) -> None:
    finished: list[str] = []
    logs["executor-0"] = Answer(body=LINE + record() + "\n")
    records, view = make(finished=finished.append), pod(executor_0=ended())
    assert records.of(view, poked=False) == Found({}, reading=True)
    until(lambda: finished == [view.task_id], "the log was read")
    found = records.of(view, poked=False)
    assert set(found.reports) == {"executor-0"} and not found.reading


@pytest.mark.parametrize(
    "message, patience_s", [(None, PATIENCE_S), (record(truncated=True), REPORT_PATIENCE_S)], ids=["none", "truncated"]
)
def test_an_unreadable_log_is_retried_for_a_while(
    make: Callable[..., Records], logs: dict[str, Answer | None], server: ApiServer, message: str, patience_s: float
) -> None:
    logs["executor-0"] = Answer(status=500, body={"message": "dial tcp: connection refused"})
    clock = Time()
    records, view = make(reader=LogReader(monotonic=clock)), pod(executor_0=ended(message, 1))
    for _ in range(5):
        assert records.of(view, poked=False).reading
    until(lambda: server.requests, "the first read")
    clock.now = patience_s - 0.1
    assert not read_within(records, view, 0.05)
    clock.now = patience_s + 0.1
    until(lambda: not records.of(view, poked=False, wait_s=0.1).reading, "given up")
    kept = [r.record.stdout for r in records.of(view, poked=False).reports.values() if r.record is not None]
    assert kept == (["out"] if message else [])  # better than nothing


def read_within(records: Records, view: PodView, wait_s: float) -> bool:
    return not records.of(view, poked=False, wait_s=wait_s).reading


def test_an_api_server_that_is_away_ends_nobodys_patience(
    make: Callable[..., Records], logs: dict[str, Answer | None], server: ApiServer
) -> None:
    clock = Time()
    logs["executor-0"] = None  # closes the connection
    records, view = make(reader=LogReader(monotonic=clock)), pod(executor_0=ended())
    for seen in range(5):  # in all longer than its patience
        assert not read_within(records, view, 0.0)
        until(lambda seen=seen: len(server.requests) > seen, "another read")  # type: ignore[misc]
        until(lambda: records._reader.is_failing(view.node or ""), "it has failed")
        clock.now += PATIENCE_S / 2
    logs["executor-0"] = Answer(body=LINE + record() + "\n")
    clock.now += LONGEST_PAUSE_S
    until(lambda: read_within(records, view, 0.1), "the record")
    assert set(records.of(view, poked=False).reports) == {"executor-0"}


def test_a_log_of_a_lost_node_is_asked_for_once_more_at_most(
    make: Callable[..., Records], logs: dict[str, Answer | None]
) -> None:
    """The pod's end is known; the record would only tell whether a command had failed by itself before."""
    logs["executor-0"] = Answer(status=500, body={"message": "dial tcp: no route to host"})
    clock = Time()
    records = make(reader=LogReader(monotonic=clock))
    view = replace(pod(executor_0=ended()), disruption="DeletionByTaintManager")
    assert not read_within(records, view, 0.1)
    clock.now = 2.1
    until(lambda: read_within(records, view, 0.1), "given up")


def test_no_log_is_read_for_a_task_that_ends_anyway(
    make: Callable[..., Records], server: ApiServer, logs: dict[str, Answer | None]
) -> None:
    found = make().of(pod(executor_0=ended(record()), executor_1=ended()), poked=False, may_read=False)
    assert set(found.reports) == {"executor-0"} and not found.reading and not server.requests


def test_no_log_is_read_of_a_deleted_pod(make: Callable[..., Records], logs: dict[str, Answer | None]) -> None:
    assert read(make(), pod(executor_0=ended())) == {}


def test_no_log_is_read_of_a_container_that_never_ran(
    make: Callable[..., Records], server: ApiServer, logs: dict[str, Answer | None]
) -> None:
    document = pod_json(containers={"executor-0": {"waiting": {"reason": "PodInitializing"}}}, phase="Failed")
    view = project_pod(document)
    assert view is not None and read(make(), view) == {} and not server.requests


def test_after_a_poke_the_search_stops_at_the_first_running_container(
    make: Callable[..., Records], server: ApiServer, logs: dict[str, Answer | None]
) -> None:
    logs["tof"] = Answer(body="still at it\n")
    records, view = make(), pod(executor_0=RUNNING, tof=RUNNING)
    assert read(records, view, poked=True) == {} and reads(server) == ["tof"]
    logs["tof"] = Answer(body=LINE + record("tof") + "\n")
    logs["executor-0"] = Answer(body=LINE + record() + "\n")
    assert set(read(records, view, poked=True)) == {"tof", "executor-0"}


def test_records_of_other_containers_in_a_log_save_reading_theirs(
    make: Callable[..., Records], server: ApiServer, logs: dict[str, Answer | None]
) -> None:
    logs["tof"] = Answer(body=f"{LINE}{record()}\n{LINE}{record('tof')}\n")
    said = read(make(), pod(executor_0=ended(), tof=ended()))
    assert set(said) == {"tof", "executor-0"} and reads(server) == ["tof"]


def test_a_record_received_by_poke_needs_neither_status_nor_log(
    make: Callable[..., Records], server: ApiServer
) -> None:
    records, view = make(), pod(executor_0=RUNNING)
    records.accept_records(view.name, [Record("executor-0", True, 0, stdout="x" * 1000), Record("other", True, 0)])
    said = read(records, view)
    assert said["executor-0"].record is not None and len(said["executor-0"].record.stdout) == 100
    assert set(read(records, view)) == {"executor-0"} and not server.requests


def test_a_filers_report_is_taken_from_its_record(make: Callable[..., Records], logs: dict[str, Answer | None]) -> None:
    report = FilerReport((TransferredFile("s3://b/é", "/data/a", 1),) * 5000, total_files=5000)
    text = format_report(report)
    assert len(text) > 300_000
    logs["tif"] = Answer(body=LINE + record(TIF, stdout="noise\n" + text + "\n") + "\n")
    logs["tof"] = Answer(body=LINE + record(TOF, stdout="no report") + "\n")
    said = read(make(), pod(tif=ended(), tof=ended()))
    assert said[TIF].report == report and said[TOF].report is None
    kept = said[TIF].record
    assert kept is not None and kept.stdout == ""


def test_a_record_of_another_container_is_ignored(make: Callable[..., Records], logs: dict[str, Answer | None]) -> None:
    logs["executor-0"] = Answer(body=LINE + record("tof") + "\n" + LINE + "no json\n")
    assert read(make(), pod(executor_0=ended(record("tof")))) == {}


def test_the_cache_is_bounded(make: Callable[..., Records], server: ApiServer) -> None:
    records = make(cache_bytes=5_000)
    views = []
    for i in range(100):
        view = project_pod(pod_json(f"p{i}", containers={"executor-0": ended(record())}))
        assert view is not None
        read(records, view)
        views.append(view)
    assert len(records._known) < 12 and records._known_bytes <= 5_000
    for view in views:
        records.forget(view)
    assert records._known_bytes == 0


def test_the_live_tail_is_that_of_the_running_executor(
    make: Callable[..., Records], server: ApiServer, logs: dict[str, Answer | None]
) -> None:
    logs["executor-1"] = Answer(body="x" * 500 + "\nend\n")
    view = pod(
        istio_init=ended(), tif=ended(record(TIF)), executor_0=ended(record()), executor_1=RUNNING, executor_2=RUNNING
    )
    records = make()
    tails = records.tails(view, read(records, view))
    assert (
        list(tails) == ["executor-1"]
        and tails["executor-1"][0].endswith("\nend\n")
        and len(tails["executor-1"][0]) == 100
    )
    assert records.tails(pod(executor_0={"waiting": {}}), []) == {}
    assert reads(server) == ["executor-1"]
