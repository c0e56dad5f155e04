"""Where webhooks and their messages are stored, and what sends them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from poiesis.domain.webhooks import Delivery, Webhook


class WebhookStore(Protocol):
    """Durable, and used by several processes at once. Every method raises RepositoryUnavailable if the store does not answer; all are
    safe to retry."""

    def add(self, webhook: Webhook) -> None: ...

    def get(self, webhook_id: str) -> Webhook:
        """Raises: UnknownWebhook."""

    def list(self, owner: str | None) -> Sequence[Webhook]:
        """Those of one owner, oldest first."""

    def set_disabled(self, webhook_id: str, reason: str | None) -> None:
        """With None, sending begins again, with an attempt now if a message waits. Raises: UnknownWebhook."""

    def delete(self, webhook_id: str) -> bool:
        """With its messages. False: it did not exist."""

    def for_owners(self, owners: Collection[str | None]) -> Sequence[Webhook]:
        """Those of these owners, and those for the tasks of all users."""

    def position(self) -> int | None:
        """The number of the last event whose messages were made; None: never any."""

    def set_position(self, seq: int) -> None:
        """A smaller number than the stored one changes nothing."""

    def enqueue(self, deliveries: Sequence[Delivery], now: datetime) -> None:
        """Store messages that are not stored yet, and make their webhooks due. Dead letters do not make them due."""

    def pending(self, webhook_id: str) -> int:
        """How many messages wait, dead letters excluded."""

    def claim(self, now: datetime, until: datetime) -> Webhook | None:
        """Lease the webhook that is longest due, to one caller until `until` at most; None: none is due."""

    def due(self, webhook_id: str, now: datetime, limit: int) -> Sequence[Delivery]:
        """Its messages that are due, in the order of events."""

    def remove(self, webhook_id: str, seq: int) -> None:
        """A message was delivered."""

    def save(self, delivery: Delivery) -> None:
        """After a failed attempt; a message that was removed meanwhile stays removed."""

    def release(self, webhook: Webhook, *, failures: int, not_before: datetime | None, now: datetime) -> None:
        """End the lease that `claim` gave with this `webhook`. It is due again when its first message is, and not before `not_before`;
        at once if messages were stored meanwhile."""

    def dead(self, webhook_id: str, *, after: int, limit: int) -> Sequence[Delivery]:
        """Dead letters with numbers above `after`, in their order."""

    def replay(self, webhook_id: str, seqs: Collection[int] | None, now: datetime) -> int:
        """Make dead letters (None: all) wait again, with all attempts. Return how many; of a call that failed, the next counts only the
        rest."""

    def purge(self, before: datetime, limit: int) -> int:
        """Delete dead letters of events before a time, and what is left of deleted webhooks, at most `limit`. Return how many."""

    def trim(self, owner: str | None, *, keep: int, limit: int) -> int:
        """Of the dead letters of all webhooks of an owner keep the newest `keep`. Delete at most `limit`, and return how many."""


@dataclass(frozen=True)
class Answer:
    """`status` None: no HTTP response; then `error` is the reason."""

    status: int | None
    error: str | None = None
    retry_after_s: float | None = None


class WebhookSender(Protocol):
    def send(self, url: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """POST `body`. Follows no redirect, and does not connect to an address that the site has not allowed. Raises nothing."""
