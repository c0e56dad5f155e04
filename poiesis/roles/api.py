"""The API role. With several workers each creates its own application from the environment, and there are no metrics: a scrape would
reach one worker at random."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from typing import Any

from poiesis.bootstrap import Bootstrap
from poiesis.roles.health import HealthServer
from poiesis.roles.shutdown import end_within_after_signal


def main(environ: Mapping[str, str]) -> int:
    from poiesis.api.server import serve

    with Bootstrap.from_environ(environ) as parts:
        settings, grace = parts.settings.api, parts.settings.shutdown_grace
        if settings.workers > 1:
            serve("poiesis.roles.api:make_app", settings, grace)
            return 0
        health = HealthServer(parts.settings.listen, parts.api_ready)
        health.start()
        try:
            serve(_create(parts), settings, grace)
        finally:
            health.close()
    return 0


def make_app() -> Any:
    """Return the application of one worker process; its adapters live as long as the process."""
    return _create(Bootstrap.from_environ(os.environ))


def _create(parts: Bootstrap) -> Any:
    from poiesis.api.app import create_app

    return create_app(parts.api_services(), on_start=partial(end_within_after_signal, parts.settings.shutdown_grace))
