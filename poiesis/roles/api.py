"""The API role. With several workers each creates its own application from the environment; this process starts them again if they die, and
serves the sums of their metrics, which they share by files of a temporary directory (`poiesis.metrics`)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from poiesis.bootstrap import Bootstrap
from poiesis.metrics import SHARED
from poiesis.roles.health import HealthServer
from poiesis.roles.shutdown import end_within_after_signal


def main(environ: Mapping[str, str]) -> int:
    from poiesis.api.server import serve

    with Bootstrap.from_environ(environ) as parts:
        if parts.settings.api.workers > 1:
            return _serve_with_workers(parts)
        with HealthServer(parts.settings.listen, parts.api_ready):
            serve(_create(parts), parts.settings.api, parts.settings.shutdown_grace)
    return 0


def _serve_with_workers(parts: Bootstrap) -> int:
    from poiesis.api.server import serve

    with TemporaryDirectory(prefix="poiesis-metrics-") as directory:
        os.environ[SHARED] = directory  # of the workers
        with HealthServer(parts.settings.listen, parts.api_ready, metrics=Path(directory)):
            serve("poiesis.roles.api:make_app", parts.settings.api, parts.settings.shutdown_grace)
    return 0


def make_app() -> Any:
    """Return the application of one worker process; its adapters live as long as the process."""
    return _create(Bootstrap.from_environ(os.environ))


def _create(parts: Bootstrap) -> Any:
    from poiesis.api.app import create_app
    from poiesis.api.memory import freeze_started_objects

    def on_start() -> None:
        end_within_after_signal(parts.settings.shutdown_grace)
        freeze_started_objects()

    return create_app(parts.api_services(), on_start=on_start)
