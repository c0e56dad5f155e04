"""The Queue port on Celery."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from celery import Celery, Signature, chain
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from poiesis.domain.errors import QueueUnavailable
from poiesis.domain.states import ROLE_OF, Stage
from poiesis.domain.task import TaskId
from poiesis.queue.app import LINK_OF

PAUSE_S: Final = 2.0


class CeleryQueue:
    """Publishes links. Safe to use from any thread.

    A broker that does not answer costs its callers seconds, and the API has few threads: for PAUSE_S after a failure no call is tried.
    Resync publishes what was not published meanwhile.
    """

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._paused_until = 0.0  # on the monotonic clock

    def begin(self, task_id: TaskId, stages: Sequence[Stage]) -> None:
        first, *rest = (self._app.signature(LINK_OF[stage], args=(task_id,), immutable=True) for stage in stages)
        self._publish(chain(first.set(task_id=task_id), *rest), task_id)

    def publish(self, task_id: TaskId, stage: Stage) -> None:
        self._publish(self._app.signature(LINK_OF[stage], args=(task_id,), immutable=True), task_id)

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
            try:
                declared = channel.queue_declare(queue=ROLE_OF[stage].value, passive=True)
            except connection.channel_errors:  # Redis has no empty lists
                return 0
            return int(declared.message_count)

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
