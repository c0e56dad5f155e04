"""`main()` of each process: build what the role needs from the environment, run until SIGTERM."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module


def run_role(role: str, environ: Mapping[str, str]) -> int:
    """Run one role to its end; the exit code. A role imports only what it needs."""
    if role in ("api", "monitor", "notifier", "flower"):
        code: int = import_module(f"poiesis.roles.{role}").main(environ)
        return code
    from poiesis.domain.states import Role
    from poiesis.roles import worker

    return worker.main(Role(role), environ)
