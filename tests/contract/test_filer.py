"""One suite for every scheme, each against a real server. What a scheme cannot do is a field of its `Location`.

1. a file of any size is uploaded and staged unchanged, with its size in the report
2. an upload replaces the existing file and leaves no temporary one
3. a directory is uploaded and staged with hidden files, odd names and, where the scheme has them, empty directories
4. a missing file is `not_found` with URL and path, and leaves no file
5. no report has a password
6. cancellation ends it as `cancelled`, without unfinished files on either side
7. files are moved in parallel, each once
8. a directory is recognized without its type, where the scheme can list
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from poiesis.filer.settings import FilerSettings
from tests.integration.filer.servers import http_server
from tests.integration.filer.sftp_server import sftp_server
from tests.servers import AzureServer, FtpServer, GcsServer, S3Server
from tests.unit.filer.tasks import bring, given, leftovers, quick, send, tree, wanted


@dataclass(frozen=True)
class Location:
    """A URL of one scheme. `url` has no trailing slash; `names` returns what exists there now, without directories."""

    url: str
    settings: FilerSettings
    names: Callable[[], set[str]]
    lists: bool = True
    keeps_empty_directories: bool = True
    secret: str = "testtest"


@pytest.fixture(params=["file", "s3", "gs", "az", "ftp", "sftp", "http"])
def location(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Location]:
    def below(root: Path) -> Callable[[], set[str]]:
        return lambda: {str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()}

    with ExitStack() as stack:
        if request.param == "file":
            root = tmp_path / "store"
            root.mkdir()
            yield Location(f"file://{root}/up", quick(file_roots=(str(root),)), below(root))
        elif request.param == "s3":
            s3: S3Server = request.getfixturevalue("s3")
            keys = {"access_key": s3.access_key, "secret_key": s3.secret_key}
            settings = quick(s3={"main": {"url": s3.endpoint, "region": s3.region, **keys}})

            def names() -> set[str]:
                found = s3.client().list_objects(s3.bucket, recursive=True)
                return {str(o.object_name) for o in found if not str(o.object_name).endswith("/")}

            yield Location(f"s3://{s3.bucket}/up", settings, names)
        elif request.param == "gs":
            gcs: GcsServer = request.getfixturevalue("gcs")
            (tmp_path / "gcs.json").write_text(gcs.service_account())
            monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(tmp_path / "gcs.json"))
            settings = quick(cloud={"gs": {"endpoint": gcs.endpoint}})
            yield Location(f"gs://{gcs.bucket}/up", settings, gcs.names, keeps_empty_directories=False)
        elif request.param == "az":
            azure: AzureServer = request.getfixturevalue("azure")
            monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", azure.key)
            settings = quick(cloud={"az": {"endpoint": azure.endpoint, "account": azure.account}})
            yield Location(f"az://{azure.container}/up", settings, azure.names, True, False, azure.key)
        elif request.param == "ftp":
            ftp: FtpServer = request.getfixturevalue("ftp")
            yield Location(f"{ftp.user_url}/up", quick(), below(ftp.root))
        elif request.param == "sftp":
            sftp = stack.enter_context(sftp_server(tmp_path))
            settings = quick(known_hosts_file=str(sftp.known_hosts))
            yield Location(f"{sftp.url}/up", settings, below(sftp.root), secret="word@")
        else:
            web = stack.enter_context(http_server())
            url = web.url.replace("http://", "http://me:testtest@") + "/up"
            yield Location(url, quick(http_put=True), lambda: {n.lstrip("/") for n in web.files}, False, False)


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    path = tmp_path / "volume"
    (path / "root/data").mkdir(parents=True)
    return path


@pytest.mark.parametrize("size", [0, 1, 70_000, 3_000_000])
def test_1_a_file_of_any_size_is_uploaded_and_staged(volume: Path, location: Location, size: int) -> None:
    data = random.Random(size).randbytes(size)
    (volume / "root/data/x").write_bytes(data)
    report = send(volume, wanted("/data/x", f"{location.url}/a/x", "FILE"), settings=location.settings)
    assert report.error is None
    assert [(f.path, f.size_bytes) for f in report.files] == [("/data/x", size)]
    assert bring(volume, given("/data/y", f"{location.url}/a/x"), settings=location.settings).error is None
    assert (volume / "root/data/y").read_bytes() == data
    assert location.names() == {"up/a/x"}


def test_2_an_upload_replaces_what_was_there(volume: Path, location: Location) -> None:
    for text in ("a long text that was there before", "new"):
        (volume / "root/data/x").write_text(text)
        assert send(volume, wanted("/data/x", f"{location.url}/x"), settings=location.settings).error is None
    assert bring(volume, given("/data/y", f"{location.url}/x"), settings=location.settings).error is None
    assert (volume / "root/data/y").read_text() == "new"
    assert location.names() == {"up/x"}


def test_3_a_directory_is_uploaded_and_staged(volume: Path, location: Location) -> None:
    root = volume / "root/data/d"
    (root / "e/f").mkdir(parents=True)
    if location.keeps_empty_directories:
        (root / "empty").mkdir()
    names = ("a", ".hidden", "e/b c", "e/f/ü%41+&=", "e/f/#?x;y", "e/f/日本", "e/f/'\"")
    for name in names:
        (root / name).write_text(name)
    report = send(volume, wanted("/data/d", f"{location.url}/d", "DIRECTORY"), settings=location.settings)
    assert report.error is None
    assert {f.path for f in report.files} == {f"/data/d/{n}" for n in names}
    if not location.lists:
        urls = {f.path: f.url for f in report.files}
        inputs = [given(f"/data/back/{n}", urls[f"/data/d/{n}"]) for n in names]
        assert bring(volume, *inputs, settings=location.settings).error is None
    else:
        back = bring(volume, given("/data/back", f"{location.url}/d", type="DIRECTORY"), settings=location.settings)
        assert back.error is None
    assert tree(volume / "root/data/back") == tree(root)


def test_4_a_missing_file_is_an_error(volume: Path, location: Location) -> None:
    report = bring(volume, given("/data/x", f"{location.url}/none"), settings=location.settings)
    assert (report.error_code, report.retryable) == ("not_found", False)
    assert "/data/x" in str(report.error)
    assert "/up/none" in str(report.error)
    assert tree(volume / "root/data") == {}


def test_5_no_report_has_a_password(volume: Path, location: Location) -> None:
    (volume / "root/data/x").write_text("x")
    for report in (
        send(volume, wanted("/data/x", f"{location.url}/x"), settings=location.settings),
        bring(
            volume,
            given("/data/y", f"{location.url}/x"),
            given("/data/z", f"{location.url}/no"),
            settings=location.settings,
        ),
    ):
        assert location.secret not in str(report)


@pytest.mark.parametrize("after", [3, 6, 9])
def test_6_cancellation_leaves_no_unfinished_file(volume: Path, location: Location, after: int) -> None:
    data = bytes(3_000_000)
    (volume / "root/data/x").write_bytes(data)
    calls = iter(range(10**9))
    report = send(
        volume,
        wanted("/data/x", f"{location.url}/x"),
        settings=location.settings,
        cancelled=lambda: next(calls) > after,
    )
    assert report.error_code in (None, "cancelled")
    assert location.names() in (set(), {"up/x"}) if report.error else location.names() == {"up/x"}
    if location.names():
        assert bring(volume, given("/data/z", f"{location.url}/x"), settings=location.settings).error is None
        assert (volume / "root/data/z").read_bytes() == data
    assert send(volume, wanted("/data/x", f"{location.url}/x"), settings=location.settings).error is None
    calls = iter(range(10**9))
    report = bring(
        volume, given("/data/y", f"{location.url}/x"), settings=location.settings, cancelled=lambda: next(calls) > after
    )
    assert report.error_code in (None, "cancelled")
    assert (volume / "root/data/y").exists() == (report.error is None)
    assert leftovers(volume) == []


def test_7_files_are_moved_in_parallel_each_once(volume: Path, location: Location) -> None:
    names = [f"{i:02}" for i in range(30)]
    for name in names:
        (volume / "root/data" / name).write_text(name)
    report = send(volume, *[wanted(f"/data/{n}", f"{location.url}/{n}") for n in names], settings=location.settings)
    assert (report.error, report.total_files) == (None, 30)
    report = bring(volume, *[given(f"/back/{n}", f"{location.url}/{n}") for n in names], settings=location.settings)
    assert (report.error, report.total_files, report.total_bytes) == (None, 30, 60)
    assert tree(volume / "root/back") == {n: n.encode() for n in names}


def test_8_a_directory_is_recognized_without_its_type(volume: Path, location: Location) -> None:
    (volume / "root/data/d").mkdir()
    (volume / "root/data/d/x").write_text("x")
    assert send(volume, wanted("/data/d", f"{location.url}/d"), settings=location.settings).error is None
    report = bring(volume, given("/back", f"{location.url}/d"), settings=location.settings)
    if location.lists:
        assert report.error is None
        assert tree(volume / "root/back") == {"x": b"x"}
    else:
        assert report.error_code == "not_found"
