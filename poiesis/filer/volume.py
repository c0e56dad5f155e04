"""The executors' files on the task's volume: an executor's `/data/x` is `<volume>/root/data/x`.

Everything below is under the user's control: names, symbolic links, FIFOs, and programs that may still change them. So no path is given
to the kernel as a whole. `resolved` opens one name at a time with O_PATH and O_NOFOLLOW from a directory that it holds open, follows
symbolic links itself as the executor saw them (an absolute one starts at the volume's root, `..` stops there), and a file is opened for
reading only after the inode it holds is known to be a regular file. Nothing outside can be reached, whatever is renamed meanwhile.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from poiesis.domain.errors import NotFound, StagingFailed
from poiesis.domain.report import ROOT

if TYPE_CHECKING:
    from poiesis.domain.patterns import Name, PathPattern

MAX_LINKS: Final = 40  # as the kernel's own
MAX_DEPTH: Final = 256  # of directories; each level holds a descriptor
LISTED: Final = 1000  # names of a directory that are read at once; a longer one needs a second descriptor meanwhile
FILE_MODE: Final = 0o666  # an image may run as any user, and may change its inputs
EXECUTABLE_MODE: Final = 0o777
DIRECTORY_MODE: Final = 0o777
# modification time of placeholders: 2005-03-18, an even number of whole seconds since 1980, because some file systems keep no others
_MARK_NS: Final = 1_111_111_110 * 10**9
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


class _NotADirectory(StagingFailed):
    pass


class SymlinkLoop(StagingFailed):
    """More symbolic links on the way than the kernel would follow."""


class DanglingLink(NotFound):
    """A symbolic link on the way is dangling on the volume."""


@dataclass(frozen=True)
class Entry:
    """A file or directory of the volume. `path`: the executor's. `problem`: why it cannot be uploaded, as a sentence that begins with its
    path; None when it can. An unusable entry (a special file, a link that is dangling, leads out of the volume or loops) has one
    wherever it is; with `is_error` it would be usable, but cannot be read."""

    path: str
    size_bytes: int
    is_directory: bool = False
    problem: str | None = None
    is_error: bool = False


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
        """The executor's `path` as the filer sees it. For writing, after `make_directory` of its parent."""
        return self._directory / path.strip("/")

    # writing, before user code runs

    def make_directory(self, path: str) -> bool:
        """Make `path` and its parents, writable for every user; set-group-ID and sticky bits stay. False: one that existed belongs to
        another user and is writable neither for every user nor for a group of this process (a pod's fsGroup).

        Raises: LocalPathError."""
        open_to_all = True
        current, reached = os.dup(self._root), ""
        try:
            for name in _names(path):
                reached += f"/{name}"
                try:
                    os.mkdir(name, dir_fd=current)
                    made = True
                except FileExistsError:
                    made = False
                child = os.open(name, _LIST, dir_fd=current)
                os.close(current)
                current = child
                status = os.fstat(current)
                open_to_all = _open_to_all(current, status.st_mode) or made or _open_to_our_group(status)
            return open_to_all
        except OSError as error:
            if error.errno == errno.ENOTDIR:
                raise LocalPathError(f"{reached} is not a directory") from error
            raise LocalPathError(f"cannot create the directory {reached}: {error.strerror}") from error
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
            raise StagingFailed(f"{path}: the file cannot be created: {error.strerror}") from error
        try:
            os.fchmod(descriptor, FILE_MODE)
            os.utime(descriptor, ns=(_MARK_NS, _MARK_NS))
            if not is_placeholder(os.fstat(descriptor)):
                raise StagingFailed("the file system of the task's volume does not keep modification times")
        except OSError as error:
            raise StagingFailed(f"{path}: the file cannot be created: {error.strerror}") from error
        finally:
            os.close(descriptor)

    def sync(self) -> None:
        """Return when everything written is on the disk. Raises: StagingFailed. One call for the file system, because an fsync for each
        file would wait for the journal each time."""
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
        """Status of the file or directory, links followed. Raises: NotFound, StagingFailed."""
        with self.resolved(path) as descriptor:
            return os.fstat(descriptor)

    def look(self, path: str) -> Entry | None:
        """What `path` is in the end, links followed. None: there is nothing of that name."""
        try:
            return self.entry(path, self.stat(path))
        except StagingFailed as error:
            return None if type(error) is NotFound else _unusable(path, error)

    def entry(self, path: str, state: os.stat_result) -> Entry:
        is_directory = stat.S_ISDIR(state.st_mode)
        return Entry(path, state.st_size, is_directory, None if is_directory else _problem(path, state.st_mode))

    @contextmanager
    def opened(self, path: str) -> Iterator[int]:
        """A descriptor of the regular file `path` to read from. Raises: NotFound, StagingFailed."""
        with self.resolved(path) as found:
            problem = _problem(path, os.fstat(found).st_mode)
            if problem:
                raise StagingFailed(problem)
            try:
                descriptor = os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_CLOEXEC)  # certainly the same inode
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
                        raise SymlinkLoop(f"{path}: is or goes through a loop of symbolic links, or too many of them")
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
                raise DanglingLink(
                    f"{path}: is or goes through a symbolic link to {followed}, which does not exist in the task's own directories"
                    " (links that lead out of them are not followed)"
                ) from error
            raise NotFound(f"{path}: no such file or directory") from error
        except OSError as error:
            raise StagingFailed(f"{path}: cannot be read: {error.strerror}") from error
        finally:
            for descriptor in stack:
                os.close(descriptor)

    def walk(self, path: str) -> Iterator[Entry]:
        """All files below the directory `path`, empty directories, and entries with a problem. Links are followed inside the volume; one
        that leads back to one of its parent directories is a problem."""
        try:
            with self.resolved(path) as found:
                descriptor = _list(path, found)
        except StagingFailed as error:
            yield _unusable(path, error)
            return
        yield from self._walk(path.rstrip("/"), descriptor, ())

    def _walk(self, path: str, descriptor: int, above: tuple[tuple[int, int], ...]) -> Iterator[Entry]:
        try:
            state = os.fstat(descriptor)
            above = (*above, (state.st_dev, state.st_ino))
            with os.scandir(descriptor) as entries:
                names = [entry.name for entry in itertools.islice(entries, LISTED)]
                more = next(entries, None)
                while more is not None:
                    yield from self._entry(f"{path}/{more.name}", more.name, descriptor, above)
                    more = next(entries, None)
            for name in names:
                yield from self._entry(f"{path}/{name}", name, descriptor, above)
            if not names:
                yield Entry(path, 0, is_directory=True)
        except OSError as error:
            yield Entry(path, 0, problem=f"{path}: cannot be read: {error.strerror}", is_error=True)
        finally:
            os.close(descriptor)

    def _entry(self, path: str, name: str, parent: int, above: tuple[tuple[int, int], ...]) -> Iterator[Entry]:
        try:
            found = os.open(name, _LOOK, dir_fd=parent)
        except FileNotFoundError:
            return  # removed meanwhile
        directory = -1
        try:
            if stat.S_ISLNK(os.fstat(found).st_mode):
                with self.resolved(path) as target:
                    os.dup2(target, found, inheritable=False)
            state = os.fstat(found)
            if not stat.S_ISDIR(state.st_mode):
                yield self.entry(path, state)
            elif (state.st_dev, state.st_ino) in above:
                yield Entry(path, 0, problem=f"{path}: is a symbolic link to a directory that holds it")
            elif len(above) >= MAX_DEPTH:
                yield Entry(path, 0, problem=f"{path}: is more than {MAX_DEPTH} directories deep", is_error=True)
            else:
                directory = _list(path, found)
        except StagingFailed as error:
            yield _unusable(path, error)
        finally:
            os.close(found)
        if directory >= 0:
            yield from self._walk(path, directory, above)

    def match(self, pattern: PathPattern, count: Callable[[str], None] = lambda _: None) -> Iterator[Entry]:
        """What matches, in order of names; with a slash at the end only directories, and entries with a problem, which may be one.
        `count` is called with each path on the way and may raise: loops of symbolic links make for endless matches."""
        for entry in self._match("", pattern.names, 0, count):
            if entry.is_directory or entry.problem is not None or not pattern.is_directory:
                yield entry

    def _match(
        self, directory: str, names: tuple[Name, ...], start: int, count: Callable[[str], None]
    ) -> Iterator[Entry]:
        while start < len(names) and not names[start].has_wildcard:
            directory += f"/{names[start].literal}"
            start += 1
        count(directory)
        if start == len(names):
            if (found := self.look(directory or "/")) is not None:
                yield found
            return
        try:
            with self.resolved(directory or "/") as opened:
                descriptor = _list(directory, opened)
        except StagingFailed as error:
            if type(error) not in (NotFound, _NotADirectory):
                yield _unusable(directory, error)
            return
        try:
            hits = sorted(filter(names[start].matches, os.listdir(descriptor)))
        finally:
            os.close(descriptor)
        for hit in hits:
            yield from self._match(f"{directory}/{hit}", names, start + 1, count)


def _unusable(path: str, error: StagingFailed) -> Entry:
    return Entry(path, 0, problem=str(error), is_error=not isinstance(error, NotFound | SymlinkLoop))


def is_placeholder(state: os.stat_result) -> bool:
    """Whether a file was made by `make_placeholder` and no command has written to it.

    The mark is a modification time that programs do not normally set: every way to write, truncating an empty file among them, replaces it;
    changes of owner or mode, which a volume's driver makes when it mounts the volume, do not."""
    return state.st_size == 0 and state.st_mtime_ns == _MARK_NS


def _names(path: str) -> list[str]:
    return [name for name in path.split("/") if name not in ("", ".")]


def _open_to_our_group(status: os.stat_result) -> bool:
    """Whether a group of this process may write: all containers of a pod are in it, whatever their user."""
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
        raise _NotADirectory(f"{path}: is not a directory") from None
    except OSError as error:
        raise StagingFailed(f"{path}: cannot be listed: {error.strerror}") from error


def _problem(path: str, mode: int) -> str | None:
    kind = "is a directory" if stat.S_ISDIR(mode) else special_kind(mode)
    return f"{path}: {kind}" if kind else None


def special_kind(mode: int) -> str | None:
    """Why something that is not a directory cannot be staged; None for regular files."""
    if stat.S_ISREG(mode):
        return None
    return f"is {_KINDS.get(stat.S_IFMT(mode), 'not a regular file')}, which cannot be staged"
