"""Commands in containers of docker or podman, run by their command line, which is the same for both.

A container is detached and named after task, attempt and executor, so that it outlives this process and can be found by its name. Its
entry point is the launcher, which is bound into it as `/poiesis/launcher`; the record comes back through the bound control directory.
A running launcher holds a lock on its `.up` file; the engine is asked only when in doubt.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import re
import shutil
import stat
import subprocess
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from poiesis.cluster.local.pod import LocalPod, Member
from poiesis.cluster.local.runtime import Ending, RunState, Runtime, Signal, StartFailed, launcher_arguments
from poiesis.cluster.local.task_directory import TaskDirectory
from poiesis.domain.naming import object_name

log = logging.getLogger(__name__)

PROBE_SECONDS: Final = 10.0
CALL_SECONDS: Final = 120.0
PULL_SECONDS: Final = 3600.0
LOGS_SECONDS: Final = 5.0
CALLS_AT_ONCE: Final = 8  # the engines' clients are large programs
IMAGE_KNOWN: Final = 30.0  # seconds for which an image that was present is assumed to be present
MAX_MESSAGE: Final = 500
POLL: Final = (0.01, 0.25)  # seconds: first and longest pause between checks of the control directory
INSPECT_EVERY: Final = 2.0
EMPTY_TAR_BYTES: Final = 10240  # of zeros
LABEL: Final = "org.poiesis.directory"
_REFUSED: Final = re.compile(
    r"invalid reference|manifest unknown|manifest for .* not found|name unknown|unauthorized|access denied|"
    r"access to the resource is denied|authentication required|repository does not exist|short-name|"
    r"not resolve to a fully-qualified|no such image",
    re.IGNORECASE,
)
_LOG_OPTIONS: Final = {
    "docker": ["--log-driver", "json-file", "--log-opt", "max-size=1m"],
    "podman": ["--log-driver", "k8s-file", "--log-opt", "max-size=1mb"],
}


class ContainerRuntime(Runtime):
    """`engine`: docker or podman."""

    pulls = True

    def __init__(self, engine: str, directory: Path, launcher: Path, *, max_processes: int = 512) -> None:
        self.engine = engine
        self.directory = directory.resolve()
        self.launcher = launcher.resolve()
        self.max_processes = max_processes
        self._version = engine
        self._calls = threading.BoundedSemaphore(CALLS_AT_ONCE)
        self._pulling = threading.Lock()
        self._known: dict[str, float] = {}
        self._later = ThreadPoolExecutor(2, thread_name_prefix="containers")

    def describe(self) -> str:
        return f"Commands run in containers of their images, by {self._version}."

    def probe(self) -> None:
        answer = self.call("ps", "--quiet", "--filter", f"label={LABEL}=none", seconds=PROBE_SECONDS)
        if answer.returncode != 0:
            raise StartFailed("NoEngine", last_line(answer.stderr) or "no answer")
        if self.engine == "podman":
            self._try_out()
        version = self.call("--version", seconds=PROBE_SECONDS).stdout.decode(errors="replace").strip()
        self._version = version[:100] or self.engine

    def _try_out(self) -> None:
        """Podman responds even where it cannot run containers; it can run a directory, so this test needs no image."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".trial-", dir=self.directory) as trial:
            for name in ("dev", "etc", "proc", "run", "sys", "tmp"):
                os.mkdir(os.path.join(trial, name))
            shutil.copy(self.launcher, os.path.join(trial, "launcher"))
            answer = self.call(
                "run", "--rm", "--network=none", "--rootfs", trial, "/launcher", "--version", seconds=CALL_SECONDS
            )
        if answer.returncode != 0:
            raise StartFailed("NoEngine", f"cannot run a container: {last_line(answer.stderr)}")

    def call(self, *arguments: str, seconds: float = CALL_SECONDS) -> subprocess.CompletedProcess[bytes]:
        """Run the engine's client. A time-out or a missing client is reported as exit code 125 with a message."""
        argv = [self.engine, *arguments]
        with self._calls:
            try:
                return subprocess.run(
                    argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds, check=False, cwd="/"
                )
            except subprocess.TimeoutExpired:
                words = f"{self.engine} {arguments[0]} did not answer within {seconds:g} s"
            except OSError as error:
                words = f"{self.engine}: {error.strerror}"
        return subprocess.CompletedProcess(argv, 125, b"", words.encode())

    def pull(self, image: str) -> None:
        if image.startswith("-"):
            raise StartFailed("InvalidImageName", f"invalid image name {image!r}: must not begin with a hyphen")
        if self._is_known(image):
            return
        with self._pulling:  # one at a time: most tasks need the same few images
            if self._is_known(image):
                return
            if self.call("image", "inspect", "--format", "x", "--", image).returncode != 0:
                answer = self.call("pull", "--quiet", "--", image, seconds=PULL_SECONDS)
                if answer.returncode != 0:
                    words = last_line(answer.stderr)
                    raise StartFailed("ImageRefused" if _REFUSED.search(words) else "ErrImagePull", f"{image}: {words}")
            self._known[image] = time.monotonic()

    def _is_known(self, image: str) -> bool:
        return time.monotonic() - self._known.get(image, -IMAGE_KNOWN) < IMAGE_KNOWN

    def forget_image(self, image: str) -> None:
        self._known.pop(image, None)

    def run(self, task_dir: TaskDirectory, pod: LocalPod, member: Member) -> ContainerRun:
        return ContainerRun(self, task_dir, pod, member)

    def take_back(self, task_dir: TaskDirectory) -> None:
        """Unless this process is root, files created by containers may belong to other users: change their owner with the engine's help."""
        if os.geteuid() == 0 or not _has_foreign(task_dir.path):
            return
        if self.engine == "podman":
            answer = self.call("unshare", "chown", "-R", "0:0", "--", str(task_dir.path))
        else:
            answer = self._change_owner(task_dir)
        if answer.returncode != 0:
            log.warning("take_back_failed", extra={"task_id": task_dir.task_id, "error": last_line(answer.stderr)})

    def _change_owner(self, task_dir: TaskDirectory) -> subprocess.CompletedProcess[bytes]:
        """Run the host's `chown` as root in a container that has only what containers of the task can write. Its image is empty: one
        of a task could make the program load code of the image (`LD_PRELOAD`, `/etc/ld.so.preload`), which would run as root too."""
        with tempfile.NamedTemporaryFile(prefix=".empty-", suffix=".tar", dir=self.directory) as archive:
            archive.write(bytes(EMPTY_TAR_BYTES))
            archive.flush()
            made = self.call("import", "--", archive.name)
        if made.returncode != 0:
            return made
        image = made.stdout.decode().strip()
        written = [p for p in (task_dir.volume, task_dir.path / "control") if p.is_dir()]
        binds = [bind(Path(p), p, read_only=True) for p in ("/bin", "/lib", "/lib64", "/usr") if os.path.isdir(p)]
        binds += [bind(path, f"/poiesis/{path.name}") for path in written]
        options = ["--rm", "--user", "0:0", "--network", "none", "--entrypoint", "/bin/chown"]
        options += ["--security-opt", "no-new-privileges", "--security-opt", "label=disable"]
        options += ["--cap-drop", "ALL", "--cap-add", "CHOWN", "--cap-add", "DAC_OVERRIDE"]
        options += [o for b in binds for o in ("--mount", b)]
        arguments = ["-R", f"{os.geteuid()}:{os.getegid()}", "--", *(f"/poiesis/{path.name}" for path in written)]
        try:
            return self.call("run", *options, "--", image, *arguments)
        finally:
            self.call("image", "rm", "--", image)

    def release(self, task_dir: TaskDirectory) -> None:
        for path in (task_dir.path / "state").glob("*.intent"):
            self.remove(object_name(task_dir.task_id, task_dir.attempt, path.name.removesuffix(".intent")))

    def remove(self, name: str) -> None:
        """Raises: StartFailed when the engine fails to."""
        answer = self.call("rm", "--force", "--volumes", "--", name)
        if answer.returncode != 0 and not _is_absent(answer):
            raise StartFailed("EngineFailed", f"{name} cannot be removed: {last_line(answer.stderr)}")

    def remove_later(self, name: str) -> None:
        def work() -> None:
            with contextlib.suppress(StartFailed):  # `release` tries again
                self.remove(name)

        with contextlib.suppress(RuntimeError):  # closing
            self._later.submit(work)

    def sweep(self, existing: set[str]) -> None:
        answer = self.call("ps", "--all", "--filter", f"label={LABEL}={self.directory}", "--format", "{{.Names}}")
        for name in answer.stdout.decode(errors="replace").split() if answer.returncode == 0 else ():
            if not any(name.startswith(f"{task_dir}-") for task_dir in existing):
                self.remove_later(name)

    def close(self) -> None:
        self._later.shutdown(wait=True)


class ContainerRun:
    def __init__(self, runtime: ContainerRuntime, task_dir: TaskDirectory, pod: LocalPod, member: Member) -> None:
        assert member.command is not None
        self._runtime = runtime
        self._task_dir = task_dir
        self._pod = pod
        self._name = member.name
        self._command = member.command
        self._container = object_name(pod.task_id, pod.attempt, member.name)
        self._ask_at = time.monotonic() + INSPECT_EVERY

    # ---- state

    def state(self) -> RunState:
        """`intent` is on disk before the container can exist, `created` once it was started."""
        if not self._task_dir.state(self._name, "intent").exists():
            return RunState.ABSENT
        found = self._inspect()
        if found is None:
            began = self._control("begun").exists() or self._task_dir.state(self._name, "created").exists()
            return RunState.ENDED if began else RunState.ABSENT
        status = found.get("Status")
        if status in ("created", "configured", "initialized"):
            return RunState.ABSENT
        return RunState.ENDED if status in ("exited", "dead", "stopped", "removing") else RunState.RUNNING

    def _inspect(self) -> dict[str, Any] | None:
        """The container's state as the engine reports it; None: no such container. Raises: StartFailed when the engine does not answer."""
        answer = self._runtime.call("container", "inspect", "--format", "{{json .State}}", "--", self._container)
        if answer.returncode == 0:
            with contextlib.suppress(ValueError):
                found = json.loads(answer.stdout)
                if isinstance(found, dict):
                    return found
        if _is_absent(answer):
            return None
        raise StartFailed("EngineFailed", last_line(answer.stderr) or "unexpected response from the engine")

    def _control(self, suffix: str) -> Path:
        return self._task_dir.control(self._name) / f"{self._name}.{suffix}"

    # ---- start

    def start(self) -> None:
        control = self._task_dir.control(self._name)
        control.mkdir(exist_ok=True)
        control.chmod(0o777)  # an image may have any user
        if self._task_dir.state(self._name, "intent").exists() and self._inspect() is not None:
            # created by an earlier run of this process, and not started
            answer = self._runtime.call("start", "--", self._container)
        else:
            try:
                options = self._options()
            except OSError as error:
                raise StartFailed("ContainerNotCreated", f"{self._name}: {error}") from error
            self._task_dir.note(self._name, "intent")
            answer = self._runtime.call("run", *options)
        if answer.returncode != 0 and not self._control("begun").exists():
            self._runtime.forget_image(self._command.image)
            raise StartFailed("ContainerNotCreated", f"{self._name}: {last_line(answer.stderr)}")
        self._task_dir.note(self._name, "created")

    def _options(self) -> list[str]:
        """Of `run`; values never pass a shell. Raises: OSError."""
        runtime, command = self._runtime, self._command
        labels = {LABEL: str(runtime.directory), "org.poiesis.task": self._pod.task_id}
        mounts = [
            bind(runtime.launcher, "/poiesis/launcher", read_only=True),
            bind(self._task_dir.control(self._name), "/poiesis/control"),
            *(bind(self._task_dir.mount_source(m), m.path) for m in self._pod.mounts),
        ]
        options = ["--detach", "--name", self._container, "--pull", "never", "--entrypoint", "/poiesis/launcher"]
        options += ["--security-opt", "no-new-privileges", "--security-opt", "label=disable", "--cap-drop", "NET_RAW"]
        options.append(f"--pids-limit={runtime.max_processes}")
        options += _LOG_OPTIONS[runtime.engine]
        if command.memory_bytes is not None:
            options += [f"--memory={command.memory_bytes}", f"--memory-swap={command.memory_bytes}"]
        options += [o for name, value in labels.items() for o in ("--label", f"{name}={value}")]
        options += [o for mount in mounts for o in ("--mount", mount)]
        options += [o for name, value in command.env.items() for o in ("--env", f"{name}={value}")]
        argv = launcher_arguments(
            "", "/poiesis/control", self._name, command, command.workdir, cgroup_root="/sys/fs/cgroup"
        )
        return [*options, "--", command.image, *argv[1:]]

    # ---- while it runs

    def wait(self, stop: Signal, seconds: float) -> bool:
        """Check the control directory often, which is cheap, and query the engine occasionally if the launcher seems to be gone."""
        deadline, was_set, pause = time.monotonic() + seconds, stop.is_set, POLL[0]
        record, up = self._control("json"), self._control("up")
        while True:
            now = time.monotonic()
            if not _is_locked(up) and (os.path.lexists(record) or now >= self._ask_at):
                self._ask_at = now + INSPECT_EVERY
                if os.path.lexists(record) or self._is_over():
                    return True
            if now >= deadline or stop.is_set != was_set:
                return False
            stop.wait(min(pause, max(0.0, deadline - now)))
            pause = min(pause * 1.3, POLL[1])

    def _is_over(self) -> bool:
        try:
            return self.state() is not RunState.RUNNING
        except StartFailed:  # the engine does not respond: retry
            return False

    def terminate(self) -> None:
        self._runtime.call("kill", "--signal", "TERM", "--", self._container)

    def kill(self) -> None:
        self._runtime.call("kill", "--", self._container)

    def tails(self) -> tuple[str, str]:
        answer = self._runtime.call("logs", "--tail", "1000", "--", self._container, seconds=LOGS_SECONDS)
        if answer.returncode != 0:
            return "", ""
        size = self._command.tail_bytes
        out, err = (d[-size:].decode(errors="replace") if size else "" for d in (answer.stdout, answer.stderr))
        return out, err

    # ---- the end

    def ending(self) -> Ending:
        try:
            found = self._inspect()
        except StartFailed as error:
            return Ending(message=str(error))
        if found is None:
            return Ending(message="the container no longer exists")
        words = found.get("Error") or f"the container ended with exit code {found.get('ExitCode')}"
        return Ending(oom_killed=found.get("OOMKilled") is True, message=str(words)[:MAX_MESSAGE])

    def clean(self) -> None:
        if self._task_dir.state(self._name, "intent").exists():
            self._runtime.remove_later(self._container)


def bind(source: Path, target: str, *, read_only: bool = False) -> str:
    """The value of `--mount`, in which fields are separated as in a CSV file."""
    fields = ["type=bind", f"source={source}", f"target={target}"]
    quoted = ['"' + f.replace('"', '""') + '"' if any(c in f for c in ',"\n') else f for f in fields]
    return ",".join([*quoted, *(["readonly"] if read_only else [])])


def _is_absent(answer: subprocess.CompletedProcess[bytes]) -> bool:
    return re.search(rb"no such container|no container with", answer.stderr, re.IGNORECASE) is not None


def last_line(output: bytes) -> str:
    """The end of a client's stderr as one line."""
    return " ".join(output[-4 * MAX_MESSAGE :].decode(errors="replace").split())[-MAX_MESSAGE:]


def _is_locked(up: Path) -> bool:
    """Whether a launcher holds the lock of its `.up` file. User code can change the file, so
    links are not followed and opening it never blocks."""
    try:
        fd = os.open(up, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return False
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(fd)
    return False


def _has_foreign(top: Path) -> bool:
    """Whether anything below belongs to another user."""
    uid = os.geteuid()
    for directory, names, files in os.walk(top):
        for name in (*names, *files):
            try:
                if os.lstat(os.path.join(directory, name)).st_uid != uid:
                    return True
            except OSError:
                return True
    return False
