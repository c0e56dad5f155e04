"""The web pages, by Flask: the start page, beside which the dashboard is mounted."""

from __future__ import annotations

import json
from typing import Final

import flask

from poiesis import __version__
from poiesis.api.views import sentence
from poiesis.config import ApiSettings, ServiceSettings

SAMPLE: Final = {
    "name": "hello",
    "executors": [{"image": "docker.io/library/alpine:3.20", "command": ["echo", "hello from a task"]}],
}


def create_pages(service: ServiceSettings, api: ApiSettings, describe: str) -> flask.Flask:
    pages = flask.Flask(__name__, static_folder=None)
    pages.url_map.merge_slashes = False  # its redirects would have the address of `Host`

    @pages.get("/")
    def start() -> str:
        return flask.render_template(
            "start.html",
            service=service,
            about=f"{sentence(service.description)} {describe}".strip(),
            version=__version__,
            has_dashboard=api.dashboard.enabled,
            credentials=curl_credentials(first_method(api)),
            sample=json.dumps(SAMPLE),
            base=flask.request.url_root.rstrip("/") + "/ga4gh/tes/v1",
        )

    return pages


def compile_templates(pages: flask.Flask) -> None:
    """Compile all templates, so that the first page of a process is as quick as the next ones; measured, docs/performance.md."""
    for name in pages.jinja_env.list_templates():
        pages.jinja_env.get_template(name)


def first_method(api: ApiSettings) -> str:
    """Empty: there is no authentication."""
    return next(iter(api.auth), "")


def curl_credentials(method: str) -> str:
    """Return the arguments for curl's command line. They name variables of the shell."""
    bearer = '-H "Authorization: Bearer $TES_TOKEN" '
    basic, key = '-u "$TES_USER:$TES_PASSWORD" ', '-H "X-API-Key: $TES_KEY" '
    return {"": "", "basic": basic, "bearer": bearer, "oidc": bearer, "api_key": key}[method]
