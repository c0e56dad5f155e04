"""Celery Flower on the service's broker, for operators; tasks do not depend on it."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from poiesis.config import Settings, read
from poiesis.domain.errors import ConfigurationError


def main(environ: Mapping[str, str]) -> int:
    """Replace this process by Flower, which reads FLOWER_… variables itself."""
    from poiesis.bootstrap import ADAPTER_PREFIXES

    try:
        import flower  # noqa: F401
    except ImportError:
        raise ConfigurationError("Flower is not installed: pip install 'poiesis[flower]'") from None
    settings = read(Settings, environ, others=ADAPTER_PREFIXES)
    own = {k: v for k, v in environ.items() if not k.startswith("POIESIS_")}
    own["CELERY_BROKER_URL"] = settings.redis_uri  # not on the command line, which other users of the node can read
    port = settings.listen.rpartition(":")[2]
    os.execve(sys.executable, [sys.executable, "-m", "celery", "flower", f"--port={own.get('FLOWER_PORT', port)}"], own)
