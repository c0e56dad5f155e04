"""The Celery app: queues for each role, five links, no result backend.

    torc.prepare → tif.stage_in → texam.launch → tof.stage_out → torc.finish

Delivery is at-least-once and messages may be lost; the store's `wake_at` makes up for it, so nothing here retries for long. Links are
acknowledged after they have run, prefetched one at a time, and redelivered if their worker dies. On Redis a role has a queue for each lane
(`poiesis.queue.lanes`), which kombu reads in turn.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from celery import Celery
from kombu import Queue as KombuQueue

from poiesis.domain.states import Role, Stage
from poiesis.queue.lanes import FROM, queue_name

LINK_OF: Final[Mapping[Stage, str]] = {
    Stage.ADMIT: "torc.prepare",
    Stage.PREPARE: "torc.prepare",
    Stage.STAGE_IN: "tif.stage_in",
    Stage.LAUNCH: "texam.launch",
    Stage.RUN: "texam.launch",
    Stage.STAGE_OUT: "tof.stage_out",
    Stage.FINISH: "torc.finish",
    Stage.CLEAN: "torc.finish",
    Stage.DONE: "torc.finish",
}
LINKS: Final = tuple(dict.fromkeys(LINK_OF.values()))
VISIBILITY_TIMEOUT_S: Final = 300  # a link takes seconds at most; Redis redelivers a message not acknowledged by then
SOCKET_TIMEOUT_S: Final = 5
MEMORY_POLL_S: Final = 0.01  # the in-memory transport polls; at 10 ms an idle process costs about 1 % of a core


def role_of(name: str) -> Role:
    """Of a link or a queue."""
    return Role(name.partition(".")[0])


def queues_of(app: Celery, roles: Iterable[Role]) -> list[str]:
    """The names of all queues of these roles."""
    wanted = frozenset(roles)
    return [name for name in app.amqp.queues if role_of(name) in wanted]


def make_app(broker_url: str) -> Celery:
    """Return a Celery app on `redis://…` or `memory://`. In memory there is one lane: the embedded service admits tasks by fair shares."""
    in_memory = broker_url.startswith("memory:")
    options: dict[str, Any] = (
        {"polling_interval": MEMORY_POLL_S}
        if in_memory
        else {
            "visibility_timeout": VISIBILITY_TIMEOUT_S,
            "socket_timeout": SOCKET_TIMEOUT_S,
            "socket_connect_timeout": SOCKET_TIMEOUT_S,
            "socket_keepalive": True,
            "health_check_interval": 25,
            "retry_on_timeout": True,
            # one list for each queue; by default there are four, all of which are read each time
            "priority_steps": [0],
        }
    )
    names = [queue_name(role, lane) for role in Role for lane in range(1 if in_memory else len(FROM))]
    app = Celery("poiesis", broker=broker_url, set_as_current=False)
    app.conf.update(
        task_queues=[KombuQueue(name, routing_key=name) for name in names],
        task_default_queue=Role.TORC.value,
        task_create_missing_queues=False,
        task_routes={link: {"queue": role_of(link).value} for link in LINKS},
        task_ignore_result=True,
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        task_serializer="json",
        accept_content=["json"],
        task_soft_time_limit=None,
        worker_prefetch_multiplier=1,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_send_task_events=False,  # three messages for each link; Flower asks for them while it runs
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_enable_remote_control=not in_memory,
        task_send_sent_event=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_pool_limit=20,
        broker_transport_options=options,
        task_publish_retry_policy={"max_retries": 1, "interval_start": 0, "interval_max": 0.2},
    )
    return app
