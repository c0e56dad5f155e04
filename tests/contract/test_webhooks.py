"""One suite for every `WebhookStore`.

1. webhooks: add, get, list by owner, disable, delete with their messages
2. messages: stored once, delivered in order, dead letters, replay, purge
3. claims: one caller at a time, the longest due first, leases expire, pauses hold
4. a message that is stored while its webhook is leased is not forgotten
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pymongo.errors import NetworkTimeout

from poiesis.domain.errors import RepositoryUnavailable
from poiesis.domain.states import State
from poiesis.domain.webhooks import Delivery, UnknownWebhook, Webhook, new_id, new_secret
from poiesis.ports.webhooks import WebhookStore
from poiesis.repository.mongo.connection import MongoDatabase
from poiesis.repository.mongo.webhooks import MongoWebhookStore
from poiesis.repository.sqlite.database import SqliteDatabase
from poiesis.repository.sqlite.webhooks import SqliteWebhookStore

NOW = datetime(2026, 1, 31, 12, 0, 0, 123457, tzinfo=UTC)
SECOND = timedelta(seconds=1)
LEASE = timedelta(minutes=5)


@pytest.fixture(params=["sqlite", "mongo"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[WebhookStore]:
    minute = timedelta(seconds=60)
    if request.param == "sqlite":
        sqlite = SqliteDatabase(tmp_path / "tasks.sqlite", busy_timeout=minute)
        yield SqliteWebhookStore(sqlite)
        sqlite.close()
        return
    url, _, name = request.getfixturevalue("mongo_url").rpartition("/")
    mongo = MongoDatabase(url, name, timeout=minute, connect_timeout=minute)
    yield MongoWebhookStore(mongo)
    mongo.close()


def a_webhook(**changes: Any) -> Webhook:
    defaults = {"id": new_id(), "owner": "ada", "url": "https://r.example/x", "created_at": NOW, "secret": new_secret()}
    return Webhook(**{**defaults, **changes})


def a_message(webhook: Webhook, seq: int, **changes: Any) -> Delivery:
    defaults = {"body": f'{{"n":{seq}}}', "created_at": NOW, "next_at": NOW}
    return Delivery(webhook.id, seq, **{**defaults, **changes})


def with_a_message(store: WebhookStore) -> Webhook:
    """A stored webhook for which message 1 waits."""
    webhook = a_webhook()
    store.add(webhook)
    store.enqueue([a_message(webhook, 1)], NOW)
    return webhook


def test_a_webhook_is_returned_as_it_was_added(store: WebhookStore) -> None:
    states = frozenset({State.COMPLETE, State.CANCELED})
    webhook = a_webhook(states=states, tagged_only=True, all_users=True, description="päge\n")
    store.add(webhook)
    store.add(webhook)

    assert store.get(webhook.id) == webhook
    assert store.list("ada") == [webhook]


def test_an_unknown_webhook_is_an_error(store: WebhookStore) -> None:
    with pytest.raises(UnknownWebhook):
        store.get("wh_0")
    with pytest.raises(UnknownWebhook):
        store.set_disabled("wh_0", "x")
    assert store.delete("wh_0") is False


def test_webhooks_are_listed_by_owner_oldest_first(store: WebhookStore) -> None:
    second, first = a_webhook(created_at=NOW + SECOND), a_webhook()
    other, anonymous = a_webhook(owner="bob"), a_webhook(owner=None)
    for webhook in (second, first, other, anonymous):
        store.add(webhook)

    assert store.list("ada") == [first, second]
    assert store.list(None) == [anonymous]


def test_events_are_matched_with_the_webhooks_of_their_owners_and_of_all(store: WebhookStore) -> None:
    own, other, everyone = a_webhook(), a_webhook(owner="bob"), a_webhook(owner="root", all_users=True)
    anonymous = a_webhook(owner=None)
    for webhook in (own, other, everyone, anonymous):
        store.add(webhook)

    assert {w.id for w in store.for_owners({"ada", "carl"})} == {own.id, everyone.id}
    assert {w.id for w in store.for_owners({None, "root"})} == {anonymous.id, everyone.id}


def test_a_message_is_stored_once(store: WebhookStore) -> None:
    webhook = a_webhook()
    store.add(webhook)
    store.enqueue([a_message(webhook, 2), a_message(webhook, 1)], NOW)
    store.enqueue([a_message(webhook, 2, body="other"), a_message(webhook, 3)], NOW)

    assert [(m.seq, m.body) for m in store.due(webhook.id, NOW, 10)] == [(1, '{"n":1}'), (2, '{"n":2}'), (3, '{"n":3}')]
    assert [m.seq for m in store.due(webhook.id, NOW, 2)] == [1, 2]
    assert store.pending(webhook.id) == 3


def test_a_delivered_message_is_gone(store: WebhookStore) -> None:
    webhook = with_a_message(store)
    store.remove(webhook.id, 1)

    assert store.due(webhook.id, NOW, 10) == []
    store.save(a_message(webhook, 1, attempts=1))
    assert store.pending(webhook.id) == 0


def test_deleting_a_webhook_deletes_its_messages(store: WebhookStore) -> None:
    webhook = with_a_message(store)

    assert store.delete(webhook.id)
    assert store.pending(webhook.id) == 0
    assert store.claim(NOW, NOW + LEASE) is None


def test_messages_that_come_for_a_deleted_webhook_are_purged(store: WebhookStore) -> None:
    gone, kept = with_a_message(store), with_a_message(store)
    store.delete(gone.id)
    store.enqueue([a_message(gone, seq) for seq in (2, 3, 4)], NOW)
    while deleted := store.purge(NOW, 2):
        assert deleted <= 2

    assert (store.pending(gone.id), store.pending(kept.id)) == (0, 1)


def test_a_webhook_whose_messages_cannot_be_deleted_can_be_deleted_again(
    store: WebhookStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not isinstance(store, MongoWebhookStore):
        pytest.skip("delete is one transaction")
    webhook = with_a_message(store)
    with monkeypatch.context() as patch:
        patch.setattr(store._messages, "delete_many", _fails)
        with pytest.raises(RepositoryUnavailable):
            store.delete(webhook.id)

    assert store.get(webhook.id) == replace(webhook, due_at=NOW)
    assert store.delete(webhook.id)
    assert store.pending(webhook.id) == 0


def test_dead_letters_of_a_replay_that_failed_half_way_are_sent_after_the_next(
    store: WebhookStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not isinstance(store, MongoWebhookStore):
        pytest.skip("replay is one transaction")
    webhook = a_webhook()
    store.add(webhook)
    store.enqueue([a_message(webhook, 1, next_at=None, error="late")], NOW)
    with monkeypatch.context() as patch:
        patch.setattr(store._webhooks, "update_many", _fails)
        with pytest.raises(RepositoryUnavailable):
            store.replay(webhook.id, None, NOW)
    store.replay(webhook.id, None, NOW)

    assert store.claim(NOW, NOW + LEASE) is not None
    assert [m.seq for m in store.due(webhook.id, NOW, 9)] == [1]


def _fails(*_: object, **__: object) -> None:
    raise NetworkTimeout("timed out")


def test_a_claimed_webhook_is_claimed_again_after_its_lease(store: WebhookStore) -> None:
    webhook = a_webhook()
    store.add(webhook)
    assert store.claim(NOW, NOW + LEASE) is None
    store.enqueue([a_message(webhook, 1)], NOW)

    claimed = store.claim(NOW, NOW + LEASE)
    assert claimed is not None and claimed.id == webhook.id and claimed.due_at == NOW
    assert store.claim(NOW + SECOND, NOW + LEASE) is None
    assert store.claim(NOW + LEASE, NOW + 2 * LEASE) is not None


def test_the_longest_due_webhook_is_claimed_first(store: WebhookStore) -> None:
    late, early = a_webhook(), a_webhook()
    for webhook, at in ((late, NOW + SECOND), (early, NOW)):
        store.add(webhook)
        store.enqueue([a_message(webhook, 1)], at)

    found = [store.claim(NOW + 2 * SECOND, NOW + LEASE) for _ in range(3)]
    assert [w and w.id for w in found] == [early.id, late.id, None]


def test_one_of_many_callers_gets_a_webhook(store: WebhookStore) -> None:
    with_a_message(store)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: store.claim(NOW, NOW + LEASE), range(8)))

    assert len([w for w in found if w is not None]) == 1


def test_a_released_webhook_is_due_with_its_next_message(store: WebhookStore) -> None:
    webhook = with_a_message(store)
    claimed = store.claim(NOW, NOW + LEASE)
    assert claimed is not None
    store.save(a_message(webhook, 1, attempts=1, next_at=NOW + 10 * SECOND, error="refused"))
    store.release(claimed, failures=3, not_before=None, now=NOW)

    assert store.claim(NOW + 9 * SECOND, NOW + LEASE) is None
    again = store.claim(NOW + 10 * SECOND, NOW + LEASE)
    assert again is not None and again.failures == 3
    assert [(m.attempts, m.error) for m in store.due(webhook.id, NOW + 10 * SECOND, 9)] == [(1, "refused")]


def test_a_webhook_without_messages_is_not_due(store: WebhookStore) -> None:
    webhook = with_a_message(store)
    claimed = store.claim(NOW, NOW + LEASE)
    assert claimed is not None
    store.remove(webhook.id, 1)
    store.release(claimed, failures=0, not_before=None, now=NOW)

    assert store.get(webhook.id).due_at is None
    assert store.claim(NOW + LEASE, NOW + 2 * LEASE) is None


def test_a_paused_webhook_waits_although_new_messages_come(store: WebhookStore) -> None:
    webhook = with_a_message(store)
    claimed = store.claim(NOW, NOW + LEASE)
    assert claimed is not None
    store.release(claimed, failures=1, not_before=NOW + 60 * SECOND, now=NOW)
    store.enqueue([a_message(webhook, 2)], NOW + SECOND)

    assert store.claim(NOW + 59 * SECOND, NOW + LEASE) is None
    assert store.claim(NOW + 60 * SECOND, NOW + LEASE) is not None


def test_a_message_that_comes_during_a_lease_is_not_forgotten(store: WebhookStore) -> None:
    webhook = with_a_message(store)
    claimed = store.claim(NOW, NOW + LEASE)
    assert claimed is not None
    store.remove(webhook.id, 1)
    store.enqueue([a_message(webhook, 2)], NOW + SECOND)
    store.release(claimed, failures=0, not_before=None, now=NOW + SECOND)

    assert store.claim(NOW + 2 * SECOND, NOW + LEASE) is not None


def test_a_message_that_comes_while_a_lease_ends_is_not_forgotten(
    store: WebhookStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In MongoDB, `release` reads the next message and writes when the webhook is due: two operations."""
    if not isinstance(store, MongoWebhookStore):
        pytest.skip("release is one transaction")
    webhook = with_a_message(store)
    claimed = store.claim(NOW, NOW + LEASE)
    assert claimed is not None
    store.remove(webhook.id, 1)
    messages = store._messages

    class Late:
        """Another process stores a message right after the next one was looked for."""

        def find_one(self, *arguments: Any, **named: Any) -> Any:
            found = messages.find_one(*arguments, **named)
            monkeypatch.setattr(store, "_messages", messages)
            store.enqueue([a_message(webhook, 2)], NOW)
            return found

    monkeypatch.setattr(store, "_messages", Late())
    store.release(claimed, failures=0, not_before=None, now=NOW)

    assert store.claim(NOW + SECOND, NOW + LEASE) is not None


def test_dead_letters_are_listed_replayed_and_purged(store: WebhookStore) -> None:
    webhook = a_webhook()
    store.add(webhook)
    store.enqueue([a_message(webhook, seq, next_at=None, error="late") for seq in (1, 2, 3)], NOW)
    assert store.claim(NOW + LEASE, NOW + 2 * LEASE) is None
    assert [m.seq for m in store.dead(webhook.id, after=1, limit=9)] == [2, 3]
    assert [m.seq for m in store.dead(webhook.id, after=0, limit=1)] == [1]

    assert store.replay(webhook.id, [2, 2, 77], NOW) == 1
    assert [(m.seq, m.attempts) for m in store.due(webhook.id, NOW, 9)] == [(2, 0)]
    assert store.claim(NOW, NOW + LEASE) is not None

    assert store.purge(NOW, 9) == 0
    assert store.purge(NOW + SECOND, 1) == 1
    assert store.purge(NOW + SECOND, 9) == 1
    assert store.pending(webhook.id) == 1
    assert store.replay(webhook.id, None, NOW) == 0


def test_only_the_newest_dead_letters_of_a_user_are_kept(store: WebhookStore) -> None:
    mine, other, foreign = (
        replace(a_webhook(), id=f"wh-{i}", owner=owner) for i, owner in enumerate(("ada", "ada", "bob"))
    )
    for webhook in (mine, other, foreign):
        store.add(webhook)
        store.enqueue(
            [a_message(webhook, seq, next_at=None, error="late", created_at=NOW + seq * SECOND) for seq in (1, 2, 3)],
            NOW,
        )
        store.enqueue([a_message(webhook, 4)], NOW)

    assert store.trim("ada", keep=3, limit=2) == 2
    assert store.trim("ada", keep=3, limit=2) == 1
    assert store.trim("ada", keep=3, limit=2) == 0
    left = [(w.id, m.seq) for w in (mine, other, foreign) for m in store.dead(w.id, after=0, limit=9)]
    assert sorted(seq for webhook, seq in left if webhook != foreign.id) == [2, 3, 3]
    assert [seq for webhook, seq in left if webhook == foreign.id] == [1, 2, 3]
    assert [store.pending(w.id) for w in (mine, other, foreign)] == [1, 1, 1]
    assert store.trim(None, keep=0, limit=9) == 0


def test_a_disabled_webhook_is_not_claimed_until_it_is_enabled(store: WebhookStore) -> None:
    webhook = with_a_message(store)
    store.set_disabled(webhook.id, "gone")
    assert store.claim(NOW, NOW + LEASE) is None
    assert store.get(webhook.id).disabled == "gone"

    store.set_disabled(webhook.id, None)
    assert store.claim(NOW, NOW + LEASE) == replace(webhook, due_at=NOW)


def test_positions_only_grow(store: WebhookStore) -> None:
    assert store.position() is None
    for seq in (0, 7, 3):
        store.set_position(seq)
    assert store.position() == 7
