"""Pokes, the number of API calls per task, and leader election."""

from __future__ import annotations

import os
import secrets
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.parse import urlsplit

import pytest

from poiesis.cluster.kubernetes.client import Client
from poiesis.cluster.kubernetes.leader import Election
from poiesis.domain.observed import Record
from poiesis.domain.plan import plan
from poiesis.domain.policy import Policy
from poiesis.domain.records import parse_poke
from poiesis.domain.states import Stage
from poiesis.domain.task import FileType, Input, Output, TaskSpec
from tests.integration.kubernetes.conftest import Driver, busybox, eventually, settings, shell
from tests.integration.kubernetes.test_executors import record_of

IN = Input(path="/data/in.txt", url="s3://bucket/in.txt", type=FileType.FILE)
OUT = Output(path="/data/out.txt", url="s3://bucket/out.txt", type=FileType.FILE)


class Listener:
    """A listener for pokes; `records` are those of the last one."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.records: list[Record] = []
        self.received = threading.Condition()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                records = parse_poke(self.rfile.read(int(self.headers["Content-Length"] or 0)))
                with outer.received:
                    outer.paths.append(self.path)
                    outer.records = list(records)
                    outer.received.notify_all()
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = HTTPServer(("0.0.0.0", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()


@pytest.fixture
def listener() -> Iterator[Listener]:
    made = Listener()
    yield made
    made.server.shutdown()
    made.server.server_close()


def own_address(client: Client) -> str:
    """The address of this machine for pods: POIESIS_TEST_HOST, else that of the route to the API server, else the node's."""
    if "POIESIS_TEST_HOST" in os.environ:
        return os.environ["POIESIS_TEST_HOST"]
    url = urlsplit(client.host)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((url.hostname, url.port or 443))
        address = str(probe.getsockname()[0])
    if not address.startswith("127."):
        return address
    node = client.get("/api/v1/nodes")["items"][0]
    return str(next(a["address"] for a in node["status"]["addresses"] if a["type"] == "InternalIP"))


def test_the_last_poke_brings_all_records(namespace: str, listener: Listener, driver: Driver) -> None:
    address = own_address(driver.cluster.client)
    made = Driver(settings(namespace, poke_address=f"{address}:{listener.port}"), Policy())
    try:
        task = made.task([shell("echo one"), shell("echo two; exit 3")])
        made.begin(task)
        with listener.received:
            assert listener.received.wait_for(lambda: len(listener.records) == 2, 30)
        made.cluster.accept_records(task, listener.records)
        pod = made.cluster.observe(task).pods[0]
        assert pod.ended and record_of(pod, "executor-0").stdout == "one\n"
        assert record_of(pod, "executor-1").exit_code == 3
        assert set(listener.paths) == {f"/poke/{task.id}/{task.poke_nonce}"}
        assert "get pods/log" not in made.cluster.client.calls
    finally:
        made.close()


def test_the_calls_that_a_task_takes(driver: Driver) -> None:
    calls = driver.cluster.client.calls
    for spec, wanted in (
        (TaskSpec((busybox("true"),)), {"create pods", "delete pods"}),
        (
            TaskSpec((shell("cp /data/in.txt /data/out.txt"),), inputs=(IN,), outputs=(OUT,)),
            {"create persistentvolumeclaims", "create secrets", "create pods", "delete pods"}
            | {"delete persistentvolumeclaims"},
        ),
    ):
        calls.clear()
        task = driver.task(spec)
        driver.begin(task)
        driver.until(task, lambda pod: pod.ended)
        driver.cluster.delete_all(task.id, task.attempt, plan(spec, driver.policy))
        eventually(lambda task=task: driver.cluster.observe(replace(task, stage=Stage.CLEAN)).is_empty, 60)  # type: ignore[misc]
        once = ("create configmaps", "get configmaps")  # once per process
        made = {call: n for call, n in calls.items() if call not in once and not call.startswith("watch")}
        assert wanted <= set(made) and sum(made.values()) <= (4 if len(wanted) == 2 else 8), made


def test_of_two_candidates_one_leads_and_the_other_follows(namespace: str) -> None:
    events: list[str] = []
    name = f"test-{secrets.token_hex(3)}"

    def candidate(who: str) -> Election:
        return Election(
            settings(namespace),
            lambda: events.append(f"{who} leads"),
            lambda: events.append(f"{who} stops"),
            name=name,
            identity=who,
            lease=timedelta(seconds=4),
            renew_deadline=timedelta(seconds=3),
            retry=timedelta(seconds=0.5),
        )

    first, second, third = candidate("a"), candidate("b"), candidate("c")
    first.start()
    eventually(lambda: first.is_leader)
    second.start()
    first._wait = lambda _: threading.Event().wait()  # killed: it neither renews nor releases
    eventually(lambda: second.is_leader)
    assert events == ["a leads", "b leads"] and not first.is_leader
    third.start()
    second.close()
    eventually(lambda: third.is_leader, 3)  # released before the lease expires
    third.close()
    assert events == ["a leads", "b leads", "b stops", "c leads", "c stops"]
