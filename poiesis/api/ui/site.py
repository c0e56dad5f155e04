"""What the modules of pages share: registration, rendering, the user, CSRF tokens, errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, cast

import flask
from werkzeug.exceptions import HTTPException

from poiesis import __version__
from poiesis.api.errors import Refused, respond
from poiesis.api.extensions.context import Context
from poiesis.api.requests import REQUEST, RequestRecord
from poiesis.api.ui.assets import assets
from poiesis.api.ui.formats import FILTERS
from poiesis.api.ui.visit import VISIT, Visit, is_csrf_token
from poiesis.api.users import User
from poiesis.observability import current_request_id

Page = Callable[..., Any]
CSRF_FIELD: Final = "csrf_token"
MAX_FORM_BYTES: Final = 512 * 1024
CSRF_HEADER: Final = "X-CSRF-Token"
_ERROR_TITLES: Final = {
    400: "This request is not valid",
    403: "Not allowed",
    404: "Not found",
    409: "Not possible now",
    413: "Too large",
    429: "Too many requests",
    503: "Not available right now",
}
HEADERS: Final = {
    "Content-Security-Policy": "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self' data:",
            "connect-src 'self'",
            "form-action 'self'",
            "base-uri 'none'",
            "frame-ancestors 'none'",
        )
    ),
    "X-Frame-Options": "DENY",
    # browsers send `Origin: null` with forms of pages that have `no-referrer`
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=(), payment=(), usb=()",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True)
class Link:
    """An entry of the navigation."""

    title: str
    path: str
    order: int

    @property
    def is_here(self) -> bool:
        here = flask.request.path
        return here == self.path or here.startswith(self.path + "/")


class Ui:
    """The dashboard while it is built. `services`: what pages call."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.services = context.services
        self.blueprint = flask.Blueprint("ui", __name__, None, None, "templates", url_prefix="/ui")
        self.start = "/ui/tasks"
        """The page to which /ui redirects."""
        self._links: list[Link] = []
        self.blueprint.before_request(_refuse)
        self.blueprint.after_request(_with_headers)
        self.blueprint.register_error_handler(Exception, _error_page)
        self.blueprint.context_processor(self._shared)
        for name, function in FILTERS.items():
            self.blueprint.add_app_template_filter(function, name)

    def add_link(self, title: str, path: str, *, order: int) -> None:
        """Add an entry of the navigation."""
        self._links.append(Link(title, path, order))

    def get(self, path: str) -> Callable[[Page], Page]:
        """Register a page that reads."""
        return self._route(path, "GET")

    def post(self, path: str) -> Callable[[Page], Page]:
        """Register a page that changes something: for users with the right to write, and forms with the CSRF token."""
        return self._route(path, "POST")

    def _route(self, path: str, method: str) -> Callable[[Page], Page]:
        def add(page: Page) -> Page:
            name = f"{page.__module__.rpartition('.')[2]}-{page.__name__}"
            self.blueprint.add_url_rule(path, name, page, methods=[method])
            return page

        return add

    def finish(self) -> None:
        """Add the root, and the page for all other paths."""

        def root() -> Any:
            return flask.redirect(self.start, 303)

        def missing(rest: str) -> Any:
            raise Refused(404, f"There is no page at /ui/{rest[:200]}.")

        self.blueprint.add_url_rule("", "root", root)
        self.blueprint.add_url_rule("/", "root-slash", root)
        self.blueprint.add_url_rule("/<path:rest>", "missing", missing, methods=["GET", "POST"])

    def _shared(self) -> dict[str, Any]:
        """Return what every template gets."""
        visit = current_visit()
        return {
            "user": visit.user,
            "visit": visit,
            "csrf_token": visit.csrf,
            "may_write": visit.user is not None and "write" in visit.user.scopes,
            "links": sorted(self._links, key=lambda link: link.order),
            "service": self.services.service,
            "static": assets().url,
            "now": self.services.tasks.clock.now(),
            "version": __version__,
        }


def page(template: str, *, status: int = 200, **context: Any) -> flask.Response:
    """A page by its template, with the user, the CSRF token and the navigation."""
    return flask.make_response(flask.render_template(template, **context), status)


def current_visit() -> Visit:
    return cast(Visit, _scope()[VISIT])


def current_user() -> User:
    """The user of the request: pages other than the login have one."""
    user = current_visit().user
    assert user is not None, "the gate refuses requests without a user"
    return user


def current_request() -> RequestRecord:
    """What the audit records of the request."""
    found: RequestRecord = _scope()[REQUEST]
    return found


def _scope() -> dict[str, Any]:
    scope: dict[str, Any] = flask.request.environ["asgi.scope"]
    return scope


def _refuse() -> None:
    """Raises: what the gate refuses, and requests that change something without the right or the token."""
    visit = current_visit()
    if visit.error is not None:
        raise visit.error
    record = current_request()
    record.operation, record.task = flask.request.endpoint, (flask.request.view_args or {}).get("task_id")
    flask.request.max_content_length = MAX_FORM_BYTES
    if flask.request.method not in ("GET", "HEAD", "OPTIONS"):
        check_csrf(visit, flask.request.form.get(CSRF_FIELD) or flask.request.headers.get(CSRF_HEADER, ""))
        if visit.user is not None and "write" not in visit.user.scopes:
            raise Refused(403, "these credentials lack the scope write", "insufficient_scope")
    if visit.user is not None and "read" not in visit.user.scopes:
        raise Refused(403, "these credentials lack the scope read", "insufficient_scope")


def check_csrf(visit: Visit, token: str) -> None:
    """Raises: Refused."""
    if not is_csrf_token(token, visit.csrf):
        raise Refused(
            403,
            "This form is out of date: you have logged in or out since it was opened. Go back, reload the page and try again.",
            "csrf",
        )


def _error_page(error: Exception) -> flask.Response:
    if isinstance(error, HTTPException):
        error = Refused(error.code or 500, error.description or error.name)
    answer = respond(error)
    _scope()[REQUEST].error = answer.code
    document = json.loads(bytes(answer.body))
    title = _ERROR_TITLES.get(answer.status_code, "Something went wrong")
    response = page(
        "error.html", status=answer.status_code, title=title, error=document, request_id=current_request_id()
    )
    if "retry-after" in answer.headers:
        response.headers["Retry-After"] = answer.headers["retry-after"]
    return response


def _with_headers(response: flask.Response) -> flask.Response:
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    return response
