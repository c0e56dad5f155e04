"""The Queue port on Celery."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

from celery import Celery, Signature, chain
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from poiesis.domain.errors import QueueUnavailable
from poiesis.domain.states import ROLE_OF, Role, Stage
from poiesis.domain.task import TaskId
from poiesis.queue.app import LINK_OF, queues_of, role_of
from poiesis.queue.lanes import Lanes, queue_name

PAUSE_S: Final = 2.0


class CeleryQueue:
    """Publishes links. Safe to use from any thread.

    A broker that does not answer costs its callers seconds, and the API has few threads: for PAUSE_S after a failure no call is tried.
    Resync publishes what was not published meanwhile.
    """

    def __init__(self, app: Celery, lanes: Lanes | None = None) -> None:
        self._app = app
        self._has_lanes = len(queues_of(app, [Role.TEXAM])) > 1
        self._lanes = lanes or Lanes()
        self._paused_until = 0.0  # on the monotonic clock

    def begin(self, task_id: TaskId, stages: Sequence[Stage], *, owner: str | None = None) -> None:
        lane = self._lane(owner, stages[0])
        first, *rest = (self._link(task_id, stage, lane) for stage in stages)
        self._publish(chain(first.set(task_id=task_id), *rest), task_id)

    def publish(self, task_id: TaskId, stage: Stage, *, owner: str | None = None) -> None:
        self._publish(self._link(task_id, stage, self._lane(owner, stage)), task_id)

    def _lane(self, owner: str | None, stage: Stage) -> int:
        return self._lanes.take(owner, stage) if self._has_lanes else 0

    def _link(self, task_id: TaskId, stage: Stage, lane: int) -> Signature[Any]:
        link = LINK_OF[stage]
        return self._app.signature(link, args=(task_id,), immutable=True, queue=queue_name(role_of(link), lane))

    def _publish(self, links: Signature[Any], task_id: TaskId) -> None:
        """The first link of a task has the task's id, which is the root id of all its links: Flower shows them as one."""
        if time.monotonic() < self._paused_until:
            raise QueueUnavailable("the queue did not respond to a recent call")
        try:
            with _answers():
                links.apply_async(root_id=task_id, ignore_result=True)
        except QueueUnavailable:
            self._paused_until = time.monotonic() + PAUSE_S
            raise

    def waiting(self, stage: Stage) -> int:
        with _answers(), self._app.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, timeout=5)
            channel: Any = connection.default_channel
            waiting = 0
            for name in queues_of(self._app, [ROLE_OF[stage]]):
                with suppress(*connection.channel_errors):  # Redis has no empty lists
                    waiting += int(channel.queue_declare(queue=name, passive=True).message_count)
            return waiting

    def ready(self) -> None:
        with _answers(), self._app.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, timeout=5)
        self._paused_until = 0.0

    def close(self) -> None:
        self._app.close()


@contextmanager
def _answers() -> Iterator[None]:
    try:
        yield
    except (OperationalError, RedisError, OSError) as error:
        raise QueueUnavailable(f"the queue does not respond: {type(error).__name__}") from error
