"""The minimal HTTP client: framing, however the bytes are split, and connections that end anywhere."""

from __future__ import annotations

import errno
import itertools
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poiesis.filer.atomic_write import PartialFile
from poiesis.filer.http_connection import ConnectionPool, FileRange, HttpConnectionError

HEAD = b'HTTP/1.1 200 OK\r\nContent-Length: 5\r\nETag: "x"\r\n\r\n'
WHOLE = HEAD + b"hello"


class Served:
    """One end of a connection whose other end answers each request with the next script: pieces of bytes, then an end if `close`."""

    def __init__(self, scripts: Iterable[Iterable[bytes]], *, close: bool = True) -> None:
        self.sock: socket.socket | None = None
        self.requests: list[bytes] = []
        self._scripts, self._close = scripts, close
        self._thread: threading.Thread | None = None

    def connect(self) -> socket.socket:
        self.sock, other = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, args=(other,), daemon=True)
        self._thread.start()
        return self.sock

    def _serve(self, other: socket.socket) -> None:
        with other:
            for script in self._scripts:
                if not self._read(other):
                    return
                for piece in script:
                    try:
                        other.sendall(piece)
                    except OSError:
                        return
            if not self._close:
                self._read(other)

    def _read(self, other: socket.socket) -> bool:
        data = b""
        while b"\r\n\r\n" not in data:
            try:
                more = other.recv(65536)
            except OSError:
                return False
            if not more:
                return False
            data += more
        head, _, body = data.partition(b"\r\n\r\n")
        length = next((int(h.split(b":")[1]) for h in head.split(b"\r\n") if h.startswith(b"content-length")), 0)
        while len(body) < length:
            more = other.recv(65536)
            if not more:
                return False
            body += more
        self.requests.append(head + b"\r\n\r\n" + body)
        return True

    def close(self) -> None:
        if self.sock is not None:
            self.sock.close()
        if self._thread is not None:
            self._thread.join(5)


@contextmanager
def wired(*served: Served, stall_s: float = 2, **more: Any) -> Iterator[ConnectionPool]:
    left = iter(served)
    pool = ConnectionPool(lambda: next(left).connect(), buffer_bytes=4096, stall_s=stall_s, keep=4, **more)
    try:
        yield pool
    finally:
        pool.close()
        for each in served:
            each.close()


def ask(pool: ConnectionPool, method: str = "GET", body: bytes | FileRange = b"") -> tuple[int, bytes]:
    with pool.request(method, "/x", {"host": "h"}, body) as answer:
        return answer.status, answer.read()


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    at = sorted({c % (len(data) + 1) for c in cuts})
    return [data[a:b] for a, b in zip([0, *at], [*at, len(data)], strict=True) if a != b]


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;ext=1\r\nhel\r\n2\r\nlo\r\n0\r\nTrailer: 1\r\n\r\n"
UNTIL_CLOSE = b"HTTP/1.0 200 OK\r\n\r\nhello"
PROVISIONAL = b"HTTP/1.1 100 Continue\r\n\r\n" + WHOLE


@settings(max_examples=60)
@given(data=st.sampled_from([WHOLE, CHUNKED, UNTIL_CLOSE, PROVISIONAL]), cuts=st.lists(st.integers(0, 200), max_size=8))
def test_a_response_may_be_split_anywhere(data: bytes, cuts: list[int]) -> None:
    with wired(Served([pieces(data, cuts)])) as pool:
        assert ask(pool) == (200, b"hello")


@pytest.mark.parametrize("data", [WHOLE, CHUNKED, PROVISIONAL])
def test_a_response_truncated_at_any_byte_is_an_error(data: bytes) -> None:
    for cut in range(len(data)):
        with wired(Served([[data[:cut]]])) as pool, pytest.raises((HttpConnectionError, OSError)):
            ask(pool)


def test_a_connection_serves_many_requests_with_bodies_of_any_size() -> None:
    bodies = [os.urandom(n) for n in (0, 1, 5000, 70_000, 3, 200_000)]
    scripts = [[b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(b) + b] for b in bodies]
    served = Served(scripts)
    with wired(served) as pool:
        assert [ask(pool)[1] for _ in bodies] == bodies
    assert len(served.requests) == len(bodies)


def test_a_closed_idle_connection_is_replaced() -> None:
    with wired(Served([[WHOLE]]), Served([[WHOLE]])) as pool:
        assert [ask(pool), ask(pool)] == [(200, b"hello")] * 2


def test_a_new_connection_that_is_closed_is_an_error_at_once() -> None:
    with wired(Served([[]]), Served([[WHOLE]])) as pool, pytest.raises(HttpConnectionError):
        ask(pool)


def test_an_unread_response_closes_its_connection() -> None:
    large = b"HTTP/1.1 200 OK\r\ncontent-length: 900000\r\n\r\n" + bytes(900000)
    with wired(Served([[large]]), Served([[WHOLE]])) as pool:
        with pool.request("GET", "/x", {}) as answer:
            assert answer.size_bytes == 900000
        assert ask(pool) == (200, b"hello")


def test_responses_to_head_and_empty_ones_have_no_body() -> None:
    script = [b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n"], [b"HTTP/1.1 204 No\r\n\r\n"], [WHOLE]
    with wired(Served(script)) as pool:
        assert ask(pool, "HEAD") == (200, b"")
        assert ask(pool, "DELETE") == (204, b"")
        assert ask(pool) == (200, b"hello")


@pytest.mark.parametrize(
    "bad", [b"SSH-2.0-x\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n", b"x" * 70_000, CHUNKED.replace(b"3;ext=1", b"zz")]
)
def test_a_response_that_is_not_http_is_an_error(bad: bytes) -> None:
    with wired(Served([[bad]])) as pool, pytest.raises(HttpConnectionError):
        ask(pool)


def test_a_part_of_a_file_is_a_body(tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    (tmp_path / "f").write_bytes(data)
    descriptor = os.open(tmp_path / "f", os.O_RDONLY)
    moved: list[int] = []
    served = Served([[WHOLE]])
    try:
        with (
            wired(served) as pool,
            pool.request("PUT", "/x", {}, FileRange(descriptor, 1000, 2_000_000), moved.append) as answer,
        ):
            assert answer.status == 200
    finally:
        os.close(descriptor)
    assert served.requests[0].partition(b"\r\n\r\n")[2] == data[1000:2_001_000]
    assert sum(moved) == 2_000_000


BODY = os.urandom(3_000_000)
LONG = f"HTTP/1.1 200 OK\r\nContent-Length: {len(BODY)}\r\n\r\n".encode()
Splice = Callable[..., int]


def saved(
    target: Path, sent: list[bytes], write: Callable[[int, bytes | memoryview, int], object] = os.pwrite
) -> list[int]:
    """The steps in which an answer's body was saved behind the first three bytes of a file."""
    descriptor = os.open(target, os.O_RDWR | os.O_CREAT)
    before = len(os.listdir("/proc/self/fd"))

    class Written(PartialFile):
        def write(self, data: bytes | memoryview, offset: int) -> None:
            write(self.descriptor, data, offset)

    try:
        os.write(descriptor, b"abc")
        with wired(Served([sent])) as pool, pool.request("GET", "/x", {}) as answer:
            return list(answer.save(Written(descriptor), 3))
    finally:
        assert len(os.listdir("/proc/self/fd")) <= before + 1, (
            "pipes are left open"
        )  # the other thread's end may still be open open open
        os.close(descriptor)


def test_a_body_is_saved_at_its_offset(tmp_path: Path) -> None:
    steps = saved(tmp_path / "x", [LONG, BODY[:5], BODY[5:2_000_000], BODY[2_000_000:]])
    assert (tmp_path / "x").read_bytes() == b"abc" + BODY
    assert sum(steps) == len(BODY)


@pytest.mark.parametrize("cut", [0, 1, 100_000, len(BODY) - 1])
def test_a_body_that_ends_early_is_an_error(tmp_path: Path, cut: int) -> None:
    with pytest.raises(HttpConnectionError, match="before the end"):
        saved(tmp_path / "x", [LONG, BODY[:cut]])
    assert (tmp_path / "x").read_bytes() == b"abc" + BODY[:cut]


@pytest.mark.parametrize("of", ["the socket", "the file"])
def test_a_body_is_saved_without_splice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of: str) -> None:
    real: Splice = os.splice
    refused: list[int] = []

    def splice(source: int, target: int, count: int, **more: int) -> int:
        if ("offset_dst" in more) == (of == "the file"):
            refused.append(count)
            raise OSError(errno.EINVAL, "not here")
        return real(source, target, count, **more)

    monkeypatch.setattr(os, "splice", splice)
    saved(tmp_path / "x", [LONG, BODY])
    assert (tmp_path / "x").read_bytes() == b"abc" + BODY
    assert len(refused) == 1


def test_a_full_disk_raises_the_error_of_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real: Splice = os.splice

    def splice(source: int, target: int, count: int, **more: int) -> int:
        if more.get("offset_dst", 0) > 500_000:
            raise OSError(errno.ENOSPC, "full")
        return real(source, target, count, **more)

    def write(descriptor: int, data: bytes | memoryview, offset: int) -> int:
        if offset > 500_000:
            raise ZeroDivisionError
        return os.pwrite(descriptor, data, offset)

    monkeypatch.setattr(os, "splice", splice)
    with pytest.raises(ZeroDivisionError):
        saved(tmp_path / "x", [LONG, BODY], write)


def test_a_file_truncated_during_the_transfer_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x" * 100)
    descriptor = os.open(tmp_path / "f", os.O_RDONLY)
    try:
        with wired(Served([[WHOLE]])) as pool, pytest.raises(HttpConnectionError, match="truncated"):
            ask(pool, "PUT", FileRange(descriptor, 0, 200))
    finally:
        os.close(descriptor)


def test_a_silent_server_is_an_error_after_the_stall_timeout() -> None:
    silent = Served([[]], close=False)
    pool = ConnectionPool(silent.connect, buffer_bytes=4096, stall_s=0.1, keep=1)
    with pytest.raises(TimeoutError):
        ask(pool)
    silent.close()


def dripped(*first: bytes, then: bytes) -> Iterator[bytes]:
    """Pieces that follow each other quickly, without an end."""
    yield from first
    while True:
        time.sleep(0.01)
        yield then


CHUNKED_HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


@pytest.mark.parametrize("script", [dripped(b"HTTP/1.1 200 OK\r\n", then=b"a"), dripped(then=CONTINUE)])
def test_a_head_has_to_be_complete_in_the_stall_timeout(script: Iterator[bytes]) -> None:
    with wired(Served([script]), stall_s=0.5) as pool, pytest.raises(TimeoutError, match="head was not complete"):
        ask(pool)


def test_a_body_that_is_complete_was_fast_enough() -> None:
    def script() -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\na"
        for piece in (b"b", b"c"):
            time.sleep(0.3)
            yield piece

    with wired(Served([script()]), stall_s=0.5, least_bytes=1000) as pool:
        assert ask(pool)[-1] == b"abc"


def test_a_body_has_to_arrive_at_a_least_pace() -> None:
    script = dripped(b"HTTP/1.1 200 OK\r\ncontent-length: 10000\r\n\r\n", then=b"x")
    with (
        wired(Served([script]), stall_s=0.5, least_bytes=1000) as pool,
        pytest.raises(TimeoutError, match="fewer than 1000 bytes"),
    ):
        ask(pool)


def test_a_slow_reader_is_not_a_slow_server() -> None:
    whole = b"HTTP/1.1 200 OK\r\ncontent-length: 300000\r\n\r\n" + bytes(300_000)
    with (
        wired(Served([[whole]]), stall_s=0.5, least_bytes=10**6) as pool,
        pool.request("GET", "/x", {}) as answer,
    ):
        chunks = answer.chunks()
        next(chunks)
        time.sleep(0.6)
        assert sum(map(len, chunks)) > 200_000


@pytest.mark.parametrize(
    ("first", "then", "what"),
    [(b"", CONTINUE, "100 provisional responses"), (CHUNKED_HEAD + b"0\r\n", b"a: b\r\n", "100 trailers")],
    ids=["provisional responses", "trailers"],
)
def test_provisional_responses_and_trailers_are_limited(first: bytes, then: bytes, what: str) -> None:
    script = itertools.chain([first], itertools.repeat(then))
    with wired(Served([script])) as pool, pytest.raises(HttpConnectionError, match=what):
        ask(pool)


def test_a_request_ends_when_its_check_raises() -> None:
    class Stopped(Exception):
        pass

    stopped: list[bool] = []

    def check() -> None:
        if stopped:
            raise Stopped

    script = itertools.chain([CHUNKED_HEAD], itertools.repeat(b"1\r\nx\r\n"))
    with (
        wired(Served([script]), check=check) as pool,
        pytest.raises(Stopped),
        pool.request("GET", "/x", {}) as answer,
    ):
        stopped.append(True)
        answer.read()


@pytest.mark.parametrize("in_one_piece", [True, False])
def test_a_server_that_does_not_read_is_an_error_after_the_stall_timeout(tmp_path: Path, in_one_piece: bool) -> None:
    (tmp_path / "x").write_bytes(bytes(20_000_000))  # more than fits into the buffers between the two
    descriptor = os.open(tmp_path / "x", os.O_RDONLY)
    body = bytes(20_000_000) if in_one_piece else FileRange(descriptor, 0, 20_000_000)

    class NeverReads(Served):
        def _read(self, other: socket.socket) -> bool:
            ended.wait(30)
            return False

    ended = threading.Event()
    try:
        with wired(NeverReads([[WHOLE]])) as pool:
            try:
                with pytest.raises(TimeoutError, match="sent"):
                    ask(pool, "PUT", body)
            finally:
                ended.set()
    finally:
        os.close(descriptor)


def test_acquired_connections_stay_within_the_limit() -> None:
    with wired(*(Served([[WHOLE]]) for _ in range(4))) as pool:
        assert pool.acquire(connect=False) is None
        lines = [pool.acquire() for _ in range(4)]
        assert None not in lines
        assert pool.acquire() is None
        for line in lines:
            assert line is not None
            pool.release(line)
        assert pool.acquire(connect=False) in lines
