"""The login page. What it sends is handled by the gate."""

from __future__ import annotations

from typing import Any

import flask

from poiesis.api.ui.gate import next_path
from poiesis.api.ui.site import Ui, current_visit, page


def register(ui: Ui) -> None:
    @ui.get("/login")
    def login() -> Any:
        target = next_path(flask.request.args.get("next", ""))
        if current_visit().user is not None:
            return flask.redirect(target, 303)
        return page("login.html", next=target)
