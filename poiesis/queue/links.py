"""The five links: each one call of `reconcile` for its role's stages.

After it the chain goes on to the link whose stage is due. When nobody has to act now (a pod runs, a retry waits), the rest of the chain is
dropped: the monitor publishes it again when its time has come.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from celery import Celery
from celery import Task as CeleryTask

from poiesis.domain.errors import PoiesisError, QueueUnavailable, UnknownTask
from poiesis.domain.states import Role
from poiesis.domain.task import TaskId
from poiesis.observability import LINK_FAILURES, LINK_SECONDS
from poiesis.ports.queue import Queue
from poiesis.queue.app import LINK_OF, LINKS, role_of
from poiesis.services.orchestrator import Orchestrator, stages_of

log = logging.getLogger(__name__)


def register(app: Celery, orchestrator: Orchestrator, queue: Queue) -> None:
    """Make `app` able to run all links with this orchestrator; which of them it gets depends on the queues it consumes."""
    for index, name in enumerate(LINKS):
        _register(app, index, name, orchestrator, queue)


def _register(app: Celery, index: int, name: str, orchestrator: Orchestrator, queue: Queue) -> None:
    role = role_of(name)

    def link(self: CeleryTask[Any, Any], task_id: str) -> None:
        _run(self, index, name, role, TaskId(task_id), orchestrator, queue)

    app.task(name=name, bind=True, shared=False)(link)


def _run(
    link: CeleryTask[Any, Any],
    index: int,
    name: str,
    role: Role,
    task_id: TaskId,
    orchestrator: Orchestrator,
    queue: Queue,
) -> None:
    began = time.monotonic()
    due = None
    failures = LINK_FAILURES.labels(name)
    try:
        due = orchestrator.reconcile(task_id, stages_of(role), tails=True).due
    except UnknownTask:
        log.warning("link_of_unknown_task", extra={"link": name, "task_id": task_id})
    except PoiesisError as error:  # resync publishes again
        failures.inc()
        log.warning("link_failed", extra={"link": name, "task_id": task_id, "error": str(error)})
    except Exception as error:
        failures.inc()
        log.exception("link_bug", extra={"link": name, "task_id": task_id})
        orchestrator.give_up(task_id, error)
    following = None if due is None else LINK_OF[due]
    _keep_from(link.request, following if following is not None and following > index else None)
    if due is not None and following is not None and following <= index:
        try:
            queue.publish(task_id, due)
        except QueueUnavailable as error:  # resync publishes
            log.warning("publish_failed", extra={"link": name, "task_id": task_id, "error": str(error)})
    seconds = time.monotonic() - began
    LINK_SECONDS.labels(name).observe(seconds)
    extra = {"link": name, "task_id": task_id, "due": due and due.value, "seconds": round(seconds, 4)}
    log.info("link_done", extra=extra)


def _keep_from(request: Any, following: int | None) -> None:
    """Drop the links of the running chain that come before LINKS[following], or all of them."""
    rest = request.chain or []  # the next link is the last element
    if following is None:
        request.chain = None
        return
    while rest and rest[-1]["task"] != LINKS[following]:
        rest.pop()
    request.chain = rest or None
