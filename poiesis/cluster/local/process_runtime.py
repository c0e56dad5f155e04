"""Commands as plain processes of this machine, isolated by namespaces (`sandbox.py`). Images are not used.

What a command sees: the host's programs, libraries and a few files of /etc, read-only (`VISIBLE`, `VISIBLE_ETC`, and what the site lists);
its task's paths; private `/tmp`, `/var/tmp`, `/dev/shm`, `/run` and process list; the network as it is. Nothing else exists there: no
home directories, no service directory, environment or credential files, no sockets of the host's services. When the service is root,
commands run as an unprivileged user (`nobody`), who is given the volume; else as the service's user in a user namespace. Neither has a
capability or can get one.

Whether a command is alive is known by process id and start time, which the sandbox has written before the launcher begins; a lock that
is held until the launcher runs prevents a second start.
"""

from __future__ import annotations

import contextlib
import itertools
import marshal
import os
import pwd
import re
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from poiesis.cluster.local import cgroups, sandbox
from poiesis.cluster.local.pod import Command, LocalPod, Member
from poiesis.cluster.local.runtime import Ending, RunState, Runtime, Signal, StartFailed, launcher_arguments
from poiesis.cluster.local.streams import TailReader
from poiesis.cluster.local.task_directory import TaskDirectory, acquire_lock, read_bounded, read_document, remove_tree
from poiesis.domain.paths import is_within
from poiesis.domain.task import TaskId

START_SECONDS: Final = 60.0  # for the sandbox to be set up, on a very busy machine
NOBODY: Final = 65534
DEFAULT_MAX_PROCESSES: Final = 512
PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DEFAULT_WORKDIR: Final = "/tmp"
VISIBLE: Final = """
    /bin /sbin /usr /lib /lib32 /lib64 /libx32 /opt /nix/store /gnu/store /sys/devices/system /var/cache/fontconfig
    /var/lib/ghostscript /var/lib/texmf
"""
VISIBLE_ETC: Final = """
    alternatives bash* ca-certificates* crypto-policies debian_version fonts group host.conf hostname hosts inputrc
    java* ImageMagick* ld.so.* locale* localtime lsb-release magic* mime.types networks nsswitch.conf OpenCL
    openmpi* os-release passwd perl pki/ca-trust pki/tls/cert* profile* protocols python* R *-release resolv.conf
    rpc services shells ssl/certs ssl/*.cnf ssl/*.pem terminfo texmf timezone vulkan xdg
"""
CREDENTIALS: Final = re.compile(r"(POIESIS|AWS|GOOGLE|AZURE)_\w*(FILE|CREDENTIALS)|KUBECONFIG|NETRC|PGPASSFILE")
HOME_SECRETS: Final = ".aws .azure .config .docker .git-credentials .gnupg .kube .netrc .pgpass .ssh"


def credential_files(environ: Mapping[str, str]) -> tuple[Path, ...]:
    """Files that the service's variables name as secrets: hidden wherever they are. CA certificates are not secrets."""
    paths = (
        Path(v) for n, v in environ.items() if CREDENTIALS.fullmatch(n) and not re.search(r"_(CA|CERT)\w*_FILE", n)
    )
    return tuple(p for p in paths if p.is_absolute() and os.path.isfile(p))


class ProcessRuntime(Runtime):
    """`visible`: directories of the host that commands see, read-only, beside `VISIBLE`. `hidden`: directories and files below them that
    they do not see. `max_processes`: of one command, threads included."""

    pulls = False

    def __init__(
        self,
        directory: Path,
        launcher: Path,
        *,
        hidden: Iterable[Path] = (),
        visible: Iterable[Path] = (),
        max_processes: int = DEFAULT_MAX_PROCESSES,
    ) -> None:
        self.directory = directory.resolve()
        self.launcher = launcher.resolve()
        self.tails = TailReader()
        self.boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        self.is_root = os.geteuid() == 0
        self.userns = not self.is_root
        self.groups: cgroups.Groups | None = None
        homes = {Path(os.environ.get("HOME", "/root"))}
        with contextlib.suppress(KeyError):
            homes.add(Path(pwd.getpwuid(os.geteuid()).pw_dir))
        listed = {Path(os.path.realpath(v)) for v in visible}
        links = {link for v in visible for link in _links_on(Path(os.path.abspath(v)))}
        etc = (p for pattern in VISIBLE_ETC.split() for p in Path("/etc").glob(pattern))
        shown = {*(Path(p) for p in VISIBLE.split()), *etc, *listed}
        resolver = Path("/etc/resolv.conf").resolve()
        if resolver.is_file() and resolver.is_relative_to("/run"):  # hidden otherwise, and then no host is found
            shown.add(resolver)
        secret = {*homes, *hidden, self.directory, *(home / name for home in homes for name in HOME_SECRETS.split())}
        concealed = {p.resolve() for p in secret if os.path.exists(p)} - {Path("/"), *listed}
        self.hidden = tuple(sorted(p for p in concealed if _is_within_any(p, shown)))
        present = {p for p in shown if os.path.lexists(p) and not _is_within_any(p, self.hidden)}
        self.visible = tuple(sorted(present | links))
        self.shown = tuple(sorted(p for p in listed if os.path.exists(p) and _is_within_any(p, self.hidden)))
        self.max_processes = max_processes
        self.separate = False
        self.has_scopes = sandbox.has_landlock_scopes()

    @property
    def owner(self) -> tuple[int, int]:
        """User and group of the commands."""
        return (os.geteuid(), os.getegid()) if self.userns else (NOBODY, NOBODY)

    def describe(self) -> str:
        parents = self.groups.parents if self.groups is not None else {}
        open_ends = ["the network (a task can connect to services on this machine, also on localhost)"]
        open_ends += [] if self.has_scopes else ["abstract UNIX sockets"]
        open_ends += [] if self.separate or self.userns else ["kernel keys of one user"]
        unbounded = [] if "memory" in parents else ["memory"]
        unbounded += [] if self.separate or "pids" in parents else ["the number of processes"]
        return (
            "Commands run as plain processes in a sandbox: container images are not used, commands are programs of this machine, "
            "and its files are read-only; home directories and credentials are not visible. "
            f"Not isolated: {', '.join(open_ends)}."
            + (f" Not limited on this system: {', '.join(unbounded)}." if unbounded else "")
        )

    def probe(self) -> None:
        """Run `true` in the sandbox: with and without control groups, and with and without a user namespace for each command."""
        groups = cgroups.find()
        error: StartFailed | None = None
        choices = itertools.product(
            (False, True) if self.is_root else (True,),
            (True, False) if _counts_processes() else (False,),
            (groups, None) if groups is not None else (None,),
        )
        for self.userns, self.separate, self.groups in choices:
            try:
                return self._try_out()
            except StartFailed as failure:
                error = failure
        assert error is not None
        raise error

    def _try_out(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".trial-", dir=self.directory) as trial:
            name = TaskId(f"trial-{secrets.token_hex(8)}")  # names of control groups are shared by the whole machine
            task_dir = TaskDirectory(Path(trial), name, 1)
            task_dir.make()
            member = Member("trial", Command("", ("true",), memory_bytes=64 << 20, grace_s=0))
            pod = LocalPod(name, 1, "trial", (member,))
            run = self.run(task_dir, pod, member)
            stop = Signal()
            try:
                run.start()
                if not run.wait(stop, START_SECONDS):
                    run.kill()
                    run.wait(stop, 5)
                    raise StartFailed("SandboxFailed", "a trial run timed out")
                document = read_document(task_dir.control("trial") / "trial.json")
                if document is None or document.get("ok") is not True:
                    message = run.ending().message or str((document or {}).get("message"))
                    raise StartFailed("SandboxFailed", message)
            finally:
                run.clean()
                stop.close()

    def run(self, task_dir: TaskDirectory, pod: LocalPod, member: Member) -> ProcessRun:
        return ProcessRun(self, task_dir, pod, member)

    def hand_over(self, task_dir: TaskDirectory) -> None:
        if not self.userns and task_dir.volume.exists():
            _change_owner(task_dir.volume, *self.owner)

    def release(self, task_dir: TaskDirectory) -> None:
        """Remove control groups of commands whose end was recorded just before this process was killed."""
        if self.groups is not None:
            for control in (task_dir.path / "control").glob("*"):  # created before the group
                if not self.groups.group(_group_name(task_dir, control.name)).remove():
                    raise StartFailed("ControlGroup", f"the control group of {control.name} is still in use")

    def close(self) -> None:
        self.tails.close()


class ProcessRun:
    def __init__(self, runtime: ProcessRuntime, task_dir: TaskDirectory, pod: LocalPod, member: Member) -> None:
        assert member.command is not None
        self._runtime = runtime
        self._task_dir = task_dir
        self._pod = pod
        self._name = member.name
        self._command = member.command
        self._group_name = _group_name(task_dir, member.name)

    # ---- state

    def state(self) -> RunState:
        with self._locked():
            process = self._process()
            if process is None:
                return RunState.ABSENT
            return RunState.RUNNING if _is_alive(*process) else RunState.ENDED

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        """Wait until no sandbox of this command is being set up, such as one that an earlier process started."""
        try:
            fd = acquire_lock(self._task_dir.state(self._name, "lock"), START_SECONDS)
        except TimeoutError:
            raise StartFailed("SandboxFailed", "an earlier run of this command has not ended") from None
        try:
            yield fd
        finally:
            os.close(fd)

    def _process(self) -> tuple[int, int] | None:
        """Process id and start time, once the sandbox has written them. (0, 0) after a reboot."""
        document = read_document(self._task_dir.state(self._name, "pid"))
        if document is None:
            return None
        if document["boot"] != self._runtime.boot:
            return (0, 0)
        return (int(document["pid"]), int(document["start"]))

    # ---- start

    def start(self) -> None:
        task_dir, name = self._task_dir, self._name
        for stream in ("stdout", "stderr"):
            with contextlib.suppress(FileExistsError):
                os.mkfifo(task_dir.log(name, stream), 0o600)
        try:
            spec = self._spec()
        except OSError as error:
            raise StartFailed("SandboxFailed", f"{name}: {error}") from error
        task_dir.state(name, "spec").write_bytes(marshal.dumps(spec))
        self._follow_tails()
        with self._locked() as lock, open(task_dir.log(name, "setup"), "wb") as errors:
            if self._process() is not None:
                return
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", sandbox.__file__, str(task_dir.state(name, "spec"))],
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                cwd="/",
                env={},
                pass_fds=(lock,),
                start_new_session=True,
            )
            try:
                code = process.wait(START_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                code = -9
        if code != 0 and self._process() is None:
            raise StartFailed(
                "SandboxFailed", f"{name}: {self._setup_errors() or f'the sandbox ended with exit code {code}'}"
            )

    def _spec(self) -> dict[str, Any]:
        runtime, task_dir, name, command = self._runtime, self._task_dir, self._name, self._command
        control = task_dir.control(name)
        control.mkdir(mode=0o700, exist_ok=True)
        workdir = command.workdir or DEFAULT_WORKDIR
        points = self._points(workdir)
        groups: list[str] = []
        if runtime.groups is not None:
            group = runtime.groups.make(
                self._group_name, memory_bytes=command.memory_bytes, max_processes=runtime.max_processes
            )
            groups = [str(p) for p in group.members]
            for part, shown in group.shown:
                points[f"/poiesis/cgroup/{part}".rstrip("/")] = {"kind": "ro", "source": str(shown)}
        if not runtime.userns:
            os.chown(control, *runtime.owner)
        environment = {"PATH": PATH, "LANG": "C.UTF-8", "HOME": workdir, **command.env}
        argv = launcher_arguments(
            "/poiesis/launcher",
            "/proc/self/fd/0",
            name,
            command,
            workdir,
            cgroup_root="/poiesis/cgroup" if groups else None,
        )
        return {
            "userns": runtime.userns,
            "separate": runtime.separate,
            "max_processes": runtime.max_processes,
            "uid": runtime.owner[0],
            "gid": runtime.owner[1],
            "top": str(task_dir.top),
            "visible": [str(p) for p in runtime.visible],
            "points": points,
            "control": str(control),
            "cgroups": groups,
            "streams": [str(task_dir.log(name, s)) for s in ("stdout", "stderr")],
            "pid_file": str(task_dir.state(name, "pid")),
            "boot": runtime.boot,
            "argv": argv,
            "env": environment,
        }

    def _points(self, workdir: str) -> dict[str, dict[str, Any]]:
        """What the sandbox mounts at which path (`sandbox.Root`), beside the host's visible directories."""
        runtime, task_dir = self._runtime, self._task_dir
        points: dict[str, dict[str, Any]] = {str(p): {"kind": "hidden"} for p in runtime.hidden}
        points |= {"/proc": {"kind": "proc"}, "/dev": {"kind": "dev"}, "/run": {"kind": "tmpfs"}}
        points |= {str(p): {"kind": "ro", "source": str(p)} for p in runtime.shown}
        scratch = task_dir.scratch(self._name)
        remove_tree(scratch)  # of an earlier start that failed
        for path, directory in (("/tmp", scratch / "tmp"), ("/var/tmp", scratch / "var-tmp")):
            directory.mkdir(parents=True)
            directory.chmod(0o1777)
            points[path] = {"kind": "rw", "source": str(directory), "fill": True}
        mounts = {m.path: str(task_dir.mount_source(m)) for m in self._pod.mounts}
        points |= {path: {"kind": "rw", "source": source, "task": True} for path, source in mounts.items()}
        own = (*mounts, "/tmp", "/var/tmp")
        is_visible = os.path.isdir(workdir) and _is_within_any(Path(workdir), (*runtime.visible, *runtime.shown))
        if workdir != "/" and not any(is_within(workdir, p) for p in own) and not is_visible:
            points[workdir.rstrip("/")] = {"kind": "scratch", "task": True}
        points["/poiesis/launcher"] = {"kind": "ro", "source": str(runtime.launcher)}
        return points

    def _follow_tails(self) -> None:
        for stream in ("stdout", "stderr"):
            self._runtime.tails.follow(self._task_dir.log(self._name, stream), self._command.tail_bytes)

    # ---- while it runs

    def wait(self, stop: Signal, seconds: float) -> bool:
        self._follow_tails()
        process = self._process()
        if process is None or process[0] <= 0:
            return True
        pid, start = process
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            return True
        try:
            ended = not _is_alive(pid, start) or stop.wait(seconds, fd)
        finally:
            os.close(fd)
        if ended:
            _reap(pid)
        return ended

    def terminate(self) -> None:
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        process = self._process()
        if process is None or process[0] <= 0:
            return
        with contextlib.suppress(ProcessLookupError):
            fd = os.pidfd_open(process[0])
            try:
                if _is_alive(*process):
                    signal.pidfd_send_signal(fd, number)
            finally:
                os.close(fd)

    def tails(self) -> tuple[str, str]:
        tails, task_dir = self._runtime.tails, self._task_dir
        return tails.text(task_dir.log(self._name, "stdout")), tails.text(task_dir.log(self._name, "stderr"))

    # ---- the end

    def ending(self) -> Ending:
        groups = self._runtime.groups
        killed = groups is not None and groups.group(self._group_name).kill_count() > 0
        return Ending(oom_killed=killed, message=self._setup_errors())

    def _setup_errors(self) -> str | None:
        data = read_bounded(self._task_dir.log(self._name, "setup"), 64 * 1024)
        return data.decode(errors="replace").strip()[:500] or None if data else None

    def clean(self) -> None:
        for stream in ("stdout", "stderr"):
            self._runtime.tails.stop(self._task_dir.log(self._name, stream))
            self._task_dir.log(self._name, stream).unlink(missing_ok=True)
        remove_tree(self._task_dir.scratch(self._name))
        if self._runtime.groups is not None:
            self._runtime.groups.group(self._group_name).remove()


def _group_name(task_dir: TaskDirectory, name: str) -> str:
    return f"{task_dir.name}-{name}"


def _links_on(path: Path) -> Iterator[Path]:
    """The symbolic links that are followed from an absolute path, each by a path without further links. A loop ends after 40 links."""
    at, left, count = Path("/"), list(reversed(path.parts[1:])), 0
    while left and count < 40:
        name = left.pop()
        step = at.parent if name == ".." else at / name
        if not step.is_symlink():
            at = step
            continue
        yield step
        count += 1
        target = Path(os.readlink(step))
        at = Path("/") if target.is_absolute() else at
        left += reversed(target.parts[target.is_absolute() :])


def _is_within_any(path: Path, directories: Iterable[Path]) -> bool:
    return any(is_within(str(path), str(d)) for d in directories)


def _counts_processes() -> bool:
    """Whether the kernel counts processes for each user namespace (Linux 5.14)."""
    major, minor = os.uname().release.split(".")[:2]
    return (int(major), int(re.match(r"\d*", minor)[0] or 0)) >= (5, 14)  # type: ignore[index]


def _change_owner(top: Path, uid: int, gid: int) -> None:
    """Of everything below `top`; of links, not of their targets."""
    for _, _, files, fd in os.fwalk(top, follow_symlinks=False):
        os.fchown(fd, uid, gid)
        for name in files:
            with contextlib.suppress(FileNotFoundError):
                os.chown(name, uid, gid, dir_fd=fd, follow_symlinks=False)


def _is_alive(pid: int, start: int) -> bool:
    """Whether that process exists and is not a zombie."""
    if pid <= 0:
        return False
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rsplit(b")", 1)[1].split()
    except (OSError, IndexError):
        return False
    return fields[0] not in (b"Z", b"X") and int(fields[19]) == start


def _reap(pid: int) -> None:
    """The process is our child unless an earlier process started it."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
