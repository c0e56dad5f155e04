"""The executors' files as they lie on the task's volume: what an executor calls `/data/x` is `<volume>/root/data/x`.

Everything below is the user's: names, symbolic links, FIFOs, and programs that may still change them. So no path is handed to the
kernel as a whole. `resolve` goes one name at a time with O_PATH and O_NOFOLLOW from a held directory, follows symbolic links by itself as
the executor saw them (an absolute one starts at the volume's root, `..` stops there), and a file is opened for reading only when
the very inode in hand is a regular file. Nothing outside can be reached, whatever is renamed meanwhile.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from poiesis.domain.errors import NotFound, StagingFailed
from poiesis.domain.report import ROOT
from poiesis.filer.matching import is_pattern, matcher
from poiesis.filer.placeholder import mark_as_placeholder

MAX_LINKS: Final = 40  # as the kernel's own
MAX_DEPTH: Final = 256  # of directories; each level holds a descriptor
FILE_MODE: Final = 0o666  # an image's user may be anybody, and may change its inputs
EXECUTABLE_MODE: Final = 0o777
DIRECTORY_MODE: Final = 0o777
_LOOK: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_LIST: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_KINDS: Final = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class LocalPathError(StagingFailed):
    """A path of the volume cannot be made or written. The message has no path but the executor's."""


@dataclass(frozen=True)
class Entry:
    """One thing below a directory of the volume. `path`: the executor's. A directory is told only when it is empty. `problem`: why
    the thing cannot be taken, in words, None when it can."""

    path: str
    size_bytes: int
    is_directory: bool = False
    problem: str | None = None


class Volume:
    def __init__(self, directory: Path) -> None:
        """Raises: StagingFailed when there is no such volume."""
        root = directory / ROOT
        try:
            root.mkdir(mode=0o755, exist_ok=True)
            self._root = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise StagingFailed(f"the task's volume cannot be used: {error.strerror}") from error
        self._directory = root

    def close(self) -> None:
        os.close(self._root)

    def place(self, path: str) -> Path:
        """Where the executor's `path` lies for us. For writing, after `make_directory` of its parent."""
        return self._directory / path.strip("/")

    # writing, before user code runs

    def make_directory(self, path: str) -> bool:
        """Make `path` and what is above it, all writable for everybody; set-group-ID and sticky bits stay. False: one that was there
        already belongs to somebody else and is writable neither for everybody nor for a group of ours (a pod's fsGroup).

        Raises: LocalPathError."""
        open_to_all = True
        current, reached = os.dup(self._root), ""
        try:
            for name in _names(path):
                reached += f"/{name}"
                made = False
                try:
                    os.mkdir(name, dir_fd=current)
                    made = True
                except FileExistsError:
                    pass
                child = os.open(name, _LIST, dir_fd=current)
                os.close(current)
                current = child
                status = os.fstat(current)
                open_to_all = _open_to_all(current, status.st_mode) or made or _open_to_our_group(status)
            return open_to_all
        except OSError as error:
            if error.errno == errno.ENOTDIR:
                raise LocalPathError(f"{reached} is not a directory") from error
            raise LocalPathError(f"cannot make the directory {reached}: {error.strerror}") from error
        finally:
            os.close(current)

    def make_placeholder(self, path: str) -> None:
        """An empty file for the file mount of an output; nothing where there is a file already. Raises: StagingFailed."""
        self.make_directory(os.path.dirname(path))
        try:
            descriptor = os.open(
                self.place(path), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, FILE_MODE
            )
        except FileExistsError:
            return
        except OSError as error:
            raise StagingFailed(f"{path}: the file cannot be made: {error.strerror}") from error
        try:
            os.fchmod(descriptor, FILE_MODE)
            mark_as_placeholder(descriptor)
        except OSError as error:
            raise StagingFailed(f"{path}: the file cannot be made: {error.strerror}") from error
        finally:
            os.close(descriptor)

    def sync(self) -> None:
        """Returns when all that was written is on the disk. Raises: StagingFailed. One call for the file system, since one for each of
        many files would wait for its journal every time."""
        import ctypes  # the standard library has no syncfs

        descriptor = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            library = ctypes.CDLL(None, use_errno=True)
            if library.syncfs(descriptor) != 0:
                problem = os.strerror(ctypes.get_errno())
                raise StagingFailed(f"the task's volume cannot be written to the disk: {problem}")
        finally:
            os.close(descriptor)

    # reading, after user code ran

    def stat(self, path: str) -> os.stat_result:
        """Of the file or directory itself, links followed. Raises: NotFound, StagingFailed."""
        with self.resolved(path) as descriptor:
            return os.fstat(descriptor)

    def exists(self, path: str) -> bool:
        try:
            self.stat(path)
        except NotFound:
            return False
        return True

    @contextmanager
    def opened(self, path: str) -> Iterator[int]:
        """A descriptor of the regular file `path` to read from. Raises: NotFound, StagingFailed."""
        with self.resolved(path) as found:
            problem = _problem(path, os.fstat(found).st_mode)
            if problem:
                raise StagingFailed(problem)
            try:
                descriptor = os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_CLOEXEC)  # the same inode, surely
            except OSError as error:
                raise StagingFailed(f"{path}: cannot be read: {error.strerror}") from error
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    @contextmanager
    def resolved(self, path: str) -> Iterator[int]:
        """An O_PATH descriptor of what `path` is in the end. Raises: NotFound, also for a link that leads out; StagingFailed."""
        stack = [os.dup(self._root)]
        names = _names(path)[::-1]
        followed: str | None = None
        links = 0
        try:
            while names:
                name = names.pop()
                if name == "..":
                    if len(stack) > 1:
                        os.close(stack.pop())
                    continue
                descriptor = os.open(name, _LOOK, dir_fd=stack[-1])
                stack.append(descriptor)
                mode = os.fstat(descriptor).st_mode
                if stat.S_ISLNK(mode):
                    links += 1
                    if links > MAX_LINKS:
                        raise StagingFailed(f"{path}: too many symbolic links, or links in a circle")
                    target = os.readlink("", dir_fd=descriptor)
                    followed = followed or target
                    os.close(stack.pop())
                    if target.startswith("/"):
                        while len(stack) > 1:
                            os.close(stack.pop())
                    names += _names(target)[::-1]
                elif names and not stat.S_ISDIR(mode):
                    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
                if len(stack) > MAX_DEPTH:
                    raise StagingFailed(f"{path}: more than {MAX_DEPTH} directories deep")
            yield stack[-1]
        except (FileNotFoundError, NotADirectoryError) as error:
            if followed is not None:
                raise NotFound(
                    f"{path}: is or goes through a symbolic link to {followed}, which is nothing in the task's own directories"
                    " (links that lead out of them are not followed)"
                ) from error
            raise NotFound(f"{path}: there is no such file or directory") from error
        except OSError as error:
            raise StagingFailed(f"{path}: cannot be read: {error.strerror}") from error
        finally:
            for descriptor in stack:
                os.close(descriptor)

    def walk(self, path: str) -> Iterator[Entry]:
        """All files below the directory `path`, empty directories and what cannot be taken. Links are followed inside the volume; one
        that leads back to a directory it is in is a problem. Raises: NotFound, StagingFailed."""
        with self.resolved(path) as found:
            descriptor = _list(path, found)
        yield from self._walk(path.rstrip("/"), descriptor, ())

    def _walk(self, path: str, descriptor: int, above: tuple[tuple[int, int], ...]) -> Iterator[Entry]:
        try:
            state = os.fstat(descriptor)
            above = (*above, (state.st_dev, state.st_ino))
            empty = True
            with os.scandir(descriptor) as entries:
                for entry in entries:
                    empty = False
                    yield from self._entry(f"{path}/{entry.name}", entry.name, descriptor, above)
            if empty:
                yield Entry(path, 0, is_directory=True)
        except OSError as error:
            yield Entry(path, 0, problem=f"{path}: cannot be read: {error.strerror}")
        finally:
            os.close(descriptor)

    def _entry(self, path: str, name: str, parent: int, above: tuple[tuple[int, int], ...]) -> Iterator[Entry]:
        try:
            found = os.open(name, _LOOK, dir_fd=parent)
        except FileNotFoundError:
            return  # removed meanwhile
        try:
            state = os.fstat(found)
            if stat.S_ISLNK(state.st_mode):
                with self.resolved(path) as target:
                    yield from self._target(path, target, os.fstat(target), above)
            else:
                yield from self._target(path, found, state, above)
        except (NotFound, StagingFailed) as error:
            yield Entry(path, 0, problem=str(error))
        finally:
            os.close(found)

    def _target(
        self, path: str, found: int, state: os.stat_result, above: tuple[tuple[int, int], ...]
    ) -> Iterator[Entry]:
        if not stat.S_ISDIR(state.st_mode):
            yield Entry(path, state.st_size, problem=_problem(path, state.st_mode))
        elif (state.st_dev, state.st_ino) in above:
            yield Entry(path, 0, problem=f"{path}: a symbolic link to a directory that it is in")
        elif len(above) >= MAX_DEPTH:
            yield Entry(path, 0, problem=f"{path}: more than {MAX_DEPTH} directories deep")
        else:
            yield from self._walk(path, _list(path, found), above)

    def match(self, pattern: str) -> Iterator[str]:
        """Paths that match (glob(7); POSIX 2.13), each existing, in order of their names. With a slash at the end: directories alone."""
        for path in self._match("", [n for n in pattern.split("/") if n]):
            if not pattern.endswith("/") or stat.S_ISDIR(self.stat(path).st_mode):
                yield path

    def _match(self, directory: str, names: list[str]) -> Iterator[str]:
        if not names:
            if self.exists(directory):
                yield directory
            return
        name, rest = names[0], names[1:]
        if not is_pattern(name):
            yield from self._match(f"{directory}/{name}", rest)
            return
        matches = matcher(name)
        try:
            with self.resolved(directory or "/") as found:
                descriptor = _list(directory, found)
        except (NotFound, StagingFailed):
            return
        try:
            hits = sorted(n for n in os.listdir(descriptor) if matches(n))
        finally:
            os.close(descriptor)
        for hit in hits:
            yield from self._match(f"{directory}/{hit}", rest)


def _names(path: str) -> list[str]:
    return [name for name in path.split("/") if name not in ("", ".")]


def _open_to_our_group(status: os.stat_result) -> bool:
    """Whether the group may write and we are of it: in a pod all containers are, whatever their user."""
    return bool(status.st_mode & 0o020) and status.st_gid in (os.getegid(), *os.getgroups())


def _open_to_all(descriptor: int, mode: int) -> bool:
    wanted = stat.S_IMODE(mode) | DIRECTORY_MODE
    if stat.S_IMODE(mode) == wanted:
        return True
    try:
        os.fchmod(descriptor, wanted)
    except PermissionError:
        return False
    return True


def _list(path: str, found: int) -> int:
    """A descriptor that can list the directory which the O_PATH descriptor `found` is."""
    try:
        return os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except NotADirectoryError:
        raise StagingFailed(f"{path}: is no directory") from None
    except OSError as error:
        raise StagingFailed(f"{path}: cannot be listed: {error.strerror}") from error


def _problem(path: str, mode: int) -> str | None:
    if stat.S_ISREG(mode):
        return None
    if stat.S_ISDIR(mode):
        return f"{path}: is a directory"
    return f"{path}: is {_KINDS.get(stat.S_IFMT(mode), 'no regular file')}, which cannot be uploaded"
