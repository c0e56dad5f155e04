"""sftp, both ways, by paramiko (the extra `sftp`). A host whose key is not in the known hosts file is refused: anybody could answer."""

from __future__ import annotations

import os
import posixpath
import secrets
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

import paramiko

from poiesis.domain.errors import (
    AccessDenied,
    ConfigurationError,
    FileTooLarge,
    NotFound,
    PoiesisError,
    StagingFailed,
    StorageUnavailable,
    UnsupportedUrl,
)
from poiesis.filer.atomic_write import PREFIX, PartialFile, atomic_file
from poiesis.filer.guard import Guard
from poiesis.filer.proxy_tls import logins
from poiesis.filer.registry import Context
from poiesis.filer.transfer import Changed
from poiesis.filer.urls import join, name_problem, shown
from poiesis.ports.filer import RemoteFile, Sent

CHUNK: Final = 256 * 1024
IN_FLIGHT: Final = 64  # requests of 32 KiB asked for ahead: 2 MiB a connection
MAX_DEPTH: Final = 100
CONNECTIONS: Final = 4  # at once; many servers count them for each client


@dataclass(frozen=True)
class _Where:
    host: str
    port: int
    user: str
    password: str | None


@dataclass
class _Reached:
    offset: int = 0
    expected: str | None = None
    state: tuple[int | None, float | None] = (None, None)


class _Session:
    def __init__(self, transport: paramiko.Transport, client: paramiko.SFTPClient) -> None:
        self.transport, self.client = transport, client

    def close(self) -> None:
        self.transport.close()


class SftpFiler:
    def __init__(self, context: Context) -> None:
        self._settings, self._control = context.settings, context.control
        self._guard = Guard(context.settings.allow_addresses)
        self._netrc = logins(context.settings.netrc_file)
        self._known = paramiko.HostKeys()
        try:
            if context.settings.known_hosts_file is not None:
                self._known.load(context.settings.known_hosts_file)
        except OSError as error:
            raise ConfigurationError(f"filer: the known hosts file cannot be read: {error.strerror}") from error
        self._idle: dict[_Where, list[_Session]] = {}
        self._lock = threading.Lock()
        self._turns = threading.BoundedSemaphore(CONNECTIONS)

    def close(self) -> None:
        for sessions in self._idle.values():
            for session in sessions:
                session.close()

    def stat(self, url: str) -> RemoteFile | None:
        try:
            with self._session(url) as (session, path):
                found = session.client.stat(path)
        except NotFound:
            return None
        if stat.S_ISDIR(found.st_mode or 0):
            return None
        return RemoteFile(url, posixpath.basename(path), found.st_size, f"{found.st_mtime}-{found.st_size}")

    def walk(self, url: str) -> Iterator[RemoteFile]:
        yield from self._walk(url, "", 0)

    def fetch(self, file: RemoteFile, target: Path) -> Sent:
        reached = _Reached(expected=file.version)
        with atomic_file(target, sync=self._control.sync, size_bytes=file.size_bytes) as part:
            self._control.repeat(
                lambda: self._continue(file.url, part, reached), lambda: reached.offset, final=(Changed,)
            )
        return Sent(file.url, reached.offset)

    def send(self, source: int, url: str) -> Sent:
        state = os.fstat(source)
        with self._session(url) as (session, path):
            folder, name = posixpath.split(path)
            if not name:
                raise UnsupportedUrl(f"{shown(url)}: names no file")
            _make(session.client, folder)
            temporary = posixpath.join(folder, f"{PREFIX}{secrets.token_hex(8)}")
            try:
                with session.client.open(temporary, "wb") as file:
                    file.set_pipelined(True)
                    offset = 0
                    while data := os.pread(source, CHUNK, offset):
                        file.write(data)
                        offset += len(data)
                        self._control.moved(len(data))
                arrived = session.client.stat(temporary).st_size
                if arrived != state.st_size:
                    raise StorageUnavailable(f"{shown(url)}: {arrived} bytes of {state.st_size} arrived")
                if state.st_mode & stat.S_IXUSR:
                    session.client.chmod(temporary, 0o755)
                session.client.posix_rename(temporary, path)
            except BaseException:
                with suppress(OSError, EOFError, paramiko.SSHException):
                    session.client.remove(temporary)
                raise
        return Sent(url, state.st_size)

    def make_directory(self, url: str) -> None:
        with self._session(url) as (session, path):
            _make(session.client, path.rstrip("/"))

    def _walk(self, url: str, name: str, depth: int) -> Iterator[RemoteFile]:
        if depth > MAX_DEPTH:
            raise StagingFailed(f"{shown(url)}: more than {MAX_DEPTH} directories deep")
        with self._session(url) as (session, path):
            if not stat.S_ISDIR(session.client.stat(path or ".").st_mode or 0):
                raise NotFound(f"{shown(url)}: is no directory")
            entries = []
            for entry in session.client.listdir_attr(path or "."):
                mode = entry.st_mode or 0
                if stat.S_ISLNK(mode):
                    mode = session.client.stat(posixpath.join(path, entry.filename)).st_mode or 0
                if not entry.filename.startswith(PREFIX):
                    entries.append((entry.filename, stat.S_ISDIR(mode), entry.st_size))
        if not entries:
            yield RemoteFile(url, name, 0, is_directory=True)
        for child, is_directory, size in sorted(entries):
            if name_problem(child) or "/" in child:
                raise StagingFailed(f"{shown(url)}: lists the name {child!r}, which is none of a file in it")
            inner = f"{name}/{child}" if name else child
            if is_directory:
                yield from self._walk(join(url, child), inner, depth + 1)
            else:
                yield RemoteFile(join(url, child), inner, size)

    def _continue(self, url: str, part: PartialFile, reached: _Reached) -> None:
        with self._session(url) as (session, path):
            found = session.client.stat(path)
            if stat.S_ISDIR(found.st_mode or 0):
                raise NotFound(f"{shown(url)}: is a directory")
            most, size = self._settings.max_file_bytes, found.st_size or 0
            if most is not None and size > most:
                raise FileTooLarge(f"{shown(url)}: {size} bytes; at most {most}")
            if reached.offset and (found.st_size, found.st_mtime) != reached.state:
                reached.offset = 0
                os.ftruncate(part.descriptor, 0)
            reached.state = (found.st_size, found.st_mtime)
            if reached.expected is not None and f"{found.st_mtime}-{found.st_size}" != reached.expected:
                raise Changed(f"{shown(url)}: the file has changed meanwhile")
            with session.client.open(path, "rb") as file:
                file.seek(reached.offset)
                file.prefetch(size, max_concurrent_requests=IN_FLIGHT)
                while reached.offset < size and (data := file.read(min(CHUNK, size - reached.offset))):
                    part.write(data, reached.offset)
                    reached.offset += len(data)
                    self._control.moved(len(data))
            if (found.st_mode or 0) & stat.S_IXUSR:
                part.executable()
        if reached.offset != size:
            raise StorageUnavailable(f"{shown(url)}: {reached.offset} bytes of {size} came")

    @contextmanager
    def _session(self, url: str) -> Iterator[tuple[_Session, str]]:
        where = self._where(url)
        path = unquote(urlsplit(url).path, errors="surrogateescape")
        path = path[1:] if path.startswith("/~/") else path
        path = path[2:] if path.startswith("~/") else path  # the login's own directory
        session: _Session | None = None
        try:
            with self._turns:
                session = self._kept(where) or self._login(where)
                yield session, path
        except PoiesisError:
            if session is not None:
                session.close()
            raise
        except (OSError, EOFError, paramiko.SSHException) as error:
            if session is not None:
                session.close()
            raise _translated(url, error) from error
        except BaseException:
            if session is not None:
                session.close()
            raise
        with self._lock:
            self._idle.setdefault(where, []).append(session)

    def _kept(self, where: _Where) -> _Session | None:
        with self._lock:
            kept = self._idle.get(where, [])
            while kept:
                session = kept.pop()
                if session.transport.is_active():
                    return session
                session.close()
        return None

    def _where(self, url: str) -> _Where:
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port or 22
        except ValueError as error:
            raise UnsupportedUrl(f"{shown(url)}: is no URL: {error}") from error
        if not host:
            raise UnsupportedUrl(f"{shown(url)}: names no host")
        if parts.username:
            return _Where(host, port, unquote(parts.username), unquote(parts.password) if parts.password else None)
        user, password = self._netrc.get(host, ("", ""))
        if not user:
            raise AccessDenied(f"{shown(url)}: neither the URL nor the site's netrc file has a user for this host")
        return _Where(host, port, user, password or None)

    def _login(self, where: _Where) -> _Session:
        connect, stall = (t.total_seconds() for t in (self._settings.connect_timeout, self._settings.stall_timeout))
        connection = self._guard.connect(where.host, where.port, connect)
        transport = paramiko.Transport(connection)
        try:
            transport.banner_timeout = transport.auth_timeout = connect
            known = f"[{where.host}]:{where.port}" if where.port != 22 else where.host
            keys = self._known.lookup(known)
            if keys:
                options = transport.get_security_options()
                options.key_types = tuple(t for t in options.key_types if _key_type(t) in keys) or options.key_types
            transport.start_client(timeout=connect)
            if not self._known.check(known, transport.get_remote_server_key()):
                raise AccessDenied(f"{known}: the host's key is not in the site's known hosts file")
            if where.password is not None:
                transport.auth_password(where.user, where.password)
            elif self._settings.ssh_key_file is not None:
                transport.auth_publickey(where.user, paramiko.PKey.from_path(self._settings.ssh_key_file))
            else:
                raise AccessDenied(f"{known}: there is neither a password nor a key file for user {where.user}")
            client = paramiko.SFTPClient.from_transport(transport)
            if client is None:
                raise StorageUnavailable(f"{known}: opened no session")
            client.get_channel().settimeout(stall)  # type: ignore[union-attr]
        except BaseException:
            transport.close()
            raise
        return _Session(transport, client)


def _key_type(name: str) -> str:
    return "ssh-rsa" if name.startswith("rsa-sha2-") else name


def _make(client: paramiko.SFTPClient, folder: str) -> None:
    so_far = "/" if folder.startswith("/") else ""
    for name in [n for n in folder.split("/") if n]:
        so_far = posixpath.join(so_far, name)
        try:
            client.stat(so_far)
        except FileNotFoundError:
            with suppress(OSError):  # another thread was first; what comes next tells
                client.mkdir(so_far)


def _translated(url: str, error: Exception) -> PoiesisError:
    text = shown(url)
    if isinstance(error, FileNotFoundError):
        return NotFound(f"{text}: there is no such file or directory")
    if isinstance(error, PermissionError):
        return AccessDenied(f"{text}: permission denied")
    if isinstance(error, paramiko.AuthenticationException):
        return AccessDenied(f"{text}: the login was refused")
    return StorageUnavailable(f"{text}: {str(error)[:200] or type(error).__name__}")
