"""What ftp and sftp have in common: logged-in sessions that are kept for other files, walking directories, and transfers that resume.

A scheme implements the methods from `_login` on; they may raise `ERRORS`, which `_translated` turns into the family of domain.errors.
"""

from __future__ import annotations

import os
import posixpath
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final, Generic, Protocol, TypeVar
from urllib.parse import unquote, urlsplit

from poiesis.domain.errors import (
    NotFound,
    PoiesisError,
    StagingFailed,
    StorageUnavailable,
    UnsupportedUrl,
)
from poiesis.filer.atomic_write import PREFIX, PartialFile, atomic_file
from poiesis.filer.guard import Guard
from poiesis.filer.network import logins
from poiesis.filer.registry import Context
from poiesis.filer.transfer import Changed
from poiesis.filer.urls import join, name_problem, shown
from poiesis.ports.filer import RemoteFile, Sent

MAX_DEPTH: Final = 100
CONNECTIONS: Final = 4  # at once; many servers count them for each client


class Session(Protocol):
    def close(self) -> object: ...


S = TypeVar("S", bound=Session)


@dataclass(frozen=True)
class Login:
    """Where and as which user; sessions are kept by it. `user` is empty where neither the URL nor the site's netrc file has one."""

    scheme: str
    host: str
    port: int
    user: str
    password: str | None


@dataclass(frozen=True)
class FileState:
    """What the server reports about a file. None: not reported, so a broken transfer starts again."""

    size_bytes: int | None = None
    version: str | None = None
    is_executable: bool = False


@dataclass
class _Reached:
    """How far a download is, over all its attempts."""

    expected: str | None
    offset: int = 0
    version: str | None = None


def finish_replacing(
    rename: Callable[[str, str], object], remove: Callable[[str], object], temporary: str, path: str, before: str
) -> None:
    """Give the new file, which is `temporary`, its name, on a server that does not rename over a file. The old one, which was moved to
    `before`, gets it back if that fails."""
    try:
        rename(temporary, path)
    except BaseException:
        rename(before, path)
        raise
    remove(before)


class SessionFiler(Generic[S]):
    PORT: ClassVar[int]
    ERRORS: ClassVar[tuple[type[Exception], ...]]

    def __init__(self, context: Context) -> None:
        self._settings, self._control = context.settings, context.control
        self._guard = Guard(context.settings.allow_addresses)
        self._netrc = logins(context.settings.netrc_file)
        self._idle: dict[Login, list[S]] = {}
        self._made: set[tuple[Login, str]] = set()
        self._lock = threading.Lock()
        self._turns = threading.BoundedSemaphore(CONNECTIONS)

    def close(self) -> None:
        for sessions in self._idle.values():
            for session in sessions:
                session.close()

    def stat(self, url: str) -> RemoteFile | None:
        with self._session(url) as (session, path):
            state = self._state(session, path)
        return None if state is None else RemoteFile(url, posixpath.basename(path), state.size_bytes, state.version)

    def walk(self, url: str) -> Iterator[RemoteFile]:
        with self._session(url) as (session, path):
            if not self._is_directory(session, path or "."):
                raise NotFound(f"{shown(url)}: no such directory")
        yield from self._walk(url, "", 0)

    def fetch(self, file: RemoteFile, target: Path) -> Sent:
        reached = _Reached(file.version)
        with atomic_file(target, sync=self._control.sync, size_bytes=file.size_bytes) as part:
            self._control.repeat(
                lambda: self._continue(file.url, part, reached), lambda: reached.offset, final=(Changed,)
            )
        return Sent(file.url, reached.offset)

    def send(self, source: int, url: str) -> Sent:
        size = os.fstat(source).st_size
        with self._session(url) as (session, path):
            directory, name = posixpath.split(path)
            if not name:
                raise UnsupportedUrl(f"{shown(url)}: missing file name")
            self._make(session, self._parsed(url), directory)
            temporary = posixpath.join(directory, f"{PREFIX}{secrets.token_hex(8)}")
            try:
                arrived = self._write(session, source, temporary)
                if arrived is not None and arrived != size:
                    raise StorageUnavailable(f"{shown(url)}: {arrived} bytes of {size} arrived")
                self._rename(session, temporary, path)
            except BaseException:
                with suppress(*self.ERRORS):
                    self._delete(session, temporary)
                raise
        return Sent(url, size)

    def make_directory(self, url: str) -> None:
        with self._session(url) as (session, path):
            self._make(session, self._parsed(url), path.rstrip("/"))

    def _walk(self, url: str, name: str, depth: int, held: int = 0) -> Iterator[RemoteFile]:
        """`held`: how many entries of the directories above are in memory."""
        if depth > MAX_DEPTH:
            raise StagingFailed(f"{shown(url)}: more than {MAX_DEPTH} directories deep, or a loop of symbolic links")
        with self._session(url) as (session, path):
            entries = self._listed(session, url, path or ".", held - depth)
        if not entries:
            yield RemoteFile(url, name, 0, is_directory=True)
        for entry in entries:
            child = entry.name
            inner, address = (f"{name}/{child}" if name else child), join(url, child)
            if entry.is_directory and entry.problem is None:
                yield from self._walk(address, inner, depth + 1, held + len(entries))
            elif not child.startswith(PREFIX):
                yield RemoteFile(address, inner, entry.size_bytes, problem=entry.problem)

    def _listed(self, session: S, url: str, path: str, held: int) -> list[RemoteFile]:
        """The entries of a directory, sorted. Counted as they arrive, since some listings never end."""
        found: list[RemoteFile | str] = []
        for entry in self._entries(session, path):
            name = entry if isinstance(entry, str) else entry.name
            if (problem := name_problem(name)) or "/" in name:
                raise StagingFailed(
                    f"{shown(url)}: invalid name {name!r} in the listing: {problem or 'contains a slash'}"
                )
            found.append(entry)
            if held + len(found) > self._settings.max_files:
                raise StagingFailed(f"{shown(url)}: more than {self._settings.max_files} files in one task")
            self._control.check()
        entries = []
        for entry in found:
            entries.append(self._asked(session, path, entry) if isinstance(entry, str) else entry)
            self._control.check()
        return sorted(entries, key=lambda entry: entry.name)

    def _continue(self, url: str, part: PartialFile, reached: _Reached) -> None:
        with self._session(url) as (session, path):
            state = self._state(session, path) or FileState()
            if reached.offset and (state.version is None or state.version != reached.version):
                reached.offset = 0
                os.ftruncate(part.descriptor, 0)
            reached.version = state.version
            if reached.expected is not None and state.version != reached.expected:
                raise Changed(f"{shown(url)}: the file changed during the transfer")
            self._control.check_size(url, state.size_bytes)
            for data in self._read(session, path, reached.offset, state):
                part.write(data, reached.offset)
                reached.offset += len(data)
                self._control.check_size(url, reached.offset)
                self._control.moved(len(data))
            # within the session, which is then closed: responses to its other requests may be on their way
            if state.size_bytes is not None and reached.offset != state.size_bytes:
                raise StorageUnavailable(f"{shown(url)}: {reached.offset} bytes of {state.size_bytes} arrived")
        if state.is_executable:
            part.executable()

    def _make(self, session: S, login: Login, directory: str) -> None:
        """`directory` and those above it."""
        so_far = "/" if directory.startswith("/") else ""
        for name in [n for n in directory.split("/") if n]:
            so_far = posixpath.join(so_far, name)
            if (login, so_far) not in self._made:  # two threads may make one, which does no harm
                self._make_one(session, so_far)
                self._made.add((login, so_far))

    def _parsed(self, url: str) -> Login:
        """Raises: UnsupportedUrl."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port or self.PORT
        except ValueError as error:
            raise UnsupportedUrl(f"{shown(url)}: invalid URL: {error}") from error
        if not host:
            raise UnsupportedUrl(f"{shown(url)}: missing host")
        if parts.username:
            user, password = unquote(parts.username), unquote(parts.password) if parts.password else None
        else:
            user, password = self._netrc.get(host, ("", None))
        return Login(parts.scheme.lower(), host, port, user, password or None)

    @contextmanager
    def _session(self, url: str) -> Iterator[tuple[S, str]]:
        """A logged-in session, kept for others when all went well, and the path of `url`."""
        login, path = self._parsed(url), self._path(url)
        session: S | None = None
        try:
            with self._turns:
                session = self._kept(login) or self._login(url, login)
                yield session, path
        except BaseException as error:
            if session is not None:
                session.close()
            if isinstance(error, self.ERRORS) and not isinstance(error, PoiesisError):
                raise self._translated(url, error) from error
            raise
        with self._lock:
            self._idle.setdefault(login, []).append(session)

    def _kept(self, login: Login) -> S | None:
        while True:
            with self._lock:
                kept = self._idle.get(login)
                session = kept.pop() if kept else None
            if session is None or self._is_alive(session):
                return session
            session.close()

    # of each scheme

    def _login(self, url: str, login: Login) -> S:
        raise NotImplementedError

    def _is_alive(self, session: S) -> bool:
        raise NotImplementedError

    def _path(self, url: str) -> str:
        """Of the file on the server. Raises: UnsupportedUrl."""
        raise NotImplementedError

    def _translated(self, url: str, error: Exception) -> PoiesisError:
        raise NotImplementedError

    def _state(self, session: S, path: str) -> FileState | None:
        """None: there is no such file, or it is a directory."""
        raise NotImplementedError

    def _is_directory(self, session: S, path: str) -> bool:
        raise NotImplementedError

    def _entries(self, session: S, path: str) -> Iterable[RemoteFile | str]:
        """The directory's entries as they arrive, without `url`; of one about which the server has to be asked, the name."""
        raise NotImplementedError

    def _asked(self, session: S, path: str, name: str) -> RemoteFile:
        """The entry `name` of the directory `path`, without `url`."""
        raise NotImplementedError

    def _read(self, session: S, path: str, offset: int, state: FileState) -> Iterator[bytes | memoryview]:
        raise NotImplementedError

    def _write(self, session: S, source: int, path: str) -> int | None:
        """How many bytes the server has afterwards; None: not reported."""
        raise NotImplementedError

    def _make_one(self, session: S, directory: str) -> None:
        """Create a directory that may exist already; a refusal shows when it is used."""
        raise NotImplementedError

    def _rename(self, session: S, temporary: str, path: str) -> None:
        raise NotImplementedError

    def _delete(self, session: S, path: str) -> None:
        raise NotImplementedError
