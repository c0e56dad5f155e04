"""End a process within its grace period, whatever its threads compute.

Python joins its threads at exit, so one request that computes forever would keep a process alive until something sends SIGKILL.
The timer is faulthandler's: a C thread that needs no GIL once the signal has been handled, prints what every thread was doing, and ends the
process with exit code 1.
"""

from __future__ import annotations

import faulthandler
import signal
import threading
from datetime import timedelta
from types import FrameType
from typing import Any, Final

WAKE_UP_S: Final = 0.5


def end_within(grace: timedelta) -> None:
    """End this process `grace` from now at the latest. A second call starts the period again."""
    faulthandler.dump_traceback_later(grace.total_seconds(), exit=True)


def stop_on_signal(stop: threading.Event, grace: timedelta) -> None:
    """On SIGTERM or SIGINT set `stop` and start the grace period. Only for the main thread."""

    def handle(number: int, frame: FrameType | None) -> None:
        if not stop.is_set():
            end_within(grace)
            stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handle)


def wait_for(stop: threading.Event) -> None:
    """Wait in the main thread, and let it run the handlers of signals that the system delivered to another thread, which do not wake it."""
    while not stop.wait(WAKE_UP_S):
        pass


def end_within_after_signal(grace: timedelta) -> None:
    """On SIGTERM or SIGINT start the grace period before the handler that is installed now. Only for the main thread."""
    for number in (signal.SIGTERM, signal.SIGINT):
        installed = signal.getsignal(number)

        def handle(number: int, frame: FrameType | None, installed: Any = installed) -> None:
            end_within(grace)
            if callable(installed):
                installed(number, frame)

        signal.signal(number, handle)
