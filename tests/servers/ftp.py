"""FTP: pyftpdlib in a thread, a fresh one for each test since it starts in a millisecond."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.servers.process import HOST

USER, PASSWORD = "test", "testtest"
POLL_S = 0.02
STOP_S = 5.0  # seconds; the loop checks the flag every POLL_S


@dataclass(frozen=True)
class FtpServer:
    """An FTP server and the directory that it serves; anonymous users may read, `user` may do everything."""

    host: str
    port: int
    root: Path
    user: str = USER
    password: str = PASSWORD

    @property
    def url(self) -> str:
        """URL of the root for anonymous users, without a slash at the end."""
        return f"ftp://{self.host}:{self.port}"

    @property
    def user_url(self) -> str:
        """URL of the root with user and password in it, without a slash at the end."""
        return f"ftp://{self.user}:{self.password}@{self.host}:{self.port}"


@pytest.fixture
def ftp(tmp_path: Path) -> Iterator[FtpServer]:
    """An FTP server whose root is an empty directory of this test only."""
    # imported here: only the tests that use it pay for it
    from pyftpdlib.authorizers import DummyAuthorizer
    from pyftpdlib.handlers import FTPHandler
    from pyftpdlib.servers import FTPServer

    root = tmp_path / "ftp-root"
    root.mkdir()
    authorizer = DummyAuthorizer()
    authorizer.add_user(USER, PASSWORD, str(root), perm="elradfmwMT")
    authorizer.add_anonymous(str(root))
    handler = type("Handler", (FTPHandler,), {"authorizer": authorizer})
    server = FTPServer((HOST, 0), handler)
    stop = threading.Event()

    def serve() -> None:
        while not stop.is_set():
            server.serve_forever(timeout=POLL_S, blocking=False)
        server.close_all()

    thread = threading.Thread(target=serve, name="ftp-server", daemon=True)
    thread.start()
    yield FtpServer(HOST, server.address[1], root)
    stop.set()
    thread.join(STOP_S)
    assert not thread.is_alive(), "the FTP server did not stop"
