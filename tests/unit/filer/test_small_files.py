"""The mover of small files: responses split anywhere, connections that end anywhere, files that are returned."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poiesis.filer import small_files
from poiesis.filer.http_connection import ConnectionPool
from poiesis.filer.small_files import SmallFileMover
from poiesis.filer.transfer import POLL, Control
from poiesis.ports.filer import Sent
from tests.unit.filer.tasks import quick
from tests.unit.filer.test_http_connection import CHUNKED, PROVISIONAL, UNTIL_CLOSE, WHOLE, Served, pieces, wired

BOTH = CHUNKED.replace(b"Transfer", b"Content-Length: 38\r\nTransfer")  # the former counts (RFC 9112, 6.3)
ODD_LENGTH = b"HTTP/1.1 200 OK\r\ncontent-length: \xb2\r\n\r\nhi"
ODD_STATUS = b"HTTP/1.1 \xb2\xb2\xb2 OK\r\ncontent-length: 0\r\n\r\n"
REQUEST = b"GET /x HTTP/1.1\r\n\r\n"


class Asked:
    """An exchange that records its calls."""

    def __init__(self, pool: ConnectionPool, request: bytes = REQUEST, error: Exception | None = None) -> None:
        self.pool = pool
        self.answers: list[tuple[int, bytes]] = []
        self._request, self._error = request, error

    def request(self) -> bytes:
        return self._request

    def handle_response(self, status: int, headers: Mapping[str, str], body: memoryview) -> Sent:
        if self._error is not None:
            raise self._error
        self.answers.append((status, bytes(body)))
        return Sent("u", len(body))


def control(cancelled: Callable[[], bool] = lambda: False, stall_s: float = 2.0) -> Control:
    return Control(quick(stall_timeout=timedelta(seconds=stall_s)), cancelled)


def move(made: SmallFileMover, *exchanges: Asked) -> tuple[list[int], list[int]]:
    """Numbers of the exchanges that succeeded, and of those that were returned."""
    moved: list[int] = []
    back: list[int] = []
    for i, exchange in enumerate(exchanges):
        otherwise = lambda i=i: back.append(i)  # noqa: E731
        if not made.submit(exchange, lambda _, i=i: moved.append(i), otherwise):  # type: ignore[misc]
            otherwise()
    made.finish()
    for job in made.returned_jobs():
        job()
    return sorted(moved), sorted(back)


@settings(max_examples=60)
@given(cuts=st.lists(st.integers(0, 200), max_size=8))
def test_responses_may_be_split_anywhere(cuts: list[int]) -> None:
    with wired(Served([pieces(WHOLE, cuts)] * 3)) as pool:
        asked = [Asked(pool) for _ in range(3)]
        assert move(SmallFileMover(control(), lambda: 1), *asked) == ([0, 1, 2], [])
    assert [a.answers for a in asked] == [[(200, b"hello")]] * 3


def test_a_response_truncated_at_any_byte_returns_the_file() -> None:
    for cut in range(len(WHOLE)):
        with wired(Served([[WHOLE[:cut]]])) as pool:
            asked = Asked(pool)
            assert move(SmallFileMover(control(), lambda: 1), asked) == ([], [0])
            assert asked.answers == []


@pytest.mark.parametrize(
    "data",
    [
        ODD_LENGTH,
        ODD_STATUS,
        BOTH,
        CHUNKED,
        UNTIL_CLOSE,
        PROVISIONAL,
        b"rubbish\r\n\r\n",
        WHOLE + b"more",
        b"HTTP/1.1 200 OK\r\n\r\n",
    ],
    ids=[
        "a length of ²",
        "a status of ²",
        "chunked and a length",
        "chunked",
        "until the end",
        "provisional",
        "no HTTP",
        "longer than its length",
        "no length",
    ],
)
def test_an_unexpected_response_returns_the_file(data: bytes) -> None:
    with wired(Served([[data]], close=False)) as pool:
        assert move(SmallFileMover(control(), lambda: 1), Asked(pool)) == ([], [0])


def test_a_response_longer_than_the_buffer_returns_the_file() -> None:
    body = b"x" * 70_000
    with wired(Served([[b"HTTP/1.1 200 OK\r\ncontent-length: 70000\r\n\r\n" + body]])) as pool:
        assert move(SmallFileMover(control(), lambda: 1), Asked(pool)) == ([], [0])


def test_an_endless_head_returns_the_file() -> None:
    with wired(Served([[b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 20_000]])) as pool:
        assert move(SmallFileMover(control(), lambda: 1), Asked(pool)) == ([], [0])


def test_an_error_of_an_exchange_returns_only_that_file() -> None:
    with wired(*(Served([[WHOLE]] * 9) for _ in range(4))) as pool:
        asked = [Asked(pool, error=KeyError(i) if i == 3 else None) for i in range(6)]
        assert move(SmallFileMover(control(), lambda: 2), *asked) == ([0, 1, 2, 4, 5], [3])


def test_an_error_before_the_request_returns_only_that_file() -> None:
    def fail() -> bytes:
        raise ValueError("no")

    with wired(Served([[WHOLE]] * 9)) as pool:
        asked = [Asked(pool) for _ in range(5)]
        asked[2].request = fail  # type: ignore[method-assign]
        assert move(SmallFileMover(control(), lambda: 1), *asked) == ([0, 1, 3, 4], [2])


def test_a_closed_idle_connection_costs_no_file() -> None:
    with wired(Served([[WHOLE]]), Served([[WHOLE]] * 5)) as pool:
        assert move(SmallFileMover(control(), lambda: 1), *(Asked(pool) for _ in range(4))) == ([0, 1, 2, 3], [])


def test_a_server_that_closes_after_each_response_gets_new_connections() -> None:
    closing = WHOLE.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    with wired(*(Served([[closing]]) for _ in range(6))) as pool:
        assert move(SmallFileMover(control(), lambda: 2), *(Asked(pool) for _ in range(6))) == (list(range(6)), [])


def test_no_request_is_sent_on_a_closing_connection() -> None:
    closing = WHOLE.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    with wired(Served([[closing], []], close=False), Served([[WHOLE]])) as pool:
        assert move(SmallFileMover(control(stall_s=1), lambda: 1), Asked(pool), Asked(pool)) == ([0, 1], [])


def test_connections_stay_within_the_limit_and_are_released() -> None:
    with wired(*(Served([[WHOLE]] * 60) for _ in range(9))) as pool:
        assert move(SmallFileMover(control(), lambda: 3), *(Asked(pool) for _ in range(60)))[0] == list(range(60))
        assert (pool._open, len(pool._idle)) == (3, 3)
        with pool.request("GET", "/x", {}) as answer:  # they block again, as others expect
            assert answer.read() == b"hello"


def test_large_requests_are_sent_in_pieces() -> None:
    body = bytes(range(256)) * 8000
    served = Served([[WHOLE], [WHOLE]])
    with wired(served) as pool:
        request = b"PUT /x HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % len(body) + body
        assert move(SmallFileMover(control(), lambda: 1), Asked(pool, request), Asked(pool)) == ([0, 1], [])
    assert served.requests == [request, REQUEST]


def test_files_of_a_silent_server_are_returned() -> None:
    with wired(Served([[WHOLE], []], close=False)) as pool:
        assert move(SmallFileMover(control(stall_s=0.3), lambda: 1), Asked(pool), Asked(pool)) == ([0], [1])


def test_an_unreachable_server_ends_it_soon() -> None:
    def connect() -> socket.socket:
        raise ConnectionRefusedError("no")

    pool = ConnectionPool(connect, buffer_bytes=4096, stall_s=2, keep=4)
    moved, back = move(SmallFileMover(control(), lambda: 2), *(Asked(pool) for _ in range(100)))
    assert (moved, back) == ([], list(range(100)))


def test_too_many_failures_make_it_give_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small_files, "MAX_RETURNED", 5)
    served = [Served([[b"HTTP/1.1 204 No Content\r\n\r\n"]]) for _ in range(50)]
    with wired(*served) as pool:
        assert move(SmallFileMover(control(), lambda: 2), *(Asked(pool) for _ in range(50))) == ([], list(range(50)))
        assert sum(len(s.requests) for s in served) < 15


def test_a_stop_returns_the_remaining_files() -> None:
    stopped = threading.Event()
    with wired(Served([[WHOLE], []], close=False)) as pool:
        made = SmallFileMover(control(stopped.is_set, stall_s=60), lambda: 1)
        asked = [Asked(pool) for _ in range(3)]
        jobs = [made.submit(a, lambda _: None, lambda: None) for a in asked]
        assert jobs == [True] * 3
        threading.Timer(0.1, stopped.set).start()
        made.finish()
        assert len(list(made.returned_jobs())) == 2
        assert pool._open == 0


def test_submitting_waits_for_room_but_not_after_a_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small_files, "MAX_QUEUED", 4)
    monkeypatch.setattr(small_files, "REFILL_BELOW", 2)
    stopped = threading.Event()
    with wired(Served([[]], close=False)) as pool:
        made = SmallFileMover(control(stopped.is_set, stall_s=60), lambda: 1)
        threading.Timer(0.2, stopped.set).start()
        taken = [made.submit(Asked(pool), lambda _: None, lambda: None) for _ in range(8)]
        assert taken.count(True) in (4, 5)
        assert stopped.is_set()
        made.finish()


def test_more_files_than_the_queue_holds_are_all_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small_files, "MAX_QUEUED", 4)
    monkeypatch.setattr(small_files, "REFILL_BELOW", 2)
    with wired(*(Served([[WHOLE]] * 300) for _ in range(2))) as pool:
        assert move(SmallFileMover(control(), lambda: 2), *(Asked(pool) for _ in range(300))) == (list(range(300)), [])


def test_late_files_wake_it() -> None:
    with wired(Served([[WHOLE]] * 9)) as pool:
        made = SmallFileMover(control(), lambda: 1)
        moved = threading.Event()
        for _ in range(3):
            time.sleep(0.01)
            moved.clear()
            assert made.submit(Asked(pool), lambda _: moved.set(), lambda: None)
            assert moved.wait(POLL * 20)
        made.finish()
        assert list(made.returned_jobs()) == []
        assert not made.submit(Asked(pool), lambda _: None, lambda: None)


def test_without_further_connections_the_open_ones_continue() -> None:
    made = iter([Served([[WHOLE]] * 50), Served([[WHOLE]] * 50)])
    tried: list[int] = []

    def connect() -> socket.socket:
        tried.append(1)
        try:
            return next(made).connect()
        except StopIteration:
            raise ConnectionRefusedError("no more") from None

    pool = ConnectionPool(connect, buffer_bytes=4096, stall_s=2, keep=9)
    assert move(SmallFileMover(control(), lambda: 5), *(Asked(pool) for _ in range(60))) == (list(range(60)), [])
    assert len(tried) == 3
    pool.close()


def test_slow_files_make_it_give_up() -> None:
    class Slow(Asked):
        def handle_response(self, status: int, headers: Mapping[str, str], body: memoryview) -> Sent:
            time.sleep(0.006)
            return super().handle_response(status, headers, body)

    with wired(*(Served([[WHOLE]] * 300) for _ in range(2))) as pool:
        made = SmallFileMover(control(), lambda: 2)
        moved, back = move(made, *(Slow(pool) for _ in range(300)))
        assert made.gave_up
        assert sorted(moved + back) == list(range(300))
        assert 20 < len(moved) < 150


def test_a_slow_file_does_not_make_other_connections_time_out() -> None:
    class Slow(Asked):
        def handle_response(self, status: int, headers: Mapping[str, str], body: memoryview) -> Sent:
            time.sleep(0.5)
            return super().handle_response(status, headers, body)

    def late(seconds: float) -> Iterator[bytes]:
        time.sleep(seconds)
        yield WHOLE

    with wired(Served([late(0.05)]), *(Served([late(0.1)]) for _ in range(3))) as pool:
        asked = [Slow(pool), *(Asked(pool) for _ in range(3))]
        assert move(SmallFileMover(control(stall_s=0.3), lambda: 4), *asked) == ([0, 1, 2, 3], [])


def test_without_descriptors_nothing_stays_open(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(24, "too many open files")

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(os, "eventfd", refuse)
    with pytest.raises(OSError, match="too many"):
        SmallFileMover(control(), lambda: 1)
    monkeypatch.undo()
    monkeypatch.setattr(threading.Thread, "start", lambda _: refuse())
    with pytest.raises(OSError, match="too many"):
        SmallFileMover(control(), lambda: 1)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_bug_in_the_mover_loses_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda _: None)  # which would print it

    def bug(_: SmallFileMover, __: object) -> bool:
        raise RuntimeError("a bug")

    monkeypatch.setattr(SmallFileMover, "_is_whole", bug)
    with wired(*(Served([[WHOLE]] * 9) for _ in range(2))) as pool:
        assert move(SmallFileMover(control(), lambda: 2), *(Asked(pool) for _ in range(20))) == ([], list(range(20)))
        assert pool._open == 0
