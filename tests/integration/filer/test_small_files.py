"""Large directories of small objects, which one thread transfers: as correct as one by one, whatever the server does."""

from __future__ import annotations

import base64
import hashlib
import random
import socket
import threading
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from xml.sax.saxutils import escape

import pytest

from poiesis.domain.report import FilerReport
from poiesis.filer import small_files, stage, staging
from poiesis.filer.http_connection import HttpConnection
from poiesis.filer.network import open_connection
from poiesis.filer.s3_small_files import Get, Put
from poiesis.filer.small_files import SmallFileMover
from poiesis.filer.transfer import Pool
from tests.integration.filer.intermediaries import Pieces, TlsFront, closing
from tests.integration.filer.servers import Fault, HttpServer, Request, http_server
from tests.integration.filer.test_s3 import keys, put, settings_of
from tests.servers import S3Server
from tests.servers.tls import Authority
from tests.unit.filer.tasks import bring, given, leftovers, quick, send, tree, wanted

COUNT = 400
NAMES = [f"{i % 7}/ü & {i}.bin" for i in range(COUNT)]


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each file offered to the mover's thread, whether it was accepted."""
    found: list[bool] = []
    take = SmallFileMover.submit

    def noted(self: SmallFileMover, *arguments: Any) -> bool:
        found.append(take(self, *arguments))
        return found[-1]

    monkeypatch.setattr(SmallFileMover, "submit", noted)
    return found


@pytest.fixture
def returned(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The files that the thread returned."""
    found: list[object] = []
    release = SmallFileMover._return

    def noted(self: SmallFileMover, file: Any) -> None:
        found.append(file)
        release(self, file)

    monkeypatch.setattr(SmallFileMover, "_return", noted)
    return found


def content(i: int) -> bytes:
    return random.Random(i).randbytes(i % 50 * 40)


def offer(web: HttpServer, names: list[str] = NAMES, content: Callable[[int], bytes] = content) -> dict[str, bytes]:
    """Objects in the bucket of a server that supports GET and one listing."""
    files = {name: content(i) for i, name in enumerate(names)}
    rows: list[str] = []
    for name, data in files.items():
        web.files[f"/bucket/dir/{name}"] = data
        web.etags[f"/bucket/dir/{name}"] = f'"{len(rows)}"'
        rows.append(
            f"<Contents><Key>{escape('dir/' + name)}</Key><Size>{len(data)}</Size><ETag>{len(rows)}</ETag></Contents>"
        )
    web.files["/bucket/"] = f"<R>{''.join(rows)}<IsTruncated>false</IsTruncated></R>".encode()
    return files


def settings(*webs: HttpServer, **changes: Any):
    endpoints = {f"s{i}": {"url": web.url, "anonymous": True} for i, web in enumerate(webs)}
    return quick(s3=endpoints, **{"parallel": 16, **changes})


def fetch(volume: Path, web: HttpServer, **more: Any) -> FilerReport:
    changes = {k: more.pop(k) for k in list(more) if k != "cancelled"}
    directory = given("/data", "s3://bucket/dir", type="DIRECTORY")
    report = bring(volume, directory, settings=settings(web, **changes), **more)
    assert leftovers(volume) == []
    return report


def arrived(volume: Path) -> dict[str, bytes]:
    root = volume / "root/data"
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def once(fault: Fault, chance: random.Random | None = None, share: float = 0.3):
    """The fault for the first request of some objects."""
    seen: set[str] = set()

    def choose(request: Request) -> Fault | None:
        is_first = request.path not in seen and "list-type" not in request.path
        seen.add(request.path)
        return fault if is_first and (chance is None or chance.random() < share) else None

    return choose


def test_each_object_is_requested_once_and_arrives(
    volume: Path, web: HttpServer, taken: list[bool], returned: list[object]
) -> None:
    files = offer(web)
    report = fetch(volume, web)
    assert (report.error, report.total_files) == (None, COUNT)
    assert report.total_bytes == sum(len(f) for f in files.values())
    assert [f.path for f in report.files] == sorted(f"/data/{name}" for name in files)
    assert arrived(volume) == files
    assert taken == [True] * (COUNT - stage.MANY + 1)
    assert returned == []
    assert set(Counter(r.path for r in web.requests).values()) == {1}
    assert {r.headers.get("if-match") for r in web.requests[1:]} == {f'"{i}"' for i in range(COUNT)}
    assert (volume / "root/data" / NAMES[-1]).stat().st_mode & 0o777 == 0o666


def test_progress_includes_them(volume: Path, web: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "PROGRESS_INTERVAL_S", 0.002)
    total = sum(len(data) for data in offer(web).values())
    reports: list[tuple[int, int]] = []
    directory = given("/data", "s3://bucket/dir", type="DIRECTORY")
    assert bring(volume, directory, settings=settings(web), progress=lambda *now: reports.append(now)).error is None
    assert reports == sorted(reports)
    files, size = reports[-1]
    assert COUNT * 0.6 < files <= COUNT
    assert total * 0.6 < size <= total


def test_existing_files_are_replaced(volume: Path, web: HttpServer) -> None:
    files = offer(web)
    (volume / "root/data/0").mkdir(parents=True)
    (volume / "root/data" / NAMES[-7 * 8]).parent.mkdir(exist_ok=True)
    for name in NAMES[200:]:
        path = volume / "root/data" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("from an attempt before")
    assert fetch(volume, web).error is None
    assert arrived(volume) == files


def test_connections_stay_within_the_limit(volume: Path, web: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    lock, now, most = threading.Lock(), 0, 0
    close = HttpConnection.close

    def connecting(*arguments: Any, **options: Any) -> socket.socket:
        nonlocal now, most
        made = open_connection(*arguments, **options)
        with lock:
            now += 1
            most = max(most, now)
        return made

    def closing_(self: HttpConnection) -> None:
        nonlocal now
        with lock:
            now -= self.socket.fileno() >= 0
        close(self)

    monkeypatch.setattr("poiesis.filer.s3_endpoint.open_connection", connecting)
    monkeypatch.setattr(HttpConnection, "close", closing_)
    offer(web, content=lambda i: b"x" * (stage.SMALL_BYTES + 1 if i > stage.MANY and i % 3 else 10))
    assert fetch(volume, web, parallel=8).error is None
    assert 1 < most <= 8
    assert now == 0


FAULTS = {
    "cut": Fault(cut=3),
    "cut before the head": Fault(cut=0, reset=True),
    "reset": Fault(cut=30, reset=True),
    "too long": Fault(length=100_000),
    "too short": Fault(length=1),
    "busy": Fault(status=503),
    "closing": Fault(headers={"connection": "close"}),
    "another": Fault(body=b"another object"),
    "wrong checksum": Fault(headers={"x-amz-checksum-sha256": "AAAA"}),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize("share", [0.1, 1.0])
def test_a_fault_costs_one_more_attempt(
    volume: Path, web: HttpServer, taken: list[bool], fault: Fault, share: float
) -> None:
    files = offer(web)
    web.faults = once(fault, random.Random(1), share)
    report = fetch(volume, web, attempts=6)
    assert (report.error, report.total_files) == (None, COUNT)
    assert arrived(volume) == files
    assert True in taken


@pytest.mark.parametrize("fault", [Fault(chunked=True), Fault(no_length=True)], ids=["chunked", "until the end"])
def test_a_response_without_a_length_is_the_same_error_as_for_one_file(
    volume: Path, web: HttpServer, fault: Fault
) -> None:
    offer(web)
    web.faults = lambda r: fault if r.path.endswith("300.bin") else None
    report = fetch(volume, web)
    assert NAMES[300] in str(report.error)
    assert "no content length" in str(report.error)
    assert NAMES[300] not in arrived(volume)


def test_objects_truncated_at_every_byte_arrive_complete(volume: Path, web: HttpServer) -> None:
    files = offer(web)
    cuts = iter(range(10**6))
    web.faults = lambda r: Fault(cut=next(cuts) % 2000) if "list-type" not in r.path and next(cuts) % 3 else None
    report = fetch(volume, web, attempts=60)
    assert (report.error, report.total_files) == (None, COUNT)
    assert arrived(volume) == files


def test_a_body_with_a_wrong_checksum_is_fetched_again(volume: Path, web: HttpServer) -> None:
    files = offer(web)
    wrong: set[str] = set()

    def fault(request: Request) -> Fault | None:
        name = unquote(request.path).removeprefix("/bucket/dir/")
        if name not in files:
            return None
        digest = base64.b64encode(hashlib.sha256(files[name]).digest()).decode()
        is_first = name not in wrong
        wrong.add(name)
        return Fault(body=files[name][::-1] if is_first else None, headers={"x-amz-checksum-sha256": digest})

    web.faults = fault
    report = fetch(volume, web)
    assert (report.error, report.total_files) == (None, COUNT)
    assert arrived(volume) == files
    assert all(str(f.checksum).startswith("sha256:") for f in report.files)


def test_a_request_to_a_silent_server_is_repeated(volume: Path, web: HttpServer) -> None:
    files = offer(web)
    silent = once(Fault(drip=1.5), random.Random(2), 0.02)
    web.faults = silent
    assert fetch(volume, web, stall_timeout=timedelta(seconds=0.4)).error is None
    assert arrived(volume) == files


@pytest.mark.parametrize(("status", "code"), [(404, "not_found"), (403, "access_denied"), (503, "storage_unavailable")])
def test_an_unavailable_object_is_named(volume: Path, web: HttpServer, status: int, code: str) -> None:
    offer(web)
    bad = NAMES[300]
    web.faults = lambda r: Fault(status=status) if r.path.endswith("300.bin") else None
    report = fetch(volume, web)
    assert report.error_code == code
    assert f"/data/{bad}" in str(report.error)
    assert bad not in arrived(volume)


def test_an_error_stops_the_other_transfers(volume: Path, web: HttpServer) -> None:
    offer(web, [f"{i}" for i in range(5000)])
    web.faults = lambda r: Fault(status=404) if r.path.endswith("/300") else None
    report = fetch(volume, web)
    assert report.error_code == "not_found"
    assert len(web.requests) < 3000


def test_an_object_that_changes_after_the_listing_arrives_as_listed_or_not_at_all(
    volume: Path, web: HttpServer
) -> None:
    offer(web)
    web.etags[f"/bucket/dir/{NAMES[300]}"] = '"new"'
    report = fetch(volume, web)
    assert "changed" in str(report.error)
    assert NAMES[300] not in arrived(volume)


def test_a_server_that_refuses_everything_gets_few_requests(volume: Path, web: HttpServer) -> None:
    offer(web, [f"{i}" for i in range(5000)])
    served = iter(range(10**6))
    web.faults = lambda r: None if "list-type" in r.path or next(served) < 150 else Fault(status=403)
    report = fetch(volume, web)
    assert report.error_code == "access_denied"
    assert len(web.requests) < 150 + 2 * small_files.MAX_RETURNED + small_files.MAX_QUEUED


def test_a_stop_leaves_no_partial_file(volume: Path, web: HttpServer) -> None:
    files = offer(web)
    report = fetch(volume, web, cancelled=lambda: len(web.requests) > 250)
    assert (report.error_code, report.retryable) == ("cancelled", True)
    assert report.total_files < COUNT
    assert all(files[name] == data for name, data in arrived(volume).items())


def test_a_bug_in_reading_falls_back_to_the_threads(
    volume: Path, web: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = offer(web)
    handle_response, calls = Get.handle_response, iter(range(10**6))

    def failing(self: Get, *arguments: Any):
        if next(calls) % 10 == 5:
            raise KeyError("a bug")
        return handle_response(self, *arguments)

    monkeypatch.setattr(Get, "handle_response", failing)
    report = fetch(volume, web)
    assert (report.error, report.total_files) == (None, COUNT)
    assert arrived(volume) == files


def test_directories_of_several_servers(volume: Path, web: HttpServer, taken: list[bool]) -> None:
    with http_server() as other:
        files, others = offer(web), offer(other, [f"o{i}" for i in range(COUNT)])
        inputs = [given(f"/data/{i}", f"s3://s{i}/bucket/dir", type="DIRECTORY") for i in range(2)]
        report = bring(volume, *inputs, settings=settings(web, other))
    assert (report.error, report.total_files) == (None, 2 * COUNT)
    expected = {f"0/{n}": d for n, d in files.items()} | {f"1/{n}": d for n, d in others.items()}
    assert arrived(volume) == expected
    assert len(taken) > COUNT


def test_a_name_that_is_a_file_and_a_directory_is_an_error(volume: Path, web: HttpServer) -> None:  # I10
    offer(web, [*(f"{i}" for i in range(200)), "150/below"])
    report = fetch(volume, web)
    assert "/data/150" in str(report.error)


def test_limits_apply_to_small_files(volume: Path, web: HttpServer) -> None:
    offer(web)
    assert "more than 300 files" in str(fetch(volume, web, max_files=300).error)
    assert "at most 1900" in str(fetch(volume, web, max_file_bytes=1900).error)
    offer(web, content=lambda i: b"x" * (2000 if i == 300 else 10))
    report = fetch(volume, web, max_file_bytes=1900)
    assert f"/data/{NAMES[300]}" in str(report.error)
    assert "at most 1900" in str(report.error)


def test_cached_files_go_through_the_cache(volume: Path, web: HttpServer, tmp_path: Path, taken: list[bool]) -> None:
    offer(web, NAMES[:150])
    cache = {"cache_dir": str(tmp_path / "cache"), "cache_min_bytes": 1}
    assert fetch(volume, web, **cache).error is None
    assert len(taken) < 10  # the empty ones
    assert any((tmp_path / "cache").rglob("*"))


def test_few_files_or_one_connection_start_no_mover(
    volume: Path, web: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin(_: object) -> None:
        raise AssertionError("begun")

    monkeypatch.setattr(stage.Stage, "_begin_mover", begin)
    offer(web, NAMES[: stage.MANY - 1])
    assert fetch(volume, web).error is None
    offer(web)
    assert fetch(volume, web, parallel=1).error is None


def test_without_another_thread_the_regular_threads_continue(
    volume: Path, web: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(SmallFileMover, "__init__", refuse)
    files = offer(web)
    assert fetch(volume, web).error is None
    assert arrived(volume) == files


def test_a_directory_without_a_type_is_as_fast(volume: Path, web: HttpServer, taken: list[bool]) -> None:
    files = offer(web)
    report = bring(volume, given("/data", "s3://bucket/dir"), settings=settings(web))
    assert (report.error, report.total_files) == (None, COUNT)
    assert arrived(volume) == files
    assert taken == [True] * (COUNT - stage.MANY + 1)


def test_directories_without_a_type_may_be_as_many_as_threads(
    volume: Path, web: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is listed within a job, so every thread may wait for room at once."""
    monkeypatch.setattr(small_files, "MAX_QUEUED", 8)
    monkeypatch.setattr(small_files, "REFILL_BELOW", 4)
    files = offer(web)
    inputs = [given(f"/data/{i}", "s3://bucket/dir") for i in range(6)]
    report = bring(volume, *inputs, settings=settings(web, parallel=4))
    assert (report.error, report.total_files) == (None, 6 * COUNT)
    assert arrived(volume) == {f"{i}/{name}": data for i in range(6) for name, data in files.items()}


def test_large_files_of_a_directory_without_a_type_are_fetched_in_parallel(volume: Path, web: HttpServer) -> None:
    files = offer(web, ["a", "b"], lambda i: b"%d" % i * (stage.SMALL_BYTES + 1))
    asked: set[str] = set()
    both = threading.Event()

    def meet(request: Request) -> None:
        asked.add(request.path)
        if {"/bucket/dir/a", "/bucket/dir/b"} <= asked:
            both.set()
        if request.path in ("/bucket/dir/a", "/bucket/dir/b"):
            both.wait(10)

    web.faults = meet
    assert bring(volume, given("/data", "s3://bucket/dir"), settings=settings(web)).error is None
    assert arrived(volume) == files


def test_large_files_get_all_connections_after_the_small_ones(
    volume: Path, web: HttpServer, taken: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[int] = []
    limit = Pool.limit

    def noted(self: Pool, threads: int) -> None:
        limits.append(threads)
        limit(self, threads)

    monkeypatch.setattr(Pool, "limit", noted)
    large = b"x" * (stage.SMALL_BYTES + 1)
    files = offer(web, [f"{i:03}" for i in range(700)], lambda i: large if 300 <= i < 400 else b"%d" % i)
    report = fetch(volume, web, parallel=8)
    assert (report.error, report.total_files) == (None, 700)
    assert arrived(volume) == files
    assert limits[0] == 2 and limits[-1] == 8
    assert limits.count(2) == limits.count(8) in (1, 2)
    assert len(taken) > 300


# a real server, and out


def fill(directory: Path) -> Path:
    for i, name in enumerate(NAMES):
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content(i))
    return directory


def test_a_directory_is_uploaded_to_and_staged_from_a_real_server(
    volume: Path, s3: S3Server, taken: list[bool], returned: list[object]
) -> None:
    source, url = fill(volume / "root/out"), f"s3://{s3.bucket}/many"
    report = send(volume, wanted("/out", url, "DIRECTORY"), settings=settings_of(s3, parallel=16))
    assert (report.error, report.total_files) == (None, COUNT)
    assert all(str(f.checksum).startswith("sha256:") for f in report.files)
    assert set(keys(s3)) == {f"many/{name}" for name in NAMES}
    assert len(taken) == COUNT - stage.MANY + 1
    report = bring(volume, given("/data", url, type="DIRECTORY"), settings=settings_of(s3, parallel=16))
    assert (report.error, report.total_files) == (None, COUNT)
    assert tree(volume / "root/data") == tree(source)
    assert len(taken) == 2 * (COUNT - stage.MANY + 1)
    assert returned == []


@pytest.mark.usefixtures("bare")
def test_a_round_trip_over_tls(
    volume: Path, s3: S3Server, ours: Authority, taken: list[bool], returned: list[object]
) -> None:
    source, url = fill(volume / "root/out"), f"s3://{s3.bucket}/many"
    (source / "long").mkdir()
    for i in range(20):
        (source / "long" / f"{i}").write_bytes(random.Random(i).randbytes(stage.SMALL_BYTES))
    front = TlsFront(s3.endpoint, ours.context())
    with closing(front):
        endpoint = {"url": front.url, "region": s3.region, "access_key": s3.access_key, "secret_key": s3.secret_key}
        made = quick(s3={"main": {**endpoint, "ca_file": str(ours.ca_file)}}, parallel=16)
        assert send(volume, wanted("/out", url, "DIRECTORY"), settings=made).error is None
        assert bring(volume, given("/data", url, type="DIRECTORY"), settings=made).error is None
    assert tree(volume / "root/data") == tree(source)
    assert taken.count(True) == 2 * (COUNT + 20 - stage.MANY + 1)
    assert returned == []


@pytest.mark.usefixtures("bare")
def test_tls_records_may_be_split(volume: Path, web: HttpServer, ours: Authority, returned: list[object]) -> None:
    files = offer(web, NAMES[:200])
    front = TlsFront(web.url, ours.context())
    with closing(front):
        slow = Pieces(front.port, 700)
        with closing(slow):
            endpoint = {"url": f"https://127.0.0.1:{slow.port}", "anonymous": True, "ca_file": str(ours.ca_file)}
            directory = given("/data", "s3://bucket/dir", type="DIRECTORY")
            report = bring(volume, directory, settings=quick(s3={"main": endpoint}, parallel=16))
    assert (report.error, report.total_files) == (None, 200)
    assert arrived(volume) == files
    assert returned == []


def test_matches_of_a_pattern_are_as_fast(volume: Path, s3: S3Server, taken: list[bool]) -> None:
    fill(volume / "root/out")
    output = wanted("/out/*/*.bin", f"s3://{s3.bucket}/m", prefix="/out")
    report = send(volume, output, settings=settings_of(s3, parallel=16))
    assert (report.error, report.total_files) == (None, COUNT)
    assert set(keys(s3)) == {f"m/{name}" for name in NAMES}
    assert len(taken) == COUNT - stage.MANY + 1


@pytest.mark.parametrize("fault", [Fault(status=503), Fault(status=500), Fault(status=409)])
def test_failed_uploads_are_retried(volume: Path, web: HttpServer, fault: Fault) -> None:
    sent = tree(fill(volume / "root/out"))
    web.put_status = 200
    web.faults = once(fault, random.Random(3), 0.2)
    report = send(volume, wanted("/out", "s3://bucket/dir", "DIRECTORY"), settings=settings(web, attempts=6))
    stored = {p.removeprefix("/bucket/dir/"): data for p, data in web.files.items()}
    refused = fault.status == 409  # for good
    assert (report.error is not None) is refused
    assert report.total_files == len(stored)
    assert stored.items() <= sent.items()
    assert refused or len(stored) == COUNT


def test_a_removed_file_is_the_only_one_not_sent(
    volume: Path, web: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = fill(volume / "root/out")
    web.put_status = 200
    request = Put.request
    gone: list[str] = []

    def requesting(self: Put) -> bytes:
        if not gone:
            gone.append(self._ref.url.removeprefix("s3://bucket/dir/"))
            (source / gone[0]).unlink()
        return request(self)

    monkeypatch.setattr(Put, "request", requesting)
    report = send(volume, wanted("/out", "s3://bucket/dir", "DIRECTORY"), settings=settings(web))
    assert (report.error_code, report.total_files) == ("not_found", COUNT - 1)
    assert gone[0] in str(report.error)


def test_a_file_that_grows_is_sent_completely(volume: Path, web: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    source = fill(volume / "root/out")
    web.put_status = 200
    request = Put.request
    grown: list[str] = []

    def requesting(self: Put) -> bytes:
        if not grown:
            grown.append(self._ref.url.removeprefix("s3://bucket/dir/"))
            (source / grown[0]).write_bytes(b"x" * 600_000)
        return request(self)

    monkeypatch.setattr(Put, "request", requesting)
    report = send(volume, wanted("/out", "s3://bucket/dir", "DIRECTORY"), settings=settings(web))
    assert (report.error, report.total_files) == (None, COUNT)
    assert web.files[f"/bucket/dir/{grown[0]}"] == b"x" * 600_000


def test_large_files_are_not_submitted(volume: Path, s3: S3Server, taken: list[bool]) -> None:
    for i in range(150):
        put(s3, f"dir/{i}", b"x" * (stage.SMALL_BYTES + 1 if i > 120 else 10))
    report = bring(volume, given("/data", f"s3://{s3.bucket}/dir", type="DIRECTORY"), settings=settings_of(s3))
    assert (report.error, report.total_files) == (None, 150)
    assert len(taken) == 121 - stage.MANY + 1
