"""The header Idempotency-Key."""

from __future__ import annotations

from typing import Any

import pytest

from poiesis.api.idempotency import idempotency_key
from poiesis.domain.errors import InvalidRequest
from tests.unit.api.service import HELLO, Site, assert_error


def _scope(*values: bytes) -> dict[str, Any]:
    return {"headers": [(b"host", b"x"), *((b"idempotency-key", v) for v in values)]}


@pytest.mark.parametrize(
    ("value", "key"),
    [
        (b'"8e03978e-40d5-43e8-bc93-6894a57f9324"', "8e03978e-40d5-43e8-bc93-6894a57f9324"),
        (b"8e03978e-40d5-43e8-bc93-6894a57f9324", "8e03978e-40d5-43e8-bc93-6894a57f9324"),
        (b' "a b" ', "a b"),
        (b'"a\\"b\\\\c"', 'a"b\\c'),
        (b"a=b/c;d:e", "a=b/c;d:e"),
        (b'"' + b"x" * 255 + b'"', "x" * 255),
    ],
)
def test_keys_are_read(value: bytes, key: str) -> None:
    found = idempotency_key(_scope(value), {})
    assert found is not None
    assert found.key == key


@pytest.mark.parametrize(
    "value",
    [b"", b'""', b'"a', b'a"b', b'"a"b"', b"a b", b"a,b", b"\xe9", b'"\xe9"', b'"a\\b"', b"x" * 256, b'"a"; p=1'],
)
def test_other_keys_are_refused(value: bytes) -> None:
    with pytest.raises(InvalidRequest, match="Idempotency-Key"):
        idempotency_key(_scope(value), {})


def test_a_repeated_header_is_refused() -> None:
    with pytest.raises(InvalidRequest):
        idempotency_key(_scope(b"a", b"a"), {})


def test_without_the_header_there_is_no_key() -> None:
    assert idempotency_key(_scope(), {}) is None


def test_the_digest_is_that_of_the_content() -> None:
    def digest(*parts: Any) -> str:
        found = idempotency_key(_scope(b"k"), *parts)
        assert found is not None
        return found.digest

    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})
    assert digest("create", {}) != digest("rerun", {})
    assert digest("\ud800")


class TestCreate:
    def test_the_same_request_again_gives_the_same_task(self, site: Site) -> None:
        headers = {"Idempotency-Key": '"k1"'}
        first = site.post("/tasks", HELLO, headers=headers)
        again = site.post("/tasks", {**HELLO, "unknown": 1, "description": None}, headers=headers)
        other = site.post("/tasks", HELLO, headers={"Idempotency-Key": "k2"})
        assert first.json() == again.json() != other.json()
        assert site.stored() == 2

    def test_another_body_is_409(self, site: Site) -> None:
        headers = {"Idempotency-Key": "k1"}
        task_id = site.post("/tasks", HELLO, headers=headers).json()["id"]
        body = assert_error(site.post("/tasks", {**HELLO, "name": "b"}, headers=headers), 409)
        assert task_id in body["message"]
        assert site.stored() == 1

    def test_an_invalid_key_is_400_and_nothing_is_stored(self, site: Site) -> None:
        assert_error(site.post("/tasks", HELLO, headers={"Idempotency-Key": "a b"}), 400, "invalid_request")
        assert site.stored() == 0

    def test_a_rerun_has_keys_too(self, site: Site) -> None:
        original = site.create()
        path, headers = f"/poiesis/v1/tasks/{original}:rerun", {"Idempotency-Key": "k"}
        first, again = (site.client.post(path, json={"name": "x"}, headers=headers).json() for _ in range(2))
        assert first == again
        assert_error(site.client.post(path, json={"name": "y"}, headers=headers), 409)
        headers = {"Idempotency-Key": "no-changes"}
        assert site.client.post(path, headers=headers).json() == site.client.post(path, json={}, headers=headers).json()
        assert site.stored() == 3
