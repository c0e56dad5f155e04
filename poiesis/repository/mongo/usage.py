"""Hourly sums of usage in the collection `usage`: a document for each hour, kind, name and owner, and one that says how far it is done."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, Final

from pymongo import ASCENDING, IndexModel, ReplaceOne

from poiesis.ports.usage import HOUR, Kind, Use
from poiesis.repository.documents import decode_json, encode_json, format_time, parse_time
from poiesis.repository.mongo.connection import MongoDatabase

INDEXES: Final = (
    IndexModel([("kind", ASCENDING), ("hour", ASCENDING)], name="hour"),
    IndexModel([("kind", ASCENDING), ("owner", ASCENDING), ("hour", ASCENDING)], name="owner_hour"),
    IndexModel([("kind", ASCENDING), ("name", ASCENDING), ("hour", ASCENDING)], name="name_hour"),
)
_ROLLED: Final = "rolled"
_BATCH: Final = 1_000


class MongoUsageStore:
    def __init__(self, database: MongoDatabase) -> None:
        self._database = database
        self._usage = database.collection("usage", INDEXES)

    def rolled_until(self) -> datetime | None:
        with self._database.available():
            found = self._usage.find_one({"_id": _ROLLED})
        return None if found is None else parse_time(found["until"])

    def replace(self, hour: datetime, uses: Sequence[Use]) -> None:
        """The same sums have the same ids, so processes that do it at the same time, or again, store the same."""
        at, until = format_time(hour), format_time(hour + HOUR)
        documents = [_document(use, at) for use in uses]
        ids = {document["_id"] for document in documents}
        with self._database.available():
            for i in range(0, len(documents), _BATCH):
                part = documents[i : i + _BATCH]
                self._usage.bulk_write([ReplaceOne({"_id": d["_id"]}, d, upsert=True) for d in part], ordered=False)
            for kind in Kind:
                old = [d["_id"] for d in self._usage.find({"kind": kind.value, "hour": at}, {"_id": 1})]
                if wrong := [each for each in old if each not in ids]:
                    self._usage.delete_many({"_id": {"$in": wrong}})
            self._usage.update_one({"_id": _ROLLED}, {"$max": {"until": until}}, upsert=True)

    def between(
        self,
        kind: Kind,
        begin: datetime,
        end: datetime,
        *,
        owner: str | None = None,
        names: Sequence[str] | None = None,
    ) -> Iterator[Use]:
        query: dict[str, Any] = {"kind": kind.value, "hour": {"$gte": format_time(begin), "$lt": format_time(end)}}
        if owner is not None:
            query["owner"] = owner
        if names is not None:
            query["name"] = {"$in": list(names)}
        with self._database.available(), self._usage.find(query) as found:
            for d in found:
                yield Use(parse_time(d["hour"]), kind, d["name"], d["owner"], decode_json(d["figures"]))


def _document(use: Use, at: str) -> dict[str, Any]:
    key = encode_json([at, use.kind.value, use.name, use.owner]).decode()
    figures = encode_json(dict(use.figures)).decode()
    return {"_id": key, "hour": at, "kind": use.kind.value, "name": use.name, "owner": use.owner, "figures": figures}
