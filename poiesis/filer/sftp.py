"""sftp, in both directions, by paramiko (the extra `sftp`). A host whose key is not in the known hosts file is refused."""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Iterator
from contextlib import suppress
from typing import ClassVar, Final
from urllib.parse import unquote, urlsplit

import paramiko

from poiesis.domain.errors import (
    AccessDenied,
    ConfigurationError,
    NotFound,
    PoiesisError,
    StagingFailed,
    StorageUnavailable,
)
from poiesis.filer.registry import Context
from poiesis.filer.sessions import FileState, Login, SessionFiler, finish_replacing
from poiesis.filer.urls import shown
from poiesis.filer.volume import special_kind
from poiesis.ports.filer import RemoteFile

CHUNK: Final = 256 * 1024
IN_FLIGHT: Final = 64  # read-ahead requests of 32 KiB: 2 MiB per connection


class _Session:
    def __init__(self, transport: paramiko.Transport, client: paramiko.SFTPClient) -> None:
        self.transport, self.client = transport, client

    def close(self) -> None:
        self.transport.close()


class SftpFiler(SessionFiler[_Session]):
    PORT: ClassVar[int] = 22
    ERRORS: ClassVar[tuple[type[Exception], ...]] = (
        OSError,
        EOFError,
        paramiko.SSHException,
        paramiko.SFTPError,
        UnicodeError,
    )

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._known = paramiko.HostKeys()
        try:
            if context.settings.known_hosts_file is not None:
                self._known.load(context.settings.known_hosts_file)
        except OSError as error:
            raise ConfigurationError(f"filer: the known hosts file cannot be read: {error.strerror}") from error

    def _login(self, url: str, login: Login) -> _Session:
        if not login.user:
            raise AccessDenied(f"{shown(url)}: missing user: neither the URL nor the site's netrc file has one")
        connect, stall = (t.total_seconds() for t in (self._settings.connect_timeout, self._settings.stall_timeout))
        transport = paramiko.Transport(self._guard.connect(login.host, login.port, connect))
        try:
            transport.banner_timeout = transport.auth_timeout = connect
            known = f"[{login.host}]:{login.port}" if login.port != self.PORT else login.host
            keys = self._known.lookup(known)
            if keys:
                options = transport.get_security_options()
                options.key_types = tuple(t for t in options.key_types if _key_type(t) in keys) or options.key_types
            transport.start_client(timeout=connect)
            if not self._known.check(known, transport.get_remote_server_key()):
                raise AccessDenied(f"{known}: the host's key is not in the site's known hosts file")
            if login.password is not None:
                transport.auth_password(login.user, login.password)
            elif self._settings.ssh_key_file is not None:
                transport.auth_publickey(login.user, paramiko.PKey.from_path(self._settings.ssh_key_file))
            else:
                raise AccessDenied(f"{known}: there is neither a password nor a key file for user {login.user}")
            client = paramiko.SFTPClient.from_transport(transport)
            if client is None:
                raise StorageUnavailable(f"{known}: could not open a session")
            client.get_channel().settimeout(stall)  # type: ignore[union-attr]
        except BaseException:
            transport.close()
            raise
        return _Session(transport, client)

    def _is_alive(self, session: _Session) -> bool:
        return session.transport.is_active()

    def _path(self, url: str) -> str:
        path = unquote(urlsplit(url).path, errors="surrogateescape")
        return path[3:] if path.startswith("/~/") else path  # relative to the login's own directory

    def _state(self, session: _Session, path: str) -> FileState | None:
        try:
            found = session.client.stat(path)
        except FileNotFoundError:
            return None
        mode = found.st_mode or 0
        if stat.S_ISDIR(mode):
            return None
        size = found.st_size
        version = f"{found.st_mtime}-{size}" if size is not None and found.st_mtime is not None else None
        return FileState(size, version, bool(mode & stat.S_IXUSR))

    def _is_directory(self, session: _Session, path: str) -> bool:
        try:
            return stat.S_ISDIR(session.client.stat(path).st_mode or 0)
        except FileNotFoundError:
            return False

    def _entries(self, session: _Session, path: str) -> Iterator[RemoteFile | str]:
        # one request at a time: paramiko takes the responses to several for ordered, which the protocol does not promise
        for entry in session.client.listdir_iter(path, read_aheads=1):
            mode = entry.st_mode or stat.S_IFREG
            if stat.S_ISLNK(mode):
                yield entry.filename
            else:
                yield _entry(entry.filename, mode, entry.st_size)

    def _asked(self, session: _Session, path: str, name: str) -> RemoteFile:
        target = posixpath.join(path, name)
        try:
            found = session.client.stat(target)
            mode = found.st_mode or stat.S_IFREG
            if stat.S_ISDIR(mode) and self._holds(session, target, path):
                return RemoteFile("", name, None, problem="is a symbolic link to one of its parent directories")
        except OSError:
            return RemoteFile("", name, None, problem="is a dangling symbolic link")
        return _entry(name, mode, found.st_size)

    def _holds(self, session: _Session, directory: str, path: str) -> bool:
        outer, inner = (session.client.normalize(p) for p in (directory, path))
        return inner == outer or inner.startswith(outer.rstrip("/") + "/")

    def _read(self, session: _Session, path: str, offset: int, state: FileState) -> Iterator[bytes]:
        size = state.size_bytes
        if size is None and self._state(session, path) is None:
            raise FileNotFoundError
        with session.client.open(path, "rb") as file:
            file.seek(offset)
            if size is not None:
                file.prefetch(size, max_concurrent_requests=IN_FLIGHT)
            while data := file.read(CHUNK if size is None else min(CHUNK, size - offset)):
                offset += len(data)
                yield data

    def _write(self, session: _Session, source: int, path: str) -> int | None:
        with session.client.open(path, "wb") as file:
            file.set_pipelined(True)
            offset = 0
            while data := os.pread(source, CHUNK, offset):
                file.write(data)
                offset += len(data)
                self._control.moved(len(data))
        if os.fstat(source).st_mode & stat.S_IXUSR:
            session.client.chmod(path, 0o755)
        return session.client.stat(path).st_size

    def _make_one(self, session: _Session, directory: str) -> None:
        try:
            session.client.stat(directory)
        except FileNotFoundError:
            with suppress(OSError):  # another thread was first
                session.client.mkdir(directory)

    def _rename(self, session: _Session, temporary: str, path: str) -> None:
        try:
            session.client.posix_rename(temporary, path)
            return
        except OSError as error:
            if type(error) is not OSError:  # not there, not allowed, or a time-out
                raise
        # a server without OpenSSH's extension: its own rename does not replace a file
        if self._state(session, path) is None:
            session.client.rename(temporary, path)
            return
        before = f"{temporary}-before"
        session.client.rename(path, before)
        finish_replacing(session.client.rename, session.client.remove, temporary, path, before)

    def _delete(self, session: _Session, path: str) -> None:
        session.client.remove(path)

    def _translated(self, url: str, error: Exception) -> PoiesisError:
        if isinstance(error, FileNotFoundError):
            return NotFound(f"{shown(url)}: no such file or directory")
        if isinstance(error, PermissionError):
            return AccessDenied(f"{shown(url)}: permission denied")
        if isinstance(error, paramiko.AuthenticationException):
            return AccessDenied(f"{shown(url)}: the login was refused")
        if isinstance(error, UnicodeError):
            return StagingFailed(f"{shown(url)}: a file name is not UTF-8, which sftp URLs do not support")
        return StorageUnavailable(f"{shown(url)}: {str(error)[:200] or type(error).__name__}")


def _entry(name: str, mode: int, size: int | None) -> RemoteFile:
    is_directory = stat.S_ISDIR(mode)
    return RemoteFile("", name, size, is_directory=is_directory, problem=None if is_directory else special_kind(mode))


def _key_type(name: str) -> str:
    return "ssh-rsa" if name.startswith("rsa-sha2-") else name
