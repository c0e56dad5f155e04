"""The API over a real socket: py-tes, documents of other clients, and special cases of HTTP."""

from __future__ import annotations

import base64
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import requests
import tes

from poiesis.api.credentials import hash_secret
from poiesis.api.server import BackgroundServer
from poiesis.config import ApiSettings
from poiesis.domain.states import Stage, State
from poiesis.domain.task import ExecutorLog, OutputFileLog, TaskId, TaskLog
from tests.unit.api.service import HELLO, Site

AT = datetime(2026, 3, 2, 8, 15, 30, 250000, tzinfo=UTC)


class Served:
    def __init__(self, site: Site) -> None:
        self.site = site
        self.server = BackgroundServer(site.app, replace(site.api, port=0))
        self.url = self.server.url

    def finish(self, task_id: str) -> None:
        log = TaskLog(
            logs=(ExecutorLog(0, AT, AT + timedelta(seconds=1), "out", "err"),),
            outputs=(OutputFileLog("s3://b/o", "/data/o", 3),),
            metadata={"key": "value"},
            start_time=AT,
            end_time=AT,
            system_logs=("note",),
        )
        self.site.change(task_id, state=State.COMPLETE, stage=Stage.DONE, log=log)


@pytest.fixture
def served() -> Iterator[Served]:
    served = Served(Site())
    with served.server:
        yield served


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Served]:
    users = [
        {"name": "ada", "password_hash": hash_secret("pass", "basic"), "token_hash": hash_secret("token", "bearer")}
    ]
    file = tmp_path / "users.json"
    file.write_text(json.dumps(users))
    served = Served(Site(api=ApiSettings(auth=("basic", "bearer"), credentials_file=str(file))))
    with served.server:
        yield served


TASK = tes.Task(
    name="all of it",
    description="every field that py-tes knows",
    inputs=[
        tes.Input(url="s3://b/in", path="/data/in", type="DIRECTORY", name="n", description="d", streamable=True),
        tes.Input(content="text", path="/data/text"),
    ],
    outputs=[tes.Output(url="s3://b/out", path="/data/*.txt", path_prefix="/data", name="n", description="d")],
    resources=tes.Resources(
        cpu_cores=2, ram_gb=1.5, disk_gb=10, preemptible=False, zones=["a"], backend_parameters={"gpu": "1"},
        backend_parameters_strict=True,
    ),
    executors=[
        tes.Executor(
            image="alpine", command=["sh", "-c", "true"], workdir="/data", stdin="/data/in/x", stdout="/data/o",
            stderr="/data/e", env={"A": "b"}, ignore_error=True,
        )
    ],
    volumes=["/vol"],
    tags={"k": "v"},
)  # fmt: skip


class TestPyTes:
    def test_reads_service_info(self, served: Served) -> None:
        info = tes.HTTPClient(served.url).get_service_info()
        assert info.type == {"group": "org.ga4gh", "artifact": "tes", "version": "1.1.0"}
        assert info.tes_resources_backend_parameters == ["gpu", "time_limit"]

    @pytest.mark.parametrize("suffix", ["", "/", "/ga4gh/tes/v1", "/v1"])
    def test_finds_the_api_from_any_of_its_addresses(self, served: Served, suffix: str) -> None:
        client = tes.HTTPClient(served.url + suffix)
        assert client.get_task(client.create_task(TASK), "MINIMAL").state == "QUEUED"

    def test_gets_back_what_it_sent(self, served: Served) -> None:
        client = tes.HTTPClient(served.url)
        task = client.get_task(client.create_task(TASK), "FULL")
        for name in ("name", "description", "inputs", "outputs", "resources", "executors", "volumes", "tags"):
            assert getattr(task, name) == getattr(TASK, name), name
        assert task.creation_time.utcoffset() == timedelta(0)

    def test_waits_for_the_end_and_reads_the_logs(self, served: Served) -> None:
        client = tes.HTTPClient(served.url)
        task_id = client.create_task(TASK)
        threading.Timer(0.2, served.finish, [task_id]).start()
        assert client.wait(task_id, timeout=20).state == "COMPLETE"
        log = client.get_task(task_id, "FULL").logs[0]
        assert (log.logs[0].exit_code, log.logs[0].stdout, log.logs[0].stderr) == (0, "out", "err")
        assert (log.logs[0].start_time, log.start_time) == (AT, AT)
        assert (log.outputs[0].size_bytes, log.system_logs, log.metadata) == (3, ["note"], {"key": "value"})
        assert client.get_task(task_id).logs[0].logs[0].stdout is None

    def test_pages_through_a_listing(self, served: Served) -> None:
        client = tes.HTTPClient(served.url)
        made = []
        for _ in range(5):
            made.append(client.create_task(TASK))
            served.site.clock.advance(timedelta(seconds=1))
        seen, token = [], None
        while True:
            page = client.list_tasks("FULL", page_size=2, page_token=token)
            seen += [task.id for task in page.tasks]
            if not (token := page.next_page_token):
                break
        assert seen == made[::-1]

    def test_cancels_and_cancels_again(self, served: Served) -> None:
        client = tes.HTTPClient(served.url)
        task_id = client.create_task(TASK)
        client.cancel_task(task_id)
        client.cancel_task(task_id)
        assert served.site.repository.get(TaskId(task_id)).cancel_requested_at is not None
        with pytest.raises(requests.HTTPError, match="404"):
            client.cancel_task("nothing")

    @pytest.mark.parametrize("credentials", [{"user": "ada", "password": "pass"}, {"token": "token"}])
    def test_authenticates(self, guarded: Served, credentials: dict[str, str]) -> None:
        client = tes.HTTPClient(guarded.url, **credentials)
        task_id = client.create_task(TASK)
        assert client.get_task(task_id).id == task_id
        assert [task.id for task in client.list_tasks().tasks] == [task_id]
        client.cancel_task(task_id)

    @pytest.mark.parametrize("credentials", [{}, {"user": "ada", "password": "wrong"}, {"token": "wrong"}])
    def test_is_refused_at_once_without_valid_credentials(self, guarded: Served, credentials: dict[str, str]) -> None:
        with pytest.raises(requests.HTTPError, match="401"):
            tes.HTTPClient(guarded.url, **credentials).create_task(TASK)


NULLS = {  # every field that was not set, as pydantic writes it
    "id": None, "state": None, "name": "galaxy", "description": None, "logs": None, "creation_time": None, "tags": None,
    "volumes": ["/shared"], "resources": {"cpu_cores": 1, "ram_gb": None, "disk_gb": None, "preemptible": None,
    "zones": None, "backend_parameters": None, "backend_parameters_strict": None},
    "inputs": [{"name": None, "description": None, "url": None, "path": "/shared/x", "type": "FILE", "content": "x"}],
    "outputs": None,
    "executors": [
        {"image": i, "command": ["true"], "workdir": "/", "stdin": None, "stdout": None, "stderr": None, "env": None}
        for i in ("init", "tool", "end")
    ],
}  # fmt: skip
DECIMALS = {  # resources as a workflow engine requests them
    "name": "step", "resources": {"cpu_cores": 1.0, "ram_gb": 0.244140625, "disk_gb": 2.00048828125},
    "inputs": [{"url": "http://h/f", "path": "/var/lib/cwl/f", "type": "FILE"}],
    "outputs": [{"url": "s3://b/out", "path": "/home/job", "type": "DIRECTORY"}],
    "executors": [{"image": "i", "command": ["cat"], "stdin": "/var/lib/cwl/f", "env": {"HOME": "/home/job"}}],
}  # fmt: skip
CROMWELL = {
    "name": "wf", "tags": {"workflow": "1", "parent": None},
    "resources": {"backend_parameters": {"a": None, "b": "c"}, "preemptible": True, "disk_gb": 10.0},
    "outputs": [{"url": "s3://b/dir/", "path": "/cromwell/dir/", "type": "DIRECTORY"}],
    "executors": [{"image": "i", "command": ["/bin/bash", "/cromwell/script"], "stdout": "/cromwell/o", "env": {}}],
}  # fmt: skip
NEXTFLOW = {
    "name": "nf", "resources": {"cpu_cores": 2, "ram_gb": 1.5, "disk_gb": 0.5},
    "inputs": [{"url": "s3://w/.command.run", "path": "/work/.command.run", "type": "FILE"}],
    "outputs": [{"url": "s3://w/", "path": "/work/*.bam", "path_prefix": "/work"},
                {"url": "s3://w/x.{a,b}", "path": "/work/x.{a,b}"}],
    "executors": [{"image": "i", "command": ["/bin/bash", "-c", "bash .command.run"], "workdir": "/work"}],
}  # fmt: skip


@pytest.mark.parametrize("document", [NULLS, DECIMALS, CROMWELL, NEXTFLOW], ids=["nulls", "decimals", "cromwell", "nf"])
def test_documents_of_other_clients_are_accepted(served: Served, document: dict[str, Any]) -> None:
    answer = requests.post(f"{served.url}/v1/tasks", json=document, timeout=10)
    assert answer.status_code == 200, answer.text
    full = requests.get(f"{served.url}/v1/tasks/{answer.json()['id']}?view=FULL", timeout=10).json()
    assert len(full["executors"]) == len(document["executors"])
    assert [o["type"] for o in full["outputs"]] == [o.get("type", "FILE") for o in document["outputs"] or []]


def _exchange(served: Served, *parts: bytes, pause_s: float = 0.0) -> bytes:
    """Send parts over one connection, read until the server closes it."""
    with socket.create_connection(("127.0.0.1", served.server.port), timeout=10) as connection:
        for part in parts:
            try:
                connection.sendall(part)
            except OSError:
                break
            time.sleep(pause_s)
        connection.settimeout(2)
        answer = b""
        try:
            while chunk := connection.recv(65536):
                answer += chunk
        except OSError:
            pass
        return answer


class TestHttp:
    def test_a_body_too_large_is_refused_before_it_is_sent(self, served: Served) -> None:
        head = b"POST /v1/tasks HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 99999999\r\n\r\n"
        assert _exchange(served, head + b"{").startswith(b"HTTP/1.1 413")

    def test_a_chunked_body_too_large_is_refused_on_the_way(self, served: Served) -> None:
        chunk = b"%x\r\n" % (1 << 20) + b" " * (1 << 20) + b"\r\n"
        head = b"POST /v1/tasks HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        assert _exchange(served, head, *[chunk] * 12).startswith(b"HTTP/1.1 413")

    def test_a_connection_serves_many_requests(self, served: Served) -> None:
        with requests.Session() as session:
            for _ in range(20):
                assert session.post(f"{served.url}/v1/tasks", json=HELLO, timeout=10).status_code == 200
                assert session.post(f"{served.url}/v1/tasks", data=b"{", timeout=10).status_code in (400, 415)

    def test_the_server_sends_no_server_header(self, served: Served) -> None:
        assert "server" not in requests.get(f"{served.url}/healthz", timeout=10).headers

    def test_many_at_once_are_all_answered(self, served: Served) -> None:
        answers: list[int] = []

        def post() -> None:
            with requests.Session() as session:
                for _ in range(10):
                    answers.append(session.post(f"{served.url}/v1/tasks", json=HELLO, timeout=30).status_code)

        threads = [threading.Thread(target=post) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers == [200] * 200
        assert served.site.stored() == 200

    def test_a_request_under_way_is_answered_before_the_server_ends(self, monkeypatch: pytest.MonkeyPatch) -> None:
        served = Served(Site())
        original = served.site.tasks.create
        begun = threading.Event()

        def slow(*args: Any, **kwargs: Any) -> TaskId:
            begun.set()
            time.sleep(0.5)
            return original(*args, **kwargs)

        monkeypatch.setattr(served.site.tasks, "create", slow)
        answers: list[int] = []
        with served.server:
            url = f"{served.url}/v1/tasks"
            thread = threading.Thread(
                target=lambda: answers.append(requests.post(url, json=HELLO, timeout=10).status_code)
            )
            thread.start()
            assert begun.wait(10)
        thread.join(10)
        assert answers == [200]

    def test_basic_credentials_do_not_hold_up_others(self, guarded: Served) -> None:
        wrong = {"Authorization": "Basic " + base64.b64encode(b"ada:wrong").decode()}
        threads = [
            threading.Thread(target=requests.get, args=[f"{guarded.url}/v1/tasks"], kwargs={"headers": wrong})
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        began = time.monotonic()
        assert requests.get(f"{guarded.url}/healthz", timeout=10).status_code == 200
        assert time.monotonic() - began < 2
        for thread in threads:
            thread.join()
