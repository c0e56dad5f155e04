"""ftp against a real server, and ftps against one with TLS."""

from __future__ import annotations

import logging
import os
import random
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest

from tests.servers import FtpServer
from tests.unit.filer.tasks import bring, given, leftovers, quick, send, tree, wanted

BODY = random.Random(2).randbytes(300_000)


def test_a_file_is_uploaded_and_staged(volume: Path, ftp: FtpServer) -> None:
    (volume / "root/data").mkdir(parents=True)
    (volume / "root/data/x").write_bytes(BODY)
    report = send(volume, wanted("/data/x", f"{ftp.user_url}/new/dir/x%20y"), settings=quick())
    assert report.error is None
    assert tree(ftp.root) == {"new/dir/x y": BODY}
    assert "testtest" not in str(report)
    assert bring(volume, given("/data/y", f"{ftp.url}/new/dir/x%20y"), settings=quick()).error is None
    assert (volume / "root/data/y").read_bytes() == BODY


def test_an_upload_replaces_what_was_there(volume: Path, ftp: FtpServer) -> None:
    (ftp.root / "x").write_text("a longer text from before")
    (volume / "root/data").mkdir(parents=True)
    (volume / "root/data/x").write_text("new")
    assert send(volume, wanted("/data/x", f"{ftp.user_url}/x"), settings=quick()).error is None
    assert tree(ftp.root) == {"x": b"new"}


@pytest.mark.parametrize("is_refused_always", [False, True])
def test_a_server_that_does_not_rename_over_a_file_keeps_it_until_the_new_one_is_there(
    volume: Path, ftp: FtpServer, monkeypatch: pytest.MonkeyPatch, is_refused_always: bool
) -> None:
    from pyftpdlib.handlers import FTPHandler

    rename = FTPHandler.ftp_RNTO

    def refusing(self: FTPHandler, path: str) -> object:
        is_new = Path(self._rnfr).read_bytes() == b"new"
        if os.path.exists(path) or (is_refused_always and is_new):
            self.respond("553 Not allowed")
            return None
        return rename(self, path)

    monkeypatch.setattr(FTPHandler, "ftp_RNTO", refusing)
    (ftp.root / "x").write_text("old")
    (volume / "root/data").mkdir(parents=True)
    (volume / "root/data/x").write_text("new")
    report = send(volume, wanted("/data/x", f"{ftp.user_url}/x"), settings=quick())
    assert (report.error is not None) == is_refused_always
    assert {p.name: p.read_text() for p in ftp.root.iterdir()} == {"x": "old" if is_refused_always else "new"}


def test_a_directory_is_uploaded_and_staged(volume: Path, ftp: FtpServer) -> None:
    root = volume / "root/work"
    (root / "e/f").mkdir(parents=True)
    for name in ("a", ".b", "e/c ü"):
        (root / name).write_text(name)
    assert send(volume, wanted("/work", f"{ftp.user_url}/up", "DIRECTORY"), settings=quick()).error is None
    report = bring(volume, given("/back", f"{ftp.url}/up", type=None), settings=quick())
    assert report.error is None
    assert tree(volume / "root/back") == tree(root)


def test_missing_files_and_refused_logins(volume: Path, ftp: FtpServer) -> None:
    for url, code in (
        (f"{ftp.url}/none", "not_found"),
        (ftp.url.replace("ftp://", "ftp://no:body@") + "/x", "access_denied"),
    ):
        patient = quick(stall_timeout=timedelta(seconds=10))  # the server is slow to refuse a login
        assert bring(volume, given("/data/x", url), settings=patient).error_code == code
    (volume / "root/data/x").write_text("x")
    report = send(volume, wanted("/data/x", f"{ftp.url}/x"), settings=quick())
    assert report.error_code in ("access_denied", "staging_failed", "not_found")
    assert leftovers(ftp.root) == []
    refused = bring(volume, given("/data/x", f"{ftp.url}/x"), settings=quick(allow_addresses=()))
    assert refused.error_code == "access_denied"


def test_a_line_break_in_a_path_is_refused(volume: Path, ftp: FtpServer) -> None:
    report = bring(volume, given("/data/x", f"{ftp.url}/x%0d%0aDELE%20y"), settings=quick())
    assert report.error_code == "unsupported_url"


def test_a_file_that_changes_after_a_drop_is_fetched_again(
    volume: Path, ftp: FtpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pyftpdlib.handlers import DTPHandler

    (ftp.root / "x").write_bytes(BODY)
    original, cuts = DTPHandler.send, [1000]

    def cutting(self: DTPHandler, data: bytes) -> int:
        if cuts:
            original(self, data[: cuts.pop()])
            (ftp.root / "x").write_bytes(BODY[::-1])
            os.utime(ftp.root / "x", (1e9, 1e9))
            self.close()
            return 0
        return int(original(self, data))

    monkeypatch.setattr(DTPHandler, "use_sendfile", lambda _: False)
    monkeypatch.setattr(DTPHandler, "send", cutting)
    settings = quick(stall_timeout=timedelta(milliseconds=300))  # this server does not respond after a drop
    assert bring(volume, given("/data/x", f"{ftp.url}/x"), settings=settings).error is None
    assert (volume / "root/data/x").read_bytes() == BODY[::-1]


@pytest.mark.parametrize("command, reply", [("REST", "502 Not implemented"), ("RETR", "554 Invalid REST parameter")])
def test_a_server_that_does_not_resume_sends_the_whole_file_again(
    volume: Path, ftp: FtpServer, monkeypatch: pytest.MonkeyPatch, command: str, reply: str
) -> None:
    from pyftpdlib.handlers import DTPHandler, FTPHandler

    (ftp.root / "x").write_bytes(BODY)
    send_data, answer, cuts = DTPHandler.send, getattr(FTPHandler, f"ftp_{command}"), [1000]

    def cutting(self: DTPHandler, data: bytes) -> int:
        if cuts:
            send_data(self, data[: cuts.pop()])
            self.close()
            return 0
        return int(send_data(self, data))

    def refusing(self: FTPHandler, line: str) -> object:
        if command == "REST" or self._restart_position:
            self.respond(reply)
            return None
        return answer(self, line)

    monkeypatch.setattr(DTPHandler, "use_sendfile", lambda _: False)
    monkeypatch.setattr(DTPHandler, "send", cutting)
    monkeypatch.setattr(FTPHandler, f"ftp_{command}", refusing)
    settings = quick(stall_timeout=timedelta(milliseconds=300))  # this server does not respond after a drop
    assert bring(volume, given("/data/x", f"{ftp.url}/x"), settings=settings).error is None
    assert (volume / "root/data/x").read_bytes() == BODY


def test_a_drop_at_any_byte_is_resumed(volume: Path, ftp: FtpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyftpdlib.handlers import DTPHandler

    (ftp.root / "x").write_bytes(BODY)
    for cut in (0, 1, 1000, 65_536, len(BODY) - 1):
        cuts = [cut]
        original = DTPHandler.send

        def cutting(self: DTPHandler, data: bytes, cuts: list[int] = cuts, original=original) -> int:
            if cuts:
                limit = cuts[0] - self.tot_bytes_sent
                if len(data) >= limit:
                    cuts.pop()
                    if limit > 0:
                        original(self, data[:limit])
                    self.close()
                    return 0
            return original(self, data)

        monkeypatch.setattr(DTPHandler, "send", cutting)
        monkeypatch.setattr(DTPHandler, "use_sendfile", lambda _: False)
        settings = quick(stall_timeout=timedelta(milliseconds=300))  # this server does not respond after a drop
        report = bring(volume, given(f"/data/{cut}", f"{ftp.url}/x"), settings=settings)
        monkeypatch.setattr(DTPHandler, "send", original)
        assert report.error is None
        assert (volume / f"root/data/{cut}").read_bytes() == BODY


def serve_listing(monkeypatch: pytest.MonkeyPatch, lines: Iterable[bytes]) -> None:
    """Let the server answer MLSD with these lines."""
    from pyftpdlib.filesystems import AbstractedFS

    listing = (line + b"\r\n" for line in lines)
    monkeypatch.setattr(AbstractedFS, "format_mlsx", lambda *_, **__: listing)


def test_links_and_special_files_in_a_listing(volume: Path, ftp: FtpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of servers that list links as such, as RFC 3659 describes it."""
    (ftp.root / "d").mkdir()
    (ftp.root / "d/x").write_text("x")
    serve_listing(monkeypatch, [b"type=cdir; .", b"type=OS.unix=slink:/d/x; x", b"type=OS.unix=chr-1/3; null"])
    report = bring(volume, given("/data", f"{ftp.url}/d", type="DIRECTORY"), settings=quick())
    assert (report.error, tree(volume / "root/data")) == (None, {"x": b"x"})
    assert [note.partition(":")[0] for note in report.notes] == ["/data/null"]


@pytest.mark.parametrize("name", ["a/b", "..", "a\0b"])
def test_an_invalid_name_in_a_listing_is_refused(
    volume: Path, ftp: FtpServer, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    serve_listing(monkeypatch, [f"type=file; {name}".encode()])
    report = bring(volume, given("/data", f"{ftp.url}/", type="DIRECTORY"), settings=quick())
    assert report.error is not None
    assert "invalid name" in report.error


def test_a_listing_without_an_end_is_read_up_to_the_limit(
    volume: Path, ftp: FtpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = (b"type=file;size=1; %d" % i for i in range(1_000_000))
    serve_listing(monkeypatch, lines)
    report = bring(volume, given("/data", f"{ftp.url}/", type="DIRECTORY"), settings=quick(max_files=10))
    assert "more than 10 files" in str(report.error)
    assert next(lines, None) is not None


def test_a_limit_of_files_that_is_just_kept(volume: Path, ftp: FtpServer) -> None:
    for name in ("a/b/c/1", "a/b/2", "a/3", "4"):
        (ftp.root / name).parent.mkdir(parents=True, exist_ok=True)
        (ftp.root / name).write_text("x")
    item = given("/data", f"{ftp.url}/", type="DIRECTORY")
    assert bring(volume, item, settings=quick(max_files=4)).error is None
    assert "more than 3 files" in str(bring(volume, item, settings=quick(max_files=3)).error)


@pytest.fixture
def old(ftp: FtpServer, monkeypatch: pytest.MonkeyPatch) -> FtpServer:
    """A server without MLSD, with a file in a directory in `d`."""
    from pyftpdlib.handlers import FTPHandler

    for command in ("MLST", "MLSD"):
        monkeypatch.delitem(FTPHandler.proto_cmds, command)
    (ftp.root / "d/e").mkdir(parents=True)
    (ftp.root / "d/e/x").write_text("x")
    return ftp


def test_a_server_without_mlsd_is_listed_by_names(volume: Path, old: FtpServer) -> None:
    (old.root / "d/none").mkdir()
    report = bring(volume, given("/data", f"{old.url}/d", type="DIRECTORY"), settings=quick())
    assert (report.error, tree(volume / "root/data")) == (None, {"e/x": b"x", "none": None})


@pytest.mark.parametrize(
    ("reason", "is_empty"),
    [
        ("No files found", True),
        ("/d/e: No such file or directory", True),
        ("Permission denied", False),
        ("Internal error", False),
    ],
)
def test_only_a_directory_that_is_empty_is_staged_as_one(
    volume: Path, old: FtpServer, monkeypatch: pytest.MonkeyPatch, reason: str, is_empty: bool
) -> None:
    from pyftpdlib.exceptions import FilesystemError
    from pyftpdlib.filesystems import AbstractedFS

    real = AbstractedFS.listdir

    def listdir(self: AbstractedFS, path: str) -> list[str]:
        if path.endswith("/e"):
            raise FilesystemError(reason)
        return list(real(self, path))

    monkeypatch.setattr(AbstractedFS, "listdir", listdir)
    report = bring(volume, given("/data", f"{old.url}/d", type="DIRECTORY"), settings=quick())
    assert (report.error is None) is is_empty
    assert is_empty or reason in str(report.error)


def test_a_directory_that_the_server_could_not_open_is_an_error(
    volume: Path, old: FtpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vsftpd reports success for an unreadable directory, without entries."""
    from pyftpdlib.filesystems import AbstractedFS
    from pyftpdlib.handlers import FTPHandler

    real = FTPHandler.respond

    def respond(self: FTPHandler, response: str, *more: object, **named: object) -> None:
        if response.startswith("226"):
            response = "226 Transfer done (but failed to open directory)."
        real(self, response, *more, **named)

    monkeypatch.setattr(AbstractedFS, "listdir", lambda *_: [])
    monkeypatch.setattr(FTPHandler, "respond", respond)
    report = bring(volume, given("/data", f"{old.url}/d", type="DIRECTORY"), settings=quick())
    assert report.error_code == "access_denied"
    assert "failed to open directory" in str(report.error)


def test_names_that_are_not_utf_8_are_staged_and_uploaded(
    volume: Path, ftp: FtpServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from pyftpdlib.handlers import FTPHandler

    # a test worker cannot send a log with such names to its controller
    caplog.set_level(logging.CRITICAL, logger="pyftpdlib")
    monkeypatch.setattr(FTPHandler, "unicode_errors", "surrogateescape")
    name = os.fsdecode(b"na\xefve")
    (volume / "root/up").mkdir(parents=True)
    (volume / "root/up" / name).write_text("x")
    assert send(volume, wanted("/up", f"{ftp.user_url}/d", "DIRECTORY"), settings=quick()).error is None
    assert tree(ftp.root) == {f"d/{name}": b"x"}
    assert bring(volume, given("/data", f"{ftp.url}/d", type="DIRECTORY"), settings=quick()).error is None
    assert tree(volume / "root/data") == {name: b"x"}


@pytest.fixture
def babbling() -> Iterator[str]:
    """The URL of an ftp server whose welcome has very many lines."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with suppress(OSError):
            while True:
                with suppress(ConnectionError), listener.accept()[0] as connection:
                    for _ in range(100_000):
                        connection.sendall(b"220-hello\r\n")

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield f"ftp://127.0.0.1:{listener.getsockname()[1]}"
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(5)


def test_a_reply_without_an_end_is_an_error(volume: Path, babbling: str) -> None:
    report = bring(volume, given("/data/x", f"{babbling}/x"), settings=quick())
    assert (report.error_code, report.retryable) == ("storage_unavailable", True)
    assert "more than 1000 lines" in str(report.error)


def test_a_file_as_a_directory_input_is_staged_into_the_directory(volume: Path, ftp: FtpServer) -> None:
    (ftp.root / "reads").write_text("ACGT")
    report = bring(volume, given("/data/d", f"{ftp.url}/reads", type="DIRECTORY"), settings=quick())
    assert (report.error, tree(volume / "root/data")) == (None, {"d/reads": b"ACGT"})
    assert "is a file, not a directory" in report.notes[0]


@dataclass(frozen=True)
class Secure:
    port: int
    root: Path
    certificate: Path


def serve_securely(control: socket.socket, context: ssl.SSLContext, root: Path) -> None:
    """One client of an FTP server that insists on TLS for commands and data. Only what the filer sends."""
    with ExitStack() as open_ones:
        open_ones.enter_context(control)
        control.sendall(b"220 ready\r\n")
        _serve(control, context, root, open_ones)


def _serve(control: socket.socket, context: ssl.SSLContext, root: Path, open_ones: ExitStack) -> None:
    line, secure, protected, old = b"", False, False, ""
    passive: socket.socket | None = None

    def say(text: str) -> None:
        control.sendall(text.encode() + b"\r\n")

    while True:
        while b"\r\n" not in line:
            more = control.recv(4096)
            if not more:
                return
            line += more
        command_line, _, line = line.partition(b"\r\n")
        command, _, value = command_line.decode().partition(" ")
        path = root / value.lstrip("/")
        if command == "AUTH":
            say("234 go ahead")
            control = open_ones.enter_context(context.wrap_socket(control, server_side=True))
            secure = True
        elif not secure:
            say("530 TLS first")
        elif command in ("USER", "PASS"):
            say("331 and?" if command == "USER" else "230 in" if value == "testtest" else "530 no")
        elif command in ("PBSZ", "TYPE", "NOOP"):
            say("200 ok")
        elif command == "PROT":
            protected = value == "P"
            say("200 ok")
        elif command == "SIZE":
            say(f"213 {path.stat().st_size}" if path.is_file() else "550 no such file")
        elif command == "PASV":
            passive = socket.create_server(("127.0.0.1", 0))
            high, low = divmod(passive.getsockname()[1], 256)
            say(f"227 Passive (10,0,0,1,{high},{low})")  # an address that the client has to ignore
        elif command in ("RETR", "STOR") and passive is not None and protected:
            say("150 here it comes")
            with passive, context.wrap_socket(passive.accept()[0], server_side=True) as data:
                if command == "RETR":
                    data.sendall(path.read_bytes())
                else:
                    path.write_bytes(b"".join(iter(lambda: data.recv(65536), b"")))
                    data.unwrap()
            say("226 done")
        elif command == "RNFR":
            old = value
            say("350 to?")
        elif command == "RNTO":
            (root / old).rename(path)
            say("250 done")
        elif command == "DELE":
            path.unlink()
            say("250 done")
        else:
            say("502 unknown")


@pytest.fixture
def ftps(tmp_path: Path) -> Iterator[Secure]:
    key = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    key += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key.pem", "-out", "cert.pem"]
    subprocess.run(key, cwd=tmp_path, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    root = tmp_path / "ftps-root"
    root.mkdir()
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.1)
    stop = threading.Event()

    def client(control: socket.socket) -> None:
        control.settimeout(10)
        with suppress(OSError):
            serve_securely(control, context, root)

    def serve() -> None:
        while not stop.is_set():
            with suppress(TimeoutError):
                threading.Thread(target=client, args=(listener.accept()[0],), daemon=True).start()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield Secure(listener.getsockname()[1], root, tmp_path / "cert.pem")
    stop.set()
    thread.join(5)
    listener.close()


def test_ftps_needs_a_trusted_certificate(volume: Path, ftps: Secure) -> None:
    (volume / "root/data").mkdir(parents=True)
    (volume / "root/data/x").write_bytes(os.urandom(100_000))
    url = f"ftps://test:testtest@127.0.0.1:{ftps.port}/x"
    untrusted = send(volume, wanted("/data/x", url), settings=quick())
    assert "certificate" in str(untrusted.error)
    settings = quick(ca_file=str(ftps.certificate))
    assert send(volume, wanted("/data/x", url), settings=settings).error is None
    assert bring(volume, given("/data/y", url), settings=settings).error is None
    assert (volume / "root/data/y").read_bytes() == (volume / "root/data/x").read_bytes()
