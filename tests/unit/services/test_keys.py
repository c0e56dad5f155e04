"""API keys: secrets, lifetimes, and how often a use is written."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from poiesis.domain.errors import InvalidRequest, UnknownKey
from poiesis.domain.keys import ApiKey
from poiesis.services.keys import MAX_KEYS, RECORD_USE_EVERY, KeyService, is_key
from poiesis.testing.clock import ManualClock
from poiesis.testing.keys import MemoryKeyRepository

DAY = timedelta(days=1)


@pytest.fixture
def service() -> KeyService:
    return KeyService(MemoryKeyRepository(), ManualClock(), timedelta(days=30))


def test_a_secret_is_found_again_and_is_not_stored(service: KeyService) -> None:
    key, secret = service.create("ada", "n", ["read"])
    assert is_key(secret.encode())
    found = service.find(secret.encode())
    assert found is not None and found.id == key.id
    assert secret not in repr(service.repository.__dict__) + repr(key)
    assert service.create("ada", "n", ["read"])[1] != secret


def test_what_does_not_look_like_a_key_is_not_looked_up(service: KeyService) -> None:
    service.repository.down = True  # type: ignore[attr-defined]
    for secret in (b"", b"x", b"poiesis_", b"poiesis_" + b"a" * 42, b"poiesis_" + b"a" * 44, b"Poiesis_" + b"a" * 43):
        assert service.find(secret) is None


def test_requests_at_once_make_no_more_keys_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    class Racing(MemoryKeyRepository):
        """Another request adds a key between the check and the addition of the first one."""

        def add(self, key: ApiKey) -> None:
            super().add(key)
            super().add(replace(key, id=f"other of {key.id}", digest=f"other of {key.digest}"))

    monkeypatch.setattr("poiesis.services.keys.MAX_KEYS", 3)
    service = KeyService(Racing(), ManualClock(), timedelta(days=30))
    service.create("ada", "n", ["read"])
    with pytest.raises(InvalidRequest, match="3 keys, which is the limit"):
        service.create("ada", "n", ["read"])
    assert len(service.list("ada")) == 3


def test_a_key_expires(service: KeyService) -> None:
    _, secret = service.create("ada", "n", ["read"], lifetime=DAY)
    service.clock.advance(DAY - timedelta(seconds=1))  # type: ignore[attr-defined]
    assert service.find(secret.encode()) is not None
    service.clock.advance(timedelta(seconds=1))  # type: ignore[attr-defined]
    assert service.find(secret.encode()) is None


def test_a_key_without_a_lifetime_gets_the_longest(service: KeyService) -> None:
    key, _ = service.create("ada", "n", ["read"])
    assert key.expires_at == key.created_at + timedelta(days=30)
    unlimited = KeyService(MemoryKeyRepository(), ManualClock())
    assert unlimited.create("ada", "n", ["read"])[0].expires_at is None


def test_a_revoked_key_is_not_found(service: KeyService) -> None:
    key, secret = service.create("ada", "n", ["read"])
    with pytest.raises(UnknownKey):
        service.revoke(key.id, user="bob")
    service.revoke(key.id, user="ada")
    assert service.find(secret.encode()) is None
    with pytest.raises(UnknownKey):
        service.revoke(key.id, user=None)


def test_a_use_is_written_once_in_a_while(service: KeyService) -> None:
    written = []
    mark_used = service.repository.mark_used

    def count(key_id: str, at: Any) -> None:
        written.append(at)
        mark_used(key_id, at)

    service.repository.mark_used = count  # type: ignore[method-assign]
    _, secret = service.create("ada", "n", ["read"])
    for _ in range(100):
        service.find(secret.encode())
    assert len(written) == 1
    service.clock.advance(RECORD_USE_EVERY)  # type: ignore[attr-defined]
    service.find(secret.encode())
    assert len(written) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": ""}, "name"),
        ({"name": "x" * 101}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"rights": []}, "scopes"),
        ({"rights": ["root"]}, "scopes"),
        ({"lifetime": timedelta(days=31)}, "lifetime"),
        ({"lifetime": -DAY}, "lifetime"),
    ],
)
def test_an_invalid_key_is_refused(service: KeyService, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        service.create(**{"user": "ada", "name": "n", "rights": ["read"], **arguments})


def test_a_user_has_a_limited_number_of_keys(service: KeyService) -> None:
    for _ in range(MAX_KEYS):
        service.create("ada", "n", ["read"])
    with pytest.raises(InvalidRequest, match="limit"):
        service.create("ada", "n", ["read"])
    service.create("bob", "n", ["read"])
