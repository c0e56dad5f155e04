"""Plain processes: what a command cannot see, change or escape from; and how many run concurrently."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from poiesis.cluster.local import Filers
from poiesis.domain.report import FilerReport
from poiesis.domain.task import Input, Output, Resources, Task
from tests.integration.cluster.harness import (
    POLICY,
    Lab,
    eventually,
    processes_with,
    record,
    sh,
    stage_in,
    stage_out,
)


def output_of(lab: Lab, script: str, **more: Any) -> str:
    seen = lab.run(sh(script, **more))
    assert record(seen).exit_code is not None, record(seen)
    return record(seen).stdout


def is_scheduled(lab: Lab, task: Task) -> bool:
    return lab.cluster.observe(task).pods[0].scheduled


def has_text(path: Path, text: str) -> bool:
    return path.exists() and path.read_text() == text


def test_the_host_cannot_be_written(process_lab: Lab) -> None:
    script = """
    for d in /etc /usr /usr/bin /var /opt /sys/fs/cgroup /proc/sys/kernel /dev /poiesis; do
        touch $d/poiesis-was-here 2>/dev/null && echo "wrote $d"; done
    echo 1 2>/dev/null > /proc/sys/kernel/sysrq && echo sysrq
    mount -o remount,rw / 2>/dev/null && echo remounted; umount /etc 2>/dev/null && echo unmounted
    grep -E '^(CapEff|CapBnd|NoNewPrivs)' /proc/self/status
    """
    lines = dict(line.split(":\t") for line in output_of(process_lab, script).splitlines())
    assert set(lines) == {"CapEff", "CapBnd", "NoNewPrivs"}
    assert int(lines["CapEff"], 16) == 0 and int(lines["CapBnd"], 16) == 0 and lines["NoNewPrivs"] == "1"
    assert not Path("/etc/poiesis-was-here").exists()


def test_files_written_outside_the_task_are_removed_with_it(process_lab: Lab) -> None:
    name = f"mine-{os.getpid()}"
    assert output_of(
        process_lab, f"for d in / /tmp /var/tmp /dev/shm; do touch $d/{name} && echo $d; done"
    ).split() == [
        "/",
        "/tmp",
        "/var/tmp",
        "/dev/shm",
    ]
    assert not any(Path(d, name).exists() for d in ("/", "/tmp", "/var/tmp", "/dev/shm"))


def test_the_service_is_not_visible(process_lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POIESIS_SECRET", "hunter2")
    script = f"""
    ls -A {process_lab.directory} /root /home 2>/dev/null; env | sort; ls -d /proc/[0-9]*; cat /proc/*/environ
    ls -A /run; ls -l /proc/self/fd /proc/1/fd | grep -c {process_lab.directory}
    """
    text = output_of(process_lab, script, env={"MINE": "1"})
    assert "hunter2" not in text and "tasks" not in text and "cluster.lock" not in text
    variables = dict(re.findall(r"^([A-Z_]+)=(.*)$", text, re.M))
    assert set(variables) - {"OLDPWD", "PWD", "SHLVL", "_", "LC_CTYPE"} == {"MINE", "PATH", "HOME", "LANG"}
    assert variables["HOME"] == "/tmp"
    assert all(int(n) < 50 for n in re.findall(r"/proc/(\d+)", text)), "processes of the host are visible"


def test_directories_can_be_hidden_and_parts_of_them_made_visible(make_lab: Callable[..., Lab], tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "tool").write_text("tool")
    lab = make_lab("process", hidden=(Path("/usr/share"),), visible=(tools, Path("/usr/share/doc")))
    text = output_of(
        lab,
        f"cat {tools}/tool; echo; ls /usr/share; ls /usr/share/doc | head -1; echo x > {tools}/tool && echo written",
    )
    assert text.split()[:2] == ["tool", "doc"] and len(text.split()) == 3


@pytest.mark.parametrize("home_is_visible", [False, True])
def test_what_is_hidden_below_a_visible_part_of_a_hidden_directory_stays_hidden(
    make_lab: Callable[..., Lab], tmp_path: Path, home_is_visible: bool
) -> None:
    data = tmp_path / "home/data"
    (data / "keys").mkdir(parents=True)
    tmp_path.chmod(0o755)
    for path in ("home/.netrc", "home/data/credentials.json", "home/data/keys/key"):
        (tmp_path / path).write_text("secret")
    (data / "tool").write_text("tool")
    hidden = (tmp_path / "home", data / "credentials.json", data / "keys")
    lab = make_lab("process", hidden=hidden, visible=(tmp_path, data) if home_is_visible else (data,))
    text = output_of(lab, f"cd {data}; cat tool credentials.json keys/key ../.netrc; echo; ls . keys")
    assert "secret" not in text and text.split() == ["tool", ".:", "credentials.json", "keys", "tool", "keys:"]


@pytest.mark.parametrize("hidden", [False, True])
def test_a_visible_directory_exists_at_a_path_through_links_too(
    make_lab: Callable[..., Lab], tmp_path: Path, hidden: bool
) -> None:
    """Links in the middle, at the end, to another link and relative ones; what else the links' targets hold stays invisible."""
    (tmp_path / "data/env").mkdir(parents=True)
    (tmp_path / "data/env/tool").write_text("tool")
    (tmp_path / "data/secret").write_text("secret")
    home = tmp_path / "home"
    home.mkdir()
    (home / "absolute").symlink_to(tmp_path / "data")
    (home / "relative").symlink_to("../home/absolute/env")
    (home / "last").symlink_to("relative")
    (home / "loop").symlink_to("loop")
    given = [home / "absolute/env", home / "last"]
    lab = make_lab("process", hidden=(home,) if hidden else (), visible=(*given, home / "loop/x"))
    script = f"cat {' '.join(f'{path}/tool' for path in given)}; echo; cat {home}/absolute/secret; ls {home}"
    text = output_of(lab, script)
    assert text.split("\n") == ["tooltool", "absolute", "last", "loop", "relative", ""]


def test_a_link_in_a_hidden_directory_below_a_visible_one_exists(make_lab: Callable[..., Lab], tmp_path: Path) -> None:
    """The visible directory cannot be one mount with an empty directory over the hidden one then."""
    (tmp_path / "env").mkdir()
    (tmp_path / "env/tool").write_text("tool")
    home = tmp_path / "tools/home"
    home.mkdir(parents=True)
    (home / "link").symlink_to(tmp_path / "env")
    lab = make_lab("process", hidden=(home,), visible=(tmp_path / "tools", home / "link"))
    assert output_of(lab, f"cat {home}/link/tool") == "tool"


def test_paths_of_the_task_may_be_anywhere(process_lab: Lab) -> None:
    seen = process_lab.run(
        sh("cat /usr/share/mine/in /root/x/in /var/tmp/y/in /tmp/z/in; ls /usr/bin/env; pwd", workdir="/opt/new/dir"),
        inputs=tuple(
            Input(p, content=p + "\n")
            for p in ("/usr/share/mine/in", "/root/x/in", "/var/tmp/y/in", "/tmp/z/in", "/bin/mine", "/data/a/b/c")
        ),
    )
    assert record(seen).stdout.split() == [
        "/usr/share/mine/in",
        "/root/x/in",
        "/var/tmp/y/in",
        "/tmp/z/in",
        "/usr/bin/env",
        "/opt/new/dir",
    ], record(seen).stderr


def test_a_command_cannot_outlive_its_launcher(process_lab: Lab) -> None:
    mark = f"6{os.urandom(3).hex()}".translate(str.maketrans("abcdef", "123456"))
    seen = process_lab.run(sh(f"(setsid sh -c 'trap \"\" TERM HUP; sleep {mark}' > /dev/null 2>&1 &); echo done"))
    assert record(seen).stdout == "done\n"
    eventually(lambda: not processes_with(f"sleep\0{mark}"), "the end of what it left")


def test_links_in_the_volume_do_not_lead_out(process_lab: Lab, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("untouched")

    def planted(document: Mapping[str, Any], volume: Path, cancelled: Callable[[], bool]) -> FilerReport:
        (volume / "root" / "data").mkdir(parents=True, exist_ok=True)
        (volume / "root" / "etc").mkdir()
        (volume / "root" / "etc" / "x.conf").symlink_to(secret)
        return FilerReport()

    process_lab.cluster.close()
    process_lab.filers = Filers(planted, stage_out)
    process_lab.cluster = process_lab.open()
    task = process_lab.task(sh("echo broken > /etc/x.conf"), inputs=(Input("/etc/x.conf", content=""),))
    seen = process_lab.ended(process_lab.launch(task))
    assert seen.pods[0].lost == "SandboxFailed" and "is outside" in (seen.pods[0].message or "")
    assert secret.read_text() == "untouched"


def test_a_forged_record_does_not_end_a_running_command(lab: Lab) -> None:
    forged = '{"name":"executor-0","ok":true,"exit_code":0}'
    task = lab.launch(
        lab.task(
            sh(
                f"echo '{forged}' 2>/dev/null > /poiesis/control/executor-0.json; echo forged; "
                "while [ ! -e /work/go ]; do sleep 0.05; done; exit 4"
            ),
            volumes=("/work",),
        )
    )
    eventually(lambda: "forged" in lab.live(task), "output")
    assert not lab.cluster.observe(task).pods[0].ended
    (lab.directory / f"tasks/poiesis-{task.id}-1/volume/root/work/go").touch()
    assert record(lab.ended(task)).exit_code == 4


def test_a_task_that_requests_more_than_the_machine_runs(process_lab: Lab) -> None:
    seen = process_lab.run(sh("true"), resources=Resources(cpu_cores=10_000, ram_gb=1.0))
    assert record(seen).ok


def test_fifty_tasks_at_once(make_lab: Callable[..., Lab], tmp_path: Path) -> None:
    lab = make_lab("process")
    before = threading.active_count()
    tasks = [
        lab.task(
            sh("cat /data/in > /data/out; while [ ! -e /data/go ]; do sleep 0.2; done"),
            id=f"{lab.id}-{n}x",
            inputs=(Input("/data/in", content=str(n)),),
        )
        for n in range(50)
    ]
    for task in tasks:
        lab.launch(task)
    root = lab.directory / "tasks"
    for n, task in enumerate(tasks):
        out = root / f"poiesis-{task.id}-1/volume/root/data/out"
        eventually(partial(has_text, out, str(n)), "output")
    assert threading.active_count() - before <= 50 + 5
    launchers = processes_with("/poiesis/launcher\0--name")
    resident = [int(re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{p}/status").read_text())[0]) for p in launchers]
    assert len(launchers) >= 50 and sum(resident) / len(resident) < 2048  # KiB each
    for task in tasks:
        (root / f"poiesis-{task.id}-1/volume/root/data/go").touch()
    for task in tasks:
        assert record(lab.ended(task)).ok
        lab.cluster.delete_all(task.id, task.attempt)
    eventually(lambda: not list(root.iterdir()), "the removal")
    eventually(lambda: threading.active_count() - before <= 5, "the end of threads")


def test_a_filer_is_asked_to_stop(make_lab: Callable[..., Lab]) -> None:
    begun, stopped = threading.Event(), threading.Event()

    def endless(document: Mapping[str, Any], volume: Path, cancelled: Callable[[], bool]) -> FilerReport:
        begun.set()
        while not cancelled():
            stopped.wait(0.01)
        stopped.set()
        return FilerReport(error="stopped", retryable=True)

    lab = make_lab("process", filers=Filers(endless, stage_out))
    task = lab.launch(lab.task(sh("true"), inputs=(Input("/data/in", content=""),)))
    assert begun.wait(30)
    lab.cluster.delete_pods(task.id, task.attempt)
    eventually(lambda: not lab.cluster.observe(task).pods, "the end")
    assert stopped.is_set()


def endless(document: Mapping[str, Any], volume: Path, cancelled: Callable[[], bool]) -> FilerReport:
    while not cancelled():
        time.sleep(0.01)
    return FilerReport(error="stopped before the end", error_code="cancelled", retryable=True)


@pytest.mark.parametrize(
    ("filers", "reasons"),
    [
        (Filers(endless, stage_out), ["TimeLimit", "Skipped", "Skipped"]),
        (Filers(stage_in, endless), [None, None, "TimeLimit"]),
    ],
    ids=["tif", "tof"],
)
def test_a_filer_is_stopped_at_its_deadline(
    make_lab: Callable[..., Lab], tmp_path: Path, filers: Filers, reasons: list[str | None]
) -> None:
    policy = replace(POLICY, stage_in_deadline=timedelta(seconds=2), stage_out_deadline=timedelta(seconds=2))
    seen = make_lab("process", policy=policy, filers=filers).run(sh("true"), **copied(tmp_path))
    records = [record(seen, name) for name in ("tif", "executor-0", "tof")]
    assert [r.reason for r in records] == reasons
    assert [r.ok for r in records] == [reason is None for reason in reasons]


def test_the_time_of_an_upload_begins_with_its_turn(make_lab: Callable[..., Lab], tmp_path: Path) -> None:
    policy = replace(POLICY, stage_out_deadline=timedelta(seconds=1))

    def polite(document: Mapping[str, Any], volume: Path, cancelled: Callable[[], bool]) -> FilerReport:
        return (
            FilerReport(error="stopped", error_code="cancelled")
            if cancelled()
            else stage_out(document, volume, cancelled)
        )

    lab = make_lab("process", policy=policy, filers=Filers(stage_in, polite))
    assert record(lab.run(sh("sleep 1.2"), **copied(tmp_path)), "tof").ok


def copied(tmp_path: Path) -> dict[str, Any]:
    """What a task needs to have both filers."""
    outputs = (Output("/data/in", f"file://{tmp_path}/out"),)
    return {"inputs": (Input("/data/in", content="x"),), "outputs": outputs}


def test_a_failed_filer_is_reported_and_nothing_runs(make_lab: Callable[..., Lab], tmp_path: Path) -> None:
    def failing(document: Mapping[str, Any], volume: Path, cancelled: Callable[[], bool]) -> FilerReport:
        raise ZeroDivisionError("a bug")

    lab = make_lab("process", filers=Filers(failing, stage_out))
    seen = lab.run(
        sh("true"), inputs=(Input("/data/in", content=""),), outputs=(Output("/data/in", f"file://{tmp_path}/out"),)
    )
    assert seen.reports["tif"].error == "ZeroDivisionError: a bug" and not record(seen, "tif").ok
    assert [record(seen, n).reason for n in ("executor-0", "tof")] == ["Skipped", "Skipped"]
    assert not (tmp_path / "out").exists()


def test_an_ordinary_user_gets_the_same_isolation(launcher: Path, tmp_path: Path) -> None:
    """As root, the tests above do not cover ordinary users, who need a user namespace: this one does."""
    if os.geteuid() != 0:
        pytest.skip("all tests run without privileges")
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        home = Path(name)
        home.chmod(0o777)
        package = Path(sys.modules["poiesis"].__file__ or "").parent
        program = textwrap.dedent(
            """
            import os, sys
            os.setgroups([]); os.setgid(65534); os.setuid(65534)
            sys.dont_write_bytecode = True
            from pathlib import Path
            from tests.integration.cluster.harness import *
            with bench(Path(sys.argv[1]) / "service", Path(sys.argv[1]) / "launcher", "process") as lab:
                task = lab.task(sh("id -u; touch /etc/no 2>/dev/null; grep CapBnd /proc/self/status; mkdir /w/a; chmod 0 /w/a;"
                                   " ls -d /proc/[0-9]*; ls -A /root " + sys.argv[1]), volumes=("/w",))
                print(record(lab.ended(lab.launch(task))).stdout)
                lab.remove(task)
            """
        )
        shutil.copy(launcher, home / "launcher")
        (home / "launcher").chmod(0o755)
        python = shutil.which("python3", path="/usr/local/bin:/usr/bin:/bin")
        if (
            python is None
            or subprocess.run([python, "-c", "import sys; assert sys.version_info >= (3, 11)"]).returncode
        ):
            python = sys.executable
        done = subprocess.run(
            [python, "-c", program, str(home)],
            cwd="/",
            env={"PYTHONPATH": str(package.parent), "PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            check=False,
        )
        if "Permission denied" in done.stderr and "sandbox" in done.stderr:
            pytest.skip("the interpreter or the package cannot be read by others")
        assert done.returncode == 0, done.stderr
        lines = done.stdout.split()
        assert lines[0] == "65534" and lines[2] == "0000000000000000"
        assert not list((home / "service").glob("tasks/*"))
