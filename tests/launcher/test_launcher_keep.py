"""The whole output in the control directory (`--keep-output`), for the follower of a log store."""

import os
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.launcher.conftest import Launcher

SEGMENT = 8 << 20


def kept(control: Path, stream: str = "stdout", name: str = "executor-0") -> bytes:
    files = sorted(control.glob(f"{name}.{stream}.*"), key=lambda p: int(p.suffix[1:]))
    return b"".join(p.read_bytes() for p in files)


def options(control: Path, size: int = 1 << 30, *more: object) -> list[object]:
    return ["--name", "executor-0", "--control", control, "--keep-output", size, *more]


def test_both_streams_are_kept_byte_for_byte(launcher: "Launcher", control: Path) -> None:
    result = launcher.sh(r"printf 'a\0b\rc'; printf 'no newline' >&2", *options(control))
    assert result.code == 0
    assert kept(control) == b"a\0b\rc"
    assert kept(control, "stderr") == b"no newline"


def test_nothing_is_kept_by_default(launcher: "Launcher", control: Path) -> None:
    launcher.sh("echo hello", "--name", "executor-0", "--control", control)
    assert not list(control.glob("*.stdout.*"))


def test_output_without_a_newline_is_there_while_the_command_runs(launcher: "Launcher", control: Path) -> None:
    process = launcher.start(*options(control), argv=["/bin/sh", "-c", r"printf '\r 10%%'; read x"], stdin=-1)
    launcher.until(lambda: kept(control) == b"\r 10%", "the progress bar")
    process.kill()


def test_segments_of_one_size_and_readable_by_other_users(launcher: "Launcher", control: Path) -> None:
    launcher.sh("umask 077; head -c 20000000 /dev/zero", *options(control), umask=0o077)
    files = sorted(control.glob("executor-0.stdout.*"))
    assert [p.stat().st_size for p in files] == [SEGMENT, SEGMENT, 20000000 - 2 * SEGMENT]
    assert {stat.S_IMODE(p.stat().st_mode) for p in files} == {0o666}


@pytest.mark.parametrize("size", [0, 1, 1000, SEGMENT, SEGMENT + 1])
def test_no_more_than_the_bound_is_kept_and_the_record_counts_all(
    launcher: "Launcher", control: Path, size: int
) -> None:
    result = launcher.sh("head -c 9000000 /dev/zero", *options(control, size))
    assert len(kept(control)) == min(size, 9000000)
    assert result.record["stdout_bytes"] == 9000000


def test_messages_of_the_launcher_are_kept_too(launcher: "Launcher", control: Path) -> None:
    launcher.run(*options(control), argv=["/no/such/program"])
    assert b"/no/such/program" in kept(control, "stderr")


def test_a_missing_follower_stops_the_copy_and_not_the_command(launcher: "Launcher", control: Path) -> None:
    started = time.monotonic()
    result = launcher.sh(
        "head -c 60000000 /dev/zero", *options(control, 1 << 30, "--keep-backlog", 2 * SEGMENT, "--keep-stall", 0.5)
    )
    assert result.code == 0
    assert 0.4 < time.monotonic() - started < 10
    assert len(kept(control)) <= 2 * SEGMENT
    assert result.record["stdout_bytes"] == 60000000


def test_a_follower_that_keeps_up_gets_every_byte_in_bounded_space(launcher: "Launcher", control: Path) -> None:
    total, most, number = 0, 0, 0
    process = launcher.start(
        *options(control, 1 << 30, "--keep-backlog", 2 * SEGMENT, "--keep-stall", 10),
        argv=["/bin/sh", "-c", "head -c 100000000 /dev/zero"],
        stdout=-3,
    )
    while total < 100000000:
        number_of_files = len(list(control.glob("executor-0.stdout.*")))
        most = max(most, number_of_files)
        path = control / f"executor-0.stdout.{number}"
        size = path.stat().st_size if path.exists() else 0
        if size == SEGMENT or (process.poll() is not None and size):
            total, number = total + size, number + 1
            path.unlink()
        elif process.poll() is not None and not size:
            break
        time.sleep(0.001)
    assert total == 100000000
    assert most <= 3


@pytest.mark.parametrize("kind", ["link", "fifo", "file", "directory"])
def test_what_an_earlier_command_left_under_the_name_is_not_followed(
    launcher: "Launcher", control: Path, tmp_path: Path, kind: str
) -> None:
    name, target = control / "executor-0.stdout.0", tmp_path / "target"
    target.write_text("untouched")
    {
        "link": lambda: name.symlink_to(target),
        "fifo": lambda: os.mkfifo(name),
        "file": lambda: name.write_text("old"),
        "directory": name.mkdir,
    }[kind]()
    result = launcher.sh("echo new", *options(control))
    assert result.code == 0 and result.record["stdout"] == "new\n"
    assert target.read_text() == "untouched"
    assert name.is_dir() if kind == "directory" else name.read_bytes() == b"new\n"


def test_a_full_disk_ends_the_copy_and_not_the_command(launcher: "Launcher", control: Path) -> None:
    (control / "executor-0.stdout.0").mkdir()  # the segment cannot be created
    result = launcher.sh("echo one; sleep 0.1; echo two", *options(control))
    assert result.code == 0 and result.record["stdout"] == "one\ntwo\n"


def test_the_end_waits_for_the_followers_container_only_where_there_is_output(
    launcher: "Launcher", control: Path
) -> None:
    def seconds(script: str) -> float:
        started = time.monotonic()
        name = f"executor-{time.monotonic_ns()}"
        launcher.sh(script, "--name", name, "--control", control, "--keep-output", 1000, "--keep-reader", "logs")
        return time.monotonic() - started

    assert seconds("true") < 0.8
    assert 1.0 <= seconds("echo output") < 5  # bounded
    (control / "logs.up").touch()
    assert seconds("echo output") < 0.8
