"""Inputs kept for other tasks: a thousand tasks with one reference genome fetch it once.

An entry is a file named by URL and version (ETag and the like), so it never changes, and a task asks the store for the version with its
own credentials before it uses the entry. Since a store may show a version to whom it would not give the content (a listing, a file without
permissions), only tasks with the same credentials share entries (`cache_scope`). One process fetches, under a lock of the entry, and
others wait; the kernel releases the lock of a process that ends, so a crash leaves only a temporary file, which the next eviction removes.
A file leaves the cache as a reflink where the file system has them, else as a copy: tasks may write to their inputs, and a hard link would
let one task change another's. An error of the cache is never an error of the task: the file is then fetched as if there were no cache.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from poiesis.domain.errors import PoiesisError
from poiesis.filer.atomic_write import atomic_file
from poiesis.filer.local import copy_file
from poiesis.filer.settings import FilerSettings
from poiesis.filer.transfer import POLL, Control
from poiesis.filer.volume import LocalPathError
from poiesis.ports.filer import RemoteFile, Sent

WAIT_S: Final = 3600.0  # for another task's fetch; after that this one fetches by itself
SLOT_DIGITS: Final = 3  # of a key, in hexadecimal: 4,096 lock files
LOW_WATER: Final = 0.9  # an eviction continues until this share is left
EVICTION: Final = "all"  # a lock's name that no entry can have
_DISK: Final = frozenset({errno.EFBIG, errno.EIO, errno.ESTALE})  # where `LocalPathError` is not the translation
_CLONE: Final = 0x40049409  # FICLONE


class Cache:
    def __init__(self, settings: FilerSettings, control: Control, note: Callable[[str], None]) -> None:
        self._settings, self._control, self._note = settings, control, note
        root = Path(str(settings.cache_dir))
        self._entries, self._locks, self._partial = root / "entries", root / "locks", root / "partial"

    def fetch(self, file: RemoteFile, target: Path, fetch: Callable[[RemoteFile, Path], Sent]) -> Sent:
        """Like `fetch(file, target)`, from the cache where possible. Raises: what `fetch` raises."""
        size = file.size_bytes
        if (
            file.version is None
            or size is None
            or not self._settings.cache_min_bytes <= size <= self._settings.cache_bytes
        ):
            return fetch(file, target)
        named = f"{file.url}\0{file.version}\0{size}"
        named += f"\0{self._settings.cache_scope}" if self._settings.cache_scope else ""
        key = hashlib.sha256(named.encode(errors="surrogateescape")).hexdigest()
        entry = self._entries / key[:2] / key
        try:
            for directory in (entry.parent, self._locks, self._partial):
                directory.mkdir(parents=True, exist_ok=True)
            if self._placed(entry, target, size):
                return Sent(file.url, size)
            with self._locked(key) as held:
                if held and not self._placed(entry, target, size):
                    self._fill(file, key, entry, fetch)
                if held and self._placed(entry, target, size):
                    self._evict(size)
                    return Sent(file.url, size)
        except OSError as error:
            self._note(f"the input cache could not be used: {error.strerror}")
        return fetch(file, target)

    def _fill(self, file: RemoteFile, key: str, entry: Path, fetch: Callable[[RemoteFile, Path], Sent]) -> None:
        self._evict(file.size_bytes or 0, before=True)
        # a directory, since fetching creates its own temporary names
        room = self._partial / f"{key}.{secrets.token_hex(4)}"
        arriving = room / "file"
        try:
            room.mkdir()
            try:
                fetch(file, arriving)
            except PoiesisError as error:
                if _is_of_disk(error):
                    raise OSError(errno.EIO, str(error)) from error
                raise
            with arriving.open("rb") as written:
                os.fsync(written.fileno())
            executable = os.stat(arriving).st_mode & 0o111
            os.chmod(arriving, 0o555 if executable else 0o444)
            os.rename(arriving, entry)
        finally:
            shutil.rmtree(room, ignore_errors=True)

    def _placed(self, entry: Path, target: Path, size: int) -> bool:
        """Copy the entry to `target`; False if there is none."""
        try:
            source = os.open(entry, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            state = os.fstat(source)
            if state.st_size != size:  # damaged
                with suppress(OSError):
                    os.unlink(entry)
                return False
            with suppress(OSError):
                os.utime(entry)  # used now: evicted late
            with atomic_file(target, sync=self._control.sync, size_bytes=size) as part:
                try:
                    fcntl.ioctl(part.descriptor, _CLONE, source)
                except OSError:
                    copy_file(source, part, self._control.moved)
                if os.fstat(part.descriptor).st_size != size:
                    raise OSError(errno.EIO, "the entry was truncated")
                if state.st_mode & 0o111:
                    part.executable()
            return True
        finally:
            os.close(source)

    @contextmanager
    def _locked(self, key: str, *, wait: bool = True) -> Iterator[bool]:
        """Hold the lock for a name; False when it could not be acquired in time. Names share lock files, which cannot be removed safely."""
        descriptor = os.open(self._locks / key[:SLOT_DIGITS], os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            deadline = time.monotonic() + (WAIT_S if wait else 0)
            held = False
            while not held:
                self._control.check()
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    held = True
                except BlockingIOError:
                    if time.monotonic() >= deadline:
                        break
                    time.sleep(POLL)
            yield held
        finally:
            os.close(descriptor)

    def _evict(self, size: int, *, before: bool = False) -> None:
        """Remove the least recently used entries when there are too many bytes. One process at a time; the others skip it."""
        with self._locked(EVICTION, wait=before) as held:
            if not held:
                return
            self._remove_stale()
            found = []
            for path in self._entries.glob("*/*"):
                with suppress(OSError):
                    state = path.stat()
                    found.append((state.st_mtime, state.st_size, path))
            total = sum(s for _, s, _ in found) + (size if before else 0)
            if total <= self._settings.cache_bytes:
                return
            for _, each, path in sorted(found):
                with suppress(OSError):
                    path.unlink()
                    total -= each
                if total <= self._settings.cache_bytes * LOW_WATER:
                    return

    def _remove_stale(self) -> None:
        """Remove what a crash left: a directory whose entry is not locked."""
        for path in self._partial.iterdir():
            with self._locked(path.name, wait=False) as held:
                if held:
                    shutil.rmtree(path, ignore_errors=True)


def _is_of_disk(error: BaseException | None) -> bool:
    """Whether the disk caused the error, not the transfer."""
    while error is not None:
        if isinstance(error, LocalPathError) or (isinstance(error, OSError) and error.errno in _DISK):
            return True
        error = error.__cause__
    return False
