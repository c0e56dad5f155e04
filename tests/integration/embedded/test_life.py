"""How the service starts, refuses to start, stops and recovers."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.embedded.service import (
    DEADLINE_S,
    Service,
    command,
    command_line,
    environment,
    eventually,
    exit_codes,
    logs_of,
    processes_of,
    request,
    run_poiesis,
    sh,
)

STOP_S = 20.0  # seconds; the usual is two, and links under way may take up to ten on a busy machine


@pytest.fixture
def up(can_run: None, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`poiesis up` that is expected not to start."""

    def start(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        directory = [] if "--dir" in arguments else ["--dir", str(tmp_path / "service")]
        done: subprocess.CompletedProcess[str] = run_poiesis(
            "up", "--runtime", "process", *directory, *arguments, timeout_s=DEADLINE_S, **variables
        )
        return done

    return start


def assert_refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """One sentence and exit code 2."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""
    assert done.stderr.startswith("poiesis: ") and done.stderr.count("\n") == 1
    for word in words:
        assert word in done.stderr


def test_a_second_service_on_one_directory_is_refused(
    service: Service, up: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    assert_refused(up("--port", "0", "--dir", str(service.directory)), str(service.directory), "in use", "--dir")
    assert service.run(sh("true"))["state"] == "COMPLETE"  # the first one has not noticed


def test_a_port_in_use_is_refused(up: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert_refused(up("--port", port), port, "--port")


def test_an_unusable_setting_is_reported_in_one_sentence(
    up: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    known = "POIESIS_POLICY__MAX_ATTEMPTS"
    assert_refused(
        up("--port", "0", POIESIS_POLICY__MAX_ATEMPTS="3"), "POIESIS_POLICY__MAX_ATEMPTS", f"did you mean {known}"
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_stops_within_seconds_and_running_commands_are_adopted(
    make_service: Callable[..., Service], number: signal.Signals
) -> None:
    service = make_service().start()
    files = service.allow[0]
    (files / "in").write_text("from a file")
    outputs = [{"path": "/data/out", "url": f"file://{files}/out"}]
    script = "echo begun; while [ ! -e /data/go ]; do sleep 0.05; done; cat /data/in > /data/out; echo ended"
    task_id = service.post(
        {"executors": [sh(script)], "inputs": [{"path": "/data/in", "url": f"file://{files}/in"}], "outputs": outputs}
    )
    eventually(lambda: "begun" in service.get(task_id)["logs"][0]["metadata"].get("live_stdout", ""), "the command")
    commands = [p for p in processes_of(service.directory) if command_line(p).startswith("/poiesis/launcher")]
    assert commands
    began = time.monotonic()
    assert service.stop(number) == 0
    assert time.monotonic() - began < STOP_S
    assert set(commands) <= set(processes_of(service.directory))
    assert "Stopping. 1 task has not ended: commands keep running" in service.log.read_text()
    service.start()
    assert service.state(task_id) == "RUNNING"
    assert set(commands) <= set(processes_of(service.directory))
    volume = next((service.directory / "tasks").glob("*/volume/root/data"))
    (volume / "go").touch()
    task = service.wait(task_id)
    assert task["state"] == "COMPLETE" and exit_codes(task) == [0]
    assert logs_of(task)[0]["stdout"].endswith("ended\n")
    assert (files / "out").read_text() == "from a file"
    service.assert_nothing_is_left()
    assert service.logged_errors() == []


def test_finished_tasks_and_page_tokens_survive_a_restart(make_service: Callable[..., Service]) -> None:
    service = make_service().start()
    tasks = [service.run(sh(f"echo {i}")) for i in range(3)]
    first = request("GET", f"{service.api}/tasks?page_size=2&view=FULL").document
    service.stop()
    service.start()
    second = request("GET", f"{service.api}/tasks?page_size=2&view=FULL&page_token={first['next_page_token']}").document
    assert first["tasks"] + second["tasks"] == tasks[::-1]
    assert "next_page_token" not in second


def test_a_task_canceled_before_a_crash_is_canceled_after_it(make_service: Callable[..., Service]) -> None:
    service = make_service(POIESIS_POLICY__GRACE="30s").start()
    task_id = service.post({"executors": [sh("trap '' TERM; while :; do sleep 0.1; done")]})
    service.wait(task_id, "RUNNING")
    assert service.cancel(task_id).status == 200
    service.kill()
    service.variables["POIESIS_POLICY__GRACE"] = "1s"
    service.start()
    for pid in processes_of(service.directory):  # its launcher still keeps the long grace
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert service.wait(task_id)["state"] == "CANCELED"
    service.assert_nothing_is_left()


def test_events_alone_take_a_task_to_its_end(make_service: Callable[..., Service]) -> None:
    """Resync is for lost messages; if none is lost, no task waits for it."""
    service = make_service(POIESIS_RESYNC="1h").start()
    for _ in range(3):
        task_id = service.post({"executors": [sh("while :; do sleep 0.1; done")]})
        service.wait(task_id, "RUNNING")
        assert service.cancel(task_id).status == 200
        assert service.wait(task_id)["state"] == "CANCELED"
        assert service.run(sh("true"), sh("true"))["state"] == "COMPLETE"
        service.assert_nothing_is_left()


def test_only_one_port_is_listened_on(make_service: Callable[..., Service]) -> None:
    service = make_service().start()
    inodes = set()
    for fd in Path(f"/proc/{service.pid}/fd").iterdir():
        try:
            inodes.add(os.readlink(fd).removeprefix("socket:[").rstrip("]"))
        except OSError:
            continue
    listening = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{service.pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                listening.append(fields[1])
    assert len(listening) == 1 and listening[0].startswith("0100007F:"), listening


def test_its_directory_is_private_to_its_user(service: Service) -> None:
    for path in (service.directory, service.directory / "tasks"):
        assert path.stat().st_mode & 0o077 == 0, path


@pytest.fixture
def own_tmp(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "tmp"
    directory.mkdir()
    yield directory


def test_the_demo_shows_its_result_and_leaves_nothing_when_run_twice(can_run: None, own_tmp: Path) -> None:
    for _ in range(2):
        done = run_poiesis("demo", "--runtime", "process", timeout_s=100, TMPDIR=str(own_tmp))
        assert done.returncode == 0, done.stdout + done.stderr
        for text in ("QUEUED", "COMPLETE", "reads 40", "bases 3139", "mean length 78", "report.txt"):
            assert text in done.stdout
        assert done.stderr == ""
        assert list(own_tmp.iterdir()) == []


def test_an_interrupted_demo_leaves_nothing(can_run: None, own_tmp: Path) -> None:
    demo = subprocess.Popen(
        command("demo", "--runtime", "process"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(TMPDIR=str(own_tmp)),
    )
    assert demo.stdout is not None
    assert "running at" in demo.stdout.readline()
    demo.send_signal(signal.SIGTERM)
    _, err = demo.communicate(timeout=DEADLINE_S)
    assert demo.returncode in (0, 130), err
    assert "Traceback" not in err, err
    assert processes_of(own_tmp) == []
    assert list(own_tmp.iterdir()) == []
