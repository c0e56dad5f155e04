"""GET /events: what a stream shows, and how it begins and ends."""

from __future__ import annotations

import asyncio
import json
import weakref
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from poiesis.api import app, credentials, streams
from poiesis.api.event_feed import EventFeed
from poiesis.api.extensions import events
from poiesis.config import ApiSettings
from poiesis.domain.states import State
from tests.unit.api.service import HELLO, Site, assert_error

PATH = "/poiesis/v1/events"


class Client:
    """Calls the application as a server does, so that a stream is seen while it lasts."""

    def __init__(self, site: Site) -> None:
        self._app = site.app
        self.holds: list[Callable[[], None]] = []

    async def stream(
        self, query: str = "", headers: dict[str, str] | None = None, method: str = "GET"
    ) -> AsyncIterator[Any]:
        """The status, then the chunks as text."""
        given = {"host": "127.0.0.1", **(headers or {})}
        scope: dict[str, Any] = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
            "path": PATH, "raw_path": PATH.encode(), "query_string": query.encode(), "root_path": "", "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 8000), "headers": [(n.lower().encode(), v.encode()) for n, v in given.items()],
            "poiesis.connection": self,
        }  # fmt: skip
        queue: asyncio.Queue[Any] = asyncio.Queue(maxsize=1)

        async def receive() -> Any:
            await asyncio.sleep(3600)

        async def send(message: Any) -> None:
            await queue.put(message)

        running = asyncio.create_task(self._app(scope, receive, send))
        try:
            while True:
                message = await queue.get()
                if message["type"] == "http.response.start":
                    yield message["status"]
                elif message["body"]:
                    yield message["body"].decode()
                if message["type"] == "http.response.body" and not message.get("more_body"):
                    await running
                    return
        finally:
            running.cancel()

    def hold(self, on_end: Callable[[], None]) -> None:
        self.holds.append(on_end)


def _run(site: Site, test: Callable[[Client], Any]) -> None:
    async def main() -> None:
        async with asyncio.timeout(30):
            await test(Client(site))

    asyncio.run(main())


async def _take(stream: AsyncIterator[Any], count: int) -> list[tuple[str, str, Any]]:
    """The next events: id, name, data; marks are left out."""
    found: list[tuple[str, str, Any]] = []
    async for chunk in stream:
        for block in chunk.split("\n\n"):
            fields = dict(line.split(": ", 1) for line in block.splitlines())
            if "data" in fields:
                found.append((fields.get("id", ""), fields["event"], json.loads(fields["data"])))
        if len(found) >= count:
            return found
    return found


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "HEARTBEAT_S", 0.05)


@pytest.mark.usefixtures("quick")
class TestAStream:
    def test_shows_changes_as_they_happen(self, site: Site) -> None:
        async def test(client: Client) -> None:
            stream = client.stream()
            assert await anext(stream) == 200
            assert await anext(stream) == "retry: 2000\n\n"
            assert await anext(stream) == "id: 0\n\n"
            site.events.append("t1", State.RUNNING, reason="ErrImagePull: x")
            ((seq, name, data),) = await _take(stream, 1)
            assert (seq, name) == ("1", "change")
            assert data == {
                "id": "t1",
                "state": "RUNNING",
                "n": 1,
                "at": "2026-01-01T00:00:00.000000+00:00",
                "reason": "ErrImagePull: x",
            }
            await stream.aclose()  # type: ignore[attr-defined]

        _run(site, test)

    def test_goes_on_after_an_id_of_another_replica_that_is_ahead(self, site: Site) -> None:
        after, read_until = site.events.after, [0]

        def behind(*args: Any, **kwargs: Any) -> Any:
            return [event for event in after(*args, **kwargs) if event.seq <= read_until[0]]

        site.events.after = behind  # type: ignore[method-assign]

        async def test(client: Client) -> None:
            other = client.stream()
            assert [await anext(other) for _ in range(3)][-1] == "id: 0\n\n", "the replica reads the log"
            for _ in range(5):
                site.events.append("t")
            stream = client.stream("last_event_id=4")
            assert [await anext(stream) for _ in range(5)] == [200, "retry: 2000\n\n", *["id: 4\n\n"] * 3]
            read_until[0] = 3
            assert (await _take(other, 3))[-1][0] == "3"
            assert await anext(stream) == "id: 4\n\n"
            read_until[0] = 9
            assert [seq for seq, *_ in await _take(stream, 1)] == ["5"]
            for each in (stream, other):
                await each.aclose()  # type: ignore[attr-defined]

        _run(site, test)

    def test_has_heartbeats_that_move_the_id(self, site: Site) -> None:
        async def test(client: Client) -> None:
            task_id = site.create()
            stream = client.stream(f"task={task_id}")
            for _ in range(3):
                await anext(stream)
            site.events.append("another")
            chunks = [await anext(stream) for _ in range(12)]
            assert chunks[-1] == "id: 1\n\n"
            await stream.aclose()  # type: ignore[attr-defined]

        _run(site, test)

    @pytest.mark.parametrize(
        ("query", "headers"), [("last_event_id=2", {}), ("", {"Last-Event-ID": "2"}), ("last_event_id=9", {"Last-Event-ID": "2"})]
    )  # fmt: skip
    def test_goes_on_after_the_last_id_without_a_gap(self, site: Site, query: str, headers: dict[str, str]) -> None:
        async def test(client: Client) -> None:
            for _ in range(5):
                site.events.append("t")
            stream = client.stream(query, headers)
            first = await _take(_texts(stream), 3)
            site.events.append("t")
            later = await _take(stream, 1)
            assert [seq for seq, _, _ in first + later] == ["3", "4", "5", "6"]
            await stream.aclose()  # type: ignore[attr-defined]

        _run(site, test)

    def test_reads_long_absences_in_pages(self, site: Site) -> None:
        async def test(client: Client) -> None:
            for _ in range(1700):
                site.events.append("t")
            stream = client.stream("last_event_id=0")
            found = await _take(_texts(stream), 1700)
            assert [int(seq) for seq, _, _ in found] == list(range(1, 1701))
            await stream.aclose()  # type: ignore[attr-defined]

        _run(site, test)

    def test_can_begin_with_a_snapshot(self, site: Site) -> None:
        async def test(client: Client) -> None:
            a = site.create({**HELLO, "tags": {"run": "1"}})
            site.create({**HELLO, "tags": {"run": "2"}})
            ended = site.create({**HELLO, "tags": {"run": "1"}})
            site.change(ended, state=State.SYSTEM_ERROR)
            stream = client.stream("snapshot=true&tag=run%3D1")
            ((_, name, data),) = await _take(_texts(stream), 1)
            assert (name, data) == ("snapshot", {"tasks": [{"id": a, "state": "QUEUED"}]})
            await stream.aclose()  # type: ignore[attr-defined]
            one = client.stream(f"snapshot=true&task={ended}")
            ((_, _, data),) = await _take(_texts(one), 1)
            assert data == {"tasks": [{"id": ended, "state": "SYSTEM_ERROR"}]}
            await one.aclose()  # type: ignore[attr-defined]

        _run(site, test)

    def test_shows_only_tasks_with_the_tags(self, site: Site) -> None:
        async def test(client: Client) -> None:
            stream = client.stream("tag=run%3D1&tag=lab")
            for _ in range(3):
                await anext(stream)
            for tags in ({"run": "1"}, {"run": "2", "lab": "x"}, {"lab": "x"}, {"run": "1", "lab": "y"}):
                site.events.append("t", tags=tags)
            assert [seq for seq, _, _ in await _take(stream, 1)] == ["4"]
            await stream.aclose()  # type: ignore[attr-defined]

        _run(site, test)

    def test_ends_with_a_word_when_the_server_stops(self, site: Site) -> None:
        async def test(client: Client) -> None:
            stream = client.stream()
            for _ in range(3):
                await anext(stream)
            client.holds[0]()
            rest = [chunk async for chunk in stream]
            assert rest[-1].startswith('event: end\ndata: {"reason":"server_stops"')

        _run(site, test)

    def test_ends_with_a_word_when_it_falls_behind(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(app, "EventFeed", partial(EventFeed, window=5))
        site = Site()

        async def test(client: Client) -> None:
            stream = client.stream()
            for _ in range(2):  # it waits for its client now
                await anext(stream)
            for _ in range(40):
                site.events.append("t")
            await asyncio.sleep(0.6)
            rest = [chunk async for chunk in stream]
            assert rest[-1].startswith('event: end\ndata: {"reason":"fell_behind"')

        _run(site, test)

    def test_head_answers_at_once(self, site: Site) -> None:
        async def test(client: Client) -> None:
            assert [chunk async for chunk in client.stream(method="HEAD")] == [200]

        _run(site, test)


async def _texts(stream: AsyncIterator[Any]) -> AsyncIterator[str]:
    async for chunk in stream:
        if isinstance(chunk, str):
            yield chunk


class TestMemory:
    def test_old_events_are_not_kept_while_the_client_reads_them(
        self, site: Site, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Their tags are much larger than what is sent, and many clients may be slow at once."""
        monkeypatch.setattr(events, "PAGE", 2)
        for _ in range(99):
            site.events.append("t", tags={"a": "x"})
        read: list[weakref.ref[Any]] = []
        after = site.events.after

        def copies(*args: Any, **kwargs: Any) -> Any:
            found = [replace(event) for event in after(*args, **kwargs)]
            read.extend(map(weakref.ref, found))
            return found

        site.events.after = copies  # type: ignore[method-assign]

        async def test(client: Client) -> None:
            stream = client.stream("last_event_id=0")
            assert await anext(stream) == 200
            async with asyncio.timeout(5):  # the client reads no further
                while not read or any(event() for event in read):
                    await asyncio.sleep(0.01)
            assert len(read) < 20
            await stream.aclose()  # type: ignore[attr-defined]

        _run(site, test)


class TestRefusals:
    def test_a_server_that_stops_passes_no_id_before_its_event(
        self, site: Site, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(events, "PAGE", 2)
        for _ in range(9):
            site.events.append("t")

        async def test(client: Client) -> None:
            stream = client.stream("last_event_id=0")
            for _ in range(3):
                chunk = await anext(stream)
            assert "id: 2\n" in chunk
            client.holds[0]()
            rest = "".join([chunk async for chunk in stream])
            changes = rest.count("event: change")
            assert changes < 7 and 'data: {"reason":"server_stops"' in rest
            assert [line for line in rest.splitlines() if line.startswith("id: ")] == [
                f"id: {n + 3}" for n in range(changes)
            ]

        _run(site, test)

    def test_an_id_of_deleted_events_is_410(self, site: Site) -> None:
        for _ in range(9):
            site.events.append("t")
        site.events.purged = 5
        body = assert_error(site.client.get(PATH, params={"last_event_id": "4"}), 410, "events_gone")
        assert "snapshot=true" in body["message"]

    def test_an_id_of_the_future_is_410(self, site: Site) -> None:
        assert_error(site.client.get(PATH, params={"last_event_id": "4"}), 410, "events_gone")

    @pytest.mark.parametrize("value", ["x", "-1", "1.5", "9" * 19, "\u0661"])
    def test_an_invalid_id_is_400(self, site: Site, value: str) -> None:
        headers = {b"Last-Event-ID": value.encode()}
        assert_error(site.client.get(PATH, headers=headers), 400, "invalid_request")

    def test_an_unknown_task_is_404(self, site: Site) -> None:
        assert_error(site.client.get(PATH, params={"task": "x"}), 404, "unknown_task")

    def test_too_many_streams_are_429(self) -> None:
        site = Site(api=ApiSettings(max_streams=10, max_streams_per_user=2))

        async def test(client: Client) -> None:
            streams = [client.stream() for _ in range(2)]
            for stream in streams:
                assert await anext(stream) == 200
            refused = [chunk async for chunk in client.stream()]
            assert refused[0] == 429
            assert "too_many_streams" in refused[1]
            await streams[0].aclose()  # type: ignore[attr-defined]
            await asyncio.sleep(0)
            again = client.stream()
            assert await anext(again) == 200
            for stream in (*streams[1:], again):
                await stream.aclose()  # type: ignore[attr-defined]

        _run(site, test)


@pytest.mark.usefixtures("quick")
class TestAccess:
    @pytest.fixture
    def site(self, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Site:
        monkeypatch.setattr(credentials, "_CHECK_FILE_S", 0.0)
        self.file = tmp_path_factory.mktemp("auth") / "users.json"
        self._write({"ada": {"groups": ["lab"]}, "eve": {}, "root": {"admin": True}})
        return Site(api=ApiSettings(auth=("bearer",), credentials_file=str(self.file)))

    def _write(self, users: dict[str, dict[str, Any]]) -> None:
        entries = [{"name": n, "token_hash": credentials.hash_secret(n, "bearer"), **more} for n, more in users.items()]
        self.file.write_text(json.dumps(entries))

    def test_is_checked_for_each_event(self, site: Site) -> None:
        async def test(client: Client) -> None:
            streams = {n: client.stream("", {"Authorization": f"Bearer {n}"}) for n in ("ada", "eve", "root")}
            for stream in streams.values():
                for _ in range(3):
                    await anext(stream)
            site.events.append("t1", owner="bob")
            site.events.append("t2", owner="bob", groups=("lab",))
            site.events.append("t3", owner="ada")
            site.events.append("t4", owner="eve")
            found = {n: [d["id"] for _, _, d in await _take(s, 1 if n == "eve" else 2)] for n, s in streams.items()}
            assert found["ada"] == ["t2", "t3"]
            assert found["eve"] == ["t4"]
            assert found["root"][:2] == ["t1", "t2"]
            for stream in streams.values():
                await stream.aclose()  # type: ignore[attr-defined]

        _run(site, test)

    def test_old_events_of_others_are_not_shown_either(self, site: Site) -> None:
        async def test(client: Client) -> None:
            site.events.append("t1", owner="bob")
            site.events.append("t2", owner="eve")
            stream = client.stream("last_event_id=0", {"Authorization": "Bearer eve"})
            assert [d["id"] for _, _, d in await _take(_texts(stream), 1)] == ["t2"]
            await stream.aclose()  # type: ignore[attr-defined]

        _run(site, test)

    @pytest.mark.parametrize("users", [{}, {"ada": {"groups": []}}, {"ada": {"groups": ["lab"], "admin": True}}])
    def test_a_stream_ends_when_the_credentials_give_other_rights(
        self, site: Site, monkeypatch: pytest.MonkeyPatch, users: dict[str, dict[str, Any]]
    ) -> None:
        monkeypatch.setattr(streams, "AUTHENTICATE_EVERY_S", 0.01)

        async def test(client: Client) -> None:
            stream = client.stream("", {"Authorization": "Bearer ada"})
            for _ in range(4):
                await anext(stream)
            self._write(users)
            rest = [chunk async for chunk in stream]
            assert rest[-1].startswith('event: end\ndata: {"reason":"credentials"')

        _run(site, test)

    def test_old_events_end_when_the_credentials_give_other_rights(
        self, site: Site, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(events, "PAGE", 2)
        monkeypatch.setattr(streams, "AUTHENTICATE_EVERY_S", 0.0)
        for _ in range(99):
            site.events.append("t", owner="bob", groups=("lab",))

        async def test(client: Client) -> None:
            stream = client.stream("last_event_id=0", {"Authorization": "Bearer ada"})
            await _take(_texts(stream), 2)
            self._write({"ada": {}})
            rest = "".join([chunk async for chunk in stream])
            assert rest.count("event: change") < 10 and 'data: {"reason":"credentials"' in rest

        _run(site, test)

    def test_the_task_of_another_user_is_404(self, site: Site) -> None:
        task_id = site.create(headers={"Authorization": "Bearer ada"})
        response = site.client.get(PATH, params={"task": task_id}, headers={"Authorization": "Bearer eve"})
        assert_error(response, 404, "unknown_task")
