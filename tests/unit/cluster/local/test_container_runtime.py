"""Calls to an engine and the interpretation of its responses, with a fake docker of a few lines of shell."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path

import pytest

from poiesis.cluster.local.container_runtime import ContainerRun, ContainerRuntime, bind
from poiesis.cluster.local.pod import Command, LocalPod, Member
from poiesis.cluster.local.runtime import RunState, Signal, StartFailed
from poiesis.cluster.local.runtime_selection import select_runtime
from poiesis.cluster.local.task_directory import TaskDirectory
from poiesis.domain.errors import ConfigurationError
from poiesis.domain.plan import Mount
from poiesis.domain.task import TaskId

ENGINE = """#!/bin/sh
case "$1" in image|ps) ;; *) for a in "$@"; do printf '%s\\0' "$a"; done >> "$ANSWERS/calls"; printf '\\n' >> "$ANSWERS/calls";; esac
key=$1; [ "$key" = container ] && key=inspect
[ -e "$ANSWERS/$key.out" ] && cat "$ANSWERS/$key.out"
[ -e "$ANSWERS/$key.err" ] && { cat "$ANSWERS/$key.err" >&2; exit 125; }
exit 0
"""


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory: `<verb>.out` is printed, `<verb>.err` makes it fail; `calls` records the calls."""
    path = tmp_path / "answers"
    path.mkdir()
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "docker").write_text(ENGINE)
    (programs / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("ANSWERS", str(path))
    return path


@pytest.fixture
def runtime(tmp_path: Path, answers: Path) -> ContainerRuntime:
    (tmp_path / "launcher").write_text("")
    (tmp_path / "launcher").chmod(0o755)
    return ContainerRuntime("docker", tmp_path / "service", tmp_path / "launcher")


COMMAND = Command("image:1", ("print", "a b", "--rm"), env={"A": "1\n2 $X", "B": ""}, memory_bytes=1000, tail_bytes=7)


def run_of(runtime: ContainerRuntime, tmp_path: Path) -> tuple[ContainerRun, TaskDirectory]:
    task_dir = TaskDirectory(tmp_path / "service" / "tasks", TaskId("a"), 1)
    task_dir.make()
    task_dir.volume.mkdir(exist_ok=True)
    member = Member("executor-0", COMMAND)
    return runtime.run(
        task_dir, LocalPod(TaskId("a"), 1, "task", (member,), (Mount("/a,b", "root/a,b"),)), member
    ), task_dir


def asked(answers: Path) -> list[list[str]]:
    path = answers / "calls"
    return [line.split("\0") for line in path.read_text().split("\0\n")[:-1]] if path.exists() else []


def test_values_reach_the_engine_as_they_are(runtime: ContainerRuntime, tmp_path: Path, answers: Path) -> None:
    run, task_dir = run_of(runtime, tmp_path)
    assert run.state() is RunState.ABSENT
    run.start()
    (words,) = asked(answers)
    image = words.index("image:1")
    assert words[:2] == ["run", "--detach"] and words[image - 1] == "--"
    options, argv = words[2 : image - 1], words[image + 1 :]
    assert argv[argv.index("--") + 1 :] == ["print", "a b", "--rm"]
    assert options[options.index("--name") + 1] == "poiesis-a-1-executor-0"
    assert options[options.index("--entrypoint") + 1] == "/poiesis/launcher"
    assert [options[i + 1] for i, o in enumerate(options) if o == "--env"] == ["A=1\n2 $X", "B="]
    assert f'type=bind,"source={task_dir.volume}/root/a,b","target=/a,b"' in options
    assert {"--memory=1000", "--memory-swap=1000"} <= set(options)
    assert task_dir.state("executor-0", "created").exists()


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ("created", RunState.ABSENT),
        ("running", RunState.RUNNING),
        ("paused", RunState.RUNNING),
        ("exited", RunState.ENDED),
    ],
)
def test_a_container_of_an_earlier_process_is_recognized(
    runtime: ContainerRuntime, tmp_path: Path, answers: Path, status: str, state: RunState
) -> None:
    run, task_dir = run_of(runtime, tmp_path)
    task_dir.note("executor-0", "intent")
    (answers / "inspect.out").write_text(json.dumps({"Status": status}))
    assert run.state() is state


def test_a_container_that_was_created_but_not_started_is_started(
    runtime: ContainerRuntime, tmp_path: Path, answers: Path
) -> None:
    run, task_dir = run_of(runtime, tmp_path)
    task_dir.note("executor-0", "intent")
    (answers / "inspect.out").write_text('{"Status": "created"}')
    run.start()
    assert asked(answers)[-1] == ["start", "--", "poiesis-a-1-executor-0"]


def test_a_container_removed_from_outside_is_not_created_again(
    runtime: ContainerRuntime, tmp_path: Path, answers: Path
) -> None:
    run, task_dir = run_of(runtime, tmp_path)
    task_dir.note("executor-0", "intent")
    (answers / "inspect.err").write_text("Error: No such container: poiesis-a-1-executor-0")
    assert run.state() is RunState.ABSENT  # it was never created
    task_dir.note("executor-0", "created")
    assert run.state() is RunState.ENDED


def test_an_unavailable_engine_is_not_a_missing_container(
    runtime: ContainerRuntime, tmp_path: Path, answers: Path
) -> None:
    run, task_dir = run_of(runtime, tmp_path)
    task_dir.note("executor-0", "intent")
    (answers / "inspect.err").write_text("Cannot connect to the Docker daemon")
    with pytest.raises(StartFailed, match="Cannot connect"):
        run.state()


def test_a_launcher_is_alive_while_it_holds_its_lock(runtime: ContainerRuntime, tmp_path: Path, answers: Path) -> None:
    run, task_dir = run_of(runtime, tmp_path)
    task_dir.control("executor-0").mkdir()
    up, record = (task_dir.control("executor-0") / f"executor-0.{s}" for s in ("up", "json"))
    stop = Signal()
    with open(up, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        record.write_text("{}")  # forged, or from a launcher that is about to end
        assert not run.wait(stop, 0.1)
    assert run.wait(stop, 10)
    stop.close()
    assert asked(answers) == []


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("Error response from daemon: manifest unknown", "ImageRefused"),
        ("pull access denied for x, repository does not exist", "ImageRefused"),
        ("invalid reference format", "ImageRefused"),
        ("dial tcp: lookup registry: no such host", "ErrImagePull"),
        ("TLS handshake timeout", "ErrImagePull"),
    ],
)
def test_refused_images_are_distinguished_from_failures(
    runtime: ContainerRuntime, answers: Path, words: str, reason: str
) -> None:
    (answers / "image.err").write_text("no such image")
    (answers / "pull.err").write_text(words)
    with pytest.raises(StartFailed, match="image:1") as caught:
        runtime.pull("image:1")
    assert caught.value.reason == reason


def test_a_present_image_is_not_pulled(runtime: ContainerRuntime, answers: Path) -> None:
    runtime.pull("image:1")
    (answers / "image.err").write_text("gone")
    runtime.pull("image:1")  # cached for a while
    assert asked(answers) == []


def test_an_option_is_not_an_image(runtime: ContainerRuntime) -> None:
    with pytest.raises(StartFailed) as caught:
        runtime.pull("--privileged")
    assert caught.value.reason == "InvalidImageName"


def test_containers_without_a_task_directory_are_removed(runtime: ContainerRuntime, answers: Path) -> None:
    (answers / "ps.out").write_text("poiesis-a-1-executor-0\npoiesis-b-1-executor-0\n")
    runtime.sweep({"poiesis-a-1"})
    runtime.close()
    assert asked(answers) == [["rm", "--force", "--volumes", "--", "poiesis-b-1-executor-0"]]


def test_files_are_taken_back_without_an_image_of_a_task(
    runtime: ContainerRuntime, tmp_path: Path, answers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dynamic program in a task's image would load what the image tells its loader to, as root."""
    _, task_dir = run_of(runtime, tmp_path)
    (answers / "image.out").write_text("an-image-of-a-task\n")
    (answers / "import.out").write_text("sha256:empty\n")
    uid = os.geteuid() + 1000
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    runtime.take_back(task_dir)
    imported, words = asked(answers)
    assert imported[0] == "import" and not Path(imported[-1]).exists()
    image = words.index("sha256:empty")
    assert words[image - 1] == "--" and "an-image-of-a-task" not in words
    assert words[image + 1 :] == ["-R", f"{uid}:{os.getegid()}", "--", "/poiesis/volume", "/poiesis/control"]
    writable = [w for w in words if w.startswith("type=bind") and not w.endswith(",readonly")]
    assert writable == [
        f"type=bind,source={task_dir.volume},target=/poiesis/volume",
        f"type=bind,source={task_dir.path}/control,target=/poiesis/control",
    ]


def test_fields_of_a_mount_may_contain_any_text() -> None:
    assert bind(Path('/a"b,c'), "/x", read_only=True) == 'type=bind,"source=/a""b,c",target=/x,readonly'


def test_the_first_engine_that_responds_is_used(tmp_path: Path, answers: Path, runtime: ContainerRuntime) -> None:
    (answers / "--version.out").write_text("Docker version 99\n")
    chosen = select_runtime("auto", tmp_path / "service", tmp_path / "launcher")
    assert chosen.describe() == "Commands run in containers of their images, by Docker version 99."
    chosen.close()


def test_an_unresponsive_engine_is_reported_with_what_to_do(
    tmp_path: Path, answers: Path, runtime: ContainerRuntime
) -> None:
    (answers / "ps.err").write_text("the daemon is not running")
    with pytest.raises(ConfigurationError, match=r"docker: the daemon is not running.*Start docker"):
        select_runtime("docker", tmp_path / "service", tmp_path / "launcher")


def test_without_a_launcher_nothing_runs(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="make launcher"):
        select_runtime("process", tmp_path, tmp_path / "none")


def test_an_unknown_runtime_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="must be one of auto, docker, podman, process"):
        select_runtime("rkt", tmp_path, tmp_path)
