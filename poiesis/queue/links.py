"""The five links: each is one call of `reconcile` for its role's stages.

A link then publishes the stage that is due, unless Celery continues with exactly that link: it is the next one of the chain that the
link came with. Nothing is published while the task waits (a pod runs, a retry backs off): the monitor publishes later.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from celery import Celery
from celery import Task as CeleryTask

from poiesis import tracing
from poiesis.domain.errors import PoiesisError, QueueUnavailable, UnknownTask
from poiesis.domain.task import TaskId
from poiesis.metrics import LINK_FAILURES, LINK_SECONDS
from poiesis.observability import bind_task
from poiesis.ports.queue import Queue
from poiesis.queue.app import LINK_OF, LINKS, role_of
from poiesis.services.orchestrator import Orchestrator, Reconciled, stages_of

log = logging.getLogger(__name__)


def register(app: Celery, orchestrator: Orchestrator, queue: Queue) -> None:
    """Make `app` able to run all links with this orchestrator; which of them it receives depends on the queues it consumes."""
    for name in LINKS:
        _register(app, name, orchestrator, queue)


def _register(app: Celery, name: str, orchestrator: Orchestrator, queue: Queue) -> None:
    def link(self: CeleryTask[Any, Any], task_id: str) -> None:
        chain: Any = self.request.chain  # reversed: the next link is the last element
        with bind_task(task_id):
            _run(name, TaskId(task_id), chain[-1]["task"] if chain else None, orchestrator, queue)

    app.task(name=name, bind=True, shared=False)(link)


def _run(name: str, task_id: TaskId, following: str | None, orchestrator: Orchestrator, queue: Queue) -> None:
    """`following`: the link that Celery runs after this one."""
    began, began_ns = time.monotonic(), time.time_ns()
    reconciled = _reconcile(name, task_id, orchestrator)
    due = reconciled.due if reconciled is not None else None
    if reconciled is not None and due is not None and LINK_OF[due] != following:
        try:
            queue.publish(task_id, due, owner=reconciled.task.owner)
        except QueueUnavailable as error:  # resync publishes it
            log.warning("publish_failed", extra={"link": name, "error": str(error)})
    seconds = time.monotonic() - began
    LINK_SECONDS.labels(name).observe(seconds)
    reason = reconciled.reason.value if reconciled is not None else "failed"
    if reconciled is not None:
        tracing.link(f"link {name}", reconciled.task, began_ns, reason)
    extra = {"link": name, "reason": reason, "due": due and due.value, "seconds": round(seconds, 4)}
    log.info("link_done", extra=extra)


def _reconcile(name: str, task_id: TaskId, orchestrator: Orchestrator) -> Reconciled | None:
    try:
        return orchestrator.reconcile(task_id, stages_of(role_of(name)), tails=True)
    except UnknownTask:
        log.warning("link_of_unknown_task", extra={"link": name})
    except PoiesisError as error:  # resync publishes the link again
        LINK_FAILURES.labels(name).inc()
        log.warning("link_failed", extra={"link": name, "error": str(error)})
    except Exception as error:
        LINK_FAILURES.labels(name).inc()
        log.exception("link_bug", extra={"link": name})
        orchestrator.give_up(task_id, error)
    return None
