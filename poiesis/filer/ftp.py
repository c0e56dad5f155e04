"""ftp and ftps, both ways, by the standard library's client.

`ftps://` is FTP with TLS asked for (AUTH TLS), on port 990 TLS from the start; data connections are encrypted too. A path is relative to
the login's directory, as in other clients; `//` or `%2F` at its beginning makes it absolute.
"""

from __future__ import annotations

import ftplib
import os
import posixpath
import re
import secrets
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from poiesis.domain.errors import (
    AccessDenied,
    FileTooLarge,
    NotFound,
    PoiesisError,
    StagingFailed,
    StorageUnavailable,
    UnsupportedUrl,
)
from poiesis.filer.atomic_write import PREFIX, PartialFile, atomic_file
from poiesis.filer.guard import Guard
from poiesis.filer.proxy_tls import logins, tls_context
from poiesis.filer.registry import Context
from poiesis.filer.transfer import Changed
from poiesis.filer.urls import join, name_problem, shown
from poiesis.ports.filer import RemoteFile, Sent

IMPLICIT_PORT: Final = 990
MAX_DEPTH: Final = 100
CONNECTIONS: Final = 4  # at once; many servers count them for each client
_DENIED: Final = re.compile(r"denied|permission|not allowed|forbidden", re.IGNORECASE)
_UNKNOWN: Final = ("500", "501", "502", "504")  # of a command that the server does not have
_TIMES: Final = re.compile(r"213 +(\d{14}(?:\.\d+)?)")


class _Plain(ftplib.FTP):
    guard: Guard
    connect_s: float

    def connect(self, host: str = "", port: int = 0, *_: Any, **__: Any) -> str:
        self.host, self.port = host, port
        self.sock = self._wrapped(self.guard.connect(host, port, self.connect_s))
        self.sock.settimeout(self.timeout)
        self.af = self.sock.family
        self.file = self.sock.makefile("r", encoding=self.encoding, errors="surrogateescape")
        self.welcome = self.getresp()
        return self.welcome

    def _wrapped(self, connection: socket.socket) -> socket.socket:
        return connection


class _Secure(_Plain, ftplib.FTP_TLS):
    implicit = False

    def _wrapped(self, connection: socket.socket) -> socket.socket:
        return self.context.wrap_socket(connection, server_hostname=self.host) if self.implicit else connection

    def ntransfercmd(self, cmd: str, rest: int | str | None = None) -> tuple[socket.socket, int | None]:
        """With the control connection's session, which many servers ask for."""
        connection, size = ftplib.FTP.ntransfercmd(self, cmd, rest)
        session = self.sock.session if isinstance(self.sock, ssl.SSLSocket) else None
        return self.context.wrap_socket(connection, server_hostname=self.host, session=session), size


@dataclass(frozen=True)
class _Where:
    scheme: str
    host: str
    port: int
    user: str
    password: str


@dataclass
class _Reached:
    offset: int = 0
    expected: str | None = None
    size: int | None = None
    changed: str | None = None


class FtpFiler:
    def __init__(self, context: Context) -> None:
        self._settings, self._control = context.settings, context.control
        self._guard = Guard(context.settings.allow_addresses)
        self._netrc = logins(context.settings.netrc_file)
        self._tls: ssl.SSLContext | None = None
        self._idle: dict[_Where, list[_Plain]] = {}
        self._made: set[tuple[_Where, str]] = set()
        self._lock = threading.Lock()
        self._turns = threading.BoundedSemaphore(CONNECTIONS)

    def close(self) -> None:
        for sessions in self._idle.values():
            for session in sessions:
                session.close()

    def stat(self, url: str) -> RemoteFile | None:
        with self._session(url) as (session, path):
            try:
                size = session.size(path)
            except ftplib.error_perm as error:
                if str(error).startswith("550"):
                    return None
                if not str(error).startswith(_UNKNOWN):
                    raise
                size = None
            changed = _changed(session, path)
        version = f"{changed}-{size}" if changed and size is not None else None
        return RemoteFile(url, posixpath.basename(path), size, version)

    def walk(self, url: str) -> Iterator[RemoteFile]:
        with self._session(url) as (session, path):
            if not _is_directory(session, path or "."):
                raise NotFound(f"{shown(url)}: there is no such directory")
        yield from self._walk(url, "", 0)

    def fetch(self, file: RemoteFile, target: Path) -> Sent:
        reached = _Reached(expected=file.version)
        with atomic_file(target, sync=self._control.sync, size_bytes=file.size_bytes) as part:
            self._control.repeat(
                lambda: self._continue(file.url, part, reached), lambda: reached.offset, final=(Changed,)
            )
        return Sent(file.url, reached.offset)

    def send(self, source: int, url: str) -> Sent:
        size = os.fstat(source).st_size
        with self._session(url) as (session, path):
            folder, name = posixpath.split(path)
            if not name:
                raise UnsupportedUrl(f"{shown(url)}: names no file")
            self._make(session, self._where(url), folder)
            temporary = posixpath.join(folder, f"{PREFIX}{secrets.token_hex(8)}")
            try:
                self._store(session, source, temporary)
                with suppress(ftplib.error_perm):  # a server without SIZE
                    arrived = session.size(temporary)
                    if arrived is not None and arrived != size:
                        raise StorageUnavailable(f"{shown(url)}: {arrived} bytes of {size} arrived")
                _rename(session, temporary, path)
            except BaseException:
                with suppress(*ftplib.all_errors, ValueError):
                    session.delete(temporary)
                raise
        return Sent(url, size)

    def make_directory(self, url: str) -> None:
        with self._session(url) as (session, path):
            self._make(session, self._where(url), path.rstrip("/"))

    def _walk(self, url: str, name: str, depth: int) -> Iterator[RemoteFile]:
        if depth > MAX_DEPTH:
            raise StagingFailed(f"{shown(url)}: more than {MAX_DEPTH} directories deep")
        with self._session(url) as (session, path):
            entries = _entries(session, path)
        if not entries:
            yield RemoteFile(url, name, 0, is_directory=True)
        for child, is_directory, size in entries:
            if name_problem(child) or "/" in child:
                raise StagingFailed(f"{shown(url)}: lists the name {child!r}, which is none of a file in it")
            inner, address = (f"{name}/{child}" if name else child), join(url, child)
            if is_directory:
                yield from self._walk(address, inner, depth + 1)
            else:
                yield RemoteFile(address, inner, size)

    def _continue(self, url: str, part: PartialFile, reached: _Reached) -> None:
        with self._session(url) as (session, path):
            session.voidcmd("TYPE I")
            size, changed = None, _changed(session, path)
            with suppress(ftplib.error_perm):
                size = session.size(path)
            if reached.offset and (None in (size, changed) or (size, changed) != (reached.size, reached.changed)):
                reached.offset = 0  # another file, or nobody can tell
                os.ftruncate(part.descriptor, 0)
            reached.size, reached.changed = size, changed
            if reached.expected is not None and f"{changed}-{size}" != reached.expected:
                raise Changed(f"{shown(url)}: the file has changed meanwhile")
            most = self._settings.max_file_bytes
            if most is not None and (size or 0) > most:
                raise FileTooLarge(f"{shown(url)}: {size} bytes; at most {most}")
            connection = session.transfercmd(f"RETR {path}", reached.offset or None)
            try:
                connection.settimeout(self._settings.stall_timeout.total_seconds())
                buffer = memoryview(bytearray(min(self._settings.buffer_bytes, 1 << 18)))
                while count := connection.recv_into(buffer):
                    part.write(buffer[:count], reached.offset)
                    reached.offset += count
                    if most is not None and reached.offset > most:
                        raise FileTooLarge(f"{shown(url)}: more than {most} bytes")
                    self._control.moved(count)
            finally:
                connection.close()
            session.voidresp()
        if size is not None and reached.offset != size:
            raise StorageUnavailable(f"{shown(url)}: {reached.offset} bytes of {size} came")

    def _store(self, session: _Plain, source: int, path: str) -> None:
        session.voidcmd("TYPE I")
        connection = session.transfercmd(f"STOR {path}")
        offset = 0
        try:
            connection.settimeout(self._settings.stall_timeout.total_seconds())
            while data := os.pread(source, 1 << 18, offset):
                connection.sendall(data)
                offset += len(data)
                self._control.moved(len(data))
            if isinstance(connection, ssl.SSLSocket):
                with suppress(OSError):
                    connection.unwrap()
        finally:
            connection.close()
        session.voidresp()

    def _make(self, session: _Plain, where: _Where, folder: str) -> None:
        """`folder` and what is above it. A refusal may mean that it is there; what comes next tells."""
        so_far = "/" if folder.startswith("/") else ""
        for name in [n for n in folder.split("/") if n]:
            so_far = posixpath.join(so_far, name)
            with self._lock:
                if (where, so_far) in self._made:
                    continue
            with suppress(ftplib.error_perm):
                session.mkd(so_far)
            with self._lock:
                self._made.add((where, so_far))

    def _where(self, url: str) -> _Where:
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port or 21
        except ValueError as error:
            raise UnsupportedUrl(f"{shown(url)}: is no URL: {error}") from error
        if not host:
            raise UnsupportedUrl(f"{shown(url)}: names no host")
        user, password = "anonymous", "anonymous@"
        if parts.username:
            user, password = unquote(parts.username), unquote(parts.password or "")
        elif host in self._netrc:
            user, password = self._netrc[host]
        return _Where(parts.scheme.lower(), host, port, user, password)

    @contextmanager
    def _session(self, url: str) -> Iterator[tuple[_Plain, str]]:
        """A logged-in session, kept for others when all went well, and the path of `url`."""
        where = self._where(url)
        path = unquote(urlsplit(url).path, errors="surrogateescape")[1:]
        if any(c in path for c in "\r\n\0"):
            raise UnsupportedUrl(f"{shown(url)}: holds a line break")
        session: _Plain | None = None
        try:
            with self._turns:
                session = self._kept(where) or self._login(where)
                yield session, path
        except PoiesisError:
            if session is not None:
                session.close()
            raise
        except ftplib.all_errors as error:  # OSError and EOFError among them
            if session is not None:
                session.close()
            raise _translated(url, error) from error
        except BaseException:
            if session is not None:
                session.close()
            raise
        with self._lock:
            self._idle.setdefault(where, []).append(session)

    def _kept(self, where: _Where) -> _Plain | None:
        while True:
            with self._lock:
                kept = self._idle.get(where)
                session = kept.pop() if kept else None
            if session is None:
                return None
            try:
                session.voidcmd("NOOP")
                return session
            except ftplib.all_errors:
                session.close()

    def _login(self, where: _Where) -> _Plain:
        stall = self._settings.stall_timeout.total_seconds()
        session: _Plain
        if where.scheme == "ftps":
            self._tls = self._tls or tls_context(self._settings.ca_file)
            session = _Secure(context=self._tls, timeout=stall)
            session.implicit = where.port == IMPLICIT_PORT
        else:
            session = _Plain(timeout=stall)
        session.guard, session.connect_s = self._guard, self._settings.connect_timeout.total_seconds()
        try:
            session.connect(where.host, where.port)
            if isinstance(session, _Secure):
                session.login(where.user, where.password, secure=not session.implicit)
                session.prot_p()
            else:
                session.login(where.user, where.password)
        except BaseException:
            session.close()
            raise
        return session


def _entries(session: _Plain, path: str) -> list[tuple[str, bool, int | None]]:
    """Name, whether it is a directory, size; of servers without MLSD by asking for each."""
    try:
        listed = list(session.mlsd(path, facts=["type", "size"]))
    except ftplib.error_perm as error:
        if not str(error).startswith(_UNKNOWN):
            raise
    else:
        return [
            (
                name,
                facts.get("type", "file").lower() == "dir",
                int(size) if (size := facts.get("size", "")).isdigit() else None,
            )
            for name, facts in listed
            if facts.get("type", "file").lower() not in ("cdir", "pdir") and not name.startswith(PREFIX)
        ]
    try:
        names = session.nlst(path)
    except ftplib.error_perm as error:
        if str(error).startswith("550"):  # some say so of an empty directory
            return []
        raise
    found: list[tuple[str, bool, int | None]] = []
    for full in names:
        name = posixpath.basename(full)
        if name in ("", ".", ".."):
            continue
        session.voidcmd("TYPE I")
        try:
            found.append((name, False, session.size(posixpath.join(path, name))))
        except ftplib.error_perm:
            found.append((name, _is_directory(session, posixpath.join(path, name)), None))
    return found


def _is_directory(session: _Plain, path: str) -> bool:
    home = session.pwd()
    try:
        session.cwd(path)
    except ftplib.error_perm:
        return False
    session.cwd(home)
    return True


def _changed(session: _Plain, path: str) -> str | None:
    try:
        match = _TIMES.match(session.sendcmd(f"MDTM {path}"))
    except ftplib.error_perm:
        return None
    return match[1] if match else None


def _rename(session: _Plain, temporary: str, path: str) -> None:
    try:
        session.rename(temporary, path)
    except ftplib.error_perm:
        session.delete(path)  # a server that does not rename over a file
        session.rename(temporary, path)


def _translated(url: str, error: BaseException) -> PoiesisError:
    text = str(error).strip()[:200]
    told = f"{shown(url)}: {text or type(error).__name__}"
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return StagingFailed(f"{shown(url)}: the server's certificate is not trusted")
    if isinstance(error, ftplib.error_perm):
        if text.startswith(("530", "532", "534")) or _DENIED.search(text):
            return AccessDenied(told)
        if text.startswith("550"):
            return NotFound(told)
        return StagingFailed(told)
    if text.startswith("452"):
        return StagingFailed(told)  # no room there
    return StorageUnavailable(told)
