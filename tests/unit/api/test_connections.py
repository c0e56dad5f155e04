"""The sweep over connections."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from poiesis.api.connections import SWEEP_S, ConnectionGate
from poiesis.config import ApiSettings


class Loop:
    """Collects what is scheduled."""

    def __init__(self) -> None:
        self.scheduled: list[tuple[float, Any]] = []

    def time(self) -> float:
        return 0.0

    def call_later(self, delay: float, callback: Any, *_: Any) -> None:
        self.scheduled.append((delay, callback))


class Connection:
    address = "192.0.2.1"

    def __init__(self, loop: Loop) -> None:
        self.loop = loop

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
