"""TOrc, TIF, TExAM and TOF: a Celery worker on the role's queue, and a server for health and metrics."""

from __future__ import annotations

from collections.abc import Mapping

from poiesis.bootstrap import Bootstrap
from poiesis.domain.states import Role
from poiesis.queue.links import register
from poiesis.queue.worker import run_worker
from poiesis.roles.health import HealthServer
from poiesis.roles.shutdown import end_within


def main(role: Role, environ: Mapping[str, str]) -> int:
    with Bootstrap.from_environ(environ, role.value) as parts:
        register(parts.celery, parts.orchestrator, parts.queue)
        with HealthServer(parts.settings.listen, parts.ready):
            return run_worker(
                parts.celery,
                [role],
                threads=parts.settings.role_threads,
                name=role.value,
                on_shutdown=lambda: end_within(parts.settings.shutdown_grace),
            )
