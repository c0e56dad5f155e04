"""The limits on the connections of a process: what the gate counts."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from poiesis.api.connections import JOINED_BYTES, MAX_UNWRITTEN_BYTES, SWEEP_S, ConnectionGate, JoiningTransport
from poiesis.config import ApiSettings


class Loop:
    """Collects what is scheduled."""

    def __init__(self) -> None:
        self.scheduled: list[tuple[float, Any]] = []

    def time(self) -> float:
        return 0.0

    def call_later(self, delay: float, callback: Any, *_: Any) -> None:
        self.scheduled.append((delay, callback))


class Transport:
    def __init__(self, unwritten_bytes: int) -> None:
        self.unwritten_bytes = unwritten_bytes
        self.is_aborted = False

    def get_write_buffer_size(self) -> int:
        return self.unwritten_bytes

    def abort(self) -> None:
        self.is_aborted = True


class Connection:
    address = "192.0.2.1"

    def __init__(self, loop: Loop, unwritten_bytes: int = 0) -> None:
        self.loop = loop
        self.transport = Transport(unwritten_bytes)

    def check_deadlines(self, now: float) -> None:
        raise RuntimeError("a bug")


def test_an_error_in_a_sweep_does_not_end_the_time_outs() -> None:
    loop, gate = Loop(), ConnectionGate(ApiSettings())
    assert gate.enter(cast(Any, Connection(loop)))
    ((delay, sweep),) = loop.scheduled
    assert delay == SWEEP_S

    with pytest.raises(RuntimeError):
        sweep(cast(asyncio.AbstractEventLoop, loop))

    assert len(loop.scheduled) == 2


def test_unread_bytes_of_a_connection_that_has_left_do_not_close_others() -> None:
    loop, gate = Loop(), ConnectionGate(ApiSettings())
    gone, open_ = (Connection(loop, MAX_UNWRITTEN_BYTES) for _ in range(2))
    for connection in (gone, open_):
        assert gate.enter(cast(Any, connection))
    gate.leave(cast(Any, gone))
    gate.set_writing(cast(Any, gone), True)

    gate.set_writing(cast(Any, open_), True)

    assert not gone.transport.is_aborted
    assert not open_.transport.is_aborted


class Written:
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.is_closed = False

    def write(self, data: bytes) -> None:
        self.writes.append(data)

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        self.is_closed = True


def test_the_head_of_a_response_and_its_body_are_written_at_once() -> None:
    async def main() -> None:
        written = Written()
        transport = JoiningTransport(cast(Any, written), asyncio.get_running_loop(), lambda: False)

        transport.write(b"head")
        transport.write(b"body")
        assert written.writes == [b"headbody"]

        transport.write(b"100 Continue")  # without a body
        assert written.writes == [b"headbody"]
        await asyncio.sleep(0)
        assert written.writes == [b"headbody", b"100 Continue"]

    asyncio.run(main())


def test_a_long_body_is_not_copied_and_comes_after_its_head() -> None:
    async def main() -> None:
        written, body = Written(), b"x" * (JOINED_BYTES + 1)
        transport = JoiningTransport(cast(Any, written), asyncio.get_running_loop(), lambda: False)

        transport.write(b"head")
        transport.write(body)

        assert written.writes == [b"head", body]
        assert written.writes[1] is body

    asyncio.run(main())


@pytest.mark.parametrize("waits", [False, True])
def test_what_was_written_before_closing_is_sent(waits: bool) -> None:
    async def main() -> None:
        written = Written()
        transport = JoiningTransport(cast(Any, written), asyncio.get_running_loop(), lambda: waits)

        transport.write(b"head")
        transport.close()
        transport.write(b"dropped" if not waits else b"")
        await asyncio.sleep(0)

        assert (written.writes, written.is_closed) == ([b"head"], not waits)

    asyncio.run(main())
