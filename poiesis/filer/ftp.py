"""ftp and ftps, in both directions, by the standard library's client.

`ftps://` requests TLS (AUTH TLS), on port 990 it uses TLS from the start; data connections are encrypted too. A path is relative to the
login's directory, as in other clients; `//` or `%2F` at its beginning makes it absolute.
"""

from __future__ import annotations

import ftplib
import os
import posixpath
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, ClassVar, Final
from urllib.parse import unquote, urlsplit

from poiesis.domain.errors import (
    AccessDenied,
    NotFound,
    PoiesisError,
    StagingFailed,
    StorageUnavailable,
    UnsupportedUrl,
)
from poiesis.filer.guard import Guard
from poiesis.filer.network import tls_context
from poiesis.filer.registry import Context
from poiesis.filer.sessions import FileState, Login, SessionFiler, finish_replacing
from poiesis.filer.transfer import Changed
from poiesis.filer.urls import shown
from poiesis.ports.filer import RemoteFile

IMPLICIT_PORT: Final = 990
_DENIED: Final = re.compile(r"denied|permission|not allowed|forbidden", re.IGNORECASE)
# the reply of some servers to NLST of an empty directory
_EMPTY: Final = re.compile(r"no (such )?(file|match|entries)|not found|(cannot|can't) find|empty", re.IGNORECASE)
_UNREADABLE: Final = re.compile(r"failed to open directory", re.IGNORECASE)  # vsftpd, in a reply of success
_UNKNOWN: Final = ("500", "501", "502", "504")  # of a command that the server does not have
MAX_REPLY_LINES: Final = 1000
_TOO_LONG: Final = f"the server sent a line of more than {ftplib.MAXLINE} bytes"
_TIMES: Final = re.compile(r"213 +(\d{14}(?:\.\d+)?)")


class _CannotResume(ftplib.Error):
    """The file has become shorter, or the server does not support REST."""


class _Plain(ftplib.FTP):
    """Replies and listings that are bounded in size and time, whatever the server sends."""

    guard: Guard
    connect_s: float
    stall_s: float
    check: Callable[[], None]
    """Called whenever a part of a listing arrives; what it raises ends the listing."""
    _received = b""  # on the control connection, and not used yet
    _lines_left = 0
    _deadline = 0.0

    def connect(self, host: str = "", port: int = 0, *_: Any, **__: Any) -> str:
        self.host, self.port = host, port
        self.sock = self._wrapped(self.guard.connect(host, port, self.connect_s))
        self.sock.settimeout(self.timeout)
        self.af = self.sock.family
        self.welcome = self.getresp()
        return self.welcome

    def _wrapped(self, connection: socket.socket) -> socket.socket:
        return connection

    @property
    def _open_socket(self) -> socket.socket:
        if self.sock is None:
            raise EOFError
        return self.sock

    def putline(self, line: str) -> None:
        """With names of any bytes, unlike ftplib's own."""
        if "\r" in line or "\n" in line:
            raise ValueError("invalid command: it contains a line break")
        self._open_socket.sendall(f"{line}\r\n".encode(errors="surrogateescape"))

    def getmultiline(self) -> str:
        """A reply. Raises: ftplib.Error, TimeoutError, EOFError."""
        self._lines_left, self._deadline = MAX_REPLY_LINES, time.monotonic() + self.stall_s
        return super().getmultiline()

    def getline(self) -> str:
        """A line of a reply. ftplib's own would wait for each byte as long as for the whole reply."""
        self._lines_left -= 1
        if self._lines_left < 0:
            raise ftplib.Error(f"the server's reply has more than {MAX_REPLY_LINES} lines")
        while b"\n" not in self._received:
            if len(self._received) > self.maxline:
                raise ftplib.Error(_TOO_LONG)
            if time.monotonic() > self._deadline:
                raise TimeoutError(f"the server's reply was not complete after {self.stall_s:.0f} s")
            data = self._open_socket.recv(self.maxline)
            if not data:
                raise EOFError
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        return _text(line)

    def lines(self, command: str) -> Iterator[str]:
        """The lines of a listing as they arrive; nothing else can be requested meanwhile. Raises at once: ftplib.error_perm if refused."""
        self.voidcmd("TYPE A")
        return self._lines(self.transfercmd(command))

    def _lines(self, connection: socket.socket) -> Iterator[str]:
        rest = b""
        with connection:
            while data := connection.recv(65536):
                self.check()
                *complete, rest = (rest + data).split(b"\n")
                yield from map(_text, complete)
                if len(rest) > self.maxline:
                    raise ftplib.Error(_TOO_LONG)
            if isinstance(connection, ssl.SSLSocket):
                with suppress(OSError):
                    connection.unwrap()
        if rest:
            yield _text(rest)
        reply = self.voidresp()
        if _UNREADABLE.search(reply):
            raise ftplib.error_perm(reply)


def _text(line: bytes) -> str:
    return line.removesuffix(b"\r").decode(errors="surrogateescape")


class _Secure(_Plain, ftplib.FTP_TLS):
    implicit = False

    def _wrapped(self, connection: socket.socket) -> socket.socket:
        return self.context.wrap_socket(connection, server_hostname=self.host) if self.implicit else connection

    def auth(self) -> str:
        reply = super().auth()
        self._received = b""  # sent before the handshake, so perhaps not by the server
        return reply

    def ntransfercmd(self, cmd: str, rest: int | str | None = None) -> tuple[socket.socket, int | None]:
        """With the control connection's session, which many servers require."""
        connection, size = ftplib.FTP.ntransfercmd(self, cmd, rest)
        session = self.sock.session if isinstance(self.sock, ssl.SSLSocket) else None
        return self.context.wrap_socket(connection, server_hostname=self.host, session=session), size


class FtpFiler(SessionFiler[_Plain]):
    PORT: ClassVar[int] = 21
    # OSError and EOFError among them; ValueError: of a reply without the number that belongs there
    ERRORS: ClassVar[tuple[type[Exception], ...]] = (*ftplib.all_errors, ValueError)

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._tls: ssl.SSLContext | None = None

    def _login(self, url: str, login: Login) -> _Plain:
        stall = self._settings.stall_timeout.total_seconds()
        session: _Plain
        if login.scheme == "ftps":
            self._tls = self._tls or tls_context(self._settings.ca_file)
            session = _Secure(context=self._tls, timeout=stall)
            session.implicit = login.port == IMPLICIT_PORT
        else:
            session = _Plain(timeout=stall)
        session.guard, session.connect_s = self._guard, self._settings.connect_timeout.total_seconds()
        session.stall_s, session.check = stall, self._control.check
        user, password = (login.user, login.password or "") if login.user else ("anonymous", "anonymous@")
        try:
            session.connect(login.host, login.port)
            if isinstance(session, _Secure):
                session.login(user, password, secure=not session.implicit)
                session.prot_p()
            else:
                session.login(user, password)
        except BaseException:
            session.close()
            raise
        return session

    def _is_alive(self, session: _Plain) -> bool:
        try:
            session.voidcmd("NOOP")
        except ftplib.all_errors:
            return False
        return True

    def _path(self, url: str) -> str:
        path = unquote(urlsplit(url).path, errors="surrogateescape")[1:]
        if any(c in path for c in "\r\n\0"):
            raise UnsupportedUrl(f"{shown(url)}: invalid path: it contains a line break or NUL")
        return path

    def _state(self, session: _Plain, path: str) -> FileState | None:
        session.voidcmd("TYPE I")  # SIZE in text mode is refused, or counts otherwise
        size = None
        try:
            size = session.size(path)
        except ftplib.error_perm as error:
            if str(error).startswith("550"):
                return None
            if not str(error).startswith(_UNKNOWN):
                raise
        changed = None
        with suppress(ftplib.error_perm):
            match = _TIMES.match(session.sendcmd(f"MDTM {path}"))
            changed = match and match[1]
        return FileState(size, f"{changed}-{size}" if changed and size is not None else None)

    def _is_directory(self, session: _Plain, path: str) -> bool:
        home = session.pwd()
        try:
            session.cwd(path)
        except ftplib.error_perm:
            return False
        session.cwd(home)
        return True

    def _entries(self, session: _Plain, path: str) -> Iterator[RemoteFile | str]:
        try:
            session.sendcmd("OPTS MLST type;size;")
            lines = session.lines(f"MLSD {path}")
        except ftplib.error_perm as error:
            if not str(error).startswith(_UNKNOWN):
                raise
            yield from self._names(session, path)
            return
        for line in lines:
            listed, _, name = line.partition(" ")
            facts = {key.lower(): value for key, _, value in (fact.partition("=") for fact in listed.split(";"))}
            kind, size = facts.get("type", "file").lower(), facts.get("size", "")
            if "link" in kind:  # such as "OS.unix=slink:/target"
                yield name
            elif kind in ("file", "dir"):
                yield RemoteFile("", name, int(size) if size.isdecimal() else None, is_directory=kind == "dir")
            elif kind not in ("cdir", "pdir"):
                yield RemoteFile("", name, None, problem="is not a regular file, which cannot be staged")

    def _names(self, session: _Plain, path: str) -> Iterator[str]:
        """Of a server without MLSD."""
        try:
            lines = session.lines(f"NLST {path}")
        except ftplib.error_perm as error:
            if str(error).startswith("550") and _EMPTY.search(str(error)):
                return
            raise
        for name in map(posixpath.basename, lines):
            if name not in ("", ".", ".."):
                yield name

    def _asked(self, session: _Plain, path: str, name: str) -> RemoteFile:
        session.voidcmd("TYPE I")
        try:
            return RemoteFile("", name, session.size(posixpath.join(path, name)))
        except ftplib.error_perm:
            return RemoteFile("", name, None, is_directory=self._is_directory(session, posixpath.join(path, name)))

    def _read(self, session: _Plain, path: str, offset: int, state: FileState) -> Iterator[memoryview]:
        try:
            connection = session.transfercmd(f"RETR {path}", offset or None)
        except ftplib.error_perm as error:
            if offset:
                raise _CannotResume(
                    f"the server does not resume the transfer, or the file changed ({error})"
                ) from error
            raise
        try:
            connection.settimeout(self._settings.stall_timeout.total_seconds())
            buffer = memoryview(bytearray(min(self._settings.buffer_bytes, 1 << 18)))
            while count := connection.recv_into(buffer):
                yield buffer[:count]
        finally:
            connection.close()
        session.voidresp()

    def _write(self, session: _Plain, source: int, path: str) -> int | None:
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
        with suppress(ftplib.error_perm):  # a server without SIZE
            return session.size(path)
        return None

    def _make_one(self, session: _Plain, directory: str) -> None:
        with suppress(ftplib.error_perm):
            session.mkd(directory)

    def _rename(self, session: _Plain, temporary: str, path: str) -> None:
        try:
            session.rename(temporary, path)
        except ftplib.error_perm as refusal:
            self._rename_over(session, temporary, path, refusal)

    def _rename_over(self, session: _Plain, temporary: str, path: str, refusal: ftplib.error_perm) -> None:
        """On a server that does not rename over a file: what is there is kept until the new file has its name."""
        if self._is_directory(session, path):
            raise refusal
        before = f"{temporary}-before"
        try:
            session.rename(path, before)
        except ftplib.error_perm:
            raise refusal from None  # there is nothing, or nothing may be renamed
        finish_replacing(session.rename, session.delete, temporary, path, before)

    def _delete(self, session: _Plain, path: str) -> None:
        session.delete(path)

    def _translated(self, url: str, error: Exception) -> PoiesisError:
        text = str(error).strip()[:200]
        message = f"{shown(url)}: {text or type(error).__name__}"
        if isinstance(error, _CannotResume):
            return Changed(message)
        if "CERTIFICATE_VERIFY_FAILED" in text:
            return StagingFailed(f"{shown(url)}: the server's certificate is not trusted")
        if isinstance(error, ftplib.error_perm):
            if text.startswith(("530", "532", "534")) or _DENIED.search(text) or _UNREADABLE.search(text):
                return AccessDenied(message)
            return NotFound(message) if text.startswith("550") else StagingFailed(message)
        is_full = text.startswith("452")
        return StagingFailed(message) if is_full or isinstance(error, ValueError) else StorageUnavailable(message)
