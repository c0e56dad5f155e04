"""Tasks in SQLite.

A task is a narrow row of `tasks` (everything that lists, resync and compare-and-set read, clustered by id) and a row of
`documents` (the rest, in two parts: `core`, and `bulk`, which the view BASIC does not read). A MINIMAL list never
touches a document. `tags` has a row for each token of a tag (`documents.tag_token`), in the order of ids, and
`readers` one for each of who may see the task (`domain.access`).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from itertools import product
from typing import Any, Final

from poiesis.domain.access import Access, reader_tokens
from poiesis.domain.errors import UnknownTask
from poiesis.domain.states import Stage, State, path
from poiesis.domain.task import Task, TaskId, TaskSummary, Version, View
from poiesis.ports.repository import COUNT_LIMIT, Page, TaskFilter, take_page
from poiesis.repository.claims import AFTER
from poiesis.repository.documents import (
    Document,
    after_prefix,
    check_same_request,
    decode_json,
    encode_json,
    encode_within_bounds,
    format_time,
    from_document,
    new_change,
    sources,
    tag_token,
)
from poiesis.repository.sqlite.database import SqliteDatabase
from poiesis.repository.sqlite.events import write_event
from poiesis.repository.unfinished import MAX_GROUPS, group_key, group_of

# sorted in 3 ms, about as long as it takes to find a page of so many among a million in the order of ids
FEW_NAMES: Final = 5_000
COUNTED: Final = (500, 5_000)  # entries, to find the rarest condition; 5,000 take 0.2 ms
SAMPLED: Final = 500  # entries, to compare conditions that all have more
Candidate = tuple[str, tuple[str, str]]
Encoded = tuple[Document, str, str, Sequence[str], Sequence[str]]
MAX_READERS: Final = 50  # groups in one query: with several states each is as many scans, and SQLite merges up to 500
LARGE_BYTES: Final = 1024 * 1024  # a connection keeps about twice the bytes of what it wrote last


class SqliteTaskRepository:
    """A `TaskRepository` in the tables `tasks`, `documents`, `tags` and `readers`."""

    def __init__(self, database: SqliteDatabase) -> None:
        self._database = database

    def add(self, task: Task) -> None:
        encoded = encode_within_bounds(task, _encode)
        with self._database.writing(is_large=len(encoded[2]) > LARGE_BYTES) as db:
            if not insert_task(db, task, encoded):
                check_same_request(_decode(self._find(db, task.id, View.FULL, None)), task)

    def get(self, task_id: TaskId, view: View = View.FULL, *, access: Access | None = None) -> Task:
        with self._database.reading() as db:
            return _decode(self._find(db, task_id, View.FULL if view is View.FULL else View.BASIC, access))

    def summary(self, task_id: TaskId, *, access: Access | None = None) -> TaskSummary:
        with self._database.reading() as db:
            return _summary(self._find(db, task_id, View.MINIMAL, access))

    def states(self, task_ids: Collection[TaskId], *, access: Access | None = None) -> Mapping[TaskId, State]:
        query = "SELECT id, state FROM tasks WHERE id IN (SELECT value FROM json_each(?))"
        values = [encode_json(list(task_ids)).decode()]
        if access is not None:
            query += " AND EXISTS (SELECT 1 FROM readers r WHERE r.id = tasks.id AND r.token IN (SELECT value FROM json_each(?)))"
            values.append(encode_json(access.tokens).decode())
        with self._database.reading() as db:
            found = {row[0]: State(row[1]) for row in db.execute(query, values)}
        return {task_id: found[task_id] for task_id in task_ids if task_id in found}

    def save(self, task: Task, *, seen: Version) -> bool:
        head, core, bulk, tags, readers = encode_within_bounds(task, _encode)
        allowed = sources(task.state)
        with self._database.writing(is_large=len(bulk) > LARGE_BYTES) as db:
            row = db.execute("SELECT version, state, tags, readers FROM tasks WHERE id = ?", (task.id,)).fetchone()
            if row is None:
                raise UnknownTask(task.id)
            version, state, old_tags, old_readers = row
            saved = db.execute(
                "UPDATE tasks SET version = version + 1, state = :state, wake_at = :wake_at, due_stage = :due_stage,"
                " owner = :owner, name = :name, tags = :tags,"
                " readers = :readers, queued = :queued, held = :held, unfinished = :unfinished, ended_at = :ended_at"
                " WHERE id = :_id AND version = :seen"
                f" AND state IN ({_quoted(allowed)})",
                {**head, "seen": int(seen)},
            )
            if saved.rowcount == 0:
                if version == seen:
                    path(State(state), task.state)  # raises IllegalTransition
                return False
            db.execute("UPDATE documents SET core = ?, bulk = ? WHERE id = ?", (core, bulk, task.id))
            if (old_tags, old_readers) != (head["tags"], head["readers"]):
                self._delete_tokens(db, task.id, old_tags, old_readers)
                _insert_tokens(db, task, tags, readers)
            elif state != task.state and readers:
                moved = [(task.state.value, token, task.id) for token in readers]
                db.executemany("UPDATE readers SET state = ? WHERE token = ? AND id = ?", moved)
            if change := new_change(task, seen + 1):
                write_event(db, task, change)
            return True

    def list(self, where: TaskFilter, *, limit: int, after: TaskId | None, view: View) -> Page:
        with self._database.reading() as db:
            where, scan = _planned(db, where, after)
            found = self._page(db, where, scan, limit + 1, after)
            rows, has_more = found[:limit], len(found) > limit
            if view is not View.MINIMAL:  # one by one: a join would sort all documents together with the ids
                rows, has_more = take_page((self._find(db, r[0], view, None) for r in found), limit, _size_bytes)
        decode = _summary if view is View.MINIMAL else _decode
        tasks = tuple(decode(row) for row in rows)
        return Page(tasks, next_after=tasks[-1].id if has_more else None)

    def due(self, now: datetime, *, limit: int) -> Sequence[tuple[TaskId, Stage]]:
        with self._database.reading() as db:
            rows = db.execute(DUE_QUERY, (format_time(now), limit)).fetchall()
        return [(TaskId(task_id), Stage(stage)) for task_id, stage in rows]

    def postpone(self, task_ids: Collection[TaskId], *, until: datetime) -> None:
        moment = format_time(until)
        with self._database.writing() as db:
            query = "UPDATE tasks SET wake_at = ?1 WHERE id = ?2 AND due_stage IS NOT NULL AND wake_at < ?1"
            db.executemany(query, [(moment, task_id) for task_id in task_ids])

    def count(self, where: TaskFilter, *, limit: int = COUNT_LIMIT) -> int:
        with self._database.reading() as db:
            return len(self._page(db, *_planned(db, where), limit, None))

    def count_unfinished(
        self, *, owner: str | None = None, limit: int = COUNT_LIMIT
    ) -> Mapping[tuple[State, str], int]:
        counts: dict[tuple[State, str], int] = {}
        begin = ""
        with self._database.reading() as db:
            for _ in range(MAX_GROUPS):
                query = "SELECT unfinished FROM tasks INDEXED BY tasks_unfinished WHERE unfinished >= ? ORDER BY unfinished LIMIT 1"
                row = db.execute(query, (begin,)).fetchone()
                if row is None:
                    break
                group = group_of(row[0])
                prefix, begin = group_key(*group) + "/", group_key(*group) + AFTER
                query = "SELECT count(*) FROM (SELECT 1 FROM tasks INDEXED BY tasks_unfinished WHERE {} LIMIT ?)"
                if owner is None:
                    found = db.execute(query.format("unfinished >= ? AND unfinished < ?"), (prefix, begin, limit))
                else:
                    found = db.execute(query.format("unfinished = ?"), (prefix + owner, limit))
                counts[group] = found.fetchone()[0]
        return {group: count for group, count in counts.items() if count}

    def purge(self, before: datetime, *, limit: int) -> int:
        with self._database.writing() as db:
            expired = db.execute(EXPIRED_QUERY, (format_time(before), limit)).fetchall()
            for task_id, tags, readers in expired:
                db.execute("DELETE FROM tasks WHERE id = ?", (task_id,))
                db.execute("DELETE FROM documents WHERE id = ?", (task_id,))
                self._delete_tokens(db, task_id, tags, readers)
        return len(expired)

    def ready(self) -> None:
        self._database.ready()

    def close(self) -> None:
        self._database.close()

    @staticmethod
    def _find(db: sqlite3.Connection, task_id: TaskId, view: View, access: Access | None) -> tuple[Any, ...]:
        """The join reads the narrow row first: of a task that `access` does not allow nothing else is read."""
        condition, *values = ("TRUE",) if access is None else _may_read(access, "tasks.id")
        query = f"SELECT {_columns(view)} FROM tasks{_join(view)} WHERE tasks.id = ? AND {condition}"
        row: tuple[Any, ...] | None = db.execute(query, (task_id, *values)).fetchone()
        if row is None:
            raise UnknownTask(task_id)
        return row

    @staticmethod
    def _page(
        db: sqlite3.Connection, where: TaskFilter, scan: str, limit: int, after: TaskId | None
    ) -> Sequence[tuple[Any, ...]]:
        """The ids and states of the newest `limit` tasks."""
        if scan != "reader" or where.access is None or len(where.access.groups) < MAX_READERS:
            return db.execute(*_list_query(where, limit, after, scan=scan)).fetchall()
        found: set[tuple[Any, ...]] = set()
        groups = sorted(where.access.groups)
        for i in range(0, len(groups), MAX_READERS):
            part = replace(where.access, groups=frozenset(groups[i : i + MAX_READERS]))
            found.update(db.execute(*_list_query(replace(where, access=part), limit, after, scan=scan)))
        return sorted(found, reverse=not where.oldest_first)[:limit]

    @staticmethod
    def _delete_tokens(db: sqlite3.Connection, task_id: TaskId, tags: str, readers: str) -> None:
        db.executemany("DELETE FROM tags WHERE token = ? AND id = ?", [(t, task_id) for t in decode_json(tags)])
        db.executemany("DELETE FROM readers WHERE token = ? AND id = ?", [(t, task_id) for t in decode_json(readers)])


def insert_task(db: sqlite3.Connection, task: Task, encoded: Encoded | None = None) -> bool:
    """Insert a new task as version 1, with its event. False: the id exists."""
    head, core, bulk, tags, readers = encoded or encode_within_bounds(task, _encode)
    added = db.execute(
        "INSERT INTO tasks (id, version, state, wake_at, due_stage, owner, name, tags, readers, queued, held, unfinished, ended_at)"
        " VALUES (:_id, 1, :state, :wake_at, :due_stage, :owner, :name, :tags, :readers, :queued, :held, :unfinished, :ended_at)"
        " ON CONFLICT (id) DO NOTHING",
        head,
    )
    if added.rowcount == 0:
        return False
    db.execute("INSERT INTO documents (id, core, bulk) VALUES (?, ?, ?)", (task.id, core, bulk))
    _insert_tokens(db, task, tags, readers)
    if change := new_change(task, 1):
        write_event(db, task, change)
    return True


def _insert_tokens(db: sqlite3.Connection, task: Task, tags: Sequence[str], readers: Sequence[str]) -> None:
    db.executemany("INSERT INTO tags (token, id) VALUES (?, ?)", [(token, task.id) for token in tags])
    rows = [(token, task.id, task.state.value) for token in readers]
    db.executemany("INSERT INTO readers (token, id, state) VALUES (?, ?, ?)", rows)


DUE_QUERY: Final = (
    "SELECT id, due_stage FROM tasks INDEXED BY tasks_due"
    " WHERE due_stage IS NOT NULL AND wake_at <= ? ORDER BY wake_at, id LIMIT ?"
)
EXPIRED_QUERY: Final = (
    "SELECT id, tags, readers FROM tasks INDEXED BY tasks_ended WHERE ended_at < ? ORDER BY ended_at, id LIMIT ?"
)


def _encode(document: Document) -> tuple[Encoded, int]:
    """Columns of `tasks`, both parts of the document, and the tokens of tags and readers; with the size of the parts in bytes."""
    bulk = encode_json(document.pop("bulk"))
    tags, readers = document.pop("tags"), document.pop("readers")
    keys = {key: document.pop(key) for key in ("queued", "held", "unfinished", "ended_at")}
    core = encode_json(document)
    columns = ("_id", "state", "wake_at", "due_stage", "owner", "name")
    head = {**{key: document[key] for key in columns}, **keys, "tags": encode_json(tags).decode()}
    head["readers"] = encode_json(readers).decode()
    return (head, core.decode(), bulk.decode(), tags, readers), len(core) + len(bulk)


def _columns(view: View) -> str:
    if view is View.MINIMAL:
        return "tasks.id, tasks.state"
    return "tasks.version, tasks.wake_at, core" + (", bulk" if view is View.FULL else "")


def _join(view: View) -> str:
    return "" if view is View.MINIMAL else " CROSS JOIN documents ON documents.id = tasks.id"


def _summary(row: tuple[Any, ...]) -> TaskSummary:
    task_id, state = row
    return TaskSummary(TaskId(task_id), State(state))


def _size_bytes(row: tuple[Any, ...]) -> int:
    return sum(map(len, row[2:]))


def _decode(row: tuple[Any, ...]) -> Task:
    """A task from the columns of `_columns`: three for BASIC, four for FULL."""
    version, wake_at, core, *bulk = row
    document = {**decode_json(core), "version": version, "wake_at": wake_at}  # `postpone` writes only the column
    if bulk:
        document["bulk"] = decode_json(bulk[0])
    return from_document(document)


def _quoted(words: Sequence[str]) -> str:
    """Only for constants such as states, never for text of users."""
    return ", ".join(f"'{word}'" for word in words)


def _has_few_names(db: sqlite3.Connection, prefix: str) -> bool:
    """Whether so few tasks have the prefix that sorting them is faster than searching in the order of ids.

    If there are many, searching in the order of ids soon finds a page of them.
    """
    if not prefix:
        return False
    condition, values = _name_condition(prefix)
    query = f"SELECT count(*) FROM (SELECT 1 FROM tasks INDEXED BY tasks_by_name WHERE {condition} LIMIT ?)"
    return bool(db.execute(query, (*values, FEW_NAMES + 1)).fetchone()[0] <= FEW_NAMES)


def _planned(db: sqlite3.Connection, where: TaskFilter, after: TaskId | None = None) -> tuple[TaskFilter, str]:
    """The filter with its rarest tag first, and what to scan: `name`, `tag`, `reader`, `state` or `id`.

    One condition is scanned and the others are looked up for each of its tasks, so the rarest is scanned. The planner does not know
    how many tasks each value has (that would need regular ANALYZE), so entries are counted here, up to a bound; above it, those near
    the beginning of the page are compared.
    """
    if _has_few_names(db, where.name_prefix):
        return where, "name"
    tokens = _scanned_readers(where)
    states = sorted(state.value for state in where.states)
    candidates: dict[Candidate, list[tuple[str, tuple[str, ...]]]] = {}
    if tokens is not None and states:
        source = "readers INDEXED BY readers_by_state WHERE token = ? AND state = ?"
        candidates["reader", ("", "")] = [(source, values) for values in product(tokens, states)]
    elif tokens is not None:
        candidates["reader", ("", "")] = [("readers WHERE token = ?", (token,)) for token in tokens]
    elif states:
        candidates["state", ("", "")] = [
            ("tasks INDEXED BY tasks_by_state WHERE state = ?", (state,)) for state in states
        ]
    for tag in where.tags:
        candidates["tag", tag] = [("tags WHERE token = ?", (tag_token(*tag),))]
    if not candidates:
        return where, "id"
    counts = _counts(db, candidates)
    rarest = min(candidates, key=counts.__getitem__)
    if len(candidates) > 1 and counts[rarest] == COUNTED[-1]:
        rarest = _sparsest(db, candidates, where, after)
    tags = sorted(where.tags, key=lambda tag: (("tag", tag) != rarest, counts["tag", tag]))
    return replace(where, tags=tuple(tags)), rarest[0]


def _sparsest(
    db: sqlite3.Connection,
    candidates: Mapping[Candidate, Sequence[tuple[str, tuple[str, ...]]]],
    where: TaskFilter,
    after: TaskId | None,
) -> Candidate:
    """Of candidates with many entries each, the one of which SAMPLED entries reach furthest from the beginning of the page.

    Several scans of one candidate cannot be compared so without merging them: their entries up to there are counted.
    """
    bounds, values = _id_bounds(where, after, "id")
    condition = "".join(f" AND {bound}" for bound in bounds)
    order, within = ("ASC", "<=") if where.oldest_first else ("DESC", ">=")
    best: Candidate | None = None
    edge = ""
    for candidate, [(source, given), *others] in sorted(candidates.items(), key=lambda item: len(item[1])):
        if best is None or not others:
            query = f"SELECT id FROM {source}{condition} ORDER BY id {order} LIMIT 1 OFFSET {SAMPLED - 1}"
            row = db.execute(query, (*given, *values)).fetchone()
            if row is None:
                return candidate
            if best is None or (row[0] > edge) is where.oldest_first:
                best, edge = candidate, row[0]
            continue
        left = SAMPLED
        for source, given in candidates[candidate]:
            query = f"SELECT count(*) FROM (SELECT 1 FROM {source}{condition} AND id {within} ? LIMIT ?)"
            left -= db.execute(query, (*given, *values, edge, left)).fetchone()[0]
            if left == 0:
                break
        best = candidate if left else best
    assert best is not None
    return best


def _counts(
    db: sqlite3.Connection, candidates: Mapping[Candidate, Sequence[tuple[str, tuple[str, ...]]]]
) -> dict[Candidate, int]:
    """How many index entries each candidate has: exact for the rarest, if it has fewer than the last of COUNTED. Others are counted up
    to the fewest so far."""
    counts = dict.fromkeys(candidates, 0)
    if len(candidates) < 2:
        return counts
    for bound in COUNTED:
        fewest = bound
        for candidate, parts in candidates.items():
            left = fewest
            for source, values in parts:
                if left > 0:
                    query = f"SELECT count(*) FROM (SELECT 1 FROM {source} LIMIT ?)"
                    left -= db.execute(query, (*values, left)).fetchone()[0]
            fewest = counts[candidate] = fewest - left
        if fewest < bound:
            break
    return counts


def _scanned_readers(where: TaskFilter) -> list[str] | None:
    """The tokens of readers to scan; None if the filter has neither owner nor access."""
    if where.owner is not None:
        return reader_tokens(where.owner, ())
    return None if where.access is None else where.access.tokens


def _name_condition(prefix: str) -> tuple[str, list[str]]:
    """A range instead of LIKE: needs no escaping, respects case, and can use an index."""
    end = after_prefix(prefix)
    return ("tasks.name >= ?", [prefix]) if end is None else ("tasks.name >= ? AND tasks.name < ?", [prefix, end])


def _list_query(where: TaskFilter, limit: int, after: TaskId | None, *, scan: str) -> tuple[str, list[object]]:
    """The query of the ids and states of a page, and its values; it reads only narrow rows.

    Each branch scans one index that is in the order of ids, from `after` on. Several states or readers are as many scans, merged.
    """
    found, values = _scans(where, after, scan)
    order = f" ORDER BY id {'ASC' if where.oldest_first else 'DESC'}"
    if scan == "name" and not where.states and where.owner is None:
        # the index has names and ids, so that only the rows of the page are read
        conditions, _ = _conditions(where, after, scan, "tasks.id")
        named = f"SELECT id FROM tasks INDEXED BY tasks_by_name WHERE {' AND '.join(conditions)}{order} LIMIT ?"
        source = f"({named}) AS named CROSS JOIN tasks ON tasks.id = named.id"
        return f"SELECT tasks.id AS id, tasks.state AS state FROM {source}{order}", [*values, limit]
    return f"{found}{order} LIMIT ?", [*values, limit]


def _scans(where: TaskFilter, after: TaskId | None, scan: str) -> tuple[str, list[object]]:
    key = {"tag": "tagged.id", "reader": "reading.id"}.get(scan, "tasks.id")
    conditions, values = _conditions(where, after, scan, key)
    states = sorted(state.value for state in where.states)
    if scan == "reader":
        source = "readers AS reading" + (" INDEXED BY readers_by_state" if states else "")
        if where.name_prefix or _reads_rows(where, scan):
            source += " CROSS JOIN tasks ON tasks.id = reading.id"
        tokens = _scanned_readers(where) or ["none"]  # no user and no group: no task has this token
        each: list[list[object]] = [[token, state] for token in tokens for state in states] if states else []
        each = each or [[token] for token in tokens]
        found = ["reading.token = ?", *(["reading.state = ?"] if states else []), *conditions]
        branch = _select(key, source, found, state="reading.state")
        # UNION also drops the repetitions of tasks that the user may see for several reasons
        return " UNION ".join([branch] * len(each)), [value for given in each for value in (*given, *values)]
    if scan == "state":
        branch = _select(key, "tasks INDEXED BY tasks_by_state", ["tasks.state = ?", *conditions])
        return " UNION ALL ".join([branch] * len(states)), [value for state in states for value in (state, *values)]
    if states:
        conditions.append(f"tasks.state IN ({_quoted(states)})")
    if scan == "tag":
        source = "tags AS tagged CROSS JOIN tasks ON tasks.id = tagged.id"
        return _select(key, source, ["tagged.token = ?", *conditions]), [tag_token(*where.tags[0]), *values]
    source = "tasks INDEXED BY tasks_by_name" if scan == "name" else "tasks"
    return _select(key, source, conditions), values


def _conditions(where: TaskFilter, after: TaskId | None, scan: str, key: str) -> tuple[list[str], list[object]]:
    """Those that hold for every branch, besides what is scanned and the states."""
    conditions: list[str] = []
    values: list[object] = []

    def add(condition: str, *given: object) -> None:
        conditions.append(condition)
        values.extend(given)

    bounds, ids = _id_bounds(where, after, key)
    conditions += bounds
    values += ids
    if where.name_prefix:
        condition, bounds = _name_condition(where.name_prefix)
        # the plus sign keeps the planner from scanning names where ids must be scanned
        add(condition if scan == "name" else condition.replace("tasks.name", "+tasks.name"), *bounds)
    if where.owner is not None and scan != "reader":
        add("tasks.owner = ?", where.owner)
    has_row = _reads_rows(where, scan)
    for tag in where.tags[1:] if scan == "tag" else where.tags:
        if has_row:
            add(*_has_token("tags", [tag_token(*tag)]))
        else:
            add(f"EXISTS (SELECT 1 FROM tags WHERE tags.token = ? AND tags.id = {key})", tag_token(*tag))
    if where.access is not None and (scan != "reader" or where.owner is not None):
        tokens = where.access.tokens
        in_row = has_row and len(tokens) <= MAX_READERS
        add(*(_has_token("readers", tokens) if in_row else _may_read(where.access, key)))
    return conditions, values


def _id_bounds(where: TaskFilter, after: TaskId | None, key: str) -> tuple[list[str], list[object]]:
    lowest, is_included, above = where.id_bounds(after)
    bounds = [(f"{key} >= ?" if is_included else f"{key} > ?", lowest), (f"{key} < ?", above)]
    return [bound for bound, value in bounds if value is not None], [value for _, value in bounds if value is not None]


def _reads_rows(where: TaskFilter, scan: str) -> bool:
    """Whether each task's row is read for other conditions. It has the tokens too, so that they need not be looked up one by one."""
    if scan == "tag":
        return True
    lookups = len(where.tags) + (where.access is not None and (scan != "reader" or where.owner is not None))
    return lookups > 0 and (bool(where.name_prefix) or lookups > 1 or (where.owner is not None and scan != "reader"))


def _has_token(column: str, tokens: Sequence[str]) -> tuple[str, ...]:
    """The condition that a row has one of these tokens, and its values. A quote after `[` or `,` begins an element of the JSON list:
    within an element it would follow a backslash."""
    needles = [before + encode_json(token).decode() for token in tokens for before in "[,"]
    condition = " OR ".join([f"instr(tasks.{column}, ?) > 0"] * len(needles))
    return f"({condition or 'FALSE'})", *needles


def _may_read(access: Access, key: str) -> tuple[str, ...]:
    """The condition that a task is one of those that `access` allows, and its values."""
    marks = ", ".join("?" * len(access.tokens))
    return (f"EXISTS (SELECT 1 FROM readers WHERE readers.id = {key} AND readers.token IN ({marks}))", *access.tokens)


def _select(key: str, source: str, conditions: list[str], state: str = "tasks.state") -> str:
    narrowed = " WHERE " + " AND ".join(conditions) if conditions else ""
    return f"SELECT {key} AS id, {state} AS state FROM {source}{narrowed}"
