"""The command line against a TES 1.0 server without extensions, which py-tes can use, and with its faults."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tes

from tests.servers.plain_tes import PlainTesServer, failing

POIESIS = [sys.executable, "-m", "poiesis"]
DEADLINE_S = 90.0  # for a busy machine


def environment(server: PlainTesServer, home: Path) -> dict[str, str]:
    known = {k: v for k, v in os.environ.items() if not k.startswith(("POIESIS_", "TES_"))}
    return {**known, "TES_URL": server.url, "XDG_CONFIG_HOME": str(home)}


@pytest.fixture
def server() -> Iterator[PlainTesServer]:
    with PlainTesServer() as server:
        yield server


@pytest.fixture
def env(server: PlainTesServer, tmp_path: Path) -> dict[str, str]:
    return environment(server, tmp_path)


def poiesis(env: dict[str, str], *arguments: str, stdin: str = "", **options: Any) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*POIESIS, *arguments], env=env, input=stdin, capture_output=True, text=True, timeout=DEADLINE_S, **options
    )
    assert "Traceback" not in done.stderr
    return done


def test_py_tes_uses_the_server_of_these_tests(server: PlainTesServer) -> None:
    client = tes.HTTPClient(server.url, timeout=10)
    task_id = client.create_task(tes.Task(executors=[tes.Executor(image="alpine", command=["echo", "hi"])]))
    client.wait(task_id, timeout=30)
    task = client.get_task(task_id, view="FULL")
    assert task.state == "COMPLETE" and task.logs[0].logs[0].stdout == "echo hi\n"
    assert [each.id for each in client.list_tasks().tasks] == [task_id]


def test_run_polls_and_shows_the_output_at_the_end(server: PlainTesServer, env: dict[str, str]) -> None:
    done = poiesis(env, "run", "alpine", "--", "echo", "hi")
    assert (done.returncode, done.stdout) == (0, "echo hi\n")
    lines = done.stderr.splitlines()
    assert sum("extension of Poiesis" in line for line in lines) == 1 and "polling" in done.stderr
    assert [line.split()[-1] for line in lines if " s  plain-1 " in line][-2:] == ["RUNNING", "COMPLETE"]
    assert "noise\\u001b[2J" in lines and "\x1b" not in done.stderr
    failed = poiesis(env, "run", "-q", "alpine", "--", "fail")
    assert (failed.returncode, failed.stdout) == (3, "fail\n")


def test_the_end_of_a_task_is_shown_after_its_output(server: PlainTesServer, env: dict[str, str]) -> None:
    command = [*POIESIS, "run", "alpine", "--", "echo", "hi"]
    done = subprocess.run(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=DEADLINE_S
    )
    lines = done.stdout.splitlines()
    assert lines[-1].endswith("  plain-1  COMPLETE") and "echo hi" in lines[:-1]


def test_tasks_are_created_waited_for_and_canceled_in_bulk(
    server: PlainTesServer, env: dict[str, str], tmp_path: Path
) -> None:
    document = {"executors": [{"image": "alpine", "command": ["echo"]}], "tags": {"k": "v"}}
    (tmp_path / "tasks.yaml").write_text(f"- {json.dumps(document)}\n- {json.dumps(document)}\n")
    made = poiesis(env, "task", "create", str(tmp_path / "tasks.yaml"), "-", stdin=json.dumps(document))
    assert made.stdout.split() == ["plain-1", "plain-2", "plain-3"]
    assert poiesis(env, "task", "cancel", "-", stdin="plain-2\n").stdout == "plain-2 is being canceled\n"
    waited = poiesis(env, "task", "wait", "-", stdin=made.stdout)
    assert waited.returncode == 102 and waited.stderr.count("extension of Poiesis") == 1
    states = {line.split()[2]: line.split()[3] for line in waited.stdout.splitlines() if " s  plain-" in line}
    assert states == {"plain-1": "COMPLETE", "plain-2": "CANCELED", "plain-3": "COMPLETE"}
    listed = poiesis(env, "task", "list", "--state", "CANCELED", "--tag", "k=v", "-o", "name")
    assert listed.stdout == "plain-2\n"
    logs = poiesis(env, "task", "logs", "-f", "plain-1", "--stdout")
    assert (logs.returncode, logs.stdout) == (0, "echo\n")


@pytest.mark.parametrize(
    ("status", "headers", "code", "words"),
    [
        (401, {}, 77, "poiesis login"),
        (403, {}, 77, "HTTP status 403"),
        (404, {}, 66, "no such task"),
        (429, {"Retry-After": "1"}, 69, "HTTP status 429"),
        (500, {}, 1, "HTTP status 500"),
        (503, {"Retry-After": "0"}, 69, "HTTP status 503"),
    ],
)
def test_refusals_have_codes_and_one_line(
    server: PlainTesServer, env: dict[str, str], status: int, headers: dict[str, str], code: int, words: str
) -> None:
    server.fault = failing(status, headers, body=b"<html>")
    done = poiesis(env, "task", "get", "x")
    assert (done.returncode, done.stdout) == (code, "") and words in done.stderr and done.stderr.count("\n") == 1


def test_a_busy_server_is_asked_again_when_it_says_but_not_for_an_hour(
    server: PlainTesServer, env: dict[str, str]
) -> None:
    task_id = server.add({"executors": [{"command": ["x"]}]})
    server.fault = failing(429, {"Retry-After": "1"}, times=2)
    begin = time.monotonic()
    assert poiesis(env, "task", "get", task_id).returncode == 0
    assert time.monotonic() - begin > 2


def test_a_wait_survives_an_outage(server: PlainTesServer, env: dict[str, str]) -> None:
    task_id = server.add({"executors": [{"command": ["x"]}]})
    server.fault = failing(503, times=3)
    done = poiesis(env, "task", "wait", task_id)
    assert done.returncode == 0 and done.stderr.count("waiting for the server") == 3


def test_an_unknown_certificate_is_explained(env: dict[str, str], tmp_path: Path) -> None:
    certificate = tmp_path / "server.pem"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=x", "-days", "2", "-addext"]
    subprocess.run(
        [*made, "subjectAltName=IP:127.0.0.1", "-keyout", tmp_path / "key", "-out", tmp_path / "cert"],
        check=True,
        capture_output=True,
    )
    certificate.write_text((tmp_path / "key").read_text() + (tmp_path / "cert").read_text())
    with PlainTesServer(certificate=certificate) as server:
        done = poiesis({**env, "TES_URL": server.url}, "task", "list")
        assert done.returncode == 69 and "invalid certificate: self-signed certificate" in done.stderr
        assert "SSL_CERT_FILE" in done.stderr and done.stderr.count("\n") == 1
        trusted = {**env, "TES_URL": server.url, "SSL_CERT_FILE": str(tmp_path / "cert")}
        assert poiesis(trusted, "task", "list").returncode == 0
        plain = poiesis({**env, "TES_URL": server.url.replace("https", "http")}, "task", "list")
        assert plain.returncode == 69 and plain.stderr.count("\n") == 1


def test_tls_to_a_server_without_it_is_explained(server: PlainTesServer, env: dict[str, str]) -> None:
    done = poiesis({**env, "TES_URL": server.url.replace("http", "https")}, "task", "list")
    assert done.returncode == 69 and "does not use TLS" in done.stderr and done.stderr.count("\n") == 1


def test_a_closed_pipe_is_harmless(server: PlainTesServer, env: dict[str, str]) -> None:
    for _ in range(3000):
        server.add({"name": "n" * 100, "executors": [{"command": ["x"]}]})
    list_ = f"{sys.executable} -m poiesis task list --limit 3000 | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", list_], env=env, capture_output=True, text=True, timeout=DEADLINE_S)
    assert (done.stdout.splitlines()[-1], done.stderr) == ("141", "")
    for closed, code in ((">&-", 0), ("> /dev/full", 1)):  # the output waits in Python's buffer until the end
        command = f"{sys.executable} -m poiesis task list --limit 1 {closed}"
        done = subprocess.run(["bash", "-c", command], env=env, capture_output=True, text=True, timeout=DEADLINE_S)
        assert done.returncode == code and "Traceback" not in done.stderr and "Exception" not in done.stderr
    assert "cannot write the output: No space left" in done.stderr


@pytest.mark.parametrize("arguments", [["task", "wait"], ["task", "logs", "-f"]])
def test_an_interrupt_says_what_goes_on_and_how_to_come_back(
    server: PlainTesServer, env: dict[str, str], arguments: list[str]
) -> None:
    server.reads_until_end = 1_000_000
    task_id = server.add({"executors": [{"command": ["x"]}]})
    process = subprocess.Popen([*POIESIS, *arguments, task_id], env=env, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + DEADLINE_S
    while sum(f"/tasks/{task_id}" in path for _, path, _ in server.requests) < 4:
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, shown = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130 and "Traceback" not in shown
    assert f"the task {task_id} continues" in shown and f"poiesis task cancel {task_id}" in shown


def test_a_slow_server_is_waited_for_but_not_by_the_completion(server: PlainTesServer, env: dict[str, str]) -> None:
    server.add({"executors": [{"command": ["x"]}]})
    server.drip_s = 0.3
    line = "poiesis task get "
    asked = {
        "_ARGCOMPLETE": "1",
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "_ARGCOMPLETE_STDOUT_FILENAME": "/dev/null",
    }
    begin = time.monotonic()
    subprocess.run(POIESIS, env={**env, **asked}, capture_output=True, timeout=DEADLINE_S, check=False)
    took = time.monotonic() - begin
    begin = time.monotonic()
    subprocess.run([*POIESIS, "--version"], env=env, capture_output=True, timeout=DEADLINE_S, check=True)
    start = time.monotonic() - begin
    assert took < 3.0 + 3 * start
    server.drip_s, server.delay_s = 0.0, 0.5
    assert poiesis(env, "task", "list", "-o", "name").stdout == "plain-1\n"
