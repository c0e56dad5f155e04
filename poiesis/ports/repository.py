"""Where tasks are stored."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Protocol, TypeVar

from poiesis.domain.access import Access
from poiesis.domain.naming import first_task_id
from poiesis.domain.states import Stage, State
from poiesis.domain.task import Task, TaskId, TaskSummary, Version, View

MAX_PAGE_BYTES: Final = 8 * 1024 * 1024
"""Of the documents of a page: one that reaches it is the last on its page."""
COUNT_LIMIT: Final = 10_000
MAX_IDS: Final = 1_000
"""Of tasks asked for by id at once."""
Row = TypeVar("Row")


@dataclass(frozen=True)
class TaskFilter:
    """What a list is narrowed to; all given conditions hold at once (spec: ListTasks).

    `tags` pairs of (key, value); an empty value matches any value of that key. `owner` None: any.
    `access`: only tasks that this user may see; None: all. `created_from` (inclusive) and `created_to` (exclusive) bound the time of
    creation. `oldest_first`: the order of a list.
    """

    name_prefix: str = ""
    states: frozenset[State] = field(default_factory=frozenset)
    tags: tuple[tuple[str, str], ...] = ()
    owner: str | None = None
    access: Access | None = None
    created_from: datetime | None = None
    created_to: datetime | None = None
    oldest_first: bool = False

    def id_bounds(self, after: TaskId | None = None) -> tuple[TaskId | None, bool, TaskId | None]:
        """The bounds of ids, which sort by the time of creation, of a list that goes on after an id: the lower one, whether it is one of
        them, and the upper one, which is not."""
        lowest = None if self.created_from is None else first_task_id(self.created_from)
        above = None if self.created_to is None else first_task_id(self.created_to)
        if after is None:
            return lowest, True, above
        if self.oldest_first:
            return (lowest, True, above) if lowest is not None and after < lowest else (after, False, above)
        return lowest, True, after if above is None else min(after, above)


@dataclass(frozen=True)
class Page:
    """`tasks` in the order of the list, summaries in the view MINIMAL; `next_after` is the id to go on after, None on the last page."""

    tasks: tuple[Task | TaskSummary, ...]
    next_after: TaskId | None


def take_page(rows: Iterable[Row], limit: int, size_bytes: Callable[[Row], int]) -> tuple[list[Row], bool]:
    """The rows of one page, and whether more follow. Reads at most one row more than the page has."""
    page: list[Row] = []
    total = 0
    for row in rows:
        if len(page) == limit or total >= MAX_PAGE_BYTES:
            return page, True
        page.append(row)
        total += size_bytes(row)
    return page, False


class TaskRepository(Protocol):
    """Durable: when `add` or `save` returned, a crash of any process loses nothing.

    Every method raises RepositoryUnavailable if the store does not answer; all are safe to retry.
    """

    def add(self, task: Task) -> None:
        """Store a new task as version 1. The same id and content again: nothing changes."""

    def get(self, task_id: TaskId, view: View = View.FULL, *, access: Access | None = None) -> Task:
        """The task as last saved. Without FULL, it may lack what BASIC does not show: such a task is only for reading.

        With `access`, only a task that it allows; the store compares before it reads any more of the task.
        Raises: UnknownTask, also for a task that `access` does not allow.
        """

    def summary(self, task_id: TaskId, *, access: Access | None = None) -> TaskSummary:
        """The same for the view MINIMAL, which needs no more than the store's index. Raises: UnknownTask."""

    def states(self, task_ids: Collection[TaskId], *, access: Access | None = None) -> Mapping[TaskId, State]:
        """The states of those of at most MAX_IDS tasks that exist and that `access` allows, in the given order, with one query."""

    def save(self, task: Task, *, seen: Version) -> bool:
        """Replace the stored task if it is still at version `seen` (compare-and-set); its version becomes `seen + 1`.

        False: another writer was first; read and decide again. `task.version` is ignored.
        Raises: UnknownTask; IllegalTransition when the stored state cannot move to `task.state` in one or more moves of TRANSITIONS.
        """

    def list(self, where: TaskFilter, *, limit: int, after: TaskId | None, view: View) -> Page:
        """At most `limit` tasks with ids below `after`, newest (largest id) first, or above it with `oldest_first`.

        Fewer where their documents reach MAX_PAGE_BYTES.

        Stable while tasks arrive: nothing lost or repeated.
        """

    def due(self, now: datetime, *, limit: int) -> Sequence[tuple[TaskId, Stage]]:
        """Tasks not done whose `wake_at` has come, longest overdue first, each with its due stage."""

    def postpone(self, task_ids: Collection[TaskId], *, until: datetime) -> None:
        """Set only `wake_at`, where it is earlier, without a new version. Unknown and done tasks are ignored."""

    def count(self, where: TaskFilter, *, limit: int = COUNT_LIMIT) -> int:
        """How many tasks match, counted up to `limit`: `limit` means that many or more. So a count never reads a whole store."""

    def count_unfinished(
        self, *, owner: str | None = None, limit: int = COUNT_LIMIT
    ) -> Mapping[tuple[State, str], int]:
        """How many tasks have not ended, of one owner or of all, by state and the word for why they wait ("": they do not).
        Each number is counted up to `limit`, from an index that has only such tasks."""

    def purge(self, before: datetime, *, limit: int) -> int:
        """Delete up to `limit` tasks that are done, that ended before a time, and whose changes are in the log of events; those that ended
        first go first. Return how many. Reads only tasks that it may delete."""

    def ready(self) -> None:
        """Return if the store can be used now. Raises: RepositoryUnavailable."""

    def close(self) -> None: ...
