"""The output of executors: which logs there are, and their bytes, whole, in ranges, or while they grow.

A log is user code's text, so it is never HTML to a browser: plain text, not to be sniffed, in a sandbox. It is read from the log store in
pieces, by threads of its own: a store that does not answer delays no other request.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Final

from starlette.responses import Response
from starlette.types import Scope

from poiesis.api.errors import BrokenOff
from poiesis.api.extensions.context import Context, Document, Handler, header
from poiesis.api.parameters import PARAMETERS
from poiesis.api.ranges import content_range, requested_range
from poiesis.api.streams import Hold, RightsCheck, StreamedResponse, StreamLimits
from poiesis.api.threads import Threads
from poiesis.api.users import USER
from poiesis.domain.errors import InvalidRequest, StorageUnavailable
from poiesis.ports.logs import STREAMS, Stream
from poiesis.services.logs import AvailableLog, LogService, OpenLog, UnknownLog

THREADS: Final = 8
PIECE_BYTES: Final = 512 * 1024
MAX_STREAMS: Final = 128
"""Responses with log bytes at once in one process, each of which holds a piece in memory."""
MAX_STREAMS_PER_USER: Final = 32
POLL_S: Final = 0.5
QUIET_POLL_S: Final = 1.0
QUIET_AFTER_S: Final = 60.0
OVER_EVERY_S: Final = 5.0
MAX_FOLLOW_S: Final = 24 * 3600.0
HEADERS: Final[Mapping[str, str]] = {
    "content-type": "text/plain; charset=utf-8",
    "x-content-type-options": "nosniff",
    "content-security-policy": "sandbox; default-src 'none'; frame-ancestors 'none'",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
    "x-accel-buffering": "no",
}
_INDEX: Final = re.compile(r"\d{1,9}", re.ASCII)


def operations(context: Context) -> dict[str, Handler]:
    logs = _Logs(context)
    return {"ListLogs": logs.list, "GetLog": logs.get}


class _Logs:
    def __init__(self, context: Context) -> None:
        api = context.services.api
        self.service: LogService = context.services.logs
        self.call = Threads(THREADS, "logs").call
        self._limits = StreamLimits(
            replace(
                api,
                max_streams=min(api.max_streams, MAX_STREAMS),
                max_streams_per_user=min(api.max_streams_per_user, MAX_STREAMS_PER_USER),
            )
        )

    async def list(self, scope: Scope) -> Document:
        task_id, access = scope["path_params"]["id"], scope[USER].access
        found = await self.call(self.service.available, task_id, access=access)
        return {"whole": self.service.keeps_whole_logs, "logs": [_entry(each) for each in found]}

    async def get(self, scope: Scope) -> Response:
        asked, access = scope[PARAMETERS], scope[USER].access
        task_id, (executor, stream) = scope["path_params"]["id"], _named(scope["path_params"])
        follows, offset = asked.get("follow", False), asked.get("offset")
        if offset is not None and not follows:
            raise InvalidRequest("offset", "only with follow=true; without it use the header Range")
        if follows:
            self.service.check_followable()
        attempt = asked.get("attempt")
        opened = await self.call(self.service.open, task_id, executor, stream, attempt=attempt, access=access)
        about = opened.about
        headers = {**HEADERS, **_described(about)}
        if asked.get("download", False):
            headers["content-disposition"] = f'attachment; filename="{_file_name(about)}"'
        if follows and scope["method"] == "HEAD":
            return _without_body(headers)
        if follows:
            return StreamedResponse(self._limits, _Followed(self, opened, offset or 0, scope).pieces, headers)
        size = about.size_bytes
        headers["accept-ranges"] = "bytes"
        wanted = requested_range(header(scope, "range"), size) if _may_be_partial(scope, headers) else None
        start, end = wanted or (0, size)
        headers["content-length"] = str(end - start)
        if wanted is not None:
            headers |= content_range(start, end, size)
        status = 200 if wanted is None else 206
        if scope["method"] == "HEAD":
            return _without_body(headers, status)
        rights = RightsCheck(scope)
        return StreamedResponse(self._limits, lambda _: self._pieces(opened, start, end, rights), headers, status)

    async def _pieces(self, opened: OpenLog, position: int, end: int, rights: RightsCheck) -> AsyncIterator[bytes]:
        """Exactly the bytes from `position` to `end`. Raises: BrokenOff, Unavailable, StagingFailed."""
        while position < end:
            await _require_the_same(rights)
            piece = await self.call(opened.read, position, min(PIECE_BYTES, end - position))
            if not piece:
                raise StorageUnavailable("the log store does not have all of the log")
            yield piece
            position += len(piece)


async def _require_the_same(rights: RightsCheck) -> None:
    """Raises: BrokenOff, Unavailable."""
    if not await rights.are_the_same():
        raise BrokenOff("the credentials have expired, or their rights have changed")


class _Followed:
    """A log from `position` on, until its end is stored, or nothing more can come."""

    def __init__(self, logs: _Logs, opened: OpenLog, position: int, scope: Scope) -> None:
        self._logs, self._opened, self._position = logs, opened, position
        self._rights, self._access = RightsCheck(scope), scope[USER].access
        self._clock = asyncio.get_running_loop().time

    async def pieces(self, hold: Hold) -> AsyncIterator[bytes]:
        """The first piece may be empty: then the response begins without bytes.

        Raises: BrokenOff where it ends for another reason than the log; Unavailable, StagingFailed, UnknownTask.
        """
        woken = asyncio.Event()
        hold.wake = woken.set
        begun = moved_at = checked_at = self._clock()
        is_over, is_first = False, True
        while not hold.has_left and self._clock() - begun < MAX_FOLLOW_S:
            await _require_the_same(self._rights)
            piece = await self._logs.call(self._opened.read, self._position, PIECE_BYTES)
            if piece or is_first:
                yield piece
                is_first = False
            if piece:
                self._position += len(piece)
                moved_at = self._clock()
                continue
            if self._opened.is_at_end or is_over:
                return
            if self._clock() - checked_at >= OVER_EVERY_S:
                checked_at = self._clock()
                is_over = await self._logs.call(self._logs.service.is_over, self._opened.about.ref, access=self._access)
                continue
            try:
                pause = POLL_S if self._clock() - moved_at < QUIET_AFTER_S else QUIET_POLL_S
                await asyncio.wait_for(woken.wait(), pause)
            except TimeoutError:
                pass
        raise BrokenOff("the server stops" if hold.has_left else "the log was followed for a day")


def _without_body(headers: Mapping[str, str], status: int = 200) -> Response:
    """To HEAD: nothing is read, and no place of a stream is taken."""
    response = Response(status_code=status, headers=headers)
    if "content-length" not in headers:  # not known, rather than 0
        del response.headers["content-length"]
    return response


def _named(path: Mapping[str, str]) -> tuple[int, Stream]:
    """Raises: UnknownLog."""
    executor, stream = str(path["executor"]), next((s for s in STREAMS if s == path["stream"]), None)
    if _INDEX.fullmatch(executor) is None or stream is None:
        raise UnknownLog("no such log: use the number of an executor and stdout or stderr")
    return int(executor), stream


def _may_be_partial(scope: Scope, headers: Mapping[str, str]) -> bool:
    """Whether a Range counts: not with an If-Range of another representation (RFC 9110, section 13.1.5)."""
    condition = header(scope, "if-range")
    return condition is None or condition == headers.get("etag")


def _described(about: AvailableLog) -> dict[str, str]:
    """A log that may still grow has no ETag."""
    found = {
        "poiesis-log-source": about.source,
        "poiesis-log-complete": str(about.is_complete).lower(),
        "poiesis-log-truncated": str(about.is_truncated).lower(),
    }
    if about.is_complete:
        found["etag"] = f'"{about.ref.attempt}-{about.ref.executor}-{about.ref.stream}-{about.size_bytes}"'
    return found


def _file_name(about: AvailableLog) -> str:
    ref = about.ref
    return f"{ref.task_id}-attempt-{ref.attempt}-executor-{ref.executor}-{ref.stream}.txt"


def _entry(each: AvailableLog) -> Document:
    ref = each.ref
    return {
        "attempt": ref.attempt,
        "executor": ref.executor,
        "stream": ref.stream,
        "size": each.size_bytes,
        "complete": each.is_complete,
        "truncated": each.is_truncated,
        "source": each.source,
        "path": f"/poiesis/v1/tasks/{ref.task_id}/logs/{ref.executor}/{ref.stream}?attempt={ref.attempt}",
    }
