"""Webhooks: from events to signed messages, retries, dead letters, fairness."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any, Final, cast

import pytest
from standardwebhooks import Webhook as Verifier

from poiesis.domain.errors import Forbidden, InvalidRequest
from poiesis.domain.states import State
from poiesis.domain.task import TaskId
from poiesis.domain.webhooks import RETRY_DELAYS, TAG, TooManyWebhooks, UnknownWebhook, Webhook, new_id, new_secret
from poiesis.ports.events import Event, EventLog
from poiesis.ports.webhooks import Answer
from poiesis.repository.sqlite.database import SqliteDatabase
from poiesis.repository.sqlite.webhooks import SqliteWebhookStore
from poiesis.services import webhooks as module
from poiesis.services.webhooks import WebhookDispatcher, WebhookService, _Slots
from poiesis.testing.clock import ManualClock

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
OK = Answer(204)


EVENT: Final[dict[str, Any]] = {"reason": None, "groups": (), "tags": {}}


@pytest.fixture(autouse=True)
def _log_as_the_service_does(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)  # by default log.info does not even look at its arguments


@dataclass
class Receiver:
    """Answers in turn, the last answer again and again."""

    answers: list[Answer] = field(default_factory=lambda: [OK])
    received: list[tuple[dict[str, str], bytes]] = field(default_factory=list)

    def send(self, url: str, headers: Mapping[str, str], body: bytes) -> Answer:
        self.received.append((dict(headers), body))
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    @property
    def sequences(self) -> list[int]:
        return [json.loads(body)["data"]["sequence"] for _, body in self.received]


class Events:
    """The event log, as far as webhooks use it."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def add(self, state: State = State.COMPLETE, *, owner: str | None = "ada", **changes: Any) -> Event:
        seq = len(self.events) + 1
        event = Event(seq=seq, task_id=TaskId("t"), n=seq, state=state, owner=owner, **{"at": NOW, **EVENT, **changes})
        self.events.append(event)
        return event

    def last_seq(self) -> int:
        return len(self.events)

    def after(self, seq: int, *, limit: int, **_: object) -> list[Event]:
        return self.events[seq : seq + limit]


class Inline(Executor):
    def submit(self, function: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        function(*arguments, **named)
        return Future()


@dataclass
class Site:
    service: WebhookService
    dispatcher: WebhookDispatcher
    events: Events
    receiver: Receiver
    clock: ManualClock

    def deliver(self) -> None:
        while self.dispatcher.make_messages():
            pass
        while self.dispatcher.send():
            pass

    def advance(self, by: timedelta) -> None:
        self.clock.advance(by)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    database = SqliteDatabase(tmp_path / "tasks.sqlite")
    store, clock, events, receiver = SqliteWebhookStore(database), ManualClock(NOW), Events(), Receiver()
    dispatcher = WebhookDispatcher(store, cast(EventLog, events), receiver, clock, Inline(), jitter=lambda: 0.5)
    dispatcher.make_messages()
    yield Site(WebhookService(store, clock), dispatcher, events, receiver, clock)
    database.close()


class Frozen(datetime):
    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
        return NOW.astimezone(tz)


def test_an_event_arrives_as_a_signed_message(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("standardwebhooks.webhooks.datetime", Frozen)  # it compares the time of a message with its own
    webhook = site.service.create("https://r.example/x", owner="ada")
    event = site.events.add(State.EXECUTOR_ERROR, reason="exit code 1", tags={"run": "7"})
    site.deliver()

    headers, body = site.receiver.received[0]
    document = Verifier(webhook.secret).verify(body, headers)
    assert headers["webhook-id"] == f"msg_{webhook.id}_1"
    assert document == {
        "type": "task.executor_error",
        "timestamp": event.at.isoformat(),
        "data": {
            "id": event.task_id,
            "state": "EXECUTOR_ERROR",
            "reason": "exit code 1",
            "sequence": 1,
            "tags": {"run": "7"},
        },
    }


def test_events_of_others_and_other_states_are_not_sent(site: Site) -> None:
    site.service.create("https://r.example/x", owner="ada", states=[State.COMPLETE])
    site.events.add(owner="bob")
    site.events.add(State.RUNNING)
    site.events.add()
    site.deliver()

    assert site.receiver.sequences == [3]


def test_a_webhook_of_an_admin_may_take_the_events_of_all(site: Site) -> None:
    with pytest.raises(Forbidden):
        site.service.create("https://r.example/x", owner="ada", all_users=True)
    site.service.create("https://r.example/x", owner="root", is_admin=True, all_users=True)
    site.events.add(owner="bob")
    site.events.add(owner=None)
    site.deliver()

    assert site.receiver.sequences == [1, 2]


def test_a_task_can_name_its_webhook(site: Site) -> None:
    webhook = site.service.create("https://r.example/x", owner="ada", tagged_only=True)
    site.events.add()
    site.events.add(tags={TAG: f"wh_other, {webhook.id}"})
    site.events.add(owner="bob", tags={TAG: webhook.id})
    site.deliver()

    assert site.receiver.sequences == [2]


def test_events_before_a_webhook_existed_are_not_sent(site: Site) -> None:
    site.events.add(at=NOW - timedelta(seconds=1))
    site.service.create("https://r.example/x", owner="ada")
    site.deliver()

    assert site.receiver.received == []


@pytest.mark.parametrize("failure", [Answer(None, "refused"), Answer(500), Answer(429), Answer(302), Answer(400)])
def test_a_receiver_that_is_down_for_a_minute_loses_nothing_and_gets_nothing_under_another_id(
    site: Site, failure: Answer
) -> None:
    site.service.create("https://r.example/x", owner="ada")
    for _ in range(20):
        site.events.add()
    site.receiver.answers = [failure]
    for _ in range(60):
        site.deliver()
        site.advance(timedelta(seconds=1))
    attempted = len(site.receiver.received)
    site.receiver.answers = [OK]
    site.receiver.received.clear()
    for _ in range(600):
        site.deliver()
        site.advance(timedelta(seconds=1))

    assert attempted > 1
    assert sorted(site.receiver.sequences) == list(range(1, 21))
    ids = {headers["webhook-id"] for headers, _ in site.receiver.received}
    assert len(ids) == 20


def test_a_receiver_that_does_not_answer_gets_one_attempt_for_all_messages(site: Site) -> None:
    site.service.create("https://r.example/x", owner="ada")
    for _ in range(50):
        site.events.add()
    site.receiver.answers = [Answer(None, "refused")]
    for _ in range(300):
        site.deliver()
        site.advance(timedelta(seconds=1))

    assert len(site.receiver.received) < 10


def test_a_message_that_the_receiver_refuses_does_not_hold_up_others(site: Site) -> None:
    site.service.create("https://r.example/x", owner="ada")
    for _ in range(3):
        site.events.add()
    site.receiver.answers = [Answer(400), OK]
    site.deliver()

    assert site.receiver.sequences == [1, 2, 3]
    site.advance(2 * RETRY_DELAYS[0])
    site.deliver()
    assert site.receiver.sequences == [1, 2, 3, 1]


def test_retry_after_is_respected(site: Site) -> None:
    site.service.create("https://r.example/x", owner="ada")
    site.events.add()
    site.receiver.answers = [Answer(429, retry_after_s=100), OK]
    site.deliver()
    site.advance(timedelta(seconds=99))
    site.deliver()
    assert len(site.receiver.received) == 1

    site.advance(timedelta(seconds=1))
    site.deliver()
    assert len(site.receiver.received) == 2


def test_after_all_attempts_a_message_is_a_dead_letter_that_can_be_replayed(site: Site) -> None:
    webhook = site.service.create("https://r.example/x", owner="ada")
    site.events.add()
    site.receiver.answers = [Answer(500)]
    for _ in range(30):
        site.deliver()
        site.advance(timedelta(hours=15))

    dead = site.service.dead(webhook.id, "ada", after=0, limit=9)
    assert [(m.seq, m.attempts, m.error) for m in dead] == [
        (1, len(RETRY_DELAYS) + 1, "the receiver answered with status 500")
    ]
    assert len(site.receiver.received) == len(RETRY_DELAYS) + 1

    site.receiver.answers = [OK]
    assert site.service.replay(webhook.id, "ada", None) == 1
    site.deliver()
    assert site.receiver.received[-1][0]["webhook-id"] == site.receiver.received[0][0]["webhook-id"]
    assert site.service.dead(webhook.id, "ada", after=0, limit=9) == []


def test_messages_beyond_the_bound_are_dead_letters(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PENDING", 3)
    webhook = site.service.create("https://r.example/x", owner="ada")
    for _ in range(5):
        site.events.add()
    site.dispatcher.make_messages()

    assert site.service.pending(webhook.id) == 3
    assert [m.seq for m in site.service.dead(webhook.id, "ada", after=0, limit=9)] == [4, 5]


def test_the_oldest_dead_letters_of_a_user_above_the_bound_are_deleted(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("MAX_PENDING", 0), ("MAX_DEAD", 6), ("TRIM_EVERY", 3)):
        monkeypatch.setattr(module, name, value)
    webhooks = [
        site.service.create(f"https://r.example/{n}", owner=owner) for n, owner in enumerate(("ada", "ada", "bob"))
    ]

    def dead() -> list[list[int]]:
        return [[m.seq for m in site.service.dead(w.id, w.owner, after=0, limit=99)] for w in webhooks]

    for _ in range(9):
        site.events.add(at=site.clock.now())
        site.dispatcher.make_messages()
        site.advance(timedelta(seconds=1))
        assert sum(map(len, dead())) <= 6 + 3
    for _ in range(3):
        site.events.add(owner="bob")
    site.dispatcher.make_messages()
    assert dead()[0][-1] == 9 and min(dead()[0] + dead()[1]) > 4
    assert dead()[2] == [10, 11, 12]


def test_dead_letters_after_all_attempts_are_bounded_too(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("MAX_DEAD", 2), ("TRIM_EVERY", 1)):
        monkeypatch.setattr(module, name, value)
    webhook = site.service.create("https://r.example/x", owner="ada")
    for _ in range(9):
        site.events.add(at=site.clock.now())
        site.advance(timedelta(seconds=1))
    site.receiver.answers = [Answer(400)]
    for _ in range(30):
        site.deliver()
        site.advance(timedelta(hours=15))
    left = [m.seq for m in site.service.dead(webhook.id, "ada", after=0, limit=9)]
    assert left[-2:] == [8, 9] and len(left) <= 3


def test_a_receiver_that_is_gone_gets_no_more(site: Site) -> None:
    webhook = site.service.create("https://r.example/x", owner="ada")
    for _ in range(2):
        site.events.add()
    site.receiver.answers = [Answer(410)]
    site.deliver()
    site.advance(timedelta(days=1))
    site.deliver()
    assert site.receiver.sequences == [1]
    assert site.service.get(webhook.id, "ada").disabled == "the receiver answered 410 Gone"

    site.receiver.answers = [OK]
    site.service.enable(webhook.id, "ada")
    site.deliver()
    assert site.receiver.sequences == [1, 1, 2]


def test_messages_are_made_once_although_their_maker_died_before_it_noted_its_position(site: Site) -> None:
    site.service.create("https://r.example/x", owner="ada")
    site.events.add()
    note, site.dispatcher.store.set_position = site.dispatcher.store.set_position, lambda seq: None  # type: ignore[method-assign]
    site.dispatcher.make_messages()
    site.dispatcher.store.set_position = note  # type: ignore[method-assign]
    site.deliver()

    assert site.receiver.sequences == [1]


def test_a_large_event_is_sent_without_its_tags(site: Site) -> None:
    site.service.create("https://r.example/x", owner="ada")
    site.events.add(tags={"a": "é" * 20_000})
    site.deliver()

    assert json.loads(site.receiver.received[0][1])["data"]["tags"] is None


def test_webhooks_of_others_are_unknown(site: Site) -> None:
    webhook = site.service.create("https://r.example/x", owner="ada")
    calls = [
        lambda: site.service.get(webhook.id, "bob"),
        lambda: site.service.delete(webhook.id, "bob"),
        lambda: site.service.enable(webhook.id, None),
        lambda: site.service.dead(webhook.id, "bob", after=0, limit=9),
        lambda: site.service.replay(webhook.id, "bob", None),
    ]
    for call in calls:
        with pytest.raises(UnknownWebhook):
            call()


def test_a_user_has_a_bounded_number_of_webhooks(site: Site) -> None:
    for _ in range(site.service.max_per_user):
        site.service.create("https://r.example/x", owner="ada")
    with pytest.raises(TooManyWebhooks):
        site.service.create("https://r.example/x", owner="ada")
    site.service.create("https://r.example/x", owner="bob")


def test_requests_at_once_make_no_more_webhooks_than_the_limit(tmp_path: Path) -> None:
    class Racing(SqliteWebhookStore):
        """Another request adds a webhook between the check and the addition of the first one."""

        def add(self, webhook: Webhook) -> None:
            super().add(webhook)
            super().add(replace(webhook, id=new_id()))

    service = WebhookService(Racing(SqliteDatabase(tmp_path / "db")), ManualClock(NOW), max_per_user=3)
    service.create("https://a.example/", owner="ada")
    with pytest.raises(TooManyWebhooks):
        service.create("https://a.example/", owner="ada")
    assert len(service.list("ada")) == 3


@pytest.mark.parametrize(
    "url",
    [
        "",
        "r.example",
        "ftp://r.example",
        "http://r.example",
        "https://",
        "https://ada:secret@r.example",
        "https://r.example/#x",
        "https://r.example:0/",
        "https://r.example:99999/",
        "https://r.exämple/",
        "https://r.example/a b",
        "https://r.example/\r\nx: y",
        "https://[::1/",
        "https://r.example/" + "a" * 2000,
    ],
)
def test_an_invalid_url_is_refused(site: Site, url: str) -> None:
    with pytest.raises(InvalidRequest, match="url"):
        site.service.create(url, owner="ada")


def test_a_secret_does_not_show() -> None:
    webhook = Webhook(new_id(), "ada", "https://r.example", NOW, new_secret())
    assert webhook.secret not in repr(webhook)


def test_one_user_and_failing_receivers_do_not_occupy_all_threads() -> None:
    def webhook(owner: str, failures: int = 0) -> Webhook:
        return Webhook(new_id(), owner, "https://r.example", NOW, new_secret(), failures=failures)

    slots = _Slots()
    assert [slots.take(webhook("ada")) for _ in range(module.THREADS_PER_USER + 1)] == [
        *[True] * module.THREADS_PER_USER,
        False,
    ]
    failing = [webhook(f"user {i}", failures=1) for i in range(module.SLOW_THREADS + 1)]
    assert [slots.take(w) for w in failing] == [*[True] * module.SLOW_THREADS, False]
    assert slots.take(webhook("bob"))
    slots.give_back(failing[0])
    assert slots.take(failing[-1])
