"""The sandbox around one command of the process runtime: a separate program, run as `python -I -S sandbox.py SPEC`.

It creates namespaces for mounts, processes, IPC, host name and users, builds a new root, drops every privilege and becomes the launcher,
which is process 1 there: when it ends, the kernel ends everything that it started.

The new root is a small tmpfs. Only directories of the host on an allow-list (programs, libraries, parts of /etc) are bound into it,
read-only; where one of the task's paths has to be, the directories above it are created on the tmpfs and their other entries are bound one
by one, so that nothing on the host changes.

No process stays behind to wait: the launcher becomes a child of the process that started this program (CLONE_PARENT), and its process id is
on disk before it begins. This program imports little and reads its input with `marshal`, because it runs once for each command.
"""

from __future__ import annotations

import ctypes
import errno
import marshal
import os
import resource
import stat
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID = 0x20000, 0x4000000, 0x8000000, 1 << 28, 1 << 29
CLONE_PARENT, SIGCHLD = 0x8000, 17
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_BIND, MS_REC, MS_PRIVATE = 4096, 1 << 14, 1 << 18
MNT_DETACH = 2
AT_FDCWD, AT_RECURSIVE = -100, 0x8000
PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 4, 24, 38
KEYCTL_JOIN_SESSION_KEYRING = 1
SYS_MOUNT_SETATTR, SYS_LANDLOCK_CREATE, SYS_LANDLOCK_RESTRICT = 442, 444, 446  # the same on all machines
LANDLOCK_VERSION, LANDLOCK_SCOPES = 1, 3  # scopes: abstract UNIX sockets and signals
SYSTEM_CALLS = {  # machine: (clone, pivot_root, keyctl), which the C library does not offer in the shape needed
    "x86_64": (56, 155, 250),
    "aarch64": (220, 41, 219),
    "riscv64": (220, 41, 219),
    "ppc64le": (120, 203, 271),
}
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
DEVICE_LINKS = {"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2"}
BOUNDS = "size=64m,nr_inodes=16k"  # for files outside of the command's own directories; held in memory

_libc = ctypes.CDLL(None, use_errno=True)


class _MountAttributes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "userns")]


def _check(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def _mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    arguments = [None if a is None else os.fsencode(a) for a in (source, target, kind)]
    _check(
        _libc.mount(*arguments, ctypes.c_ulong(flags), None if data is None else os.fsencode(data)), f"mount {target}"
    )


def _restrict(target: str, flags: int) -> None:
    """Add MS_RDONLY, MS_NOSUID, MS_NODEV (the bits of mount_setattr are the same) to a mount and all mounts below it."""
    attributes = _MountAttributes(set=flags)
    result = _libc.syscall(
        SYS_MOUNT_SETATTR,
        AT_FDCWD,
        os.fsencode(target),
        AT_RECURSIVE,
        ctypes.byref(attributes),
        ctypes.sizeof(attributes),
    )
    if result == 0:
        return
    if ctypes.get_errno() != errno.ENOSYS:
        _check(result, f"mount_setattr {target}")
    for path, present in _mounts_below(target):  # Linux before 5.12
        _mount("none", path, None, MS_REMOUNT | MS_BIND | flags | present)


def _mounts_below(target: str) -> list[tuple[str, int]]:
    names = {"ro": MS_RDONLY, "nosuid": MS_NOSUID, "nodev": MS_NODEV, "noexec": MS_NOEXEC, "noatime": 1024}
    found = []
    with open("/proc/self/mountinfo", "rb") as lines:
        for line in lines:
            fields = line.split()
            path = os.fsdecode(fields[4].decode("unicode_escape").encode("latin-1"))
            if path == target or path.startswith(target + "/"):
                found.append((path, sum(names.get(o, 0) for o in fields[5].decode().split(","))))
    return found


def _bind(source: str, target: str, flags: int) -> None:
    _mount(source, target, None, MS_BIND | MS_REC)
    _restrict(target, flags)


class Root:
    """The new root at `top`: the host's `visible` paths, and `points`: path → {kind, source, mode}.

    Kinds: `rw` and `ro` bind a source (`fill`: other points are created in it); `scratch` is a writable directory on the tmpfs, `hidden`
    an empty one or an unreadable file; `tmpfs`, `proc` and `dev` are themselves. Directories that are created above a point of the task
    (`task`) belong to the commands' user.
    """

    def __init__(self, top: str, visible: list[str], points: dict[str, dict[str, Any]], owner: tuple[int, int]) -> None:
        self._top, self._owner = top, owner
        self._visible = {_canonical(path) for path in visible}
        points = {_canonical(path): point for path, point in points.items()}
        self._points = {path: point for path, point in points.items() if not self._is_hidden_already(path, points)}

    def build(self) -> None:
        _mount("poiesis", self._top, "tmpfs", MS_NOSUID | MS_NODEV, f"mode=755,{BOUNDS}")
        self._own(self._top)
        self._fill("/", visible=False)

    def _own(self, new: str) -> None:
        if os.geteuid() != self._owner[0]:
            os.chown(new, *self._owner)

    def _fill(self, directory: str, visible: bool) -> None:
        """Fill a directory on the tmpfs with everything that must be in it. `visible`: including the host's entries."""
        prefix = directory.rstrip("/") + "/"
        names = {p[len(prefix) :].split("/", 1)[0] for p in (*self._points, *self._visible) if p.startswith(prefix)}
        if visible:
            names.update(_listed(directory))
        for name in sorted(names):
            self._place(prefix + name, visible)

    def _place(self, path: str, visible: bool) -> None:
        new, point = self._top + path, self._points.get(path)
        visible = visible or path in self._visible
        if point is not None:
            self._make_for(new, point)
            self._put(new, point)
            if point["kind"] not in ("rw", "ro") or point.get("fill"):
                self._fill(path, visible=False)
            elif _shows_the_host(path, point):
                for p in self._inner(path):
                    if self._points[p]["kind"] == "hidden":
                        self._cover(p)
            return
        inner = self._inner(path)
        mode = _mode(path) if visible else 0
        if stat.S_ISDIR(mode):
            os.mkdir(new, 0o755)
            if all(self._is_replaceable(p) and not _within_any(p, inner) for p in inner):
                if self._bind_host(path, new):
                    for p in inner:
                        self._cover(p)
            else:
                os.chmod(new, stat.S_IMODE(mode) & 0o1777)
                self._fill(path, visible=True)
        elif mode == 0 and visible and not inner:  # on the list, but not on this host
            return
        elif mode == 0 or inner:
            os.mkdir(new, 0o755)
            if any("task" in self._points[p] for p in inner) and not _contains_any(path, self._visible):
                self._own(new)
            self._fill(path, visible=False)
        elif stat.S_ISLNK(mode):
            os.symlink(os.readlink(path), new)
        else:
            _touch(new)
            self._bind_host(path, new)

    def _inner(self, path: str) -> list[str]:
        """The points below a path, in order."""
        return sorted(p for p in self._points if p.startswith(path + "/"))

    def _is_hidden_already(self, path: str, points: dict[str, dict[str, Any]]) -> bool:
        """Whether a point that hides something is below another one that does not show what the host has there."""
        if points[path]["kind"] != "hidden":
            return False
        above = (other for other in (*points, *self._visible) if path.startswith(other + "/"))
        nearest = max(above, key=len, default=None)
        return nearest is not None and nearest in points and not _shows_the_host(nearest, points[nearest])

    def _is_replaceable(self, path: str) -> bool:
        """Whether one mount over what the host has at a point's path is all that the point needs."""
        return _exists_alike(path, self._points[path]) and not _contains_any(path, self._visible)

    def _bind_host(self, path: str, new: str) -> bool:
        try:
            _bind(path, new, MS_RDONLY | MS_NOSUID | MS_NODEV)
        except OSError:  # such as a dead network file system: stays empty
            return False
        return True

    def _cover(self, path: str) -> None:
        """Mount over what the host has at a path."""
        point = self._points[path]
        if point["kind"] == "hidden" and not os.path.isdir(path):
            point = {"kind": "ro", "source": "/dev/null"}  # a device on a mount without devices: cannot be opened
        elif point["kind"] in ("hidden", "scratch"):
            point = {"kind": "tmpfs", "mode": "1777" if point["kind"] == "scratch" else "755"}
        self._put(self._top + path, point)

    def _make_for(self, new: str, point: dict[str, Any]) -> None:
        source = point.get("source")
        if source is not None and not os.path.isdir(source):
            _touch(new)
            return
        os.mkdir(new, 0o755)
        if point["kind"] == "scratch":
            self._own(new)

    def _put(self, new: str, point: dict[str, Any]) -> None:
        kind = point["kind"]
        if kind == "rw":
            _bind(point["source"], new, MS_NOSUID | MS_NODEV)
        elif kind == "ro":
            _bind(point["source"], new, MS_RDONLY | MS_NOSUID | MS_NODEV)
        elif kind == "tmpfs":
            _mount("tmpfs", new, "tmpfs", MS_NOSUID | MS_NODEV, f"mode={point.get('mode', '755')},{BOUNDS}")
        elif kind == "proc":
            _mount("proc", new, "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
        elif kind == "dev":
            self._devices(new)

    def _devices(self, new: str) -> None:
        _mount("dev", new, "tmpfs", MS_NOSUID, "mode=755,size=1m,nr_inodes=256")
        for name in DEVICES:
            if os.path.exists(f"/dev/{name}"):
                _touch(f"{new}/{name}")
                _mount(f"/dev/{name}", f"{new}/{name}", None, MS_BIND)
        for name, target in DEVICE_LINKS.items():
            os.symlink(target, f"{new}/{name}")
        os.mkdir(f"{new}/shm")
        _mount("shm", f"{new}/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777,nr_inodes=16k")
        os.mkdir(f"{new}/pts")
        try:
            _mount("devpts", f"{new}/pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620")
            os.symlink("pts/ptmx", f"{new}/ptmx")
        except OSError:  # terminals are a convenience
            pass


def _canonical(path: str) -> str:
    """Where a path is once the host's links above it are followed; a link at its very end is replaced, not followed."""
    parent, name = os.path.split(path)
    return os.path.join(os.path.realpath(parent), name)


def _shows_the_host(path: str, point: dict[str, Any]) -> bool:
    return point["kind"] == "ro" and point.get("source") == path


def _within_any(path: str, others: Iterable[str]) -> bool:
    return any(path.startswith(other + "/") for other in others)


def _contains_any(path: str, others: Iterable[str]) -> bool:
    return any(other.startswith(path + "/") for other in others)


def _listed(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:  # not readable by us: stays empty
        return []


def _mode(path: str) -> int:
    try:
        return os.lstat(path).st_mode
    except OSError:
        return 0


def _exists_alike(path: str, point: dict[str, Any]) -> bool:
    source = point.get("source")
    wants_directory = source is None or os.path.isdir(source)
    mode = _mode(path)
    if point["kind"] == "hidden":
        return stat.S_ISDIR(mode) or stat.S_ISREG(mode)
    return os.path.realpath(path) == path and (stat.S_ISDIR(mode) if wants_directory else stat.S_ISREG(mode))


def _touch(path: str) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def _new_user_namespace() -> None:
    uid, gid = os.geteuid(), os.getegid()
    _check(_libc.unshare(CLONE_NEWUSER), "unshare user namespace")
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"{uid} {uid} 1")
    _write("/proc/self/gid_map", f"{gid} {gid} 1")


def _become_owner(spec: dict[str, Any]) -> None:
    """The commands' user, in a user namespace where the kernel counts its processes and keys separately and which is the last one."""
    if not spec["userns"]:
        _empty_bounding_set()
        os.setgroups([])
        os.setresgid(spec["gid"], spec["gid"], spec["gid"])
        os.setresuid(spec["uid"], spec["uid"], spec["uid"])
        if spec["separate"]:
            _check(_libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0), "dumpable")  # else the maps belong to root
            _new_user_namespace()
    if spec["separate"]:
        _write("/proc/sys/user/max_user_namespaces", "0")
        hard = resource.getrlimit(resource.RLIMIT_NPROC)[1]
        limit = spec["max_processes"] if hard == resource.RLIM_INFINITY else min(hard, spec["max_processes"])
        resource.setrlimit(resource.RLIMIT_NPROC, (limit, limit))


def _empty_bounding_set() -> None:
    for capability in range(64):
        if _libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
            break


def _drop_privileges() -> None:
    """No capability can come back: the bounding set is empty, and an exec adds nothing (no_new_privs)."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _empty_bounding_set()
    _check(_libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")


def has_landlock_scopes() -> bool:
    return bool(_libc.syscall(SYS_LANDLOCK_CREATE, None, ctypes.c_size_t(0), LANDLOCK_VERSION) >= 6)


def _leave_abstract_sockets() -> None:
    """They belong to the network namespace, which is the host's."""
    if has_landlock_scopes():
        attributes = (ctypes.c_uint64 * 3)(0, 0, LANDLOCK_SCOPES)
        rules = _libc.syscall(SYS_LANDLOCK_CREATE, attributes, ctypes.c_size_t(24), 0)
        _check(rules, "landlock_create_ruleset")
        _check(_libc.syscall(SYS_LANDLOCK_RESTRICT, rules, 0), "landlock_restrict_self")


def _enter(spec: dict[str, Any], pivot_root: int, keyctl: int) -> None:
    """Process 1 of the new namespaces. Does not return."""
    for directory in spec["cgroups"]:
        _write(os.path.join(directory, "cgroup.procs"), "0")
    streams = [os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC) for path in spec["streams"]]
    control = os.open(spec["control"], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    _check(_libc.syscall(keyctl, KEYCTL_JOIN_SESSION_KEYRING, None), "join a session keyring")
    os.umask(0)
    _mount("none", "/", None, MS_REC | MS_PRIVATE)
    Root(spec["top"], spec["visible"], spec["points"], (spec["uid"], spec["gid"])).build()
    os.chdir(spec["top"])
    _check(_libc.syscall(pivot_root, b".", b"."), "pivot_root")
    _check(_libc.umount2(b".", MNT_DETACH), "umount of the host's root")
    os.chdir("/")
    os.umask(0o022)
    _become_owner(spec)
    _drop_privileges()
    _leave_abstract_sockets()
    for fd in map(int, os.listdir("/proc/self/fd")):
        try:
            os.set_inheritable(fd, fd <= 2)
        except OSError:  # it was the listing's own
            continue
    errors = os.dup(2)
    os.dup2(control, 0)  # the launcher's standard input, which a command never inherits: the one way to the directory
    for fd, stream in zip((1, 2), streams, strict=True):
        os.dup2(stream, fd)
    try:
        os.execve(spec["argv"][0], spec["argv"], spec["env"])
    except OSError as error:
        os.write(errors, f"{spec['argv'][0]}: {error}\n".encode())
        os._exit(1)


def _start_time(pid: int) -> int:
    with open(f"/proc/{pid}/stat", "rb") as file:
        return int(file.read().rsplit(b")", 1)[1].split()[19])


def main(path: str) -> int:
    with open(path, "rb") as file:
        spec: dict[str, Any] = marshal.load(file)
    calls = SYSTEM_CALLS.get(os.uname().machine)
    if calls is None:
        raise OSError(errno.ENOSYS, f"processor {os.uname().machine} is not supported")
    if spec["userns"]:
        _new_user_namespace()
    _check(_libc.unshare(CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS), "unshare namespaces")
    ready, go = os.pipe()
    pid = _check(_libc.syscall(calls[0], CLONE_NEWPID | CLONE_PARENT | SIGCHLD, 0, 0, 0, 0), "clone")
    if pid == 0:
        os.close(go)
        if os.read(ready, 1) != b"1":  # its process id was not written to disk, so no process would know of it
            os._exit(1)
        try:
            _enter(spec, *calls[1:])
        except BaseException as error:
            sys.stderr.write(f"{error}\n")
            sys.stderr.flush()
        os._exit(1)
    temporary = spec["pid_file"] + ".tmp"
    _write(temporary, f'{{"pid": {pid}, "start": {_start_time(pid)}, "boot": "{spec["boot"]}"}}')
    os.rename(temporary, spec["pid_file"])
    os.write(go, b"1")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1]))
    except OSError as problem:
        sys.exit(str(problem))
