"""The environment and the reported results of a command: the same in plain processes and in containers."""

from __future__ import annotations

import dataclasses
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest

from poiesis.cluster.local.task_directory import directories_of
from poiesis.domain.observed import Phase
from poiesis.domain.task import Executor, FileType, Input, Output, Resources, Task
from tests.integration.cluster.harness import IMAGE, POLICY, Lab, container, eventually, processes_with, record, sh


def test_executors_run_in_order_over_one_volume(lab: Lab, tmp_path: Path) -> None:
    seen = lab.run(
        sh("cat /data/in.txt > /data/one; date +%s%N > /data/first"),
        sh("cat /data/one /dev/stdin", stdin="/data/in.txt", stdout="/data/two"),
        sh("tr a-z A-Z < /data/two", stdout="/results/out.txt", stderr="/results/err.txt"),
        inputs=(Input("/data/in.txt", content="words\n"),),
        outputs=(Output("/results/out.txt", f"file://{tmp_path}/out"),),
    )
    assert [c.name for c in seen.pods[0].containers] == ["tif", "executor-0", "executor-1", "executor-2", "tof"]
    assert all(c.phase is Phase.ENDED and c.record is not None and c.record.ok for c in seen.pods[0].containers)
    assert (tmp_path / "out").read_text() == "WORDS\nWORDS\n"
    first, second = record(seen, "executor-0"), record(seen, "executor-1")
    assert first.ended_at is not None and second.started_at is not None
    assert first.ended_at <= second.started_at
    assert seen.reports["tof"].files[0].path == "/results/out.txt"
    assert seen.others == (f"poiesis-{lab.id}-1-volume",)
    assert seen.pods[0].lost is None and seen.pods[0].scheduled and seen.pods[0].node


def test_arguments_and_variables_arrive_byte_for_byte(lab: Lab) -> None:
    odd = "a  b\t'c' \"d\" $HOME `id` \\ é 💥 \n last"
    seen = lab.run(
        Executor(IMAGE, ("printf", "%s|", odd, "", "$(X)", "--flag=-x"), env={}),
        sh('printf "%s|" "$ODD" "$EMPTY" "$(pwd)"', env={"ODD": odd, "EMPTY": ""}, workdir="/made/for it"),
    )
    assert record(seen).stdout == f"{odd}||$(X)|--flag=-x|"
    assert record(seen, "executor-1").stdout == f"{odd}||/made/for it|"


@pytest.mark.parametrize("workdir", ["/work", "/tmp/deep/er", "/scratch"])
def test_a_usual_working_directory_is_the_tasks_own_without_a_volume(lab: Lab, workdir: str) -> None:
    """Empty, regardless of the machine's own, writable, and shared by all executors."""
    seen = lab.run(sh("ls -A; pwd; echo kept > file", workdir=workdir), sh("cat file", workdir=workdir))
    assert record(seen).stdout == f"{workdir}\n"
    assert record(seen, "executor-1").stdout == "kept\n"


def test_streams_are_kept_apart_and_written_to_files(lab: Lab) -> None:
    seen = lab.run(
        sh("echo out; echo err >&2", stdout="/logs/out", stderr="/logs/err"),
        sh("cat /logs/out; cat /logs/err >&2"),
    )
    for name in ("executor-0", "executor-1"):
        assert (record(seen, name).stdout, record(seen, name).stderr) == ("out\n", "err\n")


def test_a_failure_ends_the_task_but_outputs_are_sent(lab: Lab, tmp_path: Path) -> None:
    seen = lab.run(
        sh("echo partial > /data/out; exit 7"),
        sh("echo never"),
        outputs=(Output("/data/out", f"file://{tmp_path}/out"),),
    )
    assert record(seen).exit_code == 7 and not record(seen).ok
    skipped = record(seen, "executor-1")
    assert (skipped.exit_code, skipped.reason, skipped.stdout) == (None, "Skipped", "")
    assert record(seen, "tof").ok and (tmp_path / "out").read_text() == "partial\n"


def test_an_ignored_error_lets_the_next_one_run(lab: Lab) -> None:
    seen = lab.run(sh("exit 3", ignore_error=True), sh("echo went on"))
    assert record(seen).exit_code == 3 and record(seen).ok
    assert record(seen, "executor-1").stdout == "went on\n"


@pytest.mark.parametrize(
    ("command", "code"),
    [(("no-such-program",), 127), (("/etc/passwd",), 126), (("sh", "-c", "kill -9 $$"), 137)],
    ids=["not found", "not executable", "killed"],
)
def test_exit_codes_are_the_shells(lab: Lab, command: tuple[str, ...], code: int) -> None:
    ended = record(lab.run(Executor(IMAGE, command)))
    assert ended.exit_code == code and not ended.ok
    assert code == 137 or ended.stderr


def test_a_command_over_its_time_limit_is_ended(lab: Lab) -> None:
    lab.policy = dataclasses.replace(POLICY, default_time_limit=timedelta(seconds=1))
    ended = record(lab.run(sh("sleep 600")))
    assert ended.reason == "TimeLimit" and not ended.ok


def test_a_cancelled_command_that_ignores_sigterm_is_killed_with_its_children(lab: Lab) -> None:
    mark = f"sleep {600 + time.time_ns() % 10**9}"
    task = lab.launch(lab.task(sh(f"trap '' TERM; {mark} & {mark} & echo ready; wait; wait; {mark}")))
    eventually(lambda: "ready" in lab.live(task), "output")
    lab.cluster.delete_pods(task.id, task.attempt)
    assert all(p.deleting for p in lab.cluster.observe(task).pods)
    eventually(lambda: not lab.cluster.observe(task).pods, "the end of the pod")
    eventually(lambda: not processes_with(mark.replace(" ", "\0")), "the end of the processes")


def _has_no_pod(lab: Lab, task: Task) -> bool:
    return not lab.cluster.observe(task).pods


def test_a_command_that_is_cancelled_while_it_starts_ends_at_once(make_lab: Callable[..., Lab]) -> None:
    """Process 1 exists before it handles signals: a SIGTERM sent then used to be lost, and the command ran until its grace period ended."""
    lab = make_lab("process", policy=dataclasses.replace(POLICY, grace=timedelta(seconds=45)))
    for n in range(5):
        task = lab.launch(lab.task(sh("sleep 600"), id=f"{lab.id}{n}"))
        (task_dir,) = directories_of(lab.directory / "tasks", task.id, 1)
        while not task_dir.state("executor-0", "pid").exists():
            time.sleep(0.001)
        time.sleep(n * 0.01)
        lab.cluster.delete_pods(task.id, task.attempt)
        eventually(partial(_has_no_pod, lab, task), "the end of the pod", deadline=30)


def test_a_command_over_its_memory_limit_is_reported(lab: Lab) -> None:
    if "cannot be kept" in lab.cluster.describe():
        pytest.skip("memory limits are not supported here")
    seen = lab.run(sh("dd if=/dev/zero of=/dev/null bs=400M count=1"), resources=Resources(ram_gb=0.1))
    ended = record(seen)
    assert ended.oom_killed and ended.exit_code == 137 and not ended.ok


def test_usage_is_measured(lab: Lab) -> None:
    ended = record(lab.run(sh("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done")))
    assert ended.cpu_seconds is not None and ended.cpu_seconds > 0
    assert ended.peak_memory_bytes is not None and ended.peak_memory_bytes > 10_000


def test_single_files_are_mounted_beside_what_is_there(lab: Lab, tmp_path: Path) -> None:
    seen = lab.run(
        sh("cat /in.txt /etc/x.conf; ls /etc | grep -c . ; test -e /etc/passwd; echo done > /etc/out.conf"),
        inputs=(Input("/in.txt", content="one\n"), Input("/etc/x.conf", content="two\n")),
        outputs=(Output("/etc/out.conf", f"file://{tmp_path}/out"),),
    )
    assert record(seen).exit_code == 0, record(seen).stderr
    assert record(seen).stdout.startswith("one\ntwo\n")
    assert (tmp_path / "out").read_text() == "done\n"
    assert not Path("/in.txt").exists() and not Path("/etc/x.conf").exists()


def test_the_live_tail_of_output_can_be_read(lab: Lab) -> None:
    task = lab.launch(lab.task(sh("echo begun; echo words >&2; sleep 600")))
    eventually(lambda: lab.cluster.observe(task, tails=True).tails.get("executor-0") == ("begun\n", "words\n"), "tails")
    seen = lab.cluster.observe(task)
    assert container(seen).phase is Phase.RUNNING and container(seen).record is None and not seen.tails


def test_endless_output_is_bounded(lab: Lab) -> None:
    task = lab.launch(lab.task(sh("yes 0123456789abcdef | head -c 500000000; echo end")))
    largest = 0
    while not lab.cluster.observe(task).pods[0].ended:
        with suppress(FileNotFoundError):  # removed meanwhile
            largest = max(largest, sum(p.lstat().st_size for p in lab.directory.rglob("*") if p.is_file()))
        time.sleep(0.02)
    ended = record(lab.ended(task))
    assert ended.exit_code == 0 and ended.stdout.endswith("end\n")
    assert len(ended.stdout) <= POLICY.tail_bytes and ended.truncated
    assert largest < 4 << 20


def test_the_staged_layout_has_a_pod_for_each_stage(lab: Lab, tmp_path: Path) -> None:
    lab.policy = dataclasses.replace(POLICY, layout="staged")
    task = lab.task(
        sh("cat /data/in > /data/out"),
        inputs=(Input("/data/in", content="x"),),
        outputs=(Output("/data/out", f"file://{tmp_path}/out"),),
    )
    for part in ("tif", "executors", "tof"):
        lab.launch(task, part)
        lab.ended(task)
    seen = lab.cluster.observe(task)
    assert [p.part for p in seen.pods] == ["executors", "tif", "tof"]
    assert [p.name for p in seen.pods] == [f"poiesis-{lab.id}-1-{part}" for part in ("executors", "tif", "tof")]
    assert (tmp_path / "out").read_text() == "x"


def test_everything_that_a_command_leaves_is_removed(lab: Lab) -> None:
    task = lab.task(
        sh(
            "mkdir -p /work/a/b /work/shut; touch /work/shut/x; ln -s /etc /work/a/link; mkfifo /work/fifo;"
            " d=/work; for i in $(seq 60); do d=$d/0123456789; mkdir $d; done; chmod 000 /work/shut /work/a"
        ),
        volumes=("/work",),
    )
    assert record(lab.ended(lab.launch(task))).exit_code == 0
    lab.remove(task)
    assert list((lab.directory / "tasks").iterdir()) == []
    assert list(lab.cluster.task_ids()) == []
    assert Path("/etc/passwd").exists()


def test_every_change_wakes_the_task(lab: Lab) -> None:
    task = lab.launch(lab.task(sh("true"), sh("true")))
    lab.ended(task)
    eventually(lambda: len(lab.woken) >= 3, "wake-ups")  # admitted, each record, the end
    assert set(lab.woken) == {task.id}
    before = len(lab.woken)
    lab.remove(task)
    eventually(lambda: len(lab.woken) > before, "a wake-up by the removal")
    assert before < 20


@pytest.mark.parametrize("engine", ["docker", "podman"])
def test_an_unavailable_image_is_reported_while_the_task_waits(make_lab: Callable[..., Lab], engine: str) -> None:
    lab = make_lab(engine)
    task = lab.launch(lab.task(sh("true"), Executor("localhost:1/no/such:image", ("true",))))

    def reasons() -> set[str | None]:
        return {c.reason for p in lab.cluster.observe(task).pods for c in p.containers if c.phase is Phase.WAITING}

    eventually(lambda: reasons() & {"ErrImagePull", "ImageRefused"}, "the reason")
    assert "localhost:1/no/such:image" in (container(lab.cluster.observe(task)).message or "")
    lab.cluster.delete_pods(task.id, task.attempt)
    eventually(lambda: not lab.cluster.observe(task).pods, "the end")


@pytest.mark.parametrize("engine", ["docker", "podman"])
def test_no_container_is_left(make_lab: Callable[..., Lab], engine: str) -> None:
    lab = make_lab(engine)
    task = lab.launch(lab.task(sh("true"), sh("exit 1"), sh("true")))
    lab.ended(task)
    lab.remove(task)
    listed = subprocess.run(
        [engine, "ps", "--all", "--format", "{{.Names}}"], capture_output=True, text=True, check=True
    )
    assert f"poiesis-{task.id}" not in listed.stdout


@pytest.fixture(params=["docker", "podman"])
def container_lab(request: pytest.FixtureRequest, make_lab: Callable[..., Lab]) -> Lab:
    return make_lab(request.param, max_processes=64)


def test_a_container_has_few_rights_and_sees_nothing_of_the_service(container_lab: Lab) -> None:
    seen = container_lab.run(
        sh(f"grep -E '^(CapEff|NoNewPrivs)' /proc/self/status; ls -A {container_lab.directory}; env")
    )
    lines = dict(line.split(":\t") for line in record(seen).stdout.splitlines() if ":\t" in line)
    assert int(lines["CapEff"], 16) & (1 << 13) == 0, "NET_RAW"
    assert lines["NoNewPrivs"] == "1"
    assert "tasks" not in record(seen).stdout and "POIESIS" not in record(seen).stdout


def test_processes_of_a_container_are_bounded(container_lab: Lab) -> None:
    seen = container_lab.run(sh("i=0; while [ $i -lt 1000 ]; do sleep 60 & i=$((i+1)); done; echo all of them"))
    assert "all of them" not in record(seen).stdout and not record(seen).ok


@pytest.mark.parametrize(
    "script", ["head -c 200000000 /dev/zero > /work/big", "cd /poiesis/control && seq 100000 | xargs touch"]
)
def test_files_of_a_container_are_bounded(container_lab: Lab, script: str) -> None:
    seen = container_lab.run(
        sh(f"{script}; sleep 60; echo survived"), volumes=("/work",), resources=Resources(disk_gb=0.01)
    )
    assert record(seen).reason == "DiskLimit" and "survived" not in record(seen).stdout


def test_declared_output_directories_exist_before_the_first_command(lab: Lab, tmp_path: Path) -> None:
    seen = lab.run(
        sh("echo x > /out/d/x && echo y > /deep/er/y.txt && echo z > /opt/mine/z && echo written"),
        outputs=(
            Output("/out/d", f"file://{tmp_path}/d", type=FileType.DIRECTORY),
            Output("/opt/mine", f"file://{tmp_path}/mine", type=FileType.DIRECTORY),
            Output("/deep/er/*.txt", f"file://{tmp_path}/e", path_prefix="/deep"),
        ),
    )
    assert record(seen).stdout == "written\n", record(seen).stderr
