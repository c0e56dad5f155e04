"""Server-sent events of changes: of one task, of all that the user may see, or of those with tags.

The id of an event is its number in the log, so a client that comes back with `Last-Event-ID` gets everything after it: first from the log,
then live from the feed, without a gap and without repetition. A heartbeat carries the number of the latest event that was considered. A
stream is ended with an event `end` when the client does not keep up, the server stops, or the credentials no longer give the same rights.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import msgspec
from starlette.responses import Response
from starlette.types import Scope

from poiesis.api.errors import Refused
from poiesis.api.event_feed import EVERYTHING, FellBehind, Reader, task_topic
from poiesis.api.extensions.context import Context, Document, Handler, header
from poiesis.api.parameters import PARAMETERS
from poiesis.api.streams import Hold, RightsCheck, StreamedResponse
from poiesis.api.users import USER, User
from poiesis.api.views import time_text
from poiesis.domain.errors import InvalidRequest
from poiesis.domain.states import TERMINAL, State
from poiesis.domain.task import TaskId, View
from poiesis.ports.events import Event
from poiesis.ports.repository import TaskFilter

HEARTBEAT_S: Final = 15.0
PAGE: Final = 500
MAX_TAGS: Final = 20
RECONNECT_MS: Final = 2000
HEADERS: Final[Mapping[str, str]] = {  # server-sent events: HTML Living Standard, 9.2
    "cache-control": "no-store",
    "x-accel-buffering": "no",
    "content-type": "text/event-stream; charset=utf-8",
}


@dataclass(frozen=True)
class Selection:
    """Which events a stream shows."""

    user: User
    task_id: TaskId | None
    tags: tuple[tuple[str, str], ...]

    @property
    def topics(self) -> list[str]:
        if self.task_id is not None:
            return [task_topic(self.task_id)]
        access = self.user.access
        return [EVERYTHING] if access is None else access.tokens

    def shows(self, event: Event) -> bool:
        access = self.user.access
        return (
            (access is None or access.allows(event.owner, event.groups))
            and (self.task_id is None or self.task_id == event.task_id)
            and all(key in event.tags and (not value or event.tags[key] == value) for key, value in self.tags)
        )


def operations(context: Context) -> dict[str, Handler]:
    async def events(scope: Scope) -> Response:
        asked = scope[PARAMETERS]
        selection = Selection(scope[USER], asked.get("task"), _tags(asked.get("tag", ())))
        since = _last_event_id(scope)
        if selection.task_id is not None:  # else it would be an empty stream
            await context.call(
                context.services.tasks.get, selection.task_id, View.MINIMAL, access=selection.user.access
            )
        stream = _Stream(context, scope, selection, since, with_snapshot=asked["snapshot"])
        return StreamedResponse(context.limits, stream.chunks, HEADERS)

    return {"StreamEvents": events}


class _Stream:
    def __init__(
        self, context: Context, scope: Scope, selection: Selection, since: int | None, *, with_snapshot: bool
    ) -> None:
        self._context = context
        self._selection = selection
        self._since = since
        self._with_snapshot = with_snapshot
        self._rights = RightsCheck(scope)

    async def chunks(self, hold: Hold) -> AsyncIterator[bytes]:
        """Raises before the first chunk: Refused, Unavailable."""
        async with self._context.feed.reader(self._selection.topics) as reader:
            hold.wake = reader.wake
            begin = reader.position
            if self._since is not None:
                await self._check_kept(self._since, begin)
                begin = max(begin, self._since)  # another process, which sent it, may be ahead
            yield b"retry: %d\n\n" % RECONNECT_MS
            async for chunk in self._rest(reader, begin):
                if hold.has_left:
                    yield _end("server_stops", "the server stops")
                    return
                if not await self._rights.are_the_same():
                    yield _end("credentials", "the credentials have expired, or their rights have changed")
                    return
                yield chunk

    async def _rest(self, reader: Reader, begin: int) -> AsyncIterator[bytes]:
        if self._since is not None:
            async for page in self._logged(self._since, begin):
                yield page
        elif self._with_snapshot:
            async for page in self._snapshot():
                yield page
        yield _mark(begin)
        async for chunk in self._live(reader, begin):
            yield chunk

    async def _check_kept(self, since: int, last: int) -> None:
        """`last`: the position of the reader. Raises: Refused if events after `since` are no longer, or not yet, in the log."""
        log = self._context.services.events
        if since > last:
            last = await self._context.call(log.last_seq)
        oldest = await self._context.call(log.first_seq)
        if not oldest - 1 <= since <= last:
            reason = "is too old: the events after it have been deleted" if since <= last else "is not of this service"
            message = f"the event id {since} {reason}; start again without it, with snapshot=true"
            raise Refused(410, message, "events_gone")

    async def _logged(self, after: int, until: int) -> AsyncIterator[bytes]:
        """The events in the log after one number, up to another."""
        selection, log = self._selection, self._context.services.events
        while after < until:
            page = await self._context.call(
                log.after, after, limit=PAGE, access=selection.user.access, task_id=selection.task_id
            )
            found = [event for event in page if event.seq <= until]
            after = found[-1].seq if len(found) == PAGE else until
            chunk = self._encoded(found) or (_mark(found[-1].seq) if found else b"")
            del page, found  # much larger than the chunk, and a client may be slow to read it
            if chunk:
                yield chunk

    async def _snapshot(self) -> AsyncIterator[bytes]:
        """The tasks that have not ended, or the one of the selection, as they are now or later than the start of the stream."""
        selection, tasks = self._selection, self._context.services.tasks
        access = selection.user.access
        if selection.task_id is not None:
            summary = await self._context.call(tasks.get, selection.task_id, View.MINIMAL, access=access)
            yield _event("snapshot", {"tasks": [self._document(summary.id, summary.state)]})
            return
        where = TaskFilter(states=frozenset(State) - TERMINAL, tags=selection.tags, access=access)
        after: TaskId | None = None
        while True:
            page = await self._context.call(tasks.list, where, limit=PAGE, after=after, view=View.MINIMAL)
            yield _event("snapshot", {"tasks": [self._document(task.id, task.state) for task in page.tasks]})
            after = page.next_after
            if after is None:
                return

    async def _live(self, reader: Reader, begin: int) -> AsyncIterator[bytes]:
        """The events after number `begin`, which may be above the position of the reader."""
        while True:
            try:
                events = await reader.wait(HEARTBEAT_S)
            except FellBehind:
                yield _end("fell_behind", "events came faster than they were read")
                return
            chunk = self._encoded(e for e in events if e.seq > begin) or _mark(max(begin, reader.position))
            del events  # the window may have dropped them before a slow client has read the chunk
            yield chunk

    def _encoded(self, events: Iterable[Event]) -> bytes:
        return b"".join(self._encode(event) for event in events if self._selection.shows(event))

    def _encode(self, event: Event) -> bytes:
        document = {**self._document(event.task_id, event.state), "n": event.n, "at": time_text(event.at)}
        if event.reason:
            document["reason"] = event.reason
        return b"id: %d\n" % event.seq + _event("change", document)

    def _document(self, task_id: str, state: State) -> dict[str, object]:
        return {"id": task_id, "state": self._context.views.state(state)}


def _last_event_id(scope: Scope) -> int | None:
    """Return the id in the header, which browsers send when they reconnect, else in the query. Raises: InvalidRequest."""
    text = header(scope, "last-event-id")
    if not text:
        found: int | None = scope[PARAMETERS].get("last_event_id")
        return found
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise InvalidRequest("Last-Event-ID", "must be the id of an event, which is a whole number")
    return int(text)


def _tags(pairs: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """`KEY` or `KEY=VALUE`."""
    return tuple((key, value) for key, _, value in (pair.partition("=") for pair in pairs))


def _event(name: str, document: Document) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), msgspec.json.encode(document))


def _mark(position: int) -> bytes:
    """Without data: it moves the id with which a client reconnects, and keeps the connection alive."""
    return b"id: %d\n\n" % position


def _end(reason: str, message: str) -> bytes:
    return _event("end", {"reason": reason, "message": message})
