"""`main()` of each process: build what the role needs from the environment, run until SIGTERM."""

from __future__ import annotations

from collections.abc import Mapping


def run_role(role: str, environ: Mapping[str, str]) -> int:
    """Run one role to its end; the exit code. A role imports only what it needs."""
    if role == "api":
        from poiesis.roles import api

        return api.main(environ)
    if role == "monitor":
        from poiesis.roles import monitor

        return monitor.main(environ)
    if role == "flower":
        from poiesis.roles import flower

        return flower.main(environ)
    from poiesis.domain.states import Role
    from poiesis.roles import worker

    return worker.main(Role(role), environ)
