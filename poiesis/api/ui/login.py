"""The login page. What it sends is handled by `entrance`."""

from __future__ import annotations

from typing import Any

import flask

from poiesis.api.ui.entrance import MESSAGES, PROVIDERS
from poiesis.api.ui.site import Ui, current_visit, page
from poiesis.api.ui.visit import next_path


def register(ui: Ui) -> None:
    settings = ui.services.api
    methods = frozenset(settings.auth)
    providers = _providers(settings.oidc_issuers) if "oidc" in methods else []

    @ui.get("/login")
    def login() -> Any:
        target = next_path(flask.request.args.get("next", ""))
        if current_visit().user is not None:
            return flask.redirect(target, 303)
        code = flask.request.args.get("error", "")
        return page(
            "login.html",
            next=target,
            message=MESSAGES.get(code),
            is_good=code == "out",
            by_password="basic" in methods,
            by_key=bool(methods & {"api_key", "bearer"}),
            providers=providers,
        )


def _providers(issuers: str) -> list[tuple[str, str]]:
    """Titles and addresses of the logins by a provider."""
    from poiesis.api.oidc.settings import read_issuers

    return [(i.title or i.name, PROVIDERS + i.name) for i in read_issuers(issuers) if i.browser_client]
