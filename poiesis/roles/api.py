"""The API role. With several workers each makes its own application, from the environment, and there are no metrics: a scrape would
meet one of them at a time."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from poiesis.bootstrap import Bootstrap
from poiesis.roles.health import HealthServer


def main(environ: Mapping[str, str]) -> int:
    from poiesis.api.app import create_app
    from poiesis.api.server import serve

    with Bootstrap.from_environ(environ) as parts:
        settings = parts.settings.api
        if settings.workers > 1:
            serve("poiesis.roles.api:make_app", settings)
            return 0
        health = HealthServer(parts.settings.listen, parts.api_ready)
        health.start()
        try:
            serve(create_app(parts.api_services()), settings)
        finally:
            health.close()
    return 0


def make_app() -> Any:
    """The application of one worker process; its adapters live as long as the process."""
    from poiesis.api.app import create_app

    return create_app(Bootstrap.from_environ(os.environ).api_services())
