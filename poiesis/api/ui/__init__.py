"""The dashboard at /ui: pages rendered by Flask, usable without JavaScript; htmx and events make them live (docs/dashboard.md).

    gate       in front of the pages, in the event loop: the user of a request, static files, login and logout
    site       what the modules of pages share: registration, rendering, CSRF tokens, errors
    one module for each topic: `tasks`, …

A topic has one function `register(ui)`, which adds its pages with `ui.get` and `ui.post`. To add a topic: a module here, its name in
`_TOPICS`, a template in `templates/` that extends `base.html`. Pages call the services of the extensions (`ui.services`) in process.
"""

from __future__ import annotations

from typing import Final

import flask

from poiesis.api.extensions.context import Context
from poiesis.api.ui import login, task, tasks
from poiesis.api.ui.site import Ui

_TOPICS: Final = (login, tasks, task)


def create_blueprint(context: Context) -> flask.Blueprint:
    """All pages of the dashboard."""
    ui = Ui(context)
    for topic in _TOPICS:
        topic.register(ui)
    ui.finish()
    return ui.blueprint
