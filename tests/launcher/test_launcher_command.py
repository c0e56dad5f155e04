"""Starting a command, its record, and its streams."""

import json
import os
import re
import resource
import stat
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.launcher.conftest import Launcher

SANITIZED = bool(os.environ.get("POIESIS_LAUNCHER_SANITIZED"))
KEYS = [
    "v", "name", "ok", "exit_code", "signal", "reason", "message", "oom_killed", "started", "ended",
    "peak_memory_bytes", "cpu_seconds", "stdout", "stderr", "stdout_bytes", "stderr_bytes", "truncated",
]  # fmt: skip


# ---- exit


@pytest.mark.parametrize("code", [0, 1, 2, 42, 124, 125, 126, 127, 128, 255])
def test_the_commands_exit_code_is_the_launchers(launcher: "Launcher", code: int) -> None:
    done = launcher.sh(f"exit {code}")
    assert done.code == done.record["exit_code"] == code
    assert done.record["ok"] is (code == 0)
    assert done.record["signal"] is done.record["reason"] is done.record["message"] is None


@pytest.mark.parametrize("number", [1, 2, 6, 9, 11, 13, 15])
def test_a_command_killed_by_a_signal_is_128_plus_its_number(launcher: "Launcher", number: int) -> None:
    done = launcher.sh(f"ulimit -c 0; kill -{number} $$")
    assert done.code == done.record["exit_code"] == 128 + number
    assert (done.record["signal"], done.record["ok"]) == (number, False)


def test_ignore_error_keeps_ok_true_and_the_real_exit_code(launcher: "Launcher") -> None:
    done = launcher.sh("exit 3", "--ignore-error")
    assert (done.code, done.record["exit_code"], done.record["ok"]) == (3, 3, True)


def test_the_record_has_its_keys_in_order_and_its_types(launcher: "Launcher") -> None:
    done = launcher.sh("echo out; echo err >&2", "--name", "executor-0")
    record = done.record
    assert list(record) == KEYS
    assert record["v"] == 1
    assert record["name"] == "executor-0"
    for key in ("started", "ended"):
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", record[key])
    assert record["started"] <= record["ended"]
    assert isinstance(record["peak_memory_bytes"], int) and record["peak_memory_bytes"] > 0
    assert isinstance(record["cpu_seconds"], float)
    assert (record["stdout"], record["stderr"]) == ("out\n", "err\n")
    assert (record["stdout_bytes"], record["stderr_bytes"], record["truncated"]) == (4, 4, False)
    assert record["oom_killed"] is False


def test_cpu_and_memory_of_the_command_and_its_children_are_recorded(launcher: "Launcher") -> None:
    code = "x = bytearray(60_000_000)\nimport time\nwhile time.process_time() < 0.3: pass"
    record = launcher.run(argv=["/bin/sh", "-c", '"$0" -S -c "$1"; true', sys.executable, code]).record
    assert 0.3 <= record["cpu_seconds"] < 10
    assert 60_000_000 < record["peak_memory_bytes"] < 300_000_000


# ---- start


@pytest.mark.parametrize("program", ["no-such-program", "/no/such/program", "./no", "", "/etc/passwd/x"])
def test_a_missing_program_is_127(launcher: "Launcher", program: str) -> None:
    done = launcher.run(argv=[program])
    message = f"{program}: command not found"
    assert (done.code, done.record["exit_code"], done.record["reason"]) == (127, 127, "NotFound")
    assert (done.record["message"], done.record["ok"]) == (message, False)
    assert done.stderr.decode() == done.record["stderr"] == message + "\n"


def test_a_missing_interpreter_of_a_script_is_reported(launcher: "Launcher", tmp_path: Path) -> None:
    script = tmp_path / "odd-script"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    for argv, env in ((["./odd-script"], os.environ), (["odd-script"], {"PATH": f"/nowhere:{tmp_path}:/bin"})):
        done = launcher.run(argv=argv, cwd=tmp_path, env=dict(env))
        assert (done.code, done.record["reason"]) == (127, "NotFound")
        assert "interpreter" in done.record["message"]


def test_a_program_that_is_not_executable_is_126(launcher: "Launcher", tmp_path: Path) -> None:
    plain, garbage = tmp_path / "plain", tmp_path / "garbage"
    plain.write_text("#!/bin/sh\n")
    plain.chmod(0o644)
    garbage.write_bytes(b"\x00\x01 not a program")
    garbage.chmod(0o755)
    for argv, text in (
        ([plain], "Permission denied"),
        ([tmp_path], "Permission denied"),
        ([garbage], "Exec format error"),
    ):
        done = launcher.run(argv=argv)
        assert (done.code, done.record["exit_code"], done.record["reason"]) == (126, 126, "NotExecutable")
        assert text.lower() in done.record["message"].lower()
        assert done.record["stderr"] == done.record["message"] + "\n"
    done = launcher.run(argv=["plain"], env={"PATH": f"{tmp_path}:/bin"})
    assert (done.code, done.record["reason"]) == (126, "NotExecutable")


def test_ignore_error_covers_a_missing_program(launcher: "Launcher") -> None:
    done = launcher.run("--ignore-error", argv=["no-such-program"])
    assert (done.code, done.record["ok"]) == (127, True)


def test_the_path_of_the_environment_is_searched_in_order(launcher: "Launcher", tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tool").write_text(f"#!/bin/sh\necho {name}\n")
    (tmp_path / "b" / "tool").chmod(0o755)
    path = f"/nowhere:{tmp_path}/a:/etc/passwd:{tmp_path}/b"
    assert launcher.run(argv=["tool"], env={"PATH": path}).log == b"b\n"  # a's cannot be executed: the search goes on
    (tmp_path / "a" / "tool").chmod(0o755)
    assert launcher.run(argv=["tool"], env={"PATH": path}).log == b"a\n"
    assert launcher.run(argv=["tool"], env={"PATH": ":/x"}, cwd=tmp_path / "b").log == b"b\n"


def test_without_a_path_the_default_path_is_searched(launcher: "Launcher") -> None:
    assert launcher.run(argv=["echo", "here"], env={}).log == b"here\n"


def test_arguments_and_environment_arrive_byte_for_byte(launcher: "Launcher") -> None:
    odd = [
        b"$(HOME)",
        b"$HOME",
        b"a b",
        b"",
        b"'\"",
        b"\xff\xfe",
        b"new\nline",
        b"--help",
        b"--",
        b"*",
        "ü☃".encode(),
        b"x" * 100_000,
    ]
    code = "import os,sys; sys.stdout.buffer.write(b'\\0'.join(os.fsencode(a) for a in sys.argv[1:]) + b'\\0' + os.environb[b'ODD'])"
    done = launcher.run(argv=[sys.executable, "-S", "-c", code, *odd], env={b"ODD": b"$(X)\xff\n"})
    assert done.log.removesuffix(b"\n") + b"" == b"\0".join([*odd, b"$(X)\xff"])


def test_the_command_leads_a_session_with_default_signals(launcher: "Launcher") -> None:
    code = (
        "import os,signal,json;"
        "print(json.dumps([os.getsid(0)==os.getpid()==os.getpgid(0),"
        "[int(s) for s in signal.pthread_sigmask(signal.SIG_BLOCK,[])],"
        "open('/proc/self/status').read().split('SigIgn:')[1].split()[0],sorted(os.listdir('/proc/self/fd'))]))"
    )
    done = launcher.run(argv=[sys.executable, "-S", "-X", "importtime=0", "-c", code])
    leads, blocked, ignored, descriptors = json.loads(done.record["stdout"])
    assert leads is True and blocked == []
    assert (
        int(ignored, 16) & (1 << 14 | 1 << 16 | 1 << 1) == 0
    )  # SIGTERM, SIGCHLD, SIGINT; Python itself ignores SIGPIPE
    assert descriptors == ["0", "1", "2", "3"]  # 3: the listing itself


def test_the_command_cannot_trace_its_launcher(launcher: "Launcher") -> None:
    """PTRACE_ATTACH stopped the launcher, and with it the time limit. CAP_SYS_PTRACE, which containers do not have, allows it."""
    script = "import ctypes, os; print(ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0), os.access(f'/proc/{os.getppid()}/mem', 4))"
    user = {"user": 65534, "group": 65534} if os.geteuid() == 0 else {}
    result = launcher.run("--time-limit", "5", argv=["/usr/bin/env", "python3", "-c", script], cwd="/", **user)
    assert result.log.split() == [b"-1", b"False"]
    assert result.record["exit_code"] == 0


def test_the_workdir_is_created_and_entered(launcher: "Launcher", tmp_path: Path) -> None:
    target = tmp_path / "a" / "b"
    assert launcher.run("--workdir", target, argv=["/bin/pwd"]).log == f"{target}\n".encode()


def test_requested_directories_are_created_writable_for_all_before_the_streams(
    launcher: "Launcher", tmp_path: Path
) -> None:
    wanted = tmp_path / "a" / "b"
    done = launcher.run(
        "--mkdir", wanted, "--mkdir", "/proc/none/such", "--stdout", wanted / "out", argv=["/bin/echo", "ran"]
    )
    assert done.code == 0
    assert (wanted / "out").read_text() == "ran\n"
    assert [oct(d.stat().st_mode & 0o777) for d in (wanted, wanted.parent)] == ["0o777", "0o777"]


def test_a_workdir_that_cannot_be_created_is_the_commands_failure(launcher: "Launcher", tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = launcher.sh("echo ran", "--workdir", tmp_path / "file" / "sub")
    assert (done.code, done.record["exit_code"], done.record["reason"], done.record["ok"]) == (
        1,
        1,
        "WorkdirUnavailable",
        False,
    )
    assert b"working directory" in done.stderr and done.log == b""
    done = launcher.sh("echo ran", "--workdir", tmp_path / "file", "--ignore-error")
    assert (done.code, done.record["ok"]) == (1, True)


# ---- streams


def test_stdin_is_empty_without_the_option(launcher: "Launcher") -> None:
    done = launcher.run(argv=["/bin/cat"], stdin=subprocess.PIPE)
    assert (done.code, done.log) == (0, b"")


def test_stdin_comes_from_the_file(launcher: "Launcher", tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"\x00binary\xff")
    done = launcher.run("--stdin", tmp_path / "in", "--stdout", tmp_path / "out", argv=["/bin/cat"])
    assert done.code == 0
    assert (tmp_path / "out").read_bytes() == b"\x00binary\xff"


def test_a_stdin_that_cannot_be_read_is_the_commands_failure(launcher: "Launcher", tmp_path: Path) -> None:
    for path in (tmp_path / "missing", tmp_path):
        done = launcher.sh("echo ran", "--stdin", path, "--stderr", tmp_path / "err")
        assert (done.code, done.record["exit_code"], done.record["reason"], done.record["ok"]) == (
            1,
            1,
            "StdinUnavailable",
            False,
        )
        assert str(path) in done.stderr.decode()
        assert (tmp_path / "err").read_bytes() == done.stderr
    assert launcher.sh("true", "--stdin", tmp_path / "missing", "--ignore-error").record["ok"] is True


def test_a_fifo_as_stdin_does_not_block_the_launcher(launcher: "Launcher", tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert launcher.run("--stdin", tmp_path / "fifo", argv=["/bin/cat"]).code == 0


def test_stdout_and_stderr_go_to_file_log_and_record(launcher: "Launcher", tmp_path: Path) -> None:
    out, err = tmp_path / "deep" / "er" / "out", tmp_path / "other" / "err"
    out.parent.mkdir(parents=True)
    out.write_text("what was there before, longer than what comes")
    done = launcher.sh("echo one; echo two >&2", "--stdout", out, "--stderr", err)
    assert out.read_bytes() == done.log == done.record["stdout"].encode() == b"one\n"
    assert err.read_bytes() == done.stderr == done.record["stderr"].encode() == b"two\n"


def test_one_file_for_both_streams_has_every_byte(launcher: "Launcher", tmp_path: Path) -> None:
    path = tmp_path / "both"
    path.write_text("old" * 1000)
    script = "i=0; while [ $i -lt 200 ]; do echo out$i; echo err$i >&2; i=$((i+1)); done"
    done = launcher.sh(script, "--stdout", path, "--stderr", f"{tmp_path}/./both")
    expected = sorted([f"out{i}" for i in range(200)] + [f"err{i}" for i in range(200)])
    assert sorted(path.read_text().split()) == expected
    assert len(done.log.split()) == 200


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_file_that_cannot_be_opened_is_the_commands_failure(
    launcher: "Launcher", tmp_path: Path, stream: str
) -> None:
    (tmp_path / "file").write_text("")
    done = launcher.sh("echo ran", f"--{stream}", tmp_path / "file" / "x")
    assert (done.code, done.record["reason"], done.log) == (1, f"{stream.capitalize()}Unavailable", b"")


def test_a_full_file_changes_the_outcome_but_not_the_exit_code(launcher: "Launcher") -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    done = launcher.sh("echo lost; exit 0", "--stdout", "/dev/full")
    assert (done.code, done.record["exit_code"], done.record["ok"], done.record["reason"]) == (
        0,
        0,
        False,
        "OutputLost",
    )
    assert done.log == b"lost\n"


def test_tails_keep_the_last_bytes_and_count_all(launcher: "Launcher") -> None:
    done = launcher.sh("seq 1 5000; echo small >&2", "--tail-bytes", 100)
    everything = "".join(f"{i}\n" for i in range(1, 5001))
    assert done.record["stdout"] == everything[-100:]
    assert (done.record["stdout_bytes"], done.record["stderr"], done.record["truncated"]) == (
        len(everything),
        "small\n",
        True,
    )
    assert done.log.decode() == everything


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 4096])
def test_a_tail_in_many_small_writes_is_the_same_tail(launcher: "Launcher", size: int) -> None:
    done = launcher.sh("for i in 1 2 3 4 5 6 7 8 9; do printf abc$i; done", "--tail-bytes", size)
    everything = "".join(f"abc{i}" for i in range(1, 10))
    assert done.record["stdout"] == (everything[-size:] if size else "")
    assert done.record["truncated"] is (size < len(everything))


def test_a_tail_is_cut_between_characters(launcher: "Launcher") -> None:
    for size in range(1, 14):
        done = launcher.run("--tail-bytes", size, argv=["printf", "☃é𝄞☃é𝄞"])
        text = done.record["stdout"]
        assert "\ufffd" not in text
        assert "☃é𝄞☃é𝄞".endswith(text) and size - 3 <= len(text.encode()) <= size


def test_bytes_that_are_not_text_become_replacement_characters(launcher: "Launcher", tmp_path: Path) -> None:
    data = (
        bytes(range(256)) * 3
        + b"\xed\xa0\x80 \xf4\x90\x80\x80 \xc0\xaf \xe2\x98 \xf0\x9d\x84 \xe2\x98\x83 \xc2\x85 \xe2\x80\xa8 \xef\xbf\xbd \xf0\x9d"
    )
    (tmp_path / "in").write_bytes(data)
    done = launcher.run("--stdin", tmp_path / "in", argv=["/bin/cat"])
    assert done.record["stdout"] == data.decode("utf-8", "replace")
    assert done.record["stdout_bytes"] == len(data)
    assert done.log.removesuffix(b"\n") == data
    line = done.stdout.split(b"\n")[-2].decode()
    assert len(line.splitlines()) == 1  # no reader sees two lines
    assert not re.search(r"[\x00-\x1f\x7f-\x9f]", line)


def test_random_bytes_are_decoded_as_by_python(launcher: "Launcher", tmp_path: Path) -> None:
    data = bytes(b | 0x80 if b & 1 else b for b in os.urandom(60_000))
    (tmp_path / "in").write_bytes(data)
    done = launcher.run("--tail-bytes", 100_000, "--stdin", tmp_path / "in", argv=["/bin/cat"])
    assert done.record["stdout"] == data.decode("utf-8", "replace")


def test_a_hundred_megabytes_are_copied_quickly_in_little_memory(launcher: "Launcher", tmp_path: Path) -> None:
    size = 100_000_000
    process = launcher.start(
        "--stdout", tmp_path / "out", "--tail-bytes", 8192, argv=["/bin/sh", "-c", f"head -c {size} /dev/zero"], marker=False,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    began = time.monotonic()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    assert time.monotonic() - began < 10
    assert (tmp_path / "out").stat().st_size == size
    (tmp_path / "out").unlink()
    if not SANITIZED:
        assert usage.ru_utime < 0.5  # no work for each byte (children are counted too)


@pytest.mark.skipif(SANITIZED, reason="the sanitizers use extra memory")
def test_the_launcher_itself_stays_small(launcher: "Launcher", control: Path) -> None:
    waiting = launcher.start("--name", "a", "--control", control, "--wait", "b", "--wait-timeout", 60, argv=["true"])
    launcher.until((control / "a.up").exists)
    assert _rss_bytes(waiting.pid) < 2_000_000
    talking = launcher.start(
        argv=["/bin/sh", "-c", "head -c 20000000 /dev/zero; echo; echo ready >&2; sleep 60"], stdout=subprocess.DEVNULL
    )
    assert talking.stderr is not None and talking.stderr.readline() == b"ready\n"
    assert _rss_bytes(talking.pid) < 2_500_000


def _rss_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


def test_a_full_log_blocks_the_command_only_for_a_while(launcher: "Launcher", tmp_path: Path) -> None:
    read, write = os.pipe()
    script = "head -c 3000000 /dev/zero; head -c 3000000 /dev/zero"
    process = launcher.start(
        "--log-stall", 0.2, "--stdout", tmp_path / "out", argv=["/bin/sh", "-c", script], stdout=write
    )
    os.close(write)
    process.wait(timeout=15)  # without a reader
    os.close(read)
    assert (process.returncode, (tmp_path / "out").stat().st_size) == (0, 6_000_000)


def test_a_slow_reader_of_the_log_loses_nothing(launcher: "Launcher") -> None:
    process = launcher.start(argv=["/bin/sh", "-c", "head -c 3000000 /dev/zero"])
    assert process.stdout is not None
    got = 0
    while chunk := os.read(process.stdout.fileno(), 16_384):
        got += len(chunk) if chunk.strip(b"\0") == b"" else chunk.count(b"\0")
        time.sleep(0)  # yield the processor, so that the pipe is full most of the time
    assert got == 3_000_000


def test_a_closed_log_does_not_stop_the_command(launcher: "Launcher", control: Path, tmp_path: Path) -> None:
    process = launcher.start(
        "--name",
        "a",
        "--control",
        control,
        "--stdout",
        tmp_path / "out",
        argv=["/bin/sh", "-c", "head -c 1000000 /dev/zero; echo x >&2"],
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    process.stderr.close()
    assert process.wait(timeout=15) == 0
    assert (
        json.loads((control / "a.json").read_text())["stdout_bytes"] == (tmp_path / "out").stat().st_size == 1_000_000
    )
    process.stdout = process.stderr = None


def test_the_logs_blocking_mode_is_restored(launcher: "Launcher") -> None:
    read, write = os.pipe()
    process = launcher.start(argv=["true"], stdout=write)
    process.wait(timeout=15)
    assert os.get_blocking(write)
    os.close(read)
    os.close(write)


def test_missing_standard_streams_are_tolerated(launcher: "Launcher", tmp_path: Path) -> None:
    line = f'exec "$0" --stdout {tmp_path}/out -- /bin/sh -c "echo fine; cat" <&- >&- 2>&-'
    assert subprocess.run(["/bin/sh", "-c", line, launcher.binary], timeout=15, check=False).returncode == 0
    assert (tmp_path / "out").read_text() == "fine\n"


# ---- the record's line and the termination message


def test_the_record_is_on_a_line_of_its_own(launcher: "Launcher") -> None:
    done = launcher.sh("printf 'no newline'; printf err >&2")
    assert done.stdout.startswith(b"no newline\n@@record {")
    assert done.stdout.endswith(b"}\n") and done.stderr == b"err\n"
    assert launcher.sh("echo newline").stdout.count(b"\n") == 2


def test_the_last_marked_line_is_used(launcher: "Launcher") -> None:
    done = launcher.sh("""echo '@@record {"ok":true,"exit_code":0}'; exit 5""")
    assert done.record["exit_code"] == 5


def test_without_the_marker_nothing_is_added(launcher: "Launcher") -> None:
    process = launcher.start(argv=["printf", "bare"], marker=False)
    assert launcher.end(process).stdout == b"bare"


def test_a_termination_message_fits_4096_bytes(launcher: "Launcher", tmp_path: Path) -> None:
    path = tmp_path / "termination-log"
    for script in (
        "seq 1 3000; seq 1 3000 >&2",
        r"head -c 9000 /dev/zero; printf '\033\001' >&2",
        "echo short",
        "exec /" + "\x01" * 3000,
    ):
        path.write_text("x" * 9000)
        done = launcher.sh(script, "--termination-log", path)
        assert path.stat().st_size <= 4096
        message, record = json.loads(path.read_bytes()), done.record
        assert record["stdout"].endswith(message["stdout"]) and record["stderr"].endswith(message["stderr"])
        short = script == "echo short"
        assert message["truncated"] is (
            record["truncated"] or len(message["stdout"] + message["stderr"]) < len(record["stdout"] + record["stderr"])
        )
        assert short is (message == record) or not message["truncated"]
    assert path.stat().st_size < 4096


def test_a_termination_message_is_never_created(launcher: "Launcher", tmp_path: Path) -> None:
    launcher.sh("true", "--termination-log", tmp_path / "absent")
    assert not (tmp_path / "absent").exists()


def test_a_message_of_odd_bytes_stays_bounded_json(launcher: "Launcher", tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.touch()
    done = launcher.run("--termination-log", path, argv=[b'/\x01\xff"\\' * 200])
    assert done.record["reason"] == "NotFound"
    assert len(path.read_bytes()) <= 4096 and json.loads(path.read_bytes())["reason"] == "NotFound"


# ---- usage by cgroup


def _v2(root: Path, **files: str) -> None:
    root.mkdir(exist_ok=True)
    for name, text in files.items():
        (root / name.replace("_", ".", 1)).write_text(text)


def test_cgroup_v2_figures_are_differences_and_peaks(launcher: "Launcher", tmp_path: Path) -> None:
    root = tmp_path / "cg"
    _v2(
        root,
        memory_peak="1000\n",
        cpu_stat="usage_usec 5000000\nuser_usec 1\n",
        memory_events="low 0\noom 1\noom_kill 1\n",
    )
    script = f"cd {root}; echo 7777 > memory.peak; echo 'usage_usec 6500000' > cpu.stat; "
    script += r"printf 'oom 2\noom_kill 2\n' > memory.events; exit 1"
    record = launcher.sh(script, "--cgroup-root", root).record
    assert (record["peak_memory_bytes"], record["cpu_seconds"], record["oom_killed"]) == (7777, 1.5, True)
    assert launcher.sh("true", "--cgroup-root", root).record["oom_killed"] is False  # counted before this command


def test_cgroup_v2_without_a_peak_is_sampled(launcher: "Launcher", tmp_path: Path) -> None:
    root = tmp_path / "cg"
    huge = 1 << 40
    _v2(root, memory_current="1000\n")
    script = f"echo {huge} > {root}/memory.current; sleep 0.7; echo 5 > {root}/memory.current"
    assert launcher.sh(script, "--cgroup-root", root).record["peak_memory_bytes"] == huge


@pytest.mark.parametrize("controller", ["cpuacct", "cpu,cpuacct"])
def test_cgroup_v1_figures(launcher: "Launcher", tmp_path: Path, controller: str) -> None:
    root = tmp_path / "cg"
    (root / "memory").mkdir(parents=True)
    (root / controller).mkdir()
    (root / "memory/memory.max_usage_in_bytes").write_text("123456\n")
    (root / "memory/memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 0\n")
    (root / controller / "cpuacct.usage").write_text("1000000000\n")
    script = (
        f"echo 3250000000 > {root}/{controller}/cpuacct.usage; echo 'oom_kill 1' > {root}/memory/memory.oom_control"
    )
    record = launcher.sh(script, "--cgroup-root", root).record
    assert (record["peak_memory_bytes"], record["cpu_seconds"], record["oom_killed"]) == (123456, 2.25, True)


@pytest.mark.parametrize("text", ["", "max\n", "garbage", "-5\n", "9" * 60])
def test_unreadable_figures_fall_back(launcher: "Launcher", tmp_path: Path, text: str) -> None:
    root = tmp_path / "cg"
    _v2(root, memory_peak=text, cpu_stat="usage_usec " + text, memory_events=text)
    record = launcher.sh("true", "--cgroup-root", root).record
    assert record["oom_killed"] is False and record["cpu_seconds"] < 10 and record["peak_memory_bytes"] > 0
    assert launcher.sh("true", "--cgroup-root", tmp_path / "none").record["peak_memory_bytes"] > 0
    assert launcher.sh("true", "--cgroup").record["ok"] is True


# ---- the command line


@pytest.mark.parametrize(
    "words",
    [
        ["--unknown", "--", "true"], ["--", ], [], ["true"], ["--name"], ["--name", "a/b", "--", "true"], ["--name", "..", "--", "true"],
        ["--name", "", "--", "true"], ["--name", "x" * 64, "--", "true"], ["--control", "/tmp", "--", "true"],
        ["--wait", "x", "--", "true"],
        ["--tail-bytes", "4194305", "--", "true"], ["--tail-bytes", "-1", "--", "true"],
        ["--tail-bytes", "99999999999999999999", "--", "true"],
        ["--time-limit", "soon", "--", "true"], ["--time-limit", "", "--", "true"], ["--time-limit", "1.x", "--", "true"],
        ["--time-limit", "9" * 40, "--", "true"], ["--poke", "nonsense", "--", "true"], ["--poke", "h:1/a b", "--", "true"],
        ["--poke", "h:1/\r\nX: y", "--", "true"], ["--poke", "[::1/x", "--", "true"], ["--poke", "h:123456/x", "--", "true"],
        ["--poke", ":1/x", "--", "true"], ["--poke-start", "--", "true"], ["--record-line", "a\nb", "--", "true"],
        ["--record-line", "", "--", "true"], ["--stdout", "", "--", "true"], ["--workdir", "x" * 4096, "--", "true"],
        ["--name", "a", "--control", "/tmp", *["--wait", "b"] * 1025, "--", "true"],
    ],
)  # fmt: skip
def test_an_invalid_command_line_is_rejected_with_a_message(launcher: "Launcher", words: list[str]) -> None:
    done = subprocess.run([launcher.binary, *words], capture_output=True, timeout=15, check=False)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"launcher: ") and done.stderr.endswith(b"\n")


def test_options_take_their_value_after_a_space_or_an_equals_sign(launcher: "Launcher", tmp_path: Path) -> None:
    done = launcher.sh("pwd", "--name=x=y".replace("=y", "-y"), f"--workdir={tmp_path}", "--tail-bytes=3")
    assert (done.record["name"], done.log, len(done.record["stdout"])) == ("x-y", f"{tmp_path}\n".encode(), 3)


def test_version_and_help(launcher: "Launcher") -> None:
    for option, text in (("--version", b"launcher 1"), ("--help", b"usage: launcher")):
        done = subprocess.run([launcher.binary, option], capture_output=True, timeout=15, check=False)
        assert done.returncode == 0 and done.stdout.startswith(text)
    for option in re.findall(
        rb"^  (--[a-z-]+)", subprocess.run([launcher.binary, "--help"], capture_output=True, check=True).stdout, re.M
    ):
        assert option.decode() in (Path(__file__).parents[2] / "launcher/README.md").read_text()


@pytest.mark.skipif(SANITIZED, reason="not the program that is shipped")
def test_the_program_is_static_and_small(launcher: "Launcher") -> None:
    content = launcher.binary.read_bytes()
    at, size, count = struct.unpack_from("<Q", content, 32)[0], *struct.unpack_from("<HH", content, 54)
    kinds = [struct.unpack_from("<I", content, at + i * size)[0] for i in range(count)]
    assert 1 in kinds and 3 not in kinds  # ELF: segments to load, and no PT_INTERP, so nothing of the image is needed
    if b"glibc" not in content.lower():
        assert len(content) < 100_000  # a ConfigMap of 1 MiB holds one for each architecture
    assert stat.S_IMODE(launcher.binary.stat().st_mode) & 0o111
