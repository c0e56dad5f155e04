"""Local files that appear complete under their name or not at all: written to a temporary file, checked, synced, renamed."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from poiesis.domain.errors import FileTooLarge, PoiesisError, StorageUnavailable
from poiesis.filer.volume import EXECUTABLE_MODE, FILE_MODE, LocalPathError

PREFIX: Final = ".poiesis-"  # of temporary names, which are not outputs
_RUN: Final = os.urandom(8).hex()
_COUNT: Final = itertools.count()
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


class PartialFile:
    """A file that is being written, by any number of threads."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def write(self, data: bytes | memoryview, offset: int) -> None:
        """Write all of `data` at `offset`. Raises: LocalPathError, FileTooLarge, StorageUnavailable."""
        view = memoryview(data)
        while view:
            try:
                count = os.pwrite(self.descriptor, view, offset)
            except OSError as error:
                raise local_error(error) from error
            view, offset = view[count:], offset + count

    @property
    def size_bytes(self) -> int:
        return os.fstat(self.descriptor).st_size

    def executable(self) -> None:
        os.fchmod(self.descriptor, EXECUTABLE_MODE)


def temporary_name() -> str:
    """Of a file that no task has."""
    return f"{PREFIX}{_RUN}{next(_COUNT):x}"


@contextmanager
def atomic_file(
    target: Path, *, sync: bool, size_bytes: int | None = None, directory: int | None = None
) -> Iterator[PartialFile]:
    """A new file for `target`, which gets the name when the block succeeds and is removed when it fails.

    `size_bytes`: checked against the free space before the transfer. `directory`: a descriptor of the directory
    of `target`, protected against renames. Raises: LocalPathError for a full disk, a missing directory and the like.
    """
    final = str(target) if directory is None else target.name
    parent = final[: final.rfind("/") + 1]
    name = parent + temporary_name()
    descriptor, is_named = -1, False
    try:
        try:
            descriptor, is_named = _open(name, parent or ".", directory)
            os.fchmod(descriptor, FILE_MODE)
            _check_room(descriptor, size_bytes or 0)
        except OSError as error:
            raise local_error(error) from error
        yield PartialFile(descriptor)
        try:
            if sync:
                os.fsync(descriptor)
            if not is_named:
                try:
                    _link(descriptor, final, directory)
                except FileExistsError:  # replacing a file needs a name
                    _link(descriptor, name, directory)
                    is_named = True
            if is_named:
                os.rename(name, final, src_dir_fd=directory, dst_dir_fd=directory)
            if sync:
                _sync(parent or ".", directory)
        except OSError as error:
            raise local_error(error) from error
    except BaseException:
        if is_named:
            with suppress(OSError):
                os.unlink(name, dir_fd=directory)
        raise
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _open(name: str, parent: str, directory: int | None) -> tuple[int, bool]:
    """A new file in `parent`: unnamed where supported, so that a killed writer leaves nothing behind; else as `name`."""
    flags = os.O_RDWR | os.O_CLOEXEC
    try:
        return os.open(parent, flags | os.O_TMPFILE, FILE_MODE, dir_fd=directory), False
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL):
            raise
    return os.open(name, flags | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, FILE_MODE, dir_fd=directory), True


def _link(descriptor: int, name: str, directory: int | None) -> None:
    """Link the file to a name. Raises: FileExistsError."""
    # src_dir_fd does not matter for an absolute path, but makes the standard library follow the link
    os.link(f"/proc/self/fd/{descriptor}", name, src_dir_fd=descriptor, dst_dir_fd=directory)


def _sync(parent: str, directory: int | None) -> None:
    descriptor = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_room(descriptor: int, size: int) -> None:
    """Fail before the transfer if the file cannot fit. (fallocate is slow where the file system has to emulate it.)"""
    if size > 1 << 20:
        free = os.fstatvfs(descriptor)
        if free.f_blocks > 0 and free.f_bavail * free.f_frsize < size:
            raise OSError(errno.ENOSPC, f"{size} bytes needed, {free.f_bavail * free.f_frsize} free")


@contextmanager
def local_errors(what: str) -> Iterator[None]:
    """Translate the errors of local files."""
    try:
        yield
    except OSError as error:
        raise local_error(error, f"{what}: ") from error


def local_error(error: OSError, prefix: str = "") -> PoiesisError:
    """The error without its path, which is the service's; staging adds the task's."""
    reason = error.strerror or type(error).__name__
    if error.errno in _FULL:
        return LocalPathError(f"{prefix}no space left on the disk ({reason})")
    if error.errno == errno.EFBIG:
        return FileTooLarge(prefix + reason)
    if error.errno in (errno.EIO, errno.ESTALE, errno.ETIMEDOUT):
        return StorageUnavailable(prefix + reason)
    if error.errno == errno.EISDIR:
        return LocalPathError(f"{prefix}a directory is already there")
    return LocalPathError(prefix + reason)
