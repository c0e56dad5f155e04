"""One suite for every `SessionRepository`: in memory, SQLite, MongoDB.

1. add and find: exact, by the digest only; the same again changes nothing
2. add keeps only the newest sessions of its user, and all of others
3. save: only at the version that was read
4. remove: once; removed sessions cannot be saved
5. remove_expired: those whose time has come, and no others
6. what one instance wrote, another one reads
"""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from poiesis.domain.errors import RepositoryUnavailable
from poiesis.domain.sessions import Session
from poiesis.ports.sessions import SessionRepository
from poiesis.repository.mongo.connection import MongoDatabase
from poiesis.repository.mongo.sessions import MongoSessionRepository
from poiesis.repository.sqlite.database import SqliteDatabase
from poiesis.repository.sqlite.sessions import SqliteSessionRepository
from poiesis.testing.sessions import MemorySessionRepository

NOW = datetime(2026, 1, 31, 12, 0, 0, 123457, tzinfo=UTC)
HOUR = timedelta(hours=1)
FULL = Session("d1", "lab:ada 😀", "oidc", "lab", NOW, NOW + HOUR, "sealed \"'$.", 1, NOW)
BARE = Session("d2", "bob", "basic", "c", NOW, NOW + 2 * HOUR)


@pytest.fixture(params=["memory", "sqlite", "mongo"])
def open_again(request, tmp_path: Path) -> Callable[[], SessionRepository]:
    """Another instance on the same data."""
    if request.param == "memory":
        memory = MemorySessionRepository()
        return lambda: memory
    if request.param == "sqlite":

        def sqlite() -> SessionRepository:
            database = SqliteDatabase(tmp_path / "tasks.sqlite")
            request.addfinalizer(database.close)
            return SqliteSessionRepository(database)

        return sqlite
    url, _, name = request.getfixturevalue("mongo_url").rpartition("/")

    def mongo() -> SessionRepository:
        minute = timedelta(seconds=60)
        database = MongoDatabase(url, name, timeout=minute, connect_timeout=minute)
        request.addfinalizer(database.close)
        return MongoSessionRepository(database)

    return mongo


@pytest.fixture
def sessions(open_again) -> SessionRepository:
    return open_again()


def test_1_find_returns_what_was_added(sessions):
    for session in (FULL, BARE):
        sessions.add(session, keep=10)
        sessions.add(replace(session, sealed="other"), keep=10)
    assert (sessions.find("d1"), sessions.find("d2")) == (FULL, BARE)
    assert sessions.find("lab:ada 😀") is None


def test_2_only_the_newest_sessions_of_a_user_stay(sessions):
    sessions.add(BARE, keep=2)
    for i in (3, 1, 2, 4):
        sessions.add(replace(FULL, digest=f"a{i}", created_at=NOW + i * HOUR), keep=2)
    assert [sessions.find(f"a{i}") is not None for i in (1, 2, 3, 4)] == [False, False, True, True]
    assert sessions.find("d2") == BARE


def test_3_a_session_is_saved_only_at_the_version_that_was_read(sessions):
    sessions.add(FULL, keep=10)
    changed = replace(FULL, sealed="new", busy_until=None, expires_at=NOW + 3 * HOUR)
    assert sessions.save(changed)
    assert sessions.find("d1") == replace(changed, version=2)
    assert not sessions.save(replace(FULL, sealed="late"))
    assert sessions.save(replace(changed, version=2, sealed="next"))
    assert sessions.find("d1") == replace(changed, version=3, sealed="next")


def test_4_a_session_is_removed_once_and_does_not_come_back(sessions):
    sessions.add(FULL, keep=10)
    assert sessions.remove("d1")
    assert not sessions.remove("d1")
    assert not sessions.save(FULL)
    assert sessions.find("d1") is None


def test_5_sessions_whose_time_has_come_are_removed(sessions):
    sessions.add(FULL, keep=10)
    sessions.add(BARE, keep=10)
    assert sessions.remove_expired(NOW + HOUR - timedelta(microseconds=1)) == 0
    assert sessions.save(replace(BARE, expires_at=NOW + 5 * HOUR))
    assert sessions.remove_expired(NOW + HOUR) == 1
    assert sessions.find("d1") is None
    assert sessions.remove_expired(NOW + 3 * HOUR) == 0


def test_6_another_instance_reads_the_same(open_again):
    open_again().add(FULL, keep=10)
    assert open_again().find("d1") == FULL


def test_7_a_store_that_does_not_answer_is_reported():
    memory = MemorySessionRepository()
    memory.down = True
    with pytest.raises(RepositoryUnavailable):
        memory.find("d1")
