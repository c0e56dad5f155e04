"""The Queue port on Celery."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from celery import Celery, chain
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from poiesis.domain.errors import QueueUnavailable
from poiesis.domain.states import ROLE_OF, Stage
from poiesis.domain.task import TaskId
from poiesis.queue.app import LINK_OF, LINKS

AWAY_S: Final = 2.0


class CeleryQueue:
    """Publishes chains of links. Safe to use from any thread.

    A broker that does not answer costs its callers seconds, and the API has few threads: for AWAY_S after a failure nothing is tried.
    What is not published meanwhile, resync publishes.
    """

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._away_until = 0.0  # on the monotonic clock

    def publish(self, task_id: TaskId, stage: Stage) -> None:
        if time.monotonic() < self._away_until:
            raise QueueUnavailable("the queue did not answer a moment ago")
        links = LINKS[LINK_OF[stage] :]
        try:
            with _answers():
                chain(*(self._app.signature(link, args=(task_id,), immutable=True) for link in links)).apply_async(
                    ignore_result=True
                )
        except QueueUnavailable:
            self._away_until = time.monotonic() + AWAY_S
            raise

    def waiting(self, stage: Stage) -> int:
        with _answers(), self._app.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, timeout=5)
            channel: Any = connection.default_channel
            try:
                declared = channel.queue_declare(queue=ROLE_OF[stage].value, passive=True)
            except connection.channel_errors:  # Redis knows no empty lists
                return 0
            return int(declared.message_count)

    def ready(self) -> None:
        with _answers(), self._app.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, timeout=5)
        self._away_until = 0.0

    def close(self) -> None:
        self._app.close()


@contextmanager
def _answers() -> Iterator[None]:
    try:
        yield
    except (OperationalError, RedisError, OSError) as error:
        raise QueueUnavailable(f"the queue does not answer: {type(error).__name__}") from error
