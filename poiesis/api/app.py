"""The application: Connexion's routes and validation around our handlers, Flask's pages beside them.

    server → CORS → Gateway, errors ─┬─ /healthz, /readyz
                                     ├─ other paths: Flask pages, or 404
                                     └─ Swagger UI → routing by the spec → Authentication → validation by the spec → handler

Connexion's own `AsyncOperation` rebuilds its decorators for each request and converts parameters into arguments a second time;
`_Operation` calls the handler with the values that validation has read (docs/adr/0002).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, cast

import flask
import msgspec
import yaml
from a2wsgi import WSGIMiddleware
from connexion import AsyncApp
from connexion.apps.asynchronous import AsyncApi
from connexion.middleware.lifespan import LifespanMiddleware
from connexion.middleware.request_validation import RequestValidationMiddleware
from connexion.middleware.response_validation import ResponseValidationMiddleware
from connexion.middleware.routing import RoutingMiddleware
from connexion.middleware.swagger_ui import SwaggerUIMiddleware
from connexion.resolver import Resolver
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

import poiesis
from poiesis.api.auth import Authenticator
from poiesis.api.handlers import Document, Handlers
from poiesis.api.memory import limit_kept_memory
from poiesis.api.middleware import BASE_PATHS, Authentication, Cors, Gateway
from poiesis.api.pages import create_pages
from poiesis.api.validation import VALIDATORS
from poiesis.api.views import Views
from poiesis.config import ApiSettings, ServiceSettings
from poiesis.domain.policy import Policy
from poiesis.services.tasks import TaskService

THREADS: Final = 16
"""Concurrent service calls of one process: they block on the store, where more of them would only queue."""
PAGE_THREADS: Final = 4


@dataclass(frozen=True)
class Services:
    """The parts that the API needs. `describe`: one sentence on what tasks run on; `ready` raises Unavailable."""

    tasks: TaskService
    policy: Policy
    api: ApiSettings
    service: ServiceSettings
    describe: str
    ready: Callable[[], None]


def create_app(
    services: Services,
    *,
    blueprints: Sequence[flask.Blueprint] = (),
    validate_responses: bool = False,
    on_start: Callable[[], None] = lambda: None,
) -> AsyncApp:
    """Return the ASGI application.

    `blueprints`: pages beside the API. `validate_responses`: check responses against the spec too (tests). `on_start` is called by the
    server in its event loop's thread, before the first request.

    Raises: ConfigurationError.
    """
    threads = ThreadPoolExecutor(THREADS, "api")
    authenticator = Authenticator(services.api)
    handlers = Handlers(
        services.tasks, Views(services.api), services.service, services.policy, services.describe, threads
    )

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        limit_kept_memory()
        on_start()
        yield
        authenticator.close()
        threads.shutdown(wait=True, cancel_futures=True)

    specification = load_specification()
    pages = create_pages(services.service, services.api, services.describe, blueprints)
    gateway = partial(
        Gateway,
        pages=cast(ASGIApp, WSGIMiddleware(cast(Any, pages.wsgi_app), workers=PAGE_THREADS)),
        ready=services.ready,
        threads=threads,
        settings=services.api,
        operations=specification["paths"],
    )
    app = AsyncApp(
        __name__,
        lifespan=lifespan,
        middlewares=[
            *_cors(services.api),
            gateway,
            SwaggerUIMiddleware,
            RoutingMiddleware,
            partial(Authentication, authenticator=authenticator),
            RequestValidationMiddleware,
            *((ResponseValidationMiddleware,) if validate_responses else ()),
            LifespanMiddleware,
        ],
        resolver=Resolver(lambda operation_id: getattr(handlers, operation_id)),
        validator_map=VALIDATORS,
        validate_responses=validate_responses,
    )
    app._middleware_app.api_cls = _Api
    for base_path in BASE_PATHS:
        app.add_api(specification, base_path=base_path)
    return app


def _cors(settings: ApiSettings) -> tuple[partial[Cors], ...]:
    """The middleware for web pages of other origins, where the site allows any."""
    if not settings.cors_origins:
        return ()
    cors = partial(
        Cors,
        allow_origins=settings.cors_origins,
        allow_methods=["GET", "POST"],
        allow_headers=["Authorization", "Content-Type", "X-API-Key"],
        expose_headers=["Retry-After", "WWW-Authenticate"],
    )
    return (cors,)


def load_specification() -> dict[str, Any]:
    """Return `specs/tes.openapi.yaml`: inside an installed package, beside the package in a checkout."""
    package = Path(poiesis.__file__).parent
    for directory in (package / "specs", package.parent / "specs"):
        if (path := directory / "tes.openapi.yaml").is_file():
            document: dict[str, Any] = yaml.load(
                path.read_bytes(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)
            )
            return document
    raise FileNotFoundError("incomplete package: missing tes.openapi.yaml")


class _Operation:
    """One operation of the spec: the document of its handler, as JSON."""

    def __init__(self, handler: Callable[[Scope], Awaitable[Document]]) -> None:
        self._handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = msgspec.json.encode(await self._handler(scope))
        await Response(body, media_type="application/json")(scope, receive, send)


class _Api(AsyncApi):  # type: ignore[misc]
    def make_operation(self, operation: Any) -> _Operation:
        return _Operation(operation.function)
