"""Messages to receivers: real servers on loopback."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from poiesis.config import WebhookSettings
from poiesis.notifications import http_sender
from poiesis.notifications.http_sender import HttpWebhookSender

LOOPBACK = WebhookSettings(allow_addresses=("127.0.0.1",))


class Receiver(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    received: list[tuple[str, dict[str, str], bytes]]
    status = 204
    extra: dict[str, str]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.received.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
        self.send_response(self.status)
        for name, value in self.extra.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def receiver(status: int = 204, **extra: str) -> Iterator[tuple[str, list[tuple[str, dict[str, str], bytes]]]]:
    received: list[tuple[str, dict[str, str], bytes]] = []
    handler = type("Handler", (Receiver,), {"status": status, "extra": extra, "received": received})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", received
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def raw_server(answer: bytes, pause_s: float = 0.0, *, head: bytes = b"") -> Iterator[str]:
    """Accepts one connection, and sends `head` at once and `answer` byte by byte, with a pause after each."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        try:
            with listening.accept()[0] as connection:
                connection.recv(65536)
                connection.sendall(head)
                for i in range(len(answer)):
                    connection.sendall(answer[i : i + 1])
                    time.sleep(pause_s)
        except OSError:
            pass

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/hook"
    finally:
        listening.close()


def test_a_message_arrives_as_it_was_sent() -> None:
    with receiver() as (url, received):
        answer = HttpWebhookSender(LOOPBACK).send(f"{url}/hook?a=b", {"webhook-id": "msg_1"}, b'{"x":1}')

    assert answer.status == 204
    path, headers, body = received[0]
    assert (path, headers["webhook-id"], body) == ("/hook?a=b", "msg_1", b'{"x":1}')


def test_an_address_that_is_not_allowed_gets_no_connection() -> None:
    with receiver() as (url, received):
        answer = HttpWebhookSender(WebhookSettings()).send(url, {}, b"{}")

    assert answer.status is None
    assert "private, loopback or link-local" in (answer.error or "")
    assert received == []


@pytest.mark.parametrize(
    "host", ["localhost", "[::1]", "169.254.169.254", "[::ffff:127.0.0.1]", "0.0.0.0", "127.1", "2130706433"]
)
def test_other_names_of_private_addresses_are_refused(host: str) -> None:
    answer = HttpWebhookSender(WebhookSettings()).send(f"http://{host}:9/", {}, b"{}")

    assert answer.status is None
    assert "does not connect to" in (answer.error or "") or "cannot be resolved" in (answer.error or "")


def test_redirects_are_not_followed() -> None:
    with receiver() as (elsewhere, never), receiver(307, Location=elsewhere) as (url, _):
        answer = HttpWebhookSender(LOOPBACK).send(url, {}, b"{}")

    assert answer.status == 307
    assert never == []


def test_retry_after_is_read() -> None:
    with receiver(503, **{"Retry-After": "17"}) as (url, _):
        assert HttpWebhookSender(LOOPBACK).send(url, {}, b"{}").retry_after_s == 17


def test_a_receiver_that_sends_byte_by_byte_does_not_hold_the_thread() -> None:
    with raw_server(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100, pause_s=0.05) as url:
        begin = time.monotonic()
        answer = HttpWebhookSender(LOOPBACK, deadline_s=0.3).send(url, {}, b"{}")

    assert (answer.status, answer.error) == (None, "127.0.0.1 did not answer within 0 s")
    assert time.monotonic() - begin < 3


@pytest.mark.parametrize("header", [b"Connection: close", b"Content-Length: 99999", b"Transfer-Encoding: chunked"])
def test_a_body_that_comes_byte_by_byte_does_not_hold_the_thread(header: bytes) -> None:
    """The status has come in time, so the message has been delivered."""
    with raw_server(b"1" * 1000, pause_s=0.02, head=b"HTTP/1.1 200 OK\r\n" + header + b"\r\n\r\n") as url:
        begin = time.monotonic()
        answer = HttpWebhookSender(LOOPBACK, deadline_s=1).send(url, {}, b"{}")

    assert (answer.status, answer.error) == (200, None)
    assert time.monotonic() - begin < 10


def test_a_host_with_many_addresses_that_do_not_answer_does_not_hold_the_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        address = full.getsockname()
        waiting = [socket.socket() for _ in range(4)]
        for each in waiting:  # fill the backlog, so that later connections get no answer
            each.setblocking(False)
            each.connect_ex(address)
        found = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", address)] * 8
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        monkeypatch.setattr(http_sender, "CONNECT_S", 1.0)
        begin = time.monotonic()
        answer = HttpWebhookSender(LOOPBACK, deadline_s=1.2).send("http://receiver.example/", {}, b"{}")
        for each in waiting:
            each.close()

    assert (answer.status, answer.error) == (None, "receiver.example did not answer within 1 s")
    assert time.monotonic() - begin < 5


@pytest.mark.parametrize(
    "answer", [b"", b"SSH-2.0-x\r\n", b"HTTP/1.1 abc\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 200 + b"\r\n"]
)
def test_what_is_not_http_is_an_error(answer: bytes) -> None:
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with listening.accept()[0] as connection:
            connection.recv(65536)
            connection.sendall(answer)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    result = HttpWebhookSender(LOOPBACK).send(f"http://127.0.0.1:{listening.getsockname()[1]}/", {}, b"{}")
    listening.close()

    assert result.status is None
    assert "cannot be reached" in (result.error or "")


def test_a_closed_port_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    answer = HttpWebhookSender(LOOPBACK).send(f"http://127.0.0.1:{port}/", {}, b"{}")

    assert answer.status is None
    assert "127.0.0.1" in (answer.error or "")
