"""Waiting for tasks of any TES server.

Poiesis answers when something changes (`/poiesis/v1/tasks:wait`); other servers are polled with back-off. An outage is tolerated for
a while.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from poiesis.cli.client import TesClient
from poiesis.cli.columns import span, state_of
from poiesis.cli.output import Table, console, is_terminal, note
from poiesis.cli.text import printable
from poiesis.domain.errors import PoiesisError, Unavailable, UnknownTask
from poiesis.domain.states import TERMINAL

POLL_FROM_S: Final = 0.1
POLL_TO_S: Final = 5.0
MAX_OUTAGE_S: Final = 120.0
LONG_POLL_S: Final = 25
MANY_POLL_S: Final = 2
"""One request for many tasks is answered when one of them ends, and other changes only show then."""
MAX_IDS: Final = 1000  # of one request
MAX_SENTENCES: Final = 10
SENTENCES_EVERY_S: Final = 4.0

if TYPE_CHECKING:
    from rich.console import Group

Show = Callable[[Mapping[str, str]], None]


class Follower:
    """`states` has the state of each task as last seen."""

    def __init__(
        self, client: TesClient, ids: Sequence[str], timeout_s: float | None = None, every_s: int = LONG_POLL_S
    ):
        self._client, self.ids, self._every_s = client, list(dict.fromkeys(ids)), every_s
        self.timeout_s = timeout_s
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._pause = POLL_FROM_S
        self._outage_since: float | None = None
        self._polls = False
        self.states: dict[str, str] = {}

    @property
    def pending(self) -> list[str]:
        return [task_id for task_id in self.ids if self.states.get(task_id) not in TERMINAL]

    def run(self, show: Show) -> bool:
        """Until all have ended; False if the timeout passes before. `show` gets the changes, perhaps none. Raises: PoiesisError."""
        while pending := self.pending:
            begin = time.monotonic()
            seen = self._ask(pending)
            changes = {task_id: state for task_id, state in seen.items() if self.states.get(task_id) != state}
            self.states |= changes
            limit = POLL_TO_S if self._polls else MANY_POLL_S
            self._pause = POLL_FROM_S if changes else min(self._pause * 1.3, limit)
            show(changes)
            if not self.pending:
                break
            if self._deadline is not None and time.monotonic() > self._deadline:
                return False
            time.sleep(max(0.0, min(self._pause - (time.monotonic() - begin), self._remaining())))
        return True

    def _remaining(self) -> float:
        return float("inf") if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def _ask(self, pending: list[str]) -> dict[str, str]:
        found = None
        try:
            with suppress(Unavailable):  # perhaps only of waiting requests, which are limited
                found = self._ask_extension(pending)
            self._polls = found is None
            if found is None:
                found = {task_id: state_of(self._client.get(task_id, "MINIMAL")) for task_id in pending}
        except Unavailable as error:
            self._outage_since = self._outage_since or time.monotonic()
            if time.monotonic() - self._outage_since > MAX_OUTAGE_S:
                raise
            print(f"waiting for the server: {printable(str(error))}", file=sys.stderr)
            return {}
        self._outage_since = None
        return found

    def _ask_extension(self, pending: list[str]) -> dict[str, str] | None:
        """None: not available. The first answer comes at once."""
        wait_s = 0 if len(self.states) < len(self.ids) else int(min(self._every_s, self._remaining()))
        if len(pending) == 1:
            task_id = pending[0]
            query = {"timeout": str(wait_s)} | ({"from": self.states[task_id]} if wait_s else {})
            path = f"/tasks/{quote(task_id, safe='')}/wait"
            found = self._client.try_extension("GET", path, query, instead="polling")
            return None if found is None else {task_id: state_of(found)}
        states: dict[str, str] = {}
        for start in range(0, len(pending), MAX_IDS):
            ids = pending[start : start + MAX_IDS]
            body = {"ids": ids, "timeout": min(wait_s, MANY_POLL_S) if len(pending) <= MAX_IDS else 0}
            found = self._client.try_extension("POST", "/tasks:wait", body=body, instead="polling")
            if found is None:
                return None
            states |= {str(each.get("id")): state_of(each) for each in found.get("tasks") or []}
            if unknown := found.get("unknown"):
                raise UnknownTask(str(unknown[0]))
        return states


class Lines:
    """Each change as a line."""

    def __init__(self, *, to_stderr: bool = False) -> None:
        self._begin, self._to_stderr = time.monotonic(), to_stderr

    def __call__(self, changes: Mapping[str, str]) -> None:
        for task_id, state in changes.items():
            line = f"{time.monotonic() - self._begin:6.1f} s  {printable(task_id)}  {printable(state)}"
            print(line, file=sys.stderr if self._to_stderr else sys.stdout, flush=True)


class LiveTable:
    """Counts, and the tasks that fit on the terminal, those that have not ended first; what each does now, where the server says so."""

    def __init__(self, client: TesClient, follower: Follower) -> None:
        self._client, self._follower = client, follower
        self._begin = time.monotonic()
        self._sentences: dict[str, str] = {}
        self._asked_at = float("-inf")
        self.console = console()

    def table(self) -> tuple[str, Table]:
        states = self._follower.states
        counts: dict[str, int] = {}
        for state in states.values():
            counts[state] = counts.get(state, 0) + 1
        summary = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
        room = max(1, self.console.height - 4)
        order = sorted(states, key=lambda task_id: states[task_id] in TERMINAL)
        rows = [(task_id, states[task_id], self._sentences.get(task_id, "")) for task_id in order[:room]]
        left_out = len(states) - len(rows)
        head = f"{span(time.monotonic() - self._begin)}  {summary}{f'  ({left_out} not shown)' if left_out else ''}"
        return head, Table(("id", "state", "now"), rows)

    def __call__(self, changes: Mapping[str, str]) -> None:
        ended = [task_id for task_id, state in changes.items() if state in TERMINAL]
        for task_id in ended:
            self._sentences.pop(task_id, None)
        failed = [task_id for task_id in ended if changes[task_id] != "COMPLETE"]
        is_due = time.monotonic() - self._asked_at > SENTENCES_EVERY_S
        self._ask_sentences(failed + (self._follower.pending if changes or is_due else []))

    def __rich__(self) -> Group:
        from rich.console import Group
        from rich.text import Text

        head, table = self.table()
        return Group(Text(printable(head), style="bold"), table.rich(self.console.width))

    def _ask_sentences(self, ids: Sequence[str]) -> None:
        self._asked_at = time.monotonic() if ids else self._asked_at
        for task_id in ids[:MAX_SENTENCES]:
            path = f"/tasks/{quote(task_id, safe='')}/why"
            try:
                found = self._client.try_extension("GET", path, instead="states only")
            except PoiesisError:
                return
            if found is None:
                return
            self._sentences[task_id] = str(found.get("why") or "")


@contextmanager
def shown(client: TesClient, follower: Follower, *, plain: bool, silent: bool) -> Iterator[Show]:
    """How changes are shown: as a live table on a terminal, else line by line."""
    if silent:
        yield lambda changes: None
        return
    if plain or not is_terminal():
        yield Lines()
        return
    from rich.live import Live

    table = LiveTable(client, follower)
    with Live(table, console=table.console, refresh_per_second=2, vertical_overflow="crop"):
        yield table


def print_how_to_continue(ids: Sequence[str], suffix: str) -> None:
    """After Ctrl-C: which tasks continue, and the commands to wait for them, see their output or stop them."""
    some = " ".join(ids[:5])
    what = f"the task {ids[0]} continues" if len(ids) == 1 else f"{len(ids)} tasks continue"
    again = f"poiesis task wait {some}{suffix}" if len(ids) <= 5 else f"poiesis task list{suffix}"
    stop = f"poiesis task cancel {some}{suffix}" if len(ids) <= 5 else f"poiesis task cancel ID ...{suffix}"
    note(
        f"interrupted; {what}.\n  wait again:  {again}\n  output:      poiesis task logs -f {ids[0]}{suffix}\n  stop:        {stop}"
    )
