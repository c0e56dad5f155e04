"""Reading of forms, and the turns of large bodies; bodies of the APIs are tested by their operations."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.types import Message

from poiesis.api import bodies
from poiesis.api.bodies import BodyBudget, BodyReader, read_form
from poiesis.api.errors import Refused
from poiesis.api.requests import REQUEST, RequestRecord
from poiesis.config import ApiSettings

MIB = 1024 * 1024


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


class Sender:
    """One client, and the body that it sends."""

    def __init__(self, budget: BodyBudget, address: str, size: int | None = None) -> None:
        self._messages: asyncio.Queue[Message] = asyncio.Queue()
        length = (b"transfer-encoding", b"chunked") if size is None else (b"content-length", b"%d" % size)
        scope: dict[str, Any] = {"type": "http", "headers": [length], REQUEST: RequestRecord("")}
        self.reader = BodyReader(scope, self._messages.get, budget, address)
        self.reading = asyncio.create_task(self._read())

    async def send(self, size: int, *, more: bool = True) -> None:
        self._messages.put_nowait(part(b" " * size, more=more))
        await turn_of_loop()

    async def _read(self) -> None:
        while (await self.reader())["more_body"]:
            pass

    async def end(self) -> None:
        self.reading.cancel()
        await asyncio.wait([self.reading])
        self.reader.close()


async def turn_of_loop() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


class TestTurns:
    @pytest.fixture
    def budget(self) -> BodyBudget:
        """Of two of the largest bodies."""
        return BodyBudget(ApiSettings(max_body_bytes=MIB, max_buffered_bytes=1))

    def test_a_user_who_waits_for_an_own_body_keeps_no_other_waiting(self, budget: BodyBudget) -> None:
        async def run() -> None:
            slow = [Sender(budget, "slow", MIB) for _ in range(3)]
            await turn_of_loop()
            other = Sender(budget, "other", MIB)
            await other.send(MIB, more=False)
            assert other.reading.done()
            await slow[1].send(MIB, more=False)
            assert not slow[1].reading.done()
            await slow[0].end()
            await turn_of_loop()
            assert slow[1].reading.done()
            for sender in [*slow, other]:
                await sender.end()

        asyncio.run(run())

    @pytest.mark.parametrize("size", [MIB, None])
    def test_slow_bodies_of_many_users_keep_only_what_has_arrived(
        self, budget: BodyBudget, monkeypatch: pytest.MonkeyPatch, size: int | None
    ) -> None:
        monkeypatch.setattr(bodies, "RESERVED_S", 0.01)

        async def run() -> None:
            slow = [Sender(budget, str(i), size) for i in range(2)]
            for sender in slow:
                await sender.send(100_000)
            other = Sender(budget, "other", MIB)
            await other.send(MIB, more=False)
            await asyncio.wait_for(other.reading, 10)

            await slow[0].send(MIB - 100_000, more=False)  # 1.1 of 2 MiB are held: there is no room for the rest
            assert not slow[0].reading.done()
            await other.end()
            await asyncio.wait_for(slow[0].reading, 10)
            for sender in slow:
                await sender.end()

        asyncio.run(run())

    def test_a_body_that_has_begun_goes_on_before_one_that_waits_for_its_bytes(
        self, budget: BodyBudget, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(bodies, "RESERVED_S", 0.01)

        async def run() -> None:
            slow = [Sender(budget, str(i), MIB) for i in range(2)]
            for sender in slow:
                await sender.send(700_000)
            await asyncio.sleep(0.1)
            other = Sender(budget, "other", MIB)
            await other.send(MIB, more=False)
            assert not other.reading.done()

            await slow[0].send(MIB - 700_000, more=False)
            await asyncio.wait_for(slow[0].reading, 10)
            await slow[0].end()
            await asyncio.wait_for(other.reading, 10)
            for sender in (slow[1], other):
                await sender.end()

        asyncio.run(run())

    def test_what_a_body_without_a_size_did_not_need_is_free_once_it_has_arrived(self, budget: BodyBudget) -> None:
        async def run() -> None:
            chunked = [Sender(budget, str(i)) for i in range(2)]
            for sender in chunked:
                await sender.send(100_000, more=False)
            other = Sender(budget, "other", MIB)
            await other.send(MIB, more=False)
            assert other.reading.done()
            for sender in [*chunked, other]:
                await sender.end()

        asyncio.run(run())

    def test_one_that_is_given_up_while_it_waits_holds_nothing(
        self, budget: BodyBudget, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(bodies, "TURN_TIMEOUT_S", 0.01)

        async def run() -> None:
            first, second = Sender(budget, "a", MIB), Sender(budget, "a", MIB)
            await asyncio.wait([second.reading])
            with pytest.raises(Refused) as caught:
                await second.reading
            assert caught.value.status_code == 503
            for sender in (first, second):
                await sender.end()
            third = Sender(budget, "a", MIB)
            await third.send(MIB, more=False)
            assert third.reading.done()
            await third.end()

        asyncio.run(run())
