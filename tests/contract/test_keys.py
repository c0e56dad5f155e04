"""One suite for every `KeyRepository`: in memory, SQLite, MongoDB.

1. add and find: exact, by the digest only; the same again changes nothing
2. list: of a user or of all, oldest first, limited
3. remove: once; not a key of another user
4. mark_used: only forward in time; an unknown key is ignored
5. set_rights: of all keys of a user and of no others
6. what one instance wrote, another one reads
"""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from poiesis.domain.errors import RepositoryUnavailable
from poiesis.domain.keys import ApiKey
from poiesis.ports.keys import KeyRepository
from poiesis.repository.mongo.connection import MongoDatabase
from poiesis.repository.mongo.keys import MongoKeyRepository
from poiesis.repository.sqlite.database import SqliteDatabase
from poiesis.repository.sqlite.keys import SqliteKeyRepository
from poiesis.testing.keys import MemoryKeyRepository

NOW = datetime(2026, 1, 31, 12, 0, 0, 123457, tzinfo=UTC)
HOUR = timedelta(hours=1)
FULL = ApiKey(
    "k1", "d1", "lab:ada", "nightly 😀", frozenset({"read", "admin"}), NOW, ("lab:a", "x\"'$."), True, True, NOW + HOUR
)
BARE = ApiKey("k2", "d2", "bob", "n", frozenset({"read"}), NOW - HOUR)


@pytest.fixture(params=["memory", "sqlite", "mongo"])
def open_again(request, tmp_path: Path) -> Callable[[], KeyRepository]:
    """Another instance on the same data."""
    if request.param == "memory":
        memory = MemoryKeyRepository()
        return lambda: memory
    if request.param == "sqlite":

        def sqlite() -> KeyRepository:
            database = SqliteDatabase(tmp_path / "tasks.sqlite")
            request.addfinalizer(database.close)
            return SqliteKeyRepository(database)

        return sqlite
    url, _, name = request.getfixturevalue("mongo_url").rpartition("/")

    def mongo() -> KeyRepository:
        minute = timedelta(seconds=60)
        database = MongoDatabase(url, name, timeout=minute, connect_timeout=minute)
        request.addfinalizer(database.close)
        return MongoKeyRepository(database)

    return mongo


@pytest.fixture
def keys(open_again: Callable[[], KeyRepository]) -> KeyRepository:
    made = open_again()
    made.add(FULL)
    made.add(BARE)
    return made


def test_a_key_is_found_by_its_digest_as_it_was_added(keys: KeyRepository) -> None:
    assert keys.find("d1") == FULL
    assert keys.find("d2") == BARE
    for other in ("", "k1", "d", "D1", "%"):
        assert keys.find(other) is None


def test_adding_the_same_again_changes_nothing(keys: KeyRepository) -> None:
    keys.add(FULL)
    assert len(keys.list(None, limit=10)) == 2


def test_a_list_is_of_one_user_or_all_oldest_first(keys: KeyRepository) -> None:
    assert keys.list(None, limit=10) == [BARE, FULL]
    assert keys.list("lab:ada", limit=10) == [FULL]
    assert keys.list("ada", limit=10) == []
    assert keys.list(None, limit=1) == [BARE]


def test_a_key_is_removed_once_and_only_by_its_user(keys: KeyRepository) -> None:
    assert not keys.remove("k1", user="bob")
    assert not keys.remove("k3", user=None)
    assert keys.find("d1") == FULL
    assert keys.remove("k1", user="lab:ada")
    assert not keys.remove("k1", user=None)
    assert keys.find("d1") is None and keys.find("d2") == BARE


def test_the_last_use_only_moves_forward(keys: KeyRepository) -> None:
    for at in (NOW + HOUR, NOW, NOW + 2 * HOUR):
        keys.mark_used("k1", at)
    keys.mark_used("unknown", NOW)
    assert keys.find("d1") == replace(FULL, last_used_at=NOW + 2 * HOUR)
    assert keys.find("d2") == BARE


def test_rights_change_for_all_keys_of_a_user(keys: KeyRepository) -> None:
    keys.add(replace(FULL, id="k3", digest="d3"))
    keys.set_rights("lab:ada", ["g"], admin=False)
    assert {key.id: (key.groups, key.admin) for key in keys.list(None, limit=10)} == {
        "k1": (("g",), False),
        "k2": ((), False),
        "k3": (("g",), False),
    }


def test_another_instance_reads_what_was_written(open_again: Callable[[], KeyRepository], keys: KeyRepository) -> None:
    assert open_again().find("d1") == FULL


def test_a_store_that_cannot_be_used_is_reported() -> None:
    database = MongoDatabase("mongodb://127.0.0.1:9", "x", timeout=timedelta(milliseconds=100))
    memory = MemoryKeyRepository()
    memory.down = True
    for keys in (MongoKeyRepository(database), memory):
        with pytest.raises(RepositoryUnavailable):
            keys.find("d1")
    database.close()
