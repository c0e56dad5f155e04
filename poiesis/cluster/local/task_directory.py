"""The files of one attempt: the state of the cluster that outlives this process.

    tasks/poiesis-<task>-<attempt>/
        task.json               task id and attempt
        volume/root/            the task's volume: mirrors the paths of its executors
        documents/              what the filers read
        pods/<part>.json        a launched pod, with all that is needed to run it after a restart
        pods/<part>.<mark>      its progress: started, deleting, lost, ended
        state/<name>.json       the record of a container that has ended; <name>.report.json of a filer
        state/<name>.…          state that a runtime keeps for a container
        control/<name>/         the launcher's control directory, read only by the supervisor
        log/<name>.stdout|.stderr, scratch/<name>/
        removing                everything is being removed

Documents are written to a temporary name, synced and renamed: they exist completely or not at all. Files that user code can change are
read without following links and with a limit.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
import stat
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from poiesis.domain.naming import slug
from poiesis.domain.plan import Mount
from poiesis.domain.task import TaskId

MAX_DOCUMENT_BYTES: Final = 64 * 1024 * 1024  # of our documents; tasks are bounded when they are created
_NAME: Final = re.compile(r"poiesis-[a-z0-9][a-z0-9-]*-\d+")
_NOTHING_TO_READ: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.EACCES, errno.EISDIR})
_PARTS: Final = ("documents", "pods", "state", "control", "log", "scratch", "top")


def write_document(path: Path, document: Mapping[str, Any]) -> None:
    """Write a document durably, completely or not at all. Whatever has the temporary name is not followed or written to."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    with open(descriptor, "w", encoding="utf-8") as file:
        json.dump(document, file)
        file.flush()
        os.fsync(file.fileno())
    os.rename(temporary, path)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def acquire_lock(path: Path, seconds: float) -> int:
    """A descriptor that holds the lock of a file until it is closed, here and in child processes. Raises: TimeoutError."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
        except OSError as error:
            if time.monotonic() > deadline:
                os.close(fd)
                raise TimeoutError(f"{path} is locked by another process") from error
            time.sleep(0.01)


def read_bounded(path: Path, limit: int) -> bytes | None:
    """The content of a regular file of at most `limit` bytes, without following a link; None for anything else or a missing file.

    Raises: OSError when that cannot be determined (too many open files, a broken disk): such a file is not missing.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in _NOTHING_TO_READ:
            return None
        raise
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return None
        data = b""
        while len(data) <= limit and (piece := os.read(fd, min(1 << 20, limit + 1 - len(data)))):
            data += piece
        return data if len(data) <= limit else None
    finally:
        os.close(fd)


def read_document(path: Path) -> dict[str, Any] | None:
    """A document of this adapter; None when it is missing. Raises: OSError, as `read_bounded`."""
    data = read_bounded(path, MAX_DOCUMENT_BYTES)
    if data is None:
        return None
    try:
        document = json.loads(data)
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


class TaskDirectory:
    """The directory of one attempt."""

    def __init__(self, tasks: Path, task_id: TaskId, attempt: int) -> None:
        self.task_id = task_id
        self.attempt = attempt
        self.path = tasks / f"poiesis-{slug(task_id)}-{attempt}"

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def volume(self) -> Path:
        return self.path / "volume"

    @property
    def top(self) -> Path:
        return self.path / "top"

    @property
    def exists(self) -> bool:
        return self.path.is_dir()

    @property
    def is_removing(self) -> bool:
        return (self.path / "removing").exists()

    def make(self) -> None:
        """Create the directory with everything that each attempt has; existing parts are kept."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        for part in _PARTS:
            (self.path / part).mkdir(mode=0o700, exist_ok=True)
        if not (self.path / "task.json").exists():
            write_document(self.path / "task.json", {"task_id": self.task_id, "attempt": self.attempt})
            sync_directory(self.path.parent)

    # ---- pods

    def pod(self, part: str, mark: str = "json") -> Path:
        return self.path / "pods" / f"{part}.{mark}"

    def parts(self) -> list[str]:
        try:
            return sorted(p.stem for p in (self.path / "pods").iterdir() if p.suffix == ".json" and p.name[0] != ".")
        except FileNotFoundError:
            return []

    def has_mark(self, part: str, mark: str) -> bool:
        return self.pod(part, mark).exists()

    def mark(self, part: str, mark: str, **content: Any) -> None:
        write_document(self.pod(part, mark), content)

    def forget_pod(self, part: str) -> None:
        """Removes the pod's document last: marks never outlive it."""
        document = self.pod(part)
        for path in (self.path / "pods").glob(f"{part}.*"):
            if path != document:
                path.unlink(missing_ok=True)
        document.unlink(missing_ok=True)

    # ---- containers

    def state(self, name: str, what: str = "json") -> Path:
        return self.path / "state" / f"{name}.{what}"

    def control(self, name: str) -> Path:
        return self.path / "control" / name

    def log(self, name: str, stream: str) -> Path:
        return self.path / "log" / f"{name}.{stream}"

    def scratch(self, name: str) -> Path:
        return self.path / "scratch" / name

    def has_record(self, name: str) -> bool:
        return self.state(name).exists()

    def note(self, name: str, what: str) -> None:
        write_document(self.state(name, what), {})

    def mount_source(self, mount: Mount) -> Path:
        """The source of a mount, never outside of the volume whatever links it contains. A missing directory is created. Files
        are created by TIF and left unchanged: their times are the mark of placeholders. Raises: OSError."""
        volume = self.volume.resolve()
        path = Path(os.path.normpath(volume / mount.sub_path))
        if path.resolve() != path or not path.is_relative_to(volume):
            raise PermissionError(errno.EPERM, "is outside of the task's volume", mount.sub_path)
        if mount.is_file:
            path.stat()
        else:
            path.mkdir(parents=True, exist_ok=True)
        return path

    # ---- the end

    def mark_removing(self) -> None:
        (self.path / "removing").touch()

    def remove(self) -> bool:
        """Remove everything, whatever modes and depths user code has left; True when nothing is left. `removing` goes last."""
        with contextlib.suppress(FileNotFoundError):
            for entry in sorted(os.scandir(self.path), key=lambda e: (e.name == "removing", e.name == "task.json")):
                if not remove_tree(Path(entry.path)):
                    return False
            self.path.rmdir()
        return True


def remove_tree(path: Path) -> bool:
    """Remove a file or a directory with all below it; True when it is gone. Never follows links."""
    if not os.path.lexists(path):
        return True
    if path.is_dir() and not path.is_symlink():
        with contextlib.suppress(OSError, RecursionError):
            shutil.rmtree(path)
    else:
        with contextlib.suppress(OSError):
            path.unlink()
    if not os.path.lexists(path):
        return True
    for command in (["chmod", "-R", "u+rwx"], ["rm", "-rf"]):  # unreadable directories, any depth
        subprocess.run([*command, "--", str(path)], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    return not os.path.lexists(path)


def directories_of(tasks: Path, task_id: TaskId, attempt: int | None) -> Iterator[TaskDirectory]:
    """The existing directories of all attempts up to `attempt`, and of the next one; None: of all attempts."""
    if attempt is None:
        yield from (task_dir for task_dir in all_directories(tasks) if task_dir.task_id == task_id)
        return
    for number in range(1, attempt + 2):
        task_dir = TaskDirectory(tasks, task_id, number)
        if task_dir.exists:
            yield task_dir


def all_directories(tasks: Path) -> Iterator[TaskDirectory]:
    """Every attempt on disk."""
    for entry in sorted(tasks.iterdir()) if tasks.is_dir() else ():
        document = read_document(entry / "task.json") if _NAME.fullmatch(entry.name) else None
        if document is not None:
            task_dir = TaskDirectory(tasks, TaskId(str(document["task_id"])), int(document["attempt"]))
            if task_dir.path == entry:
                yield task_dir


def remove_broken(tasks: Path) -> None:
    """Remove directories whose creation or removal was interrupted. Only safe while no attempt is being created."""
    for entry in list(tasks.iterdir()):
        if entry.name.startswith(".") or (_NAME.fullmatch(entry.name) and read_document(entry / "task.json") is None):
            remove_tree(entry)
