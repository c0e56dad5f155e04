"""Signals, the time limit, processes left behind, pokes, and an empty root file system."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.launcher.conftest import Launcher

SANITIZED = bool(os.environ.get("POIESIS_LAUNCHER_SANITIZED"))
READY = b"ready\n"


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def ready(process: "subprocess.Popen[bytes]") -> None:
    """Wait until the command has set its traps."""
    assert process.stdout is not None
    got = b""
    while not got.endswith(READY):
        piece = os.read(process.stdout.fileno(), 1)
        assert piece, "ended before it was ready"
        got += piece


# ---- signals


def test_sigterm_reaches_the_command_and_its_exit_code_is_kept(launcher: "Launcher") -> None:
    process = launcher.start(
        argv=["/bin/sh", "-c", "trap 'echo caught; exit 7' TERM; echo ready; while :; do sleep 0.02; done"]
    )
    ready(process)
    process.send_signal(signal.SIGTERM)
    done = launcher.end(process)
    assert (done.code, done.record["exit_code"], done.record["reason"], done.record["ok"]) == (
        7,
        7,
        "Terminated",
        False,
    )
    assert done.log.endswith(b"caught\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_termination_is_not_a_success_even_with_exit_code_0(launcher: "Launcher", number: int) -> None:
    process = launcher.start(
        "--ignore-error", argv=["/bin/sh", "-c", "trap 'exit 0' TERM INT; echo ready; while :; do sleep 0.02; done"]
    )
    ready(process)
    process.send_signal(number)
    done = launcher.end(process)
    assert (done.code, done.record["reason"], done.record["ok"]) == (0, "Terminated", False)


def test_sigkill_follows_the_grace_period(launcher: "Launcher") -> None:
    process = launcher.start(
        "--grace", 0.1, argv=["/bin/sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.02; done"]
    )
    ready(process)
    process.send_signal(signal.SIGTERM)
    done = launcher.end(process)
    assert (done.code, done.record["signal"], done.record["reason"]) == (137, 9, "Terminated")


def test_the_whole_group_gets_the_signal(launcher: "Launcher") -> None:
    script = "trap 'wait; exit 3' TERM; (trap 'echo child; exit' TERM; echo ready; while :; do sleep 0.02; done) & wait; wait"
    process = launcher.start(argv=["/bin/sh", "-c", script])
    ready(process)
    process.send_signal(signal.SIGTERM)
    done = launcher.end(process)
    assert done.code == 3 and b"child" in done.log


@pytest.mark.parametrize("name", ["HUP", "QUIT", "USR1", "USR2"])
def test_other_signals_are_forwarded_and_end_nothing(launcher: "Launcher", name: str) -> None:
    process = launcher.start(
        argv=["/bin/sh", "-c", f"trap 'echo got; exit 0' {name}; echo ready; while :; do sleep 0.02; done"]
    )
    ready(process)
    process.send_signal(getattr(signal, f"SIG{name}"))
    done = launcher.end(process)
    assert (done.code, done.record["reason"], done.record["ok"]) == (0, None, True)
    assert done.log.endswith(b"got\n")


# ---- time limit


def test_the_time_limit_ends_the_command(launcher: "Launcher") -> None:
    done = launcher.run("--time-limit", 0.15, argv=["sleep", "600"])
    assert (done.code, done.record["signal"], done.record["reason"], done.record["ok"]) == (143, 15, "TimeLimit", False)
    assert "0.150 s" in done.record["message"]


def test_a_command_that_ignores_sigterm_is_killed_after_the_grace(launcher: "Launcher") -> None:
    script = "trap '' TERM; echo ready; while :; do sleep 0.02; done"
    done = launcher.sh(script, "--time-limit", 0.3, "--grace", 0.1, "--ignore-error")
    assert (done.code, done.record["signal"], done.record["reason"], done.record["ok"]) == (137, 9, "TimeLimit", False)


def test_a_command_within_its_limit_is_not_interrupted(launcher: "Launcher") -> None:
    done = launcher.sh("exit 0", "--time-limit", 15)
    assert (done.code, done.record["reason"], done.record["ok"]) == (0, None, True)


def test_the_time_limit_counts_from_the_turn_not_from_the_wait(launcher: "Launcher", control: Path) -> None:
    late = launcher.start(
        "--name", "b", "--control", control, "--wait", "a", "--wait-timeout", 15, "--time-limit", 0.5, argv=["true"]
    )
    launcher.sh("sleep 0.8", "--name", "a", "--control", control)
    assert launcher.end(late).record["reason"] is None


def test_a_stopped_command_is_killed_too(launcher: "Launcher") -> None:
    done = launcher.sh("kill -STOP $$", "--time-limit", 0.2, "--grace", 0.1)
    assert (done.code, done.record["reason"]) == (137, "TimeLimit")


# ---- what is left behind


def test_a_background_child_that_holds_the_pipe_does_not_block_the_launcher(
    launcher: "Launcher", tmp_path: Path
) -> None:
    began = time.monotonic()
    done = launcher.sh(f"sleep 600 & echo $! > {tmp_path}/pid; echo out; exit 5")
    assert (done.code, done.log) == (5, b"out\n")
    assert time.monotonic() - began < 10
    assert not alive(int((tmp_path / "pid").read_text()))


def test_a_background_child_may_end_by_itself(launcher: "Launcher") -> None:
    assert launcher.sh("(sleep 0.05; echo late) & exit 0").log == b"late\n"


def test_a_background_child_that_ignores_sigterm_is_killed(launcher: "Launcher", tmp_path: Path) -> None:
    script = (
        f"(trap '' TERM; echo up > {tmp_path}/up; while :; do sleep 0.02; done) & echo $! > {tmp_path}/pid; "
        f"while [ ! -s {tmp_path}/up ]; do sleep 0.01; done"
    )
    assert launcher.sh(script).code == 0
    assert not alive(int((tmp_path / "pid").read_text()))


def test_a_process_that_left_the_group_is_found(launcher: "Launcher", tmp_path: Path) -> None:
    if not shutil.which("setsid"):
        pytest.skip("no setsid")
    if not Path("/proc/thread-self/children").exists():
        pytest.skip("this kernel does not list children")
    for redirect in ("", ">/dev/null 2>&1"):
        (tmp_path / "pid").unlink(missing_ok=True)
        script = (
            f"setsid sh -c 'trap \"\" TERM HUP; echo $$ > {tmp_path}/pid; sleep 600; sleep 600' {redirect} & "
            f"while [ ! -s {tmp_path}/pid ]; do sleep 0.01; done"
        )
        assert launcher.sh(script).code == 0
        assert not alive(int((tmp_path / "pid").read_text()))


def test_orphans_are_reaped_while_the_command_runs(launcher: "Launcher", tmp_path: Path) -> None:
    script = "for i in 1 2 3 4 5 6 7 8; do (sleep 0.01 & exit 0); done; echo ready; read x < " + str(tmp_path / "gate")
    os.mkfifo(tmp_path / "gate")
    process = launcher.start(argv=["/bin/sh", "-c", script])
    ready(process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not children.exists():
        pytest.skip("this kernel does not list children")
    launcher.until(lambda: len(children.read_text().split()) == 1, "only the command is left")
    (tmp_path / "gate").write_text("go\n")
    assert launcher.end(process).code == 0


def test_output_in_the_pipe_when_the_command_ends_is_not_lost(launcher: "Launcher") -> None:
    assert launcher.sh("(head -c 900000 /dev/zero) ; exit 2").record["stdout_bytes"] == 900_000


def test_a_command_dies_with_its_launcher(launcher: "Launcher", tmp_path: Path) -> None:
    process = launcher.start(argv=["/bin/sh", "-c", f"echo $$ > {tmp_path}/pid; echo ready; exec sleep 600"])
    ready(process)
    process.kill()
    launcher.until(lambda: not alive(int((tmp_path / "pid").read_text())), "the command is gone")


def test_an_idle_launcher_uses_no_cpu(launcher: "Launcher", control: Path) -> None:
    running = launcher.start(argv=["/bin/sh", "-c", "echo ready; sleep 1"])
    ready(running)
    waiting = launcher.start("--name", "a", "--control", control, "--wait", "b", "--wait-timeout", 15, argv=["true"])
    running.wait(timeout=15)
    waiting.send_signal(signal.SIGTERM)
    _, _, usage = os.wait4(waiting.pid, 0)
    waiting.returncode = 143
    if not SANITIZED:
        assert usage.ru_utime + usage.ru_stime < 0.2


# ---- poke


class Listener:
    """A real HTTP/1.1 listener that keeps the requests."""

    def __init__(self, family: int, host: str) -> None:
        self.socket = socket.socket(family)
        self.socket.bind((host, 0))
        self.socket.listen(64)
        self.port = self.socket.getsockname()[1]
        self.requests: list[bytes] = []
        self.seen_before_answer: list[bool] = []
        self.bodies: list[bytes] = []
        self.check: Path | None = None
        self.thread = threading.Thread(target=self._serve, daemon=True)

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(10)
                got = b""
                while b"\r\n\r\n" not in got and (piece := connection.recv(4096)):
                    got += piece
                head, _, body = got.partition(b"\r\n\r\n")
                length = next(int(x[16:]) for x in head.split(b"\r\n") if x.startswith(b"Content-Length: "))
                while len(body) < length and (piece := connection.recv(65536)):
                    body += piece
                self.bodies.append(body)
                self.requests.append(head + b"\r\n\r\n")
                if self.check is not None:
                    self.seen_before_answer.append(self.check.exists())
                connection.sendall(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")

    def close(self) -> None:
        self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()


@pytest.fixture(
    params=[
        (socket.AF_INET, "127.0.0.1", "127.0.0.1"),
        (socket.AF_INET6, "::1", "[::1]"),
        (socket.AF_INET, "127.0.0.1", "localhost"),
    ],
    ids=["4", "6", "name"],
)
def listener(request: pytest.FixtureRequest) -> Iterator[tuple[Listener, str]]:
    family, bind, host = request.param
    try:
        own = Listener(family, bind)
    except OSError as e:
        pytest.skip(f"no such address here: {e}")
    own.thread.start()
    yield own, f"{host}:{own.port}"
    own.close()
    own.thread.join(10)


def test_one_poke_after_the_record(launcher: "Launcher", control: Path, listener: tuple[Listener, str]) -> None:
    server, address = listener
    server.check = control / "a.json"
    done = launcher.sh("exit 3", "--name", "a", "--control", control, "--poke", f"{address}/wake/t1?n=x")
    launcher.until(lambda: server.seen_before_answer, "the poke arrived")
    assert done.code == 3 and server.seen_before_answer == [True]
    lines = server.requests[0].decode().split("\r\n")
    assert lines[0] == "POST /wake/t1?n=x HTTP/1.1"
    assert {f"Host: {address}", f"Content-Length: {len(server.bodies[0])}", "Connection: close"} <= set(lines)
    assert lines[-2:] == ["", ""]


def test_the_poke_carries_the_record(launcher: "Launcher", control: Path, listener: tuple[Listener, str]) -> None:
    server, address = listener
    launcher.sh("echo out; echo err >&2; exit 3", "--name", "a", "--control", control, "--poke", f"{address}/x")
    launcher.until(lambda: server.bodies, "the poke arrived")
    assert json.loads(server.bodies[0]) == json.loads((control / "a.json").read_bytes()) | {
        "stdout": "out\n",
        "stderr": "err\n",
    }


def test_a_long_record_is_not_sent_along(launcher: "Launcher", listener: tuple[Listener, str]) -> None:
    server, address = listener
    launcher.sh("head -c 200000 /dev/zero", "--tail-bytes", "200000", "--poke", f"{address}/x")
    launcher.until(lambda: server.bodies, "the poke arrived")
    assert server.bodies == [b""]


def test_the_poke_carries_the_records_of_the_other_containers_too(
    launcher: "Launcher", control: Path, listener: tuple[Listener, str]
) -> None:
    """The pokes of one pod may reach different monitors: the last one has to suffice."""
    server, address = listener
    options = ("--control", control, "--poke", f"{address}/x")
    launcher.sh("echo staged", "--name", "tif", *options)
    launcher.sh("exit 3", "--name", "executor-0", "--wait", "tif", "--wait-timeout", 5, *options)
    launcher.sh("true", "--name", "executor-1", "--wait", "executor-0", "--wait-timeout", 5, *options)
    launcher.sh("true", "--name", "tof", "--wait", "executor-1", "--wait-timeout", 5, "--always", *options)
    launcher.until(lambda: len(server.bodies) == 4, "the pokes arrived")
    sent = [json.loads(line) for line in server.bodies[3].splitlines()]
    assert sent[0]["name"] == "tof" and sorted(r["name"] for r in sent[1:]) == ["executor-0", "executor-1", "tif"]
    by_name = {r["name"]: r for r in sent}
    assert by_name["tif"]["stdout"] == "staged\n" and by_name["executor-0"]["exit_code"] == 3
    assert by_name["executor-1"]["reason"] == "Skipped"
    assert [len(body.splitlines()) for body in server.bodies] == [1, 2, 3, 4]


def test_what_a_command_leaves_in_the_control_directory_does_not_stop_the_poke(
    launcher: "Launcher", control: Path, listener: tuple[Listener, str]
) -> None:
    server, address = listener
    secret = control.parent / "secret"
    secret.write_text("secret")
    (control / "link.json").symlink_to(secret)
    (control / "directory.json").mkdir()
    os.mkfifo(control / "fifo.json")
    (control / "empty.json").touch()
    (control / ".hidden.json").write_text("hidden")
    (control / ".json").write_text("hidden")
    (control / "other.txt").write_text("other")
    with (control / "large.json").open("wb") as file:
        file.truncate(1 << 40)
    (control / "tif.json").write_text('{"name":"tif"}')
    for i in range(3):
        (control / f"half-{i}.json").write_bytes(b"x" * 60_000)
    launcher.sh("true", "--name", "a", "--control", control, "--poke", f"{address}/x")
    launcher.until(lambda: server.bodies, "the poke arrived")
    own, *others = server.bodies[0].splitlines()
    assert json.loads(own)["name"] == "a" and b'{"name":"tif"}' in others
    assert len(server.bodies[0]) <= 128 * 1024 and len(others) == 3
    assert b"secret" not in server.bodies[0] and b"hidden" not in server.bodies[0]


def test_the_poke_follows_the_records_line(
    launcher: "Launcher", listener: tuple[Listener, str], tmp_path: Path
) -> None:
    server, address = listener
    log = tmp_path / "log"
    with log.open("wb") as file:
        process = launcher.start("--poke", f"{address}/x", argv=["true"], stdout=file)
        launcher.until(lambda: server.requests, "the poke arrived")
        assert b"@@record {" in log.read_bytes()
        process.wait(timeout=15)


def test_a_poke_at_the_start_too(launcher: "Launcher", listener: tuple[Listener, str], control: Path) -> None:
    server, address = listener
    os.mkfifo(control / "gate")
    process = launcher.start(
        "--poke", f"{address}/x", "--poke-start", argv=["/bin/sh", "-c", f"read x < {control}/gate"]
    )
    launcher.until(lambda: len(server.requests) == 1, "the poke of the start")
    assert process.poll() is None
    (control / "gate").write_text("go\n")
    launcher.end(process)
    launcher.until(lambda: len(server.requests) == 2, "the poke of the end")


def test_skipped_and_timed_out_pokes_too(launcher: "Launcher", listener: tuple[Listener, str], control: Path) -> None:
    server, address = listener
    launcher.sh(
        "true", "--name", "a", "--control", control, "--wait", "b", "--wait-timeout", 0.05, "--poke", f"{address}/x"
    )
    launcher.until(lambda: len(server.requests) == 1, "the poke arrived")


@pytest.mark.parametrize("kind", ["nothing listens", "never answers", "backlog full", "no such name", "unroutable"])
def test_a_failing_poke_costs_half_a_second_at_most_and_is_silent(launcher: "Launcher", kind: str) -> None:
    holes = [socket.socket()]
    holes[0].bind(("127.0.0.1", 0))
    port = holes[0].getsockname()[1]
    host = "127.0.0.1"
    if kind in ("never answers", "backlog full"):
        holes[0].listen(0)
    if kind == "backlog full":
        for _ in range(4):  # connections in the backlog: the next SYN is dropped
            s = socket.socket()
            s.setblocking(False)
            s.connect_ex(("127.0.0.1", port))
            holes.append(s)
    if kind == "no such name":
        host = "no-such-host.invalid"
    if kind == "unroutable":
        host = "192.0.2.1"
    began = time.monotonic()
    done = launcher.run("--poke", f"{host}:{port}/x", "--poke-start", argv=["true"])
    elapsed = time.monotonic() - began
    for s in holes:
        s.close()
    assert (done.code, done.stderr, done.record["ok"]) == (0, b"", True)
    assert elapsed < (5 if SANITIZED else 1.5)  # 0.4 s each for start and end, with a margin for a busy machine


# ---- nothing but the launcher


def _namespace(*more: str) -> list[str]:
    line = ["unshare", "-r", *more]
    if not shutil.which("unshare") or subprocess.run([*line, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("user namespaces are not permitted here")
    return line


@pytest.mark.skipif(SANITIZED, reason="needs its libraries")
@pytest.mark.parametrize("read_only", [False, True])
def test_an_empty_root_file_system_is_enough(launcher: "Launcher", tmp_path: Path, read_only: bool) -> None:
    root = tmp_path / "root"
    (root / "control").mkdir(parents=True)
    shutil.copy2(launcher.binary, root / "launcher")
    if read_only:
        root.chmod(0o555)
    inside = [
        "/launcher",
        "--name",
        "a",
        "--control",
        "/control",
        "--record-line",
        "@@record",
        "--poke",
        "127.0.0.1:9/x",
        "--cgroup",
        "--",
    ]
    line = [*_namespace(), "chroot", str(root), *inside]
    done = subprocess.run([*line, "/launcher", "--version"], capture_output=True, timeout=15, check=False)
    root.chmod(0o755)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"launcher 1")
    assert (control := root / "control" / "a.json").exists() and b'"ok":true' in control.read_bytes()
    (root / "control" / "a.begun").unlink()
    done = subprocess.run([*line, "nothing"], capture_output=True, timeout=15, check=False)
    assert done.returncode == 127


def test_as_pid_1_it_reaps_and_forwards(launcher: "Launcher", tmp_path: Path) -> None:
    line = _namespace("-f", "-p", "--mount-proc", "--kill-child")
    script = "(sleep 0.01 & exit 0); trap 'exit 9' TERM; [ $PPID = 1 ] && echo ready; while :; do sleep 0.02; done"
    process = launcher.start("--control", tmp_path, "--name", "a", prefix=line, argv=["/bin/sh", "-c", script])
    ready(process)
    inner = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])
    os.kill(inner, signal.SIGTERM)
    done = launcher.end(process)
    assert (done.code, done.record["exit_code"], done.record["reason"]) == (9, 9, "Terminated")


def test_as_pid_1_nothing_outlives_the_command(launcher: "Launcher", tmp_path: Path) -> None:
    if not shutil.which("setsid"):
        pytest.skip("no setsid")
    line = _namespace("-f", "-p", "--mount-proc", "--kill-child")
    script = "setsid sh -c 'trap \"\" TERM; echo up; while :; do sleep 0.02; done' & sleep 0.1; exit 4"
    done = subprocess.run(
        [*line, launcher.binary, "--", "/bin/sh", "-c", script], capture_output=True, timeout=15, check=False
    )
    assert (done.returncode, done.stdout) == (4, b"up\n")


def test_it_needs_no_temporary_directory(launcher: "Launcher", control: Path) -> None:
    done = launcher.sh("echo fine", "--name", "a", "--control", control, env={"TMPDIR": "/nowhere", "PATH": os.defpath})
    assert done.log == b"fine\n"


def test_python_sees_an_ordinary_process(launcher: "Launcher") -> None:
    code = "import subprocess, sys; sys.exit(subprocess.run(['sh', '-c', 'yes | head -1']).returncode)"
    assert launcher.run(argv=[sys.executable, "-S", "-c", code]).log == b"y\n"


def test_a_short_command_with_a_pending_poke_leaves_nothing_behind(launcher: "Launcher", tmp_path: Path) -> None:
    if not shutil.which("setsid") or not Path("/proc/thread-self/children").exists():
        pytest.skip("no setsid, or a kernel that does not list children")
    script = (
        f"setsid sh -c 'trap \"\" TERM; echo $$ > {tmp_path}/pid; sleep 600; sleep 600' > /dev/null 2>&1 & "
        f"while [ ! -s {tmp_path}/pid ]; do sleep 0.01; done"
    )
    assert launcher.sh(script, "--poke", "192.0.2.1:9/x", "--poke-start").code == 0
    assert not alive(int((tmp_path / "pid").read_text()))
