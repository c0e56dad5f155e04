"""An unusable entry (a special file, or a link that is dangling, leads out or loops) has one outcome everywhere: as one of many
it is left out with a note, as the whole output or input it is an error with the reason."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from poiesis.filer.transfer_log import MAX_NOTES
from tests.unit.filer.tasks import bring, given, quick, send, tree, wanted


def _socket(path: Path) -> None:
    bound = socket.socket(socket.AF_UNIX)
    here = os.getcwd()
    try:
        os.chdir(path.parent)  # a socket's path may have at most 107 characters
        bound.bind(path.name)
    finally:
        os.chdir(here)
        bound.close()


def _device(path: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("only root can create devices")


BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "a link to itself": (lambda p: p.symlink_to(p.name), "link"),
    "a dangling link": (lambda p: p.symlink_to("nothing"), "link"),
    "a link to outside": (lambda p: p.symlink_to("/etc/hostname"), "link"),
    "a FIFO": (os.mkfifo, "a FIFO"),
    "a socket": (_socket, "a socket"),
    "a device": (_device, "a device"),
}


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    path = tmp_path / "volume"
    (path / "root/w").mkdir(parents=True)
    return path


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "store"
    path.mkdir()
    return path


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("path, prefix", [("/w/*", "/w"), ("/w", None), ("/w/", None)])
def test_outputs_are_uploaded_without_unusable_entries(
    volume: Path, store: Path, kind: str, path: str, prefix: str | None
) -> None:
    make, reason = BAD[kind]
    for name in ("a", "z"):
        (volume / "root/w" / name).write_text(name)
    make(volume / "root/w/bad")
    report = send(volume, wanted(path, f"file://{store}/o", None, prefix), settings=quick(file_roots=(str(store),)))
    assert report.error is None
    assert tree(store / "o") == {"a": b"a", "z": b"z"}
    assert len(report.notes) == 1
    assert report.notes[0].startswith("not uploaded: /w/bad: ")
    assert reason in report.notes[0]


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("path, prefix", [("/w/bad", None), ("/w/b*", "/w")])
def test_an_output_that_is_only_an_unusable_entry_fails(
    volume: Path, store: Path, kind: str, path: str, prefix: str | None
) -> None:
    make, reason = BAD[kind]
    make(volume / "root/w/bad")
    report = send(volume, wanted(path, f"file://{store}/o", "FILE", prefix), settings=quick(file_roots=(str(store),)))
    assert report.error_code in ("output_missing", "staging_failed")
    assert report.error is not None
    assert path in report.error
    assert any(reason in text for text in (report.error, *report.notes))
    assert tree(store) == {}


@pytest.mark.parametrize("kind", BAD)
def test_a_pattern_skips_unusable_entries_on_the_way(volume: Path, store: Path, kind: str) -> None:
    make, _ = BAD[kind]
    (volume / "root/w/d").mkdir()
    (volume / "root/w/d/x").write_text("x")
    make(volume / "root/w/bad")
    report = send(volume, wanted("/w/*/x", f"file://{store}", None, "/w"), settings=quick(file_roots=(str(store),)))
    assert report.error is None
    assert tree(store) == {"d/x": b"x"}
    assert [("/w/bad" in note) for note in report.notes] == ([True] if "link" in kind else [])


@pytest.mark.parametrize("kind", BAD)
def test_directory_inputs_are_staged_without_unusable_entries(volume: Path, store: Path, kind: str) -> None:  # I12
    make, reason = BAD[kind]
    (store / "d/e").mkdir(parents=True)
    (store / "d/e/x").write_text("x")
    make(store / "d/e/bad")
    settings = quick(file_roots=(str(store),))
    report = bring(volume, given("/data", f"file://{store}/d", type="DIRECTORY"), settings=settings)
    assert report.error is None
    assert tree(volume / "root/data") == {"e/x": b"x"}
    assert len(report.notes) == 1
    assert report.notes[0].startswith("/data/e/bad: not staged, because ")
    assert reason in report.notes[0]


@pytest.mark.parametrize("kind", BAD)
def test_a_file_input_that_is_an_unusable_entry_fails(volume: Path, store: Path, kind: str) -> None:
    BAD[kind][0](store / "bad")
    settings = quick(file_roots=(str(store),))
    report = bring(volume, given("/data/x", f"file://{store}/bad"), settings=settings)
    assert report.error is not None
    assert str(volume) not in report.error
    assert tree(volume / "root/data") == {}


def test_a_link_to_its_parent_directory_is_left_out(volume: Path, store: Path) -> None:
    (store / "d").mkdir()
    (store / "d/x").write_text("x")
    (store / "d/again").symlink_to(".")
    settings = quick(file_roots=(str(store),))
    report = bring(volume, given("/data", f"file://{store}/d", type="DIRECTORY"), settings=settings)
    assert (report.error, tree(volume / "root/data")) == (None, {"x": b"x"})
    assert "/data/again" in report.notes[0]


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_file_as_a_directory_input_is_staged_into_the_directory(volume: Path, store: Path, slash: str) -> None:  # I11
    (store / "reads.fq").write_text("ACGT")
    settings = quick(file_roots=(str(store),))
    item = given("/data/d" + slash, f"file://{store}/reads.fq" + slash, type="DIRECTORY")
    report = bring(volume, item, settings=settings, directories=("/data/d",))
    assert report.error is None
    assert tree(volume / "root/data") == {"d/reads.fq": b"ACGT"}
    assert "is a file, not a directory; staged as /data/d/reads.fq" in report.notes[0]


def test_many_unusable_entries_make_a_bounded_number_of_notes(volume: Path, store: Path) -> None:
    for i in range(MAX_NOTES + 50):
        (volume / f"root/w/{i:04}").symlink_to("nothing")
    (volume / "root/w/x").write_text("x")
    report = send(volume, wanted("/w", f"file://{store}", "DIRECTORY"), settings=quick(file_roots=(str(store),)))
    assert (report.error, tree(store)) == (None, {"x": b"x"})
    assert len(report.notes) == MAX_NOTES + 1
    assert report.notes[-1] == "… and 50 more notes"


def test_loops_of_links_do_not_make_a_pattern_endless(volume: Path, store: Path) -> None:
    for i in range(10):
        (volume / f"root/w/l{i}").symlink_to(".")
    path = "/w" + "/*" * 30 + "/nothing"
    settings = quick(file_roots=(str(store),), max_files=2000)
    report = send(volume, wanted(path, f"file://{store}", None, "/w"), settings=settings)
    assert report.error is not None
    assert "more than 2000 files" in report.error


def test_names_cannot_forge_lines_of_a_log(volume: Path, store: Path) -> None:
    name = "x\n2026-01-01 COMPLETE\x1b[31m\x9b"
    (volume / "root/w" / name).symlink_to("nothing")
    settings = quick(file_roots=(str(store),))
    report = send(
        volume, wanted("/w", f"file://{store}", "DIRECTORY"), wanted(f"/w/{name}", f"{store}/x"), settings=settings
    )
    assert report.error is not None
    assert len(report.notes) == 1
    assert all(text.isprintable() for text in (report.error, *report.notes))


@pytest.mark.parametrize("path, prefix", [("/w", None), ("/w/*", "/w"), ("/w/*/*", "/w")])
def test_a_directory_that_cannot_be_read_is_an_error_and_the_others_are_uploaded(
    volume: Path, store: Path, path: str, prefix: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files would be usable, so leaving them out with a note would lose results."""
    for name in ("a", "closed", "z"):
        (volume / "root/w" / name).mkdir()
        (volume / "root/w" / name / "x").write_text(name)
    closed = (volume / "root/w/closed").stat().st_ino
    original = os.open

    def refuse(what: str, flags: int, *arguments: int, **options: int) -> int:
        if flags & os.O_DIRECTORY and str(what).startswith("/proc/self/fd/") and os.stat(what).st_ino == closed:
            raise PermissionError(13, "Permission denied")  # root would not be refused
        return original(what, flags, *arguments, **options)

    monkeypatch.setattr(os, "open", refuse)
    report = send(volume, wanted(path, f"file://{store}/o", None, prefix), settings=quick(file_roots=(str(store),)))
    assert (report.error, report.error_code) == ("/w/closed: cannot be listed: Permission denied", "staging_failed")
    assert tree(store / "o") == {"a/x": b"a", "z/x": b"z"}


def test_a_directory_that_is_too_deep_is_an_error(volume: Path, store: Path) -> None:
    here = os.open(volume / "root/w", os.O_RDONLY)
    for _ in range(300):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    (volume / "root/w/x").write_text("x")
    report = send(volume, wanted("/w", f"file://{store}/o", "DIRECTORY"), settings=quick(file_roots=(str(store),)))
    assert report.error is not None
    assert "is more than 256 directories deep" in report.error
    assert tree(store / "o") == {"x": b"x"}
