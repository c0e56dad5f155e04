"""sftp against a real server."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paramiko
import pytest
from paramiko.sftp import SFTP_FAILURE, SFTP_OP_UNSUPPORTED

from tests.integration.filer.sftp_server import Sftp, sftp_server
from tests.unit.filer.tasks import bring, given, leftovers, quick, send, tree, wanted


@pytest.fixture
def sftp(tmp_path: Path) -> Iterator[Sftp]:
    with sftp_server(tmp_path) as server:
        yield server


def test_files_and_directories_are_uploaded_and_staged(volume: Path, sftp: Sftp) -> None:
    settings = quick(known_hosts_file=str(sftp.known_hosts))
    root = volume / "root/work"
    (root / "e/f").mkdir(parents=True)
    (root / "a ü").write_bytes(os.urandom(700_000))
    (root / "tool").write_text("#!")
    (root / "tool").chmod(0o755)
    (root / "e/c").write_text("")
    report = send(volume, wanted("/work", f"{sftp.url}/up/here", "DIRECTORY"), settings=settings)
    assert report.error is None
    assert tree(sftp.root / "up/here") == tree(root)
    assert leftovers(sftp.root) == []
    assert bring(volume, given("/back", f"{sftp.url}/up/here"), settings=settings).error is None
    assert tree(volume / "root/back") == tree(root)
    assert os.access(volume / "root/back/tool", os.X_OK)
    assert not (volume / "root/back/a ü").stat().st_mode & 0o111
    assert "word" not in str(report)


def test_a_server_without_posix_rename_stores_and_replaces(
    volume: Path, sftp: Sftp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sftp.interface, "posix_rename", lambda *_: SFTP_OP_UNSUPPORTED)
    settings = quick(known_hosts_file=str(sftp.known_hosts))
    (volume / "root/data").mkdir(parents=True)
    for text in ("a longer text from before", "new"):
        (volume / "root/data/x").write_text(text)
        assert send(volume, wanted("/data/x", f"{sftp.url}/x"), settings=settings).error is None
        assert tree(sftp.root) == {"x": text.encode()}
    (sftp.root / "d/full").mkdir(parents=True)
    assert send(volume, wanted("/data/x", f"{sftp.url}/d"), settings=settings).error is not None
    assert leftovers(sftp.root) == []


def test_a_server_without_posix_rename_that_refuses_the_new_name_keeps_the_old_file(
    volume: Path, sftp: Sftp, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = vars(sftp.interface)["rename"]

    def refusing(self: Any, old: str, new: str) -> Any:
        return SFTP_FAILURE if self.at(old).read_text() == "new" else rename(self, old, new)

    monkeypatch.setattr(sftp.interface, "posix_rename", lambda *_: SFTP_OP_UNSUPPORTED)
    monkeypatch.setattr(sftp.interface, "rename", refusing)
    (sftp.root / "x").write_text("old")
    (volume / "root/data").mkdir(parents=True)
    (volume / "root/data/x").write_text("new")
    settings = quick(known_hosts_file=str(sftp.known_hosts))
    assert send(volume, wanted("/data/x", f"{sftp.url}/x"), settings=settings).error is not None
    assert tree(sftp.root) == {"x": b"old"}


def test_a_host_whose_key_is_unknown_is_refused(volume: Path, sftp: Sftp) -> None:
    report = bring(volume, given("/data/x", f"{sftp.url}/x"), settings=quick())
    assert report.error_code == "access_denied"
    assert "known hosts" in str(report.error)


@pytest.mark.parametrize(
    "url, code", [("{}/none", "not_found"), ("sftp://me:wrong@127.0.0.1:{port}/x", "access_denied")]
)
def test_refusals(volume: Path, sftp: Sftp, url: str, code: str) -> None:
    settings = quick(known_hosts_file=str(sftp.known_hosts))
    report = bring(volume, given("/data/x", url.format(sftp.url, port=sftp.port)), settings=settings)
    assert report.error_code == code
    assert "wrong" not in str(report.error)


def test_a_file_whose_size_the_server_does_not_send_is_read_to_its_end(
    volume: Path, sftp: Sftp, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = os.urandom(700_001)
    (sftp.root / "d").mkdir()
    (sftp.root / "d/x").write_bytes(body)
    from_stat = paramiko.SFTPAttributes.from_stat

    def without_size(*arguments: Any) -> paramiko.SFTPAttributes:
        found = from_stat(*arguments)
        found.st_size = None
        return found

    monkeypatch.setattr(paramiko.SFTPAttributes, "from_stat", without_size)
    settings = quick(known_hosts_file=str(sftp.known_hosts))
    inputs = (given("/data/x", f"{sftp.url}/d/x"), given("/data/d", f"{sftp.url}/d"))
    assert bring(volume, *inputs, settings=settings).error is None
    assert tree(volume / "root/data") == {"x": body, "d/x": body}
    assert bring(volume, given("/data/y", f"{sftp.url}/none"), settings=settings).error_code == "not_found"


def test_unusable_entries_of_a_directory_are_left_out(volume: Path, sftp: Sftp) -> None:
    directory = sftp.root / "d/e"
    directory.mkdir(parents=True)
    (directory / "x").write_text("x")
    (directory / "y").symlink_to("x")
    (directory / "dangling").symlink_to("nothing")
    (directory / "itself").symlink_to("itself")
    (directory / "above").symlink_to("..")
    os.mkfifo(directory / "fifo")
    settings = quick(known_hosts_file=str(sftp.known_hosts))
    report = bring(volume, given("/data", f"{sftp.url}/d", type="DIRECTORY"), settings=settings)
    assert report.error is None
    assert tree(volume / "root/data") == {"e/x": b"x", "e/y": b"x"}
    assert [note.partition(":")[0] for note in report.notes] == [
        f"/data/e/{name}" for name in ("above", "dangling", "fifo", "itself")
    ]
    assert "a FIFO" in report.notes[2]


def test_a_name_that_is_not_utf_8_is_an_error_that_says_so(
    volume: Path, sftp: Sftp, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = quick(known_hosts_file=str(sftp.known_hosts))
    name = os.fsdecode(b"na\xefve")
    (volume / "root/up").mkdir(parents=True)
    (volume / "root/up" / name).write_text("x")
    report = send(volume, wanted("/up", f"{sftp.url}/d", "DIRECTORY"), settings=settings)
    assert (report.error_code, "not UTF-8" in str(report.error)) == ("staging_failed", True)
    monkeypatch.setattr(sftp.interface, "list_folder", lambda *_: [_named(b"na\xefve")])
    report = bring(volume, given("/data", f"{sftp.url}/", type="DIRECTORY"), settings=settings)
    assert (report.error_code, "not UTF-8" in str(report.error)) == ("staging_failed", True)


class Endless(list[paramiko.SFTPAttributes]):
    """A listing from which the server takes the next entries again and again."""

    taken = 0

    def __getitem__(self, index: Any) -> Any:
        if index.start is not None:  # the rest
            return self
        count = index.stop if self.taken < 100_000 else 0
        self.taken += count
        return [_named(str(self.taken + i)) for i in range(count)]


def _named(name: Any) -> paramiko.SFTPAttributes:
    attributes = paramiko.SFTPAttributes()
    attributes.filename = name
    attributes.st_mode = stat.S_IFREG
    return attributes


def test_a_listing_without_an_end_is_read_up_to_the_limit(
    volume: Path, sftp: Sftp, monkeypatch: pytest.MonkeyPatch
) -> None:
    endless = Endless()
    monkeypatch.setattr(sftp.interface, "list_folder", lambda *_: endless)
    settings = quick(known_hosts_file=str(sftp.known_hosts), max_files=10)
    report = bring(volume, given("/data", f"{sftp.url}/", type="DIRECTORY"), settings=settings)
    assert "more than 10 files" in str(report.error)
    assert 0 < endless.taken < 1000


def test_a_file_as_a_directory_input_is_staged_into_the_directory(volume: Path, sftp: Sftp) -> None:
    (sftp.root / "reads").write_text("ACGT")
    settings = quick(known_hosts_file=str(sftp.known_hosts))
    report = bring(volume, given("/data/d/", f"{sftp.url}/reads/", type="DIRECTORY"), settings=settings)
    assert (report.error, tree(volume / "root/data")) == (None, {"d/reads": b"ACGT"})
    assert "is a file, not a directory" in report.notes[0]
