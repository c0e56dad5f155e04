"""Look-ups that cost an attempt only if they find nothing."""

from __future__ import annotations

import asyncio

import pytest

from poiesis.api.attempts import Attempts, Rate
from poiesis.api.errors import Refused
from poiesis.domain.errors import RepositoryUnavailable

ONE = Rate(burst=1, refill_s=60)


def look_up(attempts: Attempts, found: str | Exception | None) -> str | None:
    async def find() -> str | None:
        if isinstance(found, Exception):
            raise found
        return found

    return asyncio.run(attempts.look_up("key", "10.0.0.1", ONE, find))


def test_only_a_look_up_that_finds_nothing_costs_an_attempt() -> None:
    attempts = Attempts(lambda: 0.0)
    for _ in range(3):
        assert look_up(attempts, "ada") == "ada"
        with pytest.raises(RepositoryUnavailable):
            look_up(attempts, RepositoryUnavailable("away"))
    assert look_up(attempts, None) is None
    with pytest.raises(Refused):
        look_up(attempts, "ada")
