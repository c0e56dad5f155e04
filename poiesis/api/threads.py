"""Threads for calls that block."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Threads(ThreadPoolExecutor):
    """A bounded pool for the event loop. What waits for the same thing shares one, so that nothing else is delayed with it."""

    async def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of a function, called in a thread with the context of the caller, such as the id of the request."""
        call = partial(copy_context().run, function, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self, call)

    def abandon(self) -> None:
        """End the threads once their calls have ended, without waiting for these; calls that have not begun are dropped."""
        self.shutdown(wait=False, cancel_futures=True)
