"""The dashboard at /ui: pages rendered by Flask, usable without JavaScript; htmx and events make them live (docs/dashboard.md).

    gate       in front of the pages, in the event loop: the user of a request, static files
    entrance   logging in and out; `session`: what a login leaves
    site       what the modules of pages share: registration, rendering, CSRF tokens, errors
    one module for each topic: `tasks`, …

A topic has one function `register(ui)`, which adds its pages with `ui.get` and `ui.post`. To add a topic: a module here, its name in
`_TOPICS`, a template in `templates/` that extends `base.html`. Pages call the services of the extensions (`ui.services`) in process.
"""

from __future__ import annotations

from typing import Final

from starlette.types import ASGIApp

from poiesis.api.auth import Authenticator
from poiesis.api.extensions.context import Context
from poiesis.api.ui import login, logs, new_task, overview, task, tasks
from poiesis.api.ui.entrance import Entrance
from poiesis.api.ui.gate import Gate
from poiesis.api.ui.session import Sessions
from poiesis.api.ui.site import Ui

_TOPICS: Final = (login, overview, tasks, task, logs, new_task)


class Dashboard:
    """All of it, for the application: `blueprint` has the pages, `sessions` those of the browsers."""

    def __init__(self, context: Context, authenticator: Authenticator) -> None:
        services = context.services
        self._services = services
        self._authenticator = authenticator
        self.sessions = Sessions(services.sessions, authenticator, services.api, services.tasks.clock)
        ui = Ui(context)
        for topic in _TOPICS:
            topic.register(ui)
        ui.finish()
        self.blueprint = ui.blueprint

    def gate(self, pages: ASGIApp) -> ASGIApp:
        """`pages` behind the gate."""
        return Gate(
            pages,
            authenticator=self._authenticator,
            sessions=self.sessions,
            entrance=Entrance(self._services.api, self._authenticator, self.sessions),
            limiter=self._services.limiter,
        )

    def close(self) -> None:
        self.sessions.close()
