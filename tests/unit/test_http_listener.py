"""Real sockets, with short deadlines."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
import urllib3

from poiesis.http_listener import Bounds, HttpListener, Request, Response

Make = Callable[..., HttpListener]
SLOW = b"POST / HTTP/1.1\r\nContent-Length: 100\r\n\r\n"


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[HttpListener] = []

    def start(
        handle: Callable[[Request], Response | Callable[[], Response]] = lambda request: Response(200, request.body),
        **bounds: float,
    ) -> HttpListener:
        made.append(HttpListener("127.0.0.1:0", handle, Bounds(**{"body_bytes": 1000, **bounds}), name="test"))  # type: ignore[arg-type]
        made[-1].start()
        return made[-1]

    yield start
    for each in made:
        each.close()


def connect(listener: HttpListener, data: bytes = b"", source: str = "127.0.0.1") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", listener.port), timeout=10, source_address=(source, 0))
    connection.sendall(data)
    return connection


def received(connection: socket.socket) -> bytes:
    with connection:
        found = b""
        try:
            while data := connection.recv(65536):
                found += data
        except ConnectionResetError:
            pass
        return found


def ask(listener: HttpListener, body: bytes = b"") -> tuple[int, bytes]:
    answer = urllib3.request("POST", f"http://127.0.0.1:{listener.port}/", body=body, retries=False, timeout=10)
    return answer.status, answer.data


def test_a_request_is_answered_and_its_connection_closed(make: Make) -> None:
    assert ask(make(), b"hello") == (200, b"hello")


def test_a_request_may_arrive_in_pieces(make: Make) -> None:
    connection = connect(make())
    for byte in SLOW.replace(b"100", b"3") + b"abc":
        connection.sendall(bytes([byte]))
    assert received(connection).endswith(b"\r\n\r\nabc")


def test_the_deadline_is_one_for_the_whole_request(make: Make) -> None:
    """A byte now and then does not extend it."""
    listener = make(request_deadline_s=0.5)
    connection, started = connect(listener, SLOW), time.monotonic()
    connection.settimeout(0.05)
    while time.monotonic() - started < 8:
        try:
            connection.sendall(b".")
            if connection.recv(1) == b"":
                break
        except TimeoutError:
            continue
        except OSError:
            break
    assert time.monotonic() - started < 5
    connection.close()


def test_slow_connections_of_all_addresses_do_not_keep_others_out(make: Make) -> None:
    """256 of them keep dripping; a client that sends its request at once is served at once."""
    listener = make(connections=64, connections_per_address=16, request_deadline_s=60)
    stop = threading.Event()
    with ExitStack() as stack:
        slow = [stack.enter_context(connect(listener, SLOW, f"127.0.0.{2 + i % 16}")) for i in range(256)]

        def drip() -> None:
            while not stop.wait(0.05):
                for each in slow:
                    try:
                        each.send(b".")
                    except OSError:
                        continue

        thread = threading.Thread(target=drip)
        thread.start()
        try:
            started = time.monotonic()
            assert [ask(listener) for _ in range(20)] == [(200, b"")] * 20
            assert time.monotonic() - started < 5
        finally:
            stop.set()
            thread.join()


def test_connections_of_one_address_are_limited(make: Make) -> None:
    listener = make(connections_per_address=4, request_deadline_s=60)
    first = connect(listener, SLOW)
    others = [connect(listener, SLOW) for _ in range(4)]
    assert received(first) == b"", "the oldest was closed for the newest"
    elsewhere = connect(listener, SLOW, "127.0.0.9")
    others[-1].sendall(b"x" * 100)
    elsewhere.sendall(b"y" * 100)
    assert received(others[-1]).endswith(b"x" * 100)
    assert received(elsewhere).endswith(b"y" * 100)
    for each in others:
        each.close()


def test_unfinished_requests_are_bounded_in_bytes_together(make: Make) -> None:
    listener = make(body_bytes=10_000, unfinished_bytes=20_000, request_deadline_s=60)
    whole = b"POST / HTTP/1.1\r\nContent-Length: 9000\r\n\r\n"
    connections = [connect(listener, whole + b"x" * 8000) for _ in range(3)]
    assert received(connections[0]) == b""
    connections[2].sendall(b"x" * 1000)
    assert received(connections[2]).endswith(b"x" * 9000)
    connections[1].close()


def test_a_slow_response_delays_no_other_request(make: Make) -> None:
    go_on = threading.Event()

    def handle(request: Request) -> Response | Callable[[], Response]:
        return (lambda: Response(200 if go_on.wait(10) else 500)) if request.path == "/slow" else Response(204)

    listener = make(handle, threads=1)
    slow = [connect(listener, b"GET /slow HTTP/1.1\r\n\r\n") for _ in range(3)]
    assert ask(listener)[0] == 204
    go_on.set()
    assert [received(each)[:12] for each in slow] == [b"HTTP/1.1 200"] * 3


def test_a_bug_in_a_handler_costs_one_connection(make: Make) -> None:
    def handle(request: Request) -> Response | Callable[[], Response]:
        if request.body == b"later":
            return lambda: Response(1 // 0)
        return Response(1 // len(request.body))

    listener = make(handle)
    assert received(connect(listener, b"GET / HTTP/1.1\r\n\r\n")) == b""
    assert ask(listener, b"later")[0] == 500


def test_closing_with_open_connections_logs_nothing(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """Each had a traceback, so a task that held 256 of them filled the monitor's log when it stopped."""
    listener = make()
    with connect(listener, SLOW), connect(listener, b"GET"):
        ask(listener)  # after both were accepted
        listener.close()
    assert [r.getMessage() for r in caplog.records if r.levelname == "ERROR"] == []


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\0\xff\r\n\r\n", 400),
        (b"GET\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: -5\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nContent-Length: ²\r\n\r\n".encode("latin-1"), 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 1001\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 411),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 9000, 431),
        (b"GET / HTTP/1.1\r\n", None),
        (b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\n1234", None),
    ],
)
def test_what_is_not_a_request_is_refused(make: Make, sent: bytes, status: int | None) -> None:
    answer = received(connect(make(request_deadline_s=0.5), sent))
    assert answer.startswith(b"" if status is None else f"HTTP/1.1 {status} ".encode())
    assert bool(answer) == (status is not None)
