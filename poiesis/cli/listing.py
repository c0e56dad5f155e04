"""Lists of tasks with filters, which are applied here, too: servers of TES 1.0 ignore those they do not know."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from poiesis.cli.client import TesClient
from poiesis.cli.columns import COLUMNS, created, dig, metadata_of, seconds, span
from poiesis.cli.output import Table, note
from poiesis.domain.states import TERMINAL

PAGE: Final = 256
MAX_SCANNED: Final = 20_000
"""Tasks read from a server for one list."""
TOP_SCANNED: Final = 2_000
"""Tasks of each state that `top` reads each time."""
WAITING: Final = ("QUEUED", "INITIALIZING")
OLDEST: Final = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Filter:
    states: tuple[str, ...] = ()
    name_prefix: str = ""
    tags: tuple[tuple[str, str], ...] = ()
    since: datetime | None = None

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> Filter:
        states = tuple(state.upper() for value in arguments.state for state in value.split(",") if state)
        tags = tuple((key, value) for key, _, value in (tag.partition("=") for tag in arguments.tag))
        return cls(states, arguments.name_prefix or "", tags, arguments.since)

    def matches(self, task: Any) -> bool:
        tags = dig(task, "tags")
        tags = tags if isinstance(tags, dict) else {}
        at = created(task)
        return (
            (not self.states or str(dig(task, "state")).upper() in self.states)
            and str(dig(task, "name") or "").startswith(self.name_prefix)
            and all(key in tags and value in ("", tags[key]) for key, value in self.tags)
            and (self.since is None or (at is not None and at >= self.since))
        )

    def queries(self) -> Iterator[list[tuple[str, str]]]:
        """One for each state: TES has one in a request."""
        common = [("name_prefix", self.name_prefix)] if self.name_prefix else []
        for key, value in self.tags:
            common += [("tag_key", key), ("tag_value", value)]
        for state in dict.fromkeys(self.states) or [""]:
            yield ([("state", state)] if state else []) + common


def list_tasks(client: TesClient, filter_: Filter, limit: int) -> list[dict[str, Any]]:
    """In BASIC view, in the server's order; of several states, the newest first. Raises: PoiesisError."""
    found: dict[str | int, dict[str, Any]] = {}
    queries = list(filter_.queries())
    for query in queries:
        before = len(found)
        for task in _matching(client, filter_, query, limit):
            found.setdefault(str(dig(task, "id") or "") or len(found), task)
            if len(found) - before >= limit:
                break
    tasks = list(found.values())
    if len(queries) > 1:
        tasks.sort(key=lambda task: created(task) or OLDEST, reverse=True)
    return tasks[:limit]


def _matching(client: TesClient, filter_: Filter, query: list[tuple[str, str]], limit: int) -> Iterator[dict[str, Any]]:
    scanned, token = 0, None
    size = PAGE if filter_.since else max(1, min(limit, PAGE))
    while True:
        paged = [("view", "BASIC"), ("page_size", str(size)), *query, *([("page_token", token)] if token else [])]
        page = client.list(paged)
        tasks = [task for task in page.get("tasks") or [] if isinstance(task, dict)]
        yield from filter(filter_.matches, tasks)
        scanned += len(tasks)
        following = page.get("next_page_token")
        if not following or following == token or _is_past(tasks, filter_.since):
            return
        if scanned >= MAX_SCANNED:
            note(f"stopped after {scanned} tasks of the server: narrow the filters")
            return
        token = str(following)


def _is_past(tasks: list[dict[str, Any]], since: datetime | None) -> bool:
    """Whether the page is sorted, newest first, and ends before `since`: so do the following ones."""
    times = [created(task) or OLDEST for task in tasks]
    return since is not None and bool(times) and times[-1] < since and times == sorted(times, reverse=True)


def unfinished(client: TesClient, filter_: Filter) -> tuple[list[dict[str, Any]], str]:
    """Tasks that have not ended, the longest running first, then the oldest waiting; and how many of each state. Raises: PoiesisError."""
    states = filter_.states or ("RUNNING", *WAITING)
    tasks = []
    counts: dict[str, str] = {}
    for state in states:
        of_state = Filter((state,), filter_.name_prefix, filter_.tags, filter_.since)
        found = [t for t in list_tasks(client, of_state, TOP_SCANNED) if dig(t, "state") not in TERMINAL]
        if found:
            counts[state] = (
                f"{len(found)} {state}"
                if len(found) < TOP_SCANNED
                else f"more than {TOP_SCANNED} {state} (the newest are considered)"
            )
        tasks += found
    now = datetime.now(UTC)
    tasks.sort(key=lambda task: (dig(task, "state") in WAITING, -(seconds(task, now) or 0)))
    return tasks, ", ".join(counts.values()) or "nothing runs or waits"


def top(client: TesClient, filter_: Filter, limit: int) -> list[str | Table]:
    """What is going on, and what the tasks asked for. Raises: PoiesisError."""
    tasks, head = unfinished(client, filter_)
    now = datetime.now(UTC)
    rows = [
        [
            *(COLUMNS[name](task) for name in ("id", "state")),
            span(seconds(task, now)),
            *(COLUMNS[name](task) for name in ("cpu", "ram", "node", "attempts")),
            str(metadata_of(task).get("waiting_reason") or ""),
            COLUMNS["name"](task),
        ]
        for task in tasks[:limit]
    ]
    more = [f"{len(tasks) - limit} more"] if len(tasks) > limit else []
    columns = ("id", "state", "for", "cpu", "ram", "node", "attempts", "waits for", "name")
    return [head, *([Table(columns, rows)] if rows else []), *more]
