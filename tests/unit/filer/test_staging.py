"""What inputs and outputs mean, on local files: the semantics table of docs/data-plane.md by its numbers."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from poiesis.domain.errors import AccessDenied, NotFound, StorageUnavailable
from poiesis.filer.atomic_write import atomic_file
from poiesis.filer.registry import Scheme
from poiesis.ports.filer import RemoteFile, Sent
from tests.unit.filer.tasks import bring, given, leftovers, quick, send, tree, wanted


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    path = tmp_path / "volume"
    path.mkdir()
    return path


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "store"
    path.mkdir()
    return path


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def make(volume: Path, **files: str) -> Path:
    root = volume / "root"
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


# in


def test_a_file_larger_than_the_limit_is_refused(volume: Path, store: Path) -> None:
    (store / "f").write_text("x" * 11)
    for url, kind in (("file://{}/f", "FILE"), ("file://{}", "DIRECTORY")):
        item = given("/data", url=url.format(store), type=kind)
        report = bring(volume, item, settings=quick(file_roots=(str(store),), max_file_bytes=10))
        assert (report.error_code, "11 bytes; at most 10" in str(report.error)) == ("file_too_large", True)


def test_content_is_written_byte_for_byte(volume: Path) -> None:  # I1
    report = bring(volume, given("/data/a.txt", content="héllo\n"), settings=quick())
    assert report.error is None
    assert (volume / "root/data/a.txt").read_text() == "héllo\n"
    assert report.total_files == 1
    assert report.files[0].path == "/data/a.txt"


def test_content_takes_precedence_over_a_url(volume: Path) -> None:  # I2
    report = bring(volume, given("/data/a", url="file:///nowhere", content="x"), settings=quick())
    assert report.error is None
    assert (volume / "root/data/a").read_bytes() == b"x"


@pytest.mark.parametrize(
    "form", ["file://{}/a%20b.txt", "file://{}/a b.txt", "{}/a b.txt", "file://localhost{}/a b.txt"]
)
def test_a_file_is_staged_by_url_or_plain_path(volume: Path, store: Path, form: str) -> None:  # I3
    (store / "a b.txt").write_text("x")
    url = form.format(store)
    report = bring(volume, given("/data/sub/b.txt", url), settings=quick(file_roots=(str(store),)))
    assert report.error is None
    assert (volume / "root/data/sub/b.txt").read_text() == "x"


def test_modes_let_every_user_work_whatever_the_umask(volume: Path, store: Path) -> None:  # I4
    (store / "tool").write_text("#!")
    (store / "tool").chmod(0o700)
    before = os.umask(0o077)
    try:
        report = bring(
            volume,
            given("/data/in/a", content="x"),
            given("/data/tool", f"file://{store}/tool"),
            settings=quick(file_roots=(str(store),)),
            directories=("/work/out",),
        )
    finally:
        os.umask(before)
    assert report.error is None
    root = volume / "root"
    assert [mode(root / p) for p in ("data", "data/in", "work", "work/out")] == [0o777] * 4
    assert mode(root / "data/in/a") == 0o666
    assert mode(root / "data/tool") == 0o777


def test_a_volumes_set_group_id_bit_is_kept(volume: Path) -> None:
    root = volume / "root"
    root.mkdir()
    root.chmod(0o2775)
    assert bring(volume, settings=quick(), directories=("/data/x",)).error is None
    assert mode(root / "data") & 0o2777 == 0o2777
    assert mode(root / "data/x") & 0o2777 == 0o2777


@pytest.mark.parametrize("type_, slash", [("DIRECTORY", ""), (None, "/")])
def test_a_directory_is_staged_with_its_empty_directories(
    volume: Path, store: Path, type_: str | None, slash: str
) -> None:  # I5
    (store / "d/e/f").mkdir(parents=True)
    (store / "d/.hidden").write_text("h")
    (store / "d/e/x").write_text("x")
    report = bring(
        volume, given("/data/d" + slash, f"file://{store}/d", type=type_), settings=quick(file_roots=(str(store),))
    )
    assert report.error is None
    assert tree(volume / "root/data/d") == {".hidden": b"h", "e/f": None, "e/x": b"x"}


@pytest.mark.parametrize("type_", [None, "FILE"])
def test_a_directory_without_that_type_is_staged_as_one(volume: Path, store: Path, type_: str | None) -> None:  # I6
    (store / "d").mkdir()
    (store / "d/x").write_text("x")
    report = bring(volume, given("/data/d", f"file://{store}/d", type=type_), settings=quick(file_roots=(str(store),)))
    assert report.error is None
    assert tree(volume / "root/data") == {"d/x": b"x"}
    assert bool(report.notes) == (type_ is not None)


def test_the_error_for_a_missing_input_has_url_and_path(volume: Path, store: Path) -> None:  # I7
    report = bring(volume, given("/data/a", f"file://{store}/none"), settings=quick(file_roots=(str(store),)))
    assert report.error_code == "not_found"
    assert not report.retryable
    assert report.error is not None
    assert "/data/a" in report.error
    assert f"file://{store}/none" in report.error
    assert leftovers(volume) == []


@pytest.mark.parametrize(
    "url",
    [
        "gopher://me:secret@host/x?token=secret",
        "s3://me:secret@bucket/x",
        "s3://b/x?X-Amz-Credential=secret&X-Amz-Signature=secret",
        "gs://me:secret@bucket/x",
        "az://container/x?sv=1&sig=secret",
    ],
)
def test_an_unusable_url_is_an_error_without_its_secrets(volume: Path, url: str) -> None:
    report = bring(volume, given("/data/a", url), settings=quick())
    assert report.error is not None
    assert "secret" not in report.error


@pytest.mark.parametrize(
    "url", ["/etc/passwd", "file:///etc/passwd", "file://{}/../x", "file://{}/%2e%2e/x", "file://h/x"]
)
def test_files_outside_the_allowed_roots_are_refused(volume: Path, store: Path, url: str) -> None:
    report = bring(volume, given("/data/a", url.format(store)), settings=quick(file_roots=(str(store),)))
    assert report.error_code in ("access_denied", "unsupported_url")
    assert tree(volume / "root/data") == {}


def test_a_hidden_directory_in_a_root_is_neither_read_nor_written_nor_listed(volume: Path, store: Path) -> None:
    own = store / "own"
    (own / "tasks").mkdir(parents=True)
    (own / "tasks.sqlite").write_text("secret")
    (store / "x").write_text("x")
    (store / "link").symlink_to(own)
    settings = quick(file_roots=(str(store),), file_hidden=(str(own),))
    for url in (
        f"file://{own}/tasks.sqlite",
        f"file://{store}/link/tasks.sqlite",
        f"{own}",
        f"file://{store}/o%77n/tasks/n",
    ):
        assert bring(volume, given("/data/a", url), settings=settings).error_code == "access_denied"
        (volume / "root/data").mkdir(parents=True, exist_ok=True)
        (volume / "root/data/out").write_text("overwritten")
        report = send(volume, wanted("/data/out", url, "FILE"), settings=settings)
        assert report.error_code == "access_denied"
    assert (own / "tasks.sqlite").read_text() == "secret" and list((own / "tasks").iterdir()) == []
    (store / "link").unlink()
    assert bring(volume, given("/data/d", f"file://{store}", type="DIRECTORY"), settings=settings).error is None
    assert tree(volume / "root/data/d") == {"x": b"x"}


def test_a_link_out_of_an_allowed_root_is_refused(volume: Path, store: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s")
    (store / "d").mkdir()
    (store / "d/l").symlink_to(tmp_path / "secret")
    settings = quick(file_roots=(str(store),))
    assert bring(volume, given("/data/a", f"file://{store}/d/l"), settings=settings).error_code == "access_denied"
    report = bring(volume, given("/data/d", f"file://{store}/d", type="DIRECTORY"), settings=settings)
    assert (report.error, tree(volume / "root/data")) == (None, {"d": None})
    assert "/data/d/l: not staged" in report.notes[0]
    (store / "inside").symlink_to(store / "d")
    (store / "d/l").unlink()
    (store / "d/x").write_text("x")
    assert bring(volume, given("/data/d", f"file://{store}/inside", type="DIRECTORY"), settings=settings).error is None


def test_the_first_error_stops_the_inputs_after_it(volume: Path, store: Path) -> None:
    inputs = [given(f"/data/{i}", f"file://{store}/none") for i in range(100)]
    report = bring(volume, *inputs, given("/data/last", content="x"), settings=quick(file_roots=(str(store),)))
    assert report.error_code == "not_found"
    assert report.error is not None
    assert report.error.count("no such file") <= 4
    assert not (volume / "root/data/last").exists()


def test_a_cancelled_run_is_reported_as_retryable(volume: Path) -> None:
    report = bring(volume, given("/data/a", content="x"), settings=quick(), cancelled=lambda: True)
    assert (report.error_code, report.retryable) == ("cancelled", True)


def test_placeholders_and_directories_are_created(volume: Path) -> None:
    assert bring(volume, settings=quick(), touched=("/etc/out",), directories=("/d",)).error is None
    assert tree(volume / "root") == {"etc/out": b"", "d": None}
    assert mode(volume / "root/etc/out") == 0o666


# out


def test_a_file_is_uploaded_to_its_url(volume: Path, store: Path) -> None:  # O1
    make(volume, **{"data/out.txt": "result"})
    report = send(
        volume, wanted("/data/out.txt", f"file://{store}/a/b/out.txt", "FILE"), settings=quick(file_roots=(str(store),))
    )
    assert report.error is None
    assert tree(store) == {"a/b/out.txt": b"result"}
    assert [(f.url, f.path, f.size_bytes) for f in report.files] == [
        (f"file://{store}/a/b/out.txt", "/data/out.txt", 6)
    ]


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_directory_is_uploaded_and_each_file_reported(volume: Path, store: Path, slash: str) -> None:  # O2
    root = make(volume, **{"data/d/a": "1", "data/d/e/.b": "22", "data/d/ü ?#%": "3"})
    (root / "data/d/empty").mkdir()
    report = send(
        volume,
        wanted("/data/d" + slash, f"file://{store}/x" + slash, "DIRECTORY"),
        settings=quick(file_roots=(str(store),)),
    )
    assert report.error is None
    assert tree(store / "x") == {"a": b"1", "e/.b": b"22", "empty": None, "ü ?#%": b"3"}
    assert [f.path for f in report.files] == ["/data/d/a", "/data/d/e/.b", "/data/d/ü ?#%"]


def test_a_file_output_that_is_a_directory_is_uploaded_as_one_with_a_note(volume: Path, store: Path) -> None:  # O3
    make(volume, **{"work/d/a": "1"})
    report = send(volume, wanted("/work/d", f"file://{store}/d", "FILE"), settings=quick(file_roots=(str(store),)))
    assert report.error is None
    assert tree(store) == {"d/a": b"1"}
    assert "directory" in report.notes[0]


def test_a_directory_output_that_is_a_file_is_uploaded_as_one_with_a_note(volume: Path, store: Path) -> None:  # O4
    make(volume, **{"work/d": "1"})
    report = send(
        volume, wanted("/work/d", f"file://{store}/d/", "DIRECTORY"), settings=quick(file_roots=(str(store),))
    )
    assert report.error is None
    assert tree(store) == {"d/d": b"1"}
    assert "is a file" in report.notes[0]


def test_a_missing_output_is_an_error_and_the_others_are_uploaded(volume: Path, store: Path) -> None:  # O5
    make(volume, **{"data/a": "1", "data/b": "2"})
    outputs = [wanted(f"/data/{n}", f"file://{store}/{n}") for n in ("a", "none", "b", "other")]
    report = send(volume, *outputs, settings=quick(file_roots=(str(store),)))
    assert (report.error_code, report.retryable) == ("output_missing", False)
    assert report.error is not None
    assert "/data/none" in report.error
    assert "/data/other" in report.error
    assert tree(store) == {"a": b"1", "b": b"2"}
    assert report.total_files == 2


def test_a_missing_optional_output_is_a_note(volume: Path, store: Path) -> None:  # O6
    make(volume, **{"data/a": "1"})
    outputs = [wanted("/data/none", f"file://{store}/n"), wanted("/data/*.x", f"file://{store}/", prefix="/data")]
    report = send(volume, *outputs, settings=quick(file_roots=(str(store),)), optional=True)
    assert report.error is None
    assert len(report.notes) == 2


@pytest.mark.parametrize(
    "act, is_there",
    [("nothing", False), ("chmod", False), ("read", False), ("touch", True), ("truncate", True), ("write", True)],
)
def test_a_placeholder_counts_as_an_output_once_a_command_wrote_it(
    volume: Path, store: Path, act: str, is_there: bool
) -> None:  # O7
    settings = quick(file_roots=(str(store),))
    assert bring(volume, settings=settings, touched=("/etc/out",)).error is None
    path = volume / "root/etc/out"
    (store / "out").write_text("of an earlier task")
    if act == "chmod":
        path.chmod(0o640)
    elif act == "read":
        path.read_bytes()
    elif act == "touch":
        path.touch()
    elif act == "truncate":
        path.open("w").close()
    elif act == "write":
        path.write_text("x")
    report = send(volume, wanted("/etc/out", f"file://{store}/out"), settings=settings, touched=("/etc/out",))
    assert (report.error is None) == is_there
    assert report.error_code == (None if is_there else "output_missing")
    assert (store / "out").read_text() == (path.read_text() if is_there else "of an earlier task")


def test_a_volume_that_does_not_keep_file_times_is_refused(volume: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "utime", lambda *_, **__: None)
    report = bring(volume, settings=quick(), touched=("/etc/out",))
    assert report.error is not None
    assert "modification times" in report.error


@pytest.mark.parametrize(
    "pattern, prefix, expected",
    [
        ("/work/*.txt", "/work", ["a.txt", "b.txt"]),
        ("/work/*.txt", "/work/", ["a.txt", "b.txt"]),
        ("/work/*.txt", "/", ["work/a.txt", "work/b.txt"]),
        ("/work/?.txt", "/work", ["a.txt", "b.txt"]),
        ("/work/[!b].txt", "/work", ["a.txt"]),
        ("/work/[[:alpha:]].txt", "/work", ["a.txt", "b.txt"]),
        ("/work/*/*.txt", "/work", ["sub/c.txt"]),
        ("/work/.*.txt", "/work", [".h.txt"]),
        ("/work/*/", "/work", ["sub/c.txt", "sub/e"]),
        ("/work/s*", "/work/s", ["ub/c.txt", "ub/e"]),
        ("/work/a.txt*", "/work/a.txt", ["a.txt"]),
        ("/work/sub*", "/work/sub", ["c.txt", "e"]),
        ("/work/*.{txt,log}", "/work", ["a.txt", "b.txt", "x.log"]),
        ("/work/lit[1].txt", None, ["lit[1].txt"]),
    ],
)
def test_wildcards(volume: Path, store: Path, pattern: str, prefix: str | None, expected: list[str]) -> None:  # O8
    root = make(
        volume,
        **{f"work/{n}": n for n in ("a.txt", "b.txt", ".h.txt", "x.log", "sub/c.txt", "lit[1].txt")},
    )
    (root / "work/sub/e").mkdir()
    if not pattern.startswith("/work/lit"):
        (root / "work/lit[1].txt").unlink()
    url = f"file://{store}/o" if prefix else f"file://{store}/o/lit[1].txt"
    report = send(volume, wanted(pattern, url, "FILE", prefix), settings=quick(file_roots=(str(store),)))
    assert report.error is None
    assert sorted(tree(store / "o")) == expected


@pytest.mark.parametrize("url_end", ["/w/*.{{x,y}}", "/w/%2A.%7Bx,y%7D", "/w/", "/w"])
def test_braces_without_a_prefix_are_a_pattern_below_the_urls_directory(
    volume: Path, store: Path, url_end: str
) -> None:  # O9
    make(volume, **{"work/a.x": "1", "work/b.y": "2", "work/c.z": "3"})
    url = f"file://{store}" + url_end.replace("{{", "{").replace("}}", "}")
    path = "/work/*.{x,y}" if "*" in url_end or "2A" in url_end else "/work/[ab].{x,y}"
    report = send(volume, wanted(path, url, "FILE"), settings=quick(file_roots=(str(store),)))
    assert report.error is None
    assert tree(store) == {"w/a.x": b"1", "w/b.y": b"2"}


def test_literal_braces_and_brackets_come_first(volume: Path, store: Path) -> None:  # O10
    make(volume, **{"work/{a,b}[1].txt": "literal", "work/a1.txt": "1"})
    report = send(
        volume, wanted("/work/{a,b}[1].txt", f"file://{store}/x", "FILE"), settings=quick(file_roots=(str(store),))
    )
    assert report.error is None
    assert tree(store) == {"x": b"literal"}


def test_a_pattern_without_matches_is_a_missing_output(volume: Path, store: Path) -> None:
    make(volume, **{"work/a": "1"})
    report = send(
        volume, wanted("/work/*.x", f"file://{store}", "FILE", "/work"), settings=quick(file_roots=(str(store),))
    )
    assert report.error_code == "output_missing"


def test_links_are_followed_inside_the_volume_as_the_executor_saw_them(volume: Path, store: Path) -> None:  # O11
    root = make(volume, **{"data/real": "r", "work/x": "x"})
    (root / "work/abs").symlink_to("/data/real")
    (root / "work/rel").symlink_to("../data/real")
    (root / "work/up").symlink_to("../../../../data/real")
    (root / "work/dir").symlink_to("/data")
    report = send(volume, wanted("/work", f"file://{store}/w", "DIRECTORY"), settings=quick(file_roots=(str(store),)))
    assert report.error is None
    assert tree(store / "w") == {"abs": b"r", "rel": b"r", "up": b"r", "dir/real": b"r", "x": b"x"}


@pytest.mark.parametrize("target", ["/etc/passwd", "../../../../../../etc/passwd", "/proc/self/environ", "loop"])
def test_a_link_out_of_the_volume_is_refused(volume: Path, store: Path, target: str) -> None:  # O12
    root = make(volume, **{"work/x": "x"})
    (root / "work/loop").symlink_to(target)
    settings = quick(file_roots=(str(store),))
    single = send(volume, wanted("/work/loop", f"file://{store}/a"), settings=settings)
    assert single.error_code in ("output_missing", "staging_failed")
    assert single.error is not None
    assert "link" in single.error
    report = send(volume, wanted("/work", f"file://{store}/w", "DIRECTORY"), settings=settings)
    assert report.error is None
    assert "/work/loop" in report.notes[0]
    assert tree(store) == {"w/x": b"x"}


def test_a_link_to_its_parent_directory_ends(volume: Path, store: Path) -> None:
    root = make(volume, **{"work/x": "x"})
    (root / "work/again").symlink_to(".")
    report = send(volume, wanted("/work", f"file://{store}/w", "DIRECTORY"), settings=quick(file_roots=(str(store),)))
    assert report.error is None
    assert tree(store) == {"w/x": b"x"}
    assert "again" in report.notes[0]


def test_a_fifo_is_never_opened(volume: Path, store: Path) -> None:  # O13
    root = make(volume, **{"work/x": "x"})
    os.mkfifo(root / "work/fifo")
    settings = quick(file_roots=(str(store),))
    single = send(volume, wanted("/work/fifo", f"file://{store}/a"), settings=settings)
    assert single.error is not None
    assert "FIFO" in single.error
    report = send(volume, wanted("/work", f"file://{store}/w", "DIRECTORY"), settings=settings)
    assert report.error is None
    assert tree(store) == {"w/x": b"x"}
    assert "FIFO" in report.notes[0]


def test_an_upload_outside_the_roots_is_refused(volume: Path, store: Path, tmp_path: Path) -> None:
    make(volume, **{"work/x": "x"})
    (store / "l").symlink_to(tmp_path)
    for url in (f"file://{tmp_path}/y", f"file://{store}/l/y", f"file://{store}/%2e%2e/y"):
        report = send(volume, wanted("/work/x", url), settings=quick(file_roots=(str(store),)))
        assert report.error_code in ("access_denied", "unsupported_url")
    assert not (tmp_path / "y").exists()


def test_an_output_replaces_an_existing_file(volume: Path, store: Path) -> None:
    (store / "out").write_text("a much longer old content")
    make(volume, **{"work/x": "x"})
    assert (
        send(volume, wanted("/work/x", f"file://{store}/out"), settings=quick(file_roots=(str(store),))).error is None
    )
    assert tree(store) == {"out": b"x"}


def test_one_path_may_be_uploaded_to_several_urls(volume: Path, store: Path) -> None:  # O14
    settings = quick(file_roots=(str(store),))
    assert bring(volume, given("/data/a", content="x"), settings=settings).error is None
    report = send(volume, wanted("/data/a", f"{store}/1"), wanted("/data/a", f"{store}/2"), settings=settings)
    assert report.error is None
    assert tree(store) == {"1": b"x", "2": b"x"}


@pytest.mark.parametrize("paths", [["/work/a", "/work/b", "/work/c"], ["/work"], ["/work/*"]])
def test_outputs_larger_than_the_limit_together_are_refused(volume: Path, store: Path, paths: list[str]) -> None:
    make(volume, **{"work/a": "12345", "work/b": "", "work/c": "12345"})
    os.truncate(volume / "root/work/b", 4 * 10**12)  # sparse
    outputs = [wanted(path, f"{store}/o", "DIRECTORY" if path == "/work" else "FILE") for path in paths]
    if len(outputs) > 1:
        outputs = [item | {"url": f"file://{store}/o{item['path'].removeprefix('/work')}"} for item in outputs]
    settings = quick(file_roots=(str(store),), max_output_bytes=10)
    report = send(volume, *outputs, settings=settings)
    assert report.error_code == "file_too_large"
    assert "/work/b: 4000000000000 bytes; outputs have at most 10 together" in str(report.error)
    assert tree(store / "o") == {"a": b"12345", "c": b"12345"}


def test_outputs_that_fit_one_by_one_are_refused_where_together_they_do_not(volume: Path, store: Path) -> None:
    make(volume, **{"work/a": "12345", "work/b": "12345", "work/c": "1", "work/d": ""})
    outputs = [wanted(f"/work/{name}", f"{store}/{name}") for name in "abcd"]
    report = send(volume, *outputs, settings=quick(file_roots=(str(store),), max_output_bytes=10))
    assert report.error_code == "file_too_large" and "/work/c: 1 bytes; outputs have at most 10" in str(report.error)
    assert tree(store) == {"a": b"12345", "b": b"12345", "d": b""}


def test_a_listing_without_an_end_is_an_error(volume: Path, store: Path) -> None:
    make(volume, **{f"work/{i}": "" for i in range(20)})
    report = send(
        volume, wanted("/work", f"{store}/w", "DIRECTORY"), settings=quick(file_roots=(str(store),), max_files=10)
    )
    assert report.error_code == "staging_failed"
    assert report.error is not None
    assert "more than 10 files" in report.error


@pytest.mark.parametrize(
    "path, prefix, expected",
    [
        (r"/w/a\*b", None, {"o": b"a*b"}),
        (r"/w/s\[1\]/c", None, {"o": b"c"}),
        (r"/w/s\[1\]/*", r"/w/s\[1\]", {"o/c": b"c"}),
        (r"/w/a\ b/*.txt", "/w", {"o/a b/t.txt": b"t"}),
        (r"/w/a\ b/*.txt", r"/w/a\ b", {"o/t.txt": b"t"}),
        (r"/w/\{x,y\}", None, {"o": b"braces"}),
        (r"/w/back\\slash", None, {"o": b"back"}),
        (r"/w/a[*]b", "/w", {"o/a*b": b"a*b"}),
    ],
)
def test_escapes_mean_the_plain_character(
    volume: Path, store: Path, path: str, prefix: str | None, expected: dict[str, bytes]
) -> None:  # O8
    files = {"w/a*b": "a*b", "w/axb": "wrong", "w/s[1]/c": "c", "w/a b/t.txt": "t", "w/{x,y}": "braces", "w/x": "wrong"}
    make(volume, **files, **{"w/back\\slash": "back"})
    report = send(volume, wanted(path, f"file://{store}/o", None, prefix), settings=quick(file_roots=(str(store),)))
    assert report.error is None
    assert tree(store) == expected
    assert "\\" not in report.files[0].path or "back" in path


def test_matching_hostile_names_takes_linear_time(volume: Path, store: Path) -> None:
    (volume / "root/w").mkdir(parents=True)
    for i in range(50):
        (volume / "root/w" / ("a" * (200 + i))).touch()
    started = time.monotonic()
    for pattern in ("*a" * 100 + "b", "*[a]" * 100 + "b", "*?" * 100 + "b", "**a" * 100 + "b", "[" * 250 + "*"):
        report = send(
            volume, wanted(f"/w/{pattern}", f"{store}/o", None, "/w"), settings=quick(file_roots=(str(store),))
        )
        assert report.error_code == "output_missing"
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("name", ["a/../../x", "a//b", "./a", "/a", "a/", "a\0b", ".."])
def test_a_listed_name_that_leaves_the_directory_is_refused(volume: Path, name: str) -> None:  # I9
    report = bring(volume, given("/data/d", "odd://x/", type="DIRECTORY"), settings=quick(), schemes=listing(name))
    assert report.error_code == "staging_failed"
    assert report.error is not None
    assert "odd://x: cannot be staged below /data/d: its name" in report.error
    assert str(volume) not in report.error


class Interrupted:
    """A filer whose directory is listed up to an error first, and later as it is then."""

    def __init__(self, first: str, later: str) -> None:
        self._listings = [first, later]

    def __call__(self, _: object) -> Listing:
        listings = self._listings

        class Filer(Listing):
            def walk(self, url: str) -> Iterator[RemoteFile]:
                names = listings.pop(0) if len(listings) > 1 else listings[0]
                for name in names:
                    yield RemoteFile(f"odd://x/{name}", name, 1)
                if names is not listings[0]:
                    raise StorageUnavailable("a page is missing")

        return Filer(())


@pytest.mark.parametrize(
    ("first", "later", "staged"),
    [("bcd", "bcdef", "bcdef"), ("bcd", "cdef", "bcdef"), ("bcd", "abbcdef", "bcdef"), ("", "bc", "bc")],
)
def test_a_listing_that_is_repeated_leaves_out_no_file_whatever_changed(
    volume: Path, first: str, later: str, staged: str
) -> None:
    schemes = {"odd": Scheme("odd", Interrupted(first, later))}
    report = bring(volume, given("/data", "odd://x/", type="DIRECTORY"), settings=quick(), schemes=schemes)
    assert report.error is None
    assert [file.path for file in sorted(report.files, key=lambda f: f.path)] == [f"/data/{name}" for name in staged]


def test_a_listing_whose_place_is_lost_is_an_error(volume: Path) -> None:
    schemes = {"odd": Scheme("odd", Interrupted("bcd", "bcef"))}
    report = bring(volume, given("/data", "odd://x/", type="DIRECTORY"), settings=quick(), schemes=schemes)
    assert (report.error_code, report.retryable) == ("storage_unavailable", True)
    assert "changed while it was listed" in str(report.error)


@pytest.mark.parametrize("names", [("foo", "foo/bar"), ("foo/bar", "foo")])
def test_a_file_and_a_directory_of_one_name_are_an_error_in_the_tasks_paths(
    volume: Path, names: tuple[str, ...]
) -> None:  # I10
    report = bring(volume, given("/data/t", "odd://x/", type="DIRECTORY"), settings=quick(), schemes=listing(*names))
    assert report.error_code == "staging_failed"
    assert report.error is not None
    assert "/data/t/foo" in report.error
    assert "directory" in report.error
    assert str(volume) not in report.error
    assert "Errno" not in report.error


def test_a_file_that_is_a_directory_is_listed_while_it_is_fetched(volume: Path) -> None:
    """Of a million names, only as many jobs are made as threads run."""
    fetched = 0
    ahead: list[int] = []

    class Large(Listing):
        def walk(self, url: str) -> Iterator[RemoteFile]:
            for i in range(500):
                ahead.append(i - fetched)
                yield RemoteFile(f"odd://x/{i}", str(i), 1)

        def fetch(self, file: RemoteFile, target: Path) -> Sent:
            nonlocal fetched
            if not file.name.isdecimal():
                raise NotFound("odd://x: no such file")
            sent = super().fetch(file, target)
            fetched += 1
            return sent

    schemes = {"odd": Scheme("odd", lambda _: Large(()))}
    report = bring(volume, given("/data/dir", "odd://x/dir", type="FILE"), settings=quick(parallel=2), schemes=schemes)
    assert (report.error, report.total_files) == (None, 500)
    assert max(ahead) <= 10
    assert "is a directory" in report.notes[0]


def test_an_error_of_the_listing_of_a_file_that_is_a_directory_is_reported(volume: Path) -> None:
    class Broken(Listing):
        def walk(self, url: str) -> Iterator[RemoteFile]:
            yield from super().walk(url)
            raise AccessDenied("odd://x/dir: the second page was refused")

        def fetch(self, file: RemoteFile, target: Path) -> Sent:
            if file.name == "dir":
                raise NotFound("odd://x: no such file")
            return super().fetch(file, target)

    names = tuple(f"{i}" for i in range(20))
    schemes = {"odd": Scheme("odd", lambda _: Broken(names))}
    report = bring(volume, given("/data/dir", "odd://x/dir"), settings=quick(parallel=3), schemes=schemes)
    assert report.error_code == "access_denied" and "the second page" in str(report.error)


def test_a_bug_is_one_line_for_the_user_and_a_traceback_for_the_operator(
    volume: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Listing):
        def fetch(self, file: RemoteFile, target: Path) -> Sent:
            raise KeyError("secret")

    inputs = [given(f"/data/{i}", f"odd://x/{i}") for i in range(20)]
    schemes = {"odd": Scheme("odd", lambda _: Broken(()))}
    report = bring(volume, *inputs, settings=quick(parallel=1), schemes=schemes)
    assert report.error == "/data/0: internal error of the filer (KeyError); the traceback is in its log"
    assert (report.error_code, report.retryable) == ("staging_failed", False)
    assert [(r.getMessage(), r.exc_info is not None and r.exc_info[0]) for r in caplog.records] == [
        ("unexpected_error", KeyError)
    ]


class Listing:
    """A filer whose directory has the given names."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names

    def stat(self, url: str) -> RemoteFile | None:
        return None

    def walk(self, url: str) -> Iterator[RemoteFile]:
        for name in self._names:
            yield RemoteFile("odd://x", name, 1)

    def fetch(self, file: RemoteFile, target: Path) -> Sent:
        with atomic_file(target, sync=False) as part:
            part.write(b"x", 0)
        return Sent(file.url, 1)

    def send(self, source: int, url: str) -> Sent:
        raise AssertionError

    def make_directory(self, url: str) -> None:
        raise AssertionError

    def close(self) -> None:
        pass


def listing(*names: str) -> dict[str, Scheme]:
    return {"odd": Scheme("odd", lambda _: Listing(names))}
