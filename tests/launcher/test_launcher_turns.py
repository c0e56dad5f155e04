"""Parallel containers: turns by files, records of other containers, and files created by user code."""

import errno
import fcntl
import json
import os
import signal
import stat
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.launcher.conftest import Launcher, Result


def opts(control: Path, name: str, *waits: str, timeout: float = 15) -> list[Any]:
    return ["--name", name, "--control", control, *(w for n in waits for w in ("--wait", n)), "--wait-timeout", timeout]


def closing(control: Path, name: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((control / f"{name}.json").read_text())
    return record


def test_files_appear_in_order_with_open_modes(launcher: "Launcher", control: Path) -> None:
    look = f"ls {control}"
    done = launcher.sh(look, *opts(control, "a"))
    assert done.log.split() == [b"a.begun", b"a.up"]
    assert sorted(p.name for p in control.iterdir()) == ["a.begun", "a.json", "a.up"]  # no temporary file left
    assert stat.S_IMODE((control / "a.json").stat().st_mode) == 0o644
    assert closing(control, "a") == done.record


def test_the_records_mode_does_not_depend_on_the_umask(launcher: "Launcher", control: Path) -> None:
    launcher.sh("true", *opts(control, "a"), umask=0o077)
    assert stat.S_IMODE((control / "a.json").stat().st_mode) == 0o644
    assert stat.S_IMODE((control / "a.up").stat().st_mode) == 0o644


def test_a_pod_of_five_runs_in_order(launcher: "Launcher", control: Path, tmp_path: Path) -> None:
    names = ["tif", "executor-0", "executor-1", "executor-2", "tof"]
    order = tmp_path / "order"
    running = []
    for i in reversed(range(5)):
        ups = [w for n in names for w in ("--wait-up", n)] if i == 1 else []
        always = ["--always"] if names[i] == "tof" else []
        running.append(
            launcher.start(
                *opts(control, names[i], *names[:i]), *ups, *always,
                argv=["/bin/sh", "-c", f"echo start-{names[i]} >> {order}; sleep 0.02; echo end-{names[i]} >> {order}"],
            )
        )  # fmt: skip
    assert [launcher.end(p).code for p in running] == [0] * 5
    assert order.read_text().split() == [x for n in names for x in (f"start-{n}", f"end-{n}")]


def test_wait_up_waits_until_every_container_is_up(launcher: "Launcher", control: Path) -> None:
    first = launcher.start(*opts(control, "a"), "--wait-up", "b", "--wait-up", "c", argv=["true"])
    launcher.until((control / "a.up").exists)
    launcher.sh("true", *opts(control, "b"))
    assert not (control / "a.begun").exists() and first.poll() is None
    launcher.sh("true", *opts(control, "c"))
    assert launcher.end(first).code == 0


def test_after_a_failure_the_rest_is_skipped_but_always_runs(launcher: "Launcher", control: Path) -> None:
    waiting = [
        launcher.start(*opts(control, "executor-1", "executor-0"), argv=["/bin/echo", "ran"]),
        launcher.start(*opts(control, "executor-2", "executor-1"), argv=["/bin/echo", "ran"]),
        launcher.start(
            *opts(control, "tof", "executor-0", "executor-1", "executor-2"), "--always", argv=["/bin/echo", "ran"]
        ),
    ]
    assert launcher.sh("exit 4", *opts(control, "executor-0")).code == 4
    one, two, tof = (launcher.end(p) for p in waiting)
    for skipped, cause in ((one, "executor-0"), (two, "executor-1")):
        assert (skipped.code, skipped.log) == (0, b"")
        record = skipped.record
        assert (record["reason"], record["ok"], record["exit_code"], record["signal"]) == ("Skipped", False, None, None)
        assert record["started"] is record["ended"] is record["cpu_seconds"] is record["peak_memory_bytes"] is None
        assert cause in record["message"]
    assert not (control / "executor-1.begun").exists()
    assert (tof.code, tof.log) == (0, b"ran\n")


def test_one_failure_is_enough_to_skip_without_waiting_for_the_others(launcher: "Launcher", control: Path) -> None:
    launcher.sh("false", *opts(control, "a"))
    assert launcher.sh("echo ran", *opts(control, "c", "b", "a")).record["reason"] == "Skipped"


def test_an_ignored_error_lets_the_next_run(launcher: "Launcher", control: Path) -> None:
    launcher.sh("exit 4", "--ignore-error", *opts(control, "a"))
    assert launcher.sh("echo ran", *opts(control, "b", "a")).log == b"ran\n"


def test_a_command_that_was_started_is_never_run_again(launcher: "Launcher", control: Path) -> None:
    (control / "a.begun").touch()
    done = launcher.sh("echo ran", *opts(control, "a"))
    assert (done.code, done.log, done.record["reason"], done.record["ok"]) == (125, b"", "AlreadyBegun", False)
    assert closing(control, "a")["reason"] == "AlreadyBegun"


def test_the_first_record_is_kept(launcher: "Launcher", control: Path) -> None:
    first = launcher.sh("exit 3", *opts(control, "a")).record
    assert launcher.sh("true", *opts(control, "a")).code == 125
    assert closing(control, "a") == first


def test_only_one_of_many_launchers_with_one_name_runs(launcher: "Launcher", control: Path, tmp_path: Path) -> None:
    racing = [
        launcher.start(*opts(control, "a", "gate"), argv=["/bin/sh", "-c", f"echo x >> {tmp_path}/ran"])
        for _ in range(12)
    ]
    launcher.until(lambda: len(list(control.iterdir())) >= 1)
    launcher.sh("true", *opts(control, "gate"))
    codes = sorted(launcher.end(p).code for p in racing)
    assert codes == [0] + [125] * 11
    assert (tmp_path / "ran").read_text() == "x\n"


@pytest.mark.parametrize("kind", ["--wait", "--wait-up"])
def test_a_wait_ends_at_its_deadline(launcher: "Launcher", control: Path, kind: str) -> None:
    done = launcher.sh("echo ran", "--name", "a", "--control", control, kind, "b", "--wait-timeout", 0.1, "--always")
    assert (done.code, done.log) == (124, b"")
    assert (done.record["reason"], done.record["ok"], done.record["exit_code"]) == ("WaitTimeout", False, None)
    assert closing(control, "a")["reason"] == "WaitTimeout" and not (control / "a.begun").exists()


def test_the_deadline_of_a_wait_does_not_count_while_the_awaited_command_runs(
    launcher: "Launcher", control: Path
) -> None:
    running = launcher.start(*opts(control, "a"), argv=["/bin/sh", "-c", "sleep 1"])
    launcher.until((control / "a.begun").exists)
    second = launcher.start(*opts(control, "b", "a", timeout=0.1), argv=["/bin/echo", "second"])
    third = launcher.start(*opts(control, "c", "b", timeout=0.1), "--always", argv=["/bin/echo", "third"])
    assert launcher.end(running).code == 0
    assert (launcher.end(second).log, launcher.end(third).log) == (b"second\n", b"third\n")


@pytest.mark.parametrize("kind", ["--wait", "--wait-up"])
def test_the_deadline_of_a_wait_counts_if_one_awaited_container_never_starts(
    launcher: "Launcher", control: Path, kind: str
) -> None:
    running = launcher.start(*opts(control, "a"), argv=["/bin/sleep", "600"])
    launcher.until((control / "a.begun").exists)
    done = launcher.sh("echo ran", *opts(control, "b", "a", timeout=0.3), kind, "c")
    assert (done.code, done.log, done.record["reason"]) == (124, b"", "WaitTimeout")
    assert "for c to" in done.record["message"]
    running.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_sigterm_ends_a_wait(launcher: "Launcher", control: Path, number: int) -> None:
    process = launcher.start(*opts(control, "a", "b"), argv=["/bin/echo", "ran"])
    launcher.until((control / "a.up").exists)
    process.send_signal(number)
    done = launcher.end(process)
    assert (done.code, done.log, done.record["reason"], done.record["exit_code"]) == (143, b"", "Terminated", None)
    assert closing(control, "a")["ok"] is False


def test_other_signals_do_not_end_a_wait(launcher: "Launcher", control: Path) -> None:
    process = launcher.start(*opts(control, "a", "b"), argv=["/bin/echo", "ran"])
    launcher.until((control / "a.up").exists)
    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT):
        process.send_signal(number)
    launcher.sh("true", *opts(control, "b"))
    assert launcher.end(process).log == b"ran\n"


@pytest.mark.parametrize("always", [False, True])
def test_a_launcher_that_was_killed_is_noticed(launcher: "Launcher", control: Path, always: bool) -> None:
    """As when a whole cgroup is out of memory: no record is written."""
    process = launcher.start(*opts(control, "executor-0"), argv=["/bin/sleep", "600"])
    launcher.until((control / "executor-0.begun").exists)
    waiting = launcher.start(*opts(control, "b", "executor-0"), *["--always"] * always, argv=["/bin/echo", "ran"])
    launcher.until((control / "b.up").exists)
    process.kill()
    done = launcher.end(waiting)
    if always:
        assert done.log == b"ran\n"
    else:
        assert (done.code, done.record["reason"]) == (0, "Skipped")
        assert "without a record" in done.record["message"]


def test_the_command_does_not_hold_the_lock(launcher: "Launcher", control: Path) -> None:
    """Otherwise a stray background process would make a dead launcher look alive."""
    process = launcher.start(*opts(control, "a"), argv=["/bin/sh", "-c", "echo $$; exec sleep 600"])
    assert process.stdout is not None
    pid = int(process.stdout.readline())  # it has begun: close-on-exec descriptors are closed
    with (control / "a.up").open() as up:
        with pytest.raises(OSError) as refused:
            fcntl.flock(up, fcntl.LOCK_SH | fcntl.LOCK_NB)
        assert refused.value.errno == errno.EWOULDBLOCK
        held = [os.readlink(p) for p in Path(f"/proc/{pid}/fd").iterdir()]
        assert not [x for x in held if "control" in x]


def test_an_up_file_without_a_lock_counts_as_alive(launcher: "Launcher", control: Path) -> None:
    (control / "b.up").touch()  # a file system without locks
    assert launcher.sh("true", "--name", "a", "--control", control, "--wait", "b", "--wait-timeout", 0.4).code == 124


# ---- files that user code has put there


def _wait(launcher: "Launcher", control: Path, *more: str, timeout: float = 0.3) -> "Result":
    return launcher.sh("echo ran", *opts(control, "b", "a", timeout=timeout), *more)


@pytest.mark.parametrize("kind", ["symlink", "dangling", "directory", "fifo", "device"])
def test_only_a_regular_file_is_a_record(launcher: "Launcher", control: Path, tmp_path: Path, kind: str) -> None:
    path = control / "a.json"
    if kind == "symlink":
        (tmp_path / "good").write_text('{"ok":true}')
        path.symlink_to(tmp_path / "good")
    elif kind == "dangling":
        path.symlink_to("/nowhere")
    elif kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    assert _wait(launcher, control).code == 124
    up = control / "c.up"
    up.symlink_to("/dev/null")
    assert launcher.sh("true", "--name", "d", "--control", control, "--wait-up", "c", "--wait-timeout", 0.1).code == 124


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"\x00" * 5000,
        b'{"ok":',
        b'{"ok":tru',
        b'{"ok":truE}',
        b'{"ok":1}',
        b'"ok":' * 2000,
        b"x" * 5000 + b'{"ok":true}',
        b'{"ok":"true"}',
    ],
)
def test_garbage_is_a_failure(launcher: "Launcher", control: Path, content: bytes) -> None:
    (control / "a.json").write_bytes(content)
    assert _wait(launcher, control, timeout=15).record["reason"] == "Skipped"
    assert launcher.sh("echo ran", *opts(control, "c", "a"), "--always").log == b"ran\n"


def test_a_huge_record_is_read_in_part(launcher: "Launcher", control: Path) -> None:
    with (control / "a.json").open("wb") as f:
        f.write(b'{"v":1,"ok": true}')
        f.truncate(1 << 40)  # sparse
    assert _wait(launcher, control, timeout=15).log == b"ran\n"


def test_an_unreadable_record_does_not_count(launcher: "Launcher", control: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    (control / "a.json").write_text('{"ok":true}')
    (control / "a.json").chmod(0)
    assert _wait(launcher, control).code == 124


@pytest.mark.parametrize("suffix", ["up", "json"])
@pytest.mark.parametrize("kind", ["symlink", "directory", "full directory", "fifo"])
def test_files_in_place_of_the_launchers_own_are_replaced(
    launcher: "Launcher", control: Path, tmp_path: Path, suffix: str, kind: str
) -> None:
    victim, path = tmp_path / "victim", control / f"a.{suffix}"
    victim.write_text("precious")
    if kind == "symlink":
        path.symlink_to(victim)
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()
        if kind == "full directory":
            (path / "x").touch()
    done = launcher.sh("exit 3", *opts(control, "a"))
    assert victim.read_text() == "precious"
    assert done.code == 3 and closing(control, "a")["exit_code"] == 3
    assert path.is_file() and not path.is_symlink()


@pytest.mark.parametrize("kind", ["symlink", "directory"])
def test_a_begun_file_of_any_type_counts(launcher: "Launcher", control: Path, kind: str) -> None:
    path = control / "a.begun"
    path.symlink_to("/nowhere") if kind == "symlink" else path.mkdir()
    assert launcher.sh("echo ran", *opts(control, "a")).record["reason"] == "AlreadyBegun"


def test_many_events_do_not_hide_the_record(launcher: "Launcher", control: Path) -> None:
    waiting = launcher.start(*opts(control, "b", "a"), argv=["/bin/echo", "ran"])
    launcher.until((control / "b.up").exists)
    for i in range(2000):
        (control / f"noise-{i}-{'x' * 200}").touch()
    launcher.sh("true", *opts(control, "a"))
    assert launcher.end(waiting).log == b"ran\n"


def test_a_missing_control_directory_is_reported_and_nothing_runs(launcher: "Launcher", tmp_path: Path) -> None:
    done = launcher.sh("echo ran", "--name", "a", "--control", tmp_path / "none")
    assert (done.code, done.log, done.record["reason"], done.record["ok"]) == (125, b"", "ControlUnavailable", False)


def test_a_control_directory_lost_before_the_turn_prevents_the_run(launcher: "Launcher", control: Path) -> None:
    process = launcher.start(*opts(control, "a", "b"), argv=["/bin/echo", "ran"])
    launcher.until((control / "a.up").exists)
    subprocess.run(["rm", "-rf", control], check=True)
    process.send_signal(signal.SIGTERM)
    assert launcher.end(process).code == 143
