"""The log of all tasks' changes, which everything that follows tasks reads: streams of events, webhooks, usage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Protocol

from poiesis.domain.access import Access
from poiesis.domain.history import Change
from poiesis.domain.states import State
from poiesis.domain.task import Task, TaskId
from poiesis.domain.usage import usage_of
from poiesis.domain.webhooks import TAG

MAX_TAG_BYTES: Final = 8 * 1024
TAG_BYTES: Final = 64  # that each tag counts besides its text: an empty one takes about 90 bytes of memory


@dataclass(frozen=True)
class Event:
    """A change of a task (`domain.history`). `seq` is its place among all events; `n` its place among those of the task.

    `tags`: those of the task, `poiesis/webhook` and then the shortest first, as many as fit into MAX_TAG_BYTES. `usage` (`domain.usage`):
    of a task that has ended, otherwise empty.
    """

    seq: int
    task_id: TaskId
    n: int
    state: State
    at: datetime
    reason: str | None = None
    owner: str | None = None
    groups: tuple[str, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    usage: Mapping[str, float] = field(default_factory=dict)


def event_of(task: Task, change: Change, seq: int = 0) -> Event:
    tags, room = {}, MAX_TAG_BYTES
    for key, value in sorted(task.spec.tags.items(), key=lambda tag: (tag[0] != TAG, len(tag[0]) + len(tag[1]))):
        size = len(key.encode()) + len(value.encode()) + TAG_BYTES
        if size <= room:
            room -= size
            tags[key] = value
    return Event(
        seq, task.id, change.n, change.state, change.at, change.reason, task.owner, task.groups, tags,
        usage_of(task) if change.state.is_terminal else {},
    )  # fmt: skip


class EventLog(Protocol):
    """All events in one order, numbered from 1 without gaps. An event never appears before one that has appeared, so a reader that
    continues after the last number it has seen misses nothing and sees nothing twice.

    Every method raises RepositoryUnavailable if the store does not answer; all are safe to retry.
    """

    def relay(self, limit: int) -> int:
        """Append events of up to `limit` tasks whose saves the log does not have yet, oldest change first. Return how many tasks were
        found: 0 means that nothing was left to do. Any number of processes may call it; every event is appended exactly once."""

    def missing_since(self) -> datetime | None:
        """The time of the oldest change that the log may lack; None: it has every change that was saved before the call."""
        ...

    def first_seq(self) -> int:
        """The number of the oldest event that has not been purged; `last_seq() + 1` if there is none."""

    def last_seq(self) -> int:
        """0: no event yet."""

    def after(
        self, seq: int, *, limit: int, access: Access | None = None, task_id: TaskId | None = None
    ) -> Sequence[Event]:
        """The next events with numbers above `seq`, in order; only those of one task or of tasks that `access` allows, if given."""

    def ended_between(self, begin: datetime, end: datetime) -> Iterator[Event]:
        """The events by which tasks ended at `begin` or later and before `end`, in the order of these times, read as they are consumed."""

    def purge(self, before: datetime, *, limit: int) -> int:
        """Delete up to `limit` of the oldest events, from before a time, and return how many. The newest event always stays."""
