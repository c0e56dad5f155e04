"""Where records are found, and how often logs are read for them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from poiesis.cluster.kubernetes.cache import PodView, project_pod
from poiesis.cluster.kubernetes.client import Client
from poiesis.cluster.kubernetes.records import Records
from poiesis.domain.errors import ClusterUnavailable
from poiesis.domain.observed import TIF, TOF, Record
from poiesis.domain.records import parse_time
from poiesis.domain.report import FilerReport, TransferredFile, format_report
from tests.unit.cluster.kubernetes.conftest import Answer, ApiServer, Request, pod_json

RUNNING = {"running": {"startedAt": "2026-01-02T03:04:06Z"}}
ENDED_AT = "2026-01-02T03:04:07Z"
NOW = parse_time(ENDED_AT).timestamp()  # type: ignore[union-attr]
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
def make(client: Client) -> Callable[..., Records]:
    def made(cache_bytes: int = 1_000_000, now: float = NOW) -> Records:
        return Records(client, "tasks", 100, cache_bytes, now=lambda: now)

    return made


def reads(server: ApiServer) -> list[str]:
    return [r.query["container"] for r in server.requests]


def test_a_complete_termination_message_needs_no_log(make: Callable[..., Records], server: ApiServer) -> None:
    said = make().of(pod(executor_0=ended(record()), executor_1=RUNNING), poked=False)
    assert said["executor-0"].record is not None and "executor-1" not in said and not server.requests


def test_the_rest_of_a_truncated_message_is_read_from_the_log_after_the_end(
    make: Callable[..., Records], server: ApiServer, logs: dict[str, Answer | None]
) -> None:
    cut = ended(record(truncated=True, stdout="short"))
    logs["executor-0"] = Answer(body="user output\n" + LINE + record(stdout="x" * 500, truncated=True) + "\n")
    records = make()
    assert records.of(pod(executor_0=cut, executor_1=RUNNING), poked=False) == {} and not server.requests
    both = pod(executor_0=cut, executor_1=ended(record("executor-1")))
    found = records.of(both, poked=False)["executor-0"].record
    assert found is not None and found.stdout == "x" * 100  # the site's tail
    records.of(both, poked=False)
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
    assert records.of(view, poked=False) == {}
    assert time.thread_time() - began < 3


def test_a_record_that_is_nowhere_is_looked_for_once(
    make: Callable[..., Records], server: ApiServer, logs: dict[str, Answer | None]
) -> None:
    logs["executor-0"] = Answer(body="killed half-way")
    records, view = make(), pod(executor_0=ended(None, 137))
    assert records.of(view, poked=False) == {}
    first = len(server.requests)
    records.of(view, poked=False)
    assert len(server.requests) == first


def test_a_record_before_noise_of_the_other_stream_is_found_by_reading_further_back(
    make: Callable[..., Records], server: ApiServer, logs: dict[str, Answer | None]
) -> None:
    def answer(request: Request) -> Answer:
        if int(request.query["tailLines"]) < 1000:
            return Answer(body="late\n" * 20)
        return Answer(body=f"unfinished line {LINE}{record()}\n" + "late\n" * 500)

    server.answer = answer
    found = make().of(pod(executor_0=ended()), poked=False)
    assert found["executor-0"].record is not None and len(server.requests) == 2


def test_an_unreadable_log_is_retried_for_a_while(make: Callable[..., Records], logs: dict[str, Answer | None]) -> None:
    logs["executor-0"] = Answer(status=500, body={"message": "dial tcp: connection refused"})
    view = pod(executor_0=ended(record(truncated=True)))
    with pytest.raises(ClusterUnavailable):
        make().of(view, poked=False)
    found = make(now=NOW + 1000).of(view, poked=False)["executor-0"].record
    assert found is not None and found.stdout == "out"  # better than nothing


def test_no_log_is_read_of_a_deleted_pod(make: Callable[..., Records], logs: dict[str, Answer | None]) -> None:
    assert make().of(pod(executor_0=ended()), poked=False) == {}


def test_no_log_is_read_of_a_container_that_never_ran(
    make: Callable[..., Records], server: ApiServer, logs: dict[str, Answer | None]
) -> None:
    document = pod_json(containers={"executor-0": {"waiting": {"reason": "PodInitializing"}}}, phase="Failed")
    view = project_pod(document)
    assert view is not None and make().of(view, poked=False) == {} and not server.requests


def test_after_a_poke_the_search_stops_at_the_first_running_container(
    make: Callable[..., Records], server: ApiServer, logs: dict[str, Answer | None]
) -> None:
    logs["tof"] = Answer(body="still at it\n")
    records, view = make(), pod(executor_0=RUNNING, tof=RUNNING)
    assert records.of(view, poked=True) == {} and reads(server) == ["tof"]
    logs["tof"] = Answer(body=LINE + record("tof") + "\n")
    logs["executor-0"] = Answer(body=LINE + record() + "\n")
    assert set(records.of(view, poked=True)) == {"tof", "executor-0"}


def test_records_of_other_containers_in_a_log_save_reading_theirs(
    make: Callable[..., Records], server: ApiServer, logs: dict[str, Answer | None]
) -> None:
    logs["tof"] = Answer(body=f"{LINE}{record()}\n{LINE}{record('tof')}\n")
    said = make().of(pod(executor_0=ended(), tof=ended()), poked=False)
    assert set(said) == {"tof", "executor-0"} and reads(server) == ["tof"]


def test_a_record_received_by_poke_needs_neither_status_nor_log(
    make: Callable[..., Records], server: ApiServer
) -> None:
    records, view = make(), pod(executor_0=RUNNING)
    records.accept_records(view.name, [Record("executor-0", True, 0, stdout="x" * 1000), Record("other", True, 0)])
    said = records.of(view, poked=False)
    assert said["executor-0"].record is not None and len(said["executor-0"].record.stdout) == 100
    assert set(records.of(view, poked=False)) == {"executor-0"} and not server.requests


def test_a_filers_report_is_taken_from_its_record(make: Callable[..., Records], logs: dict[str, Answer | None]) -> None:
    report = FilerReport((TransferredFile("s3://b/é", "/data/a", 1),) * 5000, total_files=5000)
    text = format_report(report)
    assert len(text) > 300_000
    logs["tif"] = Answer(body=LINE + record(TIF, stdout="noise\n" + text + "\n") + "\n")
    logs["tof"] = Answer(body=LINE + record(TOF, stdout="no report") + "\n")
    said = make().of(pod(tif=ended(), tof=ended()), poked=False)
    assert said[TIF].report == report and said[TOF].report is None
    kept = said[TIF].record
    assert kept is not None and kept.stdout == ""


def test_a_record_of_another_container_is_ignored(make: Callable[..., Records], logs: dict[str, Answer | None]) -> None:
    logs["executor-0"] = Answer(body=LINE + record("tof") + "\n" + LINE + "no json\n")
    assert make().of(pod(executor_0=ended(record("tof"))), poked=False) == {}


def test_the_cache_is_bounded(make: Callable[..., Records], server: ApiServer) -> None:
    records = make(cache_bytes=5_000)
    views = []
    for i in range(100):
        view = project_pod(pod_json(f"p{i}", containers={"executor-0": ended(record())}))
        assert view is not None
        records.of(view, poked=False)
        views.append(view)
    assert len(records._known) < 12 and records._known_bytes <= 5_000
    for view in views:
        records.forget(view)
    assert records._known_bytes == 0


def test_the_live_tail_is_that_of_the_running_executor(
    make: Callable[..., Records], server: ApiServer, logs: dict[str, Answer | None]
) -> None:
    logs["executor-1"] = Answer(body="x" * 500 + "\nend\n")
    view = pod(tif=ended(record(TIF)), executor_0=ended(record()), executor_1=RUNNING, executor_2=RUNNING)
    records = make()
    tails = records.tails(view, records.of(view, poked=False))
    assert (
        list(tails) == ["executor-1"]
        and tails["executor-1"][0].endswith("\nend\n")
        and len(tails["executor-1"][0]) == 100
    )
    assert records.tails(pod(executor_0={"waiting": {}}), []) == {}
    assert reads(server) == ["executor-1"]
