"""The application: Connexion's routes and validation around our handlers, Flask's pages beside them.

    server → Requests → CORS → Gateway, errors ─┬─ /healthz, /readyz
                                     ├─ other paths: Flask pages, or 404
                                     └─ Swagger UI → routing by the spec → Authentication → validation by the spec → handler

Connexion's own `AsyncOperation` rebuilds its decorators for each request and converts parameters into arguments a second time;
`_Operation` calls the handler with the values that validation has read (docs/adr/0002).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec
import yaml
from a2wsgi import WSGIMiddleware
from connexion import AsyncApp
from connexion.apps.asynchronous import AsyncApi
from connexion.json_schema import resolve_refs
from connexion.middleware.lifespan import LifespanMiddleware
from connexion.middleware.request_validation import RequestValidationMiddleware
from connexion.middleware.response_validation import ResponseValidationMiddleware
from connexion.middleware.routing import RoutingMiddleware
from connexion.middleware.swagger_ui import SwaggerUIAPI, SwaggerUIMiddleware
from connexion.resolver import Resolver
from flask import Flask
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

import poiesis
from poiesis.api.auth import Authenticator
from poiesis.api.event_feed import EventFeed
from poiesis.api.extensions import operations
from poiesis.api.extensions.context import Context, Handler
from poiesis.api.handlers import Handlers
from poiesis.api.memory import limit_kept_memory
from poiesis.api.middleware import BASE_PATHS, EXTENSIONS_PATH, Authentication, Cors, Gateway
from poiesis.api.pages import compile_templates, create_pages
from poiesis.api.parameters import EXTENSION_VALIDATORS
from poiesis.api.requests import Requests
from poiesis.api.services import Services
from poiesis.api.streams import StreamLimits
from poiesis.api.threads import Threads
from poiesis.api.validation import VALIDATORS, TaskReader
from poiesis.api.views import Views
from poiesis.config import ApiSettings

if TYPE_CHECKING:
    from poiesis.api.ui import Dashboard

THREADS: Final = 16
"""Concurrent service calls of one process: they block on the store, where more of them would only queue."""
PAGE_THREADS: Final = 4


def create_app(
    services: Services,
    *,
    validate_responses: bool = False,
    on_start: Callable[[], None] = lambda: None,
) -> AsyncApp:
    """Return the ASGI application.

    `validate_responses`: check responses against the spec too (tests). `on_start` is called by the
    server in its event loop's thread, before the first request.

    Raises: ConfigurationError.
    """
    threads = Threads(THREADS, "api")
    authenticator = Authenticator(services.api, services.keys)
    specification, extended = load_specification(), load_specification("poiesis.openapi.yaml")
    feed = EventFeed(services.events)
    reader = TaskReader(resolve_refs(specification)["components"]["schemas"]["tesTask"])
    context = Context(services, Views(services.api), threads, reader, feed, StreamLimits(services.api))
    handlers = Handlers(context)

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        limit_kept_memory()
        on_start()
        threads.submit(compile_templates, flask_app)
        yield
        feed.close()
        if dashboard is not None:
            dashboard.close()
        await authenticator.close()
        threads.shutdown(wait=True, cancel_futures=True)
        await services.close()

    dashboard = _dashboard(context, authenticator)
    flask_app = create_pages(services.service, services.api, services.describe)
    gateway = partial(
        Gateway,
        pages=_pages(flask_app, dashboard),
        ready=services.ready,
        threads=threads,
        settings=services.api,
        limiter=services.limiter,
        operations=_paths(specification, extended),
    )
    requests = partial(Requests, audit=services.audit, routes=_routes(specification, extended))
    app = AsyncApp(
        __name__,
        lifespan=lifespan,
        middlewares=_middlewares(services, requests, gateway, authenticator, dashboard, checked=validate_responses),
        resolver=Resolver(lambda operation_id: getattr(handlers, operation_id)),
        validator_map=VALIDATORS,
        validate_responses=validate_responses,
    )
    app._middleware_app.api_cls = _Api
    for base_path in BASE_PATHS:
        app.add_api(specification, base_path=base_path)
    resolver = Resolver(operations(context).__getitem__)
    app.add_api(extended, base_path=EXTENSIONS_PATH, resolver=resolver, validator_map=EXTENSION_VALIDATORS)
    return app


def _dashboard(context: Context, authenticator: Authenticator) -> Dashboard | None:
    """None where the site has none: then nothing of it is imported."""
    if not context.services.api.dashboard.enabled:
        return None
    from poiesis.api.ui import Dashboard

    return Dashboard(context, authenticator)


def _pages(flask_app: Flask, dashboard: Dashboard | None) -> ASGIApp:
    """Flask's pages, with the dashboard where the site has it."""
    if dashboard is not None:
        flask_app.register_blueprint(dashboard.blueprint)
    pages = cast(ASGIApp, WSGIMiddleware(cast(Any, flask_app.wsgi_app), workers=PAGE_THREADS))
    return pages if dashboard is None else dashboard.gate(pages)


def _middlewares(
    services: Services,
    requests: Any,
    gateway: Any,
    authenticator: Authenticator,
    dashboard: Dashboard | None,
    *,
    checked: bool,
) -> list[Any]:
    """Outermost first. `checked`: responses are checked against the spec."""
    return [
        requests,
        *_cors(services.api),
        gateway,
        _Documents,
        RoutingMiddleware,
        partial(
            Authentication,
            authenticator=authenticator,
            limiter=services.limiter,
            browser_user=None if dashboard is None else dashboard.sessions.api_visitor,
        ),
        RequestValidationMiddleware,
        *((ResponseValidationMiddleware,) if checked else ()),
        LifespanMiddleware,
    ]


def _paths(specification: Mapping[str, Any], extended: Mapping[str, Any]) -> dict[str, Any]:
    """The path items of both APIs, by their whole paths."""
    documents = [*((base, specification) for base in BASE_PATHS), (EXTENSIONS_PATH, extended)]
    return {base + path: item for base, document in documents for path, item in document["paths"].items()}


def _routes(specification: Mapping[str, Any], extended: Mapping[str, Any]) -> dict[str, str]:
    """The path of each operation, the same for both base paths of TES."""
    return {
        operation["operationId"]: base + path
        for base, document in ((BASE_PATHS[0], specification), (EXTENSIONS_PATH, extended))
        for path, item in document["paths"].items()
        for operation in item.values()
        if isinstance(operation, dict) and "operationId" in operation
    }


def _cors(settings: ApiSettings) -> tuple[partial[Cors], ...]:
    """The middleware for web pages of other origins, where the site allows any."""
    if not settings.cors_origins:
        return ()
    cors = partial(
        Cors,
        allow_origins=settings.cors_origins,
        allow_methods=["GET", "POST", "PUT", "DELETE"],
        allow_headers=[
            "Authorization",
            "Content-Type",
            "X-API-Key",
            "Idempotency-Key",
            "Last-Event-ID",
            "X-Request-Id",
        ],
        expose_headers=["Retry-After", "WWW-Authenticate", "X-Request-Id"],
    )
    return (cors,)


def load_specification(name: str = "tes.openapi.yaml") -> dict[str, Any]:
    """Return a document of `specs/`: inside an installed package, beside the package in a checkout."""
    package = Path(poiesis.__file__).parent
    for directory in (package / "specs", package.parent / "specs"):
        if (path := directory / name).is_file():
            document: dict[str, Any] = yaml.load(
                path.read_bytes(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)
            )
            return document
    raise FileNotFoundError(f"incomplete package: missing {name}")


class _Operation:
    """One operation of a specification: the document of its handler as JSON, or the response of the handler as it is."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        result = await self._handler(scope)
        if not isinstance(result, Response):
            result = Response(msgspec.json.encode(result), media_type="application/json")
        await result(scope, receive, send)


class _Api(AsyncApi):  # type: ignore[misc]
    def make_operation(self, operation: Any) -> _Operation:
        return _Operation(operation.function)


class _DocumentsApi(SwaggerUIAPI):  # type: ignore[misc]
    def _spec_for_prefix(self, request: Any) -> dict[str, Any]:
        """The document as written. Connexion's has every reference replaced, which generators of clients cannot give names to."""
        document: dict[str, Any] = self.specification.with_base_path(self._base_path_for_prefix(request)).raw
        return document


class _Documents(SwaggerUIMiddleware):  # type: ignore[misc]
    """Serves `openapi.json`, `openapi.yaml` and the Swagger UI."""

    def add_api(self, specification: Any, base_path: str | None = None, **options: Any) -> None:
        api = _DocumentsApi(specification, base_path=base_path, default=self.default_fn, **options)
        self.router.mount(api.base_path, app=api.router)
