"""Reading of forms; bodies of the APIs are tested by their operations."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.types import Message

from poiesis.api.bodies import read_form
from poiesis.api.errors import Refused


def read(*messages: Message, limit: int = 100) -> bytes:
    waiting = list(messages)

    async def receive() -> Message:
        return waiting.pop(0)

    scope: dict[str, Any] = {"type": "http", "headers": []}
    return asyncio.run(read_form(scope, receive, limit))


def part(body: bytes, *, more: bool) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


def test_a_form_arrives_in_parts() -> None:
    assert read(part(b"a=", more=True), part(b"1", more=False)) == b"a=1"


def test_a_form_beyond_the_limit_is_refused() -> None:
    with pytest.raises(Refused) as caught:
        read(part(b"a=1", more=True), part(b"2", more=False), limit=3)
    assert caught.value.status_code == 413


def test_a_client_that_leaves_in_the_middle_is_refused() -> None:
    with pytest.raises(Refused) as caught:
        read(part(b"a=1", more=True), {"type": "http.disconnect"})
    assert caught.value.status_code == 400
