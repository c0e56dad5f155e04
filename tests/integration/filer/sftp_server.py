"""paramiko's own SFTP server over a directory."""

# mypy: disable-error-code="attr-defined,arg-type"

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paramiko


class Login(paramiko.ServerInterface):
    def check_auth_password(self, username: str, password: str) -> int:
        return paramiko.AUTH_SUCCESSFUL if (username, password) == ("me", "pass/word") else paramiko.AUTH_FAILED

    def get_allowed_auths(self, username: str) -> str:
        return "password"

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return paramiko.OPEN_SUCCEEDED


def interface_of(root: Path) -> type:
    def answer(call: Any) -> Any:
        try:
            return call()
        except OSError as error:
            return paramiko.SFTPServer.convert_errno(error.errno)

    def done(call: Any) -> Any:
        """The response of a call without a result."""
        failed = answer(call)
        return paramiko.SFTP_OK if failed is None else failed

    class Interface(paramiko.SFTPServerInterface):
        def at(self, path: str) -> Path:
            return root / path.lstrip("/")

        def list_folder(self, path: str) -> Any:
            return answer(
                lambda: [paramiko.SFTPAttributes.from_stat(p.lstat(), p.name) for p in sorted(self.at(path).iterdir())]
            )

        def stat(self, path: str) -> Any:
            return answer(lambda: paramiko.SFTPAttributes.from_stat(self.at(path).stat()))

        def lstat(self, path: str) -> Any:
            return answer(lambda: paramiko.SFTPAttributes.from_stat(self.at(path).lstat()))

        def canonicalize(self, path: str) -> str:
            return "/" + str(self.at(path).resolve().relative_to(root.resolve())).removeprefix(".")

        def open(self, path: str, flags: int, attr: Any) -> Any:
            def opened() -> Any:
                file = os.fdopen(os.open(self.at(path), flags, 0o644), "wb" if flags & os.O_WRONLY else "rb")
                handle = paramiko.SFTPHandle(flags)
                handle.readfile = handle.writefile = file
                return handle

            return answer(opened)

        def remove(self, path: str) -> int:
            return done(lambda: self.at(path).unlink())

        def mkdir(self, path: str, attr: Any) -> int:
            return done(lambda: self.at(path).mkdir())

        def chattr(self, path: str, attr: Any) -> int:
            return done(lambda: self.at(path).chmod(attr.st_mode))

        def rename(self, oldpath: str, newpath: str) -> int:
            if self.at(newpath).exists():
                return paramiko.SFTP_FAILURE
            return done(lambda: os.rename(self.at(oldpath), self.at(newpath)))

        def posix_rename(self, oldpath: str, newpath: str) -> int:
            return done(lambda: os.replace(self.at(oldpath), self.at(newpath)))

    return Interface


@dataclass(frozen=True)
class Sftp:
    port: int
    root: Path
    known_hosts: Path
    interface: type

    @property
    def url(self) -> str:
        return f"sftp://me:pass%2Fword@127.0.0.1:{self.port}"


@contextmanager
def sftp_server(tmp_path: Path) -> Iterator[Sftp]:
    key = paramiko.ECDSAKey.generate()
    root = tmp_path / "sftp-root"
    root.mkdir()
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.1)
    port = listener.getsockname()[1]
    (tmp_path / "known").write_text(f"[127.0.0.1]:{port} {key.get_name()} {key.get_base64()}\n")
    stop = threading.Event()
    transports: list[Any] = []
    interface = interface_of(root)

    def serve() -> None:
        while not stop.is_set():
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            transport = paramiko.Transport(connection)
            transport.add_server_key(key)
            transport.set_subsystem_handler("sftp", paramiko.SFTPServer, interface)
            transport.start_server(server=Login(), event=threading.Event())
            transports.append(transport)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield Sftp(port, root, tmp_path / "known", interface)
    stop.set()
    thread.join(5)
    for transport in transports:
        transport.close()
    listener.close()
