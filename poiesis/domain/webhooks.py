"""Webhooks: to which URLs the events of tasks are sent, and the deliveries that wait.

Messages follow the Standard Webhooks specification: a stable id, a time, and an HMAC signature over both and the body.
"""

from __future__ import annotations

import base64
import secrets
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from poiesis.domain.errors import Conflict, PoiesisError
from poiesis.domain.states import State

TAG: Final = "poiesis/webhook"
"""The tag of a task that names webhooks by their ids, separated by commas: those of its owner that take only tagged tasks."""
RETRY_DELAYS: Final = tuple(timedelta(seconds=s) for s in (5, 10, 30, 60, 300, 1800, 7200, 21_600, 43_200))
"""Between the attempts of one message: ten attempts in 22 hours."""
MAX_PAUSE: Final = timedelta(minutes=5)
"""Between two attempts to reach a receiver that does not answer, whatever the number of messages that wait."""
SECRET_BYTES: Final = 32
MAX_PENDING: Final = 10_000
"""Messages that wait for one webhook; further ones become dead letters at once."""
MAX_DEAD: Final = 10_000
"""Dead letters of all webhooks of a user; the oldest are deleted."""
MAX_BODY_BYTES: Final = 16 * 1024


class UnknownWebhook(PoiesisError):
    code = "unknown_webhook"

    def __init__(self, webhook_id: str) -> None:
        super().__init__(f"no such webhook: {webhook_id[:100]!r}")


class TooManyWebhooks(Conflict):
    code = "too_many_webhooks"


@dataclass(frozen=True)
class Webhook:
    """`states`: of the events that it takes; empty: all. `tagged_only`: only of tasks whose tag `TAG` names it. `all_users`: of the tasks
    of every user, for admins. `disabled`: why nothing is sent any more. `failures`: failed attempts since the last success. `due_at`:
    when the next message is to be sent at the latest; None: none waits."""

    id: str
    owner: str | None
    url: str
    created_at: datetime
    secret: str = field(repr=False)
    states: frozenset[State] = frozenset()
    tagged_only: bool = False
    all_users: bool = False
    description: str = ""
    disabled: str | None = None
    failures: int = 0
    due_at: datetime | None = None

    def takes(self, *, owner: str | None, state: State, at: datetime, tag: str | None) -> bool:
        """Whether an event is for this webhook; `tag` is the value of the task's tag `TAG`."""
        if self.disabled is not None or at < self.created_at or not (self.all_users or owner == self.owner):
            return False
        if self.states and state not in self.states:
            return False
        return not self.tagged_only or self.id in {name.strip() for name in (tag or "").split(",")}


@dataclass(frozen=True)
class Delivery:
    """One message to one webhook: the event with the number `seq` as JSON. `next_at` None: a dead letter, with its last `error`."""

    webhook_id: str
    seq: int
    body: str
    created_at: datetime
    next_at: datetime | None
    attempts: int = 0
    error: str | None = None

    @property
    def message_id(self) -> str:
        """The same in every attempt and every replay, so that receivers can recognize repetitions."""
        return f"msg_{self.webhook_id}_{self.seq}"


def new_id() -> str:
    return "wh_" + secrets.token_hex(12)


def new_secret() -> str:
    return "whsec_" + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def retry_at(attempts: int, now: datetime, jitter: float) -> datetime | None:
    """When to send a message again after `attempts` failed ones; None: never. `jitter` between 0 and 1 spreads retries by a fifth."""
    if attempts > len(RETRY_DELAYS):
        return None
    return now + RETRY_DELAYS[attempts - 1] * (0.9 + 0.2 * jitter)


def pause(failures: int) -> timedelta:
    """How long a receiver that does not answer is left alone after `failures` attempts in succession."""
    return min(timedelta(seconds=5 << min(failures - 1, 10)), MAX_PAUSE)
