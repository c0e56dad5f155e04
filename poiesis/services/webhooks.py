"""Webhooks: register them, make a message of each event that they take, send the messages that are due.

Any number of processes may run a `WebhookDispatcher`: making a message twice stores it once, and a webhook is leased while its messages
are sent, one after the other in the order of events. A message that fails is sent again later and does not hold up the others, unless
the receiver did not answer at all, or with 5xx or 429: then all messages of this webhook wait. A receiver gets each message at least once.
"""

from __future__ import annotations

import json
import logging
import random
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final
from urllib.parse import urlsplit

from standardwebhooks import Webhook as Signer

import poiesis
from poiesis.domain.errors import Forbidden, InvalidRequest, PoiesisError
from poiesis.domain.states import State
from poiesis.domain.webhooks import (
    MAX_BODY_BYTES,
    MAX_DEAD,
    MAX_PENDING,
    TAG,
    Delivery,
    TooManyWebhooks,
    UnknownWebhook,
    Webhook,
    new_id,
    new_secret,
    pause,
    retry_at,
)
from poiesis.metrics import WEBHOOK_DELIVERIES
from poiesis.ports.clock import Clock
from poiesis.ports.events import Event, EventLog
from poiesis.ports.webhooks import Answer, WebhookSender, WebhookStore

log = logging.getLogger(__name__)

MAX_URL: Final = 2_000
EVENTS_AT_ONCE: Final = 200
MESSAGES_AT_ONCE: Final = 100  # of one webhook in one lease
LEASE: Final = timedelta(seconds=45)  # how long the messages of a process that dies wait
SEND_FOR: Final = timedelta(seconds=15)  # in one lease; one more attempt ends well within it
THREADS: Final = 12
SLOW_THREADS: Final = 4  # for webhooks whose last attempt failed, so that they cannot occupy the others
MAX_THREADS: Final = THREADS + SLOW_THREADS
THREADS_PER_USER: Final = 3
BUSY_S: Final = 1.0  # until a webhook is claimed again for which no thread was free
PURGED_AT_ONCE: Final = 200
DEAD_FOR: Final = timedelta(days=7)
TRIM_EVERY: Final = 500  # dead letters of a user, which may be above MAX_DEAD until then
TRIMMED_AT_ONCE: Final = 4 * TRIM_EVERY


@dataclass(eq=False)
class WebhookService:
    store: WebhookStore
    clock: Clock
    allow_http: bool = False
    max_per_user: int = 20

    def create(
        self,
        url: str,
        *,
        owner: str | None,
        is_admin: bool = False,
        states: Sequence[State] = (),
        tagged_only: bool = False,
        all_users: bool = False,
        description: str = "",
    ) -> Webhook:
        """Return the webhook with its secret, which is not shown again. Raises: InvalidRequest, Forbidden, TooManyWebhooks."""
        self._check_url(url)
        if all_users and not is_admin:
            raise Forbidden("only admins may register webhooks for the tasks of all users")
        if self.max_per_user == 0:
            raise Forbidden("this site allows no webhooks")
        self._check_room(owner, for_more=1)
        webhook = Webhook(
            id=new_id(),
            owner=owner,
            url=url,
            created_at=self.clock.now(),
            secret=new_secret(),
            states=frozenset(states),
            tagged_only=tagged_only,
            all_users=all_users,
            description=description,
        )
        self.store.add(webhook)
        try:
            self._check_room(owner, for_more=0)  # again, since others may have been added meanwhile
        except TooManyWebhooks:
            self.store.delete(webhook.id)
            raise
        return webhook

    def _check_room(self, owner: str | None, *, for_more: int) -> None:
        """Raises: TooManyWebhooks."""
        if len(self.store.list(owner)) + for_more > self.max_per_user:
            raise TooManyWebhooks(f"you have {self.max_per_user} webhooks already: delete one first")

    def list(self, owner: str | None) -> Sequence[Webhook]:
        return self.store.list(owner)

    def get(self, webhook_id: str, owner: str | None) -> Webhook:
        """Raises: UnknownWebhook, also for a webhook of another user."""
        webhook = self.store.get(webhook_id)
        if webhook.owner != owner:
            raise UnknownWebhook(webhook_id)
        return webhook

    def delete(self, webhook_id: str, owner: str | None) -> None:
        """Raises: UnknownWebhook."""
        self.get(webhook_id, owner)
        self.store.delete(webhook_id)

    def enable(self, webhook_id: str, owner: str | None) -> None:
        """Raises: UnknownWebhook."""
        self.get(webhook_id, owner)
        self.store.set_disabled(webhook_id, None)

    def pending(self, webhook_id: str) -> int:
        return self.store.pending(webhook_id)

    def dead(self, webhook_id: str, owner: str | None, *, after: int, limit: int) -> Sequence[Delivery]:
        """Raises: UnknownWebhook."""
        self.get(webhook_id, owner)
        return self.store.dead(webhook_id, after=after, limit=limit)

    def replay(self, webhook_id: str, owner: str | None, seqs: Sequence[int] | None) -> int:
        """Raises: UnknownWebhook."""
        self.get(webhook_id, owner)
        return self.store.replay(webhook_id, seqs, self.clock.now())

    def _check_url(self, url: str) -> None:
        allowed = ("https", "http") if self.allow_http else ("https",)
        try:
            parts = urlsplit(url)
            is_valid = parts.scheme in allowed and bool(parts.hostname) and parts.port != 0
        except ValueError:
            is_valid = False
        if not is_valid or len(url) > MAX_URL or not url.isascii() or not url.isprintable() or " " in url:
            raise InvalidRequest(
                "url", f"must be a URL with {' or '.join(allowed)} of at most {MAX_URL} ASCII characters"
            )
        if parts.username is not None or parts.fragment:
            raise InvalidRequest(
                "url", "must have no user name, password or fragment: receivers check the signature instead"
            )


@dataclass(eq=False)
class WebhookDispatcher:
    """Jobs of the notifier: events to messages, and messages to receivers. `pool`: of MAX_THREADS threads."""

    store: WebhookStore
    events: EventLog
    sender: WebhookSender
    clock: Clock
    pool: Executor
    jitter: Callable[[], float] = random.random
    _stop: threading.Event = field(default_factory=threading.Event, init=False)

    def __post_init__(self) -> None:
        self._slots = _Slots()
        self._untrimmed: dict[str | None, int] = {}
        self._untrimmed_lock = threading.Lock()

    def close(self) -> None:
        """Returns when the messages that are being sent have ended; each has a deadline."""
        self._stop.set()
        self.pool.shutdown(wait=True, cancel_futures=True)

    # ── events to messages ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def make_messages(self) -> int:
        """Make the messages of the next events. Return how many events there were. Raises: RepositoryUnavailable."""
        position = self.store.position()
        if position is None:  # nothing was registered before the first start
            self.store.set_position(self.events.last_seq())
            return 0
        events = self.events.after(position, limit=EVENTS_AT_ONCE)
        if not events:
            return 0
        webhooks = self.store.for_owners({event.owner for event in events})
        messages = [
            _message(webhook, event)
            for event in events
            for webhook in webhooks
            if webhook.takes(owner=event.owner, state=event.state, at=event.at, tag=event.tags.get(TAG))
        ]
        if messages:
            bounded = self._bounded(messages)
            self.store.enqueue(bounded, self.clock.now())
            owners = {webhook.id: webhook.owner for webhook in webhooks}
            for owner, added in Counter(owners[m.webhook_id] for m in bounded if m.next_at is None).items():
                self._bound_dead(owner, added)
        self.store.set_position(events[-1].seq)
        return len(events)

    def _bounded(self, messages: Sequence[Delivery]) -> Sequence[Delivery]:
        """Beyond MAX_PENDING, messages of a webhook are dead letters, which can be replayed."""
        waiting = {webhook_id: self.store.pending(webhook_id) for webhook_id in {m.webhook_id for m in messages}}
        kept: list[Delivery] = []
        for message in messages:
            waiting[message.webhook_id] += 1
            is_over = waiting[message.webhook_id] > MAX_PENDING
            error = f"more than {MAX_PENDING} messages were waiting"
            kept.append(replace(message, next_at=None, error=error) if is_over else message)
        return kept

    # ── messages to receivers ───────────────────────────────────────────────────────────────────────────────────────────────────

    def send(self) -> int:
        """Begin to send what one webhook has due. 0: none is due, or no thread is free for it. Raises: RepositoryUnavailable."""
        now = self.clock.now()
        webhook = self.store.claim(now, now + LEASE)
        if webhook is None:
            return 0
        if not self._slots.take(webhook):  # others are sent meanwhile
            soon = now + timedelta(seconds=BUSY_S)
            self.store.release(webhook, failures=webhook.failures, not_before=soon, now=now)
            return 1
        self.pool.submit(self._send_in_thread, webhook)
        return 1

    def purge(self) -> int:
        """Delete some of the dead letters that are too old, and return how many. Raises: RepositoryUnavailable."""
        return self.store.purge(self.clock.now() - DEAD_FOR, PURGED_AT_ONCE)

    def _bound_dead(self, owner: str | None, added: int) -> None:
        """Delete the oldest dead letters of a user above MAX_DEAD, with the first that are added in this process and then every so many."""
        with self._untrimmed_lock:
            count = self._untrimmed.get(owner, TRIM_EVERY) + added
            is_due = count > TRIM_EVERY
            self._untrimmed[owner] = 0 if is_due else count
        if is_due and (deleted := self.store.trim(owner, keep=MAX_DEAD, limit=TRIMMED_AT_ONCE)):
            log.warning("webhook_dead_letters_deleted", extra={"user": owner, "count": deleted, "kept": MAX_DEAD})

    def _send_due(self, webhook: Webhook) -> None:
        failures, begun, not_before = webhook.failures, self.clock.now(), None
        for message in self.store.due(webhook.id, begun, MESSAGES_AT_ONCE):
            if self._stop.is_set() or self.clock.now() - begun > SEND_FOR:
                break
            now = self.clock.now()
            answer = self.sender.send(webhook.url, _headers(webhook, message, now), message.body.encode())
            if answer.status is not None and 200 <= answer.status < 300:
                WEBHOOK_DELIVERIES.labels("delivered").inc()
                failures = 0
                self.store.remove(webhook.id, message.seq)
                continue
            WEBHOOK_DELIVERIES.labels("failed").inc()
            failures += 1
            self._failed(webhook, message, answer)
            if answer.status == 410:  # Standard Webhooks: the receiver does not want any more
                self.store.set_disabled(webhook.id, "the receiver answered 410 Gone")
                break
            if answer.status is None or answer.status >= 500 or answer.status == 429:
                wait = max(pause(failures), timedelta(seconds=min(answer.retry_after_s or 0, 3600)))
                not_before = self.clock.now() + wait
                break
        self.store.release(webhook, failures=failures, not_before=not_before, now=self.clock.now())

    def _failed(self, webhook: Webhook, message: Delivery, answer: Answer) -> None:
        attempts = message.attempts + 1
        next_at = retry_at(attempts, self.clock.now(), self.jitter())
        error = answer.error or f"the receiver answered with status {answer.status}"
        if next_at is None:
            WEBHOOK_DELIVERIES.labels("dead").inc()
        extra = {"webhook": webhook.id, "message_id": message.message_id, "attempts": attempts, "error": error}
        log.info("webhook_failed", extra=extra)
        self.store.save(replace(message, attempts=attempts, next_at=next_at, error=error))
        if next_at is None:
            self._bound_dead(webhook.owner, 1)

    def _send_in_thread(self, webhook: Webhook) -> None:
        try:
            self._send_due(webhook)
        except PoiesisError as error:  # the lease expires
            log.warning("webhook_send_failed", extra={"webhook": webhook.id, "error": str(error)})
        except Exception:
            log.exception("webhook_send_bug")
        finally:
            self._slots.give_back(webhook)


class _Slots:
    """Which webhooks may be sent now: few of one user, and few whose last attempt failed, so that none occupies all threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken: Counter[tuple[str, str | bool | None]] = Counter()

    def take(self, webhook: Webhook) -> bool:
        is_slow = webhook.failures > 0
        with self._lock:
            is_free = self._taken["slow", is_slow] < (SLOW_THREADS if is_slow else THREADS)
            if not is_free or self._taken["owner", webhook.owner] >= THREADS_PER_USER:
                return False
            self._taken.update([("slow", is_slow), ("owner", webhook.owner)])
            return True

    def give_back(self, webhook: Webhook) -> None:
        keys: tuple[tuple[str, str | bool | None], ...] = (("slow", webhook.failures > 0), ("owner", webhook.owner))
        with self._lock:
            for key in keys:
                self._taken[key] -= 1
                if not self._taken[key]:
                    del self._taken[key]


def _message(webhook: Webhook, event: Event) -> Delivery:
    data = {"id": event.task_id, "state": event.state.value, "reason": event.reason, "sequence": event.seq}
    kind = f"task.{event.state.value.lower()}"
    body = {"type": kind, "timestamp": event.at.isoformat(), "data": {**data, "tags": dict(event.tags)}}
    text = json.dumps(body, separators=(",", ":"))
    if len(text) > MAX_BODY_BYTES:
        text = json.dumps({**body, "data": {**data, "tags": None}}, separators=(",", ":"))
    return Delivery(webhook.id, event.seq, text, created_at=event.at, next_at=event.at)


def _headers(webhook: Webhook, message: Delivery, now: datetime) -> dict[str, str]:
    return {
        "content-type": "application/json",
        "user-agent": f"poiesis/{poiesis.__version__}",
        "webhook-id": message.message_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Signer(webhook.secret).sign(message.message_id, now, message.body),
    }
