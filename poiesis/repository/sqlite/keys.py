"""API keys in SQLite: the table `keys`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any, Final

from poiesis.domain.keys import ApiKey
from poiesis.repository.documents import decode_json, encode_json, format_time
from poiesis.repository.key_documents import HEAD, decode_key, encode_key
from poiesis.repository.sqlite.database import SqliteDatabase

_COLUMNS: Final = ", ".join(f'"{name}"' for name in (*HEAD, "core"))


class SqliteKeyRepository:
    def __init__(self, database: SqliteDatabase) -> None:
        self._database = database

    def add(self, key: ApiKey) -> None:
        head, core = encode_key(key)
        values = {**head, "groups": encode_json(head["groups"]).decode(), "core": core}
        marks = ", ".join(f":{name}" for name in (*HEAD, "core"))
        with self._database.writing() as db:
            db.execute(f"INSERT INTO keys ({_COLUMNS}) VALUES ({marks}) ON CONFLICT (id) DO NOTHING", values)

    def find(self, digest: str) -> ApiKey | None:
        with self._database.reading() as db:
            row = db.execute(f"SELECT {_COLUMNS} FROM keys WHERE digest = ?", (digest,)).fetchone()
        return None if row is None else _decode(row)

    def list(self, user: str | None, *, limit: int) -> Sequence[ApiKey]:
        condition, values = ("", ()) if user is None else (' WHERE "user" = ?', (user,))
        with self._database.reading() as db:
            query = f"SELECT {_COLUMNS} FROM keys{condition} ORDER BY created_at, id LIMIT ?"
            return [_decode(row) for row in db.execute(query, (*values, limit))]

    def remove(self, key_id: str, *, user: str | None) -> bool:
        with self._database.writing() as db:
            query = 'DELETE FROM keys WHERE id = ?1 AND (?2 IS NULL OR "user" = ?2)'
            return db.execute(query, (key_id, user)).rowcount == 1

    def mark_used(self, key_id: str, at: datetime) -> None:
        with self._database.writing() as db:
            query = "UPDATE keys SET last_used_at = ?1 WHERE id = ?2 AND (last_used_at IS NULL OR last_used_at < ?1)"
            db.execute(query, (format_time(at), key_id))

    def set_rights(self, user: str, groups: Collection[str], *, admin: bool) -> None:
        with self._database.writing() as db:
            query = 'UPDATE keys SET "groups" = ?, admin = ? WHERE "user" = ?'
            db.execute(query, (encode_json(list(groups)).decode(), admin, user))


def _decode(row: tuple[Any, ...]) -> ApiKey:
    *values, core = row
    head = dict(zip(HEAD, values, strict=True))
    return decode_key({**head, "groups": decode_json(head["groups"]), "admin": bool(head["admin"])}, core)
