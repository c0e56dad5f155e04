"""The limits on the connections of a process: what the gate counts."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from poiesis.api.connections import MAX_UNWRITTEN_BYTES, SWEEP_S, ConnectionGate
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
