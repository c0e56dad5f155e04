"""`file://` URLs and plain absolute paths: directories of this machine that the site allows.

A descriptor is opened first and its true path compared with the allowed roots, so that no symbolic link below a root leads out of
them, however recently it was made.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from poiesis.domain.errors import AccessDenied, NotFound, StagingFailed, UnsupportedUrl
from poiesis.filer.atomic_write import PREFIX, PartialFile, atomic_file, local_errors
from poiesis.filer.registry import Context
from poiesis.filer.urls import join, scheme_of, shown
from poiesis.filer.volume import special_kind
from poiesis.ports.filer import RemoteFile, Sent

_LOOK: Final = os.O_PATH | os.O_CLOEXEC
MAX_DEPTH: Final = 200
_CHUNK: Final = 64 * 1024 * 1024  # of one copy_file_range, between two checks for cancellation


class LocalFiler:
    def __init__(self, context: Context) -> None:
        self._control = context.control
        self._roots = [os.path.realpath(root) for root in context.settings.file_roots]
        self._hidden = [os.path.realpath(directory) for directory in context.settings.file_hidden]

    def close(self) -> None:
        pass

    def stat(self, url: str) -> RemoteFile | None:
        try:
            with self._found(url) as (_, state, __):
                if stat.S_ISDIR(state.st_mode):
                    return None
                version = f"{state.st_dev}-{state.st_ino}-{state.st_mtime_ns}"
                return RemoteFile(url, os.path.basename(_path(url)), state.st_size, version)
        except NotFound:
            return None

    def walk(self, url: str) -> Iterator[RemoteFile]:
        with self._found(url) as (_, state, path):
            if not stat.S_ISDIR(state.st_mode):
                raise NotFound(f"{shown(url)}: is not a directory")
        yield from self._walk(url, path, "", ())

    def fetch(self, file: RemoteFile, target: Path) -> Sent:
        with self._found(file.url) as (descriptor, state, _):
            if stat.S_ISDIR(state.st_mode):
                raise NotFound(f"{shown(file.url)}: is a directory")
            if problem := special_kind(state.st_mode):
                raise StagingFailed(f"{shown(file.url)}: {problem}")
            self._control.check_size(file.url, state.st_size)
            with local_errors(shown(file.url)):
                source = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                with atomic_file(target, sync=self._control.sync, size_bytes=state.st_size) as part:
                    with local_errors(shown(file.url)):
                        size = copy_file(source, part, self._control.moved)
                    if state.st_mode & stat.S_IXUSR:
                        part.executable()
            finally:
                os.close(source)
        return Sent(file.url, size)

    def send(self, source: int, url: str) -> Sent:
        target = Path(_path(url))
        with self._directory(url, target.parent) as parent:
            if not self._is_allowed(os.path.join(os.readlink(f"/proc/self/fd/{parent}"), target.name)):
                raise self._refusal(url)
            mode = os.fstat(source).st_mode
            with atomic_file(
                target, sync=self._control.sync, size_bytes=os.fstat(source).st_size, directory=parent
            ) as part:
                with local_errors(shown(url)):
                    size = copy_file(source, part, self._control.moved)
                os.fchmod(part.descriptor, 0o755 if mode & stat.S_IXUSR else 0o644)
        return Sent(url, size)

    def make_directory(self, url: str) -> None:
        with self._directory(url, Path(_path(url))):
            pass

    @contextmanager
    def _found(self, url: str) -> Iterator[tuple[int, os.stat_result, str]]:
        """An O_PATH descriptor, its state and true path. Raises: NotFound, AccessDenied."""
        descriptor = -1
        candidates = list(dict.fromkeys((_path(url), _path(url, decode=False))))  # unencoded URLs are common
        for path in candidates:
            if not self._may_be_allowed(path):
                raise self._refusal(url)
            try:
                descriptor = os.open(path, _LOOK)
                break
            except (FileNotFoundError, NotADirectoryError):
                continue
            except PermissionError as error:
                raise AccessDenied(f"{shown(url)}: {error.strerror}") from error
            except OSError as error:
                raise StagingFailed(f"{shown(url)}: {error.strerror}") from error
        if descriptor < 0:
            raise NotFound(f"{shown(url)}: no such file or directory")
        try:
            yield descriptor, os.fstat(descriptor), self._checked(url, descriptor)
        finally:
            os.close(descriptor)

    def _walk(self, url: str, path: str, name: str, above: tuple[tuple[int, int], ...]) -> Iterator[RemoteFile]:
        with local_errors(shown(url)):
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._checked(url, descriptor)
            state = os.fstat(descriptor)
            above = (*above, (state.st_dev, state.st_ino))
            with local_errors(shown(url)):
                children = sorted(os.listdir(descriptor))
            children = [c for c in children if not c.startswith(PREFIX) and os.path.join(path, c) not in self._hidden]
            if not children:
                yield RemoteFile(url, name, 0, is_directory=True)
            for child in children:
                yield from self._entry(join(url, child), f"{name}/{child}" if name else child, descriptor, child, above)
        finally:
            os.close(descriptor)

    def _entry(
        self, url: str, name: str, parent: int, child: str, above: tuple[tuple[int, int], ...]
    ) -> Iterator[RemoteFile]:
        try:
            is_link = stat.S_ISLNK(os.stat(child, dir_fd=parent, follow_symlinks=False).st_mode)
        except FileNotFoundError:
            return  # removed meanwhile
        problem = None
        try:
            with self._found(url) as (_, state, path):
                mode, size, identity = state.st_mode, state.st_size, (state.st_dev, state.st_ino)
        except (NotFound, AccessDenied, StagingFailed):
            if not is_link:
                raise
            problem = "is a symbolic link that is dangling or leads out of the directories that this service may use"
        if problem is None and stat.S_ISDIR(mode):
            if identity in above:
                problem = "is a symbolic link to one of its parent directories"
            elif len(above) >= MAX_DEPTH:
                raise StagingFailed(f"{shown(url)}: is more than {MAX_DEPTH} directories deep")
            else:
                yield from self._walk(url, path, name, above)
                return
        elif problem is None:
            problem = special_kind(mode)
        yield RemoteFile(url, name, None if problem else size, problem=problem)

    @contextmanager
    def _directory(self, url: str, path: Path) -> Iterator[int]:
        """A descriptor of the directory `path`; missing ones are made level by level, each checked."""
        if not self._may_be_allowed(str(path)):
            raise self._refusal(url)
        existing = path
        while not existing.exists() and existing != existing.parent:
            existing = existing.parent
        with local_errors(shown(url)):
            descriptor = os.open(existing, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                self._checked(url, descriptor)
                for name in path.relative_to(existing).parts:
                    with suppress(FileExistsError):
                        os.mkdir(name, dir_fd=descriptor)
                    child = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=descriptor)
                    os.close(descriptor)
                    descriptor = child
                    self._checked(url, descriptor)
                yield descriptor
            finally:
                os.close(descriptor)

    def _checked(self, url: str, descriptor: int) -> str:
        """The true path of an open descriptor. Raises: AccessDenied when it is not in an allowed root."""
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if not self._is_allowed(path):
            raise self._refusal(url)
        return path

    def _may_be_allowed(self, path: str) -> bool:
        """By name, before the path is opened, so that responses do not reveal what else exists on this machine."""
        return self._is_allowed(os.path.normpath(path)) or self._is_allowed(os.path.realpath(path))

    def _is_allowed(self, path: str) -> bool:
        return any(_is_below(path, root) for root in self._roots) and not any(_is_below(path, h) for h in self._hidden)

    def _refusal(self, url: str) -> AccessDenied:
        return AccessDenied(f"{shown(url)}: is not in a directory that this service may use")


def copy_file(source: int, part: PartialFile, moved: Callable[[int], None]) -> int:
    """Copy the whole file in the kernel where possible (reflinks on file systems that have them), else through memory. Returns its size.

    Raises: OSError, and what `moved` raises.
    """
    offset = 0
    with suppress(OSError):  # not between these file systems
        while count := os.copy_file_range(source, part.descriptor, _CHUNK, offset, offset):
            offset += count
            moved(count)
    # some virtual file systems also return 0 for files that are not empty
    while data := os.pread(source, 1 << 20, offset):
        part.write(data, offset)
        offset += len(data)
        moved(len(data))
    return offset


def _path(url: str, *, decode: bool = True) -> str:
    """The path of a `file://` URL or of a plain path. Raises: UnsupportedUrl."""
    if scheme_of(url) == "":
        path = url
    else:
        rest = url[len("file:") :]
        if rest.startswith("//"):
            host, slash, tail = rest[2:].partition("/")
            if host not in ("", "localhost"):
                raise UnsupportedUrl(f"{shown(url)}: a file URL must not have a host; use file:///path")
            rest = slash + tail
        path = unquote(rest, errors="surrogateescape") if decode else rest
    if not path.startswith("/") or "\0" in path or ".." in path.split("/"):
        raise UnsupportedUrl(f"{shown(url)}: must have an absolute path without '..'")
    return path.rstrip("/") or "/"


def _is_below(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip("/") + "/")
