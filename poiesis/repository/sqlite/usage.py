"""Hourly sums of usage in the table `usage`, clustered by kind and hour."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from poiesis.ports.usage import HOUR, Kind, Use
from poiesis.repository.documents import decode_json, encode_json, format_time, parse_time
from poiesis.repository.sqlite.database import SqliteDatabase


class SqliteUsageStore:
    def __init__(self, database: SqliteDatabase) -> None:
        self._database = database

    def rolled_until(self) -> datetime | None:
        with self._database.reading() as db:
            row = db.execute("SELECT until FROM usage_rolled").fetchone()
        return None if row is None else parse_time(row[0])

    def replace(self, hour: datetime, uses: Sequence[Use]) -> None:
        at = format_time(hour)
        rows = [(use.kind.value, at, use.name, use.owner, encode_json(dict(use.figures)).decode()) for use in uses]
        with self._database.writing() as db:
            db.executemany("DELETE FROM usage WHERE kind = ? AND hour = ?", [(kind.value, at) for kind in Kind])
            db.executemany("INSERT INTO usage (kind, hour, name, owner, figures) VALUES (?, ?, ?, ?, ?)", rows)
            db.execute(
                "INSERT INTO usage_rolled (id, until) VALUES (1, ?) ON CONFLICT (id) DO UPDATE SET until = max(until, excluded.until)",
                (format_time(hour + HOUR),),
            )

    def between(
        self,
        kind: Kind,
        begin: datetime,
        end: datetime,
        *,
        owner: str | None = None,
        names: Sequence[str] | None = None,
    ) -> Iterator[Use]:
        query = "SELECT hour, name, owner, figures FROM usage WHERE kind = ? AND hour >= ? AND hour < ?"
        values: list[Any] = [kind.value, format_time(begin), format_time(end)]
        if owner is not None:
            query += " AND owner = ?"
            values.append(owner)
        if names is not None:
            query += " AND name IN (SELECT value FROM json_each(?))"
            values.append(encode_json(list(names)).decode())
        with self._database.reading() as db:
            for hour, name, of, figures in db.execute(query, values):
                yield Use(parse_time(hour), kind, name, of, decode_json(figures))
