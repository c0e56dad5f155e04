"""The tasks at the front of every queue, in the memory of the admitter.

A sweep reads the store's index in its order, a bounded number of reads at a time, and skips what is behind the first tasks of a long
queue; it finds new queues and canceled tasks. Behind the first tasks of a long queue, `look_further` shows one page after the other, so
that a task that fits starts even if thousands before it do not.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Final

from poiesis.domain.fair_share import Candidate, Queue, QueueKey
from poiesis.domain.task import TaskId
from poiesis.ports.admission import AdmissionStore, Place

PAGE: Final = 64  # tasks of one read
SWEEP_READS: Final = 16  # of one call
SHORT_READS: Final = 8
FURTHER_READS: Final = 4
HEADS: Final = 64  # first tasks of a queue in memory
LEAST_HEADS: Final = 4  # also with very many queues
MAX_HEADS: Final = 16_000  # of all queues together, as long as each has the least; as many again behind them

BEFORE_ALL: Final = TaskId("")

Check = Callable[[Candidate], Candidate | None]
"""What is left of a task that was read for the first time; None: it cannot be admitted."""


@dataclass(eq=False)
class _Window:
    """`edge`: the last of the first tasks, in ids. `further`: the last task behind it that was looked at. `sweep`, `turn`: when the first
    tasks and those behind them were read."""

    queue: Queue
    edge: TaskId = BEFORE_ALL
    has_more: bool = False
    further: TaskId | None = None
    sweep: int = 0
    turn: int = 0

    @property
    def first(self) -> list[Candidate]:
        return [c for c in self.queue.heads if c.id <= self.edge]


class WaitingQueues:
    """For one thread. `has_changed`: since it was last set to False, other tasks are in memory."""

    def __init__(self, store: AdmissionStore) -> None:
        self._store = store
        self._windows: dict[QueueKey, _Window] = {}
        self._place: Place | None = None
        self._sweep = 1
        self._turn = 0
        self.has_changed = True

    @property
    def is_complete(self) -> bool:
        """Whether all queues have been read."""
        return self._sweep > 1

    def queues(self) -> list[Queue]:
        return [window.queue for window in self._windows.values()]

    def read(self, check: Check) -> None:
        """Refresh the first tasks of queues that are nearly used up, and go on with the sweep. Raises: RepositoryUnavailable."""
        few = (w for w in self._windows.values() if w.has_more and len(w.first) < self._most // 2)
        for window in heapq.nsmallest(SHORT_READS, few, key=lambda w: w.sweep):
            key = window.queue.key
            first = [c for k, c in self._page((key, BEFORE_ALL)) if k == key]
            self._show(key, first, len(first) == PAGE, check)
        for _ in range(SWEEP_READS):
            page = self._page(self._place)
            # the last queue is shown only if it fills the page, else it is read again from its first task on
            cut = page[-1][0] if len(page) == PAGE else None
            for key, found in groupby(page, itemgetter(0)):
                if key != cut or key == page[0][0]:
                    self._show(key, [c for _, c in found], key == cut, check)
            if cut is None:
                self._end_sweep()
                break
            self._place = (cut, None) if cut == page[0][0] else (cut, BEFORE_ALL)

    def look_further(self, check: Check) -> None:
        """Show other tasks of a few long queues, behind their first ones. For when none in memory fits. Raises: RepositoryUnavailable."""
        long = (w for w in self._windows.values() if w.has_more)
        for window in heapq.nsmallest(FURTHER_READS, long, key=lambda w: w.turn):
            key = window.queue.key
            after = max(window.further or window.edge, window.edge)  # the first ones may have moved on since
            page = [c for k, c in self._page((key, after)) if k == key]
            has_more = len(page) == PAGE
            shown = page[: self._most]
            self._turn += 1
            window.turn = self._turn
            window.further = shown[-1].id if has_more or len(shown) < len(page) else None
            self._set(window.queue, window.first + self._checked(window.queue, shown, check))

    @property
    def _most(self) -> int:
        return max(LEAST_HEADS, min(HEADS, MAX_HEADS // max(1, len(self._windows))))

    def _page(self, place: Place | None) -> Sequence[tuple[QueueKey, Candidate]]:
        return self._store.queued(place, limit=PAGE)

    def _show(self, key: QueueKey, found: Sequence[Candidate], has_more: bool, check: Check) -> None:
        """Replace the first tasks of a queue; those behind them stay, if there still are any."""
        window = self._windows.setdefault(key, _Window(Queue(key, [])))
        most = self._most
        first = found[:most]
        window.has_more = has_more or len(found) > most
        window.edge = first[-1].id if first else BEFORE_ALL
        window.sweep = self._sweep
        behind = [c for c in window.queue.heads if c.id > window.edge] if window.has_more else []
        self._set(window.queue, self._checked(window.queue, first, check) + behind[:most])

    def _checked(self, queue: Queue, found: Iterable[Candidate], check: Check) -> list[Candidate]:
        known = {(c.id, c.attempt): c for c in queue.heads}
        checked = (known.get((c.id, c.attempt)) or check(c) for c in found)
        return [c for c in checked if c is not None]

    def _set(self, queue: Queue, heads: list[Candidate]) -> None:
        self.has_changed |= heads != queue.heads
        queue.heads = heads

    def _end_sweep(self) -> None:
        """Forget the queues that are empty."""
        gone = [key for key, window in self._windows.items() if window.sweep < self._sweep]
        for key in gone:
            del self._windows[key]
        self.has_changed |= bool(gone)
        self._sweep += 1
        self._place = None
