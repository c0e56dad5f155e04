"""The input cache: one fetch for all tasks, bounded, consistent after crashes."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from poiesis.domain.records import parse_report
from poiesis.filer.settings import FilerSettings
from tests.integration.filer.servers import Fault, HttpServer, Made
from tests.unit.filer.tasks import bring, given, leftovers, quick, tree

BODY = random.Random(3).randbytes(3_000_000)


def cached(tmp_path: Path, **changes: Any):
    return quick(cache_dir=str(tmp_path / "cache"), cache_min_bytes=1000, **changes)


def gets(web: HttpServer) -> int:
    return sum(r.method == "GET" for r in web.requests)


def entries(tmp_path: Path) -> list[Path]:
    return sorted(p for p in (tmp_path / "cache/entries").rglob("*") if p.is_file())


def test_the_second_task_fetches_nothing(tmp_path: Path, web: HttpServer) -> None:
    web.files["/x"] = BODY
    for i in range(2):
        volume = tmp_path / f"v{i}"
        volume.mkdir()
        assert bring(volume, given("/data/x", f"{web.url}/x"), settings=cached(tmp_path)).error is None
        assert (volume / "root/data/x").read_bytes() == BODY
        assert (volume / "root/data/x").stat().st_mode & 0o777 == 0o666
    assert gets(web) == 1


def test_a_task_that_changes_its_input_does_not_change_that_of_others(tmp_path: Path, web: HttpServer) -> None:
    web.files["/x"] = BODY
    for i in range(2):
        volume = tmp_path / f"v{i}"
        volume.mkdir()
        assert bring(volume, given("/data/x", f"{web.url}/x"), settings=cached(tmp_path)).error is None
        assert (volume / "root/data/x").read_bytes() == BODY
        with (volume / "root/data/x").open("r+b") as file:
            file.write(b"changed")


def test_a_new_version_is_fetched(tmp_path: Path, web: HttpServer, volume: Path) -> None:
    for body in (BODY, BODY[::-1]):
        web.files["/x"] = body
        assert bring(volume, given("/data/x", f"{web.url}/x"), settings=cached(tmp_path)).error is None
        assert (volume / "root/data/x").read_bytes() == body


def test_a_version_that_changes_between_stat_and_fetch_is_not_cached_as_the_old_one(
    tmp_path: Path, web: HttpServer, volume: Path
) -> None:
    web.files["/x"] = BODY

    def change(request: Any) -> None:
        if request.method == "GET":
            web.files["/x"] = BODY[::-1]

    web.faults = change
    assert bring(volume, given("/data/x", f"{web.url}/x"), settings=cached(tmp_path)).error is None
    assert (volume / "root/data/x").read_bytes() == BODY[::-1]
    assert entries(tmp_path) == []


def test_the_cache_gives_nothing_to_a_task_that_may_not_read(tmp_path: Path, web: HttpServer, volume: Path) -> None:
    web.files["/x"] = BODY
    assert bring(volume, given("/data/x", f"{web.url}/x"), settings=cached(tmp_path)).error is None
    (volume / "root/data/x").unlink()
    web.faults = lambda _: Fault(status=403)
    report = bring(volume, given("/data/x", f"{web.url}/x"), settings=cached(tmp_path))
    assert report.error_code == "access_denied"
    assert tree(volume / "root/data") == {}


def test_the_size_is_bounded_and_the_least_recently_used_is_evicted_first(
    tmp_path: Path, web: HttpServer, volume: Path
) -> None:
    settings = cached(tmp_path, cache_bytes=10_000_000)
    for i in range(6):
        web.files[f"/{i}"] = BODY
        web.etags[f"/{i}"] = f'"{i}"'
        assert bring(volume, given(f"/data/{i}", f"{web.url}/{i}"), settings=settings).error is None
        time.sleep(0.02)
        if i:  # the first one is still in use
            assert bring(volume, given(f"/data/{i}-0", f"{web.url}/0"), settings=settings).error is None
    assert sum(p.stat().st_size for p in entries(tmp_path)) <= 10_000_000
    assert sum(r.method == "GET" and r.path == "/0" for r in web.requests) == 1


def test_a_damaged_entry_is_fetched_again(tmp_path: Path, web: HttpServer, volume: Path) -> None:
    web.files["/x"] = BODY
    assert bring(volume, given("/data/x", f"{web.url}/x"), settings=cached(tmp_path)).error is None
    (entry,) = entries(tmp_path)
    entry.chmod(0o644)
    os.truncate(entry, 100)
    assert bring(volume, given("/data/y", f"{web.url}/x"), settings=cached(tmp_path)).error is None
    assert (volume / "root/data/y").read_bytes() == BODY
    assert [p.stat().st_size for p in entries(tmp_path)] == [len(BODY)]
    assert bring(volume, given("/data/x", f"{web.url}/x"), settings=cached(tmp_path)).error is None
    assert (volume / "root/data/x").read_bytes() == BODY


@pytest.mark.parametrize("broken", ["a file", "nowhere"])
def test_a_cache_that_cannot_be_used_is_not_an_error(
    tmp_path: Path, web: HttpServer, volume: Path, broken: str
) -> None:
    web.files["/x"] = BODY
    place = tmp_path / "cache" if broken == "a file" else Path("/proc/none")
    if broken == "a file":
        place.write_text("x")
    settings = quick(cache_dir=str(place), cache_min_bytes=1)
    report = bring(volume, given("/data/x", f"{web.url}/x"), settings=settings)
    assert report.error is None
    assert (volume / "root/data/x").read_bytes() == BODY
    assert "cache" in report.notes[0]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO])
def test_a_cache_whose_disk_fails_is_not_an_error(
    tmp_path: Path, web: HttpServer, volume: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    web.files["/x"] = BODY
    real = os.pwrite

    def write(descriptor: int, data: bytes | memoryview, offset: int) -> int:
        if os.readlink(f"/proc/self/fd/{descriptor}").startswith(str(tmp_path / "cache")):
            raise OSError(code, os.strerror(code))
        return real(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", write)
    report = bring(volume, given("/data/x", f"{web.url}/x"), settings=cached(tmp_path))
    assert report.error is None
    assert (volume / "root/data/x").read_bytes() == BODY
    assert "the input cache could not be used" in report.notes[0]
    assert os.strerror(code) in report.notes[0]
    assert list((tmp_path / "cache/partial").iterdir()) == []


def process(
    tmp_path: Path, web: HttpServer, i: int, settings: FilerSettings | None = None, url: str | None = None
) -> subprocess.Popen[str]:
    (tmp_path / f"v{i}").mkdir()
    (tmp_path / "settings.json").write_text((settings or cached(tmp_path)).to_json())
    document = {"inputs": [given("/data/x", url or f"{web.url}/x")]}
    (tmp_path / "document.json").write_text(json.dumps(document))
    command = [sys.executable, "-m", "poiesis.filer", "in", "--document", str(tmp_path / "document.json")]
    command += ["--volume", str(tmp_path / f"v{i}"), "--settings", str(tmp_path / "settings.json")]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def test_eight_processes_at_once_fetch_once(tmp_path: Path, web: HttpServer) -> None:
    web.files["/x"] = BODY * 5
    running = [process(tmp_path, web, i) for i in range(8)]
    for i, each in enumerate(running):
        out, _ = each.communicate(timeout=60)
        report = parse_report(out.splitlines()[-1])
        assert report is not None
        assert report.error is None
        assert (tmp_path / f"v{i}/root/data/x").read_bytes() == BODY * 5
    assert gets(web) == 1


@pytest.fixture
def roomy(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """A directory for nine files, and their size: a gigabyte if there is memory for that and it is fast, else a fifth in
    memory, or less on a disk."""
    memory = Path("/dev/shm")
    if not memory.is_dir() or min(shutil.disk_usage(memory).free, _free_memory()) < 4 * 10**9:
        yield tmp_path, 10**8
        return
    with tempfile.TemporaryDirectory(dir=memory, prefix="poiesis-cache-") as name:
        enough = min(shutil.disk_usage(memory).free, _free_memory()) > 14 * 10**9
        yield Path(name), 10**9 if enough and _seconds_to_write(Path(name) / "probe") < 0.08 else 2 * 10**8


def _free_memory() -> int:
    found = [line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable")]
    return int(found[0].split()[1]) * 1024 if found else 0


def _seconds_to_write(probe: Path) -> float:
    """Of 64 MiB. On a busy machine the whole test would take more than a minute."""
    begun = time.monotonic()
    with probe.open("wb") as file:
        for _ in range(64):
            file.write(Made.BLOCK)
    probe.unlink()
    return time.monotonic() - begun


def test_eight_tasks_at_once_with_a_large_object_of_s3_fetch_it_once(roomy: tuple[Path, int], web: HttpServer) -> None:
    """The parts of the object go over the network once, and every task has all of it."""
    place, size = roomy
    web.made["/bucket/genome"] = made = Made(size)
    s3 = {"fake": {"url": web.url, "anonymous": True}}
    settings = cached(place, s3=s3, sync=False, stall_timeout=timedelta(seconds=30))
    running = [process(place, web, i, settings, "s3://bucket/genome") for i in range(8)]
    for i, each in enumerate(running):
        out, _ = each.communicate(timeout=120)
        report = parse_report(out.splitlines()[-1])
        assert report is not None
        assert (report.error, report.total_bytes, report.notes) == (None, size, ())
        here = place / f"v{i}/root/data/x"
        with here.open("rb") as file:
            assert all(file.read(len(block)) == block for block in made.blocks())
            assert file.read(1) == b""
        here.unlink()
    assert made.sent_bytes == size
    assert sorted(r.method for r in web.requests).count("HEAD") == 8  # each proves its permission to read


def test_a_killed_fetch_leaves_nothing_behind(tmp_path: Path, web: HttpServer) -> None:
    web.files["/x"] = BODY
    web.faults = lambda r: Fault(drip=0.01) if r.method == "GET" else None
    killed = process(tmp_path, web, 0)
    end = time.monotonic() + 20
    while gets(web) == 0 and time.monotonic() < end:
        time.sleep(0.02)
    time.sleep(0.2)
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=10)
    assert list((tmp_path / "cache/partial").iterdir()) != []
    assert entries(tmp_path) == []
    web.faults = lambda _: None
    out, _ = process(tmp_path, web, 1).communicate(timeout=30)
    report = parse_report(out.splitlines()[-1])
    assert report is not None
    assert report.error is None
    web.files["/y"] = BODY[1:]
    volume = tmp_path / "v2"
    volume.mkdir()
    assert bring(volume, given("/data/y", f"{web.url}/y"), settings=cached(tmp_path)).error is None
    assert list((tmp_path / "cache/partial").iterdir()) == []
    assert leftovers(tmp_path / "cache") == []
