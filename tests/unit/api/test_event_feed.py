"""The fan-out of events to the readers of one process."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from poiesis.api import event_feed
from poiesis.api.event_feed import EVERYTHING, EventFeed, FellBehind, Reader, task_topic
from poiesis.domain.errors import RepositoryUnavailable
from tests.unit.api.event_log import ListEventLog

POLL_S = 0.005


def _run(test: Callable[[ListEventLog, EventFeed], Awaitable[None]], **options: Any) -> None:
    async def main() -> None:
        log = ListEventLog()
        feed = EventFeed(log, poll_s=POLL_S, **options)
        try:
            async with asyncio.timeout(20):
                await test(log, feed)
        finally:
            feed.close()

    asyncio.run(main())


async def _next(reader: Reader) -> list[int]:
    while True:
        found = await reader.wait(1)
        if found:
            return [event.seq for event in found]


def test_a_reader_gets_the_later_events_of_its_topics_in_order() -> None:
    async def test(log: ListEventLog, feed: EventFeed) -> None:
        log.append("a")
        async with (
            feed.reader([task_topic("a")]) as one,
            feed.reader(["u:ada", "g:lab"]) as user,
            feed.reader([EVERYTHING]) as admin,
        ):
            log.append("b", owner="ada")
            log.append("a", owner="bob", groups=("lab",))
            log.append("c")
            log.append("a")
            got: dict[Reader, list[int]] = {one: [], user: [], admin: []}
            while any(len(got[r]) < n for r, n in ((one, 2), (user, 2), (admin, 4))):
                for reader, seqs in got.items():
                    seqs += [event.seq for event in await reader.wait(POLL_S)]
            assert got == {one: [3, 5], user: [2, 3], admin: [2, 3, 4, 5]}
            assert one.position == user.position == admin.position == 5

    _run(test)


def test_a_reader_that_waits_is_not_woken_by_other_topics() -> None:
    async def test(log: ListEventLog, feed: EventFeed) -> None:
        async with feed.reader(["u:ada"]) as ada, feed.reader([EVERYTHING]) as all_:
            waiting = asyncio.create_task(ada.wait(5))
            log.append("a", owner="bob")
            assert await _next(all_) == [1]
            assert not waiting.done()
            log.append("b", owner="ada")
            assert [event.seq for event in await waiting] == [2]

    _run(test)


def test_many_events_of_others_do_not_make_an_idle_reader_fall_behind() -> None:
    async def test(log: ListEventLog, feed: EventFeed) -> None:
        async with feed.reader(["u:ada"]) as ada:
            for _ in range(50):
                log.append("a", owner="bob")
            while feed.position < 50:
                await asyncio.sleep(POLL_S)
            log.append("b", owner="ada")
            assert await _next(ada) == [51]

    _run(test, window=10)


def test_a_reader_that_does_not_keep_up_gets_an_error() -> None:
    async def test(log: ListEventLog, feed: EventFeed) -> None:
        async with feed.reader([EVERYTHING]) as slow:
            for _ in range(50):
                log.append("a")
            while feed.position < 50:
                await asyncio.sleep(POLL_S)
            with pytest.raises(FellBehind):
                await slow.wait(1)

    _run(test, window=10)


def test_large_events_leave_the_window_before_it_has_too_many_bytes() -> None:
    async def test(log: ListEventLog, feed: EventFeed) -> None:
        async with feed.reader([EVERYTHING]) as slow:
            for _ in range(50):
                log.append("a", tags={f"{i}": "" for i in range(100)})
            while feed.position < 50:
                await asyncio.sleep(POLL_S)
            with pytest.raises(FellBehind):
                await slow.wait(1)
            async with feed.reader([EVERYTHING]) as reader:
                for _ in range(3):
                    log.append("a")
                while feed.position < 53:
                    await asyncio.sleep(POLL_S)
                assert await _next(reader) == [51, 52, 53]

    _run(test, window_bytes=100_000)


def test_an_event_larger_than_the_window_is_still_read() -> None:
    async def test(log: ListEventLog, feed: EventFeed) -> None:
        async with feed.reader([EVERYTHING]) as reader:
            for seq in (1, 2):
                log.append("a", tags={"a": "x" * 5000})
                assert await _next(reader) == [seq]

    _run(test, window_bytes=2000)


def test_there_are_no_calls_of_the_log_without_readers() -> None:
    class Counting(ListEventLog):
        calls = 0

        def after(self, *args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            return super().after(*args, **kwargs)

    async def main() -> None:
        log = Counting()
        feed = EventFeed(log, poll_s=POLL_S)
        async with feed.reader(["u:a"]):
            await asyncio.sleep(POLL_S * 10)
        await asyncio.sleep(POLL_S * 4)
        before = log.calls
        assert before > 0
        await asyncio.sleep(POLL_S * 10)
        assert log.calls == before
        log.append("a", owner="a")  # without a reader
        async with feed.reader(["u:a"]) as reader:
            log.append("b", owner="a")
            assert await _next(reader) == [2]
        feed.close()

    asyncio.run(main())


@pytest.mark.parametrize("error", [RepositoryUnavailable("down"), ValueError("a bug")], ids=["away", "bug"])
def test_the_feed_goes_on_after_an_error_of_the_log(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_feed, "MAX_POLL_S", POLL_S)

    async def test(log: ListEventLog, feed: EventFeed) -> None:
        async with feed.reader([EVERYTHING]) as reader:
            after = log.after

            def fail(*_: Any, **__: Any) -> Any:
                raise error

            log.after = fail  # type: ignore[method-assign]
            await asyncio.sleep(POLL_S * 6)
            log.append("a")
            log.after = after  # type: ignore[method-assign]
            assert await _next(reader) == [1]

    _run(test)


def test_a_reader_is_refused_while_the_log_is_unavailable_and_accepted_later() -> None:
    async def test(log: ListEventLog, feed: EventFeed) -> None:
        last_seq = log.last_seq

        def fail() -> int:
            raise RepositoryUnavailable("down")

        log.last_seq = fail  # type: ignore[method-assign]
        with pytest.raises(RepositoryUnavailable):
            async with feed.reader(["u:a"]):
                pass
        log.last_seq = last_seq  # type: ignore[method-assign]
        async with feed.reader(["u:a"]) as reader:
            log.append("a", owner="a")
            assert await _next(reader) == [1]

    _run(test)
